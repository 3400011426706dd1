"""Faults on demand."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from popart.errors import BrokenMessageError, ReportableError
from popart.message_framing import TERMINATOR
from popart.replies import Reply

Action = Callable[[Callable[[], Any]], Any]
"""What a fault does in place of the call that it is given."""

NEVER = 1_000_000.0
"""Seconds, eleven days: what stands for an infinite delay, as no system's waits can count so far."""


@dataclass(slots=True, eq=False)
class Fault:
    """One fault."""

    where: list[str]
    action: Action
    times: float
    username: str | None

    def is_due(self, where: list[str], username: str) -> bool:
        return self.username in (None, username) and self.where == where[: len(self.where)]


class Faults:
    """The faults of a server.

    `fail`, `drop` and `delay` name a command, which may have arguments: ``"RETR"`` means each RETR, ``"RETR 2"`` only
    that of message 2.  ``"AUTH"`` means its first line, before the user is known, and ``"AUTH PLAIN"`` that of one
    mechanism.  `refuse_sign_in`, `lock_maildrop` and `fail_commit` name a step of a session.

    Each method takes *times*, how often the fault happens (None: for good), and *username*, the only user for whom it
    happens (None: every user).  Faults for the same command happen one after another, in the order of the calls.  A
    ValueError comes at once if *times* is not a whole number from 1 on, or *username* is not a str.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._faults: list[Fault] = []

    def fail(
        self,
        command: str,
        text: str = "failed on demand",
        *,
        code: str | None = None,
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Answer *command* with ``-ERR [code] text`` and do not run it.  After QUIT the session still ends.

        :raises ValueError: *code* is not a response code.
        """
        self._add(split_command(command), _refusal(text, code), times, username)

    def drop(
        self,
        command: str,
        *,
        after: int | None = None,
        how: Literal["end", "reset"] = "end",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Break the connection in place of an answer to *command*, and do not run it.

        With *after* the command runs, and its answer is cut off.  The first line is sent, then that many octets of the
        message or listing, as they are on the wire.  The final dot is never sent, however large *after* is.

        *how* is what the client finds when it has read everything that was sent.  ``"end"`` is the end of the stream,
        over TLS without close_notify: some clients take it for the end of the message.  ``"reset"`` is a connection
        reset: fewer clients take that for the end.  popart itself resets if a message breaks off.

        :raises ValueError: *after* is not a whole number from 0 on, or *how* is neither of the two.
        """
        if after is not None and not _is_whole(after, 0):
            raise ValueError(f"after must be 0 octets or more, not {after!r}")
        if how not in ("end", "reset"):
            raise ValueError(f'how must be "end" or "reset", not {how!r}')
        reset = how == "reset"
        if after is None:
            self._add(split_command(command), lambda run: _cut(Reply(b""), 0, reset), times, username)
        else:
            self._add(split_command(command), lambda run: _cut(run(), after, reset), times, username)

    def delay(self, command: str, seconds: float, *, times: int | None = 1, username: str | None = None) -> None:
        """Run *command*, and send its answer *seconds* later.  Until then the session goes on and holds its lock, even
        if the client has left.  ``float("inf")`` is as long as the server is up.

        Before sign-in the delay ends with ``login_timeout`` at the latest.  If a client does not wait that long for the
        answer to QUIT, it has deleted its messages and does not know.

        :raises ValueError: *seconds* is no number from 0 on.
        """
        if not (isinstance(seconds, (int, float)) and seconds >= 0):
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}")
        self._add(split_command(command), lambda run: _delay(run(), min(seconds, NEVER)), times, username)

    def refuse_sign_in(
        self,
        text: str = "wrong name or password",
        *,
        code: str = "AUTH",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Refuse a user as for a wrong password, by whatever command they sign in.  The first answer of a connection
        takes a quarter of a second, each further one twice as long as the one before, and the fifth is the last.
        SCRAM-SHA-256 ignores *text* and gives the one for a wrong password, unless *code* is another.

        :raises ValueError: *code* is not a response code.
        """
        self._add(["sign in"], _refusal(text, code), times, username)

    def lock_maildrop(
        self,
        text: str = "another session has the maildrop",
        *,
        code: str = "IN-USE",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Refuse even the right password, as if another client held the lock on the maildrop.

        :raises ValueError: *code* is not a response code.
        """
        self._add(["lock"], _refusal(text, code), times, username)

    def fail_commit(
        self,
        text: str = "no message was deleted",
        *,
        code: str = "SYS/TEMP",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Delete nothing at a QUIT that has messages to delete, and answer it with ``-ERR [code] text``.

        :raises ValueError: *code* is not a response code.
        """
        self._add(["commit"], _refusal(text, code), times, username)

    def clear_faults(self) -> None:
        """Remove all faults."""
        with self._guard:
            self._faults.clear()

    def _run_or_fail(self, where: list[str], username: str, run: Callable[[], Any]) -> Any:
        """Return what *run* returns, unless a fault is due at this command or step."""
        with self._guard:
            due = (fault for fault in self._faults if fault.is_due(where, username))
            fault = next(due, None)
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
        return run() if fault is None else fault.action(run)

    def _add(self, where: list[str], action: Action, times: int | None, username: str | None) -> None:
        if times is not None and not _is_whole(times, 1):
            raise ValueError(f"times must be 1 or more, or None, not {times!r}")
        if username is not None and not isinstance(username, str):
            raise ValueError(f"username must be a str or None, not {username!r}")
        with self._guard:
            self._faults.append(Fault(where, action, math.inf if times is None else times, username))


def split_command(line: str) -> list[str]:
    """Split a command at its spaces; the keyword, and AUTH's mechanism, are made upper case."""
    keyword, *arguments = line.split(" ")
    if keyword.upper() == "AUTH":
        arguments[:1] = [mechanism.upper() for mechanism in arguments[:1]]
    return [keyword.upper(), *arguments]


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _refusal(text: str, code: str | None) -> Action:
    ReportableError(text, code=code)  # a bad code is the caller's mistake, and is told at once

    def refuse(run: object) -> NoReturn:
        raise ReportableError(text, code=code)

    return refuse


def _delay(reply: Reply, seconds: float) -> Reply:
    return reply._replace(delay=reply.delay + seconds)


def _cut(reply: Reply, after: int, reset: bool) -> Reply:
    """Make of a reply one that sends its first line and *after* octets more, and then breaks the connection."""
    octets = reply.lines or b""
    if reply.message is not None:
        with contextlib.closing(reply.message):
            octets = b"".join(reply.message).removesuffix(TERMINATOR)
    return Reply(reply.status + octets[:after], message=_break_off(reset))


def _break_off(reset: bool) -> Generator[bytes, None, None]:
    yield from ()
    raise BrokenMessageError("dropped on demand", reset=reset)
