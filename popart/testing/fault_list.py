"""The faults that wait: where each happens, how often, to whom, and what it does there."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

Run = Callable[[], Any]
Action = Callable[[Sequence[str], Run], Any]
"""What a fault does in place of a call.  It gets the command's words, or the name of the step, and the call.  It may
raise an `UnchangedError`."""

MOST_SPENT = 100
"""Faults that have happened and are kept: one that happens just now may turn out to change nothing, and then waits."""


class UnchangedError(Exception):
    """A fault would change nothing in this answer, so it has not happened yet."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply


@dataclass(eq=False)
class Fault:
    """One fault."""

    call: list[str]
    """How it was asked for: the method's name, and its arguments, except a text."""

    places: list[list[str]]
    """Where it happens: the first words of commands, or the name of a step."""

    begin: Callable[[], Action]
    """Makes the action anew for each time that it happens."""

    times: float
    """How often it is asked for, `math.inf` for good."""

    username: str | None
    lasts: bool = False
    """True if it goes on until the end of the session."""

    happened: int = 0

    @property
    def waits(self) -> bool:
        """True if it has not happened as often as was asked for; ``times=None`` asks for once at least."""
        return self.happened < (1 if self.times == math.inf else self.times)

    @property
    def is_spent(self) -> bool:
        return self.happened == self.times

    def is_at(self, words: Sequence[str]) -> bool:
        return any(place == words[: len(place)] for place in self.places)

    def __str__(self) -> str:
        method, *arguments = self.call
        return f"{method}({', '.join(arguments)})"

    def pending(self) -> str:
        """Return the call that would ask for what has yet to happen."""
        method, *shown = self.call
        left = self.times - self.happened
        if left != 1:
            shown.append(f"times={None if left == math.inf else left}")
        if self.username is not None:
            shown.append(f"username={self.username!r}")
        return f"{method}({', '.join(shown)})"


class FaultList:
    """The faults of a server, in the order in which they were asked for.  Any thread may use it."""

    users: dict[str, str]

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._faults: list[Fault] = []

    @property
    def pending_faults(self) -> list[str]:
        """The faults that have not happened as often as was asked for, each as its call without a *text*:
        ``drop('RETR', after=10)``.

        A fault with ``times=None`` is pending until it has happened once.  A fault has not happened where it had
        nothing to change, such as the sizes of no messages.  At the end of a test,
        ``assert server.pending_faults == []`` says that the program met all that the test had prepared.
        """
        with self._guard:
            return [fault.pending() for fault in self._faults if fault.waits]

    def clear_faults(self) -> None:
        """Remove all faults.  A session goes on with the wrong sizes, unique-ids or capabilities that it has shown."""
        with self._guard:
            self._faults.clear()

    def _add(
        self, call: list[str], place: list[str], action: Action, times: int | None, username: str | None = None
    ) -> None:
        """Keep a fault that happens at one command or step."""
        if place[0] == "AUTH" and username is not None:
            raise ValueError("AUTH comes before the user is known: leave out username, or use refuse_sign_in")
        self._keep(Fault(call, [place], lambda: action, count(times), username))

    def _keep(self, fault: Fault) -> None:
        username = fault.username
        if username is not None and not isinstance(username, str):
            raise ValueError(f"username must be a str or None, not {username!r}")
        if username is not None and username not in self.users:
            raise ValueError(f"there is no user {username!r} yet, so nothing can happen to them: {[*self.users]}")
        with self._guard:
            self._faults.append(fault)
            spent = [fault for fault in self._faults if fault.is_spent]
            for old in spent[:-MOST_SPENT]:
                self._faults.remove(old)

    def _begin_faults(self) -> list[Fault]:
        """Remove all faults, and begin another list: to the old one no fault is added any more."""
        with self._guard:
            self._faults.clear()
            self._faults = []
            return self._faults

    def _take(
        self, faults: list[Fault], words: Sequence[str], username: str, besides: Collection[str] | None = None
    ) -> Fault | None:
        """Return the first of a session's faults that is due at this command or step, and count that it happens.

        With *besides* it is one that lasts, of another method than these.
        """
        with self._guard:
            due = (fault for fault in faults if not fault.is_spent and fault.is_at(words)
                   and fault.username in (None, username) and fault.lasts == (besides is not None)
                   and fault.call[0] not in (besides or ()))  # fmt: skip
            fault = next(due, None)
            if fault is not None:
                fault.happened += 1
            return fault

    def _give_back(self, fault: Fault) -> None:
        """Let a fault that was taken, and has changed nothing, happen another time."""
        with self._guard:
            fault.happened -= 1


def count(times: int | None) -> float:
    if times is None:
        return math.inf
    if not is_whole(times, 1):
        raise ValueError(f"times must be 1 or more, or None, not {times!r}")
    return times


def describe(method: str, *arguments: object, **options: object) -> list[str]:
    """Return a call as one would write it, without the options that are None: its name, and its arguments."""
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return [method, *map(repr, arguments), *given]


def is_whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def is_seconds(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 0
