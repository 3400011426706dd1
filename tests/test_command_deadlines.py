"""What a live connection waits for, and who cuts it: the parts of `popart.command_deadlines` one by one."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from popart import system
from popart.command_deadlines import Closing, Place, Watchdog, deadline_in, makes_progress
from popart.errors import ClientGoneError, ClientTimeoutError
from tests.conftest import PATIENCE, wait_until

TOO_SLOW = "the client was too slow"
ENOUGH = 131_072
"""128 KiB: what a client must read in each *timeout*."""


@pytest.fixture
def place() -> Iterator[Place]:
    with socket.socket() as sock:
        yield Place(sock, ("192.0.2.1", 1), Closing())


class Queue:
    """What is left in the send queue, instead of the system's word for it."""

    left = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(system, "unsent", lambda sock: self.left)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


class TestClosing:
    @pytest.mark.parametrize(
        ("begun", "impatient", "grace_end", "over"),
        [
            (False, False, math.inf, False),
            (False, True, 0.0, False),
            (True, False, math.inf, False),
            (True, True, math.inf, True),
            (True, False, 0.0, True),
        ],
    )
    def test_grace(self, begun: bool, impatient: bool, grace_end: float, over: bool) -> None:
        """It is over at its end, or when somebody is impatient, once the server closes."""
        closing = Closing()
        assert not closing.grace_over
        closing.begun, closing.impatient, closing.grace_end = begun, impatient, grace_end
        assert closing.grace_over is over

    def test_the_very_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is over at its end, not only after it."""
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        closing = Closing()
        closing.begun, closing.grace_end = True, 100.0
        assert closing.grace_over


class TestPlace:
    def test_at_first(self, place: Place) -> None:
        """Nobody waits, nobody has signed in, nothing is due."""
        assert (place.held, place.peer, place.cut) == (None, None, "")
        assert not (place.waits or place.idle or place.makes_room or place.resets or place.signed_in())
        assert place.deadline == place.login_deadline == place.login_limit == math.inf
        assert place.client_address == ("192.0.2.1", 1) and not place.closing.begun

    def test_login_limit(self, place: Place) -> None:
        """It is that of the AUTHORIZATION state alone."""
        place.login_deadline = 5.0
        assert place.login_limit == 5.0
        place.signed_in = lambda: True
        assert place.login_limit == math.inf

    @pytest.mark.parametrize("idle", [True, False])
    def test_a_wait(self, place: Place, idle: bool) -> None:
        """Others see it as long as it lasts."""
        with place.until(100.0, 5.0, idle=idle):
            assert (place.waits, place.idle, place.deadline) == (True, idle, 100.0)
        assert (place.waits, place.idle, place.deadline) == (False, False, math.inf)
        with place.until(100.0, 5.0):
            assert not place.idle

    def test_a_wait_that_was_cut(self, place: Place) -> None:
        """It raises the first reason, whatever the socket says."""
        with pytest.raises(ClientTimeoutError, match="^first$") as failure, place.until(100.0):
            place.end("first")
            place.end("second")
            raise OSError
        assert failure.value.__suppress_context__

    def test_a_connection_that_broke(self, place: Place) -> None:
        """An OSError means that the client is gone; any other exception stays what it is."""
        error = ConnectionResetError()
        with pytest.raises(ClientGoneError, match="^the connection broke$") as failure, place.until(100.0):
            raise error
        assert failure.value.__cause__ is error
        with pytest.raises(KeyError), place.until(100.0):
            raise KeyError

    def test_a_pause_that_somebody_ends(self, place: Place, queue: Queue) -> None:
        """It counts as a wait, and as rest; who is woken once does not pause again."""
        pausing = threading.Thread(target=place.pause, args=(1000.0,))
        pausing.start()
        wait_until(place.is_at_rest)
        assert place.waits and not place.idle
        place.wake()
        pausing.join(PATIENCE)
        assert not (pausing.is_alive() or place.waits or place.is_at_rest())
        place.pause(1000.0)

    def test_work_after_a_pause(self, place: Place, queue: Queue) -> None:
        """A connection whose pause is over is not at rest: its handler may be at work."""
        place.pause(0.0)
        assert not place.is_at_rest()

    def test_a_pause_that_is_cut(self, place: Place) -> None:
        """It says why."""
        place.end("no room")
        with pytest.raises(ClientTimeoutError, match="^no room$"):
            place.pause(1000.0)

    @pytest.mark.parametrize(("left", "seconds"), [(3.0, 3.0), (10.0, 7.0)])
    def test_a_pause_before_sign_in(
        self, place: Place, left: float, seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no longer than the client has left to sign in."""
        waits: list[float | None] = []
        monkeypatch.setattr(threading.Event, "wait", lambda event, timeout=None: waits.append(timeout))
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        place.login_deadline = 100.0 + left
        place.pause(7.0)
        assert waits == [seconds]

    def test_woken_once(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """The system is told once."""
        woken: list[socket.socket] = []
        monkeypatch.setattr(system, "wake_reader", woken.append)
        place.wake()
        place.wake()
        assert woken == [place.socket]

    def test_rest(self, place: Place, queue: Queue) -> None:
        """Who waits for input that need not come rests, if all was sent; who has been woken does not."""
        assert not place.is_at_rest()
        with place.until(100.0):
            assert not place.is_at_rest()
        with place.until(100.0, idle=True):
            assert place.is_at_rest()
            queue.left = 1
            assert not place.is_at_rest()
            queue.left = 0
            place.wake()
            assert not place.is_at_rest()


class TestWatch:
    def test_who_is_late(self, place: Place, queue: Queue) -> None:
        """Who waits is cut at its deadline, not before."""
        with pytest.raises(ClientTimeoutError, match=TOO_SLOW), place.until(100.0):
            place.watch(99.9)
            assert not place.cut
            place.watch(100.0)
            assert place.cut == TOO_SLOW

    def test_who_does_not_wait(self, place: Place, queue: Queue) -> None:
        """Its handler may take any time, and who waits without a deadline too."""
        place.watch(1e9)
        place.deadline = 5.0
        place.watch(1e9)
        with place.until(math.inf, 5.0):
            place.watch(1e9)
        assert not place.cut

    @pytest.mark.parametrize(
        ("first_look", "taken", "more_time"),
        [
            (90.0, ENOUGH, True),
            (90.0, ENOUGH - 1, False),
            (95.0, ENOUGH // 2, True),
            (95.0, ENOUGH // 2 - 1, False),
            (80.0, ENOUGH, True),
            (80.0, ENOUGH - 1, False),
            (90.0, 1_000_000, True),
        ],
    )
    def test_who_still_takes(self, place: Place, queue: Queue, first_look: float, taken: int, more_time: bool) -> None:
        """Who has read 128 KiB, or all, in ten seconds gets ten more; of less time the same share is enough."""
        queue.left = 1_000_000
        wait = place.until(100.0, 10.0, idle=True)
        place.watch(first_look)
        queue.left -= taken
        place.watch(100.0)
        assert (not place.cut) is more_time
        if more_time:
            assert place.deadline == 110.0
            assert place.until(100.0, 10.0, idle=True) is wait and place.deadline == 110.0  # the same wait goes on
            place.until(100.5, 10.0)
            assert place.deadline == 100.5

    def test_each_time_counts_anew(self, place: Place, queue: Queue) -> None:
        """What was read in the first ten seconds is not counted again in the next."""
        queue.left = 1_000_000
        place.until(100.0, 10.0)
        place.watch(90.0)
        queue.left -= 2 * ENOUGH
        place.watch(100.0)
        place.watch(100.1)
        queue.left -= ENOUGH // 2
        place.watch(110.0)
        assert place.cut == TOO_SLOW

    def test_another_wait_counts_anew(self, place: Place, queue: Queue) -> None:
        """What was read during the last wait is not counted for the next."""
        queue.left = 1_000_000
        place.until(100.0, 10.0)
        place.watch(90.0)
        queue.left -= ENOUGH
        place.until(200.0, 10.0)
        place.watch(190.0)
        place.watch(200.0)
        assert place.cut == TOO_SLOW

    def test_nothing_to_take(self, place: Place, queue: Queue) -> None:
        """A client that has everything must say something, whatever the period."""
        place.until(100.0, 10.0)
        place.watch(90.0)
        place.watch(100.0)
        assert place.cut == TOO_SLOW

    def test_the_last_octets(self, place: Place, queue: Queue) -> None:
        """Who has read all gets more time, though it was little."""
        queue.left = 1
        place.until(100.0, 10.0)
        place.watch(90.0)
        queue.left = 0
        place.watch(100.0)
        assert not place.cut

    @pytest.mark.parametrize("left", [0, 1])
    def test_another_wait_meanwhile(
        self, left: int, place: Place, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wait that began while the watchdog asked the system keeps its own deadline."""
        queue.left = 1_000_000
        place.until(100.0, 10.0)
        place.watch(90.0)

        def unsent(sock: socket.socket) -> int:
            place.until(200.0, 10.0)
            return left

        monkeypatch.setattr(system, "unsent", unsent)
        place.watch(100.0)
        assert place.deadline == 200.0 and not place.cut

    def test_a_system_that_does_not_tell(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """There a wait ends at its deadline."""
        monkeypatch.setattr(system, "unsent", lambda sock: None)
        place.until(100.0, 10.0)
        place.watch(90.0)
        place.watch(100.0)
        assert place.cut == TOO_SLOW


def test_progress() -> None:
    """It is 128 KiB, or a share of it; on a UNIX socket, where memory is counted, it is anything."""
    with socket.socket() as sock:
        assert makes_progress(sock, ENOUGH) and not makes_progress(sock, ENOUGH - 1)
        assert makes_progress(sock, ENOUGH // 4, 0.25) and not makes_progress(sock, ENOUGH // 4 - 1, 0.25)
    one, other = socket.socketpair()
    with one, other:
        assert makes_progress(one, 1) and not makes_progress(one, 0)


def test_deadline_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many seconds from now; None means never."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert deadline_in(5.0) == 105.0 and deadline_in(None) == math.inf


class FakePlace:
    """Only says whether it waits or rests, and counts who wakes it."""

    def __init__(self, *, waits: bool = False, rests: bool = False) -> None:
        self.waits = waits
        self.rests = rests
        self.woken = 0
        self.watched = threading.Event()

    def is_at_rest(self) -> bool:
        return self.rests

    def wake(self) -> None:
        self.woken += 1
        self.rests = False

    def watch(self, now: float) -> None:
        self.watched.set()


def watchdog_of(places: Any, closing: Closing, pause: float = 0.01) -> Watchdog:
    return Watchdog(lambda: places, closing, threading.RLock(), lambda: pause)


class TestWatchdog:
    def test_who_is_woken_for_closing(self) -> None:
        """A hundred at a time of those at rest, and nobody else while the grace lasts."""
        closing = Closing()
        closing.begun = True
        places = [FakePlace(rests=True) for _ in range(150)] + [FakePlace(waits=True)]
        watchdog = watchdog_of(places, closing)
        for count in (100, 150, 150):
            watchdog._wake_for_closing()
            assert sum(place.woken for place in places) == count

    def test_the_end_of_the_grace(self) -> None:
        """Then all that wait are woken, once; a handler at work is left alone."""
        closing = Closing()
        closing.begun = closing.impatient = True
        waiting, working = FakePlace(waits=True), FakePlace()
        watchdog = watchdog_of([waiting, working], closing)
        for _ in range(2):
            watchdog._wake_for_closing()
            assert (waiting.woken, working.woken) == (1, 0)

    def test_its_thread(self) -> None:
        """It is one, looks again and again, and ends when the server closes and nobody is left.  No program waits for
        it.
        """
        closing, place = Closing(), FakePlace()
        places = [place]
        watchdog = watchdog_of(places, closing)
        before = threading.active_count()
        watchdog.start()
        watchdog.start()
        assert threading.active_count() == before + 1
        assert watchdog._thread is not None and watchdog._thread.daemon
        for _ in range(3):
            assert place.watched.wait(PATIENCE)
            place.watched.clear()
        closing.begun = True
        assert place.watched.wait(PATIENCE)
        places.clear()
        watchdog.join()
        assert threading.active_count() == before

    def test_want_of_memory(self) -> None:
        """It ends no watch: who was not looked at is looked at again, and the thread ends with the server."""

        class Failing(FakePlace):
            looks = 0

            def watch(self, now: float) -> None:
                self.looks += 1
                if self.looks == 1:
                    raise MemoryError
                super().watch(now)

        closing, place = Closing(), Failing()
        places = [place]
        watchdog = watchdog_of(places, closing)
        watchdog.start()
        assert place.watched.wait(PATIENCE)
        closing.begun = True
        places.clear()
        watchdog.join()

    def test_it_looks_at_once(self) -> None:
        """A server that closes need not wait for its next look."""
        closing, place = Closing(), FakePlace()
        places = [place]
        watchdog = watchdog_of(places, closing, 1000.0)
        watchdog.start()
        assert place.watched.wait(PATIENCE)
        place.watched.clear()
        watchdog.look()
        assert place.watched.wait(PATIENCE)
        closing.begun = True
        places.clear()
        watchdog.join()

    def test_its_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It pauses as it was told, and when the server closes for 5 milliseconds: nobody is cut late then."""
        closing = Closing()
        places = [FakePlace()]
        pauses: list[float | None] = []

        def wait(event: threading.Event, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            if closing.begun:
                places.clear()
            closing.begun = True
            return True

        watchdog = watchdog_of(places, closing, 0.25)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Event, "wait", wait)
            watchdog._watch()
        assert pauses == [0.25, 0.005]
