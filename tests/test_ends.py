"""How connections end: nothing looks whole that is not, and nothing that was sent is lost (promise 1)."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import popart
from popart import system
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    QuickServer,
    connected,
    expect_reset,
    running,
    signed_in,
    wait_until,
)
from tests.test_hostile import Stream
from tests.test_server import HOST, MESSAGE, Held
from tests.test_tls import TLSClient

if TYPE_CHECKING:
    import trustme

LARGE = b"Subject: large\r\n\r\n" + (b"x" * 78 + b"\r\n") * 25_000
"""Two megabytes."""


class Breaking:
    """A message whose reader fails after 80 KB."""

    def __init__(self) -> None:
        self.chunks = [b"y" * 40_000] * 2

    def read(self, n: int, /) -> bytes:
        return self.chunks.pop()

    def close(self) -> None: ...


class EndsHandler(ClosingHandler):
    """Message 1 is large, message 2 breaks, message 3 is of 64 MB."""

    def get_message_reader(self, number: int) -> popart.MessageReader:
        if number == 2:
            return Breaking()
        return Stream() if number == 3 else super().get_message_reader(number)


def make_handler() -> EndsHandler:
    return EndsHandler(Mail(LARGE, MESSAGE, MESSAGE))


@contextmanager
def small_client(server: Server) -> Iterator[Client]:
    """Connect a client whose system takes little before it reads, and sign in."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.settimeout(PATIENCE)
        sock.connect(server.server_address[:2])
        client = Client(sock)
        try:
            client.line()
            client.sign_in()
            yield client
        finally:
            client.file.close()  # as long as it is open, so is the socket


# A reset within a message.


def test_a_reset_comes_behind_what_was_sent_before() -> None:
    """Complete replies of the same pipeline arrive, however late they are read, before the reset that ends a broken
    message.
    """
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, small_client(server) as client:
        client.send(b"RETR 1\r\nRETR 2\r\n")
        assert handler.closed.wait(PATIENCE)  # all that is left to the server is the reset
        threading.Event().wait(0.2)
        assert client.line().startswith(b"+OK")
        assert client.file.read(len(LARGE) + 3) == LARGE + b".\r\n"
        rest = client.rest_until_reset()
        assert rest.startswith(b"+OK") and set(rest.partition(b"\r\n")[2]) == set(b"y")
    assert [type(error) for error in handler.mail.errors] == [IndexError]


def test_no_reset_after_a_whole_message() -> None:
    """A client that leaves without QUIT when it has read a message reads a plain end."""
    with running(QuickServer(HOST, lambda peer: make_handler())) as server, signed_in(server) as client:
        assert client.ask(b"RETR 1").startswith(b"+OK")
        assert client.file.read(len(LARGE) + 3) == LARGE + b".\r\n"
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b""


def test_a_descriptor_is_open_until_nobody_can_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends by a reset is closed when the watchdog no longer knows it: the next connection may have
    its descriptor.
    """
    found: list[int] = []
    with running(QuickServer(HOST, lambda peer: make_handler())) as server:
        leave = server._places.leave

        def leave_open(request: socket.socket) -> None:
            found.append(request.fileno())
            leave(request)

        monkeypatch.setattr(server._places, "leave", leave_open)
        with signed_in(server) as client:
            client.send(b"RETR 2\r\n")
            assert client.rest_until_reset().startswith(b"+OK")
    assert found and found[0] != -1


def test_a_reset_waits_for_two_seconds_at_most() -> None:
    """A client that does not read what came before a broken message keeps its thread for no longer than that."""
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, small_client(server) as client:
        client.send(b"RETR 1\r\nRETR 2\r\n")
        assert handler.closed.wait(PATIENCE)
        begin = time.monotonic()
        wait_until(lambda: not len(server._places))
        assert time.monotonic() - begin < 3
        assert b"y" not in client.rest_until_reset()


def test_a_reset_where_the_send_queue_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TIOCOUTQ a broken message ends by a reset all the same."""
    monkeypatch.setattr(system, "unsent", lambda sock: None)
    with running(QuickServer(HOST, lambda peer: make_handler())) as server, signed_in(server) as client:
        client.send(b"RETR 2\r\n")
        client.rest_until_reset()


