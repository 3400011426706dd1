"""The deadlines of live connections: what each waits for and until when, and the watchdog that cuts late ones.

A connection's thread says in its `Place` what it waits for and until when, and then blocks.  One watchdog thread cuts
the connections whose time is up, and wakes the idle ones when the server closes.  The sockets' own timeouts would limit
one system call each, not a command.  They would also cost three system calls where blocking costs one.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import Any

from popart import system
from popart.errors import ClientGoneError, ClientTimeoutError

TAKEN_SIZE = 131_072
"""Octets of replies that a client must take in each *timeout*.  If there are fewer, it must take all of them."""

CLOSING_PAUSE = 0.005
"""Seconds between two looks at the live connections while the server closes."""

WOKEN_AT_ONCE = 100
"""How many connections to wake in each of these looks.  5,000 threads that wake at once fight for the interpreter, and
take 2.3 seconds to end instead of 1.3."""

TOO_SLOW = "the client was too slow"


class Closing:
    """How far a server's closing has come.  Plain values, so that a signal handler may set them at any moment."""

    def __init__(self) -> None:
        self.begun: bool = False
        self.impatient: bool = False
        """True if nobody should wait for the grace."""

        self.grace_end: float = math.inf
        """On the monotonic clock: when running commands are cut."""

    @property
    def grace_over(self) -> bool:
        return self.begun and (self.impatient or time.monotonic() >= self.grace_end)


class Place:
    """One live connection, as its own thread, the watchdog and the accepting thread see it."""

    def __init__(self, sock: socket.socket, client_address: Any, closing: Closing) -> None:
        self.socket = sock
        self.closing = closing
        self.client_address = client_address
        """The client's address.  Behind a proxy, it is the proxy's until the header has named the client."""

        self.peer: str | None = None
        """The peer that it counts for in ``max_connections_per_peer``; None if it has no peer, or none yet."""

        self.held: bool | None = None
        """True once a thread has taken it up, False if none ever will."""

        self.signed_in: Callable[[], bool] = lambda: False  # is the client in the TRANSACTION state?
        self.login_deadline: float = math.inf
        """On the monotonic clock: when the AUTHORIZATION state must be over."""

        self.waits: bool = False
        """True while its thread waits for the client or pauses: the handler is not at work."""

        self.idle: bool = False
        """True while its thread waits for what a client need not send: a command, or the end of its stream."""

        self.deadline: float = math.inf
        """On the monotonic clock: when the client must have sent what its thread waits for."""

        self.cut: str = ""
        """Why the connection was cut; empty if it was not."""

        self.makes_room: bool = False
        """True if another connection already has its place."""

        self.resets: bool = False
        """True if it ends by a reset, before which no FIN may go."""

        self._wait = (math.inf, 0.0)
        self._last = math.inf  # the deadline of this wait as it is now
        self._alarm: threading.Event | None = None
        self._woken = False
        self._queued: tuple[int, float] | None = None  # what was in the send queue, and when: see `_still_takes`

    @property
    def login_limit(self) -> float:
        """`login_deadline`, or infinity once the client has signed in."""
        return math.inf if self.signed_in() else self.login_deadline

    def command_limit(self, timeout: float) -> tuple[float, float]:
        """Return the arguments of `until` for the next command: a client that still reads replies may take longer."""
        return min(deadline_in(timeout), self.login_limit), timeout if self.signed_in() else 0.0

    def until(self, deadline: float, period: float = 0.0, *, idle: bool = False) -> Place:
        """Read from the client, or write to it, in a ``with`` block; the watchdog ends a wait for input at *deadline*.

        If the client still takes what was sent before, it gets *period* more seconds, again and again.  A second call
        with the same arguments continues the same wait.

        :raises ClientTimeoutError: the connection was cut.
        :raises ClientGoneError: the connection is broken.
        """
        if (deadline, period) != self._wait:
            self._wait = (deadline, period)
            self._queued = None
            self._last = deadline
        self.deadline = self._last
        self.idle = idle
        self.waits = True
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.waits = self.idle = False
        self.deadline = math.inf
        if self.cut:
            raise ClientTimeoutError(self.cut) from None
        if isinstance(error, OSError):
            raise ClientGoneError("the connection broke") from error

    def pause(self, seconds: float) -> None:
        """Pause, unless somebody wakes this connection, and for no longer than the client has left to sign in.

        :raises ClientTimeoutError: it was cut, or its time to sign in is over.
        """
        self._alarm = threading.Event()
        self.waits = True
        if not self._woken:
            self._alarm.wait(min(seconds, self.login_limit - time.monotonic()))
        self.waits = False
        self._alarm = None
        if self.cut or time.monotonic() >= self.login_limit:
            raise ClientTimeoutError(self.cut or TOO_SLOW)

    # What other threads call, with the lock.

    def wake(self) -> None:
        """End whatever the connection's thread waits for; it will read no more input."""
        if not self._woken:
            self._woken = True
            system.wake_reader(self.socket)
        alarm = self._alarm
        if alarm is not None:
            alarm.set()

    def end(self, why: str) -> None:
        """Cut the connection."""
        self.cut = self.cut or why
        self.wake()

    def is_at_rest(self) -> bool:
        """Return whether its thread pauses, or waits for input that need not come, and everything sent has arrived."""
        if self._woken or not (self.idle or self._alarm is not None):
            return False
        return not system.unsent(self.socket)

    def watch(self, now: float) -> None:
        """Cut the connection if it is late.

        Its own thread may begin another wait meanwhile, which is then measured from the next look.
        """
        deadline, (_, period) = self.deadline, self._wait
        if not self.waits or deadline == math.inf:
            return
        queued = self._queued  # once: another wait makes it None
        if queued is None:
            queued = self._queued = system.unsent(self.socket) or 0, now
        if deadline > now:
            return
        if not self._still_takes(*queued, now, period):
            self.end(TOO_SLOW)
        elif self.deadline == deadline:  # its thread may be in another wait by now
            self._queued = None
            self._last = self.deadline = now + period

    def _still_takes(self, queued: int, asked: float, now: float, period: float) -> bool:
        if not (period and queued):
            return False
        left = system.unsent(self.socket) or 0
        share = min(1.0, (now - asked) / period)  # the first look at a wait is later than its beginning
        return not left or makes_progress(self.socket, queued - left, share)


