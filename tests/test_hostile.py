"""Hostile clients: stalls, junk, abrupt ends, floods.  None may hurt another session, the mail or the server."""

from __future__ import annotations

import random
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

import popart
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
from tests.test_server import HOST, MESSAGE
from tests.test_tls import client_hello

CHUNK = (b"x" * 78 + b"\r\n") * 800


class Stream:
    """A message of 64 MB that takes no memory."""

    def __init__(self) -> None:
        self.chunks = 1000

    def read(self, n: int, /) -> bytes:
        self.chunks -= 1
        return CHUNK if self.chunks >= 0 else b""

    def close(self) -> None:
        pass


class StreamHandler(ClosingHandler):
    def get_message_reader(self, number: int) -> popart.MessageReader:
        return Stream() if number == 1 else super().get_message_reader(number)


def make(mail: Mail, **options: Any) -> QuickServer:
    return QuickServer(HOST, lambda peer: StreamHandler(mail), **options)


@contextmanager
def slow_reader(server: Server) -> Iterator[socket.socket]:
    """Connect a client whose system takes little before the client reads, and have it ask for 64 MB."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.settimeout(PATIENCE)
        sock.connect(server.server_address)
        sock.sendall(b"USER alice\r\nPASS secret\r\nDELE 2\r\nRETR 1\r\n")
        assert sock.recv(1) == b"+"
        yield sock


@contextmanager
def small_peak(limit: int) -> Iterator[None]:
    """Fail when Python allocates more than *limit* octets at a time."""
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        assert tracemalloc.get_traced_memory()[1] - before < limit
    finally:
        tracemalloc.stop()


# Stalls.


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_two_hundred_stalled_clients(tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Clients that never begin, begin and stop, or do not read hold up nobody: another reads its mail at once."""
    signed_in_and_deaf = b"USER alice\r\nPASS secret\r\nRETR 1\r\n"
    stalls = [b"", b"\x16\x03\x01", client_hello(client_context)] if tls else [b"", b"USER ali", signed_in_and_deaf]
    context = server_context if tls else None
    server = QuickServer(HOST, lambda peer: StreamHandler(Mail(MESSAGE, MESSAGE)), ssl_context=context)
    with running(server), ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connected(server)).send(stalls[number % 3])
        with signed_in(server, client_context if tls else None) as client:
            assert client.ask(b"RETR 2").startswith(b"+OK")
            assert client.lines() == MESSAGE + b".\r\n"


@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
def test_the_autologout(trickles: bool) -> None:
    """A command has one deadline that no octet extends; past it nothing is sent and nothing deleted (RFC 1939, 3)."""
    mail = Mail(MESSAGE)
    with running(make(mail)) as server, signed_in(server) as client:
        server.command_timeout = 0.3
        client.ask(b"DELE 1")
        client.sock.settimeout(0.05)
        for _ in range(100):
            try:
                assert client.sock.recv(1) == b""
                break
            except TimeoutError:
                if trickles:
                    client.send(b"Q")
        else:
            pytest.fail("the session went on")
        wait_until(lambda: mail.count("close") == 1)
    assert mail.count("delete_messages") == 0
    assert mail.count("unlock_maildrop") == 1
    assert [type(error) for error in mail.errors] == [popart.ClientTimeoutError]


@pytest.mark.parametrize("line", [b"CAPA\r\n", b"USER alice\r\n", b"BAD\r\nCAPA\r\n", b""], ids=repr)
def test_the_login_timeout(line: bytes) -> None:
    """login_timeout covers the whole AUTHORIZATION state: commands do not extend it."""
    mail = Mail()
    server = make(mail)
    server.login_timeout = 0.3
    with running(server), connected(server) as client:
        client.sock.settimeout(0.05)
        for _ in range(100):
            with suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                client.send(line)
                while client.sock.recv(1000):
                    pass
                break
        else:
            pytest.fail("the session went on")
        wait_until(lambda: mail.count("close") == 1)
    assert [type(error) for error in mail.errors] == [popart.ClientTimeoutError] * bool(line)


