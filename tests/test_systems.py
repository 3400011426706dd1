"""Other systems' answers, faked: what Windows and macOS do otherwise is no fault of a client, and nobody hangs for it.

The fakes run on any system.  ``.ci/run wine`` runs the library with Python for Windows.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

import popart
from popart import client_socket, system
from popart.errors import ClientTimeoutError
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    running,
    signed_in,
    wait_until,
)
from tests.test_listeners import REFUSED, TOO_MANY, answer_of, hears, listening, needs_ipv6, proxied, v1
from tests.test_server import HOST, MESSAGE, TalkingServer

POSIX = os.name == "posix"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets as on Windows: shutdown(SHUT_RD) wakes nobody, and a send either blocks or is in non-blocking mode.

    The send queue cannot be asked, and there is no poll().
    """
    if not POSIX:
        return
    shutdown = socket.socket.shutdown

    def without_effect(sock: socket.socket, how: int) -> None:
        assert how != socket.SHUT_RD, "on Windows it resets the connection when the client sends more"
        shutdown(sock, how)

    monkeypatch.setattr(socket.socket, "shutdown", without_effect, raising=False)
    monkeypatch.delattr(socket, "MSG_DONTWAIT")
    monkeypatch.setattr(system, "_AT_ONCE", 0)
    monkeypatch.delattr(system, "fcntl")
    monkeypatch.delattr(select, "poll")


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends as on macOS: one on a socket in blocking mode takes no notice of MSG_DONTWAIT."""
    if not POSIX:
        pytest.skip("Windows has no poll()")
    send = socket.socket.send
    dont_wait = socket.MSG_DONTWAIT

    def waiting(sock: socket.socket, octets: Any, flags: int = 0) -> int:
        return send(sock, octets, flags & ~dont_wait)

    monkeypatch.setattr(socket.socket, "send", waiting, raising=False)
    monkeypatch.setattr(system, "_AT_ONCE", 0)


@pytest.fixture(params=["windows", "macos"])
def elsewhere(request: pytest.FixtureRequest) -> str:
    """Each of the other systems."""
    request.getfixturevalue(request.param)
    return str(request.param)


class Endless:
    """A message without end."""

    def read(self, n: int, /) -> bytes:
        return b"x" * n

    def close(self) -> None: ...


class EndlessHandler(ClosingHandler):
    def get_message_reader(self, number: int) -> popart.MessageReader:
        return Endless()


# Who waits is woken.


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_idle_sessions_end_with_the_server(
    tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """server_close() ends an idle session within half a second, its maildrop unlocked; over TLS by close_notify."""
    mail = Mail(MESSAGE)
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), ssl_context=server_context if tls else None)
    with running(server), signed_in(server, client_context if tls else None) as client:
        wait_until(lambda: any(place.idle for place in server._places.all()))
        begin = time.monotonic()
        server.server_close()
        assert time.monotonic() - begin < 0.5
        assert client.rest() == b""
    assert mail.calls[-2:] == [("unlock_maildrop",), ("close",)]
    assert mail.errors == []


@pytest.mark.usefixtures("windows")
def test_many_idle_sessions_end_together() -> None:
    """They are woken side by side, not one after the other."""
    mail = Mail()
    mail_of_all = [Mail() for _ in range(20)]
    mails = iter(mail_of_all)
    with running(QuickServer(HOST, lambda peer: ClosingHandler(next(mails, mail)))) as server:
        clients = [signed_in(server) for _ in mail_of_all]
        for client in clients:
            client.__enter__()
        try:
            wait_until(lambda: sum(place.idle for place in server._places.all()) == 20)
            begin = time.monotonic()
            server.server_close()
            assert time.monotonic() - begin < 1
        finally:
            for client in clients:
                client.__exit__(None, None, None)
    assert all(each.calls[-1] == ("close",) for each in mail_of_all)


@pytest.mark.usefixtures("elsewhere")
def test_a_silent_client_is_cut() -> None:
    """A client that sends no command in time is logged out without a word, and its handler told."""
    handler = ClosingHandler(Mail())
    with running(QuickServer(HOST, lambda peer: handler, timeout=0.2)) as server, signed_in(server) as client:
        assert client.rest() == b""
        assert handler.closed.wait(PATIENCE)
        assert [type(error) for error in handler.mail.errors] == [ClientTimeoutError]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("tls", [False, True], ids=["header", "handshake"])
def test_a_silent_client_before_its_greeting(tls: bool, server_context: ssl.SSLContext) -> None:
    """handshake_timeout holds for the PROXY header and for TLS."""
    server = TalkingServer(HOST, lambda peer: None, ssl_context=server_context if tls else None, proxy_protocol=not tls)
    server.handshake_timeout = 0.2
    with running(server), connected(server) as client:
        assert hears(client) == b""
    assert [type(error) for error in server.told] == [ClientTimeoutError]


@pytest.mark.usefixtures("elsewhere")
def test_a_client_makes_room() -> None:
    """When all places are taken, a client that has not signed in is woken to make room."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    server.max_connections = 2
    server.max_connections_per_peer = None
    with running(server), signed_in(server) as first, connected(server) as silent:
        assert silent.line().startswith(b"+OK")
        wait_until(lambda: all(place.idle for place in server._places.all()))  # in its greeting it would be reset
        with signed_in(server) as newcomer:
            assert silent.rest() == b""
            assert newcomer.ask(b"NOOP").startswith(b"+OK")
            assert first.ask(b"NOOP").startswith(b"+OK")


