"""Replies: what a command answers, and what the client reads when something was raised."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from popart.calls import tell_error
from popart.errors import HandlerError, ReportableError
from popart.handler import Handler
from popart.wire import CRLF, TERMINATOR

MAX_REPLY_LINE = 512
"""Octets of a reply's first line, its CRLF included (RFC 1939 section 3, RFC 2449 section 4)."""

_CONTROLS_TO_SPACES = bytes(0x20 if octet < 0x20 or octet == 0x7F else octet for octet in range(256))


class Reply(NamedTuple):
    """What a command answers: a status line, and either nothing more, finished lines, or a message."""

    status: bytes
    """The first line, with its CRLF."""

    lines: bytes | None = None
    """The further lines of a multi-line reply, each with its CRLF, without the final dot."""

    message: Generator[bytes, None, None] | None = None
    """A message's octets, final dot included, piece by piece.  Whoever sends the reply closes the generator."""

    delay: float = 0.0
    """Seconds to wait before the reply is sent."""

    def head(self) -> bytes:
        """Return the octets of the reply, but for a message's."""
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


def explain(handler: Handler, error: BaseException, *, utf8: bool = False) -> Reply:
    """Turn an error into a reply, and tell the handler of what the client is not told.  The one place for this."""
    if isinstance(error, ReportableError):
        try:
            return err(error.text, error.code, utf8=utf8)
        except BaseException as fault:  # the application may have put anything into its text
            error = fault
    tell_error(handler, error)
    if isinstance(error, HandlerError):
        return err("the mailbox is broken, please tell its administrator", "SYS/PERM")
    return err("internal error, please try again later", "SYS/TEMP")
