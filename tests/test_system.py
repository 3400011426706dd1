"""What `popart.system` asks of a socket, one function after the other."""

from __future__ import annotations

import errno
import os
import runpy
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from popart import system
from tests.conftest import PATIENCE

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a TCP connection: the server's, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname(), timeout=PATIENCE) as client:
            server, _ = listening.accept()
            with server:
                yield server, client


def fill(sock: socket.socket) -> None:
    """Send until there is no room."""
    while system.send_at_once(sock, bytes(65_536)):
        pass


def test_receive_at_once(pair: Pair) -> None:
    """What has come is there, at most so many octets; None if nothing has, and nothing at the end of the stream."""
    server, client = pair
    assert system.receive_at_once(server, 4) is None
    client.sendall(b"QUIT\r\n")
    assert select.select([server], [], [], PATIENCE)[0]
    assert system.receive_at_once(server, 4) == b"QUIT"
    assert system.receive_at_once(server, 4) == b"\r\n"
    client.shutdown(socket.SHUT_WR)
    assert select.select([server], [], [], PATIENCE)[0]
    assert system.receive_at_once(server, 4) == b""


def test_send_at_once(pair: Pair) -> None:
    """It says how many octets there was room for, and 0 if there is none: it never waits."""
    server, client = pair
    assert system.send_at_once(server, b"+OK\r\n") == 5
    assert client.recv(100) == b"+OK\r\n"
    fill(server)
    assert system.send_at_once(server, b"+OK\r\n") == 0


