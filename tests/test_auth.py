"""AUTH (RFC 5034): the command and its exchanges, one line at a time and over real connections."""

from __future__ import annotations

import functools
import hmac
import itertools
import re
import socket
import ssl
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import scramp  # type: ignore[import-untyped]

import popart
from popart.command_lines import LineReader
from popart.errors import ClientGoneError, ClientTimeoutError, HandlerError, LimitError, ReportableError
from popart.server import Server
from popart.session import Session

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
)
from .test_sasl import (
    ALL,
    CERTIFICATE,
    INVALID_TOKEN,
    METHODS,
    TOKENS,
    UNAUTHORIZED,
    AbleHandler,
    ScramClient,
    everything_in,
    name_of,
)
from .test_server import HOST
from .test_session import BROKEN, INTERNAL, TWO, goes_on, is_refusal, kinds, raising, returning
from .test_tls import by_argument, by_wrapping

if TYPE_CHECKING:
    import trustme

SECRET = b"7f3ab2e4c6d8"
"""Part of each password and token below, and of what else the server must not repeat."""

each = functools.partial(pytest.mark.parametrize, ids=name_of)
both_ways = pytest.mark.parametrize("initial", [True, False], ids=["with initial response", "without"])
every_mechanism = each("mechanism", ALL)

Ask = Callable[[bytes], bytes]
"""Sends a line and returns the answer to it."""

Responses = Generator[bytes, bytes, None]
"""The client's side of an exchange: it yields responses and is sent challenges."""


Connect = Callable[..., Any]
"""Serves a handler, in a ``with`` block, and connects to it."""


class Handler(AbleHandler, ClosingHandler):
    """Signs in whoever comes, but for mallory, by every mechanism, and records it."""


def make_handler(**changes: Any) -> Handler:
    """Make a handler with two messages, with other methods or attributes in its class."""
    return type("Changed", (Handler,), changes)(Mail(*TWO))  # type: ignore[no-any-return]


def make(handler: popart.Handler, **options: Any) -> Session:
    """Make a session on a connection with a client certificate."""
    return make_session(handler, **{"certificate": CERTIFICATE, **options})


def ask(session: Session, *lines: bytes) -> list[bytes]:
    """Give a session some lines and return its replies: each is a status line, or a challenge in base64."""
    replies = [session.respond(line).head() for line in lines]
    for reply in replies:
        assert challenge_in(reply) is not None or re.match(rb"(\+OK|-ERR) [ -~]*\r\n", reply)
    return replies


def asking(session: Session) -> Ask:
    return lambda line: ask(session, line)[0]


def responses(mechanism: str, name: bytes = b"alice") -> Responses:
    """What a client says: always the same, but in SCRAM."""
    if mechanism == "EXTERNAL":
        yield name
    elif mechanism == "SCRAM-SHA-256":
        client = ScramClient(name, b"pencil")
        final = client.final((yield client.first))
        verifier = yield final
        assert verifier == client.verifier
        yield b""
    elif mechanism == "LOGIN":
        challenge = yield name
        assert challenge == b"Password:"
        yield b"secret " + SECRET
    elif mechanism == "PLAIN":
        yield b"\0%b\0secret %b" % (name, SECRET)
    else:
        form, _, dummy = TOKENS[mechanism]
        yield form % (name, b"Bearer ya29." + SECRET)
        yield dummy


def challenge_in(answer: bytes) -> bytes | None:
    """Return the octets of a challenge, or None of another answer."""
    found = re.fullmatch(rb"\+ ([^\r\n]*)\r\n", answer)
    return b64decode(found[1], validate=True) if found else None


def sign_in(ask: Ask, mechanism: str, initial: bool, client: Responses | None = None) -> bytes:
    """Hold a whole exchange; return the last answer, which is no challenge."""
    client = client or responses(mechanism)
    response = next(client)
    if initial:
        answer = ask(b"AUTH %b %b" % (mechanism.encode(), b64encode(response) or b"="))
    else:
        answer = ask(b"AUTH " + mechanism.encode())
        assert challenge_in(answer) == (b"Username:" if mechanism == "LOGIN" else b"")
        answer = ask(b64encode(response))
    while (challenge := challenge_in(answer)) is not None:
        answer = ask(b64encode(client.send(challenge)))
    return answer


def has_signed_in(handler: Handler, mechanism: str) -> bool:
    """Tell whether a handler was asked once by this mechanism's method, and has locked the maildrop since."""
    calls = [call[0] for call in handler.mail.calls]
    return calls[:2] == [METHODS[mechanism], "lock_maildrop"] and not handler.mail.errors


