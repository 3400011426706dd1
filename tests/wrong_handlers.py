"""Handlers that are wrong on purpose, each in one way, and a right one that they derive from.

`popart.testing.check` must find each of them: tests/test_check.py.  The docstring of a handler says what is wrong, and
tests/findings.txt what the check says of it.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import popart

MESSAGES = [
    b"From: bob@example.org\r\nSubject: one\r\n\r\nA line.\r\n.\r\n",
    b"Subject: two\r\nX-Long: " + b"x" * 900 + b"\r\n\r\n" + b"A line of some length.\r\n" * 200,
    b"Subject: three\r\n\r\n" + b"0123456789 and so on\r\n" * 4_000,  # more than popart reads at once
    b"Subject: four\r\n\r\n",
    b"Subject: five\r\n\r\nThe last line has no end",
]


MESSAGES_OF_BOB = [b"Subject: for bob %d\r\n\r\n" % number for number in range(5)]


class Drop:
    """A user's mail, with its ids, and its lock."""

    def __init__(self, messages: Sequence[bytes] = MESSAGES) -> None:
        self.messages = {secrets.token_hex(8): octets for octets in messages}
        self.locked = False


class Store:
    """Two users' mail, and how the handlers of one test see it."""

    def __init__(self) -> None:
        self.users = {"alice": "secret", "bob": "hunter2"}
        self.drops = {"alice": Drop(), "bob": Drop(MESSAGES_OF_BOB)}
        self.guard = threading.Lock()
        self.go_on = threading.Event()
        """What a handler that blocks waits for: the test sets it at its end."""
        self.broken = False
        self.seen: dict[str, Any] = {}
        """Anything else that the sessions of a wrong handler share."""

    @contextmanager
    def break_backend(self) -> Iterator[None]:
        """Let deletions fail after the first."""
        self.broken = True
        yield
        self.broken = False

    def remove(self, drop: Drop, unique_id: str) -> None:
        """Delete one message, without a transaction."""
        if self.broken and self.seen.setdefault("removed", 0):
            raise OSError("the disk is full")
        self.seen["removed"] = self.seen.get("removed", 0) + 1
        del drop.messages[unique_id]


class Right(popart.BaseHandler, popart.SupportsClose):
    """Nothing is wrong with it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.username = ""
        self.messages: list[tuple[str, bytes]] = []

    @property
    def drop(self) -> Drop:
        return self.store.drops[self.username]

    def authenticate_pass(self, username: str, password: str) -> None:
        if self.store.users.get(username) != password:
            raise popart.ReportableError("wrong name or password")
        self.username = username

    def lock_maildrop(self) -> None:
        with self.store.guard:
            if self.drop.locked:
                raise popart.ReportableError("another session has the maildrop")
            self.drop.locked = True
        self.messages = list(self.drop.messages.items())

    def list_messages(self) -> Iterable[tuple[int, str]]:
        return [(popart.wire_size(octets), unique_id) for unique_id, octets in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(self.messages[number - 1][1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        if self.store.broken:
            raise OSError("the disk is full")
        for number in numbers:
            del self.drop.messages[self.messages[number - 1][0]]

    def unlock_maildrop(self) -> None:
        self.drop.locked = False

    def handle_session_error(self, error: BaseException) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Wrong:
    """A handler that is wrong, and what the check must be given to find it."""

    handler: type[Right]
    options: dict[str, Any]


WRONG: list[Wrong] = []


def wrong(**options: Any) -> Callable[[type[Right]], type[Right]]:
    def add(handler: type[Right]) -> type[Right]:
        WRONG.append(Wrong(handler, options))
        return handler

    return add


# Sizes.


class Sizes(Right):
    """It answers with another size for each message."""

    def size_of(self, octets: bytes) -> Any:
        raise NotImplementedError

    def list_messages(self) -> Any:
        return [(self.size_of(octets), unique_id) for unique_id, octets in self.messages]


@wrong()
class SizeByFormula(Sizes):
    """A size counts the CR of each CRLF twice."""

    def size_of(self, octets: bytes) -> int:
        return len(octets.replace(b"\n", b"\r\n"))


@wrong()
class SizeByLastLF(Sizes):
    """A size counts a last line end that is there already."""

    def size_of(self, octets: bytes) -> int:
        return len(octets + b"\r\n")


@wrong()
class SizeWithBOM(Sizes):
    """A size counts the byte order mark of the file, which the reader leaves out."""

    def size_of(self, octets: bytes) -> int:
        return popart.wire_size(b"\xef\xbb\xbf" + octets)


@wrong()
class SizeNegative(Sizes):
    """A size that is not known is -1."""

    def size_of(self, octets: bytes) -> int:
        return -1


@wrong()
class SizeText(Sizes):
    """A size is a str."""

    def size_of(self, octets: bytes) -> str:
        return str(len(octets))


@wrong()
class SizeChanges(Sizes):
    """A size is smaller in each session."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.store.seen["session"] = self.store.seen.get("session", 0) + 1

    def size_of(self, octets: bytes) -> int:
        return max(1, len(octets) - int(self.store.seen["session"]))


