"""Which sockets a server listens on, and whose word it takes for who the client is.

`Server.from_socket`, *require_tls*, *proxy_protocol* and *reuse_port*.  What a PROXY header may be is tested elsewhere.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import popart
import popart.connection
from popart.addresses import is_trusted
from popart.command_deadlines import Place
from popart.errors import ClientTimeoutError
from popart.proxy_header import Address, ProxyError, read_header
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    Client,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    is_wine,
    open_descriptors,
    running,
    signed_in,
    wait_until,
)
from tests.test_server import HOST, MESSAGE, TalkingServer, refused
from tests.test_server import no_hang as no_hang
from tests.test_tls import client_hello

REFUSED = b"-ERR connection refused\r\n"
"""What a client hears whose factory returned None."""

TOO_MANY = b"-ERR [SYS/TEMP] too many"


def can_bind(family: int, address: Any) -> bool:
    try:
        with socket.socket(family) as sock:
            sock.bind(address)
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not can_bind(socket.AF_INET6, ("::1", 0)), reason="this machine has no IPv6")
needs_reuse_port = pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
needs_abstract = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract names are Linux's")
needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sh, and inherits no descriptor 3")

LOOPBACKS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]


def bound(host: str) -> socket.socket:
    """Return a TCP socket that does not listen yet."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    return sock


def listening(host: str = "127.0.0.1") -> socket.socket:
    sock = bound(host)
    sock.listen()
    return sock


@pytest.fixture(
    params=["127.0.0.1", pytest.param("::1", marks=needs_ipv6), "path", pytest.param("abstract", marks=needs_abstract)]
)
def unused(request: pytest.FixtureRequest, tmp_path: Path) -> socket.socket:
    """A socket of each kind, bound and not listening: TCP over IPv4 and IPv6, UNIX with a path and without."""
    if request.param not in ("path", "abstract"):
        return bound(request.param)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "pop3") if request.param == "path" else b"\0popart test %d" % os.getpid())
    return sock


