"""`Server.drain`: a server leaves its place to another, and its clients notice nothing."""

from __future__ import annotations

import errno
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from popart.accepting import _Door
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    connected,
    running,
    signed_in,
    wait_until,
)
from tests.test_server import HOST, MESSAGE, Held, refused
from tests.test_server import no_hang as no_hang


def make_server(mail: Mail, **options: Any) -> Server:
    return Server(HOST, lambda peer: MemoryHandler(mail), **options)


@contextmanager
def draining(server: Server, timeout: float | None = None) -> Iterator[Future[bool]]:
    """Drain in another thread; begin when the listening socket is closed.  Close the server when left."""
    with ThreadPoolExecutor(1) as other:
        result = other.submit(server.drain, timeout)
        try:
            wait_until(lambda: server.socket.fileno() == -1)
            yield result
        finally:
            server.server_close()


def says_goodbye(client: Client) -> bool:
    """Quit, and close at once: the server would wait for that."""
    with closing(client):
        return client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "serving"])
def test_sessions_go_on_to_their_quit(stopped: bool) -> None:
    """Sessions read, delete and sign in as before; drain returns True when the last of them has ended."""
    mail, other_mail = Mail(MESSAGE, MESSAGE), Mail()
    mails = iter([mail, other_mail])
    server = Server(HOST, lambda peer: MemoryHandler(next(mails)))
    with running(server), signed_in(server) as client, connected(server) as other:
        assert other.line().startswith(b"+OK")
        assert client.ask(b"DELE 2").startswith(b"+OK")
        if stopped:  # as it is to be; else drain itself sees to it
            server.shutdown()
        with draining(server) as result:
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert client.lines() == MESSAGE + b".\r\n"
            assert client.ask(b"DELE 1").startswith(b"+OK")
            assert says_goodbye(client)
            other.sign_in()
            assert not result.done()
            assert says_goodbye(other)
            assert result.result(PATIENCE) is True
    assert ("delete_messages", [1, 2]) in mail.calls
    assert mail.count("unlock_maildrop") == other_mail.count("unlock_maildrop") == 1
    assert mail.errors == other_mail.errors == []


def test_new_connections_are_refused() -> None:
    """From drain on the port is nobody's, whether or not sessions are left: a proxy takes another server."""
    server = make_server(Mail())
    with running(server), signed_in(server) as client:
        server.shutdown()
        with draining(server) as result:
            assert refused(server)
            assert says_goodbye(client)
            assert result.result(PATIENCE)
            assert refused(server)


@pytest.mark.parametrize("served_before", [True, False], ids=["after serve_forever", "before serve_forever"])
def test_the_queue_is_served(served_before: bool) -> None:
    """Who was connected, but not accepted, when the server stopped, has a whole session, whatever it had sent."""
    server = make_server(Mail(MESSAGE))
    with server, ExitStack() as clients:
        if served_before:
            with ThreadPoolExecutor(1) as other:
                serving = other.submit(server.serve_forever)
                with connected(server) as first:
                    assert first.line().startswith(b"+OK")
                server.shutdown()
                serving.result(PATIENCE)
        waiting = [clients.enter_context(connected(server)) for _ in range(5)]
        waiting[0].send(b"USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n")
        with draining(server) as result:
            assert [line[:3] for line in waiting[0].rest().splitlines()] == [b"+OK"] * 5
            waiting[0].close()
            for client in waiting[1:]:
                assert client.line().startswith(b"+OK")
                client.sign_in()
                assert says_goodbye(client)
            assert result.result(PATIENCE)


