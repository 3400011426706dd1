"""What one session was: its user, its commands, and its conversation, without secrets."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from popart.testing.epoch import Epoch

MOST_ENTRIES = 400
"""Lines and answers of a conversation that are kept, the last ones: a session may go on for days."""

SHOWN_OCTETS = 600
"""Octets of an answer that are kept, from its first one on..."""

SHOWN_LINES = 12
"""... and how many of their lines are shown."""


moments: Iterator[int] = itertools.count(1)
"""Tells what came later, whatever the clock says."""


class Entry(NamedTuple):
    """One line of the client, one answer of the server, or one event."""

    moment: float
    """Seconds since the epoch."""

    who: str
    """``C`` for the client, ``S`` for the server, ``*`` for what happened."""

    lines: list[str]

    def __str__(self) -> str:
        clock = f"{time.strftime('%H:%M:%S', time.localtime(self.moment))}.{int(self.moment * 1000) % 1000:03}"
        first, *more = self.lines
        return "\n".join([f"{clock} {self.who}: {first}", *[f"{' ' * len(clock)}    {line}" for line in more]])


class SessionRecord:
    """One session of a `MailServer`: what its client said, and what it was answered.

    Secrets are ``***``: passwords, digests, and each line that the client sent in an AUTH exchange.
    """

    number: int
    """Counts from 1, and again from 1 after a reset."""

    username: str
    """The name that the client has given last, or ``""``."""

    commands: list[tuple[str, ...]]
    """Its part of `MailServer.commands`."""

    is_open: bool
    """True until its end."""

    def __init__(
        self, number: int, serial_number: int, epoch: Epoch, tell: Callable[[SessionRecord, Entry], None]
    ) -> None:
        self.number = number
        self.serial_number: int = serial_number  # no reset begins it anew
        self.username = ""
        self.commands = []
        self.is_open = True
        self.epoch: Epoch = epoch
        self._tell = tell
        self._entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self._entry_count = 0
        self.last_moment: int = next(moments)
        """When it began, or something was said last."""
        self._answer = _Answer()

    def transcript(self) -> str:
        """Return the conversation, a line for each line on the wire, with the time of day.  Long answers are abridged,
        and only the end of a long session is kept."""
        entries = [*self._entries]
        lost = self._entry_count - len(entries)
        username = _show(self.username.encode())
        head = f"session {self.number}" + (f" of {username}" if username else "")
        # A client that has read the answer to QUIT may look before the session has ended.
        leaves = [command[1:] for command in self.commands[-1:]] == [("QUIT",)]
        state = ", still open" if self.is_open and not leaves else ""
        gap = [f"... {lost} earlier"] if lost else []
        return "\n".join([f"{head}{state}", *gap, *map(str, entries)])

    # What the kit tells it.

    def add_command(self, words: Sequence[str]) -> None:
        self._add("C", " ".join(words))

    def add_event(self, text: str) -> None:
        self._add("*", text)

    def add_answer(self, octets: bytes) -> None:
        """Take a piece of an answer."""
        self._answer.add(octets)

    def end_answer(self) -> None:
        answer, self._answer = self._answer, _Answer()
        if answer.size:
            self._keep(Entry(answer.moment, "S", answer.lines()))

    def forget_conversation(self) -> None:
        self._entries.clear()

    def _add(self, who: str, text: str) -> None:
        self._keep(Entry(time.time(), who, [_show(text.encode("utf-8", "backslashreplace"))]))

    def _keep(self, entry: Entry) -> None:
        self._entry_count += 1
        if entry.who != "*":  # it may end when its test has ended
            self.last_moment = next(moments)
        self._entries.append(entry)
        self._tell(self, entry)


class _Answer:
    """Keeps the beginning of one answer."""

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._tail = b""

    def add(self, octets: bytes) -> None:
        if not self.size:
            self.moment = time.time()
        self.size += len(octets)
        self._head += octets[: SHOWN_OCTETS - len(self._head)]
        self._tail = (self._tail + octets)[-5:]

    def lines(self) -> list[str]:
        """Return the answer's lines, abridged in the middle if there are many octets or lines."""
        lines = self._head.split(b"\n")
        if self.size == len(self._head) and len(lines) <= SHOWN_LINES:
            return [_show(line) for line in self._head.removesuffix(b"\n").split(b"\n")]
        shown = lines[: SHOWN_LINES - 2]
        dot = [b"."] if self._tail == b"\r\n.\r\n" else []
        left = self.size - len(b"\n".join(shown)) - (len(lines) > len(shown)) - 3 * len(dot)
        return [*map(_show, shown), f"... {left} octets more", *map(_show, dot)]


def _show(line: bytes) -> str:
    """Return a line without its line end, as text that cannot control a terminal.  A very long one is cut off."""
    more = "..." if len(line) > SHOWN_OCTETS else ""
    text = line.removesuffix(b"\r")[:SHOWN_OCTETS].decode("utf-8", "backslashreplace") + more
    return "".join(
        [character if character.isprintable() else character.encode("unicode_escape").decode() for character in text]
    )