def test_a_failure_of_popart_within_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps popart itself from sending the rest of a message, want of memory for one, ends it by a reset, and
    the handler is told.
    """
    handler = make_handler()
    send = system.send_at_once
    sent: list[int] = []

    def fail(sock: socket.socket, octets: Any) -> int:
        if sent:
            raise MemoryError
        if len(octets) > 30_000:
            sent.append(1)
        return send(sock, octets)

    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        monkeypatch.setattr(system, "send_at_once", fail)
        client.send(b"RETR 1\r\n")
        assert client.rest_until_reset().startswith(b"+OK")
        monkeypatch.setattr(system, "send_at_once", send)
    assert [type(error) for error in handler.mail.errors] == [MemoryError]


def late(server: Server) -> None:
    """Wait for the watch over slow readers."""


def closed(server: Server) -> None:
    server.server_close()


@pytest.mark.parametrize("command", [b"RETR 3", b"LIST"])
@pytest.mark.parametrize("end", [late, closed])
def test_a_client_that_does_not_read_is_reset(command: bytes, end: Callable[[Server], None]) -> None:
    """A reply that is cut since nobody reads it, by the timeout or as the server closes, ends by a reset: never by an
    end that a FIN in the send queue would have made.
    """
    handler = make_handler()
    if command == b"LIST":
        handler.list_messages = lambda: [(10**15, f"id-{n}") for n in range(300_000)]  # type: ignore[attr-defined]
    server = QuickServer(HOST, lambda peer: handler, timeout=0.6 if end is late else 600)
    server.shutdown_grace = 0.2
    with running(server), small_client(server) as client:
        client.send(command + b"\r\n")
        assert client.line().startswith(b"+OK")
        end(server)
        assert handler.closed.wait(PATIENCE)
        assert b"\r\n.\r\n" not in client.rest_until_reset()
    errors = [popart.ClientTimeoutError] if end is late else []
    assert [type(error) for error in handler.mail.errors] == errors
    assert handler.mail.count("unlock_maildrop") == 1


@pytest.mark.parametrize("end", [late, closed])
def test_a_client_that_does_not_read_is_reset_over_tls(
    end: Callable[[Server], None], server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    """Over TLS too, without close_notify."""
    handler = make_handler()
    server = QuickServer(HOST, lambda peer: handler, ssl_context=server_context, timeout=0.6 if end is late else 600)
    server.shutdown_grace = 0.2
    with running(server), TLSClient(server, authority) as client:
        client.send(b"RETR 3\r\n")
        assert client.wait_for(client.tls.read, 5) == b"+OK 3"
        end(server)
        assert handler.closed.wait(PATIENCE)
        with expect_reset():
            while client.sock.recv(65_536):
                pass


def test_a_unix_socket_cannot_be_reset(tmp_path: Path) -> None:
    """There a broken message ends without its final dot, and that is all."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "pop3"))
    with running(QuickServer.from_socket(listener, lambda peer: make_handler())):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "pop3"))
            client = Client(sock)
            client.sign_in()
            client.send(b"RETR 2\r\n")
            assert client.rest().endswith(b"yyy")
            client.file.close()


# server_close().


@pytest.mark.parametrize("command", [b"", b"NOOP\r\n"], ids=["silent", "NOOP"])
def test_replies_are_read_within_the_grace(command: bytes) -> None:
    """A client that still reads what was sent is not idle: server_close() loses nothing of it, not even if a command
    comes just then.
    """
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, small_client(server) as client:
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        wait_until(lambda: all(place.idle for place in server._places.all()))
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            wait_until(lambda: server._closing.begun)
            client.send(command)
            assert client.file.read(len(LARGE) + 3) == LARGE + b".\r\n"
            assert client.rest() in (b"", b"+OK nothing done\r\n")
            closing.result(PATIENCE)
    assert handler.mail.errors == []


