"""What a signal handler may interrupt: it may close a server at any moment, wherever the server's methods are.

A handler runs in the main thread, between two lines of what that does.  Below it there may be a frame that holds the
server's lock.  So its call only notes the wish, and the interrupted method carries it out when it is done.
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
    """What a server's methods are doing in which thread, by the threads' identifiers."""

    def _begin(self) -> None:
        self._closing_wanted: dict[int, bool] = {}
        """For a thread in an `operation`: whether a signal handler has asked there to close the server."""

        self._closing_threads: set[int] = set()
        """The threads within `server_close`."""

    def _interrupts(self) -> bool:
        """Tell whether the caller has interrupted a method of the server, as a signal handler does, or is its hook."""
        me = threading.get_ident()
        return me in self._closing_threads or me in self._closing_wanted

    def _forget_thread(self) -> None:
        """Forget what this thread was doing: what a signal handler raised may have kept a method from saying so."""
        self._closing_wanted.pop(threading.get_ident(), None)
        self._closing_threads.discard(threading.get_ident())

    def server_close(self) -> None: ...


def operation(
    method: Callable[Concatenate[AnyInterruptible, P], Result],
) -> Callable[Concatenate[AnyInterruptible, P], Result]:
    """Make a method one that a signal handler may interrupt with `server_close`."""

    @functools.wraps(method)
    def run(server: AnyInterruptible, /, *arguments: P.args, **options: P.kwargs) -> Result:
        if server._interrupts():
            return method(server, *arguments, **options)
        me = threading.get_ident()
        try:
            server._closing_wanted[me] = False
            return method(server, *arguments, **options)
        finally:
            if server._closing_wanted.pop(me, False):
                server.server_close()

    return run
