"""The records of one TLS connection, octets in and octets out: no socket is read or written here.

So OpenSSL never sees a connection end, and sends no alert for it.  No socket stays open when a client vanishes before
its handshake.  And TLS's own records, such as its session tickets, go out with the greeting in one piece.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

RECORD_SIZE = 16_384
"""The most octets that a TLS record holds (RFC 8446 section 5.1)."""


class TLS:
    """The server's end of a TLS connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming: ssl.MemoryBIO = ssl.MemoryBIO()
        """The octets that came from the client."""

        self._outgoing = ssl.MemoryBIO()
        self.object: ssl.SSLObject = context.wrap_bio(self.incoming, self._outgoing, server_side=True)
        self.ended: bool = False
        """True when the client has sent its close_notify."""

    def outgoing(self) -> bytes:
        """Take the octets to be sent to the client."""
        return self._outgoing.read()

    def certificate(self) -> Mapping[str, Any] | None:
        """Return the result of `ssl.SSLObject.getpeercert` for the client's verified certificate."""
        return self.object.getpeercert()

    def decrypt(self, octets: bytes) -> bytes:
        """Return the contents of the records that these octets complete.

        :raises ssl.SSLError: they are not records; `outgoing` may hold an alert then.
        """
        self.incoming.write(octets)
        pieces = []
        while self.incoming.pending:
            try:
                piece = self.object.read(RECORD_SIZE)
            except ssl.SSLWantReadError:  # a record is on its way
                break
            if not piece:
                self.ended = True
                break
            pieces.append(piece)
        return b"".join(pieces)

    def encrypt(self, pieces: Iterable[memoryview]) -> bytes:
        """Return a record of each piece, after TLS's own records."""
        for piece in pieces:
            self.object.write(piece)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Return the record that tells the client of a normal end, without waiting for the client's own."""
        with contextlib.suppress(ssl.SSLError):
            self.object.unwrap()
        return self._outgoing.read()
