"""`popart.reply_sending`, with a stream that records what it is given."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator

import pytest

from popart.client_socket import Stream
from popart.command_deadlines import Closing, Place
from popart.errors import BrokenMessageError
from popart.fairness import Pace, Pacer
from popart.replies import Reply, ok
from popart.reply_sending import Sender


class RecordingStream(Stream):
    """Sends nothing."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, Pace(Pacer()), 60.0)
        self.sent: list[bytes] = []

    def write_replies(self, replies: list[bytes]) -> None:
        self.sent.append(b"".join(replies))


@pytest.fixture
def place() -> Iterator[Place]:
    with socket.socket() as sock:
        yield Place(sock, ("127.0.0.1", 1), Closing())


def test_replies_go_together(place: Place) -> None:
    """What is kept is sent at once by flush, and nothing is sent if nothing is kept."""
    stream = RecordingStream(place)
    sender = Sender(stream, place)
    sender.flush()
    sender.send(ok("a"))
    sender.send(ok("b", b"c\r\n"))
    assert stream.sent == [] and (sender.octets, sender.octets_in_all) == (0, 20)
    sender.flush()
    sender.flush()
    assert stream.sent == [b"+OK a\r\n+OK b\r\nc\r\n.\r\n"] and (sender.octets, sender.octets_in_all) == (20, 20)


def test_a_message_that_is_given_up(place: Place) -> None:
    """If the server has closed within a message, its generator is closed at once: it closes the handler's reader."""
    closed: list[str] = []

    def message() -> Generator[bytes, None, None]:
        try:
            yield b"first\r\n"
            place.closing.begun = place.closing.impatient = True
            yield b"second\r\n"
        finally:
            closed.append("closed")

    stream = RecordingStream(place)
    sender = Sender(stream, place)
    reply: Reply = ok("a message", message=message())
    with pytest.raises(BrokenMessageError):
        sender.send(reply)
    assert closed == ["closed"] and sender.incomplete
    sender.flush()
    assert stream.sent == [b"+OK a message\r\nfirst\r\n"]
