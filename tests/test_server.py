"""The server: construction, accepting, limits, closing.  All over real sockets."""

from __future__ import annotations

import contextvars
import errno
import gc
import inspect
import re
import select
import selectors
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

import pytest

import popart
import popart.connection
import popart.workers
from popart import system
from popart.accepting import AcceptingServer
from popart.addresses import peer_of
from popart.command_deadlines import Closing, Place
from popart.options import LimitOptions, SocketOptions
from popart.server import Server
from popart.testing import MailServer
from popart.testing.server import MailServerOptions
from popart.workers import Workers
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    open_descriptors,
    running,
    signed_in,
    wait_until,
)

HOST = ("127.0.0.1", 0)
MESSAGE = b"Subject: hello\r\n\r\nHow do you do?\r\n"


class Held:
    """Stands in for a method, and stops in it until it is let go."""

    def __init__(self, owner: Any, name: str) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self._method = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        return self._method(*arguments)


class TalkingServer(QuickServer):
    """Keeps what `handle_error` is told of."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.told: list[BaseException | None] = []
        super().__init__(*arguments, **options)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.told.append(sys.exc_info()[1])
        super().handle_error(request, client_address)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Let a test that hangs fail, as most of these are about waiting for threads."""

    def fail(*_: object) -> None:
        raise AssertionError("it hangs")

    if sys.platform == "win32":  # it has no alarm
        yield
        return
    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 6 * PATIENCE, 1)  # again and again, for the clean-up may hang too
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def refused(server: Server) -> bool:
    try:
        socket.create_connection(server.server_address[:2], timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


# Construction.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(
            ("hostname", value)
            for value in ["", "a b", "a@b", "<a>", "a\r\n", "a\n", "a..b", "\xf6", "a\0", "a" * 256, 5]
        ),
        *(("implementation", value) for value in ["", " a", "a ", "a\r\nb", "a\n", "\xf6", "a\0", "a" * 401, None]),
        *(("expire", value) for value in ["", "never", "-1", "1.5", "NEVER\n", "3 users", "\u0663", "0\r\nX", 30]),
        *(("timeout", value) for value in [599.9, 0, -1, float("nan"), float("inf"), float("-inf"), 1e9]),
    ],
)
def test_bad_values_are_refused_before_anything_is_bound(option: str, value: Any) -> None:
    """What cannot stand on the wire, or breaks RFC 1939 section 3's ten minutes, is a ValueError; no socket is left."""
    with socket.create_server(HOST) as other, pytest.raises(ValueError):
        # The port is taken: had it been tried, that would be the error.
        popart.Server(other.getsockname(), lambda peer: None, **{option: value})


def test_values_that_are_taken() -> None:
    """A timeout may be a day, a limit of time infinite, and the key of made-up salts is the one that was given."""

    class Patient(popart.Server):
        login_timeout = handshake_timeout = shutdown_grace = float("inf")

    with Patient(HOST, lambda peer: None, timeout=86_400, scram_decoy_key=b"0123456789abcdef") as server:
        assert (server.command_timeout, server.scram_decoy_key) == (86_400.0, b"0123456789abcdef")


def test_defaults() -> None:
    """A server that is given an address and a factory alone is the one that the documents describe."""
    with popart.Server(HOST, lambda peer: None) as server:
        assert (server.command_timeout, server.implementation, server.expire) == (600.0, "popart", "NEVER")
        assert (server.ssl_context, server.scram_decoy_key, server.processor) == (None, None, None)
        assert (server.max_connections, server.max_connections_per_peer, server.max_messages) == (
            2000,
            1000,
            10_000_000,
        )
        assert (server.max_bad_commands, server.max_failed_logins, server.shutdown_grace) == (50, 5, 5)
        assert (server.minimum_timeout, server.handshake_timeout, server.login_timeout) == (600, 30, 180)
        assert server.allow_cleartext
        assert not (server.apop or server.require_tls or server.proxy_protocol or server.reuse_port)
        assert list(map(str, server.trusted_proxies)) == ["127.0.0.0/8", "::1/128"]


def test_a_subclass_with_other_bases() -> None:
    """One of them may want to know of its subclasses, too."""
    told: list[str] = []

    class Registry:
        def __init_subclass__(cls, name: str) -> None:
            told.append(name)

    type("Registered", (Server, Registry), {}, name="pop3")
    assert told == ["pop3"]


