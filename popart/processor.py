"""One processor for the threads of all sessions, where the system can do that.

Python runs one thread at a time.  If the threads are on several processors, the interpreter's lock travels between them
at each call that lets go of it, and a session costs about twice the processor time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from popart import system

SLOW_SIGN_IN = 0.001
"""Seconds of processor time that make a sign-in slow, so that the next one runs on any processor.  A password's hash
that takes 40 ms lets go of the interpreter, so several processors can work at it.  Moving a thread takes 0.05 ms."""

Result = TypeVar("Result")


class Processor:
    """The processor on which a server's sessions run."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._all = [number, *system.processors()]
        self._sign_ins = Counter[int]()  # slow ones that run on each
        self._lock = threading.Lock()  # guards it
        self._sign_in_is_slow = False

    def stay(self) -> None:
        """Run this thread on the processor from now on."""
        system.run_on(self._number)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Run a ``with`` block on the processor: the thread that accepts gives connections to the others."""
        before = system.processors()
        self.stay()
        try:
            yield
        finally:
            system.run_on(*before)

    @contextmanager
    def _anywhere(self) -> Iterator[None]:
        with self._lock:
            number = min(self._all, key=self._sign_ins.__getitem__)
            self._sign_ins[number] += 1
        system.run_on(number)
        try:
            yield
        finally:
            self.stay()
            with self._lock:
                self._sign_ins[number] -= 1

    def sign_in(self, attempt: Callable[[], Result], signed_in: Callable[[], bool]) -> Result:
        """Run a command of the AUTHORIZATION state; if sign-ins are slow, where the fewest such commands run."""
        begun = time.thread_time()
        try:
            with self._anywhere() if self._sign_in_is_slow else nullcontext():
                return attempt()
        finally:
            if time.thread_time() - begun >= SLOW_SIGN_IN:
                self._sign_in_is_slow = True
            elif signed_in():
                self._sign_in_is_slow = False