@pytest.mark.usefixtures("elsewhere")
def test_a_pipeline_and_then_nothing() -> None:
    """Who looks whether more has come does not block, and then waits for the next command as ever."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server, signed_in(server) as client:
        for _ in range(3):
            client.send(b"NOOP\r\n" * 200)
            for _ in range(200):
                assert client.line() == b"+OK nothing done\r\n"
        wait_until(lambda: any(place.idle for place in server._places.all()))
        assert client.ask(b"STAT") == b"+OK 1 34\r\n"


@pytest.mark.usefixtures("elsewhere")
def test_octets_that_come_when_the_server_closes() -> None:
    """A woken connection is not reset by what its client sends at that moment: the client reads a plain end."""
    handler = ClosingHandler(Mail())
    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        wait_until(lambda: any(place.idle for place in server._places.all()))
        with server._lock:  # nobody is woken meanwhile
            server._closing.begun = True
            client.send(b"NOOP\r\n")
        server.server_close()
        assert client.rest() == b""


@pytest.mark.usefixtures("elsewhere")
def test_a_refused_client_holds_up_nobody() -> None:
    """The accepting thread refuses a silent client, and serves the next one at once."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()))
    server.max_connections_per_peer = 1
    with running(server), signed_in(server) as client:
        for _ in range(3):
            with connected(server) as refused:
                assert refused.line().startswith(TOO_MANY)
        assert client.ask(b"QUIT").startswith(b"+OK")


# Who does not read is cut.


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("late", [True, False], ids=["late", "closed"])
def test_a_client_that_does_not_read(late: bool) -> None:
    """No send blocks: a client that does not read is cut when it is late, or when the grace is over, and reset."""
    handler = EndlessHandler(Mail(b"x"))
    server = QuickServer(HOST, lambda peer: handler, timeout=0.3 if late else 600)
    server.shutdown_grace = 0.2
    with running(server), signed_in(server) as client:
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        if not late:
            server.server_close()
        assert handler.closed.wait(PATIENCE)
        assert b"\r\n.\r\n" not in client.rest_until_reset()


@pytest.mark.usefixtures("windows")
def test_a_message_that_breaks() -> None:
    """A message that breaks ends by a reset, half a second after the part that was sent."""

    class Breaking(Endless):
        left = 3

        def read(self, n: int, /) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError
            return b"y" * 40_000

    class Handler(ClosingHandler):
        def get_message_reader(self, number: int) -> popart.MessageReader:
            return Breaking()

    with running(QuickServer(HOST, lambda peer: Handler(Mail(b"x")))) as server, signed_in(server) as client:
        begin = time.monotonic()
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        received = client.rest_until_reset()
        assert 0.4 < time.monotonic() - begin < 2
        assert received and not received.strip(b"y")


# Accepting.


