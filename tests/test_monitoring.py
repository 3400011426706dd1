"""SupportsMonitoring, over real sockets: what a handler is told of each command and of the session."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import popart
from popart.server import Server

from .conftest import PATIENCE, Client, ClosingHandler, Mail, MemoryHandler, connected, running

SECRET = b"7f3ab2e4c6d8"
"""Part of whatever a client may say that nobody shall read in a log."""

SMALL = b"Subject: dots\r\n\r\n.one\r\n..two\r\nthree\r\n"
LARGE = b"Subject: large\r\n\r\n" + b".x" * 100_000 + b"\r\n"


class Monitor(ClosingHandler):
    """Keeps what it is told among all other calls."""

    allow_sasl_login = True
    at_start: BaseException | None = None

    def set_banner(self, banner: str) -> None:
        if self.at_start is not None:
            raise self.at_start

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        self.mail.calls.append(("command_finished", verb, outcome, octets, seconds, threading.current_thread()))

    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        self.mail.calls.append(("session_finished", commands, octets, seconds, threading.current_thread()))


class Observed:
    """A server for one session, and what its handler was told by the end of it."""

    def __init__(self, handler: Any, server: Server) -> None:
        self.handler = handler
        self.server = server

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        assert self.handler.closed.wait(PATIENCE)
        return [call[1:] for call in self.handler.mail.calls if call[0] == name]

    def commands(self) -> list[tuple[str, str, int]]:
        """Return the verb, the outcome and the octets of each command, in order."""
        return [call[:3] for call in self.calls("command_finished")]

    def session(self) -> tuple[int, int]:
        """Return the commands and the octets of the session, told once."""
        ((commands, octets, _, _),) = self.calls("session_finished")
        return commands, octets


@contextmanager
def observed(*messages: bytes, kind: Any = Monitor, **options: Any) -> Iterator[Observed]:
    handler = kind(Mail(*messages))
    with running(Server(("127.0.0.1", 0), lambda peer: handler, **options)) as server:
        yield Observed(handler, server)


def listen(client: Client, command: bytes) -> bytes:
    """Send a command; return its whole answer."""
    answer = client.ask(command)
    assert answer[:4] in (b"+OK ", b"-ERR")
    several = command.split(b" ")[0].upper() in (b"CAPA", b"RETR", b"TOP") or command.upper() in (b"LIST", b"UIDL")
    return answer + client.lines() if several and answer.startswith(b"+OK") else answer


# What a client says, the verb, and how it is answered.
COMMANDS = [
    (b"CAPA", "CAPA", "+OK"),
    (b"STAT", "STAT", "-ERR"),
    (b"USER alice", "USER", "+OK"),
    (b"PASS " + SECRET, "PASS", "-ERR"),
    (b"PASS " + SECRET, "PASS", "-ERR"),
    (b"APOP alice " + SECRET * 8, "APOP", "-ERR"),
    (b"user alice", "USER", "+OK"),
    (b"pAsS secret", "PASS", "+OK"),
    (b"USER " + SECRET, "USER", "-ERR"),
    (b"NOOP", "NOOP", "+OK"),
    (b"stat", "STAT", "+OK"),
    (b"LIST", "LIST", "+OK"),
    (b"LIST 1", "LIST", "+OK"),
    (b"LIST " + SECRET, "LIST", "-ERR"),
    (b"UIDL", "UIDL", "+OK"),
    (b"RETR 1", "RETR", "+OK"),
    (b"RETR 2", "RETR", "+OK"),
    (b"RETR 3", "RETR", "-ERR"),
    (b"TOP 1 1", "TOP", "+OK"),
    (b"DELE 1", "DELE", "+OK"),
    (b"", "", "-ERR"),
    (b" ", "", "-ERR"),
    (b"XYZZY " + SECRET, "", "-ERR"),
    (SECRET, "", "-ERR"),
    (SECRET.upper(), "", "-ERR"),
    (b"PASS\t" + SECRET, "", "-ERR"),
    (b"PASS" + SECRET, "", "-ERR"),
    (b" PASS " + SECRET, "", "-ERR"),
    (b"PASS " + SECRET * 1000, "PASS", "-ERR"),
    (SECRET * 5000, "", "-ERR"),
    (b"RETR\0" + SECRET, "", "-ERR"),
    (b"\xff\xfe\x85" + SECRET, "", "-ERR"),
    ("ſTAT".encode(), "", "-ERR"),
    (b"STLS", "", "-ERR"),
    (b"AUTH PLAIN " + SECRET, "AUTH", "-ERR"),
    (b"RSET", "RSET", "+OK"),
    (b"RSET " + SECRET, "RSET", "-ERR"),
    (b"QUIT", "QUIT", "+OK"),
]
LINES = [line for line, _, _ in COMMANDS]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused sign-ins are answered at once."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0.0)


def test_each_command() -> None:
    """Each command is told once, in order: its verb in capitals, how it was answered, the octets of its answer."""
    with observed(SMALL, LARGE) as it, connected(it.server) as client:
        greeting = client.line()
        answers = [listen(client, line) for line in LINES]
        assert client.rest() == b""
        assert it.commands() == [
            (verb, outcome, len(answer)) for (_, verb, outcome), answer in zip(COMMANDS, answers, strict=True)
        ]
        assert it.session() == (len(COMMANDS), len(greeting) + sum(map(len, answers)))
    assert not it.handler.mail.errors


def test_pipelined_commands() -> None:
    """Commands that arrive together are told as if they had come one by one."""
    with observed(SMALL, LARGE) as it:
        with connected(it.server) as client:
            client.line()
            one_by_one = [listen(client, line) for line in LINES]
        commands, session = it.commands(), it.session()
    with observed(SMALL, LARGE) as it, connected(it.server) as client:
        greeting = client.line()
        client.send(b"".join([line + b"\n" for line in LINES]))
        assert client.rest() == b"".join(one_by_one)
        assert it.commands() == commands and it.session() == session
        assert session[1] == len(greeting) + sum(map(len, one_by_one))


def test_nothing_that_was_said() -> None:
    """No part of what a client says is told: a verb is one that popart knows, or empty (promise 6)."""
    with observed(SMALL, LARGE) as it, connected(it.server) as client:
        client.send(b"\r\n".join(LINES) + b"\r\n")
        assert client.rest()
        told = repr(it.calls("command_finished") + it.calls("session_finished")).lower()
        assert SECRET.decode() not in told and "alice" not in told
        known = {"AUTH", "APOP", "CAPA", "DELE", "LIST", "NOOP", "PASS", "QUIT", "RETR", "RSET", "STAT", "TOP", "UIDL"}
        assert {verb for verb, _, _ in it.commands()} <= known | {"USER", ""}


PASSWORD = b64encode(b"\0alice\0secret")
WRONG = b64encode(b"\0alice\0" + SECRET)
NAME, SECOND = b64encode(b"alice"), b64encode(b"secret")


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ([b"AUTH PLAIN " + PASSWORD], "+OK"),
        ([b"AUTH PLAIN", PASSWORD], "+OK"),
        ([b"auth login", NAME, SECOND], "+OK"),
        ([b"AUTH PLAIN", WRONG], "-ERR"),
        ([b"AUTH PLAIN", b"*"], "-ERR"),
        ([b"AUTH LOGIN", NAME, b"*"], "-ERR"),
        ([b"AUTH PLAIN", b"QUIT"], "-ERR"),
        ([b"AUTH PLAIN", SECRET * 5000], "-ERR"),
        ([b"AUTH " + SECRET], "-ERR"),
    ],
    ids=lambda value: b" / ".join(value).decode()[:40] if isinstance(value, list) else None,
)
@pytest.mark.parametrize("pipelined", [False, True])
def test_auth(lines: list[bytes], outcome: str, pipelined: bool) -> None:
    """The steps of AUTH are one command, and the octets of its answer are those of all challenges (RFC 5034)."""
    with observed(SMALL) as it, connected(it.server) as client:
        greeting = client.line()
        if pipelined:
            client.send(b"\r\n".join(lines) + b"\r\n")
            answers = [client.line() for _ in lines]
        else:
            answers = [client.ask(line) for line in lines]
        last = client.ask(b"QUIT")
        assert client.rest() == b""
        octets = len(b"".join(answers))
        assert it.commands() == [("AUTH", outcome, octets), ("QUIT", "+OK", len(last))]
        assert it.session() == (2, len(greeting) + octets + len(last))
        assert answers[-1].startswith(outcome.encode())


class BreakingReader:
    """A message that ends in an error."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = iter(chunks)

    def read(self, n: int, /) -> bytes:
        try:
            return next(self.chunks)
        except StopIteration:
            raise LookupError("the disk is gone") from None

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "chunks", [[b"a\r\n", b"b\r\n"], [b"x" * 40_000], [b"x" * 65_536] * 9], ids=["two", "one", "large"]
)
@pytest.mark.parametrize("line", [b"RETR 1", b"TOP 1 9"])
def test_broken_message(chunks: list[bytes], line: bytes) -> None:
    """A message whose reader fails after +OK is lost; the octets are those that the client received (promise 1)."""
    with observed(SMALL) as it, connected(it.server) as client:
        it.handler.get_message_reader = lambda number: BreakingReader(*chunks)
        greeting = client.line()
        client.sign_in()
        client.send(line + b"\r\n")
        received = client.rest_until_reset()
        assert received.startswith(b"+OK ") and not received.endswith(b"\r\n.\r\n")
        assert it.commands()[2:] == [(line.split()[0].decode(), "lost", len(received))]
        commands, octets = it.session()
        assert commands == 3
        assert octets == len(greeting) + len(received) + sum(octets for _, _, octets in it.commands()[:2])
    assert [type(error) for error in it.handler.mail.errors] == [LookupError]


