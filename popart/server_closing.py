"""The end of a server: `drain` lets its sessions end, `server_close` ends them."""

from __future__ import annotations

import threading
import time

from popart import system
from popart.accepting import SIGNAL_PAUSE, AcceptingServer
from popart.command_deadlines import Watchdog, deadline_in
from popart.options import Limits
from popart.signal_handlers import operation
from popart.workers import Workers

LONGEST_QUEUE = 65_535
"""The most connections that `drain` accepts: no system's queue is longer, and clients may keep coming."""


class ClosingServer(Limits, AcceptingServer):
    """Ends its sessions, and waits for their threads."""

    _workers: Workers
    _watchdog: Watchdog

    @operation
    def drain(self, timeout: float | None = None) -> bool:
        """Stop listening and let the sessions come to their own ends, for at most *timeout* seconds (None: no limit).

        Use it if another server takes over.  Call it after `serve_forever` has returned.  Then call `server_close`,
        which ends the sessions that are left.  `drain` also serves connections that the system had already accepted.
        It returns whether all sessions have ended.  A handler's method must not call it without a *timeout*: it waits
        for that handler's own session too.  A signal handler may call `server_close` meanwhile: then `drain` closes the
        server and returns False.
        """
        deadline = deadline_in(timeout)
        me = threading.get_ident()
        self.shutdown()
        self._wait_for_loop()
        self._accept_queue(deadline)
        self.socket.close()
        self._knock()
        with self._lock:
            while len(self._places) and time.monotonic() < deadline and not self._operations.get(me):
                self._changed.wait(min(SIGNAL_PAUSE, deadline - time.monotonic()))
            return not (len(self._places) or self._operations.get(me))

    def _accept_queue(self, deadline: float) -> None:
        for _ in range(LONGEST_QUEUE):
            if time.monotonic() >= deadline or self._closing.begun:
                return
            try:
                self._accept_one()
            except OSError as error:
                if error.errno not in system.SHORTAGE:  # it is empty, or closed
                    return

    def server_close(self) -> None:
        """End the service: refuse new connections, end idle sessions at once, wait for the others.

        A session is idle if it waits for a command and its client has taken all that was sent.  Within `shutdown_grace`
        seconds running commands may finish, and clients may read their replies.  Then the connections are cut.  popart
        cannot interrupt a call to a handler, and always waits for it.  So a commit completes, every maildrop is
        unlocked and no thread is left.  You may call it twice, from any thread, or before `serve_forever`.

        If a handler's method calls it, it does not wait, because that session would wait for itself.  A signal handler
        may call it at any moment.  If that interrupts `serve_forever`, `handle_request`, `shutdown` or `drain`, the
        call returns at once, and the interrupted method closes the server and returns soon.  If it interrupts
        `server_close` itself, or the method has been asked to close the server already, it ends the grace.

        In a forked child it closes the child's copies of the sockets, and leaves the parent's sessions alone.
        """
        self._closing.begun = True
        me = threading.get_ident()
        if me in self._closing_threads:
            self._closing.impatient = True
        elif me in self._operations:
            if self._operations[me]:  # it has been asked for already
                self._closing.impatient = True
            self._operations[me] = True
            self._knock()
        else:
            self._close_here()

    def _close_here(self) -> None:
        me = threading.get_ident()
        try:
            self._closing_threads.add(me)
            self._knock()
            self._wait_for_loop()
            self.socket.close()
            self._closing.grace_end = min(self._closing.grace_end, deadline_in(self.shutdown_grace))
            self._workers.dismiss()
            self._watchdog.look()
            if self._workers.one_calls:
                return
            with self._lock:
                while len(self._places) or not self._workers.all_done:
                    self._changed.wait(SIGNAL_PAUSE)
            self._workers.join()
            self._watchdog.join()
        finally:
            self._closing_threads.discard(me)

    def __exit__(self, *error: object) -> None:
        self._forget_thread()
        self.server_close()
