"""What clients and handlers read, word for word.  A changed text is a decision, and this file is where it is seen."""

from __future__ import annotations

import inspect
import io
import socket
import ssl
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from scramp import ScramClient

import popart
from popart.proxy_header import ProxyError, read_header
from popart.server import Server
from popart.session import Session
from popart.system import reset_when_closed
from popart.tls_handshake import shake_hands
from popart.tls_records import TLS

from .conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    make_session,
    running,
    signed_in,
    wait_until,
)
from .test_session import DIGEST, SIGN_IN, altered, raising, returning

BANNER = "<1.2@localhost>"
NEEDS_TLS = "-ERR this needs TLS, from the beginning of the connection"


class AbleHandler(MemoryHandler):
    """Has the abilities whose answers stand here."""

    allow_sasl_login = True

    def authenticate_token(self, username: str, token: str) -> None: ...

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        return popart.scram_credentials("secret", iterations=4096, salt=b"123456789012")

    def enable_utf8(self) -> None: ...

    def get_languages(self) -> Mapping[str, str]:
        return {"de": "Deutsch"}

    def set_language(self, tag: str) -> None: ...


class TokensOnly(AbleHandler):
    allow_passwords = False


def auth(mechanism: str, response: bytes) -> bytes:
    return b"AUTH %b %b" % (mechanism.encode(), b64encode(response))


OAUTH = b"n,a=alice,\x01auth=Bearer t\x01"

BEFORE_SIGN_IN = [
    ([b"XYZZY"], "-ERR unknown command"),
    ([b"STAT"], "-ERR sign in first"),
    ([b"GET / HTTP/1.1"], "-ERR this is a POP3 server"),
    ([b"USER"], "-ERR missing argument"),
    ([b"APOP alice"], "-ERR missing argument"),
    ([b"CAPA x"], "-ERR this command takes no argument"),
    ([b"USER a\0b"], "-ERR a command holds neither NUL nor line ends"),
    ([b"USER \xff"], "-ERR arguments must be UTF-8"),
    ([b"USER " + 1020 * b"x"], "-ERR line too long"),
    ([b"USER alice"], "+OK send PASS"),
    ([b"PASS secret"], "-ERR USER comes before PASS"),
    (SIGN_IN, "+OK maildrop has 2 messages (12 octets)"),
    ([b"USER alice", b"PASS wrong"], "-ERR [AUTH] wrong name or password"),
    ([b"APOP alice x"], "-ERR APOP takes a name and an MD5 digest"),
    ([b"LANG xx"], "-ERR no such language here"),
    ([b"LANG de"], "+OK de Deutsch"),
    ([b"LANG"], "+OK languages follow"),
    ([b"UTF8"], "+OK UTF-8 enabled"),
    ([b"CAPA"], "+OK capability list follows"),
    ([b"AUTH"], "+OK mechanisms follow"),
    ([b"AUTH XYZZY"], "-ERR unknown mechanism"),
    ([b"AUTH PLAIN", b"*"], "-ERR authentication cancelled"),
    ([b"AUTH PLAIN", b"?"], "-ERR a response is base64"),
    ([b"AUTH PLAIN", 12_289 * b"A"], "-ERR line too long"),
    ([auth("PLAIN", b"x")], "-ERR PLAIN takes two identities and a password"),
    ([auth("PLAIN", b"bob\0alice\0secret")], "-ERR [AUTH] nobody may act for another user"),
    ([auth("PLAIN", b"\0alice\0")], "-ERR a name or a password is missing"),
    ([auth("PLAIN", b"\0alice\0a\rb")], "-ERR names and passwords hold neither NUL nor line ends"),
    ([auth("PLAIN", b"\0alice\0\xff")], "-ERR responses must be UTF-8"),
    ([auth("OAUTHBEARER", b"x")], "-ERR malformed GS2 header"),
    ([auth("OAUTHBEARER", b"p=x,,\x01auth=Bearer t\x01\x01")], "-ERR [AUTH] channel binding is not offered"),
    ([auth("OAUTHBEARER", OAUTH + b"x")], "-ERR malformed key and value pairs"),
    ([auth("OAUTHBEARER", OAUTH + b"auth=Bearer u\x01\x01")], "-ERR a key must not come twice"),
    ([auth("OAUTHBEARER", b"n,a=alice,\x01auth=Basic t\x01\x01"), b""], "-ERR [AUTH] a bearer token is needed"),
    ([auth("SCRAM-SHA-256", b"n,a=bob,n=alice,r=x")], "-ERR [AUTH] nobody may act for another user"),
    ([auth("SCRAM-SHA-256", b"n,,n=alice,r=" + 1020 * b"x")], "-ERR SCRAM message too long"),
    ([auth("SCRAM-SHA-256", b"n,,alice")], "-ERR malformed SCRAM message"),
    ([auth("SCRAM-SHA-256", b"n,,n=alice,r=x"), b64encode(b"c=biws")], "-ERR [AUTH] wrong name or password"),
    ([b"QUIT"], "+OK goodbye"),
]