def test_a_message_that_is_read_slowly_as_the_server_closes() -> None:
    """A message whose reader is slow is cut when the grace is over, by a reset behind what was sent before."""
    read, go_on = threading.Event(), threading.Event()

    class Slow(Breaking):
        def read(self, n: int, /) -> bytes:
            if len(self.chunks) == 1:
                read.set()
                assert go_on.wait(PATIENCE)
            return super().read(n)

    handler = make_handler()
    handler.get_message_reader = lambda number: Slow()  # type: ignore[method-assign]
    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        server.shutdown_grace = 0.1
        client.send(b"NOOP\r\nRETR 3\r\n")
        assert read.wait(PATIENCE)
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            wait_until(lambda: server._closing.grace_over)
            go_on.set()
            assert client.rest_until_reset().startswith(b"+OK nothing done\r\n+OK 34 octets\r\n")
            closing.result(PATIENCE)
    assert handler.mail.errors == [] and handler.mail.count("unlock_maildrop") == 1


def test_an_answer_after_the_grace_is_not_waited_for() -> None:
    """A client that does not read the answer to a command which outlasted the grace is cut within two seconds, and not
    after the whole *timeout*.
    """
    entered, go_on = threading.Event(), threading.Event()

    class Slow(ClosingHandler):
        def get_message_id(self, number: int) -> str:
            if number == 20_000:
                entered.set()
                assert go_on.wait(PATIENCE)
            return f"{number:070}"

    handler = Slow(Mail(*[b""] * 20_000))
    server = QuickServer(HOST, lambda peer: handler)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    server.shutdown_grace = 0.05
    with running(server), ThreadPoolExecutor() as others, small_client(server) as client:
        client.send(b"UIDL\r\n")
        assert entered.wait(PATIENCE)
        closing = others.submit(server.server_close)
        wait_until(lambda: server._closing.grace_over)
        begin = time.monotonic()
        go_on.set()
        assert handler.closed.wait(PATIENCE)
        assert time.monotonic() - begin < 4
        closing.result(PATIENCE)
        assert client.rest_until_reset().startswith(b"+OK")


def test_nothing_is_lost_in_a_pause() -> None:
    """A session that lets time pass while its client reads is not idle: server_close() loses nothing of what was sent,
    not even if a command comes just then.
    """
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, small_client(server) as client:
        server._pacer.add(1000)
        client.send(b"RETR 1\r\n" + b"NOOP\r\n" * 600)
        assert client.line().startswith(b"+OK")
        wait_until(lambda: all(place._alarm is not None for place in server._places.all()))
        with ThreadPoolExecutor() as others:
            closing = others.submit(server.server_close)
            assert not handler.closed.wait(0.2)
            client.send(b"NOOP\r\n")
            assert client.file.read(len(LARGE) + 3) == LARGE + b".\r\n"
            assert set(client.rest().splitlines()) <= {b"+OK nothing done"}
            closing.result(PATIENCE)
    assert handler.mail.errors == []


def test_half_a_record_as_the_server_closes(server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """Half a TLS record that has come when an idle session ends does not turn its close_notify into an alert."""
    server = QuickServer(HOST, lambda peer: make_handler(), ssl_context=server_context)
    server.shutdown_grace = 60
    with running(server), TLSClient(server, authority) as client:
        client.tls.write(b"NOOP\r\n")
        client.sock.sendall(client.outgoing.read()[:10])
        (place,) = server._places.all()
        wait_until(lambda: place.idle and not system.unsent(place.socket))
        server.server_close()
        assert client.rest() == (b"", True)


def test_a_session_that_lingers_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that keeps its end open after the last reply does not keep server_close() waiting."""
    monkeypatch.setattr("popart.client_socket.LAST_READ_SECONDS", 2 * PATIENCE)
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        server.shutdown_grace = 60
        assert client.ask(b"QUIT").startswith(b"+OK")
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)


# The timeout counts what the client takes.


def read_slowly(client: Client, octets: int, piece: int) -> bytes:
    """Read so many octets, a piece each 50 ms."""
    pause = threading.Event()
    received = bytearray()
    while len(received) < octets:
        pause.wait(0.05)
        want = piece
        while want and len(received) < octets:
            more = client.file.read1(want)
            assert more, "the connection ended"
            want -= len(more)
            received += more
    return bytes(received)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_who_takes_enough_goes_on(tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A client that takes 131,072 octets in each *timeout* is not cut, whenever the system wakes the writer."""
    mail = Mail(LARGE * 3)
    server = QuickServer(
        HOST, lambda peer: ClosingHandler(mail), timeout=0.6, ssl_context=server_context if tls else None
    )
    with running(server), socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        raw.settimeout(PATIENCE)
        raw.connect(server.server_address[:2])
        sock = client_context.wrap_socket(raw, server_hostname="localhost") if tls else raw
        client = Client(sock)
        client.line()
        client.sign_in()
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        received = read_slowly(client, len(mail.messages[0]) + 3, 80_000)
        assert received.endswith(b"\r\n.\r\n")
        assert client.ask(b"QUIT").startswith(b"+OK")
        client.close()
    assert mail.errors == []


def test_progress_where_the_send_queue_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """There what the system takes counts in place of what the client takes."""
    monkeypatch.setattr(system, "unsent", lambda sock: None)
    mail = Mail(LARGE)
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), timeout=1.0)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    with running(server), small_client(server) as client:
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        assert read_slowly(client, len(LARGE) + 3, 60_000).endswith(b"\r\n.\r\n")
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert mail.errors == []


