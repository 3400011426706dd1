"""Threads that each serve one connection after another."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue

from popart.command_deadlines import Place

SPARE_SECONDS = 1.0
"""Seconds that a thread waits for another connection after its own has ended."""


class Workers:
    """The threads that hold a server's connections.

    `popart.server` says what guards them.
    """

    def __init__(
        self,
        hold: Callable[[Place], None],
        lock: AbstractContextManager[bool],
        changed: threading.Condition,
        *,
        daemon: bool,
    ) -> None:
        self._hold = hold
        self._lock = lock
        self._changed = changed
        self._daemon = daemon
        self._threads: set[threading.Thread] = set()
        """All threads that hold a connection, wait for one, or are about to start."""

        self._done: deque[threading.Thread] = deque()
        """The threads that are about to end."""

        self._spare = 0
        self._queue: SimpleQueue[Place | None] = SimpleQueue()
        self._dismissed = False

    def take(self, place: Place) -> None:
        """Let a thread hold a connection.

        If none takes it up, because no thread can start or because a signal handler raises here, ``place.held`` is
        False.

        :raises RuntimeError: no thread can start.
        """
        thread = None
        try:
            with self._lock:
                if self._spare:
                    self._spare -= 1
                    self._queue.put(place)
                    return
                thread = threading.Thread(target=self._work, args=(place,), daemon=self._daemon)
                while self._done and not self._done[0].is_alive():
                    self._done.popleft()
                self._threads.add(thread)
            thread.start()
        except BaseException:
            with self._lock:
                if self.withdraw(place) and thread is not None:
                    self._threads.discard(thread)
            raise

    def withdraw(self, place: Place) -> bool:
        """Let no thread take a connection up any more.  Return False if one has already."""
        with self._lock:
            if place.held is None:
                place.held = False
            return not place.held

    def _work(self, place: Place | None) -> None:
        """Hold a connection, then others that come while this thread is spare.  This is the body of a thread.

        A new thread for each connection took a third of a short session's processor time.
        """
        try:
            while place is not None and self._take_up(place):
                # In a context of its own: no session finds another's context variables.
                contextvars.Context().run(self._hold, place)
                place = self._next()
        finally:  # even if memory is short: `server_close` waits for this thread
            with self._lock:
                thread = threading.current_thread()
                self._done.append(thread)
                self._threads.discard(thread)
                self._changed.notify_all()

    def _take_up(self, place: Place) -> bool:
        with self._lock:
            if place.held is None:
                place.held = True
            return place.held

    def _next(self) -> Place | None:
        with self._lock:
            if self._dismissed:
                return None
            self._spare += 1
        try:
            return self._queue.get(timeout=SPARE_SECONDS)
        except Empty:
            with self._lock, suppress(Empty):  # it is empty if a signal handler raised in `take`
                if not self._spare:
                    return self._queue.get_nowait()  # it was promised to this thread meanwhile
                self._spare -= 1
            return None

    def dismiss(self) -> None:
        """Let the spare threads end now, and the others when their connections have ended."""
        with self._lock:
            self._dismissed = True
            for _ in range(self._spare):
                self._queue.put(None)
            self._spare = 0

    @property
    def one_calls(self) -> bool:
        """True in one of these threads."""
        return threading.current_thread() in self._threads

    @property
    def all_done(self) -> bool:
        return not self._threads

    def join(self) -> None:
        """Wait until the threads that have finished their work have ended."""
        for thread in list(self._done):
            thread.join()
