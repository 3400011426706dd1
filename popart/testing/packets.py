"""Sending answers in packets, and keeping what was sent."""

from __future__ import annotations

import select
import socket
import time

from popart.client_socket import LEFT
from popart.errors import ClientGoneError
from popart.replies import Reply
from popart.reply_sending import Sender
from popart.testing.session_record import SessionRecord

LOOK_SECONDS = 0.05
"""Seconds between two checks whether a client that is kept waiting is still there."""


class Packet(bytes):
    """Octets of a reply that are sent by themselves, a while after what was sent before."""

    seconds: float

    def __new__(cls, octets: bytes, seconds: float) -> Packet:
        packet = super().__new__(cls, octets)
        packet.seconds = seconds
        return packet


class RecordingSender(Sender):
    """Sends each `Packet` by itself, and tells a session's record what it sends."""

    record: SessionRecord | None = None

    def send(self, reply: Reply) -> bytes:
        try:
            return super().send(reply)
        finally:
            if self.record is not None:
                self.record.end_answer()

    def _keep(self, octets: bytes) -> None:
        if not octets:
            return  # the first line of an answer that a fault has put together
        if isinstance(octets, Packet):
            self.flush()
            self._wait(octets.seconds)
        if self.record is not None:
            self.record.add_answer(octets)
        super()._keep(octets)
        if isinstance(octets, Packet):
            self.flush()  # the answer to the next command of a pipeline does not join it

    def _wait(self, seconds: float) -> None:
        """Pause, until the server closes, the time to sign in is over, or the client leaves.

        :raises ClientGoneError: it has left.
        """
        end = min(time.monotonic() + seconds, self._place.login_limit)
        while not self._place.closing.begun and (left := end - time.monotonic()) > 0:
            self._place.pause(min(left, LOOK_SECONDS))
            if _has_left(self._stream.socket):
                raise ClientGoneError(LEFT)


def _has_left(sock: socket.socket) -> bool:
    """Return whether the client has ended its stream, whatever it has sent before; False if the system cannot tell."""
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