@contextmanager
def dialled(server: Server) -> Iterator[Client]:
    """Connect a raw client to a server of any address family."""
    with socket.socket(server.address_family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(server.server_address)
        client = Client(sock)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def proxied(server: Server, header: bytes, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    """Connect as a proxy does: the header, then the client's octets, over TLS with a *context*."""
    with socket.create_connection(server.server_address[:2], timeout=PATIENCE) as raw:
        raw.sendall(header)
        client = Client(raw if context is None else context.wrap_socket(raw, server_hostname="localhost"))
        try:
            yield client
        finally:
            client.close()


def hears(client: Client) -> bytes:
    """Read to the end, which is a reset where the server left something unread."""
    octets = b""
    with suppress(ConnectionResetError):
        while piece := client.sock.recv(4096):
            octets += piece
    return octets


def v1(host: str, port: int = 5000) -> bytes:
    family, here = ("TCP6", "::1") if ":" in host else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {host} {here} {port} 110\r\n".encode()


def v2(host: str, port: int = 5000) -> bytes:
    family, here = (socket.AF_INET6, "::1") if ":" in host else (socket.AF_INET, "127.0.0.1")
    addresses = socket.inet_pton(family, host) + socket.inet_pton(family, here) + struct.pack("!HH", port, 110)
    return raw_v2(0x21, 0x21 if ":" in host else 0x11, addresses)


def raw_v2(command: int, family: int, rest: bytes = b"") -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, family, len(rest)) + rest


# from_socket.


@pytest.mark.parametrize("backlog", [None, 5], ids=["bound", "listening"])
def test_a_socket_of_each_kind(unused: socket.socket, backlog: int | None) -> None:
    """A socket that is bound is served, TCP or UNIX; one that does not listen yet is made to."""
    if backlog is not None:
        unused.listen(backlog)
    mail = Mail(MESSAGE)
    server = QuickServer.from_socket(unused, lambda peer: MemoryHandler(mail))
    assert server.socket is unused
    assert server.server_address == unused.getsockname()
    with running(server), dialled(server) as client:
        assert client.line().startswith(b"+OK")
        client.sign_in()
        client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
        assert client.rest().startswith(b"+OK 34 octets\r\n" + MESSAGE + b".\r\n")
    assert mail.count("delete_messages") == mail.count("unlock_maildrop") == 1


def test_the_listener_is_closed_with_the_server() -> None:
    """server_close() closes the socket it was given, and clients are refused from then on."""
    listener = listening()
    server = QuickServer.from_socket(listener, lambda peer: None)
    with running(server), connected(server) as client:
        assert client.rest() == REFUSED
    assert listener.fileno() == -1
    assert refused(server)


def test_a_path_is_left_to_its_owner(tmp_path: Path) -> None:
    """The server does not remove a UNIX socket's path: who made it may have others listening, or start anew."""
    path = tmp_path / "pop3"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with QuickServer.from_socket(listener, lambda peer: None):
            pass
    assert path.exists()


INHERITED = """
    import os, signal, socket
    import popart

    assert (os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"]) == (str(os.getpid()), "1")
    server = popart.Server.from_socket(socket.socket(fileno=3), lambda peer: None)
    signal.signal(signal.SIGTERM, lambda *_: server.server_close())
    os.write(1, b"x")
    server.serve_forever()
"""


@contextmanager
def activated(listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process of its own that gets its listening socket as systemd passes it; stopped when left."""
    child = subprocess.Popen(
        ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 0</dev/null', "sh"]
        + [sys.executable, "-c", textwrap.dedent(INHERITED)],
        stdin=listener,
        stdout=subprocess.PIPE,
        cwd=Path(popart.__file__).parents[1],
    )
    with child:
        assert child.stdout is not None and child.stdout.read(1) == b"x"
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(PATIENCE)
            finally:
                child.kill()


def answer_of(address: Any) -> bytes:
    with socket.create_connection(address, timeout=PATIENCE) as client:
        return client.recv(100)


@needs_shell
def test_an_inherited_descriptor() -> None:
    """A process serves the socket that it inherits as descriptor 3; clients that come between two processes wait."""
    with listening() as listener:
        for _ in range(2):
            with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as early:
                with activated(listener) as child:
                    assert early.recv(100) == REFUSED
                    assert answer_of(listener.getsockname()) == REFUSED
                assert child.returncode == 0


@needs_shell
def test_two_processes_on_one_socket() -> None:
    """When one of two processes that share a socket ends, the other serves every client, and can end too."""
    with listening() as listener, activated(listener) as second:
        with activated(listener) as first:
            assert answer_of(listener.getsockname()) == REFUSED
        assert first.returncode == 0
        for _ in range(10):
            assert answer_of(listener.getsockname()) == REFUSED
    assert second.returncode == 0


@pytest.mark.parametrize("closed", [0, 1])
def test_two_servers_on_one_socket(closed: int) -> None:
    """When one of two servers that share a socket is closed, the other goes on, and its accept() never blocks.

    Duplicates of a socket share its O_NONBLOCK.
    """
    first = listening()
    servers = [QuickServer.from_socket(sock, lambda peer: MemoryHandler(Mail())) for sock in (first, first.dup())]
    with running(servers[closed]), running(servers[1 - closed]):
        with signed_in(servers[0]):
            servers[closed].server_close()
        for _ in range(10):
            with signed_in(servers[1 - closed]) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
        with ThreadPoolExecutor() as others:
            others.submit(servers[1 - closed].server_close).result(PATIENCE)
        assert refused(servers[0])


def test_another_process_makes_the_socket_blocking() -> None:
    """No accept() blocks although another holder of the socket has made it blocking, as wrap_socket() does."""
    acted = threading.Event()

    class Acting(QuickServer):
        def service_actions(self) -> None:
            acted.set()

    listener = listening()
    with listener.dup() as other, running(Acting.from_socket(listener, lambda peer: None)) as server:
        assert answer_of(server.server_address) == REFUSED
        other.setblocking(True)
        assert answer_of(server.server_address) == REFUSED
        acted.clear()
        try:
            assert acted.wait(PATIENCE)
        finally:
            other.setblocking(False)
            assert answer_of(server.server_address) == REFUSED


@pytest.mark.parametrize("made", ["wrapped", "ssl_context"])
def test_from_socket_with_tls(made: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A listening socket that is wrapped makes each connection TLS, as ssl_context= does."""
    listener = listening()
    options = {}
    if made == "wrapped":
        listener = server_context.wrap_socket(listener, server_side=True)
    else:
        options["ssl_context"] = server_context
    server = QuickServer.from_socket(listener, lambda peer: MemoryHandler(Mail(MESSAGE)), **options)
    with running(server), connected(server):  # a client that is silent holds up nobody
        with signed_in(server, client_context) as client:
            assert client.ask(b"STAT") == b"+OK 1 34\r\n"


@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        ("AF_INET", socket.SOCK_STREAM, None),
        ("AF_UNIX", socket.SOCK_STREAM, None),
        ("AF_INET", socket.SOCK_DGRAM, HOST),
        ("AF_UNIX", socket.SOCK_DGRAM, "datagrams"),
    ],
    ids=["unbound TCP", "unbound UNIX", "UDP", "UNIX datagrams"],
)
def test_sockets_that_cannot_listen(family: str, kind: int, address: Any, tmp_path: Path) -> None:
    """What is no bound stream socket is a ValueError, and stays the caller's."""
    with socket.socket(getattr(socket, family), kind) as sock:
        if address is not None:
            sock.bind(str(tmp_path / address) if family == "AF_UNIX" else address)
        with pytest.raises(ValueError, match="bound stream socket"):
            Server.from_socket(sock, lambda peer: None)
        assert sock.fileno() != -1


def test_sockets_of_another_family() -> None:
    """Only TCP and UNIX sockets are served: of a virtual machine's socket, popart cannot say who is one peer."""

    class Virtual:
        family, type = 40, socket.SOCK_STREAM  # AF_VSOCK

        def getsockname(self) -> tuple[int, int]:
            return 2, 110

    with pytest.raises(ValueError, match="bound stream socket"):
        Server.from_socket(Virtual(), lambda peer: None)  # type: ignore[arg-type]