SIGNED_IN = [
    ([b"USER alice"], "-ERR you are signed in already"),
    ([b"STAT"], "+OK 2 12"),
    ([b"LIST"], "+OK 2 messages (12 octets)"),
    ([b"LIST 1"], "+OK 1 6"),
    ([b"LIST x"], "-ERR bad message number"),
    ([b"LIST 3"], "-ERR no such message, the maildrop was opened with 2"),
    ([b"DELE 1"], "+OK message marked as deleted"),
    ([b"DELE 1", b"LIST"], "+OK 1 message (6 octets)"),
    ([b"DELE 1", b"RETR 1"], "-ERR message 1 is deleted"),
    ([b"DELE 1", b"RSET"], "+OK maildrop has 2 messages (12 octets)"),
    ([b"UIDL"], "+OK unique-id listing follows"),
    ([b"UIDL 2"], "+OK 2 id-2"),
    ([b"RETR 1"], "+OK 6 octets"),
    ([b"TOP 1"], "-ERR missing argument"),
    ([b"TOP 1 x"], "-ERR bad number of lines"),
    ([b"TOP 1 0"], "+OK top of message follows"),
    ([b"NOOP"], "+OK nothing done"),
    ([b"QUIT"], "+OK goodbye"),
]


def ask(session: Session, *lines: bytes) -> str:
    """Return the first line of the last answer."""
    text = ""
    for line in lines:
        reply = session.respond(line)
        if reply.message is not None:
            reply.message.close()
        text = reply.status.decode().removesuffix("\r\n")
    return text


@pytest.mark.parametrize(("lines", "text"), BEFORE_SIGN_IN)
def test_before_sign_in(lines: list[bytes], text: str) -> None:
    """Each answer of the AUTHORIZATION state."""
    session = make_session(AbleHandler(Mail(b"1234\r\n", b"5678\r\n")), banner=BANNER)
    assert ask(session, *lines) == text


@pytest.mark.parametrize(("lines", "text"), SIGNED_IN)
def test_signed_in(lines: list[bytes], text: str) -> None:
    """Each answer of the TRANSACTION state."""
    session = make_session(AbleHandler(Mail(b"1234\r\n", b"5678\r\n")))
    assert ask(session, *SIGN_IN, *lines) == text


@pytest.mark.parametrize(
    ("kind", "options", "line", "text"),
    [
        (MemoryHandler, {}, b"UTF8", "-ERR UTF8 is not offered here"),
        (MemoryHandler, {}, b"LANG", "-ERR LANG is not offered here"),
        (MemoryHandler, {}, b"APOP alice " + DIGEST.encode(), "-ERR APOP is not offered here"),
        (TokensOnly, {}, b"USER alice", "-ERR passwords are not taken here"),
        (TokensOnly, {}, b"AUTH PLAIN", "-ERR passwords are not taken here"),
        (AbleHandler, {"allow_cleartext": False}, b"USER alice", NEEDS_TLS),
        (AbleHandler, {"allow_cleartext": False}, b"AUTH XOAUTH2", NEEDS_TLS),
    ],
)
def test_not_offered(kind: type[MemoryHandler], options: dict[str, Any], line: bytes, text: str) -> None:
    """What a handler or a server does not take is refused with the reason."""
    assert ask(make_session(kind(Mail()), **options), line) == text


def test_the_last_response_of_scram() -> None:
    """A client that has proved itself has nothing more to say (RFC 5802 section 5)."""
    client = ScramClient(["SCRAM-SHA-256"], "alice", "secret")
    session = make_session(AbleHandler(Mail()))
    first = ask(session, auth("SCRAM-SHA-256", client.get_client_first().encode()))
    client.set_server_first(b64decode(first[2:]).decode())
    final = ask(session, b64encode(client.get_client_final().encode()))
    assert final.startswith("+ ")
    assert ask(session, b64encode(b"x")) == "-ERR the last response of SCRAM is empty"