def test_the_login_timeout_ends_with_the_login() -> None:
    """Who has signed in has the command's timeout alone."""
    server = make(Mail())
    server.login_timeout = 1.0
    with running(server), signed_in(server) as client:
        client.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.send(b"NOOP\r\n")
        assert client.sock.recv(3) == b"+OK"


def test_the_login_timeout_bounds_the_delay_of_failed_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays that grow after wrong passwords do not outlast login_timeout, whatever max_failed_logins is."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 2 * PATIENCE)
    handler = ClosingHandler(Mail())
    server = QuickServer(HOST, lambda peer: handler)
    server.max_failed_logins = None
    server.login_timeout = 0.3
    with running(server), connected(server) as client:
        client.send(b"USER alice\r\nPASS wrong\r\n" * 4)
        assert handler.closed.wait(PATIENCE)


def test_failed_logins_end_and_delay_that_client_alone() -> None:
    """Each wrong password is answered later; after max_failed_logins the session ends with the last answer."""
    mail = Mail(MESSAGE)
    server = make(mail)
    server.max_failed_logins = 2
    with running(server), connected(server) as client:
        client.line()
        started = time.monotonic()
        client.send(b"USER alice\r\nPASS wrong\r\n" * 3)
        wait_until(lambda: mail.count("authenticate_pass") == 1)
        with signed_in(server) as other:
            assert other.ask(b"QUIT").startswith(b"+OK")
        assert re.fullmatch(rb"(\+OK .*\r\n-ERR \[AUTH\] .*\r\n){2}", client.rest())
        assert time.monotonic() - started > 0.7
    assert [type(error) for error in mail.errors] == [popart.LimitError]


def test_a_reader_that_stops_is_dropped() -> None:
    """Who asks for a big message and does not read it is dropped in the midst of it, and its lock is released."""
    mail = Mail(MESSAGE, MESSAGE)
    handler = StreamHandler(mail)
    with running(QuickServer(HOST, lambda peer: handler, timeout=0.3)) as server, slow_reader(server) as client:
        assert handler.closed.wait(PATIENCE)
        with suppress(ConnectionResetError):
            while octets := client.recv(1_000_000):
                assert not octets.endswith(b".\r\n")
    assert mail.count("unlock_maildrop") == 1
    assert mail.count("delete_messages") == 0
    assert [type(error) for error in mail.errors] == [popart.ClientTimeoutError]


def test_slow_reading_is_not_hostile() -> None:
    """Each write has a deadline of its own: a message may take longer than *timeout*, and a reply be read by octets."""
    mail = Mail(b"x" * 3_000_000)
    server = QuickServer(HOST, lambda peer: ClosingHandler(mail), timeout=2.0)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    pause = threading.Event()
    with running(server), slow_reader(server) as client:
        octets = bytearray()
        while not octets.endswith(b"\r\n.\r\n"):
            pause.wait(0.05)
            piece = client.recv(65_536)
            assert piece, "dropped"
            octets += piece
        client.sendall(b"STAT\r\n")
        assert b"".join(client.recv(1) for _ in range(15)) == b"+OK 1 3000000\r\n"
    assert octets.count(b"x") == 3_000_000


# Volume.


def test_ten_megabytes_without_a_line_end() -> None:
    """A line of 10 MB is dropped as it comes, in flat memory, and answered once."""
    with running(make(Mail(MESSAGE))) as server, signed_in(server) as client, small_peak(1_000_000):
        for _ in range(160):
            client.send(CHUNK.replace(b"\r\n", b"yy"))
        client.send(b"\r\n")
        assert client.line().startswith(b"-ERR")
        assert client.ask(b"STAT").startswith(b"+OK 1 ")


def test_a_big_message_in_flat_memory() -> None:
    """64 MB go out in the memory of a few chunks."""
    with running(make(Mail(MESSAGE))) as server, signed_in(server) as client, small_peak(4_000_000):
        client.send(b"RETR 1\r\n")
        buffer = bytearray(1_000_000)
        received = len(b"+OK 34 octets\r\n.\r\n")
        left = 1000 * len(CHUNK) + received
        while left:
            octets = client.sock.recv_into(buffer)
            assert octets, "dropped"
            left -= octets