def test_how_a_connection_is_held() -> None:
    """By a thread that outlives the main one, without Nagle's delay, and with a deadline for sign-in.

    Who has signed in gets more time while it still takes what was sent before.
    """
    threads = []

    class Noting(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            threads.append(threading.current_thread())

    with running(popart.Server(HOST, lambda peer: Noting(Mail()))) as server, connected(server) as client:
        assert client.line().startswith(b"+OK")
        (place,) = server._places.all()
        wait_until(lambda: place.idle)
        assert 170 < place.login_deadline - time.monotonic() <= 180
        assert place._wait[1] == 0.0 and place.deadline <= place.login_deadline
        assert place.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.sign_in()
        wait_until(lambda: place.idle and place.signed_in())
        assert place._wait[1] == 600.0 and not threads[0].daemon


def test_who_says_nothing_is_no_error() -> None:
    """Neither the handler nor the server is told of a client that came and went."""
    handler = ClosingHandler(Mail())
    server = TalkingServer(HOST, lambda peer: handler)
    with running(server):
        with connected(server) as client:
            assert client.line().startswith(b"+OK")
        assert handler.closed.wait(PATIENCE)
    assert handler.mail.errors == [] == server.told


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"proxy_protocol": True}, b"-ERR [SYS/TEMP] too many connections, please try again later\r\n"),
        ({"trusted_proxies": []}, b"-ERR [SYS/TEMP] too many connections, please try again later\r\n"),
        ({"proxy_protocol": True, "trusted_proxies": []}, b""),
    ],
)
def test_who_reads_that_there_is_no_place(options: Any, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody, but not who comes past the proxy."""
    with running(QuickServer(HOST, lambda peer: None, **options)) as server:
        monkeypatch.setattr(server._places, "admit", lambda *client, address_known: None)
        with connected(server) as client:
            assert client.rest() == answer


def test_who_comes_as_the_server_closes() -> None:
    """Such a client does not read of too many connections."""

    class Closing(QuickServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            self._closing.begun = True
            return True

    with Closing(HOST, lambda peer: None) as server, connected(server) as client:
        server.handle_request()
        assert client.rest() == b"-ERR [SYS/TEMP] the server closes\r\n"


def test_a_shortage_once_there_is_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads of it, and its place is free again."""
    with running(QuickServer(HOST, lambda peer: None)) as server:
        admit = server._places.admit

        def admit_and_fail(*client: Any, address_known: bool) -> None:
            admit(*client, address_known=address_known)
            raise MemoryError

        monkeypatch.setattr(server._places, "admit", admit_and_fail)
        with connected(server) as client:
            assert client.rest() == b"-ERR [SYS/TEMP] short of resources, please try again later\r\n"
        assert not len(server._places)


def test_a_failure_once_there_is_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread holds the connection all the same."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        take = server._workers.take

        def take_and_fail(place: Place) -> None:
            take(place)
            wait_until(lambda: place.held is True)
            raise RuntimeError

        monkeypatch.setattr(server._workers, "take", take_and_fail)
        with signed_in(server) as client:
            assert client.ask(b"QUIT").startswith(b"+OK")


def test_a_refusal_is_no_reset() -> None:
    """It takes what the client has said already: a system resets a connection that is closed with unread input."""
    with socket.create_server(HOST) as listening, socket.create_connection(listening.getsockname(), PATIENCE) as client:
        client.sendall(b"CAPA\r\n")
        accepted, _ = listening.accept()
        with accepted:
            assert select.select([accepted], [], [], PATIENCE)[0]
            popart.connection.refuse(accepted, "no")
        assert client.recv(100) == b"-ERR [SYS/TEMP] no\r\n" and client.recv(100) == b""


def test_a_port_is_free_at_once() -> None:
    """A server that is started again gets its port, though connections of the one before linger in the system."""
    with running(popart.Server(HOST, lambda peer: MemoryHandler(Mail()))) as server, signed_in(server) as client:
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
    with popart.Server(server.server_address[:2], lambda peer: None):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    "limit", ["max_connections", "max_connections_per_peer", "max_bad_commands", "max_failed_logins", "max_messages"]
)
def test_a_limit_of_nothing(limit: str) -> None:
    """A count may be 0, and None switches it off; below 0 it is a mistake."""
    for value in (0, None):
        type("Limited", (Server,), {limit: value})(HOST, lambda peer: None).server_close()
    with pytest.raises(ValueError, match=limit):
        type("Limited", (Server,), {limit: -1})(HOST, lambda peer: None)


def test_the_longest_names() -> None:
    """A host name may have 255 characters, and CAPA's line 400 of the implementation's name."""
    names: dict[str, Any] = {"hostname": 255 * "a", "implementation": 400 * "a"}
    with popart.Server(HOST, lambda peer: None, **names) as server:
        assert {"hostname": server.hostname, "implementation": server.implementation} == names


def test_a_client_context_or_a_handler_for_a_factory_is_refused() -> None:
    """Mistakes that would otherwise turn each client away without a word are a ValueError."""
    with pytest.raises(ValueError, match="CLIENT_AUTH"):
        popart.Server(HOST, lambda peer: None, ssl_context=ssl.create_default_context())
    with pytest.raises(ValueError, match="on_new_connection"):
        popart.Server(HOST, MemoryHandler(Mail()))  # type: ignore[arg-type]


def test_intervals_are_those_of_socketserver() -> None:
    """Whoever knows `socketserver` need not look up how often service_actions() is called."""
    ours, theirs = (inspect.signature(kind.serve_forever) for kind in (Server, socketserver.BaseServer))
    assert ours.parameters["poll_interval"].default == theirs.parameters["poll_interval"].default


def test_a_strange_machine_name_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without *hostname*, a machine whose own name cannot stand in a timestamp is called localhost."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Bob's <box>")
    with popart.Server(HOST, lambda peer: None) as server:
        assert server.hostname == "localhost"


def test_a_port_in_use_is_an_oserror() -> None:
    """An address that is taken is an OSError, and no descriptor is left behind."""
    with socket.create_server(HOST) as other, pytest.raises(OSError) as caught:
        popart.Server(other.getsockname(), lambda peer: None)
    assert caught.value.errno == errno.EADDRINUSE


def test_without_bind_and_activate() -> None:
    """bind_and_activate=False leaves both to the caller, as in socketserver."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)), bind_and_activate=False)
    assert system.bound_address(server.socket) is None
    server.server_bind()
    server.server_activate()
    with running(server), signed_in(server) as client:
        assert client.ask(b"STAT") == b"+OK 1 34\r\n"


def test_ipv6() -> None:
    """A host with a colon is an IPv6 address."""
    peers: list[Any] = []
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running(QuickServer(("::1", 0), peers.append)) as server, connected(server) as client:
        assert client.line().startswith(b"-ERR")
    assert peers[0][0] == "::1"


# Serving.


@pytest.mark.parametrize("served_before", [False, True])
def test_handle_request_serves_one_connection(served_before: bool) -> None:
    """handle_request() waits for one client and accepts it, as in socketserver, also after serve_forever()."""
    with QuickServer(HOST, lambda peer: MemoryHandler(Mail())) as server, ThreadPoolExecutor() as others:
        if served_before:
            serving = others.submit(server.serve_forever)
            with signed_in(server):
                server.shutdown()
            serving.result(PATIENCE)
        done = others.submit(server.handle_request)
        assert not wait([done], 0.1).done
        with signed_in(server) as client:
            done.result(PATIENCE)
            assert client.ask(b"QUIT").startswith(b"+OK")


def test_no_loop_in_a_shortage_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened to wait for clients is closed when the rest of it cannot be had."""

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with QuickServer(HOST, lambda peer: None) as server:
        with monkeypatch.context() as patch:
            patch.setattr(selectors.DefaultSelector, "register", fail)
            before = open_descriptors()
            with pytest.raises(OSError):
                server.serve_forever()
            assert open_descriptors() == before


def test_serving_again_after_shutdown() -> None:
    """shutdown() ends serve_forever(), not the sessions; serve_forever() may be called again."""
    with QuickServer(HOST, lambda peer: MemoryHandler(Mail())) as server, ThreadPoolExecutor() as others:
        serving = others.submit(server.serve_forever)
        with signed_in(server) as client:
            server.shutdown()
            serving.result(PATIENCE)
            assert client.ask(b"NOOP").startswith(b"+OK")
            serving = others.submit(server.serve_forever)
            with connected(server) as second:
                assert second.line().startswith(b"+OK")
            server.shutdown()
            serving.result(PATIENCE)