def test_who_still_reads_is_not_late_with_a_command() -> None:
    """The wait for a command begins when the client has read what was sent before."""
    mail = Mail(b"x" * 1_500_000)
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), timeout=1.0)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    with running(server), small_client(server) as client:
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        read_slowly(client, 1_500_005, 40_000)
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert mail.errors == []


def test_a_command_in_two_pieces_after_slow_reading() -> None:
    """Who has read for longer than the timeout may send its next command in pieces, as some clients do."""
    mail = Mail(b"x" * 1_500_000)
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), timeout=1.0)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    pieces: list[socket.socket] = []
    with running(server), small_client(server) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "acknowledge", pieces.append)
        client.send(b"RETR 1\r\n")
        assert client.line().startswith(b"+OK")
        read_slowly(client, 1_500_005, 40_000)
        client.send(b"NO")
        wait_until(lambda: bool(pieces))
        threading.Event().wait(0.5)
        client.send(b"OP\r\n")
        assert client.line() == b"+OK nothing done\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert mail.errors == []


@pytest.mark.parametrize("waits", ["to write", "for a command"])
def test_who_takes_too_little_is_cut(waits: str) -> None:
    """A client that takes a few octets now and then does not keep its place by them."""
    handler = ClosingHandler(Mail(b"x" * (20_000_000 if waits == "to write" else 200_000)))
    server = QuickServer(HOST, lambda peer: handler, timeout=0.4)
    with running(server), small_client(server) as client, suppress(ConnectionError):
        client.send(b"RETR 1\r\n")
        pause = threading.Event()
        for _ in range(200):
            if handler.closed.is_set():
                break
            pause.wait(0.02)
            client.sock.recv(100)
        else:
            pytest.fail("the session went on")
    assert [type(error) for error in handler.mail.errors] == [popart.ClientTimeoutError]


def test_who_takes_anything_goes_on_on_a_unix_socket(tmp_path: Path) -> None:
    """There the system counts memory, not octets, so any progress is enough."""
    handler = ClosingHandler(Mail(b"x" * 2_000_000))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "pop3"))
    with running(QuickServer.from_socket(listener, lambda peer: handler, timeout=1.0)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "pop3"))
            client = Client(sock)
            client.sign_in()
            client.line()
            client.send(b"RETR 1\r\n")
            received = read_slowly(client, 2_000_000, 60_000)
            assert b"x" * 1_000_000 in received
            client.send(b"QUIT\r\n")
            assert client.rest().endswith(b"+OK goodbye\r\n")
            client.file.close()
    assert handler.mail.errors == []


# The final dot over TLS.


class RecordingClient(TLSClient):
    """Keeps what each record held."""

    def records(self, final: bytes) -> list[bytes]:
        """Read records until one ends with *final*."""
        found: list[bytes] = []
        raw = b""
        while not b"".join(found[-2:]).endswith(final):
            while len(raw) < 5 or len(raw) < 5 + int.from_bytes(raw[3:5], "big"):
                octets = self.sock.recv(65_536)
                assert octets, "the connection ended"
                raw += octets
            end = 5 + int.from_bytes(raw[3:5], "big")
            self.incoming.write(raw[:end])
            raw = raw[end:]
            found.append(self.tls.read(65_536))
        return found