def test_commands_of_a_client_that_never_reads_in_flat_memory() -> None:
    """Replies do not pile up: while nobody reads them, no further command is run."""
    mail = Mail(*[MESSAGE] * 100)
    server = make(mail, timeout=1.0)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    with running(server), signed_in(server) as client, small_peak(3_000_000):
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(2000):
                client.send(b"LIST\r\n" * 1000)
        wait_until(lambda: mail.count("close") == 1)
    assert [type(error) for error in mail.errors] == [popart.ClientTimeoutError]


def test_many_sessions_leave_nothing() -> None:
    """Sessions one after another: no thread, and next to no memory, stays behind."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server:
        threads = threading.active_count()

        def visit() -> None:
            with signed_in(server) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
                assert client.rest() == b""  # or sessions that end behind it would add up

        visit()
        with small_peak(200_000):
            for _ in range(200):
                visit()
        wait_until(lambda: threading.active_count() < threads + 5)


def test_a_pipeline() -> None:
    """Commands sent in one write are answered in order (RFC 2449 section 6.6), in few packets."""
    mail = Mail(*[MESSAGE] * 200)
    with running(QuickServer(HOST, lambda peer: ClosingHandler(mail))) as server, signed_in(server) as client:
        client.send(b"".join(b"LIST %d\r\n" % number for number in range(1, 201)))
        assert [client.line() for _ in range(200)] == [b"+OK %d 34\r\n" % number for number in range(1, 201)]
        client.send(b"".join(b"RETR %d\r\nDELE %d\r\n" % (number, number) for number in range(1, 201)) + b"QUIT\r\n")
        replies = b"+OK 34 octets\r\n%b.\r\n+OK message marked as deleted\r\n" % MESSAGE
        assert client.rest() == replies * 200 + b"+OK goodbye\r\n"
    assert ("delete_messages", list(range(1, 201))) in mail.calls


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_each_reply_comes_whole(tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A reply that fits goes out in one write, its final dot included: some clients misread it in pieces."""
    server = QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)), ssl_context=server_context if tls else None)
    with running(server), signed_in(server, client_context if tls else None) as client:
        for command in (b"RETR 1", b"TOP 1 0", b"TOP 1 9", b"LIST", b"UIDL", b"CAPA"):
            client.send(command + b"\r\n")
            reply = client.sock.recv(65_536)
            assert reply.startswith(b"+OK") and reply.endswith(b"\r\n.\r\n")


# Junk.


@pytest.mark.parametrize("length", [1025, 4096, 8192, 12_288, 12_289, 16_384, 100_000])
def test_the_tail_of_a_long_line_never_runs(length: int) -> None:
    """A line that is too long gets one answer, whatever stands in it and wherever the network cuts it."""
    with running(make(Mail(MESSAGE))) as server, signed_in(server) as client:
        for piece in (b"x" * length, b"DELE 1\r", b"\nSTAT\r\n"):
            client.send(piece)
        assert client.line().startswith(b"-ERR")
        assert client.line() == b"+OK 1 34\r\n"


LOGIN = b"USER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n"


