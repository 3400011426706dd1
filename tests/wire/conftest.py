"""The wire suite: tests of POP3 on the wire, for any server.

    pytest tests/wire                  tests popart, plain and over TLS

    pytest tests/wire --pop3-server localhost:1100 --pop3-user alice --pop3-password secret

tests another server.  The user's maildrop should hold at least two messages; with those of `tests.wire.messages` the
suite can test more.  It deletes nothing without ``--pop3-delete``.  Name the optional features that the server lacks
with ``--pop3-lacks``.  These options exist if ``tests/wire``, or a file in it, is on pytest's command line.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import hmac
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import pytest

import popart
from popart.server import Server
from tests.conftest import PATIENCE, Client, Mail, MemoryHandler, running

from .messages import ALL, on_the_wire

FEATURES = {
    "bare-lf": "LF alone ends a command line, as telnet and scripts send it (no RFC asks for it)",
    "capa": "CAPA (RFC 2449)",
    "close-notify": "TLS ends with close_notify after QUIT (RFC 8446 section 6.1)",
    "lock": "a second session is refused while the first has the maildrop (RFC 1939 section 4)",
    "nul": "NUL in a message arrives as it is (RFC 5322 has none)",
    "one-refusal": "the same answer to a wrong password and to an unknown user (RFC 1939 section 13)",
    "pipelining": "commands may be sent before the last one is answered (RFC 2449 section 6.6)",
    "retry": "a connection whose sign-in was refused may try again (RFC 1939 section 4)",
    "strict": "arguments outside the RFCs' grammar are refused, not guessed at",
    "top": "TOP (RFC 1939 section 7)",
    "uidl": "UIDL (RFC 1939 section 7)",
}
"""The features that a good server may lack, by the names that ``--pop3-lacks`` and the marker ``optional`` take."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pop3", "the POP3 server that tests/wire asks (default: popart itself)")
    group.addoption("--pop3-server", metavar="HOST:PORT", type=_address, help="its address")
    group.addoption("--pop3-user", metavar="U", default="alice", help="a user whose maildrop has messages (alice)")
    group.addoption("--pop3-password", metavar="P", default="secret", help="that user's password (secret)")
    group.addoption("--pop3-tls", action="store_true", help="TLS from the first octet; any certificate is taken")
    group.addoption("--pop3-delete", action="store_true", help="run the tests that delete messages for good, too")
    names = ", ".join(FEATURES)
    group.addoption("--pop3-lacks", metavar="X,Y", type=_features, default=(), help=f"what it lacks, of: {names}")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal()):
        raise argparse.ArgumentTypeError(f"not HOST:PORT: {text}")
    return host.strip("[]"), int(port)


