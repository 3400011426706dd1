"""Signal handlers that close the server, raised at each line that a method of the server runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import popart
from popart import system
from popart.server import Server
from tests.conftest import (
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    running,
    signed_in,
    wait_until,
)
from tests.test_server import HOST, MESSAGE, no_hang, refused

__all__ = ["no_hang"]

TRACED = {*map(str, Path(popart.__file__).parent.glob("*.py")), threading.__file__}


class Interruption:
    """Raises SIGUSR1 once, at the line with this number of those that popart and `threading` run in this thread.

    With *function* only the lines of the functions of this name count.
    """

    def __init__(self, number: int, function: str | None = None) -> None:
        self.left = number
        self.function = function

    def __enter__(self) -> Interruption:
        self._before = sys.gettrace()  # that of a coverage measurement, for one
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if self.function not in (None, frame.f_code.co_name):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGUSR1)
                sys.settrace(self._trace)
        return self._trace


@contextlib.contextmanager
def on_signal(handler: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    raise KeyboardInterrupt


class OneRound(QuickServer):
    """Its loop ends by itself."""

    shutdown_grace = 0.2

    def service_actions(self) -> None:
        self.shutdown()


def serve_forever(server: Server) -> None:
    server.serve_forever(poll_interval=0.01)


def handle_request(server: Server) -> None:
    server.timeout = 0.05
    server.handle_request()


def shutdown(server: Server) -> None:
    server.shutdown()


def drain(server: Server) -> None:
    server.drain(0.01)


def server_close(server: Server) -> None:
    server.server_close()


METHODS = [serve_forever, handle_request, shutdown, drain, server_close]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clients", [False, True], ids=["nobody", "clients"])
@pytest.mark.parametrize("wish", ["server_close", "shutdown"])
def test_a_signal_at_any_line(method: Callable[[Server], None], clients: bool, wish: str) -> None:
    """Wherever a signal handler interrupts the server: the method returns, and if the handler called server_close()
    the server is closed by then; each maildrop is unlocked and no thread is left.
    """
    threads = threading.active_count()
    for number in range(1, 1000):
        mail = Mail(MESSAGE)
        handler = ClosingHandler(mail)
        server = OneRound(HOST, lambda peer, handler=handler: handler)
        with contextlib.ExitStack() as stack:
            stack.enter_context(on_signal(getattr(server, wish)))
            if clients:
                client = stack.enter_context(connected(server))
                server.handle_request()
                client.sign_in()
                system.acknowledge(client.sock)  # lest the session count as busy for another 40 ms
                stack.enter_context(connected(server))  # in the queue
            with Interruption(number) as interruption:
                method(server)
            if wish == "shutdown" or interruption.left > 0:
                server.server_close()
            assert refused(server)
            assert not mail.locked
            assert threading.active_count() == threads
        if interruption.left > 0:
            break
    assert 10 < number < 999


def test_an_exception_of_a_signal_handler_as_a_method_ends() -> None:
    """Ctrl-C may come just as a method of the server returns: leaving the with block closes the server all the same."""
    for number in range(1, 100):
        mail = Mail(MESSAGE)
        server = OneRound(HOST, lambda peer, mail=mail: ClosingHandler(mail))
        with on_signal(interrupt), connected(server) as client:
            server.handle_request()
            client.sign_in()
            interruption = Interruption(number, function="run")
            with contextlib.suppress(KeyboardInterrupt), server, interruption:
                server.shutdown()
            assert not mail.locked
        if interruption.left > 0:
            break
    assert 5 < number < 99


def test_what_such_an_exception_left_is_forgotten() -> None:
    """Leaving the with block closes the server though a method seems to run in this thread yet."""
    with QuickServer(HOST, lambda peer: None) as server:
        server._operations[threading.get_ident()] = False
    assert refused(server)


def test_a_second_signal_ends_the_grace() -> None:
    """A signal handler that calls server_close() again, while the first call waits for a client, ends the wait."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail(b"x" * 20_000_000)))
    server.shutdown_grace = None
    main = threading.get_ident()
    with running(server), signed_in(server) as client, on_signal(server.server_close):
        assert client.ask(b"RETR 1").startswith(b"+OK")
        with ThreadPoolExecutor() as others:

            def impatience() -> None:
                wait_until(lambda: server._closing.grace_end == float("inf") and server.socket.fileno() == -1)
                signal.pthread_kill(main, signal.SIGUSR1)

            others.submit(impatience)
            server.server_close()
        assert b"\r\n.\r\n" not in client.rest_until_reset()


@pytest.mark.parametrize("method", ["serve_forever", "handle_request"])
def test_a_signal_is_heard_though_nothing_interrupts_the_wait(method: str) -> None:
    """A signal that reached another thread, or the main thread in the moment before it waits, is heard soon."""
    with Server(HOST, lambda peer: MemoryHandler(Mail())) as server:

        def signal_beside() -> float:
            wait_until(lambda: bool(server._doors))
            began = time.monotonic()
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            return began

        with ThreadPoolExecutor(1) as other, on_signal(server.server_close):
            signalled = other.submit(signal_beside)
            server.serve_forever(poll_interval=60) if method == "serve_forever" else server.handle_request()
            assert time.monotonic() - signalled.result() < 20
        assert refused(server)


@pytest.mark.parametrize("method", ["serve_forever", "handle_request", "drain"])
def test_a_further_signal_before_the_first_was_heeded(method: str) -> None:
    """Two signals that come before the interrupted method returns are two: the second ends the grace."""

    def close_twice() -> None:
        server.server_close()
        assert not server._closing.impatient
        server.server_close()

    def signal_main() -> None:
        main = threading.main_thread().ident or 0
        wait_until(lambda: main in server._operations)
        signal.pthread_kill(main, signal.SIGUSR1)

    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    with contextlib.ExitStack() as stack:
        if method == "drain":
            stack.enter_context(running(server))
            stack.enter_context(signed_in(server))
        stack.enter_context(on_signal(close_twice))
        other = stack.enter_context(ThreadPoolExecutor(1)).submit(signal_main)
        getattr(server, method)()
        other.result()
        assert server._closing.impatient
    assert refused(server)


def test_impatience_is_not_taken_back() -> None:
    """A hook that asks for the end for the first time does not renew a grace that a signal has ended."""

    class Closing(QuickServer):
        def service_actions(self) -> None:
            self._closing.impatient = True  # as a second signal in another thread leaves it
            self.server_close()

    with Closing(HOST, lambda peer: MemoryHandler(Mail())) as server:
        server.serve_forever(poll_interval=0.01)
        assert server._closing.impatient
