"""How long `popart.client_socket` waits for a client that reads slowly, with a clock and a system made for it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from popart import system
from popart.client_socket import End, Stream
from popart.command_deadlines import Closing, Place
from popart.errors import ClientGoneError, ClientTimeoutError
from popart.fairness import Pace, Pacer

ENOUGH = 131_072
TOO_SLOW = "the client was too slow"


class Client:
    """Has room for what its *reads* say, at these seconds; the system holds a million octets for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.queued: int | None = 1_000_000
        self.reads: dict[float, int] = {}
        self.waits: list[float] = []
        self.at: dict[float, Callable[[], None]] = {}
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(system, "unsent", lambda sock: self.queued)
        monkeypatch.setattr(system, "wait_for_room", self.wait)
        monkeypatch.setattr(system, "send_at_once", lambda sock, octets: self.send(len(octets)))
        self.room = 0
        self.sent = 0

    def wait(self, sock: socket.socket, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.at.get(self.now, lambda: None)()
        taken = self.reads.get(self.now, 0)
        if self.queued is not None:
            self.queued -= taken
        self.room += taken

    def send(self, octets: int) -> int:
        count, self.room = min(octets, self.room), max(0, self.room - octets)
        self.sent += count
        if self.queued is not None:
            self.queued += count
        return count


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(monkeypatch)


@pytest.fixture
def place() -> Iterator[Place]:
    with socket.socket() as sock:
        yield Place(sock, ("192.0.2.1", 1), Closing())


class Unencrypted:
    """Stands in for TLS.  Each group of records takes a second to make if *slow*."""

    def __init__(self, client: Client, *, slow: bool) -> None:
        self.client = client
        self.seconds = 1.0 if slow else 0.0

    def encrypt(self, pieces: Iterable[memoryview]) -> bytes:
        self.client.now += self.seconds
        return b"".join(pieces)


def write(place: Place, octets: int, timeout: float = 10.0, tls: Any = None) -> None:
    stream = Stream(place, Pace(Pacer()), timeout)
    stream.tls = tls
    stream.write_replies([bytes(octets)])


@pytest.mark.parametrize(("timeout", "wait"), [(10.0, 0.5), (1.0, 0.25)])
def test_who_takes_nothing(client: Client, place: Place, timeout: float, wait: float) -> None:
    """It is cut after *timeout*; its thread looks twice a second, or four times in the whole time."""
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 1000, timeout)
    assert client.now == timeout and set(client.waits) == {wait}


@pytest.mark.parametrize(
    ("reads", "end"),
    [
        ({9.5: ENOUGH}, 19.5),
        ({9.5: ENOUGH - 1}, 10.0),
        ({4.0: ENOUGH // 2, 9.5: ENOUGH // 2}, 19.5),
        ({4.0: ENOUGH, 9.5: ENOUGH - 1}, 14.0),
        ({4.0: 2 * ENOUGH, 9.5: ENOUGH - 1}, 14.0),
        ({4.0: ENOUGH, 9.5: ENOUGH - 1, 13.5: 1}, 23.5),
    ],
)
def test_who_takes_enough(client: Client, place: Place, reads: dict[float, int], end: float) -> None:
    """Who has taken 128 KiB since it last got time gets *timeout* again."""
    client.reads = reads
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 900_000)
    assert client.now == end


def test_who_has_taken_all(client: Client, place: Place) -> None:
    """That is enough, however little it was."""
    client.queued = 100
    client.reads = {9.5: 100}
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 900_000)
    assert client.now == 19.5


@pytest.mark.parametrize(("count", "end"), [(ENOUGH, 19.5), (ENOUGH - 1, 10.0)])
def test_a_system_that_does_not_tell(client: Client, place: Place, count: int, end: float) -> None:
    """There what it had room for counts: some of it has been taken."""
    client.queued = None
    client.reads = {9.0: count}
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 900_000)
    assert client.now == end


