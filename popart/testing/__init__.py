"""A POP3 server for the tests of programs that fetch mail::

    from popart.testing import MailServer

    with MailServer(users={"alice": "secret"}) as server:
        server.deliver("alice", b"Subject: x\\n\\nhello\\n")
        fetch(server.host, server.port)
        assert server.messages("alice") == []

It is `popart.Server` with its mail in memory, so it does what any popart server does, until it is told to fail.  There
is a pytest fixture too, ``pop3_server``, and ``python3 -m popart.testing`` serves message files from a shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import re
import secrets
import ssl
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from popart.errors import BrokenMessageError, ReportableError
from popart.handler import Handler, MessageReader, SupportsClose, SupportsListing
from popart.server import Connection, Server
from popart.session import Session, State
from popart.wire import TERMINATOR, Reply, encode_message, err, normalise_line_ends

__all__ = ["MailServer", "Maildrop"]

_SECRET = re.compile(r"\A(\s*(?:PASS|(?:APOP|AUTH)\s+\S+)\s).+", re.IGNORECASE | re.DOTALL)


class Maildrop:
    """One user's messages in memory, and the lock that one session at a time may hold.  Any thread may use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._messages: dict[str, bytes] = {}
        # A mail program that saw an earlier maildrop must not take new messages for those it knows.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._locked = False

    def deliver(self, message: bytes | str | Message) -> str:
        """Add a message at the end and return its unique-id, which no other message ever gets.

        A str is encoded as UTF-8.  The message is kept as POP3 sends it: with CRLF line ends, one at the very end.

        :raises TypeError: *message* is something else.
        """
        if isinstance(message, Message):
            message = message.as_bytes()
        elif isinstance(message, str):
            message = message.encode("utf-8", "surrogateescape")
        elif not isinstance(message, bytes):
            raise TypeError(f"a message is bytes, str or email.message.Message, not {type(message).__name__}")
        octets = b"".join(normalise_line_ends([message]))
        with self._guard:
            unique_id = f"{self._prefix}.{next(self._numbers)}"
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