@pytest.mark.parametrize(
    ("options", "lines", "text"),
    [({"max_bad_commands": 1}, [b"XYZZY"], "too many bad commands"),
     ({"max_failed_logins": 1}, [b"USER alice", b"PASS wrong"], "too many failed logins")],
)  # fmt: skip
def test_limits(options: dict[str, Any], lines: list[bytes], text: str) -> None:
    """The handler is told which limit ended the session."""
    handler = MemoryHandler(Mail())
    ask(make_session(handler, **options), *lines)
    assert [(type(error), str(error)) for error in handler.mail.errors] == [(popart.LimitError, text)]


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("set_banner", []),
        ("authenticate_pass", SIGN_IN),
        ("authenticate_apop", [b"APOP alice " + DIGEST.encode()]),
        ("authenticate_token", [auth("OAUTHBEARER", OAUTH + b"\x01")]),
        ("lock_maildrop", SIGN_IN),
        ("enable_utf8", [b"UTF8"]),
        ("set_language", [b"LANG de"]),
        ("delete_messages", [*SIGN_IN, b"DELE 1", b"QUIT"]),
        ("unlock_maildrop", [*SIGN_IN, b"QUIT"]),
    ],
)
def test_results_that_must_be_none(method: str, lines: list[bytes]) -> None:
    """The report of a result that counts as an error names the method, and what came."""
    handler = altered(AbleHandler, **{method: returning(True)})
    session = make_session(handler, banner=BANNER)
    session.greet()
    ask(session, *lines)
    assert list(map(str, handler.mail.errors)) == [f"{method} returned bool, not None"]


@pytest.mark.parametrize(
    ("method", "result", "text"),
    [
        ("get_login_delay", "5", "the login delay must be an integer: str"),
        ("get_expire", "5", "the days to keep mail must be an integer: str"),
        ("get_expire", -1, f"the days to keep mail must be 0 to {2**63 - 1}: -1"),
    ],
)
def test_numbers_in_capabilities(method: str, result: object, text: str) -> None:
    """The report of a number that cannot stand in CAPA says which one, and what came."""
    handler = altered(**{method: returning(result)})
    ask(make_session(handler), *SIGN_IN, b"CAPA")
    assert list(map(str, handler.mail.errors)) == [text]


def test_an_id_that_is_not_ready() -> None:
    """The report of a coroutine in a listing says where, at sign-in: it is never awaited."""

    async def make_id() -> None: ...

    handler = AbleHandler(Mail())
    handler.list_messages = lambda: [(1, "a"), (1, "b"), (1, make_id())]  # type: ignore[attr-defined]
    assert ask(make_session(handler), *SIGN_IN).startswith("-ERR [SYS/PERM]")
    assert list(map(str, handler.mail.errors)) == ["the unique-id of message 3 must be a str: coroutine"]


def test_an_id_that_is_asked_for_and_not_ready() -> None:
    """So for a single one; Python does not print that it was never awaited."""

    async def make_id() -> None: ...

    made = make_id()
    handler = altered(get_message_id=returning(made))
    ask(make_session(handler), *SIGN_IN, b"UIDL 1")
    assert list(map(str, handler.mail.errors)) == ["the unique-id of message 1 must be a str: coroutine"]
    assert inspect.getcoroutinestate(made) == inspect.CORO_CLOSED


class Unfinished:
    """Its `close` is a coroutine's: nothing has been closed by the call."""

    def read(self, n: int, /) -> bytes:
        return b""

    async def close(self) -> None: ...


def test_closing_that_is_not_done() -> None:
    """The reports of the two methods ``close``, that of a reader and that of a handler."""
    handler = altered(get_message_reader=returning(Unfinished()), get_message_size=returning(0))
    handler.close = Unfinished().close  # type: ignore[attr-defined]
    session = make_session(handler)
    ask(session, *SIGN_IN, b"RETR 1", b"QUIT")
    session.close()
    reports = [f"{what} returned coroutine, not None" for what in ("a reader's close", "close")]
    assert list(map(str, handler.mail.errors)) == reports