class TestExchange:
    """The ways through an exchange (RFC 5034 section 4)."""

    @every_mechanism
    @both_ways
    def test_success(self, mechanism: str, initial: bool) -> None:
        """With or without an initial response a success is +OK with the maildrop, in the TRANSACTION state."""
        handler = make_handler()
        session = make(handler)
        assert sign_in(asking(session), mechanism, initial) == b"+OK maildrop has 2 messages (54 octets)\r\n"
        assert has_signed_in(handler, mechanism) and handler.mail.calls[0][1] == "alice"
        assert ask(session, b"STAT") == [b"+OK 2 54\r\n"]

    @each("name", ["zoë", "пётр@пример.рф", "a b", "\u2028", "+OK"])
    @each("mechanism", [name for name in ALL if name != "SCRAM-SHA-256"])
    @both_ways
    def test_names(self, mechanism: str, name: str, initial: bool) -> None:
        """A name is any UTF-8, and arrives as it was sent."""
        handler = make_handler()
        assert sign_in(asking(make(handler)), mechanism, initial, responses(mechanism, name.encode()))[:3] == b"+OK"
        assert handler.mail.calls[0][1] == name

    @each("line", [b"auth plain AGFsaWNlAHNlY3JldA==", b"Auth Plain AGFsaWNlAHNlY3JldA=="])
    def test_case(self, line: bytes) -> None:
        """Command and mechanism may be written in any case."""
        handler = make_handler()
        assert ask(make(handler), line)[0].startswith(b"+OK") and has_signed_in(handler, "PLAIN")

    @each("lines", [b"AUTH EXTERNAL =", b"AUTH EXTERNAL;", b"AUTH EXTERNAL ;"])
    def test_empty_response(self, lines: bytes) -> None:
        """``=`` is the empty initial response; on a line of its own it is an empty line."""
        handler = make_handler()
        *challenges, answer = ask(make(handler), *lines.split(b";"))
        assert challenges in ([], [b"+ \r\n"]) and answer.startswith(b"+OK")
        assert handler.mail.calls[0] == ("authenticate_certificate", "", CERTIFICATE)

    def test_empty_initial_response_is_a_response(self) -> None:
        """``=`` is no request for a challenge."""
        assert is_refusal(ask(make(make_handler()), b"AUTH PLAIN =")[0])

    @every_mechanism
    def test_cancelled(self, mechanism: str) -> None:
        """``*`` cancels: an -ERR, as if AUTH had not been given, and no failed login."""
        handler = make_handler()
        session = make(handler, max_failed_logins=1)
        challenge, answer = ask(session, b"AUTH " + mechanism.encode(), b"*")
        assert challenge.startswith(b"+ ") and answer == b"-ERR authentication cancelled\r\n"
        assert not handler.mail.calls and goes_on(session)
        assert sign_in(asking(session), mechanism, True).startswith(b"+OK")

    @each("mechanism", ["SCRAM-SHA-256", "LOGIN"])
    def test_cancelled_later(self, mechanism: str) -> None:
        """Also in place of a later response."""
        session = make(make_handler())
        first = b64encode(next(responses(mechanism)))
        challenge, answer = ask(session, b"AUTH %b %b" % (mechanism.encode(), first), b"*")
        assert challenge.startswith(b"+ ") and answer == b"-ERR authentication cancelled\r\n" and goes_on(session)

    @each("mechanism", ["SCRAM-SHA-256", "PLAIN"])
    @both_ways
    @each(
        "octets",
        [
            *b"A|AA|AAA|AAA=A|=AAA|AAA=BBB|AAAA=AAA|A===|====|-_-_|AA==AA==|AAAA AAAA| AAAA|AAAA |* |**|AAAA*".split(
                b"|"
            ),
            *(b"AAAA\t", b"AAAA\r", b"AA\rAA", b"AAAA\xff", "ＡＡＡＡ".encode(), b"AAA" + SECRET + b"!", b"AAAA\0"),
        ],
    )
    def test_bad_base64(self, mechanism: str, initial: bool, octets: bytes) -> None:
        """What is no base64 is a bad command, never reaches the handler, and ends the exchange (RFC 5034 section 4)."""
        handler = make_handler()
        session = make(handler, max_failed_logins=1)
        line = b"AUTH " + mechanism.encode()
        *_, answer = ask(session, line + b" " + octets) if initial else ask(session, line, octets)
        assert is_refusal(answer) and not answer.startswith(b"-ERR [") and b"cancelled" not in answer
        assert not handler.mail.calls and goes_on(session)
        assert sign_in(asking(session), mechanism, initial).startswith(b"+OK")

    @each("octets", b"AGFsaWNlAHNlY3JldA==|AGFsaWNlAHNlY3JldB==|AGFsaWNlAHNlY3JldP==".split(b"|"))
    @both_ways
    def test_surplus_bits(self, initial: bool, octets: bytes) -> None:
        """Bits of a last character that stand for nothing mean nothing: RFC 5034's grammar takes any (section 5)."""
        handler = make_handler()
        ask(make(handler), *([b"AUTH PLAIN " + octets] if initial else [b"AUTH PLAIN", octets]))
        assert handler.mail.calls[0] == ("authenticate_pass", "alice", "secret")

    @each(
        "octets",
        b"YWI==|YWI===|YWJj=|YWJj==|YWJj===|YWJj====|YQ=|YQ===|YQ====|Y===|YWJjYQ===|YW=I|==|===|====".split(b"|"),
    )
    @both_ways
    def test_padding(self, initial: bool, octets: bytes) -> None:
        """Not one ``=`` too many or too few is taken, on any Python (RFC 5034 section 5)."""
        handler = make_handler()
        session = make(handler)
        *_, answer = ask(session, b"AUTH EXTERNAL " + octets) if initial else ask(session, b"AUTH EXTERNAL", octets)
        assert answer == b"-ERR a response is base64\r\n" and goes_on(session) and not handler.mail.calls

    @each("line", b"QUIT|NOOP|CAPA|USER bob|PASS secret|AUTH PLAIN|AUTH|STAT|GET / HTTP/1.1|\x16\x03\x01".split(b"|"))
    @each("mechanism", ["SCRAM-SHA-256", "PLAIN"])
    def test_commands_are_responses(self, mechanism: str, line: bytes) -> None:
        """While a challenge is pending nothing is a command: it is a response, if a bad one."""
        handler = make_handler()
        session = make(handler, max_failed_logins=1)
        challenge, answer = ask(session, b"AUTH " + mechanism.encode(), line)
        assert challenge == b"+ \r\n" and is_refusal(answer) and goes_on(session)
        assert not handler.mail.calls


LONGEST = 12_288
"""Octets of a line of AUTH that are taken."""