def test_shutdown_before_serve_forever() -> None:
    """shutdown() before serve_forever() returns, and makes that return; stock socketserver hangs in it."""
    with QuickServer(HOST, lambda peer: None) as server:
        server.shutdown()
        server.shutdown()
        server.serve_forever()


@pytest.mark.parametrize("end", ["shutdown", "server_close"])
def test_two_loops_end_together(end: str) -> None:
    """Two threads in serve_forever() both return, and nobody who ends them is told so earlier."""
    with ThreadPoolExecutor() as others, QuickServer(HOST, lambda peer: None) as server:
        loops = [others.submit(server.serve_forever, 60) for _ in range(2)]
        wait_until(lambda: len(server._loops) == 2)
        getattr(server, end)()
        assert not server._loops
        for loop in loops:
            loop.result(PATIENCE)


def test_the_poll_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is half a second, as in socketserver."""
    seen: list[float] = []
    monkeypatch.setattr(AcceptingServer, "serve_forever", lambda server, poll_interval: seen.append(poll_interval))
    with QuickServer(HOST, lambda peer: None) as server:
        server.serve_forever()
    assert seen == [0.5]


@pytest.mark.parametrize("end", ["shutdown", "server_close"])
def test_nobody_is_accepted_after_the_end(end: str) -> None:
    """If a hook ends the loop, a client that waits behind this one stays in the queue."""
    accepted: list[Any] = []

    class Ending(QuickServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            accepted.append(client_address)
            getattr(self, end)()
            return False

    with Ending(HOST, lambda peer: None) as server, connected(server), connected(server):
        server.serve_forever()
        assert len(accepted) == 1


def test_a_door_is_knocked_at_without_end() -> None:
    """Whoever wakes the accepting thread never waits for it, and nothing is left of a door that was used."""
    with QuickServer(HOST, lambda peer: None) as server:
        with server._door() as door:
            for _ in range(10_000):
                server._knock()
            assert door.wait(None)
        assert not server._doors


def test_who_wakes_handle_request_does_not_prolong_it() -> None:
    """It waits for ``timeout`` seconds in all, however often it looks for a client in vain."""
    timed_out = threading.Event()

    class Noting(QuickServer):
        timeout = 0.2

        def handle_timeout(self) -> None:
            timed_out.set()

    with ThreadPoolExecutor() as others, Noting(HOST, lambda peer: None) as server:
        handling = others.submit(server.handle_request)
        deadline = time.monotonic() + PATIENCE
        while not timed_out.wait(0.01) and time.monotonic() < deadline:
            server._knock()
        assert timed_out.is_set()
        handling.result(PATIENCE)


@pytest.mark.parametrize("end", ["shutdown", "server_close"])
def test_ended_by_its_own_thread(end: str) -> None:
    """shutdown() and server_close() called by serve_forever's own thread do not wait for themselves."""

    class OwnThread(QuickServer):
        def service_actions(self) -> None:
            getattr(self, end)()

    with OwnThread(HOST, lambda peer: None) as server:
        server.serve_forever(poll_interval=0.01)


def test_one_thread_for_all() -> None:
    """The factory and every method of the handler run in the connection's own thread."""
    seen: set[threading.Thread] = set()

    class Noting(MemoryHandler):
        def __getattribute__(self, name: str) -> Any:
            seen.add(threading.current_thread())
            return super().__getattribute__(name)

    with running(QuickServer(HOST, lambda peer: Noting(Mail(MESSAGE)))) as server:
        before = threading.enumerate()
        with signed_in(server) as client:
            client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
            client.rest()
    assert len(seen) == 1
    assert seen.isdisjoint(before)


def test_one_watchdog_for_all() -> None:
    """Threads that accept at the same moment start one watchdog: none is left when the server has closed."""
    for _ in range(50):
        threads = threading.active_count()
        with QuickServer(HOST, lambda peer: MemoryHandler(Mail())) as server, ExitStack() as stack:
            others = stack.enter_context(ThreadPoolExecutor(4))
            accepting = [others.submit(server.handle_request) for _ in range(4)]
            for _ in range(4):
                assert stack.enter_context(connected(server)).line().startswith(b"+OK")
            wait(accepting)
            assert sum("_watch" in thread.name for thread in threading.enumerate()) == 1
            others.shutdown()
            server.server_close()
            assert threading.active_count() == threads


def test_a_close_request_that_raises_prints_nothing() -> None:
    """Whatever a subclass's own close_request() raises at the end of a session stays in there (promise 6)."""
    closed: list[Any] = []

    class Failing(QuickServer):
        def close_request(self, request: Any) -> None:
            super().close_request(request)
            closed.append(request)
            raise OSError("it is gone already")

    with running(Failing(HOST, lambda peer: MemoryHandler(Mail()))) as server, signed_in(server) as client:
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
        wait_until(lambda: len(closed) == 1)


def test_what_is_no_handler_is_not_closed() -> None:
    """A factory that returns something else by mistake, and the same again and again, finds it as it was."""
    closed: list[None] = []

    class Pool:
        def close(self) -> None:
            closed.append(None)

    pool: Any = Pool()
    with running(TalkingServer(HOST, lambda peer: pool)) as server, connected(server) as client:
        assert client.rest().startswith(b"-ERR [SYS/TEMP]")
    assert isinstance(server, TalkingServer)
    assert [type(error) for error in server.told] == [popart.HandlerError] and not closed


# The factory.


def refuse(error: BaseException) -> Callable[[Any], None]:
    def factory(peer: Any) -> None:
        raise error

    return factory


def unreadable() -> popart.ReportableError:
    """Make a refusal whose text is none."""
    error = popart.ReportableError("no")
    error.text = 5  # type: ignore[assignment]
    return error


INTERNAL = rb"-ERR \[SYS/TEMP\] internal error, please try again later"


@pytest.mark.parametrize(
    ("factory", "answer", "told"),
    [
        (lambda peer: None, rb"-ERR connection refused", None),
        (refuse(popart.ReportableError("not\r\ntoday")), rb"-ERR not  today", None),
        (refuse(popart.ReportableError("no", code="SYS/PERM")), rb"-ERR \[SYS/PERM\] no", None),
        (refuse(unreadable()), INTERNAL, AttributeError),
        (refuse(OSError("the password is hunter2")), INTERNAL, OSError),
        (refuse(ConnectionResetError("by the database")), INTERNAL, ConnectionResetError),
        (refuse(SystemExit(3)), INTERNAL, SystemExit),
        (refuse(KeyboardInterrupt()), INTERNAL, KeyboardInterrupt),
    ],
    ids=["none", "reportable", "code", "no text", "error", "reset", "exit", "interrupt"],
)
def test_clients_turned_away(factory: Callable[[Any], None], answer: bytes, told: type[BaseException] | None) -> None:
    """A factory turns a client away in one line; its exceptions go to handle_error alone, and nothing is printed."""
    with running(TalkingServer(HOST, factory)) as server:
        for _ in range(2):
            with connected(server) as client:
                assert re.fullmatch(answer + b"\r\n", client.rest())
    assert isinstance(server, TalkingServer)
    assert [type(error) for error in server.told] == [told] * 2 * bool(told)