def test_an_oversight() -> None:
    """A server that offers APOP tells a handler that has not been made for it so."""

    class NoApop(popart.BaseHandler):
        def __init__(self) -> None:
            self.errors: list[str] = []

        def handle_session_error(self, error: BaseException) -> None:
            self.errors.append(str(error))

    NoApop.__abstractmethods__ = frozenset()
    handler = NoApop()  # type: ignore[abstract]
    session = make_session(handler, banner=BANNER)
    session.greet()
    assert ask(session, b"APOP alice " + DIGEST.encode()) == "-ERR [SYS/PERM] APOP is not taken here"
    assert handler.errors == ["apop=True needs NoApop.authenticate_apop to be overridden"]


def test_a_refusal_without_a_text() -> None:
    """So reads one whose class does not call its base's ``__init__``."""

    class LazyRefusal(popart.ReportableError):
        def __init__(self) -> None: ...

    handler = altered(authenticate_pass=raising(LazyRefusal()))
    assert ask(make_session(handler), *SIGN_IN) == "-ERR [AUTH] refused"


def credentials(**changes: Any) -> popart.ScramCredentials:
    values = {"salt": bytes(16), "iterations": 4096, "stored_key": bytes(32), "server_key": bytes(32), **changes}
    return popart.ScramCredentials(**values)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: popart.scram_credentials(""), "a password is not empty"),
        (lambda: credentials(salt=bytes(11)), "a salt has at least 12 octets"),
        (lambda: credentials(iterations=4095), "SCRAM-SHA-256 takes at least 4096 iterations"),
        (lambda: credentials(stored_key=b""), "the keys of SCRAM-SHA-256 have 32 octets each"),
        (lambda: popart.ReportableError("no", code="A B"), "not a POP3 response code: 'A B'"),
    ],
)
def test_values(make: Callable[[], object], text: str) -> None:
    """A ValueError says what is wrong, and shows no secret."""
    with pytest.raises(ValueError) as failure:
        make()
    assert str(failure.value) == text


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (popart.wire_form, "a message is bytes, not str"),
        (popart.wire_size, "a message is bytes or a reader of bytes, not str"),
    ],
)
def test_types(function: Callable[[Any], object], text: str) -> None:
    """A TypeError says what a message is."""
    with pytest.raises(TypeError) as failure:
        function("text")
    assert str(failure.value) == text


def make_server(limits: Mapping[str, object] = MappingProxyType({}), /, **options: Any) -> object:
    host = options.pop("host", "127.0.0.1")
    return type("Limited", (Server,), dict(limits))((host, 0), lambda peer: None, **options)


def wrong(value: object) -> Any:
    return value


A_CLIENTS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Server(wrong("host"), lambda peer: None), "server_address must be a host and a port, not 'host'"),
        (lambda: Server(("", 0), wrong(5)), "on_new_connection must be callable, not 5"),
        (
            lambda: make_server(hostname="a b"),
            "hostname cannot be 'a b': it is at most 255 characters, "
            "words of ASCII letters, digits, hyphens and underscores, with dots between them",
        ),
        (
            lambda: make_server(greeting="[hi]"),
            "greeting cannot be '[hi]': it is at most 206 characters, "
            "words of ASCII with single spaces between them, without <, > and @, and no [ at the beginning",
        ),
        (
            lambda: make_server(implementation=""),
            "implementation cannot be '': it is at most 400 characters, words of ASCII with single spaces between them",
        ),
        (
            lambda: make_server(expire="never"),
            "expire cannot be 'never': it is at most 14 characters, NEVER or days, optionally USER",
        ),
        (lambda: make_server(timeout=1), "timeout must be 600 seconds, the minimum_timeout, to 86400.0, not 1"),
        (lambda: make_server(ssl_context=5), "ssl_context must be an SSLContext, not 5"),
        (
            lambda: make_server(ssl_context=A_CLIENTS),
            "ssl_context is one for clients; a server's is made with ssl.Purpose.CLIENT_AUTH",
        ),
        (lambda: make_server(scram_decoy_key=b""), "scram_decoy_key must be bytes, and not empty"),
        (lambda: make_server(trusted_proxies="::1"), "trusted_proxies must be a list: ['::1']"),
        (lambda: make_server(processor="x"), """processor must be a number, "current" or None, not 'x'"""),
        (
            lambda: make_server({"max_messages": -1}),
            "max_messages must be a number or None, a whole one and at least 0, not -1",
        ),
        (
            lambda: make_server({"login_timeout": -1}),
            "login_timeout must be a number or None, and at least 0 seconds, not -1",
        ),
        (
            lambda: make_server({"minimum_timeout": None}),
            "minimum_timeout must be a number, and at least 0 seconds, not None",
        ),
        (
            lambda: make_server(host="0.0.0.0", require_tls=True),
            "require_tls: 0.0.0.0 is not loopback, so this server needs an ssl_context",
        ),
    ],
)
def test_options(make: Callable[[], object], text: str) -> None:
    """What a server says of an option or a limit."""
    with pytest.raises(ValueError) as failure:
        make()
    assert str(failure.value) == text


