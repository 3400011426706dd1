"""The TLS handshake of a connection (RFC 8446 section 4)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

from popart.tls_records import TLS


def shake_hands(tls: TLS, receive: Callable[[], bytes], send: Callable[[bytes], object]) -> None:
    """Hold the handshake with a client.  TLS 1.3's session tickets are left to go out with the greeting.

    :raises ssl.SSLError: it failed; `TLS.outgoing` may hold an alert then.
    :raises ConnectionAbortedError: the connection has ended.
    """
    while True:
        octets = receive()
        if not octets:
            raise ConnectionAbortedError("the connection ended within the handshake")
        tls.incoming.write(octets)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.object.do_handshake()
            break
        send(tls.outgoing())
    if tls.object.version() != "TLSv1.3":  # the client waits for the end of the handshake
        send(tls.outgoing())