LOST = [
    ConnectionResetError(),
    ConnectionAbortedError(),
    OSError(errno.EPROTO, "Protocol error"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
]


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_a_client_that_is_lost_before_it_is_accepted(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one lost client: the next one is accepted in the same round, without a pause."""
    accept = socket.socket.accept
    lost: list[socket.socket] = []

    def losing(listener: socket.socket) -> tuple[socket.socket, Any]:
        if listener is server.socket and not lost:
            lost.append(listener)
            raise error
        return accept(listener)

    rounds = threading.Semaphore(0)

    class Counting(QuickServer):
        def service_actions(self) -> None:
            rounds.release()

    monkeypatch.setattr(socket.socket, "accept", losing)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it pauses"))
    server = Counting(HOST, lambda peer: None)
    with server, socket.create_connection(server.server_address, timeout=PATIENCE) as client:
        thread = threading.Thread(target=server.serve_forever, args=(60,))
        thread.start()
        assert rounds.acquire(timeout=PATIENCE)
        server.shutdown()
        thread.join()
        assert client.recv(100) == REFUSED
    assert lost


def test_a_client_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS accepts clients that have gone, and gives no address: they are not taken for trusted UNIX clients."""
    accept = socket.socket.accept
    seen: list[Any] = []
    nameless: list[socket.socket] = []

    def forgetting(listener: socket.socket) -> tuple[socket.socket, Any]:
        connection, address = accept(listener)
        if nameless or listener is not server.socket:
            return connection, address
        nameless.append(connection)
        return connection, None

    monkeypatch.setattr(socket.socket, "accept", forgetting)
    with running(QuickServer(HOST, seen.append, proxy_protocol=True, trusted_proxies=[])) as server:
        with proxied(server, v1("192.0.2.1")) as client:
            assert hears(client) == b""
    assert seen == []
    assert nameless[0].fileno() == -1


def test_a_client_that_has_gone_when_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS refuses TCP_NODELAY with EINVAL once both sides have shut down: that is no error of the server."""
    setsockopt = socket.socket.setsockopt

    def refusing(sock: socket.socket, level: int, option: int, *value: Any) -> None:
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY):
            raise OSError(errno.EINVAL, "Invalid argument")
        setsockopt(sock, level, option, *value)

    monkeypatch.setattr(socket.socket, "setsockopt", refusing, raising=False)
    with running(TalkingServer(HOST, lambda peer: None)) as server:
        assert answer_of(server.server_address) == REFUSED
    assert server.told == []


def test_input_that_fails_when_the_server_closes(
    monkeypatch: pytest.MonkeyPatch, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A recv that fails because its connection was woken is the end of the input: the session ends by close_notify."""
    handler = ClosingHandler(Mail())
    receive = socket.socket.recv

    def failing(sock: socket.socket, *arguments: Any) -> bytes:
        octets = receive(sock, *arguments)
        if not octets:
            raise OSError(errno.ESHUTDOWN, "the input is shut down")
        return octets

    monkeypatch.setattr(socket.socket, "recv", failing, raising=False)
    server = QuickServer(HOST, lambda peer: handler, ssl_context=server_context)
    with running(server), signed_in(server, client_context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sock.suppress_ragged_eofs = False  # an end without close_notify is an error
        wait_until(lambda: any(place.idle for place in server._places.all()))
        server.server_close()
        assert client.rest() == b""
    assert handler.mail.errors == []
    assert handler.mail.calls[-2:] == [("unlock_maildrop",), ("close",)]


# Listening.


def test_whether_it_listens_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS SO_ACCEPTCONN is ENOPROTOOPT: from_socket() listens anew, which does a listening socket no harm."""
    getsockopt = socket.socket.getsockopt

    def refusing(sock: socket.socket, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_ACCEPTCONN:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return getsockopt(sock, level, option, *size)

    monkeypatch.setattr(socket.socket, "getsockopt", refusing, raising=False)
    for listener in (listening(), socket.socket()):
        if not system.bound_address(listener):
            listener.bind(HOST)
        with running(QuickServer.from_socket(listener, lambda peer: None)) as server:
            assert answer_of(server.server_address) == REFUSED
    with listening() as listener, socket.create_connection(listener.getsockname()) as sock:
        with pytest.raises(OSError):
            Server.from_socket(sock, lambda peer: None)


def test_an_unbound_socket_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows getsockname() fails for an unbound socket: from_socket() raises a ValueError all the same."""

    def refusing(sock: socket.socket) -> Any:
        raise OSError(errno.EINVAL, "An invalid argument was supplied")

    with socket.socket() as sock, monkeypatch.context() as patch:
        patch.setattr(socket.socket, "getsockname", refusing, raising=False)
        with pytest.raises(ValueError, match="bound stream socket"):
            Server.from_socket(sock, lambda peer: None)


@needs_ipv6
def test_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on :: takes IPv4 too, also where a system's own choice is IPv6 alone, as on Windows."""
    bind = Server.server_bind

    def on_windows(server: Server) -> None:
        server.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bind(server)

    monkeypatch.setattr(Server, "server_bind", on_windows)
    with running(QuickServer(("::", 0), lambda peer: None)) as server:
        for host in ("127.0.0.1", "::1"):
            assert answer_of((host, server.server_address[1])) == REFUSED


def test_a_port_in_use_stays_its_owners() -> None:
    """On each system a second server on the port is refused, and after its end the port is free at once."""
    with running(QuickServer(HOST, lambda peer: None)) as server:
        with pytest.raises(OSError):
            Server(server.server_address, lambda peer: None)
        assert answer_of(server.server_address) == REFUSED
    with suppress(OSError), Server(server.server_address, lambda peer: None) as again:
        assert again.server_address == server.server_address


def test_where_addresses_are_reused() -> None:
    """SO_REUSEADDR is for POSIX alone: on Windows it lets any process take the port from the server."""
    assert Server.allow_reuse_address is POSIX


# The send queue.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it compares with what Linux says")
def test_the_send_queue_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """There an option of the socket tells it: SO_NWRITE, 0x1024 in macOS's sys/socket.h."""
    getsockopt = socket.socket.getsockopt

    def nwrite(sock: socket.socket, level: int, option: int, *size: int) -> Any:
        return 4711 if (level, option) == (socket.SOL_SOCKET, 0x1024) else getsockopt(sock, level, option, *size)

    with listening() as listener, socket.create_connection(listener.getsockname()) as sock:
        assert system.unsent(sock) == 0
        monkeypatch.setattr(socket.socket, "getsockopt", nwrite, raising=False)
        monkeypatch.setattr(sys, "platform", "darwin")
        assert system.unsent(sock) == 4711


def test_how_long_a_blind_reset_waits() -> None:
    """Half a second, as the platforms page says, and a tenth of a second between two looks."""
    assert (client_socket.BLIND_RESET_WAIT_SECONDS, system.POLL_PAUSE) == (0.5, 0.1)
