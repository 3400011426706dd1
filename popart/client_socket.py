"""The octets of one connection: reading and writing under deadlines, over TLS or not, and ending it.

A thread never blocks in a send.  It hands over as much as there is room for.  Then it checks again and again whether
the client takes enough of it.
"""

from __future__ import annotations

import contextlib
import enum
import math
import socket
import ssl
import time
from itertools import accumulate, islice

from popart import system
from popart.command_deadlines import TAKEN_SIZE, TOO_SLOW, Place, deadline_in, makes_progress
from popart.errors import ClientGoneError, ClientTimeoutError, SessionError
from popart.fairness import Pace
from popart.replies import cut
from popart.tls_handshake import shake_hands
from popart.tls_records import RECORD_SIZE, TLS

READ_SIZE = 4096
"""Octets to ask of a socket at a time.  It is small because each waiting thread holds a buffer of this size."""

LAST_READ_SECONDS = 2.0
"""Seconds that a closing connection goes on reading: unread input would turn the last reply into a reset."""

RESET_WAIT_SECONDS = 2.0
"""Seconds that a reset waits, at most, for everything sent before to arrive."""

RESET_WAIT_PAUSE = 0.005
"""Seconds between two checks whether everything sent has arrived."""

BLIND_RESET_WAIT_SECONDS = 0.5
"""Seconds that a reset waits where the system does not tell.  On Windows a reset also discards what has arrived and was
not read yet."""

LAST_ANSWER_SECONDS = 2.0
"""Seconds in which an answer that begins after the server's grace must be sent."""

ROOM_PAUSE = 0.5
"""Seconds that a thread waits for a client to read before it checks whether to go on waiting."""

RECORDS = 8
"""TLS records to make before sending them: a chunk of a message fills five."""

LEFT = "the client left without QUIT"

_NOWHERE = bytearray(65_536)  # all threads read unwanted octets into it


class End(enum.Enum):
    """How a connection ends."""

    COMPLETE = enum.auto()
    """Everything sent arrives; over TLS a close_notify says that it is complete."""

    CUT = enum.auto()
    """Everything sent arrives, and nothing says that it is complete."""

    RESET = enum.auto()
    """In the middle of a reply: by a reset, once everything sent before has arrived, or after `RESET_WAIT_SECONDS`.
    Some clients take a plain end, or over TLS one without close_notify, for the end of the message."""

    RESET_AT_ONCE = enum.auto()
    """As `RESET`, but at once: the client has gone or does not read."""

    AT_ONCE = enum.auto()
    """The client has gone, or was late."""