@pytest.mark.parametrize(
    ("octets", "answers"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + LOGIN, rb"-ERR .*\r\n"),
        (b"POST /" + b"x" * 2_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n" + LOGIN, rb"-ERR .*\r\n"),
        (b"POST /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n" + LOGIN, rb"-ERR .*\r\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", rb"-ERR .*\r\n"),
        (b"QUIT\r\n" + LOGIN, rb"\+OK goodbye\r\n"),
        (b"BAD\r\n" * 3 + LOGIN, rb"(-ERR .*\r\n){3}"),
        (b"\0\xff\xfe\x80\n" * 3 + LOGIN, rb"(-ERR .*\r\n){3}"),
    ],
    ids=["get", "long-post", "very-long-post", "tls", "quit", "bad-commands", "binary"],
)
@pytest.mark.parametrize("tail", [0, 10_000_000])
def test_nothing_runs_behind_the_end(octets: bytes, answers: bytes, tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the last command is read and dropped, never run, and no reset eats the last reply because of it."""
    monkeypatch.setattr("popart.client_socket.LAST_READ_SECONDS", PATIENCE)
    mail = Mail(MESSAGE)
    server = make(mail)
    server.max_bad_commands = 3
    with running(server), connected(server) as client:
        client.line()
        client.send(octets + b"x" * tail)
        assert re.fullmatch(answers, client.rest())
    assert mail.calls == [("close",)]


# Abrupt ends.

RECORDED = b"USER alice\r\nPASS secret\r\nSTAT\r\nLIST\r\nRETR 1\r\nTOP 2 1\r\nDELE 1\r\nDELE 2\r\nUIDL\r\nQUIT\r\n"


def fin(sock: socket.socket) -> None:
    pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(PATIENCE)
    replies = b""
    while octets := sock.recv(65_536):
        replies += octets
    assert replies.endswith(b"\r\n")


@pytest.mark.parametrize("end", [fin, reset, half_close])
def test_clients_that_vanish(end: Callable[[socket.socket], None]) -> None:
    """Cut at any octet, each lock is released once, and nothing is deleted before QUIT and its line end were there."""
    chance = random.Random(end.__name__)
    handlers: list[ClosingHandler] = []

    def factory(peer: Any) -> popart.Handler:
        handlers.append(ClosingHandler(Mail(MESSAGE, MESSAGE)))
        return handlers[-1]

    whole = len(RECORDED)
    cuts = [whole, whole - 1, whole - 2, whole - 3, 0, *(chance.randrange(whole) for _ in range(165))]
    with running(QuickServer(HOST, factory)) as server:
        for number, cut in enumerate(cuts):
            with socket.create_connection(server.server_address[:2]) as sock:
                assert sock.recv(3) == b"+OK"
                pieces = sorted(chance.choices(range(cut + 1), k=2))
                for start, stop in zip([0, *pieces], [*pieces, cut], strict=True):
                    sock.sendall(RECORDED[start:stop])
                end(sock)
            assert len(handlers) == number + 1
            assert handlers[-1].closed.wait(PATIENCE)
            mail = handlers[-1].mail
            assert mail.count("unlock_maildrop") == mail.count("lock_maildrop") <= 1
            assert mail.count("close") == 1
            assert mail.count("delete_messages") <= (cut == whole)
            if end is half_close:
                assert mail.count("lock_maildrop") == (cut >= RECORDED.index(b"STAT"))
                assert mail.count("delete_messages") == (cut == whole)
                gone = cut < whole and b"\n" in RECORDED[:cut]
                assert [type(error) for error in mail.errors] == [popart.ClientGoneError] * gone


def test_half_a_connection_gets_all_replies() -> None:
    """A client that closes its sending side still reads the reply to each command it sent."""
    with running(make(Mail(*[MESSAGE] * 100))) as server, signed_in(server) as client:
        client.send(b"STAT\r\n" * 500 + b"NOOP")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"+OK 100 3400\r\n" * 500


# Secrets.


def test_banners_never_repeat() -> None:
    """APOP's timestamp is <digits.digits@host>, holds 64 random bits or more, and is told to the handler whole."""
    mail = Mail()
    banners = []
    server = make(mail, apop=True, hostname="mail.example.org")
    with running(server):
        for _ in range(50):
            with connected(server) as client:
                greeting = client.line().decode()
                found = re.fullmatch(r"\+OK [^<>@]*(<(\d+)\.(\d+)@mail\.example\.org>)\r\n", greeting)
                assert found
                banners.append((found[1], found[2] + found[3]))
    assert [call[1] for call in mail.calls if call[0] == "set_banner"] == [banner for banner, _ in banners]
    assert len({digits for _, digits in banners}) == 50
    # 64 random bits that 50 numbers share would show as numbers of 19 or 20 digits.
    assert min(len(digits) for _, digits in banners) >= 20
    # Neither a clock nor a process number leads them.
    assert len({digits[:3] for _, digits in banners}) > 25


def test_no_banner_without_apop() -> None:
    """Without apop the greeting has no timestamp: some clients would use APOP unasked."""
    with running(make(Mail())) as server, connected(server) as client:
        assert not set(b"<>@") & set(client.line())
