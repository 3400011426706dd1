"""Command lines: how arriving octets are cut into lines, how long a line may be, and what it may hold.

Everything here is pure: bytes in, bytes out, no sockets and no handler.
"""

from __future__ import annotations

import re

from popart.errors import BadCommandError

MAX_LINE = 1024
"""Octets of a command line that are accepted.  RFC 2449 section 4 wants 255; long names and passwords want more."""

MAX_AUTH_LINE = 12_288
"""Octets of a line of AUTH that are accepted, as RFC 4954 section 4 says for SMTP: OAuth tokens are that long."""

TLS_HANDSHAKE = b"\x16\x03"
"""How a client that speaks TLS begins (RFC 8446 section 5.1)."""

# A handler may write names and passwords into another protocol, whose lines these octets end.
FORBIDDEN = re.compile(r"[\0\r\n]")
"""What no name, password or token holds, nor any other argument."""


class LineReader:
    """Cuts the octets that arrive into lines, however the network cuts them.  CRLF or LF ends a line; a lone CR does
    not.

    It keeps at most MAX_AUTH_LINE octets and a CR.  It returns a longer line once, cut to one octet more than that
    limit, so that the session refuses it.  It drops the rest of the line.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, octets: bytes) -> list[bytes]:
        """Take octets as they came and return the lines that they complete, without their line ends."""
        if self._skipping:
            _, newline, octets = octets.partition(b"\n")
            if not newline:
                return []
            self._skipping = False
        octets = self._rest + octets
        *lines, self._rest = octets.split(b"\n")
        # One more for the CR of a line end that is on its way.
        if len(self._rest) > MAX_AUTH_LINE + 1 or self._rest.startswith(TLS_HANDSHAKE):
            # A TLS client would wait for an answer without ever ending its line.
            lines.append(self._rest)
            self._rest = b""
            self._skipping = True
        return [line.removesuffix(b"\r")[: MAX_AUTH_LINE + 1] for line in lines]


def read_text(octets: bytes, what: str) -> str:
    """Decode what a client said.

    :raises BadCommandError: it is not UTF-8; *what* says what it is.
    """
    try:
        return octets.decode()
    except UnicodeDecodeError:
        pass  # what follows must not carry this exception: its text holds the octets, which may be a password
    raise BadCommandError(f"{what} must be UTF-8")