def test_verify_request_decides() -> None:
    """socketserver's hook turns clients away unheard; if it fails, handle_error is told and the next is served."""
    answers: list[bool | Exception] = [False, OSError("no database"), True]

    class Verifying(TalkingServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    with running(Verifying(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        for _ in range(2):
            with connected(server) as client:
                assert client.rest() == b""
        with signed_in(server):
            pass
    assert isinstance(server, Verifying)
    assert [type(error) for error in server.told] == [OSError]


def test_a_signal_as_a_client_is_accepted() -> None:
    """If a signal handler raises before the client has a place, its connection is closed, and the exception goes on."""

    class Interrupted(Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            raise KeyboardInterrupt

    with Interrupted(HOST, lambda peer: None) as server, connected(server) as client:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            server.handle_request()
        assert client.rest() == b"", interrupt  # which keeps the connection from being closed as nobody's


def test_spare_threads_serve_again_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished thread serves the next client, finds nothing of the last one's context, and ends if none comes."""
    found: list[tuple[threading.Thread, str]] = []
    name = contextvars.ContextVar("name", default="nobody")

    class Remembering(ClosingHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            found.append((threading.current_thread(), name.get()))
            name.set(username)

    with running(QuickServer(HOST, lambda peer: Remembering(Mail()))) as server:
        for _ in range(2):
            with signed_in(server) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
                assert client.rest() == b""
            wait_until(lambda: server._workers._spare == 1)
        assert found == [(found[0][0], "nobody")] * 2
        monkeypatch.setattr(popart.workers, "SPARE_SECONDS", 0.01)
        with signed_in(server) as client:
            client.ask(b"QUIT")
        wait_until(lambda: server._workers._spare == 0)
        found[0][0].join(PATIENCE)
        assert not found[0][0].is_alive()
        with signed_in(server):
            pass


def test_finished_threads_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs for years does not keep what is left of its threads."""
    monkeypatch.setattr(popart.workers, "SPARE_SECONDS", 0.01)
    threads: list[weakref.ref[threading.Thread]] = []

    class Noting(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            threads.append(weakref.ref(threading.current_thread()))

    def has_ended() -> bool:
        thread = threads[-1]()
        return thread is None or not thread.is_alive()

    with running(QuickServer(HOST, lambda peer: Noting(Mail()))) as server:
        for _ in range(5):
            with signed_in(server) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
            wait_until(has_ended)
        gc.collect()
        assert not any(thread() for thread in threads[:-1])


def test_a_handler_is_let_go_when_its_session_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the thread, which may wait for the next client, nor an idle server keeps it or its maildrop."""
    monkeypatch.setattr(popart.workers, "SPARE_SECONDS", 1000.0)
    handlers: list[weakref.ref[MemoryHandler]] = []

    def make_handler(peer: Any) -> MemoryHandler:
        handler = MemoryHandler(Mail(MESSAGE))
        handlers.append(weakref.ref(handler))
        return handler

    def is_gone() -> bool:
        gc.collect()
        return handlers[0]() is None

    with running(QuickServer(HOST, make_handler)) as server:
        with signed_in(server) as client:
            assert client.ask(b"QUIT").startswith(b"+OK")
        wait_until(is_gone)


def test_a_signal_while_a_thread_is_chosen() -> None:
    """What a signal handler raises then goes on, and no thread takes up the connection any more."""

    class Interrupted(AbstractContextManager[bool]):
        def __init__(self) -> None:
            self.entered = 0

        def __enter__(self) -> bool:
            self.entered += 1
            if self.entered == 1:
                raise KeyboardInterrupt
            return True

        def __exit__(self, *error: object) -> None: ...

    workers = Workers(lambda place: None, Interrupted(), threading.Condition(), daemon=False)
    with socket.socket() as sock:
        place = Place(sock, ("192.0.2.1", 1), Closing())
        with pytest.raises(KeyboardInterrupt):
            workers.take(place)
    assert place.held is False and workers.all_done


def test_a_connection_as_the_spare_threads_leave() -> None:
    """One that comes just then gets a thread of its own: nobody waits for it any more."""
    served: list[int] = []
    lock = threading.RLock()
    workers = Workers(lambda place: served.append(place.client_address), lock, threading.Condition(lock), daemon=False)
    with socket.socket() as sock:
        workers.take(Place(sock, 1, Closing()))
        wait_until(lambda: workers._spare == 1)
        workers.dismiss()
        workers.take(Place(sock, 2, Closing()))
        wait_until(lambda: served == [1, 2] and workers.all_done)
    workers.join()


def test_a_connection_as_a_spare_thread_gives_up() -> None:
    """A thread whose time to wait is over just as it is given a connection holds that connection."""
    given = threading.Event()

    class Queue(SimpleQueue[Any]):
        def put(self, *arguments: Any) -> None:
            super().put(*arguments)
            given.set()

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if timeout is not None and not given.is_set():
                assert given.wait(PATIENCE)
                raise Empty
            return super().get(block, timeout)

    served: list[int] = []
    lock = threading.RLock()
    workers = Workers(lambda place: served.append(place.client_address), lock, threading.Condition(lock), daemon=False)
    workers._queue = Queue()
    with socket.socket() as sock:
        workers.take(Place(sock, 1, Closing()))
        wait_until(lambda: workers._spare == 1)
        workers.take(Place(sock, 2, Closing()))
        wait_until(lambda: served == [1, 2])
        workers.dismiss()
        wait_until(lambda: workers.all_done)
    workers.join()


def test_a_signal_as_a_thread_holds_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a signal handler raises where the thread was started, closing waits for that thread all the same."""
    held, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        assert held.wait(PATIENCE)
        raise KeyboardInterrupt

    def hold(place: Place) -> None:
        held.set()
        assert go_on.wait(PATIENCE)

    lock = threading.RLock()
    workers = Workers(hold, lock, threading.Condition(lock), daemon=False)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with socket.socket() as sock:
        with pytest.raises(KeyboardInterrupt):
            workers.take(Place(sock, 1, Closing()))
        assert not workers.all_done
        workers.dismiss()
        go_on.set()
        wait_until(lambda: workers.all_done)
    workers.join()


def test_closing_waits_for_the_last_steps_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that no longer counts as one at work may still run: it is joined all the same."""
    threads, last_steps, go_on = [], threading.Event(), threading.Event()
    join = threading.Thread.join

    def let_go_and_join(thread: threading.Thread, timeout: float | None = None) -> None:
        go_on.set()
        join(thread, timeout)

    class Changed(threading.Condition):
        def notify_all(self) -> None:
            threads.append(threading.current_thread())
            last_steps.set()
            go_on.wait(PATIENCE)

    workers = Workers(lambda place: None, nullcontext(True), Changed(), daemon=False)
    workers.dismiss()
    with socket.socket() as sock:
        workers.take(Place(sock, ("192.0.2.1", 1), Closing()))
        assert last_steps.wait(PATIENCE) and workers.all_done
        monkeypatch.setattr(threading.Thread, "join", let_go_and_join)
        workers.join()
        was_alive = threads[0].is_alive()
        let_go_and_join(threads[0])
    assert not was_alive


# The watch over deadlines.


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, 0.5),
        ({"handshake_timeout": 1.0}, 0.25),
        ({"login_timeout": 1.0}, 0.25),
        ({"handshake_timeout": None, "login_timeout": None}, 0.5),
        ({"login_timeout": 0.001}, 0.01),
        ({"login_timeout": 0}, 0.01),
    ],
)
def test_a_look_comes_in_time(limits: dict[str, float | None], seconds: float) -> None:
    """Who is late is cut within a quarter of the smallest limit, of which one is 2 seconds; there is no busy loop."""
    with type("Limited", (Server,), limits)(HOST, lambda peer: None) as server:
        assert server._watch_pause() == seconds


def test_all_late_connections_are_cut_at_once() -> None:
    """Each round cuts whoever is late, not one client a round."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    server.login_timeout = 1.0
    with running(server), ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(40)]
        began = time.monotonic()
        for client in clients:
            assert client.line().startswith(b"+OK") and client.rest() == b""
        assert time.monotonic() - began < 5  # one a round would take ten


@pytest.mark.parametrize("limit", ["timeout", "login_timeout", "handshake_timeout"])
def test_the_shortest_deadline_says_how_often_they_are_looked_at(limit: str, server_context: ssl.SSLContext) -> None:
    """Nobody is late by more than a quarter of the smallest limit, whichever it is."""
    server = QuickServer(
        HOST,
        lambda peer: MemoryHandler(Mail()),
        timeout=0.04 if limit == "timeout" else 600,
        ssl_context=server_context if limit == "handshake_timeout" else None,
    )
    if limit != "timeout":
        setattr(server, limit, 0.04)
    with running(server):
        seconds = []
        for _ in range(20):
            began = time.monotonic()
            with connected(server) as client:
                assert client.rest() in (b"", b"+OK POP3 server ready\r\n")
            seconds.append(time.monotonic() - began)
        assert median(seconds) < 0.25  # by the next limit it would be half a second


def test_who_stays_after_quit_is_cut_after_two_seconds() -> None:
    """A client that keeps its end of the connection open after the last reply keeps its place for little longer than
    two seconds, with the limits as they are.
    """
    server = Server(HOST, lambda peer: MemoryHandler(Mail()))
    server.max_connections_per_peer = 1

    def is_welcome() -> bool:
        with connected(server) as client:
            return client.line().startswith(b"+OK")

    with running(server), signed_in(server) as client:
        threading.Event().wait(0.1)  # the rounds began with the connection: this is between two of them
        assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
        began = time.monotonic()
        assert not is_welcome()
        wait_until(is_welcome)
        assert time.monotonic() - began < 3.5


# Shortage.


def test_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no thread can start, the client is told to come back; the server and its server_close() are unharmed."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def is_refused_three_times(server: popart.Server) -> None:
        monkeypatch.setattr(threading.Thread, "start", fail)
        for _ in range(3):
            with connected(server) as client:
                assert client.rest() == b"-ERR [SYS/TEMP] short of resources, please try again later\r\n"
        monkeypatch.setattr(threading.Thread, "start", start)

    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        server.max_connections = 2
        is_refused_three_times(server)
        with signed_in(server) as client:  # its thread is not free for the others
            is_refused_three_times(server)
            assert client.ask(b"QUIT").startswith(b"+OK")
        server.server_close()


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EINVAL", "EPERM"])
def test_accept_does_not_spin(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """While the system is short of descriptors or memory, or accepts nobody for another reason, accept is tried a few
    times a second, and then goes on."""
    accept = socket.socket.accept
    failures = 0

    def short(sock: socket.socket) -> Any:
        nonlocal failures
        if sock is not server.socket:
            return accept(sock)
        failures += 1
        raise OSError(getattr(errno, code), "short")

    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        monkeypatch.setattr(socket.socket, "accept", short)
        with connected(server) as client:
            wait_until(lambda: failures > 0)
            began = time.monotonic()
            client.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            assert failures < 20 * max(1.0, time.monotonic() - began)
            monkeypatch.setattr(socket.socket, "accept", accept)
            client.sock.settimeout(PATIENCE)
            assert client.sock.recv(3) == b"+OK"


def test_a_hundred_at_a_time() -> None:
    """The loop looks at other things when it has accepted all that wait, or a hundred."""
    accepted: list[int] = []

    class Counting(QuickServer):
        waiting = 120

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.waiting -= 1
            return False

        def service_actions(self) -> None:
            accepted.append(120 - self.waiting)
            if not self.waiting:
                self.shutdown()

    with ExitStack() as stack:
        server = stack.enter_context(Counting(HOST, lambda peer: None))
        for _ in range(120):
            stack.enter_context(socket.create_connection(server.server_address[:2], timeout=PATIENCE))
        server.serve_forever()
    assert accepted[0] == 100


def test_clients_gone_before_they_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """ECONNABORTED loses that connection only, and a socket with nobody left to accept is not waited for."""
    accept = socket.socket.accept

    def aborted(sock: socket.socket) -> Any:
        if sock is not server.socket:  # it makes a pair of sockets, on Windows
            return accept(sock)
        monkeypatch.setattr(socket.socket, "accept", accept)
        accept(sock)[0].close()
        raise ConnectionAbortedError(errno.ECONNABORTED, "aborted")

    def robbed(sock: socket.socket) -> Any:
        monkeypatch.setattr(socket.socket, "accept", accept)
        accept(sock)[0].close()
        return accept(sock)

    with running(TalkingServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        for trouble in (aborted, robbed):
            monkeypatch.setattr(socket.socket, "accept", trouble)
            with connected(server) as client:
                assert client.rest() == b""
    assert isinstance(server, TalkingServer)
    assert server.told == []


SHORTAGE = """
    import resource, threading, time
    import popart

    done = threading.Event()
    server = popart.Server(("127.0.0.1", 0), lambda peer: None if done.wait() else None)
    threading.Thread(target=server.serve_forever).start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    print(server.server_address[1], flush=True)
    input()
    before = time.process_time()
    time.sleep(0.5)
    print(time.process_time() - before, flush=True)
    done.set()
    input()
    server.server_close()
"""


FORGOTTEN = """
    import poplib, threading
    import popart.workers
    from tests.conftest import Mail, MemoryHandler, QuickServer

    popart.workers.SPARE_SECONDS = 0
    server = QuickServer(("127.0.0.1", 0), lambda peer: MemoryHandler(Mail()))
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    poplib.POP3(*server.server_address, timeout=20).quit()
    thread.join()
"""


def test_a_server_that_nobody_closes() -> None:
    """A program whose sessions are over can end: the watchdog does not keep it."""
    code = [sys.executable, "-c", textwrap.dedent(FORGOTTEN)]
    subprocess.run(code, timeout=PATIENCE, check=True, cwd=Path(popart.__file__).parents[1])


def test_a_real_shortage_of_descriptors() -> None:
    """Out of descriptors the server idles, and once some are free again everybody who waited is served."""
    pytest.importorskip("resource")
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SHORTAGE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=Path(popart.__file__).parents[1],
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        address = ("127.0.0.1", int(child.stdout.readline()))
        clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(40)]
        child.stdin.write("\n")
        assert float(child.stdout.readline()) < 0.1
        for client in clients:
            assert client.recv(100) == b"-ERR connection refused\r\n"
            client.close()
        child.stdin.write("\n")
    assert child.returncode == 0


# Limits.


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:2", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::8000:0:0:1", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 1, 0, 0), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("192.0.2.1", 1), True),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2%eth0", 1, 0, 2), True),
        ("", b"", True),
    ],
)
def test_what_counts_as_one_peer(one: Any, other: Any, same: bool) -> None:
    """A peer is an IPv4 address, mapped into IPv6 or not, or an IPv6 /64, of which one client owns all addresses."""
    assert (peer_of(one) == peer_of(other)) is same


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_peer"])
def test_one_connection_too_many(limit: str) -> None:
    """Past a limit a connection is refused in one line; when another has ended there is room again."""
    with QuickServer(HOST, lambda peer: MemoryHandler(Mail())) as server:
        setattr(server, limit, 2)

        def greeting() -> bytes:
            with connected(server) as client:
                return client.line()

        with running(server), signed_in(server) as first, signed_in(server):
            for _ in range(3):
                assert greeting() == b"-ERR [SYS/TEMP] too many connections, please try again later\r\n"
            with socket.create_connection(server.server_address[:2], PATIENCE, ("127.0.0.2", 0)) as elsewhere:
                assert elsewhere.recv(3) == (b"-ER" if limit == "max_connections" else b"+OK")
            assert first.ask(b"QUIT").startswith(b"+OK")
            first.close()
            wait_until(lambda: greeting().startswith(b"+OK"))


def test_limits_over_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Over TLS a connection too many is closed before the handshake."""
    with QuickServer(HOST, lambda peer: MemoryHandler(Mail()), ssl_context=server_context) as server:
        server.max_connections = 1
        with running(server), signed_in(server, client_context), connected(server) as second:
            assert second.rest() == b""


def test_limits_switched_off() -> None:
    """None switches every limit off."""

    class Boundless(QuickServer):
        max_connections = max_connections_per_peer = max_bad_commands = max_failed_logins = None
        handshake_timeout = login_timeout = shutdown_grace = None

    with running(Boundless(HOST, lambda peer: MemoryHandler(Mail()))) as server, connected(server) as client:
        client.line()
        client.send(b"BAD\r\n" * 200)
        assert all(client.line().startswith(b"-ERR") for _ in range(200))
        client.sign_in()


# Closing.


def idle(client: Client) -> None:
    client.line()


def idle_signed_in(client: Client) -> None:
    client.line()
    client.sign_in()
    assert client.ask(b"DELE 1").startswith(b"+OK")


def half_a_command(client: Client) -> None:
    idle_signed_in(client)
    client.send(b"QUIT")


@pytest.mark.parametrize("state", [idle, idle_signed_in, half_a_command])
@pytest.mark.parametrize("grace", [60, 0, None])
def test_closing_ends_idle_sessions_at_once(state: Callable[[Client], None], grace: float | None) -> None:
    """An idle client hears nothing but the end; nothing is deleted, the maildrop is unlocked, the port is closed."""
    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: ClosingHandler(mail))) as server, connected(server) as client:
        server.shutdown_grace = grace
        state(client)
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
        assert refused(server)
        assert client.rest() == b""
        assert mail.count("lock_maildrop") == mail.count("unlock_maildrop")
        assert (mail.count("close"), mail.count("delete_messages"), mail.errors) == (1, 0, [])