class Counting(Right):
    """It answers for single messages, without a listing."""

    list_messages = None  # type: ignore[assignment]

    def get_message_count(self) -> int:
        return len(self.messages)

    def get_message_size(self, number: int) -> int:
        return popart.wire_size(self.messages[number - 1][1])

    def get_message_id(self, number: int) -> str:
        return self.messages[number - 1][0]


@wrong()
class CountsTooMany(Counting):
    """The count is one too large."""

    def get_message_count(self) -> int:
        return len(self.messages) + 1


# Unique-ids.


class Ids(Right):
    """It answers with another unique-id for each message."""

    def id_of(self, number: int, unique_id: str) -> Any:
        raise NotImplementedError

    def list_messages(self) -> Any:
        return [
            (popart.wire_size(octets), self.id_of(number, unique_id))
            for number, (unique_id, octets) in enumerate(self.messages, 1)
        ]


@wrong()
class IdsWithBlanks(Ids):
    """The ids hold blanks."""

    def id_of(self, number: int, unique_id: str) -> str:
        return f"message {unique_id}"


@wrong()
class IdsTooLong(Ids):
    """The ids have more than 70 characters."""

    def id_of(self, number: int, unique_id: str) -> str:
        return unique_id * 5


@wrong()
class IdsEmpty(Ids):
    """A message without a Message-ID has an empty id."""

    def id_of(self, number: int, unique_id: str) -> str:
        return "" if number == 3 else unique_id


@wrong()
class IdsNotASCII(Ids):
    """The ids hold a letter outside ASCII."""

    def id_of(self, number: int, unique_id: str) -> str:
        return f"é{unique_id}"


@wrong()
class IdsOfNumbers(Ids):
    """The ids are of the type int, as the database has them."""

    def id_of(self, number: int, unique_id: str) -> int:
        return int(unique_id, 16)