def test_message_replaced_by_an_error() -> None:
    """What was gathered of a message that turns out to be short, and never left, is in no figure (promise 1)."""
    with observed(SMALL) as it, connected(it.server) as client:
        it.handler.get_message_size = lambda number: 10_000
        chunks = [b"a" * 100, b"b" * 100, b""]
        it.handler.get_message_reader = lambda number: BreakingReader(*chunks)
        greeting = client.line()
        client.sign_in()
        answer = client.ask(b"RETR 1")
        assert answer.startswith(b"-ERR [SYS/PERM]")
        client.ask(b"QUIT")
        assert it.commands()[2] == ("RETR", "-ERR", len(answer))
        assert it.session() == (4, len(greeting) + sum(octets for _, _, octets in it.commands()))


class Endless:
    """A message that goes on until nobody reads it."""

    def read(self, n: int, /) -> bytes:
        return b"x" * 1022 + b"\r\n"

    def close(self) -> None: ...


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_client_gone_within_a_message(reset: bool) -> None:
    """A message that the client does not read to its end is lost: told before the session is."""
    with observed(SMALL) as it:
        it.handler.get_message_reader = lambda number: Endless()
        with connected(it.server) as client:
            client.line()
            client.sign_in()
            client.send(b"RETR 1\r\n")
            received = 0
            while received < 300_000:
                received += len(client.line())
            if reset:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        verb, outcome, octets = it.commands()[2]
        assert (verb, outcome) == ("RETR", "lost") and octets >= received
        commands, all_octets = it.session()
        assert commands == 3 and all_octets > octets
    names = [call[0] for call in it.handler.mail.calls]
    assert names.index("session_finished") > max(at for at, name in enumerate(names) if name == "command_finished")
    assert [type(error) for error in it.handler.mail.errors] == [popart.ClientGoneError]