def test_a_connection_is_no_listener() -> None:
    """A connected socket is an OSError, as for listen(), and stays the caller's."""
    with listening() as listener, socket.create_connection(listener.getsockname()) as sock:
        with pytest.raises(OSError):
            Server.from_socket(sock, lambda peer: None)
        assert sock.fileno() != -1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 1),
        ("hostname", "a b"),
        ("trusted_proxies", ["nowhere"]),
        ("ssl_context", ssl.create_default_context()),
    ],
)
def test_from_socket_with_bad_options(option: str, value: Any) -> None:
    """What is a ValueError for Server() is one for from_socket() too; the socket is unharmed and can be served."""
    listener = listening()
    with pytest.raises(ValueError):
        Server.from_socket(listener, lambda peer: None, **{option: value})
    with running(Server.from_socket(listener, lambda peer: None)) as server, connected(server) as client:
        assert client.rest() == REFUSED


def test_options_and_class_attributes() -> None:
    """from_socket() passes every option on, and makes an object of the class that it is called on."""

    class Small(QuickServer):
        max_connections = 1
        request_queue_size = 7

    server = Small.from_socket(
        listening(),
        lambda peer: MemoryHandler(Mail()),
        hostname="pop.example",
        timeout=1.0,
        implementation="here",
        expire="7",
        apop=True,
    )
    assert isinstance(server, Small)
    with running(server), connected(server) as client, connected(server) as second:
        assert client.line().endswith(b"@pop.example>\r\n")
        client.send(b"CAPA\r\n")
        assert {b"EXPIRE 7\r\n", b"IMPLEMENTATION here\r\n"} <= set(client.lines().splitlines(keepends=True))
        assert second.line().startswith(TOO_MANY)


def test_handle_request_with_from_socket() -> None:
    """handle_request() waits for one client, although the socket was passed non-blocking."""
    listener = listening()
    listener.setblocking(False)
    with QuickServer.from_socket(listener, lambda peer: None) as server, ThreadPoolExecutor() as others:
        handled = others.submit(server.handle_request)
        assert not wait([handled], 0.1).done
        with dialled(server) as client:
            assert client.rest() == REFUSED
        handled.result(PATIENCE)


@pytest.mark.skipif(is_wine(), reason="Wine forgets such a client")
def test_handle_request_for_a_client_that_is_gone() -> None:
    """handle_request() returns when the client that it accepts has reset its connection already; the next is served."""
    with QuickServer.from_socket(listening(), lambda peer: None) as server:
        with dialled(server) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.handle_request()
        with dialled(server) as client:
            server.handle_request()
            assert client.rest() == REFUSED


def test_handle_request_for_a_client_that_another_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """handle_request() waits for the next client when another process was quicker to accept the one it saw."""
    accept = socket.socket.accept

    def robbed(sock: socket.socket) -> Any:
        if sock is not server.socket:  # it makes a pair of sockets, on Windows
            return accept(sock)
        monkeypatch.setattr(socket.socket, "accept", accept)
        accept(sock)[0].close()
        return accept(sock)

    with QuickServer.from_socket(listening(), lambda peer: MemoryHandler(Mail())) as server:
        monkeypatch.setattr(socket.socket, "accept", robbed)
        with ThreadPoolExecutor() as others:
            handled = others.submit(server.handle_request)
            with dialled(server) as client:
                assert client.rest() == b""
            assert not wait([handled], 0.1).done
            with signed_in(server) as second:
                handled.result(PATIENCE)
                assert second.ask(b"NOOP").startswith(b"+OK")


# require_tls.

EVERYWHERE = ["0.0.0.0", "", pytest.param("::", marks=needs_ipv6)]


@pytest.mark.parametrize("host", [*LOOPBACKS, "127.1.2.3", "localhost"])
def test_plain_on_loopback(host: str) -> None:
    """With require_tls a plain server may listen on loopback: who reads there reads everything anyway."""
    with running(QuickServer((host, 0), lambda peer: None, require_tls=True)) as server, dialled(server) as client:
        assert client.rest() == REFUSED


@pytest.mark.parametrize("listens", [False, True], ids=["bound", "listening"])
def test_plain_on_any_local_socket(unused: socket.socket, listens: bool) -> None:
    """So may one on a socket that is passed to it: loopback, or UNIX."""
    if listens:
        unused.listen()
    server = QuickServer.from_socket(unused, lambda peer: None, require_tls=True)
    with running(server), dialled(server) as client:
        assert client.rest() == REFUSED


@pytest.mark.parametrize("host", EVERYWHERE)
def test_plain_elsewhere(host: str) -> None:
    """With require_tls a plain server anywhere else is a ValueError that says what is missing; no socket is left."""
    before = open_descriptors()
    with pytest.raises(ValueError, match="ssl_context"):
        Server((host, 0), lambda peer: None, require_tls=True)
    assert open_descriptors() == before


