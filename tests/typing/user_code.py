"""A user's code, for the type checkers alone: nobody runs it, and in strict mode they must find nothing in it."""

from __future__ import annotations

import functools
import gzip
import hmac
import http.client
import io
import socket
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest

import popart
from popart.testing import Maildrop, MailServer, SessionRecord
from popart.testing.check import CheckError, Report, check_handler

if TYPE_CHECKING:
    from typing_extensions import assert_type

MAIL = [b"Subject: x\n\nhello\n"]


# Handlers.


class Derived(popart.Handler):
    """Has every method of `popart.Handler`, and an attribute of its own."""

    allow_sasl_login = True

    def __init__(self, peer: tuple[str, int]) -> None:
        self.peer = peer
        self.banner = ""

    def set_banner(self, banner: str) -> None:
        self.banner = banner

    def authenticate_pass(self, username: str, password: str) -> None:
        if (username, password) != ("alice", "secret"):
            raise popart.ReportableError("wrong name or password", code="AUTH")

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        if not hmac.compare_digest(popart.apop_digest(self.banner, "secret"), hexdigest):
            raise popart.ReportableError("wrong name or password")

    def lock_maildrop(self) -> None: ...

    def get_message_count(self) -> int:
        return len(MAIL)

    def get_message_size(self, number: int) -> int:
        return popart.wire_size(MAIL[number - 1])

    def get_message_id(self, number: int) -> str:
        return f"message-{number}"

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(MAIL[number - 1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        for number in reversed(numbers):
            del MAIL[number - 1]

    def unlock_maildrop(self) -> None: ...

    def handle_session_error(self, error: BaseException) -> None:
        if isinstance(error, popart.SessionError):
            print(error)


class Able(
    Derived,
    popart.SupportsListing,
    popart.SupportsTop,
    popart.SupportsTokens,
    popart.SupportsScram,
    popart.SupportsCertificates,
    popart.SupportsMechanisms,
    popart.SupportsAuthorization,
    popart.SupportsUTF8,
    popart.SupportsLanguages,
    popart.SupportsLoginDelay,
    popart.SupportsExpire,
    popart.SupportsMonitoring,
    popart.SupportsClose,
):
    """Has every ability, and says so."""

    allow_passwords = False

    def list_messages(self) -> Iterator[tuple[int, str]]:
        for number, octets in enumerate(MAIL, 1):
            yield popart.wire_size(octets), f"message-{number}"

    def get_top_reader(self, number: int, lines: int) -> io.BytesIO:
        return io.BytesIO(MAIL[number - 1])

    def authenticate_token(self, username: str, token: str) -> None:
        raise popart.ReportableError("this token is not valid here")

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        return popart.scram_credentials("secret")

    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        if identity not in dict(certificate["subject"][0]).values():
            raise popart.ReportableError("not your certificate")

    def get_mechanisms(self) -> dict[str, Callable[[], Generator[bytes, bytes, str]]]:
        return {"X-ASK": self.ask, "X-ASK-TWICE": functools.partial(self.ask, 2)}

    def ask(self, times: int = 1) -> Generator[bytes, bytes, str]:
        answer = b""
        for _ in range(times):
            answer = yield b"who?"
            assert_type(answer, bytes)
        return answer.decode()

    def authorize(self, username: str, identity: str) -> None: ...

    def enable_utf8(self) -> None: ...

    def get_languages(self) -> dict[str, str]:
        return {"de": "Deutsch"}

    def set_language(self, tag: str) -> None: ...

    def get_login_delay(self) -> int:
        return 60

    def get_expire(self) -> int | None:
        return None

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None: ...

    def session_finished(self, commands: int, octets: int, seconds: float) -> None: ...

    def close(self) -> None: ...


class Structural:
    """A handler that derives from nothing, with an ability that it does not name either."""

    def set_banner(self, banner: str) -> None: ...

    def authenticate_pass(self, username: str, password: str) -> None: ...

    def authenticate_apop(self, username: str, hexdigest: str) -> None: ...

    def lock_maildrop(self) -> None: ...

    def get_message_count(self) -> int:
        return 1

    def get_message_size(self, number: int) -> int:
        return 0

    def get_message_id(self, number: int) -> str:
        return "x"

    def get_message_reader(self, number: int) -> io.BytesIO:
        return io.BytesIO()

    def delete_messages(self, numbers: Sequence[int]) -> None: ...

    def unlock_maildrop(self) -> None: ...

    def handle_session_error(self, error: BaseException) -> None: ...

    def list_messages(self) -> list[tuple[int, str]]:
        return [(0, "x")]


class Delegating:
    """Passes on what it does not do itself.  mypy follows its __getattr__; other checkers take a cast."""

    def __init__(self, inner: popart.Handler) -> None:
        self._inner = inner

    def unlock_maildrop(self) -> None:
        self._inner.unlock_maildrop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def abilities(handler: object) -> Iterable[tuple[int, str]]:
    """Protocols can be asked for at run time."""
    if isinstance(handler, popart.Handler):
        assert_type(handler.get_message_count(), int)
    if isinstance(handler, popart.SupportsTop):
        handler.get_top_reader(1, lines=0).close()
    return handler.list_messages() if isinstance(handler, popart.SupportsListing) else ()


LISTING: popart.SupportsListing = Structural()


# Readers.


class OwnReader:
    """Reads from a generator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, n: int) -> bytes:
        return next(self._chunks, b"")

    def close(self) -> None: ...


def from_http(host: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection(host)
    connection.request("GET", "/message")
    return connection.getresponse()


def readers(path: Path, stream: BinaryIO) -> list[popart.MessageReader]:
    own = OwnReader(iter(MAIL))
    assert_type(popart.wire_size(own), int)
    return [io.BytesIO(), open(path, "rb"), path.open("rb"), stream, gzip.open(path), from_http("localhost"), own]


assert_type(popart.wire_size(Path("message.eml").open("rb")) + popart.wire_size(b""), int)
assert_type(popart.wire_form(b"x\n"), bytes)


# Factories and servers.


def make(peer: tuple[str, int]) -> popart.Handler | None:
    return None if peer[0] == "192.0.2.1" else Derived(peer)


def make_delegating(peer: Any) -> popart.Handler:
    return cast(popart.Handler, Delegating(Able(peer)))


def make_for(users: Mapping[str, str], peer: object) -> Structural:
    return Structural()


class Factory:
    """An object that is called, and keeps what handlers share."""

    def __call__(self, peer: object) -> popart.Handler:
        return Structural()


ADDRESS = ("127.0.0.1", 1100)
FACTORIES: list[Callable[[Any], popart.Handler | None]] = [make, make_delegating, Derived, Able, Factory()]
popart.Server(ADDRESS, make)
popart.Server(ADDRESS, Derived)
popart.Server(ADDRESS, Factory())
popart.Server(ADDRESS, lambda peer: Structural())
popart.Server(ADDRESS, lambda peer: None)
popart.Server(ADDRESS, functools.partial(make_for, {"alice": "secret"}))


class MyServer(popart.Server):
    """Sets every limit, and looks at what has no handler to be told."""

    minimum_timeout = 1
    max_connections = 100
    max_connections_per_peer = None
    max_bad_commands = None
    max_failed_logins = 3
    handshake_timeout = 2.5
    login_timeout = None
    max_messages = 1000
    shutdown_grace = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        print(client_address)

    def service_actions(self) -> None: ...


class CountingServer(MyServer):
    """Hands its options on."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(("127.0.0.1", port), self.count, **options)
        self.connections = 0

    def count(self, peer: object) -> popart.Handler:
        self.connections += 1
        return Structural()


class Short(popart.BaseHandler):
    """Leaves to popart what most handlers have in common."""

    def authenticate_pass(self, username: str, password: str) -> None:
        print(self.banner)

    def lock_maildrop(self) -> None: ...

    def list_messages(self) -> Iterable[tuple[int, str]]:
        return [(popart.wire_size(octets), f"message-{number}") for number, octets in enumerate(MAIL)]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(MAIL[number - 1])

    def delete_messages(self, numbers: Sequence[int]) -> None: ...

    def unlock_maildrop(self) -> None: ...

    def handle_session_error(self, error: BaseException) -> None: ...


class ShortWithTokens(Short, popart.SupportsTokens):
    """Says for itself whether it takes passwords."""

    allow_passwords = False

    def authenticate_token(self, username: str, token: str) -> None: ...


short = ShortWithTokens()
short.allow_passwords = True
lists: popart.SupportsListing = short
popart.Server(ADDRESS, lambda peer: Short())


def serve(context: ssl.SSLContext) -> None:
    with MyServer(
        ("", 110),
        make,
        hostname="mail.example.org",
        timeout=600,
        greeting="mail.example.org",
        implementation="mine",
        expire="30 USER",
        apop=True,
        ssl_context=context,
        require_tls=True,
        allow_cleartext=False,
        scram_decoy_key=bytes(32),
        processor="current",
        proxy_protocol=True,
        trusted_proxies=["192.0.2.0/24"],
        reuse_port=True,
        bind_and_activate=True,
    ) as server:
        assert_type(server, MyServer)
        server.serve_forever(poll_interval=0.1)
        server.ssl_context = context
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_request()
        server.shutdown()
        assert_type(server.drain(30), bool)
        server.server_close()
    server = CountingServer(0, timeout=700.0, apop=True)
    assert_type(server.hostname + server.greeting, str)
    assert_type(server.command_timeout, float)
    assert_type(popart.Server.max_failed_logins, "int | None")
    print(server.connections, server.server_address[1])


def serve_inherited(listener: socket.socket) -> None:
    server = MyServer.from_socket(listener, make, timeout=700, apop=True, trusted_proxies=())
    assert_type(server, MyServer)
    popart.Server.from_socket(listener, lambda peer: Structural(), greeting="here", scram_decoy_key=None)


# The test kit.


class StrictServer(MailServer):
    """Looks at each command, and keeps something of its own."""

    deleting = False

    def record_command(self, command: tuple[str, ...]) -> None:
        self.deleting = self.deleting or command[1] == "DELE"
        super().record_command(command)


def fetch(host: str, port: int) -> None: ...


def try_fetcher() -> None:
    with StrictServer(
        {"alice": "secret"},
        tokens={"alice": "ya29.x"},
        scram=True,
        login=True,
        tls=True,
        client_certificates=True,
        port=0,
        timeout=0.5,
        apop=True,
        max_connections=1,
        max_failed_logins=None,
        login_timeout=2,
        shutdown_grace=0.1,
    ) as server:
        assert_type(server, StrictServer)
        message = EmailMessage()
        for delivered in (message, b"Subject: x\n\n", "Subject: x\n\n"):
            assert_type(server.deliver("alice", delivered), str)
        server.fail("RETR 2", "not now", code="SYS/TEMP", times=None)
        server.drop("DELE")
        server.drop("RETR", after=100, how="reset", times=2, username="alice")
        server.delay("LIST", float("inf"))
        server.refuse_sign_in(code="SYS/PERM")
        server.lock_maildrop("busy", username="alice")
        server.fail_commit(times=3)
        server.clear_faults()
        fetch(server.host, server.port)
        server.wait_for_session_end(5, sessions=2)
        server.wait_for_session_end(5, since_last_call=True)
        server.refuse_connection("no", code=None, times=2)
        server.delay_greeting(1)
        server.hang_up("RETR", how="reset", username="alice")
        server.truncate("RETR", 10)
        server.stall("RETR", 1, after=10, times=None)
        server.drip("RETR", 0.1, size=2)
        server.split("RETR")
        server.spoil_sizes(1)
        server.spoil_ids("repeat")
        server.hide("UIDL", "TOP", times=None)
        assert_type(server.pending_faults, "list[str]")
        assert_type(server.transcript(), str)
        server.reset()
        server.deliver("alice", "", unique_id="id-1")
        server.users["bob"] = server.tokens["bob"] = server.client_certificate("alice")
        assert_type(server.maildrop("alice"), Maildrop)
        server.maildrop("alice").lock()
    assert_type(server.messages("alice"), "list[bytes]")
    assert_type(server.commands, "list[tuple[str, ...]]")
    assert_type(server.errors, "list[BaseException]")
    assert_type(server.ca_file, "str | None")
    assert_type(server.sessions, list[SessionRecord])
    for session in server.sessions:
        assert_type(session.commands, "list[tuple[str, ...]]")
        assert_type((session.number, session.username, session.is_open), "tuple[int, str, bool]")
        assert_type(session.transcript(), str)
    server.start().stop()
    assert_type(server.url, str)
    assert not server.deleting


@pytest.mark.pop3(users={"alice": "secret"}, timeout=5)
def test_fetch(pop3_server: MailServer, pop3s_server: MailServer) -> None:
    pop3_server.deliver("alice", "Subject: x\n\nhello\n")
    fetch(pop3_server.host, pop3s_server.port)
    assert ("alice", "QUIT") in pop3_server.commands


@contextmanager
def broken_backend() -> Generator[None, None, None]:
    yield


def try_handler(on_new_connection: Callable[[object], popart.Handler | None]) -> list[str]:
    try:
        report: Report = check_handler(
            on_new_connection,
            user="alice",
            password="secret",
            other=("bob", "hunter2"),
            delete=True,
            break_backend=broken_backend,
            patience=5,
        )
        check_handler(on_new_connection, user="alice", token="ya29.x")
        check_handler(on_new_connection, user="alice", password="secret", apop=True)
    except CheckError as error:
        return [str(error)]
    return [*report.findings, *report.notes]
