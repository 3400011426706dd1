"""A layer between popart and the handlers: it watches each call, and changes none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from popart.errors import HandlerError, ReportableError, SessionError
from popart.testing.check.explanations import explain_coroutine, explain_raise, explain_result, show
from popart.testing.check.report import Report

_READERS = {"get_message_reader", "get_top_reader"}


class Recorder:
    """An ``on_new_connection`` that asks another one, and watches its handlers."""

    def __init__(self, on_new_connection: Callable[[Any], Any]) -> None:
        self.report: Report = Report()
        self.piece: int | None = None
        """The most octets that a reader is asked for at once; None for what popart asks for."""

        self.excused: bool = False
        """True while methods have reason to fail: their failures are kept in `failures`, and are not findings."""

        self.failures: list[str] = []
        self.spoiled: bool = False
        """True while readers return None."""

        self.sessions: list[WatchedHandler] = []
        """Those that are not over."""

        self._make = on_new_connection
        self._running: dict[int, tuple[str, float]] = {}

    def __call__(self, peer: Any) -> Any:
        with self.calling("on_new_connection", []):
            handler = self._make(peer)
        if handler is None:
            return None
        if isinstance(handler, type) or not callable(getattr(handler, "handle_session_error", None)):
            what = f"on_new_connection returned {type(handler).__name__}, which is no handler"
            self.report.add(what, "every client is turned away", "Return a new object of your class")
            return handler
        if any(session.handler is handler for session in self.sessions):
            self.report.add(
                "on_new_connection returned the same handler for two connections at a time",
                "one client reads and deletes what the other one has opened",
                "Make a new handler for each connection",
            )
        session = WatchedHandler(self, handler)
        self.sessions.append(session)
        return session

    @contextmanager
    def calling(self, method: str, raised: list[BaseException]) -> Iterator[None]:
        """Watch a call.  What it raises goes on, and is added to *raised*."""
        thread = threading.get_ident()
        self._running[thread] = method, time.monotonic()
        try:
            yield
        except BaseException as error:
            raised.append(error)
            if self.spoiled and method == "handle_session_error":
                explain_raise(self.report, method, error)
            elif not isinstance(error, ReportableError):
                self.fail(f"{method} raised {show(error)}", partial(explain_raise, self.report, method, error))
            raise
        finally:
            del self._running[thread]

    @contextmanager
    def excusing(self) -> Iterator[list[str]]:
        """Let methods have reason to fail: yield the list of their failures, which are no findings."""
        self.excused = True
        try:
            yield self.failures
        finally:
            self.excused, self.failures = False, []

    @contextmanager
    def spoiling(self) -> Iterator[None]:
        """Let readers return None, so that handlers are told of a `HandlerError`, which must not fail."""
        with self.excusing():
            self.spoiled = True
            try:
                yield
            finally:
                self.spoiled = False

    def fail(self, what: str, explain: Callable[[], None]) -> None:
        """Keep a failure, or report it."""
        if self.excused:
            self.failures.append(what)
        else:
            explain()

    def slow(self, seconds: float) -> list[str]:
        """Return the methods that have been running for longer than that."""
        now = time.monotonic()
        return [method for method, start in list(self._running.values()) if now - start > seconds]

    def method_here(self) -> str | None:
        """Return the method that runs in this thread."""
        return self._running.get(threading.get_ident(), (None, 0.0))[0]


class Gate:
    """What a call waits for."""

    def __init__(self) -> None:
        self.reached: threading.Event = threading.Event()
        self.opened: threading.Event = threading.Event()


class WatchedHandler:
    """A handler that is watched.  It has the abilities of its handler."""

    def __init__(self, recorder: Recorder, handler: Any) -> None:
        self.over: threading.Event = threading.Event()
        """Set when the session is over, and nothing of it is left to be called."""

        self.recorder = recorder
        self.handler: Any = handler
        self.raised: list[BaseException] = []

        self._gates: dict[str, Gate] = {}

    @contextmanager
    def held(self, method: str) -> Iterator[Gate]:
        """Hold back the calls of a method, until the gate is opened or this is left."""
        gate = self._gates[method] = Gate()
        try:
            yield gate
        finally:
            gate.opened.set()
            del self._gates[method]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.handler, name)
        return _Method(self, name, found) if callable(found) else found

    def close(self) -> Any:
        """Tell the handler, if it wants to know, that the session is over."""
        try:
            close = getattr(self.handler, "close", None)
            return _Method(self, "close", close)() if callable(close) else None
        finally:
            self.recorder.sessions.remove(self)
            self.over.set()

    def handle_session_error(self, error: BaseException) -> None:
        """Tell the handler, and report what popart says about it."""
        recorder = self.recorder
        if isinstance(error, HandlerError):
            recorder.fail(str(error), partial(explain_result, recorder.report, str(error)))
        elif not isinstance(error, SessionError) and not any(error is known for known in self.raised):
            recorder.fail(show(error), partial(explain_result, recorder.report, f"a call failed with {show(error)}"))
        result = _Method(self, "handle_session_error", self.handler.handle_session_error)(error)
        if isinstance(result, Coroutine):
            result.close()
            explain_coroutine(recorder.report, "handle_session_error")

    def watch(self, method: str, call: Callable[[], Any]) -> Any:
        """Call a method of the handler, and remember what it raised: popart is going to tell of it."""
        if gate := self._gates.get(method):
            gate.reached.set()
            gate.opened.wait()
        with self.recorder.calling(method, self.raised):
            return call()


class _Method:
    """A method of a handler that is watched."""

    def __init__(self, session: WatchedHandler, name: str, method: Callable[..., Any]) -> None:
        self.__self__: object = getattr(method, "__self__", None)  # popart checks whose listing it is
        self._session = session
        self._name = name
        self._method = method

    def __call__(self, *arguments: Any) -> Any:
        result = self._session.watch(self._name, lambda: self._method(*arguments))
        if self._name == "list_messages" and isinstance(result, Iterable):
            return self._each(iter(result))
        if self._name in _READERS and callable(getattr(result, "read", None)):
            return _WatchedReader(self._session, result)
        return result

    def _each(self, listing: Iterator[Any]) -> Generator[Any, None, None]:
        end = object()
        while (entry := self._session.watch(self._name, lambda: next(listing, end))) is not end:
            yield entry


class _WatchedReader:
    """A reader that is watched."""

    def __init__(self, session: WatchedHandler, reader: Any) -> None:
        self._session = session
        self._reader = reader

    def read(self, n: int) -> Any:
        recorder = self._session.recorder
        if recorder.spoiled:
            return None
        wanted = min(n, recorder.piece or n)
        chunk = self._session.watch("read", lambda: self._reader.read(wanted))
        if isinstance(chunk, bytes) and len(chunk) > wanted:
            recorder.report.add(
                f"A reader returned {len(chunk)} octets, more than it was asked for: {wanted}",
                "memory grows with each client that reads a large message, until the server is killed",
                "Return at most n octets from read(n)",
            )
        return chunk

    def close(self) -> Any:
        close = getattr(self._reader, "close", None)
        return None if close is None else self._session.watch("close", close)