def _features(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - FEATURES.keys():
        raise argparse.ArgumentTypeError(f"no such feature: {', '.join(sorted(unknown))}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "optional(feature): skipped when --pop3-lacks names the feature")
    config.addinivalue_line("markers", "deletes: needs --pop3-delete, as it deletes messages of a foreign server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        address = metafunc.config.getoption("--pop3-server", None)
        servers = ["popart", "popart-tls"] if address is None else [f"{address[0]}:{address[1]}"]
        metafunc.parametrize("target", servers, indirect=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    lacks = item.config.getoption("--pop3-lacks", ())
    for marker in item.iter_markers("optional"):
        (feature,) = marker.args
        assert feature in FEATURES
        if feature in lacks:
            pytest.skip(f"the server lacks {feature}")
    is_foreign = item.config.getoption("--pop3-server", None) is not None
    if is_foreign and item.get_closest_marker("deletes") and not item.config.getoption("--pop3-delete"):
        pytest.skip("needs --pop3-delete")


@dataclass(frozen=True)
class Target:
    """The server under test."""

    address: tuple[str, int]
    user: bytes
    password: bytes
    context: ssl.SSLContext | None


class WireClient(Client):
    """A client that checks each status line against RFC 1939 section 3, and the framing of everything else."""

    def __init__(self, target: Target) -> None:
        sock = socket.create_connection(target.address, timeout=PATIENCE)
        if target.context is not None:
            # Without suppress_ragged_eofs=False a connection that was cut looks like one that ended as it should.
            sock = target.context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
        super().__init__(sock)
        self.target = target
        self.greeting = self.status()

    def status(self) -> bytes:
        """Read a status line, and return it without its end."""
        line = self.line()
        assert re.fullmatch(rb"(?s)(\+OK|-ERR)( .*)?\r\n", line), f"no status line: {line[:100]!r}"
        assert len(line) <= 512, "a status line is longer than 512 octets"
        return line[:-2]

    def ask(self, command: bytes) -> bytes:
        self.send(command + b"\r\n")
        return self.status()

    def ok(self, command: bytes) -> bytes:
        """Send a command that must succeed, and return the text of its status line."""
        status = self.ask(command)
        assert status.startswith(b"+OK"), f"{command!r} was answered {status!r}"
        return status[4:]

    def refused(self, command: bytes) -> bytes:
        """Send a command that must fail, and return the text of its status line."""
        status = self.ask(command)
        assert status.startswith(b"-ERR"), f"{command!r} was answered {status!r}"
        return status[5:]

    def lines(self) -> bytes:
        lines: list[bytes] = []
        while not lines or lines[-1] != b".\r\n":
            lines.append(self.line())
            assert lines[-1], f"the connection ended within an answer: {b''.join(lines)[-100:]!r}"
        return b"".join(lines)

    def raw(self, command: bytes) -> bytes:
        """Send a command with a multi-line answer, and return all after its status line, final dot included."""
        self.ok(command)
        return self.lines()

    def data(self, command: bytes) -> bytes:
        """Send a command with a multi-line answer, and return its octets without the stuffed dots."""
        return unstuff(self.raw(command))

    def listing(self, command: bytes) -> dict[int, bytes]:
        """Send LIST or UIDL, and return what it says about each message."""
        listing = {}
        for line in self.data(command).split(b"\r\n")[:-1]:
            number, space, value = line.partition(b" ")
            assert re.fullmatch(rb"[1-9][0-9]*", number) and space and value, f"no line of a listing: {line!r}"
            listing[int(number)] = value
        return listing

    def stat(self) -> tuple[int, int]:
        """Return the drop listing: how many messages there are, and their octets."""
        found = re.match(rb"(0|[1-9][0-9]*) (0|[1-9][0-9]*)(?= |$)", self.ok(b"STAT"))
        assert found, "no drop listing"
        return int(found[1]), int(found[2])

    def signs_in(self) -> bool:
        """Sign in; return False when another session still has the maildrop."""
        self.ok(b"USER " + self.target.user)
        status = self.ask(b"PASS " + self.target.password)
        assert status.startswith((b"+OK", b"-ERR [IN-USE]")), f"the sign-in was answered {status!r}"
        return status.startswith(b"+OK")

    def drop(self) -> None:
        """Leave without a word."""
        super().close()

    def close(self) -> None:
        """Leave as a client should: the next session finds the maildrop unlocked, and nothing deleted."""
        if not self.file.closed:
            self.sock.settimeout(1)
            with suppress(OSError):
                self.send(b"RSET\r\nQUIT\r\n")
                self.rest()
        self.drop()


def unstuff(octets: bytes) -> bytes:
    """Return a multi-line answer without its final dot and its stuffed dots (RFC 1939 section 3)."""
    assert not re.search(rb"(?<!\r)\n", octets), "an LF without its CR"
    lines = octets.removesuffix(b".\r\n").split(b"\r\n")
    assert not [line for line in lines if line.startswith(b".") and not line.startswith(b"..")], "a dot is not stuffed"
    return b"\r\n".join([line.removeprefix(b".") for line in lines])


scram_credentials = functools.cache(lambda: popart.scram_credentials("secret"))


class DeletingHandler(MemoryHandler):
    """Serves the messages with ids of their own, checks APOP and SCRAM, and deletes for good."""

    def set_banner(self, banner: str) -> None:
        self.banner = banner

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        wanted = hashlib.md5(f"{self.banner}secret".encode()).hexdigest()
        if username != "alice" or not hmac.compare_digest(hexdigest, wanted):
            raise popart.ReportableError("wrong name or password")

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        if username != "alice":
            raise popart.ReportableError("wrong name or password")
        return scram_credentials()

    def get_message_size(self, number: int) -> int:
        return len(on_the_wire(self.mail.messages[number - 1]))

    def get_message_id(self, number: int) -> str:
        return hashlib.sha256(self.mail.messages[number - 1]).hexdigest()

    def delete_messages(self, numbers: Sequence[int]) -> None:
        kept = [message for number, message in enumerate(self.mail.messages, 1) if number not in numbers]
        self.mail.messages = kept


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The server under test: that of the options, or a popart server with a maildrop of its own."""
    option = request.config.getoption
    address = option("--pop3-server", None)
    if address is not None:
        context = _make_context() if option("--pop3-tls") else None
        yield Target(address, option("--pop3-user").encode(), option("--pop3-password").encode(), context)
        return
    # The octets of a refusal do not show how long it takes.
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    tls = request.param == "popart-tls"
    mail = Mail(*ALL)
    server_context = request.getfixturevalue("server_context") if tls else None
    # One of the two servers offers APOP, the other does not.
    server = Server(("127.0.0.1", 0), lambda peer: DeletingHandler(mail), ssl_context=server_context, apop=not tls)
    with running(server):
        yield Target(("127.0.0.1", server.server_address[1]), b"alice", b"secret", _make_context() if tls else None)


def _make_context() -> ssl.SSLContext:
    """Make a context that takes any certificate: the suite tests the protocol alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Python tells OpenSSL 3 to take a bare end for close_notify; other clients do not.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


@pytest.fixture
def connect(target: Target) -> Iterator[Callable[[], WireClient]]:
    """Connects a client, whose greeting has been read."""
    with ExitStack() as clients:
        yield lambda: clients.enter_context(closing(WireClient(target)))


@pytest.fixture
def sign_in(connect: Callable[[], WireClient]) -> Callable[[], WireClient]:
    """Connects a client and signs in, as soon as an earlier session has unlocked the maildrop."""

    def sign_in() -> WireClient:
        pause = threading.Event()
        for _ in range(round(PATIENCE / 0.1)):
            client = connect()
            if client.signs_in():
                return client
            client.close()
            pause.wait(0.1)
        raise AssertionError("the maildrop stays locked")

    return sign_in


@pytest.fixture
def guest(connect: Callable[[], WireClient]) -> WireClient:
    """A client that has not signed in."""
    return connect()


@pytest.fixture
def client(sign_in: Callable[[], WireClient]) -> WireClient:
    """A client that has signed in."""
    return sign_in()


@pytest.fixture
def two_messages(client: WireClient) -> int:
    """How many messages are in the maildrop: at least two."""
    count, _ = client.stat()
    if count < 2:
        pytest.skip(f"the maildrop has {count} messages, two are needed")
    return count