@wrong()
class IdsDouble(Ids):
    """Two messages have the same id."""

    def id_of(self, number: int, unique_id: str) -> str:
        return self.messages[number // 2 * 2 - 1][0]


@wrong()
class IdsDoubleAsked(Counting):
    """The same, in a handler that is asked for each id."""

    def get_message_id(self, number: int) -> str:
        return "id"


@wrong()
class IdsChange(Ids):
    """The ids are made anew in each session."""

    def id_of(self, number: int, unique_id: str) -> str:
        return secrets.token_hex(8)


@wrong(delete=True)
class IdsByNumber(Ids):
    """The ids are the numbers, so they move when a message is deleted."""

    def id_of(self, number: int, unique_id: str) -> str:
        return f"id-{number}"


@wrong()
class IdsSwap(Ids):
    """The first two messages change their ids with each session."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.store.seen["turn"] = not self.store.seen.get("turn")

    def id_of(self, number: int, unique_id: str) -> str:
        if number <= 2 and self.store.seen["turn"]:
            return self.messages[2 - number][0]
        return unique_id


# Readers.


class Reader(io.BytesIO):
    """It gives a message's octets, right or wrong."""

    def __init__(self, handler: Reading, octets: bytes) -> None:
        super().__init__(octets)
        self.handler = handler


class Reading(Right):
    """It reads with another reader."""

    reader: type[Any] = Reader

    def get_message_reader(self, number: int) -> Any:
        return self.reader(self, self.messages[number - 1][1])


@wrong()
class ReaderEndsEarly(Reading):
    """A reader ends after 4,000 octets, as of a connection that was lost."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(self.messages[number - 1][1][:4000])


@wrong()
class ReaderRaises(Reading):
    """A reader fails in the middle of a long message."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            if self.tell() > 60_000:
                raise OSError("the back end is gone")
            return super().read(n)


@wrong()
class OpeningRaises(Reading):
    """A message that is listed cannot be opened."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        if number == 2:
            raise FileNotFoundError("new/2")
        return super().get_message_reader(number)


@wrong()
class TopRaises(Right):
    """TOP is not done yet."""

    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        raise NotImplementedError


@wrong()
class OpeningRefused(Reading):
    """A message that is listed is refused in words."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        if number == 2:
            raise popart.ReportableError("the message is gone")
        return super().get_message_reader(number)


@wrong()
class ReaderOfText(Reading):
    """A reader gives text."""

    class reader(io.StringIO):
        def __init__(self, handler: Reading, octets: bytes) -> None:
            super().__init__(octets.decode())


@wrong()
class ReaderOfBytearrays(Reading):
    """A reader gives bytearrays."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> Any:
            return bytearray(super().read(n))


@wrong()
class ReaderEndsWithNone(Reading):
    """A reader says None at the end, as a non-blocking file does."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> Any:
            return super().read(n) or None


@wrong()
class ReaderGivesAll(Reading):
    """A reader gives the whole message, however much is asked for."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            return super().read()


@wrong(patience=2.0)
class ReaderBlocks(Reading):
    """A reader waits for ever at the end of the message."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            return super().read(n) or str(self.handler.store.go_on.wait()).encode()[:0]


@wrong()
class ReadersShareAPosition(Right):
    """All readers of a message are one open file, which nobody rewinds."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.files: dict[int, io.BytesIO] = {}

    def get_message_reader(self, number: int) -> Any:
        if number not in self.files:
            self.files[number] = io.BytesIO(self.messages[number - 1][1])
        file = self.files[number]

        class Shared:
            def read(self, n: int) -> bytes:
                return file.read(n)

            def close(self) -> None: ...

        return Shared()


@wrong()
class ReadersShareAPositionUnseen(ReadersShareAPosition):
    """The same, and popart does not see it, as the sizes are said to be 0."""

    def list_messages(self) -> Iterable[tuple[int, str]]:
        return [(0, unique_id) for unique_id, _ in self.messages]


@wrong()
class ReaderLosesPieces(Reading):
    """A reader that is asked for less than a line loses the rest of that line."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            assert n is not None
            return super().read(n) if n > 4000 else self.readline()[:n]


@wrong()
class ReaderIsAsync(Reading):
    """A reader's read is a coroutine function."""

    class reader:
        def __init__(self, handler: Reading, octets: bytes) -> None: ...

        async def read(self, n: int) -> bytes:
            return b""


@wrong()
class NoReader(Reading):
    """The octets are returned in place of a reader."""

    def get_message_reader(self, number: int) -> Any:
        return self.messages[number - 1][1]


@wrong()
class ReaderCannotClose(Reading):
    """Closing a reader that was not read to its end fails."""

    class reader:  # no file object, which would be closed once more when it is forgotten
        def __init__(self, handler: Reading, octets: bytes) -> None:
            self.file = io.BytesIO(octets)

        def read(self, n: int) -> bytes:
            return self.file.read(n)

        def close(self) -> None:
            if self.file.read(1):
                raise ValueError("not at the end")


class Tops(Right):
    """It has readers of its own for TOP."""

    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        return io.BytesIO(self.top_of(self.messages[number - 1][1], lines))

    def top_of(self, octets: bytes, lines: int) -> bytes:
        raise NotImplementedError


@wrong()
class TopWithoutHeader(Tops):
    """TOP gives the body's lines alone."""

    def top_of(self, octets: bytes, lines: int) -> bytes:
        return octets.partition(b"\r\n\r\n")[2]


@wrong()
class TopOfOneLine(Tops):
    """TOP never gives more than the body's first line."""

    def top_of(self, octets: bytes, lines: int) -> bytes:
        header, blank, body = octets.partition(b"\r\n\r\n")
        return header + blank + b"".join(body.splitlines(keepends=True)[: min(lines, 1)])


@wrong()
class TopOfTwentyLines(Tops):
    """TOP never gives more than 20 lines, but for the whole message."""

    def top_of(self, octets: bytes, lines: int) -> bytes:
        return octets if lines > 1000 else b"".join(octets.splitlines(keepends=True)[:20])


@wrong()
class ReadsFromZero(Right):
    """The readers count from 0."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(self.messages[number][1])


@wrong()
class ListingFails(Right):
    """The listing fails after its first message."""

    def list_messages(self) -> Iterator[tuple[int, str]]:
        yield (1, "one")
        raise LookupError("the second is gone")


@wrong()
class ListingOfSizes(Right):
    """The listing has no ids."""

    def list_messages(self) -> Any:
        return [len(octets) for _, octets in self.messages]


# Deletion.


@wrong()
class DeletesWhenRead(Reading):
    """A message is deleted when its reader is closed."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        self.drop.messages.pop(self.messages[number - 1][0], None)
        return super().get_message_reader(number)


@wrong(delete=True)
class DeletesAtDELE(Right):
    """A message is deleted at DELE."""

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        if verb == "DELE":
            del self.drop.messages[self.messages[0][0]]

    def session_finished(self, commands: int, octets: int, seconds: float) -> None: ...

    def delete_messages(self, numbers: Sequence[int]) -> None: ...


@wrong(delete=True)
class DeletesAtTheEnd(DeletesAtDELE):
    """What was marked is deleted when the session ends, however it ends."""

    marked = False

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        self.marked |= verb == "DELE"

    def unlock_maildrop(self) -> None:
        if self.marked:
            del self.drop.messages[self.messages[0][0]]
        super().unlock_maildrop()


@wrong(delete=True)
class DeletesFromZero(Right):
    """The numbers of messages to delete are counted from 0, and those of no message left out."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self.drop.messages[self.messages[number - 2][0]]


@wrong(delete=True)
class DeletesWhileNumbersMove(Right):
    """Each deletion moves the numbers that follow."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self.drop.messages[self.messages.pop(number - 1)[0]]


@wrong(delete=True)
class DeletesAll(Right):
    """The whole maildrop is emptied."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self.drop.messages.clear()


@wrong(delete=True)
class DeletesNothing(Right):
    """Nothing is deleted, and that is called a success."""

    def delete_messages(self, numbers: Sequence[int]) -> None: ...


@wrong(delete=True)
class DeletesOne(Right):
    """Only the first of several is deleted."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers[:1])


@wrong(delete=True, fails=True)
class DeletesHalf(Right):
    """Messages are deleted one by one, and those before an error stay deleted."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.store.remove(self.drop, self.messages[number - 1][0])


@wrong(delete=True, fails=True)
class DeletesHalfAndSwallows(DeletesHalf):
    """Messages are deleted one by one, and an error of the back end is swallowed."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        with suppress(OSError):
            super().delete_messages(numbers)


@wrong(delete=True, fails=True)
class DeletesAndSwallows(Right):
    """An error of the back end is swallowed."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        if not self.store.broken:
            super().delete_messages(numbers)


@wrong(delete=True, fails=True)
class DeletesAndFails(Right):
    """All is deleted, and then an error is raised."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self.drop.messages[self.messages[number - 1][0]]
        if self.store.broken:
            raise OSError("the disk is full")


class Rewrites(Right):
    """A deletion writes the messages that stay anew."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers)
        self.rewrite(self.drop.messages)

    def rewrite(self, messages: dict[str, bytes]) -> None:
        messages.update({unique_id: bytes(octets) for unique_id, octets in messages.items()})


@wrong(delete=True)
class DeletesAndTruncates(Rewrites):
    """After a deletion the messages that stay lack their last line."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        messages.update({unique_id: octets[:-12] for unique_id, octets in messages.items()})


@wrong(delete=True)
class DeletesAndEmpties(Rewrites):
    """After a deletion the messages that stay are empty."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        messages.update(dict.fromkeys(messages, b""))


def rotate(messages: dict[str, bytes]) -> None:
    """Give each message the text of the next one."""
    texts = list(messages.values())
    messages.update(zip(messages, texts[1:] + texts[:1], strict=True))


@wrong(delete=True)
class DeletesAndSwaps(Rewrites):
    """After a deletion each message that stays has the text of another one."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        rotate(messages)


@wrong(delete=True)
class DeletesAndMeasures(Right):
    """After a deletion the messages that stay have other sizes."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers)
        self.store.seen["deleted"] = True

    def list_messages(self) -> Iterable[tuple[int, str]]:
        less = 1 if "deleted" in self.store.seen else 0
        return [(popart.wire_size(octets) - less, unique_id) for unique_id, octets in self.messages]


@wrong(delete=True)
class DeletesAndDoubles(Rewrites):
    """A deletion plays its journal again, and doubles the messages that stay."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        messages.update({f"{unique_id}.2": octets for unique_id, octets in list(messages.items())})


class FailsTo(Right):
    """A deletion that fails changes the maildrop."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        if self.store.broken:
            self.spoil(numbers)
        super().delete_messages(numbers)

    def spoil(self, numbers: Sequence[int]) -> None:
        raise NotImplementedError


@wrong(delete=True, fails=True)
class FailsAndEmpties(FailsTo):
    """A deletion that fails has emptied all messages."""

    def spoil(self, numbers: Sequence[int]) -> None:
        self.drop.messages.update(dict.fromkeys(self.drop.messages, b""))


@wrong(delete=True, fails=True)
class FailsAndSwaps(FailsTo):
    """After a deletion that fails each message has the text of another one."""

    def spoil(self, numbers: Sequence[int]) -> None:
        rotate(self.drop.messages)


@wrong(delete=True, fails=True)
class FailsAndDeletesOthers(FailsTo):
    """A deletion that fails keeps what was marked, and nothing else."""

    def spoil(self, numbers: Sequence[int]) -> None:
        for unique_id, _ in self.messages[len(numbers) :]:
            del self.drop.messages[unique_id]


@wrong(delete=True, fails=True)
class FailsAndDoubles(FailsTo):
    """A deletion that fails puts back what it has not taken away."""

    def spoil(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.drop.messages[f"copy-{number}"] = self.messages[number - 1][1]


@wrong(delete=True)
class DeletesAndSaysTrue(Right):
    """The deletion returns True."""

    def delete_messages(self, numbers: Sequence[int]) -> Any:
        super().delete_messages(numbers)
        return True


@wrong(delete=True)
class CannotDelete(Right):
    """Nothing can be deleted."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        raise KeyError("no such column")


@wrong(delete=True)
class CannotEmpty(Right):
    """The last messages cannot be deleted."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        if len(numbers) == len(self.messages):
            raise KeyError("an empty table")
        super().delete_messages(numbers)


@wrong(delete=True)
class DeletesAndUnlocks(Right):
    """The lock is released by the deletion already."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers)
        super().unlock_maildrop()


@wrong(delete=True)
class PrintsDeletions(Right):
    """It prints what it deletes."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        print("deleting", numbers)
        super().delete_messages(numbers)


@wrong(delete=True)
class RefusesToDelete(Right):
    """A deletion is refused in words."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        raise popart.ReportableError("nothing is ever deleted here")


# The lock.


@wrong(delete=True)
class NoLock(Right):
    """There is no lock, although messages are deleted."""

    def lock_maildrop(self) -> None:
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None: ...


@wrong()
class LockOfEachHandler(Right):
    """Each handler has a lock of its own."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.lock = threading.Lock()

    def lock_maildrop(self) -> None:
        self.lock.acquire()
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None:
        self.lock.release()


@wrong()
class LockNeverReleased(Right):
    """The lock is never released."""

    def unlock_maildrop(self) -> None: ...


@wrong()
class LockedBeforeThePasswordIsCompared(Right):
    """A wrong password locks the maildrop, and locks the user out."""

    has_lock = False

    def authenticate_pass(self, username: str, password: str) -> None:
        if (drop := self.store.drops.get(username)) is not None:
            self.has_lock, drop.locked = not drop.locked, True
        super().authenticate_pass(username, password)

    def lock_maildrop(self) -> None:
        if not self.has_lock:
            raise popart.ReportableError("another session has the maildrop")
        self.messages = list(self.drop.messages.items())


@wrong(delete=True, fails=True)
class LockKeptAfterAFailure(Right):
    """The lock is released only if the deletion worked."""

    failed = False

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self.failed = self.store.broken
        super().delete_messages(numbers)

    def unlock_maildrop(self) -> None:
        self.drop.locked = self.failed


@wrong()
class LockReleasedAfterQuitAlone(Right):
    """The lock is released only if the session was ended by QUIT."""

    said_quit = False

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        if verb == "QUIT":
            self.drop.locked = False

    def session_finished(self, commands: int, octets: int, seconds: float) -> None: ...

    def unlock_maildrop(self) -> None: ...


@wrong()
class LockKeptAfterATimeout(Right):
    """The lock is kept if the client was silent for too long."""

    keeps = False

    def handle_session_error(self, error: BaseException) -> None:
        self.keeps = isinstance(error, popart.ClientTimeoutError)

    def unlock_maildrop(self) -> None:
        self.drop.locked = self.keeps


@wrong()
class LockReleasedTwice(Right):
    """The lock is released once more at the end of the connection, when another session may have it."""

    locked = False

    def unlock_maildrop(self) -> None:
        self.locked = True
        self.drop.locked = False

    def close(self) -> None:
        if self.locked:
            self.drop.locked = False


@wrong()
class LockReleasedByTheRefused(Right):
    """A session that was refused releases the lock of the other."""

    def close(self) -> None:
        if self.username:
            self.drop.locked = False


@wrong()
class LockReleasedByTheRefusedEarly(Right):
    """A session that is refused has released the lock of the other in lock_maildrop already."""

    def lock_maildrop(self) -> None:
        try:
            super().lock_maildrop()
        except popart.ReportableError:
            self.drop.locked = False
            raise


@wrong(other=("bob", "hunter2"))
class OneLockForAll(Right):
    """All users share one lock."""

    def lock_maildrop(self) -> None:
        with self.store.guard:
            if self.store.seen.get("locked"):
                raise popart.ReportableError("another session has the maildrop")
            self.store.seen["locked"] = True
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None:
        self.store.seen["locked"] = False


@wrong(other=("bob", "hunter2"))
class LockReleasedByOthers(Right):
    """The end of a session releases the locks of all users."""

    def unlock_maildrop(self) -> None:
        for drop in self.store.drops.values():
            drop.locked = False


@wrong(other=("bob", "hunter2"))
class OneMaildropForAll(Right):
    """All users have one maildrop, each with a lock of its own."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.messages = list(self.store.drops["alice"].messages.items())


@wrong(other=("bob", "hunter2"))
class CachesByNumber(Right):
    """All sessions share a cache in which messages have their numbers alone."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        cache = self.store.seen.setdefault("cache", {})
        return io.BytesIO(cache.setdefault(number, self.messages[number - 1][1]))


@wrong(other=("bob", "hunter2"))
class ReadsMailOfOne(Right):
    """Whoever has signed in reads the messages of alice."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(list(self.store.drops["alice"].messages.values())[number - 1])


@wrong(other=("bob", "hunter2"))
class ReadsMailOfTheFirst(Right):
    """All sessions read the messages of the user whose session began first."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.store.seen.setdefault("users", []).append(self.username)

    def unlock_maildrop(self) -> None:
        self.store.seen["users"].remove(self.username)
        super().unlock_maildrop()

    def list_messages(self) -> Iterable[tuple[int, str]]:
        return [(0, unique_id) for unique_id, _ in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        drop = self.store.drops[self.store.seen["users"][0]]
        return io.BytesIO(list(drop.messages.values())[number - 1])


@wrong(delete=True, other=("bob", "hunter2"))
class DeletesMailOfAll(Right):
    """A deletion empties the maildrops of the other users."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers)
        for name, drop in self.store.drops.items():
            if name != self.username:
                drop.messages.clear()


@wrong(delete=True, other=("bob", "hunter2"))
class DeletesFromTheMailOfAll(Right):
    """A deletion cuts off the messages of the other users."""

    def delete_messages(self, numbers: Sequence[int]) -> None:
        super().delete_messages(numbers)
        for name, drop in self.store.drops.items():
            if name != self.username:
                drop.messages.update({unique_id: text[:9] for unique_id, text in drop.messages.items()})


@wrong()
class UnlockRaises(Right):
    """The lock is released, and then an error is raised."""

    def unlock_maildrop(self) -> None:
        super().unlock_maildrop()
        raise RuntimeError("release unlocked lock")


@wrong(patience=2.0)
class LockWaits(Right):
    """A session waits for the lock instead of being refused."""

    def lock_maildrop(self) -> None:
        while self.drop.locked and not self.store.go_on.wait(0.01):
            pass
        super().lock_maildrop()


@wrong()
class LockRefusedAsPassword(Right):
    """A session that finds the maildrop locked reads that its password is wrong."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if self.drop.locked:
            raise popart.ReportableError("another session has the maildrop")


# Signing in.


@wrong()
class AnyPassword(Right):
    """Any password lets in."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if username not in self.store.users:
            raise popart.ReportableError("wrong name or password")
        self.username = username


@wrong()
class PasswordByItsBeginning(AnyPassword):
    """A password need only begin with the right one."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if not password.startswith(self.store.users[username]):
            raise popart.ReportableError("wrong name or password")


@wrong()
class PasswordStripped(AnyPassword):
    """A password's blanks do not count."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if password.strip() != self.store.users[username]:
            raise popart.ReportableError("wrong name or password")


@wrong()
class PasswordInAnyCase(AnyPassword):
    """A password's case does not count."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if password.lower() != self.store.users[username].lower():
            raise popart.ReportableError("wrong name or password")


@wrong()
class AnyUser(Right):
    """Anybody who is not known is a guest, with mail of his own."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if username in self.store.users:
            super().authenticate_pass(username, password)
        else:
            self.username = "bob"


@wrong()
class UserInAnyCase(Right):
    """A name may have any case, but each way to write it has a maildrop and a lock of its own."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username.lower(), password)
        self.username = username
        with self.store.guard:
            if username not in self.store.drops:
                self.store.drops[username] = Drop()


@wrong()
class UserInAnyCaseWithoutALock(UserInAnyCase):
    """The same, where there is no lock."""

    def lock_maildrop(self) -> None:
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None: ...


@wrong()
class UserStripped(Right):
    """Blanks around a name do not count, but each way to write it has a lock of its own."""

    def lock_maildrop(self) -> None:
        with self.store.guard:
            if self.name in self.store.seen:
                raise popart.ReportableError("another session has the maildrop")
            self.store.seen[self.name] = True
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None:
        del self.store.seen[self.name]

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username.strip(), password)
        self.name = username


@wrong()
class UserOfTheFirstAttempt(Right):
    """The name of the first attempt is kept."""

    first = ""

    def authenticate_pass(self, username: str, password: str) -> None:
        self.first = self.first or username
        super().authenticate_pass(self.first, password)


@wrong(other=("bob", "hunter2"))
class UserOfTheFirstKnown(Right):
    """The name of the first attempt is kept, if there is such a user."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if not self.username and username in self.store.users:
            self.username = username
        if self.store.users.get(username) != password:
            raise popart.ReportableError("wrong name or password")


@wrong(other=("bob", "hunter2"))
class PasswordOfAnyUser(AnyPassword):
    """A password need only be that of some user."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if password not in self.store.users.values():
            raise popart.ReportableError("wrong name or password")


class Tokens(Right):
    """It takes tokens."""

    tokens = {"alice": "ya29.token", "bob": "ya29.second"}

    def authenticate_token(self, username: str, token: str) -> None:
        if self.tokens.get(username) != token:
            raise popart.ReportableError("this token is not valid here")
        self.username = username


@wrong(token="ya29.token", other=("bob", "ya29.second"))
class TokenOfAnyUser(Tokens):
    """A token need only be that of some user."""

    def authenticate_token(self, username: str, token: str) -> None:
        if username not in self.tokens or token not in self.tokens.values():
            raise popart.ReportableError("this token is not valid here")
        self.username = username


@wrong(other=("bob", "hunter2"))
class ActsAsAnybody(Right):
    """Each user may act as any other."""

    def authorize(self, username: str, identity: str) -> None:
        self.username = identity


@wrong()
class PasswordOfASCII(AnyPassword):
    """The comparison fails for a password that is not ASCII."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        if not secrets.compare_digest(password, self.store.users[username]):
            raise popart.ReportableError("wrong name or password")


@wrong()
class UnknownUserRaises(Right):
    """An unknown user is an error."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if self.store.users[username] != password:
            raise popart.ReportableError("wrong name or password")
        self.username = username


@wrong()
class PasswordReturns(Right):
    """A wrong password is refused by False."""

    def authenticate_pass(self, username: str, password: str) -> Any:
        self.username = username
        return None if self.store.users.get(username) == password else False


@wrong()
class RefusalRepeats(Right):
    """The refusal holds what the client sent."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if self.store.users.get(username) != password:
            raise popart.ReportableError(f"{password} is not the password of {username}")
        self.username = username


@wrong()
class RefusalTellsUsers(Right):
    """The refusal says whether there is such a user."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if username not in self.store.users:
            raise popart.ReportableError("no such user")
        super().authenticate_pass(username, password)


@wrong(token="ya29.token")
class TokenOfAnybody(Tokens):
    """A token is checked, but not whose it is."""

    def authenticate_token(self, username: str, token: str) -> None:
        super().authenticate_token("alice", token)


@wrong(token="ya29.token")
class AnyToken(Tokens):
    """A token is not checked."""

    def authenticate_token(self, username: str, token: str) -> None:
        self.authenticate_pass(username, self.store.users.get(username, ""))


@wrong(apop=True)
class AnyDigest(Right):
    """APOP's digest is not checked."""

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        self.authenticate_pass(username, self.store.users.get(username, ""))


@wrong()
class ScramOfAnybody(Right):
    """SCRAM has the same credentials for all names."""

    allow_passwords = False
    credentials = popart.scram_credentials("secret", iterations=4096)

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        self.username = "alice"
        return self.credentials


@wrong()
class AnyTokenBesidePasswords(Right):
    """A password is compared, and a token is not."""

    def authenticate_token(self, username: str, token: str) -> None:
        self.authenticate_pass(username, self.store.users.get(username, ""))


@wrong(token="ya29.token")
class AnyPasswordBesideTokens(Tokens):
    """A token is compared, and a password is not."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, self.store.users.get(username, ""))


@wrong()
class ScramOfAnybodyBesidePasswords(Right):
    """A password is compared, and SCRAM has the same credentials for all names."""

    credentials = popart.scram_credentials("secret", iterations=4096)

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        self.username = "alice"
        return self.credentials


@wrong()
class UserByPattern(Right):
    """A name is looked up by LIKE, so that ``%`` is anybody."""

    def authenticate_pass(self, username: str, password: str) -> None:
        pattern = re.escape(username).replace("%", ".*")
        for name, secret in self.store.users.items():
            if re.fullmatch(pattern, name) and secret == password:
                self.username = name
                return
        raise popart.ReportableError("wrong name or password")


class LockOfTheName(Right):
    """The lock has the name as it was written, and the mail that of the user."""

    def find(self, username: str) -> str:
        raise NotImplementedError

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(self.find(username), password)
        self.name = username

    def lock_maildrop(self) -> None:
        with self.store.guard:
            if self.name in self.store.seen:
                raise popart.ReportableError("another session has the maildrop")
            self.store.seen[self.name] = True
        self.messages = list(self.drop.messages.items())

    def unlock_maildrop(self) -> None:
        del self.store.seen[self.name]


@wrong()
class UserIsAPath(LockOfTheName):
    """The name is a path, of which there are many to the same directory."""

    def find(self, username: str) -> str:
        return username.removeprefix("./")


@wrong()
class UserIsADirectory(LockOfTheName):
    """The same, with a slash."""

    def find(self, username: str) -> str:
        return username.rstrip("/")


# Abilities.


@wrong()
class ExpireRaises(Right):
    """How long mail is kept is not known."""

    def get_expire(self) -> int | None:
        raise KeyError("expire")


@wrong()
class ExpireOfText(Right):
    """How long mail is kept is text."""

    def get_expire(self) -> Any:
        return "never"


class Speaking(Right):
    """It speaks German."""

    def get_languages(self) -> Any:
        return {"de": "Deutsch"}

    def set_language(self, tag: str) -> None: ...


@wrong()
class LanguagesAreAsync(Speaking):
    """The languages are listed by a coroutine function."""

    async def get_languages(self) -> Any:
        return {"de": "Deutsch"}


@wrong()
class LanguageRaises(Speaking):
    """A language is listed, and cannot be chosen."""

    def set_language(self, tag: str) -> None:
        raise KeyError(tag)


@wrong()
class UTF8Raises(Right):
    """UTF8 is not done yet."""

    def enable_utf8(self) -> None:
        raise NotImplementedError


@wrong()
class UTF8IsShorter(Right):
    """A client of UTF8 gets shorter messages, with the sizes of the others."""

    utf8 = False

    def enable_utf8(self) -> None:
        self.utf8 = True

    def get_message_reader(self, number: int) -> popart.MessageReader:
        octets = self.messages[number - 1][1]
        return io.BytesIO(octets[:9] if self.utf8 else octets)


# Coroutines.


@wrong()
class SignInIsAsync(Right):
    """The sign-in is a coroutine function."""

    async def authenticate_pass(self, username: str, password: str) -> None:  # type: ignore[override]
        super().authenticate_pass(username, password)


@wrong()
class LockIsAsync(Right):
    """The lock is a coroutine function."""

    async def lock_maildrop(self) -> None:  # type: ignore[override]
        super().lock_maildrop()


@wrong()
class ListingIsAsync(Right):
    """The listing is a coroutine function."""

    async def list_messages(self) -> Any:
        return super().list_messages()


@wrong()
class ListingIsAnAsyncGenerator(Right):
    """The listing is an asynchronous generator."""

    async def list_messages(self) -> Any:
        yield len(self.messages)


@wrong(delete=True)
class DeletionIsAsync(Right):
    """The deletion is a coroutine function."""

    async def delete_messages(self, numbers: Sequence[int]) -> None:  # type: ignore[override]
        super().delete_messages(numbers)


@wrong()
class OpeningIsAsync(Right):
    """Opening a message is a coroutine function."""

    async def get_message_reader(self, number: int) -> Any:  # type: ignore[override]
        return super().get_message_reader(number)


@wrong()
class CloseIsAsync(Right):
    """The end is a coroutine function."""

    async def close(self) -> None:  # type: ignore[override]
        ...


@wrong()
class MakingIsAsync(Right):
    """Handlers are made by a coroutine function."""

    def __new__(cls, store: Store) -> Any:
        async def make() -> None: ...

        return make()


@wrong()
class UnlockIsAsync(Right):
    """The release of the lock is a coroutine function."""

    async def unlock_maildrop(self) -> None:  # type: ignore[override]
        super().unlock_maildrop()


@wrong()
class ErrorsAreAsync(Right):
    """What is told of errors is a coroutine function."""

    async def handle_session_error(self, error: BaseException) -> None:  # type: ignore[override]
        ...


# The rest.


@wrong()
class ErrorsRaise(Right):
    """What is told of an error fails itself."""

    def handle_session_error(self, error: BaseException) -> None:
        raise AttributeError("'NoneType' object has no attribute 'error'")


@wrong()
class LimitErrorsRaise(Right):
    """What is told of a client that reached a limit fails."""

    def handle_session_error(self, error: BaseException) -> None:
        if isinstance(error, popart.LimitError):
            raise LookupError("no such error")


@wrong()
class HandlerErrorsRaise(Right):
    """What is told of the handler's own faults fails."""

    def handle_session_error(self, error: BaseException) -> None:
        if isinstance(error, popart.HandlerError):
            raise LookupError("no such error")


@wrong(patience=2.0)
class ErrorsBlock(Right):
    """What is told of an error waits for ever."""

    def handle_session_error(self, error: BaseException) -> None:
        self.store.go_on.wait()


@wrong()
class OneForAll(Right):
    """One handler serves all connections."""

    def __new__(cls, store: Store) -> OneForAll:
        if "handler" not in store.seen:
            store.seen["handler"] = super().__new__(cls)
        return store.seen["handler"]  # type: ignore[no-any-return]


@wrong()
class SharesItsListing(Right):
    """The listing is an attribute of the class, and grows with each session."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.messages = self.store.seen.setdefault("messages", [])
        self.messages += [
            (f"{unique_id}.{len(self.messages)}", octets) for unique_id, octets in self.drop.messages.items()
        ]


@wrong()
class ListsAgain(Right):
    """Each session but the first lists every message twice."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        if self.store.seen.setdefault("sessions", 0):
            self.messages += [(f"{unique_id}.2", octets) for unique_id, octets in self.messages]
        self.store.seen["sessions"] += 1


@wrong()
class SharesItsUser(Right):
    """The user's name is an attribute of the class, and the messages are found by it."""

    def authenticate_pass(self, username: str, password: str) -> None:
        self.store.seen["username"] = username
        super().authenticate_pass(username, password)

    def get_message_reader(self, number: int) -> popart.MessageReader:
        if self.store.seen["username"] not in self.store.users:
            return io.BytesIO(b"x" * len(MESSAGES[number - 1]))
        return super().get_message_reader(number)


@wrong()
class Prints(Right):
    """It prints what it does."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        print("reading", number)
        return super().get_message_reader(number)


@wrong()
class PrintsByTheDescriptor(Right):
    """It writes to the output's descriptor, as a program that it starts would."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        os.write(sys.stdout.fileno(), b"reading\n")
        return super().get_message_reader(number)


@wrong()
class PrintsErrors(Prints):
    """It prints what it does, and errors too, which is no fault: where they cannot be printed nothing is lost."""

    def handle_session_error(self, error: BaseException) -> None:
        print(error)


@wrong()
class PrintsPasswords(Right):
    """It prints passwords, when it can."""

    def authenticate_pass(self, username: str, password: str) -> None:
        try:
            print(f"{username} signs in with {password!r}")
        except OSError:
            pass
        super().authenticate_pass(username, password)


@wrong()
class PrintsRightPasswords(Right):
    """It prints passwords that are right, when it can."""

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        try:
            print(f"{username} has signed in with {password!r}")
        except OSError:
            pass


@wrong()
class CannotBeMadeTwice(Right):
    """A second handler cannot be made."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        store.seen["made"] = store.seen.get("made", 0) + 1
        if store.seen["made"] > 2:
            raise RuntimeError("no more connections to the database")


@wrong(patience=2.0)
class MakingBlocks(Right):
    """A second handler waits until the first is gone."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        while store.seen.get("made") and not store.go_on.wait(0.01):
            pass
        store.seen["made"] = True

    def close(self) -> None:
        self.store.seen["made"] = False


@wrong()
class CloseRaises(Right):
    """It closes what it opens at sign-in, also if nobody signed in."""

    connection: Any = None

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.connection = io.BytesIO()

    def close(self) -> None:
        self.connection.close()


@wrong()
class NoMethod(Right):
    """A method is missing, as the handler is derived from nothing of popart's."""

    @property
    def unlock_maildrop(self) -> Any:
        raise AttributeError("'NoMethod' object has no attribute 'unlock_maildrop'")
