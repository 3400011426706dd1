"""A message that has fewer octets than its size is cut off, and no client may take it for whole (promise 1)."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import popart
from popart.errors import BrokenMessageError
from tests.conftest import Client, Mail, MemoryHandler, make_session, running, signed_in, wait_until

BROKEN = b"-ERR [SYS/PERM] the mailbox is broken, please tell its administrator\r\n"
GOOD = b"Subject: good\r\n\r\n.all of it\r\n"
GOOD_REPLY = b"+OK 29 octets\r\nSubject: good\r\n\r\n..all of it\r\n.\r\n"

# As a backend may store them, and as they are sent, dots not yet stuffed.
STORES = {
    "LF": (b"A: b\n\none\ntwo\n", b"A: b\r\n\r\none\r\ntwo\r\n"),
    "CRLF": (b"A: b\r\n\r\none\r\ntwo\r\n", b"A: b\r\n\r\none\r\ntwo\r\n"),
    "both": (b"A: b\r\n\none\ntwo\r\n", b"A: b\r\n\r\none\r\ntwo\r\n"),
    "dots": (b"A: b\n\n.\n..\n.x\n", b"A: b\r\n\r\n.\r\n..\r\n.x\r\n"),
    "no final newline": (b"A: b\r\n\r\none", b"A: b\r\n\r\none\r\n"),
    "lone CR at the end": (b"A: b\n\none\r", b"A: b\r\n\r\none\r\r\n"),
    "lone CRs": (b"A: b\n\n\r\r\none\rtwo\n", b"A: b\r\n\r\n\r\r\none\rtwo\r\n"),
    "only a header": (b"A: b\nC: d\n", b"A: b\r\nC: d\r\n"),
    "8-bit and NUL": (b"\xff: \0\n\n\x85\n", b"\xff: \0\r\n\r\n\x85\r\n"),
    "empty": (b"", b""),
}

LINE = b".a line of text, as mail has them, with a dot before it\n"


class Reader:
    """Returns at most *most* octets at a time, and counts how often it is closed."""

    def __init__(self, octets: bytes, most: int) -> None:
        self.file = io.BytesIO(octets)
        self.most = most
        self.closed = 0

    def read(self, n: int, /) -> bytes:
        return self.file.read(min(n, self.most))

    def close(self) -> None:
        self.closed += 1


class SizesHandler(MemoryHandler):
    """Announces a size for message 1 that may be wrong.  Message 2 is good."""

    def __init__(self, octets: bytes, size: int, most: int = 65_536) -> None:
        super().__init__(Mail(octets, GOOD))
        self.size = size
        self.most = most
        self.readers: list[Reader] = []

    def get_message_size(self, number: int) -> int:
        return self.size if number == 1 else len(GOOD)

    def get_message_reader(self, number: int) -> popart.MessageReader:
        self.readers.append(Reader(self.mail.messages[number - 1], self.most))
        return self.readers[-1]


class TopHandler(SizesHandler):
    """Opens beginnings of messages, with or without more behind them."""

    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        return self.get_message_reader(number)


class CountingHandler(SizesHandler):
    """Counts what was answered."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: list[tuple[str, str, int]] = []

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        self.answers.append((verb, outcome, octets))

    def session_finished(self, commands: int, octets: int, seconds: float) -> None: ...


@contextmanager
def serving(
    handler: popart.Handler, context: ssl.SSLContext | None = None, client_context: ssl.SSLContext | None = None
) -> Iterator[Client]:
    """Serve a handler and sign in as its client."""
    server = popart.Server(("127.0.0.1", 0), lambda peer: handler, ssl_context=context)
    with running(server), signed_in(server, client_context) as client:
        yield client


def stuffed(octets: bytes) -> bytes:
    """Return what follows the status line of a message with CRLF line ends, independently of the library."""
    lines = octets.split(b"\r\n")[:-1]
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def rest(client: Client) -> bytes:
    """Read what still comes, however the connection ends."""
    octets = b""
    with suppress(ConnectionResetError, ssl.SSLError):
        while piece := client.file.read1(65_536):
            octets += piece
    return octets


