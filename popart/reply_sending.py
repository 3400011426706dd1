"""Sending replies: gathering them, sending them together, and dealing with a broken message."""

from __future__ import annotations

from collections.abc import Iterator

from popart.client_socket import Stream
from popart.command_deadlines import Place
from popart.errors import BrokenMessageError
from popart.replies import GATHER_SIZE, Reply


class Sender:
    """Sends a session's replies."""

    def __init__(self, stream: Stream, place: Place) -> None:
        self._stream = stream
        self._place = place
        self._replies: list[bytes] = []
        self._gathered = 0
        self.octets: int = 0
        """How many octets were handed to the system, at most, without TLS."""

        self.incomplete: bool = False
        """True in the middle of a reply."""

    @property
    def octets_in_all(self) -> int:
        """`octets`, and those that are still kept."""
        return self.octets + self._gathered

    def send(self, reply: Reply) -> bytes:
        """Send a reply, or keep it until there is more to send or the thread would wait for the client: see `flush`.

        Return its status line.  If the message was found broken before any of it had left, an ``-ERR`` replaces it, and
        that is returned.

        :raises BrokenMessageError: the message is broken; the part read before is kept or sent.
        """
        message = reply.message
        try:
            if reply.delay:
                self.flush()
                self._place.pause(reply.delay)
            if message is None:
                self._keep(reply.head())
                return reply.status
            return self._send_message(reply.status, message)
        finally:
            if message is not None:
                message.close()

    def _send_message(self, status: bytes, message: Iterator[bytes]) -> bytes:
        kept, gathered, sent = len(self._replies), self._gathered, self.octets
        self.incomplete = True
        try:
            self._keep(status)
            for octets in message:
                if self._place.closing.grace_over:
                    raise BrokenMessageError
                self._keep(octets)
        except BrokenMessageError as broken:
            if broken.answer is None or self.octets != sent:
                raise
            status = broken.answer
            del self._replies[kept:]
            self._gathered = gathered
            self._keep(status)
        self.incomplete = False
        return status

    def _keep(self, octets: bytes) -> None:
        self._replies.append(octets)
        self._gathered += len(octets)
        if self._gathered >= GATHER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Send what is kept, in one piece."""
        if not self._replies:
            return
        before, self.incomplete = self.incomplete, True
        replies, self._replies = self._replies, []
        self.octets += self._gathered
        self._gathered = 0
        self._stream.write_replies(replies)
        self.incomplete = before