@pytest.mark.parametrize("sent", [b"", b"NOO", b"QUIT"])
def test_session_without_commands(sent: bytes) -> None:
    """A client that comes and goes has had a session of no commands; half a line is none."""
    with observed() as it:
        with connected(it.server) as client:
            greeting = client.line()
            client.send(sent)
        assert it.commands() == [] and it.session() == (0, len(greeting))


@pytest.mark.parametrize("error", [popart.ReportableError("not today"), OSError()], ids=["refused", "failed"])
def test_refused_by_set_banner(error: BaseException) -> None:
    """A session that ends with its greeting is told too, with the octets of that."""
    with observed(apop=True) as it:
        it.handler.at_start = error
        with connected(it.server) as client:
            greeting = client.rest()
        assert greeting.startswith(b"-ERR ")
        assert it.commands() == [] and it.session() == (0, len(greeting))


def test_client_gone_within_an_exchange() -> None:
    """AUTH that never came to an end is told as lost, and the session after it."""
    with observed() as it:
        with connected(it.server) as client:
            client.line()
            assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        assert it.commands() == [("AUTH", "lost", 4)]


def test_unlocked_before_the_figures() -> None:
    """Whoever looks at a session's figures may begin the user's next one."""
    with observed(SMALL) as it, connected(it.server) as client:
        client.line()
        client.sign_in()
        client.close()
        it.session()
        names = [call[0] for call in it.handler.mail.calls]
        assert names.index("unlock_maildrop") < names.index("session_finished")


def test_client_gone_without_quit() -> None:
    """A session that ends without QUIT is told as well; the commands are those that were answered."""
    with observed(SMALL) as it:
        with connected(it.server) as client:
            client.line()
            client.sign_in()
            assert client.ask(b"DELE 1").startswith(b"+OK")
        assert [verb for verb, _, _ in it.commands()] == ["USER", "PASS", "DELE"]
        assert it.session()[0] == 3
    assert it.handler.mail.calls[-1] == ("close",)


def test_closing_server() -> None:
    """A session that the server ends is told once."""
    with observed(SMALL) as it, connected(it.server) as client:
        client.line()
        client.sign_in()
        it.server.server_close()
        assert client.rest() == b""
        assert it.session()[0] == 2
    assert it.handler.mail.count("unlock_maildrop") == 1 and not it.handler.mail.errors


