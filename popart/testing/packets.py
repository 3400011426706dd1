"""Sending answers in packets, and keeping what was sent."""

from __future__ import annotations

from popart.replies import Reply
from popart.reply_sending import Sender
from popart.testing.session_record import SessionRecord


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
            self._place.pause(octets.seconds)
        if self.record is not None:
            self.record.add_answer(octets)
        super()._keep(octets)
        if isinstance(octets, Packet):
            self.flush()