def test_what_is_taken_counts_once(client: Client, place: Place) -> None:
    """A client that took a little once, for which the system makes no room yet, is cut in its time."""
    client.at = {1.0: lambda: setattr(client, "queued", 990_000)}
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 900_000)
    assert client.now == 10.0


class Talking:
    """A socket whose client says something twice a second, whatever it is told, and gives up after 100 seconds."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def shutdown(self, how: int) -> None: ...

    def recv_into(self, buffer: bytearray) -> int:
        self.client.now += 0.5
        if self.client.now > 100:
            raise ConnectionResetError
        return 1


@pytest.mark.parametrize(("arrived", "end"), [(0.0, 2.0), (5.0, 5.0)])
def test_who_goes_on_talking(
    client: Client, place: Place, arrived: float, end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that ends reads on for 2 seconds, and until everything sent has arrived; that is paced, too."""
    paused: list[float] = []
    monkeypatch.setattr(system, "unsent", lambda sock: int(client.now < arrived))
    monkeypatch.setattr(Pace, "pause", lambda pace: 0.25)
    monkeypatch.setattr(Place, "pause", lambda place, seconds: paused.append(seconds))
    stream = Stream(place, Pace(Pacer()), 10.0)
    stream.socket = Talking(client)  # type: ignore[assignment]
    stream.hang_up(End.COMPLETE)
    assert client.now == end
    assert paused == [0.25] * len(paused) and len(paused) == 2 * end


def test_who_takes_the_rest(client: Client, place: Place) -> None:
    """All is sent, in its time."""
    client.reads = {1.0: 300, 2.0: 700}
    write(place, 1000)
    assert (client.sent, client.now) == (1000, 2.0)


def test_before_sign_in(client: Client, place: Place) -> None:
    """It has no more time than for the sign-in, whatever it takes."""
    place.login_deadline = 12.0
    client.reads = {9.5: ENOUGH}
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 900_000)
    assert client.now == 12.0


def test_when_the_grace_ends(client: Client, place: Place) -> None:
    """It is cut at once."""
    place.closing.begun = True
    place.closing.grace_end = 3.0
    with pytest.raises(ClientTimeoutError):
        write(place, 1000)
    assert client.now == 3.0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("taken", [0, ENOUGH])
def test_after_the_grace(client: Client, place: Place, tls: bool, taken: int) -> None:
    """The last answer has 2 seconds, however fast the client takes it."""
    place.closing.begun = place.closing.impatient = True
    client.reads = {half / 2: taken for half in range(1, 20)}
    with pytest.raises(ClientTimeoutError, match=TOO_SLOW):
        write(place, 2_000_000, tls=Unencrypted(client, slow=False) if tls else None)
    assert client.now == 2.0


def test_when_the_grace_ends_between_two_records(client: Client, place: Place) -> None:
    """An answer that began before is cut at once over TLS, too."""
    place.closing.begun = True
    place.closing.grace_end = 1.75
    client.reads = {half / 2: ENOUGH for half in range(1, 20)}
    with pytest.raises(ClientTimeoutError, match="the server has closed"):
        write(place, 2_000_000, tls=Unencrypted(client, slow=True))
    assert client.now == 3.0  # the first records by 1.5, the second made by 2.5, and one look


def test_what_tls_cannot_encrypt(client: Client, place: Place) -> None:
    """OpenSSL's own error reaches no handler: the connection is broken."""

    class Broken(Unencrypted):
        def encrypt(self, pieces: Iterable[memoryview]) -> bytes:
            raise ssl.SSLError("bad state")

    with pytest.raises(ClientGoneError, match="^the connection broke$"):
        write(place, 1000, tls=Broken(client, slow=False))
    assert client.sent == 0


def test_who_is_cut(client: Client, place: Place) -> None:
    """It hears why."""
    client.at = {1.0: lambda: place.end("no room")}
    with pytest.raises(ClientTimeoutError, match="^no room$"):
        write(place, 1000)
    assert client.now == 1.0