@pytest.mark.parametrize("timeout", [0.1, 0])
def test_the_timeout(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the timeout drain returns False and has harmed nobody; server_close then ends the sessions and unlocks."""
    monkeypatch.setattr("popart.server_closing.SIGNAL_PAUSE", PATIENCE)
    mail = Mail(MESSAGE)
    server = make_server(mail)
    with running(server), signed_in(server) as client:
        server.shutdown()
        start = time.monotonic()
        assert server.drain(timeout) is False
        assert timeout <= time.monotonic() - start < PATIENCE / 2
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert mail.locked
        server.server_close()
        assert client.rest() == b""
    assert not mail.locked
    assert mail.count("unlock_maildrop") == 1
    assert not mail.count("delete_messages")


def test_the_end_of_a_session_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """drain returns as soon as the last session has ended: it does not wait until it looks for signals again."""
    monkeypatch.setattr("popart.server_closing.SIGNAL_PAUSE", 600.0)
    monkeypatch.setattr("popart.workers.SPARE_SECONDS", 600.0)
    server = make_server(Mail())
    with running(server), signed_in(server) as client, draining(server) as result:
        assert says_goodbye(client)
        assert result.result(PATIENCE) is True


def test_a_second_drain() -> None:
    """Who drained for too short a time may drain again."""
    server = make_server(Mail())
    with running(server), signed_in(server) as client:
        assert server.drain(0) is False
        with draining(server) as result:
            assert says_goodbye(client)
            assert result.result(PATIENCE) is True


def test_nothing_is_open() -> None:
    """With no session left drain returns at once: its timeout is no pause."""
    server = make_server(Mail())
    with running(server):
        with connected(server) as client:
            assert client.line().startswith(b"+OK")
            assert says_goodbye(client)
        start = time.monotonic()
        assert server.drain(PATIENCE) is True
        assert time.monotonic() - start < PATIENCE / 2
    with make_server(Mail()) as server:
        assert server.drain() is True


def test_it_stops_serving() -> None:
    """Where serve_forever has not returned, drain makes it."""
    server = make_server(Mail())
    with ThreadPoolExecutor(1) as other, server:
        serving = other.submit(server.serve_forever, poll_interval=60)
        with connected(server) as client:
            assert client.line().startswith(b"+OK")
            with draining(server) as result:
                assert serving.result(PATIENCE) is None
                assert says_goodbye(client)
                assert result.result(PATIENCE) is True


def test_it_ends_handle_request() -> None:
    """Who waits for a client returns, and is told of no timeout: no client will come."""

    class Noting(Server):
        timeouts = 0

        def handle_timeout(self) -> None:
            self.timeouts += 1

    with ThreadPoolExecutor() as other, Noting(HOST, lambda peer: MemoryHandler(Mail())) as server:
        handling = other.submit(server.handle_request)
        wait_until(lambda: bool(server._doors))
        assert server.drain() is True
        handling.result(PATIENCE)
        server.handle_request()
        for _ in range(2):
            server.serve_forever(60)
    assert server.timeouts == 0


def test_it_wakes_handle_request_when_nobody_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was woken as drain began, and waits once more, is woken again when the listening socket is closed."""
    waits = threading.Semaphore(0)
    wait = _Door.wait

    def count_and_wait(door: _Door, seconds: float | None) -> bool:
        waits.release()
        return wait(door, seconds)

    monkeypatch.setattr(_Door, "wait", count_and_wait)
    with ThreadPoolExecutor() as other, make_server(Mail()) as server:
        handling = other.submit(server.handle_request)
        assert waits.acquire(timeout=PATIENCE)
        monkeypatch.setattr(server, "_accept_queue", lambda deadline: waits.acquire(timeout=PATIENCE))
        assert server.drain() is True
        handling.result(PATIENCE)


def test_an_empty_queue_is_looked_at_once() -> None:
    """drain accepts until nobody is left, and then no more."""

    class Counting(Server):
        looks = 0

        def get_request(self) -> tuple[socket.socket, Any]:
            self.looks += 1
            return super().get_request()

    with Counting(HOST, lambda peer: MemoryHandler(Mail())) as server:
        assert server.drain() is True
    assert server.looks == 1


def test_it_waits_for_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """drain does not return before serve_forever, which wakes it.  Afterwards serve_forever returns at once."""
    monkeypatch.setattr("popart.accepting.SIGNAL_PAUSE", 600.0)
    monkeypatch.setattr("popart.workers.SPARE_SECONDS", 600.0)
    with make_server(Mail()) as server:
        held = Held(server, "service_actions")
        wait = server._changed.wait

        def let_go_and_wait(timeout: float | None = None) -> bool:
            held.go_on.set()
            return wait(timeout)

        with ThreadPoolExecutor(1) as other:
            serving = other.submit(server.serve_forever)
            try:
                with connected(server) as client:
                    assert held.entered.wait(PATIENCE)
                    client.send(b"QUIT\r\n")
                    assert client.rest().endswith(b"+OK goodbye\r\n")
                wait_until(lambda: not len(server._places))
                monkeypatch.setattr(server._changed, "wait", let_go_and_wait)
                assert server.drain(PATIENCE) and held.go_on.is_set() and not server._loops
                serving.result(PATIENCE)
                other.submit(server.serve_forever).result(PATIENCE)
            finally:
                held.go_on.set()
                server.server_close()


def test_a_session_has_ended_when_its_handler_is_closed() -> None:
    """A backend that still works for a client that has left counts: a process that ended now would cut it short."""
    mail = Mail()
    handler = ClosingHandler(mail)
    close = Held(handler, "close")
    server = Server(HOST, lambda peer: handler)
    with running(server):
        with signed_in(server):
            pass
        try:
            assert close.entered.wait(PATIENCE)
            assert server.drain(0.05) is False
        finally:
            close.go_on.set()
        assert server.drain(PATIENCE) is True
        assert mail.calls[-1] == ("close",)


def test_closed_while_it_drains() -> None:
    """A server that is closed need not be drained: drain, without a limit, returns."""
    server = make_server(Mail())
    with running(server), signed_in(server) as client, draining(server) as result:
        server.server_close()
        assert result.result(PATIENCE) is True
        assert client.rest() == b""


@pytest.mark.parametrize("wrapped", [True, False])
def test_tls(wrapped: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Connections in the queue have not shaken hands: they do, with a listening socket that is gone."""
    mail, other_mail = Mail(MESSAGE), Mail()
    mails = iter([mail, other_mail])
    server = Server(HOST, lambda peer: MemoryHandler(next(mails)), ssl_context=None if wrapped else server_context)
    if wrapped:
        server.socket = server_context.wrap_socket(server.socket, server_side=True)
    with running(server), signed_in(server, client_context) as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        server.shutdown()
        begin = Held(server, "finish_request")
        with socket.create_connection(server.server_address[:2], PATIENCE) as raw, draining(server) as result:
            begin.go_on.set()
            with client_context.wrap_socket(raw, server_hostname="localhost") as sock, closing(Client(sock)) as other:
                assert other.line().startswith(b"+OK")
                other.sign_in()
                assert says_goodbye(other)
            assert says_goodbye(client)
            assert result.result(PATIENCE)
    assert ("delete_messages", [1]) in mail.calls


def test_a_socket_that_is_shared() -> None:
    """Another server on the same listening socket goes on, and what still queues there has lost nothing."""
    with socket.create_server(HOST) as listener:
        old_mail, new_mail = Mail(), Mail()
        old = Server.from_socket(listener.dup(), lambda peer: MemoryHandler(old_mail))
        new = Server.from_socket(listener.dup(), lambda peer: MemoryHandler(new_mail))
        with running(old), signed_in(old) as client:
            old.shutdown()
            with draining(old) as result, connected(old) as waiting, running(new):
                with signed_in(new) as other:
                    assert waiting.line().startswith(b"+OK")
                    assert says_goodbye(other)
                assert says_goodbye(client)
                assert result.result(PATIENCE)
                old.server_close()
                with signed_in(new) as other:
                    assert says_goodbye(other)
                assert says_goodbye(waiting)
    assert (old_mail.count("lock_maildrop"), new_mail.count("lock_maildrop")) == (1, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="a process sends no signals on Windows")
def test_sigterm() -> None:
    """The way of a service: SIGTERM makes serve_forever return, and the main thread drains and closes."""
    mail = Mail(MESSAGE)
    server = make_server(mail)
    stopped = threading.Event()

    def visit() -> bool:
        with signed_in(server) as client:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            assert stopped.wait(PATIENCE)
            with connected(server) as late:
                drains.set()
                assert late.line().startswith(b"+OK")
                assert says_goodbye(late)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # somebody is impatient
            assert client.ask(b"DELE 1").startswith(b"+OK")
            return says_goodbye(client)

    drains = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
    try:
        with ThreadPoolExecutor(1) as other, server:
            visited = other.submit(visit)
            visited.add_done_callback(lambda _: server.shutdown())
            server.serve_forever(poll_interval=60)
            stopped.set()
            assert drains.wait(PATIENCE)
            assert server.drain(PATIENCE) is True
            server.server_close()
            assert visited.result(PATIENCE)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ("delete_messages", [1]) in mail.calls
    assert not mail.locked


def test_drain_ends_though_clients_go_on_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted while draining is bounded: no system's queue is longer than 65,535."""
    accepted = []
    with Server(HOST, lambda peer: None) as server:
        monkeypatch.setattr(server, "_accept_one", lambda: accepted.append(1))
        assert server.drain()
        assert len(accepted) == 65_535


def test_the_whole_queue_is_served() -> None:
    """All that wait in an inherited listener's queue are served, however long that is."""
    with socket.create_server(HOST, backlog=100) as listener, ExitStack() as clients:
        server = Server.from_socket(listener.dup(), lambda peer: MemoryHandler(Mail()))
        server.request_queue_size = 5
        with server:
            waiting = [clients.enter_context(connected(server)) for _ in range(50)]
            with draining(server) as result:
                for client in waiting:
                    assert client.line().startswith(b"+OK")
                    assert says_goodbye(client)
                    client.close()
                assert result.result(PATIENCE) is True


def test_a_shortage_is_no_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no descriptor is to be had those in the queue wait, and nobody is reset."""
    accept = socket.socket.accept
    failures = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]

    def short(sock: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "short")
        return accept(sock)

    server = make_server(Mail())
    with server, connected(server) as client, connected(server) as other:
        monkeypatch.setattr(socket.socket, "accept", short)
        with draining(server) as result:
            for waiting in (client, other):
                assert waiting.line().startswith(b"+OK")
                assert says_goodbye(waiting)
            assert result.result(PATIENCE) is True
    assert not failures


def test_lost_clients_are_no_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux accept tells of network errors, too: those behind such a client in the queue are served."""
    accept = socket.socket.accept
    failures = [errno.EPROTO, errno.EHOSTUNREACH, errno.ECONNABORTED]

    def losing(sock: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "lost")
        return accept(sock)

    server = make_server(Mail())
    with server, connected(server) as client:
        monkeypatch.setattr(socket.socket, "accept", losing)
        with draining(server) as result:
            assert client.line().startswith(b"+OK")
            assert says_goodbye(client)
            assert result.result(PATIENCE) is True
    assert not failures


def test_a_shortage_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not outlast the timeout."""
    server = make_server(Mail())

    def short(sock: socket.socket) -> Any:
        raise OSError(errno.EMFILE, "short")

    monkeypatch.setattr(socket.socket, "accept", short)
    with server:
        start = time.monotonic()
        assert server.drain(0.3) is True
        assert 0.3 <= time.monotonic() - start < PATIENCE / 2


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_timeout_without_end(timeout: float) -> None:
    """Infinity is no limit, as None is."""
    server = make_server(Mail())
    with running(server), signed_in(server) as client:
        with draining(server, timeout) as result:
            assert says_goodbye(client)
            assert result.result(PATIENCE) is True


def test_beside_server_close() -> None:
    """drain() in one thread and server_close() in another leave no thread, no lock and no error behind."""
    told: list[BaseException | None] = []

    class Telling(Server):
        def handle_error(self, request: Any, client_address: Any) -> None:
            told.append(sys.exc_info()[1])

    for round_ in range(100):
        mails = [Mail() for _ in range(4)]
        handlers = [*map(MemoryHandler, mails)]
        threads = threading.active_count()
        server = Telling(HOST, lambda peer, handlers=handlers: handlers.pop())
        with ExitStack() as clients:
            for _ in mails:
                client = clients.enter_context(connected(server))
                client.send(b"USER alice\r\nPASS secret\r\n")
            with ThreadPoolExecutor(2) as others:
                drained = others.submit(server.drain)
                if round_ % 3:
                    threading.Event().wait(round_ % 3 / 1000)
                others.submit(server.server_close).result(PATIENCE)
                drained.result(PATIENCE)
            assert threading.active_count() == threads
            assert not any(mail.locked for mail in mails)
    assert told == []
