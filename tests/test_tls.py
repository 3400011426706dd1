"""TLS: in the connection's own thread, from the first octet to the last, and ended as the session was."""

from __future__ import annotations

import poplib
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import popart
from popart import tls_handshake
from popart.client_socket import Stream
from popart.command_deadlines import Closing, Place
from popart.fairness import Pace, Pacer
from popart.server import Server
from popart.tls_records import TLS
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    is_bare_end,
    running,
    signed_in,
    wait_until,
)
from tests.test_server import HOST, MESSAGE, Held, TalkingServer

if TYPE_CHECKING:
    import trustme

Make = Callable[[Callable[[Any], popart.Handler], ssl.SSLContext], TalkingServer]


def by_argument(factory: Callable[[Any], popart.Handler], context: ssl.SSLContext) -> TalkingServer:
    return TalkingServer(HOST, factory, ssl_context=context)


def by_wrapping(factory: Callable[[Any], popart.Handler], context: ssl.SSLContext) -> TalkingServer:
    server = TalkingServer(HOST, factory)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


both_ways = pytest.mark.parametrize("make", [by_argument, by_wrapping])


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first octets of a handshake."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class TLSClient:
    """A client, signed in, that keeps the server's octets as they came and tells close_notify from a bare end."""

    def __init__(self, server: Server, authority: trustme.CA) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        # Python has OpenSSL 3 take a bare end for close_notify; other clients do not.
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        self.raw = b""
        self.sock = socket.create_connection(server.server_address[:2], timeout=PATIENCE)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.wait_for(self.tls.do_handshake)
        self.wait_for(self.tls.read, 1000)
        assert self.ask(b"USER alice").startswith(b"+OK")
        assert self.ask(b"PASS secret").startswith(b"+OK")

    def __enter__(self) -> TLSClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def wait_for(self, step: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                return step(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                octets = self.sock.recv(65_536)
                self.raw += octets
                self.incoming.write(octets) if octets else self.incoming.write_eof()

    def flush(self) -> None:
        with suppress(OSError):
            self.sock.sendall(self.outgoing.read())

    def send(self, octets: bytes) -> None:
        self.tls.write(octets)
        self.flush()

    def ask(self, command: bytes) -> bytes:
        self.send(command + b"\r\n")
        return self.wait_for(self.tls.read, 65_536)

    def rest(self) -> tuple[bytes, bool]:
        """Read to the end, and tell whether that was close_notify."""
        octets = b""
        try:
            while piece := self.wait_for(self.tls.read, 65_536):
                octets += piece
        except ssl.SSLZeroReturnError:
            return octets, True
        except ConnectionResetError:
            return octets, False
        except ssl.SSLError as error:
            if not is_bare_end(error):
                raise
            return octets, False
        return octets, True

    def all_encrypted(self) -> bool:
        """Is every octet that came part of a TLS record?"""
        raw = self.raw
        while raw:
            if not (raw[0] in range(20, 24) and raw[1:3] == b"\x03\x03"[: len(raw) - 1]):
                return False
            raw = raw[5 + int.from_bytes(raw[3:5], "big") :]
        return True


@both_ways
def test_a_session(make: Make, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A session with the standard library's client, TLS from its first octet."""
    mail = Mail(MESSAGE)
    with running(make(lambda peer: MemoryHandler(mail), server_context)) as server:
        client = poplib.POP3_SSL("localhost", server.server_address[1], timeout=PATIENCE, context=client_context)
        client.user("alice")
        client.pass_("secret")
        assert b"\r\n".join(client.retr(1)[1]) + b"\r\n" == MESSAGE
        client.dele(1)
        assert client.quit().startswith(b"+OK")
    assert mail.count("delete_messages") == mail.count("unlock_maildrop") == 1
    assert mail.errors == []


def shake_hands(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, client: Client) -> None:
    """Shake hands as a TLS 1.3 client, but keep its last words in *outgoing*."""
    for _ in range(2):
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
            incoming.write(client.sock.recv(65_536))


@both_ways
def test_commands_right_behind_the_handshake(
    make: Make, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Commands that come in one packet with the client's last words of the handshake are answered."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with running(make(lambda peer: MemoryHandler(Mail(MESSAGE)), server_context)) as server:
        with connected(server) as client:
            shake_hands(tls, incoming, outgoing, client)
            tls.write(b"USER alice\r\nPASS secret\r\n")
            tls.write(b"QUIT\r\n")
            client.send(outgoing.read())
            incoming.write(client.rest())
            heard = b""
            while not heard.endswith(b"+OK goodbye\r\n"):
                heard += tls.read(1000)
            assert heard.count(b"\r\n+OK ") == 3


def test_commands_behind_those(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Further commands are read as they are."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with running(by_argument(lambda peer: MemoryHandler(Mail(MESSAGE)), server_context)) as server:
        with connected(server) as client:
            shake_hands(tls, incoming, outgoing, client)
            heard = b""
            for command in (b"USER alice\r\n", b"PASS secret\r\n", b"QUIT\r\n"):
                tls.write(command)
                client.send(outgoing.read())
                while not heard.endswith(b"\r\n") or heard.count(b"\r\n") < 2:
                    with suppress(ssl.SSLWantReadError):
                        heard += tls.read(1000)
                        continue
                    incoming.write(client.sock.recv(65_536))
                assert heard.count(b"+OK ") == 2
                heard = heard.partition(b"\r\n")[2]


def test_the_end_of_a_handshake_is_not_held_back(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    """A client of TLS 1.2 need not wait for the application to hear that the handshake is over."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = by_argument(lambda peer: MemoryHandler(Mail(MESSAGE)), server_context)
    held = Held(server, "on_new_connection")
    try:
        with running(server), connected(server, context) as client:
            assert held.entered.wait(PATIENCE)
            held.go_on.set()
            assert client.line().startswith(b"+OK")
    finally:
        held.go_on.set()


def test_a_handshake_has_no_second_period(server_context: ssl.SSLContext) -> None:
    """Who has yet to shake hands gets no more time for reading what was sent."""
    with running(by_argument(lambda peer: MemoryHandler(Mail()), server_context)) as server, connected(server):
        wait_until(lambda: [place.idle for place in server._places.all()] == [True])
        assert server._places.all()[0]._wait[1] == 0.0


def test_a_word_of_tls_itself() -> None:
    """What TLS answers to a record without contents is sent at once."""

    class Answering:
        ended = False

        def decrypt(self, octets: bytes) -> bytes:
            return octets[1:]

        def outgoing(self) -> bytes:
            return b"an answer"

    one, other = socket.socketpair()
    with one, other:
        stream = Stream(Place(one, "", Closing()), Pace(Pacer()), 600.0)
        tls: Any = Answering()
        assert stream._decrypt(tls, b"x") == b""
        assert other.recv(100) == b"an answer"
        assert stream._decrypt(tls, b"xNOOP") == b"NOOP"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)


@both_ways
def test_a_silent_client(make: Make, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """The handshake is made in the connection's own thread: clients that never end theirs hold up nobody."""
    with running(make(lambda peer: MemoryHandler(Mail(MESSAGE)), server_context)) as server:
        with connected(server), connected(server) as stuck:
            stuck.send(client_hello(client_context)[:50])
            with signed_in(server, client_context) as client:
                assert client.ask(b"RETR 1").startswith(b"+OK")


@both_ways
@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
def test_the_handshake_has_one_deadline(
    make: Make, server_context: ssl.SSLContext, client_context: ssl.SSLContext, trickles: bool
) -> None:
    """handshake_timeout bounds the whole handshake: octets that arrive do not extend it."""
    server = make(lambda peer: MemoryHandler(Mail()), server_context)
    server.handshake_timeout = 0.3
    with running(server), connected(server) as client:
        client.sock.settimeout(0.05)
        for octet in client_hello(client_context)[:100]:
            if trickles:
                client.send(bytes([octet]))
            try:
                assert client.sock.recv(1) == b""
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("the handshake went on")
    assert len(server.told) == 1


@both_ways
def test_closing_amid_a_handshake(make: Make, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A handshake that waits for the client ends at once when the server closes; no handler is made."""
    mail = Mail()
    with running(make(lambda peer: ClosingHandler(mail), server_context)) as server, connected(server) as client:
        server.shutdown_grace = 60
        client.send(client_hello(client_context))
        assert client.sock.recv(1)
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
    assert mail.calls == []


@both_ways
@pytest.mark.parametrize("live", [False, True], ids=["new context", "live context"])
def test_a_new_certificate(make: Make, live: bool, client_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """A context assigned to ssl_context counts for the next connection, as does load_cert_chain() on the live one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    serials = []
    with running(make(lambda peer: MemoryHandler(Mail()), context)) as server:
        for _ in range(2):
            with connected(server, client_context) as client:
                assert isinstance(client.sock, ssl.SSLSocket)
                serials.append((client.sock.getpeercert() or {})["serialNumber"])
            if not live:
                server.ssl_context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
    assert serials[0] != serials[1]


@both_ways
def test_close_notify_at_a_normal_end(make: Make, server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """QUIT is answered and followed by close_notify, without waiting for the client's (RFC 8446 section 6.1)."""
    handler = ClosingHandler(Mail())
    with running(make(lambda peer: handler, server_context)) as server, TLSClient(server, authority) as client:
        client.send(b"QUIT\r\n")
        assert client.rest() == (b"+OK goodbye\r\n", True)
        client.sock.settimeout(1)
        assert client.sock.recv(1) == b""
        assert client.all_encrypted()


@both_ways
def test_close_notify_to_idle_sessions(make: Make, server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """A server that closes ends idle sessions with close_notify too, not with an alert."""
    handler = ClosingHandler(Mail())
    with running(make(lambda peer: handler, server_context)) as server, TLSClient(server, authority) as client:
        client.send(b"NOOP\r\n")
        server.server_close()
        assert client.rest() in [(b"+OK nothing done\r\n", True), (b"", True)]
        assert client.all_encrypted()


@pytest.mark.parametrize("commands", [b"QUIT\r\n", b"BAD\r\n" * 3, b"GET / HTTP/1.1\r\n"])
def test_the_last_reply_survives_unread_input(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, commands: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client sends behind its last command is read and dropped: no reset eats the last reply."""
    monkeypatch.setattr("popart.client_socket.LAST_READ_SECONDS", PATIENCE)
    server = by_argument(lambda peer: MemoryHandler(Mail()), server_context)
    server.max_bad_commands = 3
    with running(server), connected(server, client_context) as client:
        client.send(commands + b"x" * 10_000_000)
        assert client.rest().count(b"\r\n") == 1 + commands.count(b"\r\n")


def test_close_notify_from_the_client(server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """A client that ends TLS behind its commands still reads the replies; without QUIT nothing is deleted."""
    mail = Mail(MESSAGE)
    server = by_argument(lambda peer: MemoryHandler(mail), server_context)
    with running(server), TLSClient(server, authority) as client:
        client.send(b"DELE 1\r\nNOOP\r\nQUIT")
        with suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()
        before = len(client.raw)
        while octets := client.sock.recv(65_536):
            client.raw += octets
        assert len(client.raw) - before > len(b"+OK message marked as deleted\r\n+OK nothing done\r\n")
        assert client.all_encrypted()
        assert list(map(str, mail.errors)) == ["the client left without QUIT"]
    assert (mail.count("unlock_maildrop"), mail.count("delete_messages")) == (1, 0)


def test_octets_behind_close_notify(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """What follows a client's close_notify is ignored (RFC 8446 section 6.1), and not waited for."""
    server = TLS(server_context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def receive() -> bytes:
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        return outgoing.read()

    tls_handshake.shake_hands(server, receive, incoming.write)
    client.write(b"NOOP\r\n")
    with suppress(ssl.SSLWantReadError):
        client.unwrap()
    assert server.decrypt(outgoing.read() + b"QUIT\r\n") == b"NOOP\r\n" and server.ended


@both_ways
def test_a_reply_while_closing(make: Make, server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """The reply to a command that runs while the server closes goes out over TLS, and ends with close_notify."""
    handler = MemoryHandler(Mail(MESSAGE))
    held = Held(handler, "get_message_reader")
    with running(make(lambda peer: handler, server_context)) as server, TLSClient(server, authority) as client:
        client.send(b"RETR 1\r\n")
        assert held.entered.wait(PATIENCE)
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            assert not wait([closing], 0.1).done
            held.go_on.set()
            assert client.rest() == (b"+OK 34 octets\r\n" + MESSAGE + b".\r\n", True)
            closing.result(PATIENCE)
        assert client.all_encrypted()


def test_a_message_cut_by_closing(server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """A client that reads too late gets a part of the message over TLS, no close_notify, and nothing in the clear."""
    server = by_argument(lambda peer: MemoryHandler(Mail(b"x" * 20_000_000)), server_context)
    server.shutdown_grace = 0.1
    with running(server), TLSClient(server, authority) as client:
        client.send(b"RETR 1\r\n")
        client.wait_for(client.tls.read, 100)
        server.server_close()
        octets, notified = client.rest()
        assert not notified and not octets.endswith(b".\r\n")
        assert client.all_encrypted()


def test_octets_that_are_no_record(server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """Junk within a TLS session ends it with an alert, as for a client that has gone."""
    mail = Mail(MESSAGE)
    server = by_argument(lambda peer: MemoryHandler(mail), server_context)
    with running(server), TLSClient(server, authority) as client:
        client.sock.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(ssl.SSLError, match="(?i)bad record mac"):
            client.wait_for(client.tls.read, 100)
        wait_until(lambda: bool(mail.errors))  # a server that closes tells of nobody who has gone
    assert list(map(repr, mail.errors)) == ["ClientGoneError('the connection broke')"]
    assert mail.count("unlock_maildrop") == 1


@both_ways
def test_a_plain_client_on_a_tls_port(make: Make, server_context: ssl.SSLContext) -> None:
    """A client without TLS is let go at once, and hears nothing of POP3."""
    server = make(lambda peer: MemoryHandler(Mail()), server_context)
    with running(server), connected(server) as client:
        client.send(b"USER alice\r\n")
        with suppress(ConnectionResetError):
            assert b"OK" not in client.rest()
    assert len(server.told) == 1


def test_a_tls_client_on_a_plain_port(client_context: ssl.SSLContext) -> None:
    """A TLS client is refused at once, although it never ends its line."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()))) as server:
        with pytest.raises(ssl.SSLError), connected(server, client_context):
            pass
        with connected(server) as client:
            client.send(client_hello(client_context) + b"x" * 2000)
            assert client.rest().count(b"-ERR") == 1
