"""Command lines: how the octets that arrive are cut into them, and their longest.

Everything here is pure: bytes in, bytes out, no sockets and no handler.
"""

from __future__ import annotations

MAX_LINE = 1024
"""Octets of a command line that are accepted.  RFC 2449 section 4 wants 255; long names and passwords want more."""

MAX_AUTH_LINE = 12_288
"""Octets of a line of AUTH that are accepted, as RFC 4954 section 4 has it for SMTP: OAuth tokens are that long."""

_TLS_HANDSHAKE = b"\x16\x03"


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
        if len(self._rest) > MAX_AUTH_LINE + 1 or self._rest.startswith(_TLS_HANDSHAKE):
            # A TLS client would wait for an answer without ever ending its line.
            lines.append(self._rest)
            self._rest = b""
            self._skipping = True
        return [line.removesuffix(b"\r")[: MAX_AUTH_LINE + 1] for line in lines]