@pytest.mark.parametrize("has_poll", [True, False])
def test_wait_for_room(has_poll: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for as many seconds, or until there is room, on a system without poll, too."""
    if not has_poll:
        monkeypatch.delattr(select, "poll")
    server, _ = pair
    begun = time.monotonic()
    system.wait_for_room(server, 2 * PATIENCE)
    assert time.monotonic() - begun < PATIENCE
    fill(server)
    begun = time.monotonic()
    system.wait_for_room(server, 0.2)
    assert 0.19 < time.monotonic() - begun < PATIENCE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it otherwise, or not at all")
def test_unsent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 0 when the client's system has all, and None where the system does not tell."""
    server, _ = pair
    assert system.unsent(server) == 0
    fill(server)
    assert system.unsent(server)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert system.unsent(listening) is None
    assert system.unsent(listening) is None  # it is closed
    monkeypatch.delattr(system, "termios")
    assert system.unsent(server) is None


def test_unsent_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the option SO_NWRITE, 0x1024, tells it."""

    class Sock:
        family = socket.AF_INET

        def getsockopt(self, level: int, option: int) -> int:
            return {(socket.SOL_SOCKET, 0x1024): 7}[level, option]

    monkeypatch.setattr(sys, "platform", "darwin")
    sock: Any = Sock()
    assert system.unsent(sock) == 7


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no UNIX sockets")
def test_unsent_of_a_unix_socket_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it would be 0 however little the client has read, so it is None."""
    monkeypatch.setattr(sys, "platform", "darwin")
    one, other = socket.socketpair()
    with one, other:
        assert system.unsent(one) is None


def test_whether_a_flag_keeps_send_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux MSG_DONTWAIT does; macOS has the flag, but its send takes no notice of it."""
    here = getattr(socket, "MSG_DONTWAIT", 0)
    for platform, flag in (("linux", here), ("darwin", 0), ("freebsd14", here)):
        monkeypatch.setattr(sys, "platform", platform)
        assert runpy.run_path(str(system.__file__))["_AT_ONCE"] == flag


@pytest.mark.parametrize("kind", [system.WaitingSocket, system.PolledSocket])
def test_sockets_that_never_block(kind: type[socket.socket], pair: Pair) -> None:
    """Their reads wait until something comes, or until they are woken, and what has come is read before the end."""
    if kind is system.WaitingSocket and not hasattr(select, "poll"):
        pytest.skip("the system has no poll()")
    server, client = pair
    with kind(server.family, server.type, server.proto, server.detach()) as sock, ThreadPoolExecutor() as others:
        sock.setblocking(False)
        found = others.submit(sock.recv, 100)
        client.sendall(b"QUIT\r\n")
        assert found.result(PATIENCE) == b"QUIT\r\n"
        client.sendall(b"NOOP\r\n")
        assert select.select([sock], [], [], PATIENCE)[0]
        buffer = bytearray(100)
        assert sock.recv_into(buffer) == 6 and buffer.startswith(b"NOOP\r\n")
        found = others.submit(sock.recv, 100)
        assert not wait([found], 0.05).done
        system.wake_reader(sock)
        assert found.result(PATIENCE) == b"" == sock.recv(100)
        assert sock.recv_into(bytearray(100)) == 0
        sock.sendall(b"+OK\r\n")
        assert client.recv(100) == b"+OK\r\n"
        sock.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""


@pytest.mark.parametrize("has_poll", [True, False])
def test_what_is_accepted_where_no_flag_helps(has_poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a socket that never blocks and waits by poll, or on a system without poll by looking again and again."""
    kind = system.WaitingSocket if has_poll else system.PolledSocket
    monkeypatch.setattr(system, "_AT_ONCE", 0)
    if has_poll:
        monkeypatch.setattr(select, "poll", object, raising=False)
    else:
        monkeypatch.delattr(select, "poll", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = system.accept(listener)
        with accepted:
            assert type(accepted) is kind and accepted.gettimeout() == 0


@pytest.mark.skipif(not system._AT_ONCE, reason="sockets never block on this system")
def test_the_default_timeout_is_not_the_clients() -> None:
    """What an application sets for its own sockets cuts no session short."""
    socket.setdefaulttimeout(PATIENCE)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            accepted, _ = system.accept(listener)
            with accepted:
                assert accepted.gettimeout() is None
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("kind", [system.WaitingSocket, system.PolledSocket])
def test_who_waits_for_input_uses_no_processor(
    kind: type[socket.socket], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read asks the system once, waits until the system says that something has come, and asks once more."""
    if kind is system.WaitingSocket and not hasattr(select, "poll"):
        pytest.skip("the system has no poll()")
    server, client = pair
    calls: list[str] = []
    receive, poll, select_ = socket.socket.recv, getattr(select, "poll", None), select.select

    def recv(*arguments: Any) -> bytes:
        calls.append("recv")
        assert len(calls) < 10, "it does not wait"
        return receive(*arguments)

    def wait(call: Callable[..., Any], *arguments: Any) -> Any:
        calls.append("wait")
        client.sendall(b"QUIT\r\n")
        return call(*arguments)

    class Poll:
        def __init__(self) -> None:
            assert poll is not None
            self._poll = poll()
            self.register = self._poll.register

        def poll(self) -> Any:
            return wait(self._poll.poll)

    with kind(server.family, server.type, server.proto, server.detach()) as sock:
        sock.setblocking(False)
        monkeypatch.setattr(socket.socket, "recv", recv)
        monkeypatch.setattr(select, "poll", Poll, raising=False)
        monkeypatch.setattr(select, "select", lambda *arguments: wait(select_, *arguments))
        assert sock.recv(100) == b"QUIT\r\n"
        assert calls == ["recv", "wait", "recv"]


def test_is_listening() -> None:
    """A socket that is bound does not listen yet.  macOS need not tell that one listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert system.is_listening(sock) is False
        sock.listen()
        assert system.is_listening(sock) or sys.platform == "darwin"


def test_a_client_without_an_address(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has gone, and counts as lost."""
    monkeypatch.setattr(socket.socket, "accept", lambda listener: (pair[0], None))
    with socket.socket() as listener, pytest.raises(ConnectionAbortedError):
        system.accept(listener)


@pytest.mark.parametrize(
    ("name", "is_lost"),
    [
        *((name, True) for name in ["ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH"]),
        *((name, True) for name in ["EOPNOTSUPP", "ENETUNREACH", "ECONNABORTED", "ECONNRESET"]),
        *((name, False) for name in ["EMFILE", "EBADF", "EINVAL"]),
    ],
)
def test_errors_of_accept(name: str, is_lost: bool) -> None:
    """Those that accept(2) of Linux lists, and a reset, are one client's; the others are the server's."""
    number = getattr(errno, name, None)
    if number is None:
        pytest.skip("the system has no such error")
    assert system.is_lost(OSError(number, "")) is is_lost


def test_what_has_come_before_the_end(pair: Pair) -> None:
    """On Windows, what is left unread would turn the last reply into a reset."""
    server, client = pair
    with system.PolledSocket(server.family, server.type, server.proto, server.detach()) as sock:
        sock.setblocking(False)
        client.sendall(b"NOOP\r\n")
        assert select.select([sock], [], [], PATIENCE)[0]
        system.wake_reader(sock)
        assert sock.recv(100) == b"NOOP\r\n"
        assert sock.recv(100) == b""


def test_wake_reader(pair: Pair) -> None:
    """Its own reads end, the client's do not."""
    server, client = pair
    system.wake_reader(server)
    assert server.recv(100) == b"" == server.recv(100)
    server.sendall(b"+OK\r\n")
    assert client.recv(100) == b"+OK\r\n"
    server.close()
    system.wake_reader(server)  # too late, and no error


def test_reset_when_closed(pair: Pair) -> None:
    """The client reads an error, once the socket is closed."""
    server, client = pair
    system.reset_when_closed(server)
    server.sendall(b"+OK\r\n")
    assert client.recv(100) == b"+OK\r\n"
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    system.reset_when_closed(server)  # too late, and no error


def test_options(pair: Pair) -> None:
    """Small writes go out at once; an acknowledgement does, where the system has a word for it."""
    server, _ = pair
    system.send_small_writes_at_once(server)
    assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    if hasattr(socket, "TCP_QUICKACK"):
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        system.acknowledge(server)
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)


@pytest.mark.parametrize("function", [system.send_small_writes_at_once, system.acknowledge])
def test_options_of_a_unix_socket(function: Callable[[socket.socket], None]) -> None:
    """It has none of them, and that is no error."""
    one, other = socket.socketpair()
    with one, other:
        function(one)


def test_acknowledge_where_there_is_no_such_option(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it does nothing."""
    monkeypatch.delattr(socket, "TCP_QUICKACK", raising=False)
    system.acknowledge(pair[0])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no such call")
def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread can be put on each of the processors, and then runs there and nowhere else."""
    found: list[tuple[list[int], int]] = []

    def move() -> None:
        for processor in allowed:
            system.run_on(processor)
            found.append((system.processors(), system.current_processor()))

    allowed = system.processors()
    assert allowed == sorted(os.sched_getaffinity(0))
    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
    assert found == [([processor], processor) for processor in allowed]
    assert system.processors() == allowed
    system.run_on(100_000)  # there is none, and that is no error
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.delattr(os, "sched_getaffinity")
    system.run_on(allowed[0])
    assert system.processors() == []