def test_order() -> None:
    """The session is told after all of its commands and before close, which stays the last call; all in one thread."""
    with observed(SMALL) as it:
        with connected(it.server) as client:
            client.line()
            client.sign_in()
            assert client.ask(b"QUIT").startswith(b"+OK")
        finished = it.calls("command_finished")
        names = [call[0] for call in it.handler.mail.calls]
        assert names[-3:] == ["command_finished", "session_finished", "close"]
        assert names.count("session_finished") == 1
        assert names.index("command_finished") < names.index("authenticate_pass") < names.index("unlock_maildrop")
        assert {call[-1] for call in finished + it.calls("session_finished")} == {finished[0][-1]}
        assert finished[0][-1] is not threading.current_thread()


def test_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are what passed: no less than an answer was held back, and all of a session together no more than it."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0.25)
    began = time.monotonic()
    with observed(SMALL) as it, connected(it.server) as client:
        client.line()
        client.ask(b"USER alice")
        client.ask(b"PASS wrong")
        client.sign_in()
        client.ask(b"QUIT")
        seconds = [call[3] for call in it.calls("command_finished")]
        ((_, _, session, _),) = it.calls("session_finished")
        elapsed = time.monotonic() - began
    assert len(seconds) == 5 and all(type(each) is float and each >= 0 for each in [*seconds, session])
    assert seconds[1] >= 0.25 and max(seconds) == seconds[1]
    assert sum(seconds) <= session <= elapsed


@pytest.mark.parametrize("method", ["command_finished", "session_finished"])
@pytest.mark.parametrize(
    "error",
    [OSError("x"), popart.ReportableError("x", code="AUTH"), KeyboardInterrupt(), SystemExit(1), StopIteration()],
    ids=lambda error: type(error).__name__,
)
def test_errors(method: str, error: BaseException) -> None:
    """What the two methods raise is reported as it is, each time, and changes nothing else."""

    def fail(*facts: object) -> None:
        it.handler.mail.calls.append((method, *facts))
        raise error

    class Strict(Server):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raised.append(error)

    raised: list[BaseException] = []
    handler = Monitor(Mail(SMALL))
    it = Observed(handler, Strict(("127.0.0.1", 0), lambda peer: handler))
    setattr(handler, method, fail)
    with running(it.server), connected(it.server) as client:
        client.line()
        client.sign_in()
        assert listen(client, b"RETR 1").endswith(b"\r\n.\r\n")
        assert client.ask(b"DELE 1").startswith(b"+OK") and client.ask(b"XYZZY").startswith(b"-ERR")
        assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
        times = len(it.calls(method))
    assert times == (6 if method == "command_finished" else 1)
    assert len(handler.mail.errors) == times and all(reported is error for reported in handler.mail.errors)
    assert handler.mail.count("delete_messages") == handler.mail.count("unlock_maildrop") == 1
    assert handler.mail.calls[-1] == ("close",) and not raised


@pytest.mark.parametrize("method", ["command_finished", "session_finished"])
def test_half_of_it(method: str) -> None:
    """A handler that has one of the two methods has not the ability: nothing is called."""
    with observed(SMALL, kind=ClosingHandler) as it, connected(it.server) as client:
        setattr(it.handler, method, lambda *facts: it.handler.mail.calls.append((method, *facts)))
        client.line()
        client.sign_in()
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert it.calls(method) == [] and not it.handler.mail.errors


def test_ability() -> None:
    """The ability is had by whoever has both methods, derived from the protocol or not."""
    assert isinstance(Monitor(Mail()), popart.SupportsMonitoring)
    assert not isinstance(MemoryHandler(Mail()), popart.SupportsMonitoring)


def test_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Over TLS the octets are those of POP3, not of the records that carry them (RFC 8314)."""
    with observed(LARGE, ssl_context=server_context) as it, connected(it.server, client_context) as client:
        greeting = client.line()
        client.sign_in()
        answers = [listen(client, b"RETR 1"), listen(client, b"QUIT")]
        assert [octets for _, _, octets in it.commands()[2:]] == list(map(len, answers))
        assert it.session() == (4, len(greeting) + sum(octets for _, _, octets in it.commands()))


def test_size_of_a_message() -> None:
    """The octets of a RETR's answer are the status line, the message with its dots stuffed, and the final dot."""
    with observed(SMALL) as it, connected(it.server) as client:
        client.line()
        client.sign_in()
        answer = listen(client, b"RETR 1")
        client.ask(b"QUIT")
        assert it.commands()[2] == ("RETR", "+OK", len(answer))
        assert len(answer) == len(b"+OK %d octets\r\n" % len(SMALL)) + len(SMALL) + 2 + len(b".\r\n")
