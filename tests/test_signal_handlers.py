"""What `popart.signal_handlers` notes of the methods that run, without a signal and without a server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from popart.signal_handlers import Interruptible, operation

ME = threading.get_ident


class Toy(Interruptible):
    """Has one method that may be interrupted."""

    def __init__(self) -> None:
        self._begin()
        self.closed: list[bool] = []

    @operation
    def run(self, action: Callable[[], object], *, times: int = 1) -> list[object]:
        """Run an action."""
        return [action() for _ in range(times)]

    def ask_for_the_end(self) -> None:
        self._operations[ME()] = True

    def _close_here(self) -> None:
        self.closed.append(self._interrupts())
        self._closing_threads.discard(ME())


def test_a_method_is_what_it_was() -> None:
    """It takes its arguments, returns its result, and has its name and its docstring."""
    toy = Toy()
    assert toy.run(lambda: 7, times=2) == [7, 7]
    assert toy.run(lambda: toy.run(lambda: 8)) == [[8]]
    assert (toy.run.__name__, toy.run.__doc__) == ("run", "Run an action.")
    assert not (toy.closed or toy._operations or toy._closing_threads)


def test_who_interrupts() -> None:
    """A call interrupts if a method runs in its own thread, or is closing; not if one runs in another."""
    toy = Toy()
    assert not toy._interrupts()
    with ThreadPoolExecutor(1) as other:
        assert toy.run(lambda: (toy._interrupts(), other.submit(toy._interrupts).result())) == [(True, False)]
    assert not toy._interrupts()
    toy._closing_threads.add(ME())
    assert toy._interrupts()


def test_a_wish_to_close() -> None:
    """It is carried out once, by the outermost method when it is done, during which a call still interrupts."""
    toy = Toy()

    def wish() -> None:
        toy.run(toy.ask_for_the_end)
        assert not toy.closed and toy._operations == {ME(): True}

    toy.run(wish)
    assert toy.closed == [True] and not toy._interrupts()
    toy.run(lambda: None)
    assert toy.closed == [True]


def test_what_was_forgotten_meanwhile() -> None:
    """A forked child begins anew within a method, and closes nothing when it ends."""
    toy = Toy()
    toy.run(toy._begin)
    assert not toy.closed


def test_a_wish_and_a_failure() -> None:
    """It is carried out though the method fails."""
    toy = Toy()

    def fail() -> None:
        toy.ask_for_the_end()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.run(fail)
    assert toy.closed == [True] and not toy._interrupts()


def test_a_thread_is_forgotten() -> None:
    """Whatever was noted of it."""
    toy = Toy()
    toy._operations[ME()] = True
    toy._forget_thread()
    assert not toy._interrupts()
    toy._closing_threads.add(ME())
    toy._forget_thread()
    assert not toy._interrupts()


def test_what_is_noted_in_the_method() -> None:
    """No wish, until somebody has one."""
    toy = Toy()
    assert toy.run(lambda: dict(toy._operations)) == [{ME(): False}]