def whole(client: Client, command: bytes) -> bytes:
    """Ask for what is complete, and return what follows the status line."""
    assert client.ask(command).startswith(b"+OK")
    return client.lines()


def assert_told(handler: SizesHandler, *figures: int, times: int = 1) -> None:
    """See that the handler was told of each broken message once, by number and figures, and that readers are closed."""
    assert [type(error) for error in handler.mail.errors] == [popart.HandlerError] * times
    for error in handler.mail.errors:
        words = str(error).replace(",", " ").split()
        assert [int(word) for word in words if word.isdigit()] == [*figures]
    assert all(reader.closed == 1 for reader in handler.readers)


def assert_session_goes_on(client: Client) -> None:
    client.send(b"RETR 2\r\n")
    assert client.line() + client.lines() == GOOD_REPLY
    assert client.ask(b"QUIT").startswith(b"+OK")
    assert rest(client) == b""


@pytest.mark.parametrize("command", [b"RETR 1", b"TOP 1 99999999"])
@pytest.mark.parametrize(("stored", "sent"), STORES.values(), ids=STORES)
class TestSizes:
    """What the octets of a store are on the wire decides, neither more nor less."""

    def test_exact(self, stored: bytes, sent: bytes, command: bytes) -> None:
        """A message with just the octets that were announced arrives whole."""
        handler = SizesHandler(stored, len(sent), most=3)
        with serving(handler) as client:
            assert whole(client, command) == stuffed(sent)
            assert_session_goes_on(client)
        assert handler.readers[0].closed == 1 and not handler.mail.errors

    def test_too_small(self, stored: bytes, sent: bytes, command: bytes) -> None:
        """A size that is too small is harmless, by however much."""
        for size in {0, len(sent) // 2, max(len(sent) - 1, 0)}:
            handler = SizesHandler(stored, size, most=3)
            with serving(handler) as client:
                assert whole(client, command) == stuffed(sent)
                assert_session_goes_on(client)
            assert not handler.mail.errors

    def test_too_large_by_one(self, stored: bytes, sent: bytes, command: bytes) -> None:
        """One octet less than announced is a broken message: [SYS/PERM], and the session goes on."""
        handler = SizesHandler(stored, len(sent) + 1, most=3)
        with serving(handler) as client:
            assert client.ask(command) == BROKEN
            assert_session_goes_on(client)
        assert_told(handler, 1, len(sent), len(sent) + 1)


@pytest.mark.parametrize("most", [1_000, 65_536, 1_000_000], ids=lambda most: f"reads of {most}")
@pytest.mark.parametrize("command", [b"RETR 1", b"TOP 1 99999999"])
@pytest.mark.parametrize(
    "octets", [0, 1, 9, 11, 1_000, 31_000, 32_767, 33_000, 64_000, 65_535, 65_536, 66_000, 500_000]
)
def test_reader_that_ends_early(octets: int, command: bytes, most: int) -> None:
    """A reader that ends after any number of octets gives no message: up to 31,000 the client always reads -ERR, and
    where a part was sent already the connection ends without the final dot.
    """
    message = b"A: b\n\n" + LINE * 10_000
    sent = message.replace(b"\n", b"\r\n")
    left = popart.wire_size(message[:octets])
    handler = SizesHandler(message[:octets], len(sent), most)
    with serving(handler) as client:
        answer = client.ask(command)
        if answer == BROKEN:
            assert octets < 100_000
            assert_session_goes_on(client)
        else:
            assert octets > 31_000
            assert answer.startswith(b"+OK")
            received = rest(client)
            assert stuffed(sent).startswith(received.removesuffix(b"\r\n")) and not received.endswith(b"\n.\r\n")
        wait_until(lambda: not handler.mail.locked)
    assert_told(handler, 1, left, len(sent))


@pytest.mark.parametrize("command", [b"RETR 1", b"TOP 1 99999999"])
@pytest.mark.parametrize("octets", [20, 500_000])
def test_reader_that_ends_early_over_tls(
    octets: int, command: bytes, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """The same over TLS."""
    handler = SizesHandler((b"A: b\n\n" + LINE * 10_000)[:octets], 10**9)
    with serving(handler, server_context, client_context) as client:
        answer = client.ask(command)
        if octets < 100:
            assert answer == BROKEN
            assert_session_goes_on(client)
        else:
            assert answer.startswith(b"+OK") and not rest(client).endswith(b"\n.\r\n")
        wait_until(lambda: not handler.mail.locked)
    assert_told(handler, 1, popart.wire_size(handler.mail.messages[0]), 10**9)


class TestTop:
    """TOP reads no further than it must, and can judge only what it has read to the end."""

    MESSAGE = b"A: b\r\nC: d\r\n\r\none\r\ntwo\r\nthree\r\n"

    @pytest.mark.parametrize("most", [1, 7, 65_536])
    @pytest.mark.parametrize(
        ("kept", "lines"),
        [(12, 0), (5, 0), (6, 0), (13, 0), (14, 1), (19, 2), (19, 99), (17, 1), (18, 1), (16, 1), (28, 3), (28, 10**9)],
    )
    def test_cut_off(self, kept: int, lines: int, most: int) -> None:
        """A reader that ends before TOP's lines are there has given the whole message, so its size must be right: a
        header that is cut short is found by this, and a last line that is cut short too.
        """
        octets = self.MESSAGE[:kept]
        handler = SizesHandler(octets, len(self.MESSAGE), most)
        with serving(handler) as client:
            assert client.ask(b"TOP 1 %d" % lines) == BROKEN
            assert_session_goes_on(client)
        assert_told(handler, 1, popart.wire_size(octets), len(self.MESSAGE))

    @pytest.mark.parametrize("most", [1, 7, 65_536])
    @pytest.mark.parametrize(("kept", "lines"), [(14, 0), (15, 0), (19, 1), (20, 1), (24, 2), (31, 3)])
    def test_lines_that_are_there(self, kept: int, lines: int, most: int) -> None:
        """Where the lines are complete, nothing is said of what might follow them."""
        handler = SizesHandler(self.MESSAGE[:kept], 10**6, most)
        with serving(handler) as client:
            top = self.MESSAGE.split(b"\r\n")[: 3 + lines]
            assert whole(client, b"TOP 1 %d" % lines) == b"".join(line + b"\r\n" for line in top) + b".\r\n"
            assert_session_goes_on(client)
        assert not handler.mail.errors and all(reader.closed == 1 for reader in handler.readers)

    @pytest.mark.parametrize("kept", [0, 5, 12, 14, 17, 31])
    def test_beginnings(self, kept: int) -> None:
        """What get_top_reader gives has no size to be compared with."""
        handler = TopHandler(self.MESSAGE[:kept], 10**6)
        with serving(handler) as client:
            assert whole(client, b"TOP 1 99") == stuffed(popart.wire_form(self.MESSAGE[:kept]))
            assert client.ask(b"RETR 1") == BROKEN
            assert_session_goes_on(client)
        assert_told(handler, 1, popart.wire_size(self.MESSAGE[:kept]), 10**6)


class TestPipeline:
    """A short message takes its own reply along, and no other."""

    @pytest.mark.parametrize("most", [1, 65_536])
    def test_other_replies_stay(self, most: int) -> None:
        """Replies that are kept for the same write go out whole and in order, before and after the refusal."""
        handler = SizesHandler(b"A: b\n\none\n" + LINE * 50, 10_000, most)
        with serving(handler) as client:
            client.send(b"STAT\r\nRETR 2\r\nRETR 1\r\nRETR 2\r\nTOP 1 99\r\nTOP 1 1\r\nRETR 1\r\nNOOP\r\nQUIT\r\n")
            top = b"+OK top of message follows\r\nA: b\r\n\r\none\r\n.\r\n"
            expected = [b"+OK 2 10029\r\n", GOOD_REPLY, BROKEN, GOOD_REPLY, BROKEN, top, BROKEN]
            assert rest(client) == b"".join([*expected, b"+OK nothing done\r\n", b"+OK goodbye\r\n"])
        assert_told(handler, 1, popart.wire_size(handler.mail.messages[0]), 10_000, times=3)

    def test_earlier_replies_arrive_before_the_connection_ends(self) -> None:
        """Where a part of the message has left, the replies before it are complete, and nothing follows."""
        handler = SizesHandler(b"A: b\n\none\n" + LINE * 5_000, 10**6)
        with serving(handler) as client:
            client.send(b"STAT\r\nRETR 2\r\nRETR 1\r\nRETR 2\r\nNOOP\r\n")
            received = rest(client)
        assert received.startswith(b"+OK 2 1000029\r\n" + GOOD_REPLY + b"+OK 1000000 octets\r\nA: b\r\n\r\none\r\n..a")
        assert received.count(b"+OK") == 3 and b"\n.\r\n" not in received[received.index(b"+OK 1000000") :]
        assert b"-ERR" not in received

    def test_deletion_after_a_short_message(self) -> None:
        """A client that deletes what it has fetched deletes nothing else: the refusal is for RETR alone."""
        handler = SizesHandler(b"A: b\n", 100)
        with serving(handler) as client:
            client.send(b"RETR 1\r\nRETR 2\r\nDELE 2\r\nQUIT\r\n")
            assert rest(client).startswith(BROKEN + GOOD_REPLY)
        assert handler.mail.calls[-2:] == [("delete_messages", [2]), ("unlock_maildrop",)]


def test_monitoring() -> None:
    """Whoever counts learns what the client has read: -ERR with its octets, or that the answer was lost."""
    handler = CountingHandler(LINE * 100, 10_000)
    with serving(handler) as client:
        assert client.ask(b"RETR 1") == BROKEN
        assert client.ask(b"TOP 1 0") == BROKEN
        assert_session_goes_on(client)
    assert ("RETR", "-ERR", len(BROKEN)) in handler.answers and ("TOP", "-ERR", len(BROKEN)) in handler.answers
    assert ("RETR", "+OK", len(GOOD_REPLY)) in handler.answers

    handler = CountingHandler(LINE * 10_000, 10**6)
    with serving(handler) as client:
        client.send(b"RETR 1\r\n")
        received = rest(client)
        wait_until(lambda: not handler.mail.locked)
    ((outcome, octets),) = [answer[1:] for answer in handler.answers if answer[0] == "RETR"]
    assert outcome == "lost" and octets >= len(received)


def http_response(body: bytes, length: int) -> http.client.HTTPResponse:
    """Return the response of a server that promised *length* octets and died after *body*."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (length, body))
        response = http.client.HTTPResponse(ours)
        response.begin()
        return response


@pytest.mark.parametrize("body", [b"", b"Subject", b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\none\r\n"], ids=ascii)
def test_response_whose_server_died(body: bytes) -> None:
    """http.client returns b"" where its peer has died, without a word: the message is not given as whole."""

    class HttpHandler(SizesHandler):
        def get_message_reader(self, number: int) -> popart.MessageReader:
            return http_response(body, 5000) if number == 1 else super().get_message_reader(number)

    handler = HttpHandler(b"", 5000)
    with serving(handler) as client:
        assert client.ask(b"RETR 1") == BROKEN
        assert client.ask(b"TOP 1 99") == BROKEN
        assert_session_goes_on(client)
    assert_told(handler, 1, popart.wire_size(body), 5000, times=2)


def test_counters() -> None:
    """A short message is no bad command, and like any answer of a broken mailbox it ends a row of those."""
    handler = SizesHandler(b"A: b\n", 100, most=3)
    session = make_session(handler, max_bad_commands=3)
    for line in (b"USER alice", b"PASS secret", b"XYZZY", b"XYZZY"):
        session.respond(line)
    message = session.respond(b"RETR 1").message
    assert message is not None
    with pytest.raises(BrokenMessageError) as broken:
        list(message)
    assert broken.value.answer == BROKEN
    for _ in range(2):
        session.respond(b"XYZZY")
        assert not session.over
    session.respond(b"XYZZY")
    assert session.over


@pytest.mark.parametrize("make_error", [MemoryError, lambda: OSError(5, "x"), lambda: RuntimeError("x")])
def test_failure_of_the_encoder(make_error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in popart itself, such as for want of memory, breaks the message, is told, and closes the reader."""
    error = make_error()

    def encode(*arguments: object) -> Iterator[bytes]:
        yield b"A: b\r\n"
        raise error

    monkeypatch.setattr("popart.message_reading.encode_message", encode)
    handler = SizesHandler(GOOD, len(GOOD), most=3)
    with serving(handler) as client:
        client.send(b"STAT\r\nRETR 1\r\nNOOP\r\n")
        assert rest(client) == b"+OK 2 58\r\n+OK 29 octets\r\nA: b\r\n"
        wait_until(lambda: not handler.mail.locked)
    assert handler.mail.errors == [error] and handler.readers[0].closed == 1


def test_failure_that_ends_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same failure as a SystemExit ends the connection by a reset, too, so no part passes for the message."""
    error = SystemExit()

    def encode(*arguments: object) -> Iterator[bytes]:
        yield b"x" * 40_000 + b"\r\n"
        raise error

    monkeypatch.setattr("popart.message_reading.encode_message", encode)
    handler = SizesHandler(GOOD, len(GOOD), most=3)
    with serving(handler) as client:
        client.send(b"RETR 1\r\n")
        assert not client.rest_until_reset().endswith(b"\r\n.\r\n")
        wait_until(lambda: not handler.mail.locked)
    assert handler.mail.errors == [error]


@pytest.mark.parametrize("make_error", [MemoryError, lambda: OSError(5, "x"), lambda: RuntimeError("x")])
def test_failure_at_a_whole_message(make_error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing has left by then, the client reads an error, and the session goes on."""
    error = make_error()

    def frame(*arguments: object) -> bytes:
        raise error

    monkeypatch.setattr("popart.message_reading.frame_message", frame)
    handler = SizesHandler(GOOD, len(GOOD))
    with serving(handler) as client:
        assert client.ask(b"RETR 1") == b"-ERR [SYS/TEMP] internal error, please try again later\r\n"
        assert client.ask(b"NOOP").startswith(b"+OK")
        assert handler.mail.errors == [error] and handler.readers[0].closed == 1


class TestMaxMessages:
    """max_messages bounds a maildrop, whichever way a handler tells of it."""

    class Listing(MemoryHandler):
        def list_messages(self) -> Iterator[tuple[int, str]]:
            return ((len(message), f"id-{number}") for number, message in enumerate(self.mail.messages))

    @pytest.mark.parametrize("kind", [MemoryHandler, Listing])
    @pytest.mark.parametrize(
        ("limit", "count", "welcome"), [(3, 3, True), (3, 4, False), (0, 1, False), (None, 4, True)]
    )
    def test_limit(self, kind: type[MemoryHandler], limit: int | None, count: int, welcome: bool) -> None:
        """As many messages may be there, and not one more; None is no limit."""

        class LimitedServer(popart.Server):
            max_messages = limit

        mail = Mail(*[b"A: b\r\n"] * count)
        with running(LimitedServer(("127.0.0.1", 0), lambda peer: kind(mail))) as server:
            if welcome:
                with signed_in(server) as client:
                    assert client.ask(b"STAT") == b"+OK %d %d\r\n" % (count, 6 * count)
                    assert client.ask(b"QUIT").startswith(b"+OK")
                assert not mail.errors
            else:
                with socket.create_connection(server.server_address[:2]) as sock:
                    client = Client(sock)
                    client.line()
                    assert client.ask(b"USER alice").startswith(b"+OK")
                    assert client.ask(b"PASS secret") == BROKEN
                    assert rest(client) == b""
                    client.file.close()
                (error,) = mail.errors
                assert isinstance(error, popart.HandlerError) and f"max_messages is {limit}" in str(error)
                assert kind is not MemoryHandler or f"count of messages is {count}" in str(error)
        assert mail.count("lock_maildrop") == mail.count("unlock_maildrop") == 1
