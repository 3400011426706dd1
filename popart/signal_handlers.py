"""Signal handlers: one may close a server at any moment, whatever the server's methods are doing.

A handler runs in the main thread, between any two lines of its code.  A frame below it may hold the server's lock.  So
the handler's call only notes the request, and the interrupted method carries it out at its own end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")
AnyInterruptible = TypeVar("AnyInterruptible", bound="Interruptible")


class Interruptible:
    """Which of a server's methods run in which thread, by the threads' identifiers."""

    def _begin(self) -> None:
        self._operations: dict[int, bool] = {}
        """For each thread in an `operation`: whether a signal handler has asked it to close the server."""

        self._closing_threads: set[int] = set()
        """The threads within `server_close`."""

    def _interrupts(self) -> bool:
        """Return whether this thread is already within a method of the server: the caller is a signal handler or a
        hook."""
        me = threading.get_ident()
        return me in self._closing_threads or me in self._operations

    def _forget_thread(self) -> None:
        """Forget what this thread was doing.  If a signal handler raised, the method may not have cleared it."""
        self._operations.pop(threading.get_ident(), None)
        self._closing_threads.discard(threading.get_ident())

    def _close_here(self) -> None: ...


def operation(
    method: Callable[Concatenate[AnyInterruptible, P], Result],
) -> Callable[Concatenate[AnyInterruptible, P], Result]:
    """Let a signal handler interrupt this method with `server_close`."""

    @functools.wraps(method)
    def run(server: AnyInterruptible, /, *arguments: P.args, **options: P.kwargs) -> Result:
        if server._interrupts():
            return method(server, *arguments, **options)
        me = threading.get_ident()
        try:
            server._operations[me] = False
            return method(server, *arguments, **options)
        finally:
            if server._operations.get(me):
                server._closing_threads.add(me)  # from here on a signal ends the grace
            if server._operations.pop(me, False):
                server._close_here()

    return run