class Stream:
    """A connection's octets.

    Its methods raise a `ClientTimeoutError` when the client was too slow or the connection was cut, and a
    `ClientGoneError` when it is broken.
    """

    def __init__(self, place: Place, pace: Pace, timeout: float) -> None:
        self.socket: socket.socket = place.socket
        self._place = place
        self._pace = pace
        self._timeout = timeout
        self.tls: TLS | None = None
        self._early = b""  # what came with the last octets of the handshake
        self._last_deadline = math.inf  # of an answer that begins after the server's grace

    # Reading.

    def shake_hands(self, context: ssl.SSLContext, deadline: float) -> None:
        """Make the connection TLS.

        :raises ssl.SSLError: the handshake failed; the client is told why.
        :raises ConnectionAbortedError: it has ended.
        """
        tls = TLS(context)
        try:
            shake_hands(tls, lambda: self.receive(deadline), lambda octets: self.write(octets, deadline))
            self._early = tls.decrypt(b"")
        except ssl.SSLError:
            self._send_alert(tls)
            raise
        self.tls = tls

    def receive(self, deadline: float, size: int = READ_SIZE, period: float = 0.0) -> bytes:
        """Return octets as they are on the wire; none if the client has ended its stream, or the server closes."""
        with self._place.until(deadline, period, idle=True):
            try:
                return b"" if self._place.closing.begun else self.socket.recv(size)
            except OSError:
                if self._place.closing.begun:  # on some systems, what woke the thread
                    return b""
                raise

    def read(self, deadline: float, period: float) -> bytes:
        """Return what the client says next, without TLS.  It may be nothing: nothing has come yet, or the server
        closes.

        *deadline* and *period* are those of `Place.until`.

        :raises ClientGoneError: the client will send no more.
        """
        if self._early:
            octets, self._early = self._early, b""
            return octets
        if self.tls is not None and self.tls.ended:
            raise ClientGoneError(LEFT)
        found = None
        if self._pace.counts:  # it goes on counting if the client has sent more already
            with self._place.until(deadline, period):
                found = system.receive_at_once(self.socket, READ_SIZE)
        if found is None:
            self._pace.rest()
            found = self.receive(deadline, READ_SIZE, period)
        if self._place.closing.begun:
            return b""  # a command that has come meanwhile does not begin
        if not found:
            raise ClientGoneError(LEFT)
        return found if self.tls is None else self._decrypt(self.tls, found)

    def _decrypt(self, tls: TLS, octets: bytes) -> bytes:
        try:
            found = tls.decrypt(octets)
        except ssl.SSLError as error:
            self._send_alert(tls)
            raise ClientGoneError("the connection broke") from error
        if not found and (answer := tls.outgoing()):
            self.write(answer)  # TLS has something to say of its own
        return found

    def _send_alert(self, tls: TLS) -> None:
        with contextlib.suppress(OSError):
            system.send_at_once(self.socket, tls.outgoing())

    # Writing.

    def write_replies(self, replies: list[bytes]) -> None:
        """Send replies together, over TLS or not.  The last one may go on."""
        if self._place.closing.grace_over:
            self._last_deadline = min(self._last_deadline, deadline_in(LAST_ANSWER_SECONDS))
        octets = b"".join(replies)
        if self.tls is None:
            self.write(octets)
            return
        # In the middle of a message this is not needed, but does no harm.
        pieces = cut(octets, [*accumulate(map(len, replies))], RECORD_SIZE)
        while group := list(islice(pieces, RECORDS)):
            try:
                records = self.tls.encrypt(group)
            except ssl.SSLError as error:
                raise ClientGoneError("the connection broke") from error
            self.write(records)

    def write(self, octets: bytes, deadline: float = math.inf) -> None:
        """Hand octets to the system as they are, whenever the client makes room for them.

        :raises ClientTimeoutError: the client did not take enough in a *timeout*, or the server has closed.
        """
        with self._place.until(math.inf):
            sent = system.send_at_once(self.socket, octets)
            if sent < len(octets):
                self._push(memoryview(octets)[sent:], min(deadline, self._place.login_limit))

    def _push(self, octets: memoryview, limit: float) -> None:
        deadline = deadline_in(self._timeout)
        taken = 0
        queued = system.unsent(self.socket)
        while octets:
            system.wait_for_room(self.socket, min(ROOM_PAUSE, self._timeout / 4))
            if queued is not None:
                left = system.unsent(self.socket) or 0
                taken += queued - left
                if not left:
                    taken = max(taken, TAKEN_SIZE)
            if makes_progress(self.socket, taken):
                taken = 0
                deadline = deadline_in(self._timeout)
            if time.monotonic() >= min(deadline, limit, self._last_deadline):
                raise ClientTimeoutError(TOO_SLOW)
            if self._place.cut or (self._place.closing.grace_over and self._last_deadline == math.inf):
                raise ClientTimeoutError("the server has closed")
            sent = system.send_at_once(self.socket, octets)
            octets = octets[sent:]
            queued = system.unsent(self.socket)
            if queued is None:
                taken += sent  # it may have been taken, or not

    # The end.

    def hang_up(self, end: End) -> None:
        """End the connection in this way.  The server closes the socket."""
        if end is End.RESET:
            self._let_arrive()
        if end in (End.RESET, End.RESET_AT_ONCE):
            system.reset_when_closed(self.socket)
            self._place.resets = True
        elif end in (End.COMPLETE, End.CUT):
            with contextlib.suppress(SessionError):
                self._finish(end)

    def _let_arrive(self) -> None:
        # No system tells at what moment everything sent has arrived.
        deadline = deadline_in(RESET_WAIT_SECONDS)
        while (left := system.unsent(self.socket)) and time.monotonic() < deadline:
            time.sleep(RESET_WAIT_PAUSE)
        if left is None:
            time.sleep(BLIND_RESET_WAIT_SECONDS)

    def _finish(self, end: End) -> None:
        if end is End.COMPLETE and self.tls is not None:
            self.write(self.tls.close_notify())
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        deadline = deadline_in(LAST_READ_SECONDS)
        while True:
            with self._place.until(deadline, LAST_READ_SECONDS, idle=True):
                if not self.socket.recv_into(_NOWHERE):
                    return
            self._pace.begin()  # to read what nobody wants is work too
            self._place.pause(self._pace.pause())
            if time.monotonic() >= deadline and not system.unsent(self.socket):
                return
