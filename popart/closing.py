"""The end of a server: `drain` lets its sessions end, `server_close` ends them."""

from __future__ import annotations

import threading
import time

from popart.accepting import SHORTAGE, SIGNAL_PAUSE, AcceptingServer
from popart.deadlines import Watchdog, deadline_in
from popart.limits import Limits
from popart.places import Places
from popart.signals import operation
from popart.workers import Workers

LONGEST_QUEUE = 65_535
"""Connections that `drain` accepts at the most: no system's queue is longer, and clients may go on coming."""


class ClosingServer(Limits, AcceptingServer):
    """Ends its sessions, and waits for their threads."""

    _places: Places
    _workers: Workers
    _watchdog: Watchdog

    @operation
    def drain(self, timeout: float | None = None) -> bool:
        """Stop listening and let the sessions come to their own ends, at most for *timeout* seconds (None: no limit).

        For a server that another one takes over from: call it after `serve_forever` has returned, and `server_close`
        next, which ends what is left.  Connections that the system had accepted already are served too.  Returns
        whether all sessions have ended.  A handler's method that calls it waits for its own session.  A signal handler
        may call `server_close` meanwhile: then this returns False, and the server is closed before it does.
        """
        deadline = deadline_in(timeout)
        me = threading.get_ident()
        self.shutdown()
        self._wait_for_loop()
        self._accept_queue(deadline)
        self._stop_wanted = True  # serve_forever has nothing to serve any more
        self.socket.close()
        with self._changed:
            while len(self._places) and time.monotonic() < deadline and not self._closing_wanted.get(me):
                self._changed.wait(min(SIGNAL_PAUSE, max(0.0, deadline - time.monotonic())))
            return not (len(self._places) or self._closing_wanted.get(me))

    def _accept_queue(self, deadline: float) -> None:
        for _ in range(LONGEST_QUEUE):
            if time.monotonic() >= deadline or self._closing.begun:
                return
            try:
                self._accept_one()
            except OSError as error:
                if error.errno not in SHORTAGE:  # it is empty, or closed
                    return

    def server_close(self) -> None:
        """End the service: refuse new connections, end idle sessions at once, wait for the others.

        A session is idle when it waits for a command and its client has taken all that was sent.  Within
        `shutdown_grace` seconds running commands may finish, and clients may read their replies; then the connections
        are cut.  A call to a handler cannot be interrupted and is always waited for: a commit completes, every maildrop
        is unlocked and no thread is left.  Calling it twice, from any thread or before `serve_forever` is fine.

        Called by a handler's method, it does not wait, as that session would wait for itself.  A signal handler may
        call it at any moment.  If that interrupts `serve_forever`, `handle_request`, `shutdown` or `drain`, the call
        returns at once; the interrupted method returns soon, and closes the server before it does.  If it interrupts
        `server_close` itself, it ends the grace of that.

        In a forked child it lets go of the child's copies of the sockets, and leaves the parent's sessions alone.
        """
        self._closing.begun = True
        me = threading.get_ident()
        if me in self._closing_threads:
            self._closing.impatient = True
        elif me in self._closing_wanted:
            self._closing_wanted[me] = True
            self._knock()
        else:
            try:
                self._closing_threads.add(me)
                self._close()
            finally:
                self._closing_threads.discard(me)

    def _close(self) -> None:
        self._knock()
        self._wait_for_loop()
        self.socket.close()
        self._closing.grace_end = min(self._closing.grace_end, deadline_in(self.shutdown_grace))
        self._workers.dismiss()
        self._watchdog.look()
        if self._workers.one_calls:
            return
        with self._changed:
            while len(self._places) or not self._workers.all_done:
                self._changed.wait(SIGNAL_PAUSE)
        self._workers.join()
        self._watchdog.join()

    def __exit__(self, *error: object) -> None:
        self._forget_thread()
        self.server_close()