@pytest.mark.parametrize("pipeline", [1, 3])
def test_the_last_record_of_a_reply(pipeline: int, server_context: ssl.SSLContext, authority: trustme.CA) -> None:
    """No record holds fewer than five octets of a reply's end: some clients misread a terminator that comes alone."""
    sizes = range(16_384 - 30, 16_384 + 2)
    mail = Mail(*[b"x" * (size - 2) + b"\r\n" for size in sizes])
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), ssl_context=server_context)
    with running(server), RecordingClient(server, authority) as client:
        for number, size in enumerate(sizes, 1):
            client.send(b"RETR %d\r\n" % number * pipeline + b"NOOP\r\n")
            reply = b"+OK %d octets\r\n" % size + mail.messages[number - 1] + b".\r\n"
            records = client.records(b"+OK nothing done\r\n")
            assert b"".join(records) == reply * pipeline + b"+OK nothing done\r\n"
            at = 0
            for record in records:
                at += len(record)
                left = -at % len(reply)  # of the reply that the record's end cuts
                assert not 0 < left < 5 or at > len(reply) * pipeline


# Small things.


def test_greeting_and_tickets_leave_together(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session tickets of TLS 1.3 and the greeting are one write: some clients take a packet of TLS's own for an
    empty line.
    """
    writes: list[int] = []
    send = system.send_at_once

    def noting(sock: socket.socket, octets: Any) -> int:
        writes.append(len(octets))
        return send(sock, octets)

    monkeypatch.setattr(system, "send_at_once", noting)
    server = QuickServer(HOST, lambda peer: make_handler(), ssl_context=server_context)
    with running(server), connected(server, client_context) as client:
        assert isinstance(client.sock, ssl.SSLSocket) and client.sock.version() == "TLSv1.3"
        assert client.line() == b"+OK POP3 server ready\r\n"
        assert client.sock.session is not None and client.sock.session.has_ticket
        assert len(writes) == 2  # the server's part of the handshake is the first


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_replies_of_a_pipeline_leave_together(
    tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent at once is answered at once: the replies to pipelined commands are one write."""
    writes: list[int] = []
    send = system.send_at_once

    def noting(sock: socket.socket, octets: Any) -> int:
        writes.append(len(octets))
        return send(sock, octets)

    server = QuickServer(
        HOST, lambda peer: ClosingHandler(Mail(MESSAGE, MESSAGE)), ssl_context=server_context if tls else None
    )
    with running(server), signed_in(server, client_context if tls else None) as client:
        monkeypatch.setattr(system, "send_at_once", noting)
        client.send(b"NOOP\r\nRETR 1\r\nXYZZY\r\nLIST\r\nRETR 2\r\nDELE 1\r\n" + b"NOOP\r\n" * 20 + b"STAT\r\n")
        while client.line() != b"+OK 1 34\r\n":
            pass
        assert len(writes) == 1


@pytest.mark.parametrize(("pieces", "times"), [([b"NOOP\r\n"], 0), ([b"NOOP", b"\r\n"], 1), ([b"NO", b"OP\r\nNO"], 1)])
def test_half_a_line_is_acknowledged(pieces: list[bytes], times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that keeps the rest of its line until the first part is acknowledged need not wait for it; no other
    octets are acknowledged any sooner.
    """
    calls: list[socket.socket] = []
    acknowledge = system.acknowledge

    def noting(sock: socket.socket) -> None:
        acknowledge(sock)
        calls.append(sock)

    monkeypatch.setattr(system, "acknowledge", noting)
    with running(QuickServer(HOST, lambda peer: make_handler())) as server, signed_in(server) as client:
        for number, piece in enumerate(pieces):
            client.send(piece)
            if piece is not pieces[-1]:
                wait_until(lambda number=number: len(calls) == number + 1)
        assert client.line().startswith(b"+OK")
        assert len(calls) == times


def test_clients_that_reset_before_the_handshake(server_context: ssl.SSLContext) -> None:
    """A client that vanishes before its handshake leaves no socket unclosed (Python would print a warning)."""
    server = QuickServer(HOST, lambda peer: make_handler(), ssl_context=server_context)
    held = Held(server, "finish_request")
    with running(server):
        for _ in range(20):
            with connected(server) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert held.entered.wait(PATIENCE)
        held.go_on.set()
        wait_until(lambda: not len(server._places))
