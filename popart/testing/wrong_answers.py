"""Faults of a whole session: what the server says about its messages, or about itself, is not true."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

from popart.errors import ReportableError
from popart.replies import Reply
from popart.testing.fault_list import Action, Fault, FaultList, Run, UnchangedError, count, describe

COMMAND_OF = {"SASL": "AUTH", "TOP": "TOP", "UIDL": "UIDL", "USER": "USER"}
"""The capabilities that stand for a command, and that command."""

CAPABILITIES = {*COMMAND_OF, "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "EXPIRE", "IMPLEMENTATION"}

MOST_OCTETS = 10**18
"""What fits into 64 bits, and times 10,000 messages into a line of 512 octets."""

WRONG_IDS = ("repeat", "change", "malformed")

_STAT = re.compile(rb"\+OK ([0-9]+) ([0-9]+)\r\n")
_OCTETS = re.compile(rb"\+OK ([0-9]+) octets\r\n")


class SessionFaults(FaultList):
    """Faults that last from the first command that shows them to the end of the session.  That counts as one time."""

    def spoil_sizes(self, by: int, *, times: int | None = 1, username: str | None = None) -> None:
        """Say in STAT, LIST and RETR that each message has *by* more octets than it has, or fewer if *by* is negative,
        but at least 0.  The messages themselves stay whole.  The sums in the texts of the answers to PASS and LIST stay
        right: no client reads them.

        :raises ValueError: *by* is 0 or not a whole number, or more than 10**18 either way.
        """
        if not isinstance(by, int) or isinstance(by, bool) or not by:
            raise ValueError(f"by must be a number of octets other than 0, not {by!r}")
        if abs(by) > MOST_OCTETS:
            raise ValueError("by must be at most 10**18: a line of an answer holds no more")

        def change(words: Sequence[str], reply: Reply) -> Reply:
            if words[0] == "STAT":
                return reply._replace(status=_STAT.sub(lambda found: _larger_sum(found, by), reply.status))
            if words[0] == "RETR":
                return reply._replace(status=_OCTETS.sub(lambda found: b"+OK %d octets\r\n" % _add(found[1], by),
                                                         reply.status))  # fmt: skip
            return _change_listing(reply, lambda number, size: b"%d" % _add(size, by))

        action = _changing(change)

        places = [["STAT"], ["LIST"], ["RETR"]]
        self._keep(Fault(describe("spoil_sizes", by), places, lambda: action, count(times), username, lasts=True))

    def spoil_ids(
        self,
        how: Literal["repeat", "change", "malformed"],
        *,
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Give wrong unique-ids in UIDL.

        With ``"repeat"`` all messages have the same one.  With ``"change"`` all messages have other ids than in any
        session before, as after a move of the mailbox.  With ``"malformed"`` the ids are, in turn, one with a space,
        one of 71 characters, one with an octet above 0x7E, and none at all (RFC 1939 section 7 forbids all four).

        :raises ValueError: *how* is none of the three.
        """
        if how not in WRONG_IDS:
            raise ValueError(f"how must be one of {WRONG_IDS}, not {how!r}")

        def begin() -> Action:
            changed = _make_ids(how)
            return _changing(lambda words, reply: _change_listing(reply, changed, fewest=2 if how == "repeat" else 1))

        self._keep(Fault(describe("spoil_ids", how), [["UIDL"]], begin, count(times), username, lasts=True))

    def hide(self, *capabilities: str, times: int | None = 1, username: str | None = None) -> None:
        """Leave *capabilities* out of CAPA, and refuse the commands that they stand for as unknown: ``hide("UIDL",
        "TOP")`` makes a server with the minimum of RFC 1939 section 9.  For a server without CAPA use ``fail("CAPA",
        times=None)``.

        The first CAPA of a session, or the first of these commands, uses up one of *times*.

        :raises ValueError: one of them is not a capability of this server, or none is given.
        """
        unknown = [name for name in capabilities if not isinstance(name, str) or name not in CAPABILITIES]
        if unknown or not capabilities:
            raise ValueError(f"hide some of {sorted(CAPABILITIES)}, not {unknown}")
        commands = {COMMAND_OF[name] for name in capabilities if name in COMMAND_OF}

        def action(words: Sequence[str], run: Run) -> Reply:
            if words[0] in commands:
                raise ReportableError("unknown command")
            reply: Reply = run()
            if reply.lines is None:
                raise UnchangedError(reply)  # it is refused
            kept = [line for line in reply.lines.splitlines(True)
                    if line.split()[0].decode() not in capabilities]  # fmt: skip
            return reply._replace(lines=b"".join(kept))

        places = [["CAPA"], *[[command] for command in sorted(commands)]]
        call = describe("hide", *capabilities)
        self._keep(Fault(call, places, lambda: action, count(times), username, lasts=True))


def _add(size: bytes, by: int) -> int:
    return max(0, int(size) + by)


def _larger_sum(found: re.Match[bytes], by: int) -> bytes:
    return b"+OK %b %d\r\n" % (found[1], max(0, int(found[2]) + by * int(found[1])))


def _changing(change: Callable[[Sequence[str], Reply], Reply]) -> Action:
    """Make an action that changes answers.  Where there is nothing to change, it says so."""

    def action(words: Sequence[str], run: Run) -> Reply:
        reply: Reply = run()
        changed = change(words, reply)
        if changed == reply:
            raise UnchangedError(reply)
        return changed

    return action


def _change_listing(reply: Reply, change: Callable[[int, bytes], bytes], fewest: int = 1) -> Reply:
    """Change what a listing of *fewest* messages or more says of each, or the one line that says it of one message."""
    if not reply.status.startswith(b"+OK"):
        return reply
    if reply.lines is None:
        return reply._replace(status=b"+OK " + _change_line(reply.status.removeprefix(b"+OK "), change))
    lines = reply.lines.splitlines()
    if len(lines) < fewest:
        return reply
    return reply._replace(lines=b"".join([_change_line(line, change) for line in lines]))


def _change_line(line: bytes, change: Callable[[int, bytes], bytes]) -> bytes:
    number, value = line.split()
    return b"%b %b\r\n" % (number, change(int(number), value))


def _make_ids(how: str) -> Callable[[int, bytes], bytes]:
    if how == "repeat":
        return lambda number, unique_id: b"the-same-for-all"
    if how == "change":
        prefix = secrets.token_hex(8).encode()
        return lambda number, unique_id: b"%b.%d" % (prefix, number)
    malformed = [b"with a space", b"x" * 71, b"\xe9t\xe9", b""]
    return lambda number, unique_id: malformed[(number - 1) % len(malformed)]
