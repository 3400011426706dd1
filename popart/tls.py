"""TLS of one connection, octets in and octets out: no socket is read or written here.

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
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.ended: bool = False
        """True when the client has sent its close_notify."""

    def shake_hands(self, octets: bytes) -> bool:
        """Continue the handshake with the octets that came from the client.  Return whether it is complete.

        :raises ssl.SSLError: it failed; `outgoing` may hold an alert then.
        :raises ConnectionAbortedError: nothing has come, because the connection has ended.
        """
        if not octets:
            raise ConnectionAbortedError("the connection ended within the handshake")
        self._incoming.write(octets)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def outgoing(self) -> bytes:
        """Take the octets to be sent to the client."""
        return self._outgoing.read()

    def certificate(self) -> Mapping[str, Any] | None:
        """Return the result of `ssl.SSLObject.getpeercert` for the client's verified certificate."""
        return self._object.getpeercert()

    @property
    def version(self) -> str | None:
        """The protocol that was agreed on, such as ``TLSv1.3``."""
        return self._object.version()

    def decrypt(self, octets: bytes) -> bytes:
        """Return the contents of the records that these octets complete.

        :raises ssl.SSLError: they are not records; `outgoing` may hold an alert then.
        """
        self._incoming.write(octets)
        pieces = []
        while self._incoming.pending:
            try:
                piece = self._object.read(RECORD_SIZE)
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
            self._object.write(piece)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Return the record that tells the client of a normal end, without waiting for the client's own."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()
