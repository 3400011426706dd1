"""Faults of one answer: it is refused, late, slow, in pieces, or breaks off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Literal, NoReturn

from popart.errors import BrokenMessageError, ReportableError
from popart.message_framing import CRLF, TERMINATOR
from popart.replies import Reply
from popart.testing.command_words import read_command
from popart.testing.fault_list import Action, FaultList, Run, UnchangedError, describe, is_seconds, is_whole
from popart.testing.packets import Packet

NEVER = 1_000_000.0
"""Seconds, eleven days, in place of an infinite delay: no system's waits can count that far."""

LISTINGS = {"CAPA", "LIST", "RETR", "TOP", "UIDL"}
"""The commands whose answers may have several lines, except AUTH and LANG."""

How = Literal["end", "reset"]


class AnswerFaults(FaultList):
    """Faults that name a command, which may have arguments: ``"RETR"`` means each RETR, ``"RETR 2"`` only that of
    message 2."""

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
        call = describe("fail", command, code=code)
        self._add(call, read_command(command), refusal(text, code), times, username)

    def drop(
        self,
        command: str,
        *,
        after: int | None = None,
        how: How = "end",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Break the connection in place of an answer to *command*, and do not run it.

        With *after* the command runs, and its answer is cut off.  The first line is sent, then that many octets of the
        message or listing, as they are on the wire.  The final dot is never sent, however large *after* is.

        *how* is what the client finds when it has read everything that was sent.  ``"end"`` is the end of the stream,
        over TLS without close_notify: some clients take it for the end of the message.  ``"reset"`` is a connection
        reset: fewer clients take that for the end.  popart itself resets if a message breaks off.

        :raises ValueError: *after* is negative or not a whole number, or *how* is neither of the two.
        """
        if after is not None:
            check_octets("after", after, 0)
        reset = _is_reset(how)

        def action(words: Sequence[str], run: Run) -> Reply:
            status, body = (b"", b"") if after is None else _octets(run())[:2]
            return Reply(b"", message=_break_off(status + body[:after], reset))

        call = describe("drop", command, after=after, how="reset" if reset else None)
        self._add(call, read_command(command), action, times, username)

    def hang_up(self, command: str, *, how: How = "end", times: int | None = 1, username: str | None = None) -> None:
        """Run *command*, send the whole answer, with its final dot, and then break the connection.

        *how* is that of `drop`.  If the client signs in again, it finds all messages still there, except those that a
        QUIT has deleted.

        :raises ValueError: *how* is neither of the two.
        """
        reset = _is_reset(how)

        def action(words: Sequence[str], run: Run) -> Reply:
            reply = run()
            return Reply(b"", message=_break_off(b"".join(_octets(reply)), reset), delay=reply.delay)

        call = describe("hang_up", command, how="reset" if reset else None)
        self._add(call, read_command(command), action, times, username)

    def truncate(self, command: str, after: int, *, times: int | None = 1, username: str | None = None) -> None:
        """Run *command*, and let the message or listing end after about *after* octets, with its final dot.

        All octets before are sent, a line that was begun gets its line end, and the session goes on.  Nothing but the
        size that LIST gave tells the client that the rest is missing.

        An answer that has no more octets stays as it is, and so does an ``-ERR``.  Then the fault has not happened yet.

        :raises ValueError: *after* is negative or not a whole number, or no answer to *command* has several lines.
        """
        check_octets("after", after, 0)
        words = read_command(command)
        if words[0] not in LISTINGS or (words[0] in ("LIST", "UIDL") and words[1:]):
            raise ValueError(f"the answer to {' '.join(words)} has one line: there is nothing to truncate")

        def action(words: Sequence[str], run: Run) -> Reply:
            reply = run()
            status, body, end = _octets(reply)
            left = _whole_lines(body[:after])
            cut = Reply(status, left, delay=reply.delay) if end else reply
            if left == body:
                raise UnchangedError(cut)
            return cut

        self._add(describe("truncate", command, after), words, action, times, username)

    def delay(self, command: str, seconds: float, *, times: int | None = 1, username: str | None = None) -> None:
        """Run *command*, and send its answer *seconds* later.  Until then the session goes on and holds its lock, even
        if the client has left.  ``float("inf")`` is as long as the server is up.

        Before sign-in the delay ends with ``login_timeout`` at the latest.  If a client does not wait that long for the
        answer to QUIT, it has deleted its messages and does not know.

        :raises ValueError: *seconds* is negative or not a number.
        """
        check_seconds(seconds)

        def action(words: Sequence[str], run: Run) -> Reply:
            reply: Reply = run()
            return reply._replace(delay=reply.delay + min(seconds, NEVER))

        self._add(describe("delay", command, seconds), read_command(command), action, times, username)

    def stall(
        self,
        command: str,
        seconds: float,
        *,
        after: int = 0,
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Run *command*, send its first line and *after* octets more, and the rest *seconds* later.

        An answer of one line stalls in the middle of it.  The session is over when the client leaves, on Linux at once.
        A client that has ended its side of the stream, as ``nc -N`` does, counts as gone, though it may still read.
        ``float("inf")`` is as long as the server is up.  Before sign-in the wait ends with ``login_timeout``.

        :raises ValueError: *seconds* is negative or not a number, or *after* is negative or not a whole number.
        """
        check_seconds(seconds)
        check_octets("after", after, 0)

        def cuts(status: bytes, body: bytes, end: bytes) -> list[int]:
            return [len(status) + min(after, len(body)) if end else len(status) // 2]

        action = _in_packets(cuts, min(seconds, NEVER))
        self._add(describe("stall", command, seconds, after=after), read_command(command), action, times, username)

    def drip(
        self,
        command: str,
        seconds: float = 0.01,
        *,
        size: int = 1,
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Run *command*, and send its answer *size* octets at a time, *seconds* apart.

        The limits are those of `stall`.

        :raises ValueError: *seconds* is negative or not a number, or *size* is less than 1 or not a whole number.
        """
        check_seconds(seconds)
        check_octets("size", size, 1)

        def cuts(status: bytes, body: bytes, end: bytes) -> Sequence[int]:
            return range(size, len(status + body + end), size)

        action = _in_packets(cuts, min(seconds, NEVER))
        self._add(describe("drip", command, seconds, size=size), read_command(command), action, times, username)

    def split(self, command: str, seconds: float = 0.02, *, times: int | None = 1, username: str | None = None) -> None:
        """Run *command*, and cut its answer into packets where that hurts: within ``+OK``, between CR and LF of the
        first line, after it, before the final dot, and between the dot and its CRLF.

        Each packet is sent *seconds* after the one before, so that a client finds it alone.  The limits are those of
        `stall`.

        :raises ValueError: *seconds* is negative or not a number.
        """
        check_seconds(seconds)

        def cuts(status: bytes, body: bytes, end: bytes) -> list[int]:
            first, last = len(status), len(status + body)
            return [1, first - 1, first, last, last + 1] if end else [1, first - 1]

        action = _in_packets(cuts, min(seconds, NEVER))
        self._add(describe("split", command, seconds), read_command(command), action, times, username)


def refusal(text: str, code: str | None) -> Action:
    if not isinstance(code, str | None):
        raise ValueError(f"code must be a str or None, not {code!r}")
    ReportableError(text, code=code)  # a bad code is the caller's mistake, and is told at once

    def refuse(words: object, run: object) -> NoReturn:
        raise ReportableError(text, code=code)

    return refuse


def check_seconds(seconds: float) -> None:
    if not is_seconds(seconds):
        raise ValueError(f"seconds must be 0 or more, not {seconds!r}")


def check_octets(name: str, octets: int, least: int) -> None:
    if not is_whole(octets, least):
        raise ValueError(f"{name} must be {least} octets or more, not {octets!r}")


def _is_reset(how: str) -> bool:
    if how not in ("end", "reset"):
        raise ValueError(f'how must be "end" or "reset", not {how!r}')
    return how == "reset"


def _octets(reply: Reply) -> tuple[bytes, bytes, bytes]:
    """Return a reply's first line, its further lines as they are on the wire, and its final dot, if it has one."""
    if reply.message is not None:
        with contextlib.closing(reply.message):
            return reply.status, b"".join(reply.message).removesuffix(TERMINATOR), TERMINATOR
    if reply.lines is not None:
        return reply.status, reply.lines, TERMINATOR
    return reply.status, b"", b""


def _whole_lines(body: bytes) -> bytes:
    """End the last line of a body that was cut off anywhere."""
    body = body.removesuffix(b"\r")
    if body == b"." or body.endswith(b"\n."):
        body = body[:-1]  # half of a stuffed dot would end the answer
    return body if not body or body.endswith(CRLF) else body + CRLF


def _break_off(octets: bytes, reset: bool) -> Generator[bytes, None, None]:
    yield octets
    raise BrokenMessageError(reset=reset)


def late(seconds: float) -> Action:
    """Make an action that sends an answer of one line late, unless the client leaves before."""
    check_seconds(seconds)

    def action(words: Sequence[str], run: Run) -> Reply:
        reply: Reply = run()
        return Reply(b"", message=(Packet(octets, min(seconds, NEVER)) for octets in [reply.status]))

    return action


def _in_packets(cuts: Callable[[bytes, bytes, bytes], Sequence[int]], seconds: float) -> Action:
    """Make an action that sends an answer in packets, which end at the places that *cuts* tells."""

    def action(words: Sequence[str], run: Run) -> Reply:
        reply: Reply = run()
        parts = _octets(reply)
        return Reply(b"", message=_packets(b"".join(parts), cuts(*parts), seconds), delay=reply.delay)

    return action


def _packets(octets: bytes, ends: Sequence[int], seconds: float) -> Generator[bytes, None, None]:
    start = 0
    for end in [*ends, len(octets)]:
        yield Packet(octets[start:end], seconds if start else 0.0)
        start = end
