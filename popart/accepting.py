"""The thread that accepts: `serve_forever` and `handle_request`, and how to make them return."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

from popart import system
from popart.client_socket import READ_SIZE
from popart.command_deadlines import Closing, deadline_in
from popart.connection_limits import Places
from popart.signal_handlers import Interruptible, operation

ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted, usually for lack of descriptors.  Meanwhile the connection stays
in the queue, and the listening socket stays readable."""

MAX_ACCEPTED = 100
"""Connections to accept before the loop looks at anything else: clients may come without end."""

SIGNAL_PAUSE = 0.05
"""Seconds between two looks for a request that a signal handler has left: it cannot take the lock to notify."""

LONGEST_WAIT = 0.5
"""Seconds that a thread waits for clients at a time.  If a signal comes in the moment before the wait, or to another
thread, its handler runs only after that."""


class AcceptingServer(Interruptible, socketserver.ThreadingTCPServer):
    """Accepts connections and gives them to `process_request`."""

    _places: Places

    def _begin(self) -> None:
        super()._begin()
        self._closing = Closing()
        # Take the lock by `_lock`, not by `_changed`: a condition runs Python code after the lock is taken, and what a
        # signal handler raised there would leave it taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stop_wanted = False
        self._loops: set[threading.Thread] = set()
        """The threads in `serve_forever`: mostly one."""

        self._doors: set[_Door] = set()

    @operation
    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Do what `popart.Server.serve_forever` says, on any processor."""
        loop = threading.current_thread()
        try:
            self._loops.add(loop)
            with self._door() as door:
                while not (self._stop_wanted or self._accepts_no_more):
                    door.wait(poll_interval)
                    self._accept_waiting()
                    self.service_actions()
        finally:
            with self._lock:
                self._loops.discard(loop)
                if not self._loops:
                    self._stop_wanted = False
                self._changed.notify_all()

    def shutdown(self) -> None:
        """Make `serve_forever` return, and wait until it has, unless this is its own thread.

        Sessions go on; `server_close` ends them.  If you call it before `serve_forever`, `serve_forever` returns at
        once.  A signal handler that interrupts another method of the server does not wait.
        """
        self._stop_wanted = True
        self._knock()
        if not self._interrupts():
            self._wait_for_loop()

    @operation
    def _wait_for_loop(self) -> None:
        with self._lock:
            while self._loops - {threading.current_thread()}:
                self._changed.wait(SIGNAL_PAUSE)

    @operation
    def handle_request(self) -> None:
        """Accept one connection.  If none comes within ``self.timeout`` seconds, call ``handle_timeout``; None waits
        for ever.

        When the server closes or has drained, it returns and does neither.
        """
        deadline = deadline_in(self.timeout)
        with self._door() as door:
            while not self._accepts_no_more and door.wait(deadline - time.monotonic()):
                with contextlib.suppress(OSError):
                    self._accept_one()
                    return
        if not self._accepts_no_more:
            self.handle_timeout()

    @property
    def _accepts_no_more(self) -> bool:
        """True once the server closes, or has drained."""
        return self._closing.begun or self.socket.fileno() == -1

    @contextlib.contextmanager
    def _door(self) -> Iterator[_Door]:
        door = _Door(self.socket)
        self._doors.add(door)
        try:
            yield door
        finally:
            self._doors.discard(door)
            door.close()

    def _knock(self) -> None:
        """Wake the threads that wait for clients."""
        for door in self._doors.copy():  # a single operation even without the interpreter's lock
            door.knock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection without a TLS handshake, even where `socket` is an SSLSocket that would make one."""
        return system.accept(self.socket)

    def _accept_waiting(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(MAX_ACCEPTED):
                if self._stop_wanted or self._closing.begun:
                    return
                self._accept_one()

    def _accept_one(self) -> None:
        """Accept a connection, and start it or refuse it.

        :raises BlockingIOError: nobody is waiting.
        :raises OSError: no connection can be accepted now.
        """
        # A client may leave before it is accepted, and then accept would wait for the next.  Set this anew each time,
        # because other processes that share the socket may set it otherwise.
        self.socket.setblocking(False)
        try:
            request, client_address = self.get_request()
        except BlockingIOError:
            raise
        except OSError as error:
            if system.is_lost(error):
                return
            time.sleep(ACCEPT_PAUSE)
            raise
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.close_request(request)
        except BaseException as error:
            if isinstance(error, Exception):
                with contextlib.suppress(Exception):
                    self.handle_error(request, client_address)
            if self._places.find(request) is None:  # else its thread closes it
                self.close_request(request)
            if not isinstance(error, Exception):
                raise


class _Door:
    """Waits for clients on a listening socket.  Any thread or signal handler can end a wait by knocking."""

    def __init__(self, listener: socket.socket) -> None:
        with contextlib.ExitStack() as parts:
            self._inside, self._outside = map(parts.enter_context, socket.socketpair())
            self._outside.setblocking(False)
            self._selector = parts.enter_context(selectors.DefaultSelector())
            self._selector.register(self._inside, selectors.EVENT_READ)
            self._parts = parts.pop_all()
        with contextlib.suppress(ValueError, OSError):  # it is closed
            self._selector.register(listener, selectors.EVENT_READ)

    def wait(self, seconds: float | None) -> bool:
        """Wait for a client, a knock or *seconds*.  Return whether a client or a knock came."""
        deadline = deadline_in(seconds)
        while True:
            left = deadline - time.monotonic()
            found = self._selector.select(min(LONGEST_WAIT, left))
            if found or left <= LONGEST_WAIT:
                break
        if any(key.fileobj is self._inside for key, _ in found):
            self._inside.recv(READ_SIZE)
        return bool(found)

    def knock(self) -> None:
        with contextlib.suppress(OSError):
            self._outside.send(b"\0")

    def close(self) -> None:
        self._parts.close()