def test_options_that_depend_on_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of a listener, of a processor that is not there, and where a system lacks something."""
    with socket.socket() as unbound, pytest.raises(ValueError) as failure:
        Server.from_socket(unbound, lambda peer: None)
    assert str(failure.value).startswith("listener must be a bound stream socket, not <socket.socket fd=")
    monkeypatch.setattr("popart.system.processors", lambda: [0, 1])
    with pytest.raises(ValueError) as failure:
        make_server(processor=7)
    assert str(failure.value) == "processor must be one of [0, 1], on which this process may run, not 7"
    monkeypatch.delattr("socket.SO_REUSEPORT", raising=False)
    with pytest.raises(ValueError) as failure:
        make_server(reuse_port=True)
    assert str(failure.value) == "reuse_port needs SO_REUSEPORT, which this system does not have"


def test_who_is_no_proxy() -> None:
    """What `handle_error` of a server is told of a client that comes past the proxy."""
    told = []

    class Telling(Server):
        def handle_error(self, request: object, client_address: object) -> None:
            told.append(str(sys.exc_info()[1]))

    server = Telling(("127.0.0.1", 0), lambda peer: None, proxy_protocol=True, trusted_proxies=["192.0.2.0/24"])
    with running(server), connected(server) as client:
        assert client.rest() == b""
        wait_until(lambda: bool(told))
    assert told == ["a client that is no trusted proxy"]


def vanish(client: Client) -> None:
    client.file.close()
    reset_when_closed(client.sock)
    client.sock.close()


@pytest.mark.parametrize(
    ("timeout", "leave", "report"),
    [
        (600, lambda client: client.sock.shutdown(socket.SHUT_WR), "ClientGoneError('the client left without QUIT')"),
        (600, vanish, "ClientGoneError('the connection broke')"),
        (1.0, lambda client: None, "ClientTimeoutError('the client was too slow')"),
    ],
)
def test_ends_of_sessions(timeout: float, leave: Callable[[Client], None], report: str) -> None:
    """What the handler is told of a client that did not say QUIT."""
    handler = ClosingHandler(Mail())
    with running(QuickServer(("127.0.0.1", 0), lambda peer: handler, timeout=timeout)) as server:
        with signed_in(server) as client:
            leave(client)
            assert handler.closed.wait(PATIENCE)
    assert list(map(repr, handler.mail.errors)) == [report]


TCP4 = b"PROXY TCP4 192.0.2.1 192.0.2.2 "
V2 = b"\r\n\r\n\0\r\nQUIT\n"
TOO_LONG = "the PROXY header is too long"
CUT_SHORT = "the connection ended within the PROXY header"


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"CAPA\r\n", "this is no PROXY header"),
        (TCP4, CUT_SHORT),
        (b"PROXY UNKNOWN".ljust(107), TOO_LONG),
        (b"PROXY TCP5 x y 1 1\r\n", "the PROXY header is malformed"),
        (b"PROXY TCP4 x y 1 1\r\n", "the PROXY header holds no address"),
        (TCP4 + b"65536 1\r\n", "the PROXY header holds no port"),
        (V2 + b"\x21\x11\xff\xff", TOO_LONG),
        (V2 + b"\x22\x11\0\0", "the PROXY header has an unknown version, command, family or protocol"),
        (V2 + b"\x21\x11\0\0", "the PROXY header is shorter than its addresses"),
    ],
)
def test_proxy_headers(octets: bytes, text: str) -> None:
    """What `handle_error` of a server is told of a PROXY header."""
    reading, stream = read_header(), io.BytesIO(octets)
    with pytest.raises(ProxyError) as failure:
        wanted = next(reading)
        while True:
            wanted = reading.send(stream.read(wanted))
    assert str(failure.value) == text


def test_end_within_a_handshake(server_context: ssl.SSLContext) -> None:
    """What it is told of a client that vanished."""
    with pytest.raises(ConnectionAbortedError) as failure:
        shake_hands(TLS(server_context), bytes, lambda octets: None)
    assert str(failure.value) == "the connection ended within the handshake"