def plain_response(most: int, name: bytes = b"alice") -> bytes:
    """Return a response of PLAIN that has in base64 as many octets as the limit lets it have."""
    return b64encode((b"\0%b\0" % name).ljust(most // 4 * 3, b"x"))


class TestLength:
    """Lines of AUTH may have 12,288 octets, as OAuth tokens are long."""

    @each("initial", [b"", b"AUTH PLAIN "])
    def test_longest(self, initial: bytes) -> None:
        """The longest line is accepted, as a response of its own or with the command before it."""
        line = initial + plain_response(LONGEST - len(initial))
        assert len(line) > LONGEST - 4
        handler = make_handler()
        session = make(handler)
        if not initial:
            ask(session, b"AUTH PLAIN")
        assert ask(session, line)[0].startswith(b"+OK") and has_signed_in(handler, "PLAIN")

    @each("initial", [b"", b"AUTH PLAIN "])
    @each(
        ("size", "answer"),
        [(LONGEST, b"-ERR a response is base64\r\n"), (LONGEST + 1, b"-ERR line too long\r\n")],
    )
    def test_limit(self, initial: bytes, size: int, answer: bytes) -> None:
        """The limit is one of 12,288 octets, and holds before anything is decoded."""
        session = make(make_handler())
        if not initial:
            ask(session, b"AUTH PLAIN")
        assert ask(session, initial.ljust(size, b"!")) == [answer] and goes_on(session)

    @each("initial", [b"", b"AUTH PLAIN "])
    @each("excess", [1, 4, 100_000])
    @each("tail", [b"", b"QUIT", b"\nUSER x"])
    @each("size", [1, 4096])
    def test_too_long(self, initial: bytes, excess: int, tail: bytes, size: int) -> None:
        """A longer line is refused once, however it arrives; no part of it is run or taken for a response."""
        line = initial + plain_response(LONGEST + excess + 16)
        line = line[: LONGEST + excess - len(tail.partition(b"\n")[0])] + tail
        stream = (b"" if initial else b"AUTH PLAIN\r\n") + line + b"\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n"
        handler = make_handler()
        session = make(handler)
        reader = LineReader()
        pieces = (stream[start : start + size] for start in range(0, len(stream), size))
        replies = ask(session, *itertools.chain.from_iterable(map(reader.feed, pieces)))
        if not initial:
            assert replies.pop(0) == b"+ \r\n"
        if b"\n" in tail:
            assert replies.pop(1) == b"+OK send PASS\r\n"
        refusal, success = replies
        assert refusal == b"-ERR line too long\r\n" and success.startswith(b"+OK maildrop")
        assert has_signed_in(handler, "PLAIN") and handler.mail.calls[0][2] == "secret"

    def test_other_commands(self) -> None:
        """Only lines of AUTH may be so long."""
        assert ask(make(make_handler()), b"USER ".ljust(1025, b"x")) == [b"-ERR line too long\r\n"]


ABILITIES = {
    "authenticate_certificate": ["EXTERNAL"],
    "get_scram_credentials": ["SCRAM-SHA-256"],
    "authenticate_token": ["OAUTHBEARER", "XOAUTH2"],
    "allow_sasl_login": ["LOGIN"],
}
COMBINATIONS = [*itertools.chain.from_iterable(itertools.combinations(ABILITIES, count) for count in range(5))]


class TestList:
    """What is offered, and where."""

    @each("abilities", COMBINATIONS)
    @each("certificate", [CERTIFICATE, {}, None])
    def test_one_list(self, abilities: tuple[str, ...], certificate: Mapping[str, Any] | None) -> None:
        """CAPA's SASL line is AUTH's list, and what AUTH takes is exactly that (RFC 5034 section 3)."""
        attributes = {name: getattr(AbleHandler, name) for name in abilities}
        handler = type("Able", (ClosingHandler,), {"decide": AbleHandler.decide, **attributes})(Mail(*TWO))
        session = make(handler, certificate=certificate)
        offered = {"PLAIN"}.union(*(ABILITIES[name] for name in abilities))
        if not certificate:
            offered.discard("EXTERNAL")
        listed = ask(session, b"AUTH", b"AUTH ", b"auth", b"CAPA")
        names = listed[0].decode().split("\r\n")
        assert names[0].startswith("+OK ") and names[-2:] == [".", ""]
        assert names[1:-2] == [name for name in ALL if name in offered]
        assert listed[:3] == listed[:1] * 3
        assert f"\r\nSASL {' '.join(names[1:-2])}\r\n".encode() in listed[3]
        for name in ALL:
            answer, *_ = ask(session, b"AUTH " + name.encode())
            assert answer.startswith(b"+ ") if name in offered else answer == b"-ERR unknown mechanism\r\n"
            ask(session, b"*" if name in offered else b"NOOP")

    @each("line", b"AUTH CRAM-MD5|AUTH SCRAM-SHA-256-PLUS|AUTH PLAIN\t|AUTH PLAIN\0|AUTH \xff|AUTH X AAAA".split(b"|"))
    def test_unknown_mechanism(self, line: bytes) -> None:
        """An unknown mechanism is an -ERR without a challenge, and the session goes on."""
        session = make(make_handler())
        assert is_refusal(ask(session, line)[0]) and goes_on(session)

    @each("name", ["plaın", "ſcram-sha-256", "ｐｌａｉｎ", "PLAIN=", "PLAIN\u2028"])
    def test_letters_of_other_scripts(self, name: str) -> None:
        """A mechanism's name is ASCII: letters whose capitals are ASCII are not (RFC 4422 section 3.1)."""
        session = make(make_handler())
        assert ask(session, b"AUTH " + name.encode())[0] == b"-ERR unknown mechanism\r\n" and goes_on(session)

    def test_capa_after_sign_in(self) -> None:
        """The SASL line stays after sign-in, as RFC 2449 section 6.3 has it, though AUTH is over."""
        session = make(make_handler())
        before, _, after = ask(session, b"CAPA", b"AUTH PLAIN AGFsaWNlAHNlY3JldA==", b"CAPA")
        assert re.findall(rb"SASL .*\r\n", before) == re.findall(rb"SASL .*\r\n", after) != []

    @each("line", [b"AUTH", b"AUTH ", b"AUTH PLAIN", b"AUTH PLAIN AGFsaWNlAHNlY3JldA==", b"AUTH X"])
    @each("first", [[b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="], [b"USER alice", b"PASS secret"]])
    def test_signed_in_already(self, first: list[bytes], line: bytes) -> None:
        """After a sign-in, by AUTH or not, each AUTH is an -ERR, and the session goes on (RFC 5034 section 4)."""
        handler = make_handler()
        session = make(handler)
        assert ask(session, *first)[-1].startswith(b"+OK")
        calls = list(handler.mail.calls)
        assert is_refusal(ask(session, line)[0]) and goes_on(session)
        assert handler.mail.calls == calls and ask(session, b"STAT") == [b"+OK 2 54\r\n"]


def commands_of(answer: bytes) -> dict[bytes, bytes]:
    """Return the lines of CAPA's list: the first word of each, and the rest."""
    assert answer.startswith(b"+OK ")
    return {line.partition(b" ")[0]: line.partition(b" ")[2] for line in answer.split(b"\r\n")[1:-2]}


NEEDS_TLS = b"-ERR this needs TLS, from the beginning of the connection\r\n"
NO_PASSWORDS = b"-ERR passwords are not taken here\r\n"

PASSWORD_LINES = [
    *[b"USER alice", b"USER", b"user alice", b"USER \xff", b"USER ".ljust(5000, b"x")],
    *[b"PASS secret", b"PASS", b"pass secret", b"PASS \xff\r", b"PASS ".ljust(5000, b"x")],
    *[b"AUTH PLAIN", b"AUTH plain AGFsaWNlAHNlY3JldA==", b"AUTH PLAIN =", b"AUTH PLAIN !", b"AUTH PLAIN *"],
    *[b"AUTH LOGIN", b"AUTH LOGIN YWxpY2U=", b"auth login !"],
]
TOKEN_LINES = [
    *[b"AUTH XOAUTH2", b"AUTH XOAUTH2 " + b64encode(b"user=alice\x01auth=Bearer x\x01\x01"), b"AUTH xoauth2 !"],
    *[b"AUTH OAUTHBEARER", b"AUTH OAUTHBEARER " + b64encode(b"n,a=alice,\x01auth=Bearer x\x01\x01")],
]


class TestNotTaken:
    """Ways to sign in that a connection, or a handler, does not take."""

    @each(("options", "allowed", "names"), [
        ({"allow_cleartext": False}, True, ["EXTERNAL", "SCRAM-SHA-256"]),
        ({}, False, ["EXTERNAL", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2"]),
        ({"allow_cleartext": False}, False, ["EXTERNAL", "SCRAM-SHA-256"]),
        ({"allow_cleartext": True}, True, ALL),
        ({}, True, ALL),
    ])  # fmt: skip
    def test_announced(self, options: dict[str, bool], allowed: bool, names: list[str]) -> None:
        """What is not taken is neither in CAPA, before or after sign-in, nor in AUTH's list (RFC 5034 section 4)."""
        handler = make_handler(allow_passwords=allowed)
        session = make(handler, **options)
        before, listed = ask(session, b"CAPA", b"AUTH")
        assert commands_of(before)[b"SASL"].decode().split() == names
        assert listed.decode().split("\r\n")[1:-2] == names
        assert (b"USER" in commands_of(before)) is ("PLAIN" in names)
        assert sign_in(asking(session), "EXTERNAL", True).startswith(b"+OK")
        assert ask(session, b"CAPA") == [before.replace(b"NEVER USER", b"NEVER")]

    @each("options", [{"allow_cleartext": False}, {}])
    def test_nothing_left(self, options: dict[str, bool]) -> None:
        """Where no mechanism is left CAPA has no SASL line, and AUTH lists none."""
        handler = MemoryHandler(Mail())
        handler.allow_passwords = bool(options)  # type: ignore[attr-defined]
        capa, auth = ask(make_session(handler, **options), b"CAPA", b"AUTH")
        assert not {b"SASL", b"USER"} & set(commands_of(capa))
        assert re.fullmatch(rb"\+OK [ -~]*\r\n\.\r\n", auth)

    @each("line", PASSWORD_LINES + TOKEN_LINES)
    def test_needs_tls(self, line: bytes) -> None:
        """Where cleartext is not allowed whatever shows a secret is refused, unread, by a line that says TLS is needed.

        It has no response code, as none says so, and neither delay nor failed login (RFC 5034 section 4).
        """
        handler = make_handler()
        session = make(handler, allow_cleartext=False, max_failed_logins=1)
        replies = [session.respond(line) for _ in range(3)]
        assert [reply.head() for reply in replies] == [NEEDS_TLS] * 3 and not any(reply.delay for reply in replies)
        assert not session.in_exchange and goes_on(session)
        assert not handler.mail.calls and not handler.mail.errors

    @each("options", [{"allow_cleartext": False}, {}])
    @each("line", PASSWORD_LINES)
    def test_no_passwords(self, line: bytes, options: dict[str, bool]) -> None:
        """A handler that says ``allow_passwords = False`` is never asked for one, with TLS or without."""
        handler = make_handler(allow_passwords=False)
        session = make(handler, max_failed_logins=1, **options)
        assert ask(session, line, line) == [NO_PASSWORDS] * 2
        assert not session.in_exchange and goes_on(session)
        assert not handler.mail.calls and not handler.mail.errors

    @each("lines", [[b"USER alice", b"PASS secret"], [b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="]])
    def test_counts_as_bad(self, lines: list[bytes]) -> None:
        """Who insists on a way that is not taken reaches max_bad_commands."""
        handler = make_handler()
        session = make(handler, allow_cleartext=False, max_bad_commands=4)
        ask(session, *lines * (4 // len(lines)))
        assert session.over and kinds(handler.mail.errors) == [LimitError]

    @each("mechanism", ["EXTERNAL", "SCRAM-SHA-256"])
    @both_ways
    def test_others_stay(self, mechanism: str, initial: bool) -> None:
        """Ways that show no secret are taken as ever, APOP among them; then USER is a command in the wrong state."""
        for lines in (None, [b"APOP alice " + b"0" * 32]):
            handler = make_handler(allow_passwords=False)
            session = make(handler, allow_cleartext=False, banner="<1.2@localhost>")
            answer = ask(session, *lines)[0] if lines else sign_in(asking(session), mechanism, initial)
            assert answer.startswith(b"+OK maildrop")
            assert ask(session, b"USER alice", b"PASS x", b"STAT")[:2] == [b"-ERR you are signed in already\r\n"] * 2

    def test_tokens_stay(self) -> None:
        """Without passwords, tokens are taken."""
        for mechanism in ("XOAUTH2", "OAUTHBEARER"):
            session = make(make_handler(allow_passwords=False))
            assert sign_in(asking(session), mechanism, True).startswith(b"+OK")

    def test_unknown_stays_unknown(self) -> None:
        """A mechanism that TLS would not bring either is unknown."""
        session = make_session(MemoryHandler(Mail()), allow_cleartext=False)
        assert ask(session, b"AUTH XOAUTH2", b"AUTH LOGIN", b"AUTH X") == [b"-ERR unknown mechanism\r\n"] * 3

    def test_said_by_an_object(self) -> None:
        """``allow_passwords`` may also be an attribute of one handler."""
        handler = MemoryHandler(Mail())
        handler.allow_passwords = False  # type: ignore[attr-defined]
        assert ask(make_session(handler), b"USER alice") == [NO_PASSWORDS]


class TestFailures:
    """What AUTH answers when nobody is signed in, and what becomes of the session."""

    @each("mechanism", [name for name in ALL if name != "SCRAM-SHA-256"])
    @both_ways
    def test_refused(self, mechanism: str, initial: bool) -> None:
        """A refusal is -ERR [AUTH]; then the client may try again, by AUTH or by USER and PASS (RFC 5034 section 4)."""
        handler = make_handler()
        session = make(handler)
        for number in (1, 2):
            answer = sign_in(asking(session), mechanism, initial, responses(mechanism, b"mallory"))
            assert answer == b"-ERR [AUTH] not you\r\n"
            assert len(handler.mail.calls) == number and goes_on(session)
        assert ask(session, b"USER alice", b"PASS secret")[1].startswith(b"+OK")
        assert not handler.mail.errors

    @each("changes", [{"p": b64encode(bytes(32))}, {"r": b"x"}, {"c": b"eSws"}])
    @both_ways
    def test_refused_scram(self, changes: dict[str, bytes], initial: bool) -> None:
        """The same for SCRAM, where it is popart that finds the proof wrong."""

        def client() -> Responses:
            scram = ScramClient(b"alice", b"pencil")
            yield scram.final((yield scram.first), **changes)

        handler = make_handler()
        session = make(handler)
        assert sign_in(asking(session), "SCRAM-SHA-256", initial, client()) == b"-ERR [AUTH] wrong name or password\r\n"
        assert handler.mail.calls == [("get_scram_credentials", "alice")] and goes_on(session)
        assert sign_in(asking(session), "SCRAM-SHA-256", initial).startswith(b"+OK")

    @each("answer", [b"AQ==", b"", b"*", b"!", b"QUIT", b"=", b"x" * 100_000])
    @each("mechanism", ["OAUTHBEARER", "XOAUTH2"])
    def test_error_challenge(self, mechanism: str, answer: bytes) -> None:
        """A refused token is told in JSON; whatever the client says to it, the failed login is counted once."""
        session = make(make_handler(), max_failed_logins=2)
        line = b"AUTH %b %b" % (mechanism.encode(), b64encode(next(responses(mechanism, b"mallory"))))
        error = {"OAUTHBEARER": INVALID_TOKEN, "XOAUTH2": UNAUTHORIZED}[mechanism]
        for over in (False, True):
            assert ask(session, line) == [b"+ %b\r\n" % b64encode(error)]
            assert ask(session, answer) == [b"-ERR [AUTH] not you\r\n"]
            assert session.over is over

    def test_delays(self) -> None:
        """Failed logins are counted and delayed alike, by whatever command; the last one allowed ends the session."""
        handler = make_handler(authenticate_pass=raising(ReportableError("not you")))
        session = make(handler, max_failed_logins=4)
        delays = []
        refused = b64encode(next(responses("EXTERNAL", b"mallory")))
        for lines in (
            [b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="],
            [b"USER alice", b"PASS secret"],
            [b"AUTH EXTERNAL", refused],
            [b"AUTH LOGIN", b"YWxpY2U=", b"c2VjcmV0"],
        ):
            assert goes_on(session)
            *before, reply = map(session.respond, lines)
            assert not any(earlier.delay for earlier in before)
            assert reply.status == b"-ERR [AUTH] not you\r\n"
            delays.append(reply.delay)
        assert delays == sorted({*delays}) and 0 < delays[0]
        assert session.over and kinds(handler.mail.errors) == [LimitError]

    def test_success_is_not_delayed(self) -> None:
        """Nor is a challenge, nor a success after failures."""
        session = make(make_handler())
        lines = [b"AUTH EXTERNAL bWFsbG9yeQ==", b"AUTH PLAIN", b"AGFsaWNlAHNlY3JldA=="]
        assert [bool(session.respond(line).delay) for line in lines] == [True, False, False]

    @each("code", ["SYS/TEMP", "SYS/PERM", "SYS/TEMP/DATABASE", "sys/temp"])
    @each("lines", [
        [b"USER alice", b"PASS secret"],
        [b"APOP alice " + b"0" * 32],
        [b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="],
        [b"AUTH LOGIN", b"YWxpY2U=", b"c2VjcmV0"],
        [b"AUTH EXTERNAL YWxpY2U="],
        [b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=alice,r=x")],
        [b"AUTH XOAUTH2 " + b64encode(b"user=alice\x01auth=Bearer x\x01\x01"), b""],
    ])  # fmt: skip
    def test_backend_that_is_down(self, lines: list[bytes], code: str) -> None:
        """A refusal with [SYS/TEMP] or [SYS/PERM] is no failed login: it is not delayed, and never ends the session."""
        down = raising(ReportableError("the database is down", code=code))
        handler = make_handler(authenticate_apop=down, **{method: down for method in METHODS.values()})
        session = make(handler, max_failed_logins=1, banner="<1.2@localhost>")
        for _ in range(10):
            reply = [*map(session.respond, lines)][-1]
            assert reply.status == b"-ERR [%b] the database is down\r\n" % code.encode() and reply.delay == 0
        assert goes_on(session) and not handler.mail.errors

    @each("code", [None, "AUTH", "LOGIN-DELAY", "IN-USE", "SYS", "SYS/TEMPORARY", "X-SYS/TEMP", "SYS/X"])
    def test_other_codes_count(self, code: str | None) -> None:
        """Any other refusal counts as a failed login, whatever its code."""
        session = make(make_handler(authenticate_pass=raising(ReportableError("no", code=code))), max_failed_logins=2)
        replies = [session.respond(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==") for _ in range(2)]
        assert 0 < replies[0].delay < replies[1].delay and session.over

    @each("code", ["SYS/TEMP", "LOGIN-DELAY", "X-OTHER"])
    @every_mechanism
    def test_code(self, mechanism: str, code: str) -> None:
        """A refusal keeps the code that the handler gave it."""
        handler = make_handler(**{METHODS[mechanism]: raising(ReportableError("later", code=code))})
        session = make(handler)
        assert sign_in(asking(session), mechanism, True) == b"-ERR [%b] later\r\n" % code.encode()
        assert goes_on(session) and not handler.mail.errors

    @each("error", [OSError("s3cr3t"), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), StopAsyncIteration()])
    @every_mechanism
    @both_ways
    def test_raises(self, mechanism: str, initial: bool, error: BaseException) -> None:
        """Whatever else a method raises is [SYS/TEMP], reported once, as it was raised, and ends the session."""
        handler = make_handler(**{METHODS[mechanism]: raising(error)})
        session = make(handler)
        assert sign_in(asking(session), mechanism, initial) == INTERNAL and session.over
        session.close()
        assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error
        assert not handler.mail.count("lock_maildrop")

    @every_mechanism
    @both_ways
    def test_raises_stop_iteration(self, mechanism: str, initial: bool) -> None:
        """A ``next()`` that found nothing lets nobody in, and is reported as it was raised, in spite of PEP 479."""
        error = StopIteration("alice")
        handler = make_handler(**{METHODS[mechanism]: raising(error)})
        session = make(handler)
        assert sign_in(asking(session), mechanism, initial) == INTERNAL and session.over
        assert not handler.mail.count("lock_maildrop")
        assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error
        assert error.__context__ is None and error.__cause__ is None

    @every_mechanism
    def test_raises_what_python_made_of_stop_iteration(self, mechanism: str) -> None:
        """A RuntimeError that comes from a generator of the handler's own is its own, and stays what it is."""

        def find() -> Iterator[str]:
            yield next(iter(()))

        handler = make_handler(**{METHODS[mechanism]: lambda *arguments: next(find())})
        session = make(handler)
        assert sign_in(asking(session), mechanism, True) == INTERNAL and session.over
        assert kinds(handler.mail.errors) == [RuntimeError]

    @every_mechanism
    @both_ways
    def test_wrong_result(self, mechanism: str, initial: bool) -> None:
        """A result of the wrong kind, such as False, is [SYS/PERM], a HandlerError, and ends the session."""
        handler = make_handler(**{METHODS[mechanism]: returning(False)})
        session = make(handler)
        assert sign_in(asking(session), mechanism, initial) == BROKEN and session.over
        assert kinds(handler.mail.errors) == [HandlerError] and not handler.mail.count("lock_maildrop")

    @every_mechanism
    @both_ways
    def test_lock_refuses(self, mechanism: str, initial: bool) -> None:
        """A maildrop that is taken is [IN-USE]: no failed login; the client may try again (RFC 2449 section 8.1.2)."""
        handler = make_handler()
        handler.mail.locked = True
        session = make(handler, max_failed_logins=1)
        for _ in range(2):
            answer = sign_in(asking(session), mechanism, initial)
            assert answer == b"-ERR [IN-USE] another session has the maildrop\r\n" and goes_on(session)
        handler.mail.locked = False
        assert sign_in(asking(session), mechanism, initial).startswith(b"+OK")
        session.close()
        assert handler.mail.count("unlock_maildrop") == 1 and not handler.mail.errors

    @each("method", ["lock_maildrop", "get_message_count", "get_message_size"])
    @every_mechanism
    def test_maildrop_raises(self, mechanism: str, method: str) -> None:
        """A maildrop that cannot be opened is [SYS/TEMP], is unlocked again, and ends the session."""
        error = OSError("s3cr3t")
        handler = make_handler(**{method: raising(error)})
        session = make(handler)
        assert sign_in(asking(session), mechanism, True) == INTERNAL and session.over
        session.close()
        assert handler.mail.errors == [error] and error.__context__ is None
        assert handler.mail.count("lock_maildrop") == handler.mail.count("unlock_maildrop")

    @each("lines", [b"AUTH PLAIN;*", b"AUTH PLAIN !", b"AUTH X", b"AUTH PLAIN;AA==", b"AUTH EXTERNAL bWFsbG9yeQ=="])
    def test_user_is_needed_again(self, lines: bytes) -> None:
        """A name that was given before AUTH is forgotten by it."""
        handler = make_handler()
        session = make(handler)
        assert is_refusal(ask(session, b"USER alice", *lines.split(b";"), b"PASS secret")[-1])
        assert not handler.mail.count("authenticate_pass")
        assert ask(session, b"USER alice", b"PASS secret")[1].startswith(b"+OK")

    @each("lines", [b"AUTH PLAIN !", b"AUTH X", b"AUTH PLAIN;!", b"AUTH PLAIN;*", b"AUTH LOGIN;AAAA;*"])
    def test_bad_commands(self, lines: bytes) -> None:
        """Junk counts: max_bad_commands of it in a row end the session, and a challenge between is no good command."""
        handler = make_handler()
        session = make(handler, max_bad_commands=3)
        for _ in range(2):
            ask(session, *lines.split(b";"))
            assert not session.over
        assert is_refusal(ask(session, *lines.split(b";"))[-1])
        assert session.over and kinds(handler.mail.errors) == [LimitError]

    @each("lines", [b"AUTH EXTERNAL bWFsbG9yeQ==", b"AUTH EXTERNAL;bWFsbG9yeQ=="])
    def test_refusals_are_not_bad_commands(self, lines: bytes) -> None:
        """A sign-in that the handler refuses is well-formed."""
        session = make(make_handler(), max_bad_commands=2)
        for _ in range(4):
            ask(session, *lines.split(b";"))
        assert goes_on(session)


class TestTranscripts:
    """The RFCs' own examples, as they stand on the wire."""

    def test_rfc_5034(self) -> None:
        """RFC 5034 section 6, with and without an initial response."""
        for lines in ([b"AUTH PLAIN dGVzdAB0ZXN0AHRlc3Q="], [b"AUTH PLAIN", b"dGVzdAB0ZXN0AHRlc3Q="]):
            handler = make_handler()
            *challenges, answer = ask(make(handler), *lines)
            assert challenges == [b"+ \r\n"] * (len(lines) - 1) and answer.startswith(b"+OK")
            assert handler.mail.calls[0] == ("authenticate_pass", "test", "test")

    def test_rfc_4616(self) -> None:
        """RFC 4616 section 4: Tim signs in; Ursel, who would act for Kurt, does not."""
        handler = make_handler()
        assert ask(make(handler), b"AUTH PLAIN", b64encode(b"\0tim\0tanstaaftanstaaf"))[1].startswith(b"+OK")
        assert handler.mail.calls[0] == ("authenticate_pass", "tim", "tanstaaftanstaaf")
        handler = make_handler()
        answer = ask(make(handler), b"AUTH PLAIN", b64encode(b"Ursel\0Kurt\0xipj3plmq"))[1]
        assert answer.startswith(b"-ERR [AUTH] ") and not handler.mail.calls

    def test_rfc_7628_success(self) -> None:
        """RFC 7628 section 4.1."""
        handler = make_handler()
        line = (
            b"AUTH OAUTHBEARER bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9NTg3AWF1dGg9QmVhcm"
            b"VyIHZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
        )
        assert ask(make(handler), line)[0].startswith(b"+OK")
        token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
        assert handler.mail.calls[0] == ("authenticate_token", "user@example.com", token)

    @each("last", [b"AQ==", b"*"])
    def test_rfc_7628_failure(self, last: bytes) -> None:
        """RFC 7628 section 4.3: a client that asks for the scope, and its two ways to end that."""
        handler = make_handler()
        session = make(handler)
        line = b"AUTH OAUTHBEARER bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9AQE="
        challenge, answer = ask(session, line, last)
        assert challenge == b"+ %b\r\n" % b64encode(INVALID_TOKEN)
        assert answer.startswith(b"-ERR [AUTH] ") and not handler.mail.calls and goes_on(session)

    def test_rfc_7677(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """RFC 7677 section 3, with its nonce."""
        make_server = functools.partialmethod(
            scramp.ScramMechanism.make_server, s_nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        )
        monkeypatch.setattr(scramp.ScramMechanism, "make_server", make_server)
        handler = make_handler()
        session = make(handler)
        said = [
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            b"",
        ]
        *challenges, answer = ask(session, b"AUTH SCRAM-SHA-256", *map(b64encode, said))
        assert [b64decode(challenge[2:]) for challenge in challenges] == [
            b"",
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ]
        assert answer.startswith(b"+OK") and handler.mail.calls[0] == ("get_scram_credentials", "user")


class TestSecrets:
    """No password, token or proof is shown, plain or in base64 (promise 6)."""

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {name: raising(ReportableError("not you")) for name in METHODS.values()},
            {name: raising(OSError("broken")) for name in METHODS.values()},
            {name: returning(False) for name in METHODS.values()},
            {"lock_maildrop": raising(ReportableError("taken"))},
            {"lock_maildrop": raising(OSError("broken"))},
            {"get_message_count": returning(None)},
        ],
        ids=["works", "refuses", "raises", "returns", "locked", "lock raises", "count is wrong"],
    )
    @every_mechanism
    @both_ways
    def test_whole_exchange(self, mechanism: str, initial: bool, changes: dict[str, Any]) -> None:
        """Whatever the handler does, neither a reply nor a reported error holds what the client sent."""
        handler = make_handler(**changes)
        session = make(handler, max_failed_logins=1)
        secrets, answers = {SECRET, b"pencil"}, []

        def record(line: bytes) -> bytes:
            octets = line.split(b" ")[-1]
            with suppress(ValueError):
                response = b64decode(octets, validate=True)
                if SECRET in response or b",p=" in response:
                    secrets.update([octets, response, response.split(b",p=")[-1]])
            answers.append(asking(session)(line))
            return answers[-1]

        sign_in(record, mechanism, initial)
        shown = b"".join(answers) + "".join(map(everything_in, handler.mail.errors)).encode()
        shown += b"".join(challenge_in(answer) or b"" for answer in answers)
        assert [secret for secret in secrets if secret in shown] == []

    @each("response", [
        b"\0alice\0" + SECRET + b"\xff", b"alice\0" + SECRET, b"\0\0" + SECRET, b"bob\0alice\0" + SECRET,
        b"\0alice\0" + SECRET + b"\n", SECRET, SECRET * 2000, b"\xff\0alice\0" + SECRET,
        b"user=alice\x01auth=Bearer " + SECRET, b"n,a=alice,\x01auth=Bearer " + SECRET + b"\xff\x01\x01",
        b"n,,n=alice,r=" + SECRET + b"\xff", b"p=x,,n=alice,r=" + SECRET,
    ])  # fmt: skip
    @every_mechanism
    @both_ways
    def test_malformed(self, mechanism: str, response: bytes, initial: bool) -> None:
        """The same for responses that make no sense, whole or cut, when a limit is reached by them."""
        handler = make_handler(authenticate_certificate=raising(ReportableError("not you")))
        line = b"AUTH " + mechanism.encode()
        answers = []
        for octets in (b64encode(response), b64encode(response)[:-1] + b"!"):
            session = make(handler, max_bad_commands=1, max_failed_logins=1)
            answers += ask(session, line + b" " + octets) if initial else ask(session, line, octets)
        shown = b"".join(answers) + "".join(map(everything_in, handler.mail.errors)).encode()
        assert SECRET not in shown and b64encode(response)[:-4] not in shown


# Over real connections.


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context that asks for a client certificate, and takes clients without one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


@pytest.fixture(scope="module")
def alices_context(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context with a certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert("alice@example.com", common_name="alice").configure_cert(context)
    return context


@pytest.fixture(params=["plain", "tls"])
def connect(request: pytest.FixtureRequest, context: ssl.SSLContext, alices_context: ssl.SSLContext) -> Connect:
    """A function that serves a handler, on a plain port or on one for TLS, and connects to it with a certificate."""
    tls = request.param == "tls"

    @contextmanager
    def connect(handler: popart.Handler, **limits: Any) -> Iterator[Client]:
        server = QuickServer(HOST, lambda peer: handler, ssl_context=context if tls else None)
        vars(server).update(limits)
        with running(server), connected(server, alices_context if tls else None) as client:
            assert client.line().startswith(b"+OK")
            yield client

    return connect


def offered(client: Client) -> list[str]:
    """Return the mechanisms that the server offers to a client."""
    client.send(b"CAPA\r\n")
    (found,) = re.findall(r"\r\nSASL (.*)\r\n", client.lines().decode())
    assert client.ask(b"AUTH").startswith(b"+OK")
    assert client.lines().decode().split() == [*found.split(), "."]
    return found.split()  # type: ignore[no-any-return]


@every_mechanism
@both_ways
def test_a_session(connect: Connect, mechanism: str, initial: bool) -> None:
    """Each mechanism signs in, EXTERNAL over TLS only; the session ends as any other."""
    handler = make_handler()
    with connect(handler) as client:
        tls = isinstance(client.sock, ssl.SSLSocket)
        assert offered(client) == ALL[not tls :]
        if mechanism == "EXTERNAL" and not tls:
            assert client.ask(b"AUTH EXTERNAL") == b"-ERR unknown mechanism\r\n"
            return
        assert sign_in(client.ask, mechanism, initial).startswith(b"+OK")
        assert client.ask(b"STAT") == b"+OK 2 54\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
    assert has_signed_in(handler, mechanism)
    assert handler.mail.calls[-2:] == [("unlock_maildrop",), ("close",)]


def test_pipelined_responses(connect: Connect) -> None:
    """What waits behind AUTH in the same packet is the response, and commands follow it."""
    with connect(make_handler()) as client:
        client.send(b"AUTH PLAIN\r\nQUIT\r\nUSER x\r\n")
        assert client.line() == b"+ \r\n"
        assert is_refusal(client.line())
        assert client.line() == b"+OK send PASS\r\n"
        client.send(b"AUTH LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\nSTAT\r\nQUIT\r\n")
        assert client.rest() == (
            b"+ VXNlcm5hbWU6\r\n+ UGFzc3dvcmQ6\r\n"
            b"+OK maildrop has 2 messages (54 octets)\r\n+OK 2 54\r\n+OK goodbye\r\n"
        )


def test_long_lines(connect: Connect) -> None:
    """The longest lines are accepted; one of 100 KB is refused once, and what follows it is a command."""
    handler = make_handler()
    with connect(handler) as client:
        initial = b"AUTH PLAIN "
        response = plain_response(LONGEST - len(initial), b"mallory")
        assert client.ask(initial + response) == b"-ERR [AUTH] not you\r\n"
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        assert client.ask(plain_response(LONGEST, b"mallory")) == b"-ERR [AUTH] not you\r\n"
        for line in (initial, initial.strip() + b"\r\n"):
            client.send(line + plain_response(100_000) + b"QUIT\r\nUSER x\r\n")
            assert line.endswith(b" ") or client.line() == b"+ \r\n"
            assert client.line() == b"-ERR line too long\r\n"
            assert client.line() == b"+OK send PASS\r\n"
    assert handler.mail.count("authenticate_pass") == 2


HOSTILE = [
    *[b"", b"\0", b"\0\0", b"\0\0\0", b"\0alice", b"\0alice\0", b"\0\0secret", b"\0alice\0secret\0", b"\0" * 9000],
    *[
        b"alice secret",
        b"\0alice\0secret\r\nQUIT\r\n",
        "\0zoë\0".encode(),
        b"\0\xff\xfe\0secret",
        b"\xed\xa0\x80\0a\0b",
    ],
    *[b"bob\0alice\0secret", b"x" * 9000, b"c=biws,r=x,p=x", b"n,,n=alice", b"y,,r=x,n=", b"p=tls-unique,,n=alice,r=x"],
    *[b"n,,n=" + b"," * 9000, b"n,,n=" + b"x" * 9000, b"n,a=bob,n=alice,r=x", b"n,a=alice,\x01\x01", b"\x01" * 9000],
    *[b"user=\x01auth=Bearer x\x01\x01", b"auth=Bearer x\x01\x01", b"user=alice\x01auth=Bearer x", b"n,a=alice,"],
]
"""Responses that sign nobody in by any mechanism but EXTERNAL and LOGIN, to which a name may be anything."""


@each("mechanism", ["SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN"])
def test_hostile_responses(connect: Connect, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses that are wrong in any way sign nobody in, harm nothing, and leave the session as it was."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    handler = make_handler()
    with connect(handler, max_failed_logins=None) as client:
        for response, initial in itertools.product(HOSTILE, [True, False]):
            answer = sign_in(client.ask, mechanism, initial, insisting_on(response))
            assert is_refusal(answer) and b"SYS" not in answer
            assert client.ask(b"USER x").startswith(b"+OK")
        assert sign_in(client.ask, mechanism, True).startswith(b"+OK")
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert handler.mail.count("lock_maildrop") == 1 and not handler.mail.errors


def insisting_on(response: bytes) -> Responses:
    """Say the same whatever the server says."""
    while True:
        yield response


def test_failed_login_is_delayed(connect: Connect) -> None:
    """The answer to a failed login is held back over the wire, too."""
    with connect(make_handler()) as client:
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        begin = time.monotonic()
        assert client.ask(b64encode(b"\0mallory\0x")) == b"-ERR [AUTH] not you\r\n"
        assert time.monotonic() - begin >= 0.2


def hang_up(client: Client) -> None:
    client.close()


def reset(client: Client) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def break_off(client: Client) -> None:
    """Leave within a response."""
    client.send(b64encode(b"\0alice\0secret"))
    client.close()


@each("leave", [hang_up, reset, break_off])
@each(
    ("mechanism", "steps"),
    [(name, 0) for name in ALL] + [("LOGIN", 1), ("SCRAM-SHA-256", 1), ("SCRAM-SHA-256", 2), ("XOAUTH2", 1)],
)
def test_gone_amid_an_exchange(connect: Connect, mechanism: str, steps: int, leave: Callable[[Client], None]) -> None:
    """A client that vanishes midway leaves no lock and no thread; close is called once, and last."""
    handler = make_handler()
    with connect(handler) as client:
        client.ask(b"AUTH " + mechanism.encode())
        said = responses(mechanism, b"mallory" if mechanism == "XOAUTH2" else b"alice")
        response = next(said)
        for _ in range(steps):
            challenge = challenge_in(client.ask(b64encode(response)))
            assert challenge is not None
            response = said.send(challenge)
        leave(client)
        assert handler.closed.wait(PATIENCE)
    assert not handler.mail.count("lock_maildrop") and not handler.mail.count("unlock_maildrop")
    assert handler.mail.count("close") == 1 and handler.mail.calls[-1] == ("close",)
    assert kinds(handler.mail.errors) == [ClientGoneError]


@each("octets", [b"", b"A", b"*\r\nAUTH PLAIN\r\n", b"AUTH XOAUTH2\r\n\r\n"])
def test_login_timeout(connect: Connect, octets: bytes) -> None:
    """login_timeout covers the exchanges: neither octets, cancellations nor further attempts extend it."""
    handler = make_handler()
    with connect(handler, login_timeout=0.6, max_bad_commands=None) as client:
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        client.sock.settimeout(0.05)
        for _ in range(100):
            with suppress(TimeoutError):
                with suppress(ConnectionError, ssl.SSLError):
                    client.send(octets)
                    while client.sock.recv(1000):
                        pass
                break
        else:
            pytest.fail("the session went on")
        assert handler.closed.wait(PATIENCE)
    assert handler.mail.calls == [("close",)] and kinds(handler.mail.errors) == [ClientTimeoutError]


def test_closing_amid_an_exchange() -> None:
    """A server that closes ends a session that waits for a response at once, as any idle one."""
    handler = make_handler()
    with running(QuickServer(HOST, lambda peer: handler)) as server, connected(server) as client:
        client.line()
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        server.server_close()
        assert client.rest() == b""
    assert handler.mail.calls == [("close",)] and not handler.mail.errors


# EXTERNAL.


def test_certificate(context: ssl.SSLContext, alices_context: ssl.SSLContext) -> None:
    """The handler is given what getpeercert says of the client's certificate, with the identity or without."""
    handler = make_handler()
    for identity in (b"", b"alice"):
        with running(by_wrapping(lambda peer: handler, context)) as server:
            with connected(server, alices_context) as client:
                client.line()
                assert client.ask(b"AUTH EXTERNAL " + (b64encode(identity) or b"=")).startswith(b"+OK")
                assert client.ask(b"QUIT").startswith(b"+OK")
    calls = [call[1:] for call in handler.mail.calls if call[0] == "authenticate_certificate"]
    assert [identity for identity, _ in calls] == ["", "alice"]
    for _, certificate in calls:
        assert (("commonName", "alice"),) in certificate["subject"]
        assert certificate["subjectAltName"] == (("email", "alice@example.com"),)


@each("required", [ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
@each("presented", [False, True])
@each("make_server", [by_argument, by_wrapping])
def test_external_is_offered(
    authority: trustme.CA,
    alices_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    make_server: Callable[..., Server],
    presented: bool,
    required: ssl.VerifyMode,
) -> None:
    """EXTERNAL is offered to a client whose certificate was asked for, presented and verified, and to no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = required
    with ExitStack() as stack:
        server = stack.enter_context(running(make_server(lambda peer: make_handler(), context)))
        if required is ssl.CERT_REQUIRED and not presented:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                stack.enter_context(connected(server, client_context)).line()
            return
        client = stack.enter_context(connected(server, alices_context if presented else client_context))
        assert client.line().startswith(b"+OK")
        has_one = presented and required is not ssl.CERT_NONE
        assert ("EXTERNAL" in offered(client)) is has_one
        assert client.ask(b"AUTH EXTERNAL =")[:3] == (b"+OK" if has_one else b"-ER")


def test_certificate_of_another_authority(context: ssl.SSLContext, authority: trustme.CA) -> None:
    """A certificate that does not verify ends the handshake: no handler is made, and nobody is offered anything."""
    strangers = ssl.create_default_context()
    authority.configure_trust(strangers)
    type(authority)().issue_cert("alice@example.com", common_name="alice").configure_cert(strangers)
    made = []

    def make_one(peer: object) -> popart.Handler:
        made.append(peer)
        return make_handler()

    with running(by_argument(make_one, context)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)), connected(server, strangers) as client:
            client.line()
    assert not made


# Without TLS.


def taken(client: Client) -> bool:
    """Tell whether USER is announced, and see that it is taken just then; and AUTH PLAIN likewise."""
    client.send(b"CAPA\r\n")
    announced = commands_of(client.line() + client.lines())
    assert (b"USER" in announced) is (b"PLAIN" in announced.get(b"SASL", b""))
    assert client.ask(b"USER alice") == (b"+OK send PASS\r\n" if b"USER" in announced else NEEDS_TLS)
    assert client.ask(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==")[:3] == (b"+OK" if b"USER" in announced else b"-ER")
    return b"USER" in announced


@each("allowed", [True, False])
def test_cleartext(connect: Connect, allowed: bool) -> None:
    """``allow_cleartext=False`` forbids it on connections without TLS, and only there."""
    with connect(make_handler(), allow_cleartext=allowed) as client:
        assert taken(client) is (allowed or isinstance(client.sock, ssl.SSLSocket))


def test_cleartext_is_allowed_unless_forbidden() -> None:
    """The default is to take passwords without TLS."""
    with Server(HOST, lambda peer: make_handler()) as server:
        assert server.allow_cleartext is True


def behind_a_proxy(flags: int | None, command: int = 0x21) -> bytes:
    """Make a PROXY header of version 2, with the field SSL unless *flags* is None (section 2.2.6)."""
    rest = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 1, 2)
    if flags is not None:
        rest += struct.pack("!BHBI", 0x20, 5, flags, 0)
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, 0x11, len(rest)) + rest


@each(("header", "tls"), [
    (behind_a_proxy(0x01), True),
    (behind_a_proxy(0x07), True),
    (behind_a_proxy(0x00), False),
    (behind_a_proxy(0x06), False),
    (behind_a_proxy(None), False),
    (behind_a_proxy(0x01, command=0x20), False),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 995\r\n", False),
    (b"PROXY UNKNOWN\r\n", False),
])  # fmt: skip
def test_tls_that_ends_at_a_proxy(header: bytes, tls: bool) -> None:
    """A PROXY header that says that the client came by TLS counts as TLS; none other does, a health check's least."""
    handler = make_handler()
    server = QuickServer(HOST, lambda peer: handler, proxy_protocol=True, allow_cleartext=False)
    with running(server), connected(server) as client:
        client.send(header)
        assert client.line().startswith(b"+OK")
        assert taken(client) is tls


@each("key", ["secret", 7, b"", bytearray(b"x" * 16), [b"x"]])
def test_what_cannot_be_a_decoy_key(key: Any) -> None:
    """The key of made-up salts is bytes, and not empty; the error does not show it."""
    with pytest.raises(ValueError, match="scram_decoy_key must be bytes") as failure:
        Server(HOST, lambda peer: make_handler(), scram_decoy_key=key)
    assert "secret" not in str(failure.value)


def made_up_salt(connect: Connect, **limits: Any) -> bytes:
    """Return the salt that a server gives to a user who does not exist."""
    handler = make_handler(get_scram_credentials=raising(ReportableError("no such user")))
    with connect(handler, **limits) as client:
        challenge = challenge_in(client.ask(b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=nobody,r=x")))
        assert challenge is not None
        return challenge.split(b",")[1]


def test_decoy_key(connect: Connect) -> None:
    """Servers with the same *scram_decoy_key*, in whatever process, give the same salt to who does not exist."""
    key = b"0123456789abcdef"
    salt = b64encode(hmac.digest(key, b"nobody", "sha256")[:16])
    assert made_up_salt(connect, scram_decoy_key=key) == b"s=" + salt
    assert made_up_salt(connect, scram_decoy_key=key[::-1]) != b"s=" + salt
    assert made_up_salt(connect) == made_up_salt(connect) != b"s=" + salt