def test_closing_many_idle_sessions() -> None:
    """A few hundred idle sessions end together."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        clients = [socket.create_connection(server.server_address[:2], timeout=PATIENCE) for _ in range(200)]
        for client in clients:
            assert client.recv(100).startswith(b"+OK")
        server.server_close()
        for client in clients:
            assert client.recv(100) == b""
            client.close()


@pytest.mark.parametrize(
    "where", ["on_new_connection", "authenticate_pass", "delete_messages", "unlock_maildrop", "close", "close_request"]
)
def test_closing_waits_for_what_cannot_be_interrupted(where: str) -> None:
    """A commit that runs when the server closes completes, however long it takes; no call, no thread is left alone."""
    mail = Mail(MESSAGE)
    handler = ClosingHandler(mail)
    server = QuickServer(HOST, lambda peer: handler)
    server.shutdown_grace = 0.1
    held = Held(server if hasattr(server, where) else handler, where)
    with running(server), connected(server) as client, ThreadPoolExecutor() as others:
        client.send(b"USER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert held.entered.wait(PATIENCE)
        closing = others.submit(server.server_close)
        try:
            assert not wait([closing], 0.3).done
            assert refused(server)
        finally:
            held.go_on.set()
        closing.result(PATIENCE)
        assert mail.count("delete_messages") == (where not in ("on_new_connection", "authenticate_pass"))
        assert mail.count("lock_maildrop") == mail.count("unlock_maildrop")
        assert mail.calls[-1] == ("close",)


def test_a_running_command_may_finish_within_the_grace() -> None:
    """Closing lets a command end and its reply be read; what was pipelined behind it is not run."""
    mail = Mail(MESSAGE)
    handler = ClosingHandler(mail)
    held = Held(handler, "get_message_reader")
    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        client.send(b"DELE 1\r\nRSET\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
        assert held.entered.wait(PATIENCE)
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            wait_until(lambda: server._closing.begun)
            held.go_on.set()
            closing.result(PATIENCE)
        assert client.rest().endswith(b"+OK 34 octets\r\n" + MESSAGE + b".\r\n")
        assert (mail.count("unlock_maildrop"), mail.count("delete_messages")) == (1, 0)


def test_a_client_that_does_not_read_is_cut_after_the_grace() -> None:
    """A message that nobody reads keeps the server for shutdown_grace seconds, no longer, and stays incomplete."""
    mail = Mail(b"x" * 20_000_000)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as client:
        server.shutdown_grace = 0.2
        assert client.ask(b"RETR 1").startswith(b"+OK")
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
        assert mail.count("unlock_maildrop") == 1
        with suppress(ConnectionResetError):
            assert not client.rest().endswith(b".\r\n")


def test_closing_in_the_delay_of_a_failed_login() -> None:
    """The delay after a wrong password does not hold up the server's end, and no further password is tried."""
    mail = Mail()
    with running(QuickServer(HOST, lambda peer: ClosingHandler(mail))) as server, connected(server) as client:
        client.send(b"USER alice\r\nPASS 1\r\n" * 4)
        wait_until(lambda: mail.count("authenticate_pass") == 2)
        server.server_close()
        assert [call[0] for call in mail.calls] == ["authenticate_pass"] * 2 + ["close"]