@pytest.mark.parametrize("listens", [False, True], ids=["bound", "listening"])
@pytest.mark.parametrize("host", EVERYWHERE)
def test_plain_elsewhere_from_socket(host: str, listens: bool) -> None:
    """The same of a socket that is passed; it stays open, and is not made to listen."""
    before = open_descriptors()
    with bound(host) as sock:
        if listens:
            sock.listen()
        with pytest.raises(ValueError, match="ssl_context"):
            Server.from_socket(sock, lambda peer: None, require_tls=True)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) is listens
    assert open_descriptors() == before


def test_plain_elsewhere_bound_later() -> None:
    """Without bind_and_activate it is server_activate() that refuses."""
    server = Server(("0.0.0.0", 0), lambda peer: None, require_tls=True, bind_and_activate=False)
    with server:
        server.server_bind()
        with pytest.raises(ValueError, match="ssl_context"):
            server.server_activate()
        assert not server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def wrap(server: Server, context: ssl.SSLContext) -> None:
    server.socket = context.wrap_socket(server.socket, server_side=True)


@pytest.mark.parametrize("wrapped", [None, "before server_bind", "before server_activate"])
def test_tls_everywhere(wrapped: str | None, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """require_tls is content with an ssl_context, and with a socket that is wrapped before it listens."""

    def factory(peer: Any) -> popart.Handler:
        return MemoryHandler(Mail())

    if wrapped is None:
        server = QuickServer(("0.0.0.0", 0), factory, require_tls=True, ssl_context=server_context)
    else:
        server = QuickServer(("0.0.0.0", 0), factory, require_tls=True, bind_and_activate=False)
        if wrapped == "before server_bind":
            wrap(server, server_context)
        server.server_bind()
        if wrapped == "before server_activate":
            wrap(server, server_context)
        server.server_activate()
    with running(server), signed_in(server, client_context) as client:
        assert client.ask(b"NOOP").startswith(b"+OK")


@pytest.mark.parametrize("listens", [False, True], ids=["bound", "listening"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["ssl_context", "wrapped"])
def test_tls_everywhere_from_socket(
    wrapped: bool, listens: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """The same of a socket that is passed."""
    sock = bound("0.0.0.0")
    if listens:
        sock.listen()
    if wrapped:
        sock = server_context.wrap_socket(sock, server_side=True)
    context = None if wrapped else server_context
    server = QuickServer.from_socket(sock, lambda peer: MemoryHandler(Mail()), require_tls=True, ssl_context=context)
    with running(server), signed_in(server, client_context) as client:
        assert client.ask(b"NOOP").startswith(b"+OK")


# proxy_protocol.


class Peers:
    """A factory that notes who the clients are, and turns them away."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, peer: Any) -> None:
        self.seen.append(peer)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def contexts(
    request: pytest.FixtureRequest, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """The server's and the client's context, or None twice."""
    return (server_context, client_context) if request.param else (None, None)


both_versions = pytest.mark.parametrize("header", [v1, v2])


@both_versions
@pytest.mark.parametrize(
    ("host", "peer"),
    [("192.0.2.1", ("192.0.2.1", 5000)), ("2001:db8::1", ("2001:db8::1", 5000, 0, 0))],
    ids=["IPv4", "IPv6"],
)
def test_the_client_behind_the_proxy(
    header: Callable[[str], bytes], host: str, peer: Any, contexts: tuple[Any, Any]
) -> None:
    """on_new_connection() gets the address that the PROXY header tells, in the form of a socket's; TLS comes behind."""
    peers = Peers()
    with running(QuickServer(HOST, peers, ssl_context=contexts[0], proxy_protocol=True)) as server:
        with proxied(server, header(host), contexts[1]) as client:
            assert client.rest() == REFUSED
    assert peers.seen == [peer]


@both_versions
def test_a_header_in_pieces(header: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may come octet by octet."""
    pieces: SimpleQueue[bytes] = SimpleQueue()

    def noting() -> Generator[int, bytes, Address | None]:
        reading = read_header()
        wanted = next(reading)
        try:
            while True:
                octets = yield wanted
                pieces.put(octets)
                wanted = reading.send(octets)
        except StopIteration as end:
            return end.value

    monkeypatch.setattr(popart.connection, "read_header", noting)
    peers = Peers()
    with running(QuickServer(HOST, peers, proxy_protocol=True)) as server, connected(server) as client:
        for octet in header("192.0.2.1"):
            client.send(bytes([octet]))
            assert pieces.get(timeout=PATIENCE) == bytes([octet])
        assert client.rest() == REFUSED
    assert peers.seen == [("192.0.2.1", 5000)]


@both_versions
def test_commands_right_behind_the_header(header: Callable[[str], bytes]) -> None:
    """Commands that come in one packet with the header are answered, each once."""
    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(mail), proxy_protocol=True)) as server:
        with proxied(server, header("192.0.2.1") + b"USER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n") as client:
            assert [line[:3] for line in client.rest().splitlines()] == [b"+OK"] * 5
    assert mail.calls[-2:] == [("delete_messages", [1]), ("unlock_maildrop",)]


@both_versions
def test_a_handshake_right_behind_the_header(
    header: Callable[[str], bytes], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """TLS begins behind the header's last octet, also when both come in one packet."""
    peers = Peers()
    server = QuickServer(HOST, peers, ssl_context=server_context, proxy_protocol=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    octets = header("192.0.2.1")
    with running(server), connected(server) as client:
        while True:
            try:
                assert tls.read(100) == REFUSED
                break
            except ssl.SSLWantReadError:
                client.send(octets + outgoing.read())
                octets = b""
                incoming.write(client.sock.recv(65_536))
    assert peers.seen == [("192.0.2.1", 5000)]


@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN 192.0.2.1 127.0.0.1 5000 110\r\n", raw_v2(0x20, 0), raw_v2(0x21, 0)],
    ids=["UNKNOWN", "UNKNOWN, with addresses", "LOCAL", "AF_UNSPEC"],
)
def test_the_proxy_itself(header: bytes, contexts: tuple[Any, Any]) -> None:
    """Where the header tells of no client, a health check for one, the connection's own address stands."""
    peers = Peers()
    with running(QuickServer(HOST, peers, ssl_context=contexts[0], proxy_protocol=True)) as server:
        with proxied(server, header, contexts[1]) as client:
            own = client.sock.getsockname()
            assert client.rest() == REFUSED
    assert peers.seen == [own]


def test_a_client_of_the_proxys_unix_socket() -> None:
    """A client that reached the proxy over a UNIX socket is known by that socket's path."""
    peers = Peers()
    with running(QuickServer(HOST, peers, proxy_protocol=True)) as server:
        with proxied(server, raw_v2(0x21, 0x31, struct.pack("108s108s", b"/run/client", b"/run/proxy"))) as client:
            assert client.rest() == REFUSED
    assert peers.seen == ["/run/client"]


def test_a_second_header_is_no_header() -> None:
    """What a client says behind the proxy's header is a command, whatever it looks like: no peer is forged."""
    peers = Peers()

    def factory(peer: Any) -> popart.Handler:
        peers(peer)
        return MemoryHandler(Mail())

    with running(QuickServer(HOST, factory, proxy_protocol=True)) as server:
        with proxied(server, v1("192.0.2.1") + v1("192.0.2.2")) as client:
            assert client.line().startswith(b"+OK")
            assert client.line().startswith(b"-ERR")
            client.sign_in()
    assert peers.seen == [("192.0.2.1", 5000)]


def test_a_header_that_nobody_asked_for() -> None:
    """Without proxy_protocol a header is a command that does not exist."""
    peers = Peers()

    def factory(peer: Any) -> popart.Handler:
        peers(peer)
        return MemoryHandler(Mail())

    with running(QuickServer(HOST, factory)) as server, proxied(server, v1("192.0.2.1")) as client:
        assert client.line().startswith(b"+OK")
        assert client.line().startswith(b"-ERR")
        assert peers.seen == [client.sock.getsockname()]


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"P",
        v1("192.0.2.1")[:-1],
        v2("192.0.2.1")[:10],
        v2("192.0.2.1")[:-1],
        b"\r\n",
        b"CAPA\r\nUSER alice\r\n",
        b"GET / HTTP/1.1\r\nHost: pop.example\r\n\r\n",
        b"PROXY http://example/ HTTP/1.0\r\n\r\n",
        b"PROXY TCP4 pop.example 127.0.0.1 5000 110\r\n",
        b"PROXY TCP4 192.0.2.1 127.0.0.1 5000 110\n" + b"USER alice\r\n" * 100,
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
        raw_v2(0x31, 0x11, bytes(12)),
        raw_v2(0x21, 0x11, bytes(11)),
        raw_v2(0x21, 0x11, bytes(5000)),
        bytes(1000),
        b"x" * 100_000,
    ],
    ids=[
        "nothing",
        "v1 one octet",
        "v1 cut",
        "v2 cut",
        "v2 cut in its address",
        "empty line",
        "commands",
        "HTTP",
        "HTTP, of a kind",
        "v1 name",
        "v1 LF",
        "v1 long",
        "v2 version 3",
        "v2 short",
        "v2 long",
        "NULs",
        "junk",
    ],
)
def test_no_good_header(octets: bytes, contexts: tuple[Any, Any]) -> None:
    """Without a good header a connection ends without one octet; handle_error() is told, nobody else."""
    peers = Peers()
    server = TalkingServer(HOST, peers, ssl_context=contexts[0], proxy_protocol=True)
    with running(server), connected(server) as client:
        with suppress(OSError):  # it may be closed already
            client.send(octets)
            client.sock.shutdown(socket.SHUT_WR)
        assert hears(client) == b""
        assert not len(server._places)
    assert [type(error) for error in server.told] == [ProxyError]
    assert peers.seen == []


def test_tls_without_a_header(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A client that goes past the proxy hears not even an alert."""
    peers = Peers()
    server = TalkingServer(HOST, peers, ssl_context=server_context, proxy_protocol=True)
    with running(server), connected(server) as client:
        client.send(client_hello(client_context))
        assert hears(client) == b""
    assert [type(error) for error in server.told] == [ProxyError]
    assert peers.seen == []


@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
def test_the_header_has_a_deadline(trickles: bool) -> None:
    """A connection without a whole header is cut after handshake_timeout, which no octet extends."""
    peers = Peers()
    server = TalkingServer(HOST, peers, proxy_protocol=True)
    server.handshake_timeout = 0.3
    with running(server), connected(server) as client:
        client.sock.settimeout(0.05)
        for octet in b"PROXY UNKNOWN".ljust(100, b" "):
            try:
                if trickles:
                    client.send(bytes([octet]))
                assert client.sock.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the header went on")
    assert [type(error) for error in server.told] == [ClientTimeoutError]
    assert peers.seen == []


def test_one_deadline_for_header_and_handshake(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """handshake_timeout bounds header and TLS handshake together: a late header leaves less time for the handshake."""
    deadlines: list[float] = []
    until = Place.until

    def noting(place: Place, deadline: float, *arguments: Any, **options: Any) -> Place:
        if options:  # it is a wait for input
            deadlines.append(deadline)
        return until(place, deadline, *arguments, **options)

    monkeypatch.setattr(Place, "until", noting)
    with running(QuickServer(HOST, Peers(), ssl_context=server_context, proxy_protocol=True)) as server:
        with proxied(server, v1("192.0.2.1"), client_context) as client:
            assert client.rest() == REFUSED
    *earlier, linger = deadlines
    assert len(earlier) > 2 and len(set(earlier)) == 1 and linger != earlier[0]


def test_a_handshake_behind_the_header_has_a_deadline(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A client that says no more behind a good header is cut after handshake_timeout."""
    peers = Peers()
    server = TalkingServer(HOST, peers, ssl_context=server_context, proxy_protocol=True)
    server.handshake_timeout = 0.1
    with running(server), proxied(server, v1("192.0.2.1") + client_hello(client_context)[:50]) as client:
        assert hears(client) == b""
    assert [type(error) for error in server.told] == [ClientTimeoutError]
    assert peers.seen == []


@both_versions
def test_whose_handshake_failed(header: Callable[[str], bytes], server_context: ssl.SSLContext) -> None:
    """handle_error() is given the client's address, not the proxy's, where a handshake fails behind a header."""
    told: list[Any] = []

    class Telling(QuickServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            told.append(client_address)

    with running(Telling(HOST, Peers(), ssl_context=server_context, proxy_protocol=True)) as server:
        with proxied(server, header("192.0.2.1") + b"USER alice\r\n") as client:
            hears(client)
    assert told == [("192.0.2.1", 5000)]


# trusted_proxies.


@pytest.mark.parametrize(
    ("host", "networks", "trusted"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.1", ["127.0.0.1"], True),
        ("127.0.0.1", ["192.0.2.0/24", "127.0.0.0/8"], True),
        ("127.0.0.1", ["0.0.0.0/0"], True),
        ("127.0.0.1", ["192.0.2.0/24"], False),
        ("127.0.0.1", ["127.0.0.2"], False),
        ("127.0.0.1", ["::/0"], False),
        ("127.0.0.1", [], False),
        *(
            pytest.param(*case, marks=needs_ipv6)
            for case in [
                ("::1", None, True),
                ("::1", ["::1"], True),
                ("::1", ["127.0.0.0/8", "0.0.0.0/0"], False),
                ("::1", ["2001:db8::/32"], False),
                ("::", None, True),
                ("::", ["127.0.0.1"], True),
                ("::", ["::1"], False),
                ("::", ["192.0.2.0/24"], False),
            ]
        ),
    ],
)
def test_whose_headers_are_believed(
    host: str, networks: list[str] | None, trusted: bool, contexts: tuple[Any, Any]
) -> None:
    """A header counts from trusted_proxies alone; other connections are closed at once, a header sent or not.

    On a socket for IPv6 and IPv4 a peer's IPv4 address counts as such.
    """
    peers = Peers()
    options: dict[str, Any] = {} if networks is None else {"trusted_proxies": networks}
    server = TalkingServer((host, 0), peers, ssl_context=contexts[0], proxy_protocol=True, **options)
    if host == "::":
        server.server_address = ("127.0.0.1", server.server_address[1])
    with running(server):
        if trusted:
            with proxied(server, v1("192.0.2.1"), contexts[1]) as client:
                assert client.rest() == REFUSED
        else:
            for header in (v1("192.0.2.1"), b"PROXY UNKNOWN\r\n", b"CAPA\r\n", b""):
                with proxied(server, header) as client:
                    assert hears(client) == b""
    assert peers.seen == [("192.0.2.1", 5000)] * trusted
    assert [type(error) for error in server.told] == [ProxyError] * 4 * (not trusted)


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (("127.8.9.1", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("192.0.2.1", 1), False),
        (("10.0.0.1", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("2001:db8::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
    ],
)
def test_who_is_trusted_by_default(peer: Any, trusted: bool) -> None:
    """Without trusted_proxies a header is believed of this machine alone: no stranger, near or far, forges a peer."""
    with Server(HOST, Peers(), proxy_protocol=True) as server:
        assert is_trusted(peer, server.trusted_proxies) is trusted


def test_trust_in_a_link_local_proxy() -> None:
    """The zone of an IPv6 address is no part of it."""
    with Server(HOST, Peers(), proxy_protocol=True, trusted_proxies=["fe80::/10"]) as server:
        assert is_trusted(("fe80::1%eth0", 5000, 0, 2), server.trusted_proxies)
        assert not is_trusted(("2001:db8::1", 5000, 0, 0), server.trusted_proxies)


@pytest.mark.parametrize(
    "networks", [["nowhere"], [""], ["10.0.0.1/8"], ["10.0.0.0/33"], ["127.0.0.1", None], "127.0.0.1"]
)
def test_bad_networks(networks: Any) -> None:
    """trusted_proxies that are no addresses or networks are a ValueError, before anything is bound."""
    with socket.create_server(HOST) as other, pytest.raises(ValueError):
        Server(other.getsockname(), Peers(), trusted_proxies=networks)


def test_proxies_on_a_unix_socket(unused: socket.socket) -> None:
    """A UNIX socket's clients are believed, whatever trusted_proxies; its file modes say who they are."""
    peers = Peers()
    trusted = [] if unused.family == getattr(socket, "AF_UNIX", None) else ["127.0.0.1", "::1"]
    server = QuickServer.from_socket(unused, peers, proxy_protocol=True, trusted_proxies=trusted)
    with running(server):
        for header in (v1("192.0.2.1"), v2("2001:db8::1")):
            with dialled(server) as client:
                client.send(header)
                assert client.rest() == REFUSED
    assert peers.seen == [("192.0.2.1", 5000), ("2001:db8::1", 5000, 0, 0)]


# Limits behind a proxy.


def is_welcome(server: Server, header: bytes, context: ssl.SSLContext | None) -> bool:
    """Tell whether one more connection is let in; if not, see that it is refused as it should be."""
    with proxied(server, header + (client_hello(context) if context else b"")) as client:
        answer = b""
        with suppress(ConnectionResetError):
            answer = client.sock.recv(100)
    if context is not None:
        assert answer[:1] in (b"", b"\x16"), "neither closed nor a handshake"
        return answer != b""
    assert answer.startswith((b"+OK", TOO_MANY))
    return answer.startswith(b"+OK")


@both_versions
def test_connections_per_client(header: Callable[[str], bytes], contexts: tuple[Any, Any]) -> None:
    """The limit per peer counts the clients, not their proxy; over TLS one too many is closed before the handshake."""
    peers = Peers()

    def factory(peer: Any) -> popart.Handler:
        peers(peer)
        return MemoryHandler(Mail())

    server = TalkingServer(HOST, factory, ssl_context=contexts[0], proxy_protocol=True)
    server.max_connections_per_peer = 1
    with running(server), proxied(server, header("2001:db8::1"), contexts[1]) as six:
        assert six.line().startswith(b"+OK")
        with proxied(server, header("192.0.2.1"), contexts[1]) as four:
            assert four.line().startswith(b"+OK")
            assert not is_welcome(server, header("192.0.2.1"), contexts[1])
            assert not is_welcome(server, header("::ffff:192.0.2.1"), contexts[1])
            assert not is_welcome(server, header("2001:db8::2"), contexts[1])
            assert is_welcome(server, header("192.0.2.2"), contexts[1])
            assert [peer[0] for peer in peers.seen if peer[0] != "192.0.2.2"] == ["2001:db8::1", "192.0.2.1"]
            assert four.ask(b"QUIT").startswith(b"+OK")
        wait_until(lambda: is_welcome(server, header("192.0.2.1"), contexts[1]))
        assert not is_welcome(server, header("2001:db8:0:0:1::"), contexts[1])
    assert not server._places._peers


def test_refused_connections_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client beyond its limit takes no place from others: what it is refused does not count in max_connections."""
    monkeypatch.setattr(popart.client_socket, "LAST_READ_SECONDS", 60.0)
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()), proxy_protocol=True)
    server.max_connections_per_peer = 1
    with running(server), proxied(server, v1("192.0.2.1")) as first, proxied(server, v1("192.0.2.1")) as second:
        assert {first.line()[:3], second.line()[:3]} == {b"+OK", b"-ER"}
        wait_until(lambda: len(server._places) == 1)


def test_the_proxys_own_connections_count_as_its_own() -> None:
    """A connection whose header tells of no client counts as one of the proxy's."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()), proxy_protocol=True)
    server.max_connections_per_peer = 1
    with running(server), proxied(server, raw_v2(0x20, 0)) as check:
        assert check.line().startswith(b"+OK")
        assert not is_welcome(server, b"PROXY UNKNOWN\r\n", None)
        assert not is_welcome(server, v1("127.0.0.1"), None)
        assert is_welcome(server, v1("192.0.2.1"), None)


def test_connections_without_a_header_count_for_nobody() -> None:
    """As long as the header is awaited, a connection is no peer's, and other clients are not refused for it."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()), proxy_protocol=True)
    server.max_connections_per_peer = 1
    with running(server), connected(server), connected(server):
        wait_until(lambda: len(server._places) == 2)
        assert is_welcome(server, v1("127.0.0.1"), None)


def test_connections_of_all(contexts: tuple[Any, Any]) -> None:
    """max_connections counts all clients of a proxy, and one that ends is counted down."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()), ssl_context=contexts[0], proxy_protocol=True)
    server.max_connections = 2
    with running(server), proxied(server, v1("192.0.2.1"), contexts[1]) as client:
        assert client.line().startswith(b"+OK")
        client.sign_in()
        with proxied(server, v1("192.0.2.2"), contexts[1]) as other:
            assert other.line().startswith(b"+OK")
            other.sign_in()
            assert not is_welcome(server, v1("192.0.2.3"), contexts[1])
        wait_until(lambda: is_welcome(server, v1("192.0.2.3"), contexts[1]))


def test_a_connection_without_a_header_makes_room(contexts: tuple[Any, Any]) -> None:
    """A connection that has yet to send its header counts in max_connections, and makes room for a client."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail()), ssl_context=contexts[0], proxy_protocol=True)
    server.max_connections = 2
    with running(server), proxied(server, v1("192.0.2.1"), contexts[1]) as client, connected(server) as silent:
        assert client.line().startswith(b"+OK")
        client.sign_in()
        wait_until(lambda: sum(place.waits for place in server._places.all()) == 2)
        assert is_welcome(server, v1("192.0.2.3"), contexts[1])
        assert silent.rest() == b""
        assert client.ask(b"NOOP").startswith(b"+OK")
    assert not server._places._peers


@pytest.mark.parametrize("octets", [b"", b"PROXY TCP4", v2("192.0.2.1")[:-1]], ids=["nothing", "v1", "v2"])
def test_closing_while_a_header_is_awaited(octets: bytes, contexts: tuple[Any, Any]) -> None:
    """server_close() ends a connection that waits for its header at once; no handler is made."""
    peers = Peers()
    server = TalkingServer(HOST, peers, ssl_context=contexts[0], proxy_protocol=True)
    server.shutdown_grace = 60
    with running(server), proxied(server, octets) as client:
        wait_until(lambda: any(place.idle for place in server._places.all()))
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
        assert hears(client) == b""
    assert [type(error) for error in server.told] == [ProxyError]
    assert peers.seen == []


@pytest.mark.parametrize("header", [v1("192.0.2.1"), b"PROXY UNKNOWN\r\n"], ids=["TCP4", "UNKNOWN"])
def test_shutdown_leaves_connections_that_wait(header: bytes) -> None:
    """shutdown() ends the accepting only: a connection that was accepted before may still send its header."""
    peers = Peers()
    with running(QuickServer(HOST, peers, proxy_protocol=True)) as server, connected(server) as client:
        wait_until(lambda: len(server._places) == 1)
        server.shutdown()
        client.send(header)
        assert client.rest() == REFUSED
    assert len(peers.seen) == 1


# reuse_port.


@needs_reuse_port
@pytest.mark.parametrize("host", LOOPBACKS)
def test_two_servers_on_one_port(host: str) -> None:
    """With reuse_port several servers listen on one port, and the system deals the clients out among them."""
    mine, others = Peers(), Peers()
    with running(QuickServer((host, 0), mine, reuse_port=True)) as server:
        with running(QuickServer(server.server_address[:2], others, reuse_port=True)):
            for _ in range(200):  # by a hash of the client's address: all to one, and the dice are loaded
                assert answer_of(server.server_address[:2]) == REFUSED
                if mine.seen and others.seen:
                    break
        assert mine.seen and others.seen
        assert answer_of(server.server_address[:2]) == REFUSED


@needs_reuse_port
@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True)])
def test_a_port_is_not_shared_unasked(first: bool, second: bool) -> None:
    """A port is shared only if each server asks for it: no other program slips in unnoticed."""
    before = open_descriptors()
    with Server(HOST, Peers(), reuse_port=first) as server:
        with pytest.raises(OSError) as caught:
            Server(server.server_address, Peers(), reuse_port=second)
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before


def test_reuse_port_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without SO_REUSEPORT reuse_port is a ValueError, and everything else works."""
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(ValueError, match="SO_REUSEPORT"):
        Server(HOST, Peers(), reuse_port=True)
    with running(QuickServer(HOST, Peers())) as server:
        assert answer_of(server.server_address) == REFUSED
