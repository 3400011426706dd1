"""The maildrop of a session: numbers, sizes, unique-ids, the marks of DELE, and the deletion at QUIT.

The handler's answers about its messages are checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from operator import index
from types import CoroutineType

from popart.errors import BadCommandError, HandlerError, ReportableError
from popart.handler import BaseHandler, Handler, SupportsListing
from popart.handler_calls import MAX_NUMBER, ability, bad_type, check_each, close_coroutines, expect_none, expect_number
from popart.unique_ids import check_id, check_ids, same_ids

MAX_DIGITS = 10
"""Digits of a number in a command: enough for TOP's 99999999 and for any message."""


class Maildrop:
    """A session's view of its messages: numbers, sizes and ids, frozen at sign-in, and the marks of DELE.

    It is empty until it is opened.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._hold([], [])

    def _hold(self, sizes: list[int], ids: list[str] | None) -> None:
        # Look this up before the greeting, where a property may fail, and again at sign-in, when a handler that
        # delegates knows its target.
        self._ask_id = self._handler.get_message_id
        self.sizes = sizes
        self._all_octets = sum(sizes)
        self.count: int = len(sizes)
        self.octets: int = self._all_octets
        self._deleted: set[int] = set()
        self._unchecked_ids = ids
        self._ids = [""] * len(sizes)  # "" where it is not known yet
        self._asked_ids: set[str] | None = set() if ids is None else None  # None once all were asked for, or listed

    def open(self, max_messages: int | None) -> None:
        """Ask the handler for its messages.

        :raises HandlerError: the count, a size or the listing is wrong, or there are more than *max_messages*.
        """
        list_messages = ability(self._handler, SupportsListing, "list_messages")
        ids: list[str] | None = None
        if list_messages is not None:
            sizes, ids = _read_listing(list_messages(), max_messages)
            if CoroutineType in set(map(type, ids)):
                # Now, because Python prints that they were never awaited if no client asks for ids.
                check_ids(ids)
        else:
            count = expect_number("the count of messages", self._handler.get_message_count())
            if max_messages is not None and count > max_messages:
                raise HandlerError(f"the count of messages is {count}, and max_messages is {max_messages}")
            sizes = [self._handler.get_message_size(number) for number in range(1, count + 1)]
        self._hold(_check_sizes(sizes), ids)
        lister = getattr(list_messages, "__self__", None)  # a wrapper may have handed on another handler's method
        if ids is not None and isinstance(lister, BaseHandler):
            lister._keep_listing(self.sizes, ids)

    def commit(self) -> None:
        """Have the handler delete the marked messages, if there are any (RFC 1939 section 6)."""
        if self._deleted:
            expect_none("delete_messages", self._handler.delete_messages(sorted(self._deleted)))

    def __str__(self) -> str:
        return f"{self.count} message{'' if self.count == 1 else 's'} ({self.octets} octets)"

    def find(self, argument: str) -> int:
        """Return the message number in a command's argument."""
        number = read_number(argument, "message number")
        if not 1 <= number <= len(self.sizes):
            raise ReportableError(f"no such message, the maildrop was opened with {len(self.sizes)}")
        if number in self._deleted:
            raise ReportableError(f"message {number} is deleted")
        return number

    def list_sizes(self) -> bytes:
        """Return the scan listings of the messages that are not marked as deleted (RFC 1939 section 5)."""
        return self._list(self.sizes)

    def list_unique_ids(self) -> bytes:
        """Return the unique-id listings of these messages (RFC 1939 section 7).

        :raises HandlerError: an id cannot stand on the wire or is not unique.
        """
        if self._asked_ids is not None:
            # From now on they count as listed.  Checking them together takes half the time of one by one.
            self._unchecked_ids = [known or self._ask_id(number) for number, known in enumerate(self._ids, 1)]
            self._asked_ids = None
        self._check_listed_ids()
        return self._list(self._ids)

    def unique_id(self, number: int) -> str:
        """Return a message's unique-id.

        :raises HandlerError: it, or with a listing any of the ids, cannot stand on the wire or is not unique.
        """
        self._check_listed_ids()
        if self._asked_ids is not None and not self._ids[number - 1]:
            identifier = check_id(number, self._ask_id(number))
            if identifier in self._asked_ids:
                raise same_ids(self._ids.index(identifier) + 1, number, identifier)
            self._asked_ids.add(identifier)
            self._ids[number - 1] = identifier
        return self._ids[number - 1]

    def _list(self, values: Sequence[object]) -> bytes:
        numbers: Sequence[int] = range(1, len(values) + 1)
        if self._deleted:
            numbers = [number for number in numbers if number not in self._deleted]
            values = [values[number - 1] for number in numbers]
        # One format for all lines: a quarter faster than joining a string for each.
        flat: list[object] = [None] * (2 * len(numbers))
        flat[::2], flat[1::2] = numbers, values
        return ("%d %s\r\n" * len(numbers) % tuple(flat)).encode("ascii")

    def _check_listed_ids(self) -> None:
        if self._unchecked_ids is not None:
            self._ids = check_ids(self._unchecked_ids)
            self._unchecked_ids = None

    def delete(self, number: int) -> None:
        """Mark a message as deleted.  Numbers never move (RFC 1939 section 5)."""
        self._deleted.add(number)
        self.count -= 1
        self.octets -= self.sizes[number - 1]

    def undelete(self) -> None:
        """Remove all marks."""
        self._deleted.clear()
        self.count = len(self.sizes)
        self.octets = self._all_octets


def read_number(argument: str, what: str) -> int:
    # int() alone would take signs, underscores, spaces and the digits of other scripts.
    if not (argument.isascii() and argument.isdigit() and len(argument) <= MAX_DIGITS):
        raise BadCommandError(f"bad {what}")
    return int(argument)


def _read_listing(listing: object, max_messages: int | None) -> tuple[list[int], list[str]]:
    """Return the sizes and the ids of a listing, none of them checked."""
    if not isinstance(listing, Iterable):
        raise bad_type("list_messages", listing, "pairs of size and id")
    entries = list(islice(listing, None if max_messages is None else max_messages + 1))
    if max_messages is not None and len(entries) > max_messages:
        raise HandlerError(f"list_messages goes on after {max_messages} messages, and max_messages is {max_messages}")
    sizes: list[int] = []
    ids: list[str] = []
    try:
        for size, identifier in entries:
            sizes.append(size)
            ids.append(identifier)
    except (TypeError, ValueError):
        close_coroutines(*entries)
        what = type(entries[len(sizes)]).__name__
        raise HandlerError(f"list_messages has no pair of size and id for message {len(sizes) + 1}: {what}") from None
    return sizes, ids


def _check_sizes(sizes: list[int]) -> list[int]:
    # All at once, in C, takes a fifth of the time.  One by one is only for finding out which of them is wrong.
    with suppress(TypeError):
        found = list(map(index, sizes))
        if not found or (min(found) >= 0 and max(found) <= MAX_NUMBER):
            return found
    return check_each(sizes, lambda number, size: expect_number(f"the size of message {number}", size))