def test_closing_before_serving_and_twice() -> None:
    """server_close() before serve_forever(), and again; serve_forever() then returns at once."""
    server = QuickServer(HOST, lambda peer: None)
    server.server_close()
    server.server_close()
    server.serve_forever()
    assert refused(server)


@pytest.mark.parametrize("method", ["shutdown", "server_close"])
def test_closing_waits_for_the_loop(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither returns before serve_forever has: it may still be in a hook of the application."""
    server = QuickServer(HOST, lambda peer: None)
    held = Held(server, "service_actions")
    wait = server._changed.wait

    def let_go_and_wait(timeout: float | None = None) -> bool:
        held.go_on.set()
        return wait(timeout)

    with server, ThreadPoolExecutor(1) as other:
        serving = other.submit(server.serve_forever, 0.01)
        try:
            assert held.entered.wait(PATIENCE)
            monkeypatch.setattr(server._changed, "wait", let_go_and_wait)
            getattr(server, method)()
            assert held.go_on.is_set() and not server._loops
        finally:
            held.go_on.set()
            server.shutdown()
            serving.result(PATIENCE)


def test_closing_joins_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """When server_close() returns, no thread of the server runs, not even its last steps."""
    server = QuickServer(HOST, lambda peer: None)
    joined: list[str] = []
    monkeypatch.setattr(server._workers, "join", lambda: joined.append("workers"))
    monkeypatch.setattr(server._watchdog, "join", lambda: joined.append("watchdog"))
    server.server_close()
    assert joined == ["workers", "watchdog"]


def test_closing_again_is_no_impatience() -> None:
    """A call of server_close() ends the grace only if it interrupts another, not if it follows it."""
    with QuickServer(HOST, lambda peer: None) as server:
        server.server_close()
        server.server_close()
        assert not server._closing.impatient and not server._interrupts()


def test_closing_from_many_threads_at_once() -> None:
    """server_close() from several threads at once: each returns when all sessions are over."""
    mail = Mail(MESSAGE)
    barrier = threading.Barrier(4)
    with running(QuickServer(HOST, lambda peer: ClosingHandler(mail))) as server, signed_in(server) as client:

        def close() -> int:
            barrier.wait(PATIENCE)
            server.server_close()
            return mail.count("close")

        with ThreadPoolExecutor() as others:
            assert [done.result(PATIENCE) for done in [others.submit(close) for _ in range(4)]] == [1] * 4
        assert client.rest() == b""


@pytest.mark.parametrize("where", ["authenticate_pass", "get_message_reader", "delete_messages", "close"])
def test_closing_from_a_handler(where: str) -> None:
    """A handler may close its own server: that call does not wait for its own session, and its command finishes."""
    mail = Mail(MESSAGE)

    class Closing(ClosingHandler):
        def __init__(self) -> None:
            super().__init__(mail)
            method = getattr(self, where)

            def closing(*arguments: Any) -> Any:
                server.server_close()
                mail.calls.append(("closing",))
                return method(*arguments)

            setattr(self, where, closing)

    with running(QuickServer(HOST, lambda peer: Closing())) as server, connected(server) as client:
        client.send(b"USER alice\r\nPASS secret\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
        client.rest()
        wait_until(lambda: mail.count("close") == 1)
        assert refused(server)
        assert mail.count("closing") == mail.count("lock_maildrop") == mail.count("unlock_maildrop") == 1


def test_a_commit_beyond_the_grace_is_answered() -> None:
    """server_close() waits for a commit however long it takes, and the client still reads what became of it."""
    entered, may_end = threading.Event(), threading.Event()

    class Slow(MemoryHandler):
        def delete_messages(self, numbers: Sequence[int]) -> None:
            entered.set()
            assert may_end.wait(PATIENCE)
            super().delete_messages(numbers)

    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: Slow(mail))) as server, signed_in(server) as client:
        server.shutdown_grace = 0.05
        client.send(b"DELE 1\r\nQUIT\r\n")
        assert entered.wait(PATIENCE)
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            wait_until(lambda: server._closing.grace_over)
            may_end.set()
            assert client.rest().endswith(b"+OK goodbye\r\n")
            closing.result(PATIENCE)
    assert ("delete_messages", [1]) in mail.calls


@contextmanager
def closed_on_signal(server: Server) -> Iterator[list[str]]:
    """Close the server on SIGUSR1; the list tells when that is done."""
    done: list[str] = []

    def close(*_: object) -> None:
        server.server_close()
        done.append("closed")

    before = signal.signal(signal.SIGUSR1, close)
    try:
        yield done
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_closing_from_a_signal_handler() -> None:
    """A signal handler may close the server whose serve_forever() it interrupts."""
    mail = Mail(MESSAGE)
    main = threading.get_ident()
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail))

    def visit() -> bytes:
        with signed_in(server) as client:
            signal.pthread_kill(main, signal.SIGUSR1)
            return client.rest()

    with server, closed_on_signal(server) as done, ThreadPoolExecutor() as others:
        visited = others.submit(visit)
        visited.add_done_callback(lambda _: server.shutdown())
        server.serve_forever(poll_interval=60)
        assert done == ["closed"]
        assert mail.calls[-2:] == [("unlock_maildrop",), ("close",)]
        assert refused(server)
        assert visited.result(PATIENCE) == b""


def test_a_signal_while_a_connection_is_registered() -> None:
    """The lock that the accepting thread may hold does not stop a signal handler from closing the server."""
    server = QuickServer(HOST, lambda peer: None)
    with server, closed_on_signal(server) as done:
        with server._changed:
            signal.raise_signal(signal.SIGUSR1)
        assert done == ["closed"]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGINT"])
def test_a_signal_while_a_thread_starts(monkeypatch: pytest.MonkeyPatch, name: str, late: bool) -> None:
    """A signal may come at any moment, also between a connection's registration and the start of its thread."""
    start = threading.Thread.start
    threads = threading.active_count()

    def interrupted(thread: threading.Thread) -> None:
        if late:
            start(thread)
        if "_work" in thread.name:
            monkeypatch.setattr(threading.Thread, "start", start)
            signal.raise_signal(getattr(signal, name))
        if not late:
            start(thread)

    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    with server, connected(server) as client, closed_on_signal(server) as done:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            assert name == "SIGINT"
        else:
            assert done == ["closed"]
        server.server_close()
        with suppress(ConnectionResetError):
            client.rest()
        wait_until(lambda: threading.active_count() == threads)


def test_ctrl_c_while_a_spare_thread_is_given_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spare thread that was to get a connection, when a signal handler raised, ends all the same."""

    interrupted = threading.Event()

    class Queue(SimpleQueue[Any]):
        def put(self, *arguments: Any) -> None:
            interrupted.set()
            raise KeyboardInterrupt

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if timeout is not None:
                assert interrupted.wait(PATIENCE)
                raise Empty
            return super().get(block)

    with QuickServer(HOST, lambda peer: MemoryHandler(Mail())) as server:
        monkeypatch.setattr(server._workers, "_queue", Queue())
        with connected(server) as client:
            server.handle_request()
            assert client.ask(b"QUIT").startswith(b"+OK")
        wait_until(lambda: server._workers._spare == 1)
        with connected(server) as client:
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            assert client.rest().startswith(b"-ERR [SYS/TEMP]")
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)


@pytest.mark.parametrize(
    ("address", "options", "limits", "text"),
    [
        ("127.0.0.1:1100", {}, {}, "a host and a port"),
        (HOST, {"ssl_context": "cert.pem"}, {}, "an SSLContext"),
        (HOST, {"trusted_proxies": "127.0.0.1"}, {}, r"a list: \['127.0.0.1'\]"),
        (HOST, {"timeout": None}, {}, "timeout must be"),
        (HOST, {"timeout": "600"}, {}, "timeout must be"),
        (HOST, {}, {"login_timeout": "5"}, "login_timeout must be a number or None"),
        (HOST, {}, {"max_connections": "x"}, "max_connections must be a number or None"),
    ],
)
def test_arguments_of_the_wrong_kind(address: Any, options: Any, limits: Any, text: str) -> None:
    """A mistake in an argument or a limit is told at once, by its name."""
    with pytest.raises(ValueError, match=text):
        type("Subclass", (Server,), limits)(address, lambda peer: None, **options)


def test_a_hook_that_is_replaced_on_a_server() -> None:
    """A hook of `socketserver` is looked up for each connection."""
    called = []
    with running(Server(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        process = server.process_request_thread

        def replaced(request: Any, client_address: Any) -> None:
            called.append(client_address)
            process(request, client_address)

        server.process_request_thread = replaced  # type: ignore[method-assign]
        with signed_in(server):
            pass
    assert len(called) == 1


def test_a_hook_that_raises() -> None:
    """A connection whose hook fails is closed, the failure told, and neither its place nor its thread is kept."""

    class Failing(TalkingServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            if not self.told:
                raise SystemExit
            super().process_request_thread(request, client_address)

    server = Failing(HOST, lambda peer: MemoryHandler(Mail()))
    with running(server):
        with connected(server) as client:
            assert client.rest() == b""
        with signed_in(server):
            pass
    assert [type(error) for error in server.told] == [SystemExit]


def test_a_hook_that_raises_when_a_thread_has_the_connection() -> None:
    """The failure is told, and the session goes on: its thread closes the connection."""

    class Failing(TalkingServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            raise ValueError

    with Failing(HOST, lambda peer: MemoryHandler(Mail())) as server, connected(server) as client:
        server.handle_request()
        assert client.line().startswith(b"+OK")
        client.sign_in()
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert [type(error) for error in server.told] == [ValueError]


def test_a_signal_after_a_thread_was_chosen() -> None:
    """If a signal handler raises then, the connection is refused, and no thread takes it up any more."""
    held: list[Place] = []
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    with server, connected(server) as client:
        take, take_up = server._workers.take, server._workers._take_up
        go_on = threading.Event()

        def late(place: Place) -> bool:
            assert go_on.wait(PATIENCE)
            held.append(place)
            return take_up(place)

        def interrupted(place: Place) -> None:
            take(place)
            raise KeyboardInterrupt

        server._workers._take_up = late  # type: ignore[method-assign]
        server._workers.take = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        go_on.set()
        assert client.rest().startswith(b"-ERR [SYS/TEMP]")
        server.server_close()
    assert [place.held for place in held] == [False]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.Unpack is not there")
def test_type_hints_can_be_had() -> None:
    """What a framework asks of a function, `typing.get_type_hints` answers."""
    assert "arguments" in typing.get_type_hints(Server.from_socket)
    assert "server_options" in typing.get_type_hints(MailServer.__init__)


@pytest.mark.parametrize("options", [LimitOptions, SocketOptions, MailServerOptions])
def test_every_option_may_be_left_out(options: Any) -> None:
    """No key of the dictionaries that stand for keyword arguments is required."""
    assert options.__optional_keys__ and not options.__required_keys__
