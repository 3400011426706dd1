"""Messages in memory."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterable
from email.message import Message

from popart.errors import HandlerError, ReportableError
from popart.message_framing import wire_form
from popart.unique_ids import MAX_UNIQUE_ID, check_id


class Maildrop:
    """One user's messages in memory, and the lock that one session at a time may hold.  Any thread may use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._messages: dict[str, bytes] = {}
        # A mail program that saw an earlier maildrop must not take new messages for those that it knows.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._locked = False

    def deliver(self, message: bytes | str | Message, *, unique_id: str | None = None) -> str:
        """Add a message at the end and return its unique-id.  Without *unique_id* popart makes one that no other
        message gets.

        A str is encoded as UTF-8.  The message is kept as POP3 sends it: with CRLF line ends, one at the very end.

        :raises TypeError: *message* is not bytes, str or `email.message.Message`.
        :raises ValueError: *unique_id* is malformed (RFC 1939 section 7), or a message in this maildrop has it.
        """
        if isinstance(message, Message):
            message = message.as_bytes()
        elif isinstance(message, str):
            message = message.encode("utf-8", "surrogateescape")
        elif not isinstance(message, bytes):
            raise TypeError(f"a message is bytes, str or email.message.Message, not {type(message).__name__}")
        octets = wire_form(message)
        if unique_id is not None:
            _check_id(unique_id)
        with self._guard:
            if unique_id is None:
                unique_id = f"{self._prefix}.{next(self._numbers)}"
            elif unique_id in self._messages:
                raise ValueError(f"another message has the unique-id {unique_id!r}")
            self._messages[unique_id] = octets
            return unique_id

    def snapshot(self) -> list[tuple[str, bytes]]:
        """Return the unique-id and the octets of each message, oldest first, as they are now."""
        with self._guard:
            return [*self._messages.items()]

    def delete(self, unique_ids: Iterable[str]) -> None:
        """Delete these messages: all of them, or none.

        :raises KeyError: one of them is not there, and none is deleted.
        """
        with self._guard:
            kept = dict(self._messages)
            for unique_id in unique_ids:
                del kept[unique_id]
            self._messages = kept

    def lock(self) -> None:
        """Take the lock, without waiting for it.

        :raises ReportableError: a session, or another caller of this method, has it.  Its code is ``IN-USE``.
        """
        with self._guard:
            if self._locked:
                raise ReportableError("another session has the maildrop", code="IN-USE")
            self._locked = True

    def unlock(self) -> None:
        """Release the lock."""
        with self._guard:
            self._locked = False


def _check_id(unique_id: str) -> None:
    try:
        check_id(1, unique_id)
    except HandlerError:
        rule = f"1 to {MAX_UNIQUE_ID} characters from '!' to '~'"
        raise ValueError(f"a unique-id is a str of {rule}, not {unique_id!r}") from None