class MailServer:
    """A POP3 server on a free port of this machine, for as long as a ``with`` block.

    It accepts connections when the block is entered.  When it is left, all sessions are ended at once, and nothing
    remains: no port, no thread, no file.  What was recorded and delivered can be read afterwards too.

    *users* maps names to passwords.  With *tls* each connection is TLS from its first octet; that needs trustme
    (``pip install 'popart-pop3[testing]'``).  *port* 0 is any free one.  *server_options* are the other arguments of
    `popart.Server` (here *timeout* may be as small as 0.01 seconds), and its limits, such as ``max_failed_logins=1``.

    **Faults.**  `fail`, `drop` and `delay` name a command, also with arguments: ``"RETR"`` is each RETR, ``"RETR 2"``
    only that of message 2.  `refuse_sign_in`, `lock_maildrop` and `fail_commit` name a step.  All of them take
    *times*, how often it happens (by default once, None is for good), and *username*, so that it happens to one user
    only.  Faults at the same command happen one after the other, in the order in which they were asked for.

    Entering the block raises OSError if the port is taken, ValueError for an option that `popart.Server` refuses and
    ImportError if trustme is missing.
    """

    users: dict[str, str]
    """The users' passwords.  It may be changed at any time."""

    commands: list[tuple[str, ...]]
    """What clients sent, in order: ``("alice", "RETR", "1")``.  First stands the name that was given in this
    connection before, ``""`` if none was; then the command's words, the first in upper case, passwords as ``***``."""

    errors: list[BaseException]
    """What went wrong in sessions, such as a `popart.ClientGoneError` for a client that left without QUIT."""

    host: str
    """Where to connect: ``"127.0.0.1"``, or with *tls* ``"localhost"``.  The certificate holds both names."""

    port: int
    """The TCP port."""

    ca_file: str | None = None
    """With *tls*, the path of a PEM file: the throw-away certificate authority that the client has to trust."""

    def __init__(
        self,
        users: Mapping[str, str] = MappingProxyType({"alice": "secret"}),
        *,
        tls: bool = False,
        port: int = 0,
        **server_options: Any,
    ) -> None:
        self.users = dict(users)
        self.commands = []
        self.errors = []
        self.host = "localhost" if tls else "127.0.0.1"
        self.port = port
        self._tls = tls
        self._server_options = server_options
        self._exit = contextlib.ExitStack()
        self._changed = threading.Condition()  # guards what follows
        self._maildrops: dict[str, Maildrop] = {}
        self._faults: list[_Fault] = []
        self._open_sessions = 0
        self._ended_sessions = 0

    def __enter__(self) -> MailServer:
        with contextlib.ExitStack() as stack:
            options = dict(self._server_options)
            if self._tls:
                options["ssl_context"] = self._make_tls_context(stack)
            server = stack.enter_context(_Server(("127.0.0.1", self.port), self._begin_session, **options))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            self.port = server.server_address[1]
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @property
    def url(self) -> str:
        """``pop3://`` or ``pop3s://``, host and port."""
        return f"pop3{'s' if self._tls else ''}://{self.host}:{self.port}"

    # Mail.

    def maildrop(self, username: str) -> Maildrop:
        """Return a user's maildrop.

        :raises KeyError: there is no such user.
        """
        if username not in self.users:
            raise KeyError(username)
        with self._changed:
            return self._maildrops.setdefault(username, Maildrop())

    def deliver(self, username: str, message: bytes | str | Message) -> str:
        """Add a message to a user's mail and return its unique-id: see `Maildrop.deliver`.

        A session that is signed in already does not see it; the next one does.

        :raises KeyError: there is no such user.
        """
        return self.maildrop(username).deliver(message)

    def messages(self, username: str) -> list[bytes]:
        """Return the messages that a user has now, oldest first, with CRLF line ends.

        :raises KeyError: there is no such user.
        """
        return [octets for _, octets in self.maildrop(username).snapshot()]

    # Watching.

    def record_command(self, command: tuple[str, ...]) -> None:
        """Add to `commands`.  Override it to learn of each command as it comes, in the thread of its connection."""
        self.commands.append(command)

    def wait_for_session_end(self, timeout: float = 10.0, *, sessions: int = 1) -> None:
        """Wait until no session is open, and at least *sessions* in all have ended; one begins with its greeting.

        What ended sessions did can then be seen, and their locks are free: needed after a client that did not get
        its answer to QUIT, or did not wait for it.

        :raises TimeoutError: that is not so after *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._open_sessions and self._ended_sessions >= sessions, timeout
            ):
                counts = f"{self._open_sessions} sessions are open and {self._ended_sessions} have ended"
                raise TimeoutError(f"{counts} after {timeout} seconds")

    # Faults.

    def fail(
        self,
        command: str,
        text: str = "failed on demand",
        *,
        code: str | None = None,
        username: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer *command* with ``-ERR [code] text``.  It is not run; a failed QUIT ends the session all the same.

        :raises ValueError: *code* cannot be one, or *times* is less than 1.
        """
        self._add_fault(command, _refusal(text, code), username, times)

    def drop(
        self, command: str, *, after: int | None = None, username: str | None = None, times: int | None = 1
    ) -> None:
        """Close the connection instead of answering *command*, which is not run.

        With *after* it is run and answered, and the connection is closed after so many octets of a message or a
        listing, dot-stuffing counted: they follow the first line of the answer.  The final dot is never sent.

        :raises ValueError: *after* is less than 0, or *times* less than 1.
        """
        if after is None:
            self._add_fault(command, lambda run: _cut(Reply(b""), 0), username, times)
        elif after >= 0:
            self._add_fault(command, lambda run: _cut(run(), after), username, times)
        else:
            raise ValueError(f"after must be 0 or more octets, not {after}")

    def delay(self, command: str, seconds: float, *, username: str | None = None, times: int | None = 1) -> None:
        """Run *command*, and send its answer so many *seconds* later.

        With QUIT this is how a client loses the answer, by its own timeout, after its messages have been deleted.

        :raises ValueError: *seconds* is less than 0, or *times* less than 1.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds}")
        self._add_fault(command, lambda run: _delayed(run(), seconds), username, times)

    def refuse_sign_in(
        self,
        text: str = "wrong name or password",
        *,
        code: str = "AUTH",
        username: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Refuse a user whatever the password, in popart's own way: later each time, and not for ever.

        :raises ValueError: *code* cannot be one, or *times* is less than 1.
        """
        self._add_fault("authenticate", _refusal(text, code), username, times)

    def lock_maildrop(self, *, username: str | None = None, times: int | None = 1) -> None:
        """Refuse a user with the right password, as if another client held the maildrop: ``-ERR [IN-USE]``.

        :raises ValueError: *times* is less than 1.
        """
        self._add_fault("lock", _refusal("another session has the maildrop", "IN-USE"), username, times)

    def fail_commit(
        self,
        text: str = "the messages are not deleted",
        *,
        code: str = "SYS/TEMP",
        username: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Delete nothing at a QUIT that should delete messages, and answer it with ``-ERR [code] text``.

        :raises ValueError: *code* cannot be one, or *times* is less than 1.
        """
        self._add_fault("commit", _refusal(text, code), username, times)

    def clear_faults(self) -> None:
        """Forget all faults that have yet to happen."""
        with self._changed:
            self._faults.clear()

    # What sessions call.

    def _add_fault(self, where: str, action: _Action, username: str | None, times: int | None) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, or None, not {times}")
        with self._changed:
            self._faults.append(_Fault(where.upper().split(), action, username, times))

    def _strike(self, where: Sequence[str], username: str, run: Callable[[], Any]) -> Any:
        """Do *run*, or what the first fault for it wants instead."""
        with self._changed:
            fault = next((fault for fault in self._faults if fault.is_for(where, username)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
        return run() if fault is None else fault.action(run)

    def _begin_session(self, peer: Any) -> Handler:
        with self._changed:
            self._open_sessions += 1
        return _MemoryHandler(self)

    def _end_session(self) -> None:
        with self._changed:
            self._open_sessions -= 1
            self._ended_sessions += 1
            self._changed.notify_all()

    def _make_tls_context(self, stack: contextlib.ExitStack) -> ssl.SSLContext:
        try:
            import trustme
        except ImportError:
            raise ImportError("tls=True needs trustme: pip install 'popart-pop3[testing]'") from None
        authority = trustme.CA()
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="popart-"))
        self.ca_file = str(Path(directory, "ca.pem"))
        authority.cert_pem.write_to_path(self.ca_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        return context