def makes_progress(sock: socket.socket, taken: int, share: float = 1.0) -> bool:
    """Return whether a client has taken enough in a *share* of its time to get more."""
    if system.is_unix(sock):
        return taken > 0  # the system counts memory there, not octets
    return taken >= TAKEN_SIZE * share


class Watchdog:
    """One thread that watches the live connections until the server has closed and no connection is left.

    *live* returns them; the watchdog calls it while it holds *lock*.  *pause* returns the seconds between two looks.
    """

    def __init__(
        self,
        live: Callable[[], list[Place]],
        closing: Closing,
        lock: AbstractContextManager[bool],
        pause: Callable[[], float],
    ) -> None:
        self._live = live
        self._closing = closing
        self._lock = lock
        self._alarm = threading.Event()
        self._thread: threading.Thread | None = None
        self._pause = pause
        self._grace_was_over = False

    def start(self) -> None:
        """Start the thread, unless it is running."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._keep_watch, daemon=True)
                thread.start()
                self._thread = thread

    def look(self) -> None:
        """Look at once, because the server closes."""
        self._alarm.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self.look()
        if self._thread is not None:
            self._thread.join()

    def _keep_watch(self) -> None:
        while True:
            # A lack of memory may pass, and nobody else cuts and wakes connections.
            with suppress(Exception):
                return self._watch()
            time.sleep(CLOSING_PAUSE)

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._closing.begun:
                    self._wake_for_closing()
                    if not self._live():
                        return
                now = time.monotonic()
                for place in self._live():
                    place.watch(now)
            self._alarm.wait(CLOSING_PAUSE if self._closing.begun else self._pause())
            self._alarm.clear()

    def _wake_for_closing(self) -> None:
        grace_is_over = self._closing.grace_over
        if grace_is_over and not self._grace_was_over:
            # A thread in its handler is left alone: it may still report a commit.
            for place in self._live():
                if place.waits:
                    place.wake()
        self._grace_was_over = grace_is_over
        for place in islice((place for place in self._live() if place.is_at_rest()), WOKEN_AT_ONCE):
            place.wake()


def deadline_in(seconds: float | None) -> float:
    """Return the time on the monotonic clock in *seconds* seconds; None means never."""
    return math.inf if seconds is None else time.monotonic() + seconds
