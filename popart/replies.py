"""Replies: what a command answers, and how replies are cut into pieces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from popart.message_framing import CRLF, TERMINATOR

MAX_REPLY_LINE = 512
"""Octets of a reply's first line, its CRLF included (RFC 1939 section 3, RFC 2449 section 4)."""

MIN_LAST_PIECE = len(CRLF + TERMINATOR)
"""Octets of a reply's last piece: some clients misread a final dot that comes without the line end before it."""

GATHER_SIZE = 32_768
"""Octets of replies to gather before sending.  It is less than a chunk of a message, so each chunk but the first
is sent by itself, without a copy."""

_CONTROLS = bytes([*range(0x20), 0x7F])
_CONTROLS_TO_SPACES = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))


class Reply(NamedTuple):
    """What a command answers: a status line, and either nothing more, finished lines, or a message in pieces."""

    status: bytes
    """The first line, with its CRLF."""

    lines: bytes | None = None
    """The further lines of a multi-line reply, such as those of a small message, each with its CRLF, dot-stuffed, and
    without the final dot."""

    message: Generator[bytes, None, None] | None = None
    """A message's octets, final dot included, piece by piece.  Whoever sends the reply closes the generator."""

    delay: float = 0.0
    """Seconds to wait before the reply is sent."""

    def head(self) -> bytes:
        """Return the octets of the reply, without those of a message."""
        if self.lines is None:
            return self.status
        return self.status + self.lines + TERMINATOR


def ok(text: str, lines: bytes | None = None, *, message: Generator[bytes, None, None] | None = None) -> Reply:
    """Make a ``+OK`` reply, its status line from a text that is known to be one line, and to fit."""
    return Reply(f"+OK {text}\r\n".encode(), lines, message)


def err(text: str, code: str | None = None, *, utf8: bool = False) -> Reply:
    """Make an ``-ERR`` reply from any text: always one line of at most 512 octets, CRLF included.

    It is ASCII, or with *utf8* printable UTF-8 (RFC 6856 section 3.2).
    """
    line = text if code is None else f"[{code}] {text}"
    if utf8:
        line = "".join([character if character.isprintable() else " " for character in line])
    octets = line.encode("utf-8" if utf8 else "ascii", "replace").translate(_CONTROLS_TO_SPACES)
    if code is None:
        # RFC 2449 section 6.4: a text that begins with a bracket would be taken for a response code.
        octets = octets.lstrip(b" [")
    octets = (b"-ERR " + octets)[: MAX_REPLY_LINE - len(CRLF)]
    if utf8:
        octets = octets.decode("utf-8", "ignore").encode()  # a character may have been cut in two
    return Reply(octets + CRLF)


def cut(octets: bytes, ends: Sequence[int], size: int) -> Iterator[memoryview]:
    """Cut replies that are sent together into pieces of at most *size* octets.  *size* is at least 5.

    No piece ends within the last `MIN_LAST_PIECE` octets of a reply, so its final dot never travels alone.  *ends* says
    where in *octets* the replies end, in ascending order.  The last reply may go on after *octets*.
    """
    view = memoryview(octets)
    start = 0
    while start < len(octets):
        stop = start + size
        number = bisect_left(ends, stop)
        if number < len(ends) and 0 < ends[number] - stop < MIN_LAST_PIECE:
            # A reply of fewer octets moves as a whole.
            stop = max(ends[number] - MIN_LAST_PIECE, ends[number - 1] if number else 0)
        yield view[start:stop]
        start = stop
