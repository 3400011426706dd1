"""A handler's own mechanisms of AUTH, and authorization identities."""

from __future__ import annotations

import enum
import functools
import gc
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Generator
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest

import popart
from popart.errors import ClientGoneError, ClientTimeoutError, HandlerError, LimitError, ReportableError
from popart.sasl import BUILT_IN, mechanisms
from popart.server import Server
from popart.session import Session
from popart.testing import MailServer
from popart.testing.handler import StoredMailHandler

from .conftest import PATIENCE, Client, ClosingHandler, Mail, QuickServer, connected, make_session, running
from .test_auth import ask, challenge_in, commands_of, make_handler
from .test_sasl import ALL, CERTIFICATE, ScramClient, name_of
from .test_server import HOST
from .test_session import BROKEN, INTERNAL, TWO, goes_on, kinds, raising, returning

SECRET = b"7f3ab2e4c6d8"

each = functools.partial(pytest.mark.parametrize, ids=name_of)

CANCELLED = b"-ERR authentication cancelled\r\n"
SIGNED_IN = b"+OK maildrop has 2 messages (54 octets)\r\n"
UNKNOWN = b"-ERR unknown mechanism\r\n"
NEEDS_TLS = b"-ERR this needs TLS, from the beginning of the connection\r\n"
SPEAKS_FIRST = b"-ERR in this mechanism the server speaks first: it takes no initial response\r\n"

Mechanism = Callable[[], Generator[Any, Any, Any]]


class Handler(ClosingHandler):
    """Has the mechanism OWN, and records what it sees: its responses, and how and where its generator ends."""

    def __init__(self, mail: Mail, own: Callable[[], Any] | None = None, **others: Any) -> None:
        super().__init__(mail)
        self.mechanisms: Any = {"OWN": own or self.own, **others}
        self.ended: list[str] = []

    def get_mechanisms(self) -> Any:
        self.mail.calls.append(("get_mechanisms",))
        return self.mechanisms

    def own(self) -> Generator[bytes, bytes, str]:
        """Ask for a name, and for a word that must be right."""
        try:
            name = yield b"name?"
            word = yield b"word for " + name
            self.mail.calls.append(("own", name, word))
            if word != b"secret " + SECRET:
                raise ReportableError("wrong")
            return name.decode()
        finally:
            self.ended.append(threading.current_thread().name)


def make(own: Callable[[], Any] | None = None, **others: Any) -> Handler:
    return Handler(Mail(*TWO), own, **others)


def of(*steps: Any) -> Mechanism:
    """Make a mechanism that yields each of these in turn, and returns or raises the last."""

    def begin() -> Generator[Any, Any, Any]:
        for step in steps[:-1]:  # noqa: UP028 - a tuple's iterator is sent nothing
            yield step
        if isinstance(steps[-1], BaseException):
            raise steps[-1]
        return steps[-1]

    return begin


def b64(octets: bytes) -> bytes:
    return b64encode(octets)


RIGHT = [b"AUTH OWN", b64(b"alice"), b64(b"secret " + SECRET)]


def errors_of(handler: Handler) -> list[str]:
    return [f"{type(error).__name__}: {error}" for error in handler.mail.errors]


class TestExchange:
    """An exchange of a handler's own goes as one of popart's does (RFC 5034 section 4)."""

    def test_success(self) -> None:
        """Challenges are yielded, responses are sent, both without base64; the name's maildrop is opened."""
        handler = make()
        session = make_session(handler)
        assert ask(session, *RIGHT) == [b"+ " + b64(b"name?") + b"\r\n", b"+ " + b64(b"word for alice") + b"\r\n",
                                        SIGNED_IN]  # fmt: skip
        assert [call[0] for call in handler.mail.calls][:3] == ["get_mechanisms", "own", "lock_maildrop"]
        assert handler.mail.calls[1] == ("own", b"alice", b"secret " + SECRET)
        assert ask(session, b"STAT", b"AUTH OWN") == [b"+OK 2 54\r\n", b"-ERR you are signed in already\r\n"]
        assert len(handler.ended) == 1 and not handler.mail.errors

    @each("line", [b"auth own", b"Auth Own"])
    def test_case(self, line: bytes) -> None:
        """Its name may be written in any case, as every mechanism's."""
        assert ask(make_session(make()), line, *RIGHT[1:])[-1] == SIGNED_IN

    @each("octets", [b"", b"\0\xff\r\n", bytes(range(256)), b"x" * 9216])
    def test_octets(self, octets: bytes) -> None:
        """Challenges and responses are any octets, 9,216 of them at most: as many as fit into a line of AUTH."""
        seen = []

        def own() -> Generator[bytes, bytes, str]:
            seen.append((yield octets))
            return "alice"

        challenge, answer = ask(make_session(make(own)), b"AUTH OWN", b64(octets))
        assert challenge_in(challenge) == octets and seen == [octets] and answer == SIGNED_IN
        assert len(challenge) <= 12_288 + len(b"+ \r\n")

    def test_initial_response(self) -> None:
        """If the first challenge is empty the client speaks first, with AUTH or after it."""
        for lines in ([b"AUTH OWN " + b64(b"hello")], [b"AUTH OWN", b64(b"hello")]):
            seen = []

            def own(seen: list[bytes] = seen) -> Generator[bytes, bytes, str]:
                seen.append((yield b""))
                return "alice"

            *before, last = ask(make_session(make(own)), *lines)
            assert before == [b"+ \r\n"] * (len(lines) - 1) and seen == [b"hello"] and last == SIGNED_IN

    @each("response", [b"=", b"YWxpY2U=", b"!", b"*"])
    def test_server_speaks_first(self, response: bytes) -> None:
        """If it is not, an initial response is refused, and is a bad command (RFC 5034 section 4).  The exchange is
        closed."""
        handler = make()
        session = make_session(handler, max_bad_commands=3, max_failed_logins=1)
        assert ask(session, b"AUTH OWN " + response, b"AUTH OWN " + response) == [SPEAKS_FIRST] * 2
        assert len(handler.ended) == 2 and not session.in_exchange and not session.over
        assert ask(session, b"AUTH OWN " + response) == [SPEAKS_FIRST]
        assert session.over and kinds(handler.mail.errors) == [LimitError]

    def test_login_takes_one(self) -> None:
        """LOGIN's first challenge is not empty either, but popart's LOGIN takes an initial response."""
        session = make_session(make_handler())
        assert ask(session, b"AUTH LOGIN YWxpY2U=") == [b"+ UGFzc3dvcmQ6\r\n"]

    def test_no_response_needed(self) -> None:
        """A mechanism that returns at once needs nothing from the client."""
        assert ask(make_session(make(of("alice"))), b"AUTH OWN") == [SIGNED_IN]

    @each("line", [b"*", b"AAA", b"AAA!", b"NOOP 1", b"x" * 12_289])
    @each("steps", [0, 1])
    def test_cancelled(self, steps: int, line: bytes) -> None:
        """A client that cancels, or sends no base64, ends it: the generator is closed once, by GeneratorExit, at once;
        it is a bad command and no failed login."""
        handler = make()
        session = make_session(handler, max_failed_logins=1, max_bad_commands=2)
        *_, answer = ask(session, *RIGHT[: 1 + steps], line)
        assert answer == {b"*": CANCELLED, b"x" * 12_289: b"-ERR line too long\r\n"}.get(
            line, b"-ERR a response is base64\r\n"
        )
        assert len(handler.ended) == 1 and not handler.mail.count("own") and goes_on(session)
        assert ask(session, *RIGHT)[-1] == SIGNED_IN
        session.close()
        assert len(handler.ended) == 2 and not handler.mail.errors

    def test_refused(self) -> None:
        """A ReportableError is [AUTH], delayed and counted with all other failed logins; the client may try again."""
        handler = make()
        session = make_session(handler, max_failed_logins=3)
        delays = []
        for lines in ([*RIGHT[:2], b""], [b"USER alice", b"PASS wrong"], [*RIGHT[:2], b""]):
            assert goes_on(session)
            *_, reply = map(session.respond, lines)
            delays.append(reply.delay)
        assert reply.status == b"-ERR [AUTH] wrong\r\n" and delays == [0.25, 0.5, 1.0]
        assert session.over and kinds(handler.mail.errors) == [LimitError] and len(handler.ended) == 2

    @each("own", [of(ReportableError("later", code="SYS/TEMP")), of(b"", ReportableError("later", code="SYS/TEMP"))])
    def test_backend_that_is_down(self, own: Mechanism) -> None:
        """A refusal keeps its code; SYS/TEMP is neither delayed nor counted, at the first step or later."""
        session = make_session(make(own), max_failed_logins=1)
        for _ in range(3):
            reply = session.respond(b"AUTH OWN =")
            assert reply.status == b"-ERR [SYS/TEMP] later\r\n" and not reply.delay
        assert goes_on(session)

    def test_user_is_forgotten(self) -> None:
        """A name that USER gave is forgotten by AUTH."""
        session = make_session(make())
        ask(session, b"USER alice", *RIGHT[:2])
        assert ask(session, b64(b"x"), b"PASS secret")[1] == b"-ERR USER comes before PASS\r\n"

    def test_lock_refuses(self) -> None:
        """A maildrop that is taken is [IN-USE], and the client may sign in again."""
        handler = make()
        handler.mail.locked = True
        session = make_session(handler, max_failed_logins=1)
        assert ask(session, *RIGHT)[-1] == b"-ERR [IN-USE] another session has the maildrop\r\n"
        handler.mail.locked = False
        assert ask(session, *RIGHT)[-1] == SIGNED_IN

    def test_yields_for_ever(self) -> None:
        """An exchange without end counts as no command, good or bad, and asks the client each time."""

        def own() -> Generator[bytes, bytes, str]:
            while True:
                yield b"more?"

        handler = make(own)
        session = make_session(handler, max_bad_commands=2)
        ask(session, b"XYZZY", b"AUTH OWN")
        assert ask(session, *[b""] * 500) == [b"+ bW9yZT8=\r\n"] * 500
        assert ask(session, b"*") == [CANCELLED] and session.over


class Spoken:
    """A generator that is no function's: any object with its methods will do."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        return b"?"

    def send(self, response: bytes | None) -> bytes:
        if response is not None:
            raise StopIteration("alice")
        return b"?"

    def throw(self, *error: Any) -> Any:
        raise AssertionError("it is closed, nothing is thrown into it")

    def close(self) -> None:
        self.closed += 1


class TestFaults:
    """What an application may do wrong: nobody is let in, the handler is told, and the session ends."""

    @each("result", [None, b"alice", 7, True, ["alice"]])
    def test_name_of_a_wrong_kind(self, result: object) -> None:
        """A result that is no text is a HandlerError."""
        handler = make(of(b"", result))
        session = make_session(handler)
        assert ask(session, b"AUTH OWN =") == [BROKEN] and session.over
        kind = type(result).__name__
        assert errors_of(handler) == [f"HandlerError: mechanism OWN returned {kind}, not a user's name"]
        assert not handler.mail.count("lock_maildrop")

    @each("result", ["", "al\0ice", "al\rice", "alice\n", "\r\nDELE 1"])
    def test_no_name(self, result: str) -> None:
        """So is a name that is empty, or holds NUL, CR or LF.  The report does not show it."""
        handler = make(of(b"", result))
        assert ask(make_session(handler), b"AUTH OWN =") == [BROKEN]
        assert errors_of(handler) == [
            "HandlerError: mechanism OWN returned a name that is empty, or holds NUL, CR or LF"
        ]

    @each("steps", [(None, "alice"), ("text", "alice"), (bytearray(b"x"), "alice"), (7, "alice")])
    def test_challenge_of_a_wrong_kind(self, steps: tuple[Any, ...]) -> None:
        """A challenge that is not bytes is a HandlerError, the first or a later one; the generator is closed."""
        for number, own in enumerate((of(*steps), of(b"", *steps))):
            handler = make(own)
            session = make_session(handler)
            assert ask(session, b"AUTH OWN", b"")[number] == BROKEN and session.over and not session.in_exchange
            kind = type(steps[0]).__name__
            assert errors_of(handler)[0] == f"HandlerError: mechanism OWN yielded {kind}, not bytes"

    def test_challenge_too_long(self) -> None:
        """So is one of more than 9,216 octets: no client would take it."""
        handler = make(of(SECRET * 768 + b"x", "alice"))
        assert ask(make_session(handler), b"AUTH OWN") == [BROKEN]
        assert errors_of(handler) == ["HandlerError: mechanism OWN: a challenge has 9217 octets, more than 9216"]

    def test_not_generators(self) -> None:
        """What a mechanism's function returns must be a generator: a coroutine, which is closed, is none."""

        async def coroutine() -> str:
            return "alice"

        async def async_generator() -> Any:
            yield b""

        for own, kind in (
            (lambda: "alice", "str"),
            (lambda: None, "NoneType"),
            (lambda: True, "bool"),
            (lambda: iter([b""]), "list_iterator"),
            (coroutine, "coroutine"),
            (async_generator, "async_generator"),
        ):
            handler = make(own)
            session = make_session(handler)
            assert ask(session, b"AUTH OWN") == [BROKEN] and session.over
            assert errors_of(handler) == [f"HandlerError: mechanism OWN returned {kind}, not a generator"]
        handler = make(of(coroutine(), "alice"))
        assert ask(make_session(handler), b"AUTH OWN") == [BROKEN]
        assert errors_of(handler) == ["HandlerError: mechanism OWN yielded coroutine, not bytes"]
        del handler
        gc.collect()

    @each("error", [OSError("s3cr3t"), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), StopAsyncIteration()])
    def test_raises(self, error: BaseException) -> None:
        """Whatever else it raises is [SYS/TEMP], is reported once, as it was raised, and ends the session."""
        for own in (raising(error), of(error), of(b"", error)):
            handler = make(own)
            session = make_session(handler)
            assert ask(session, b"AUTH OWN =") == [INTERNAL] and session.over
            session.close()
            assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error
            assert not handler.mail.count("lock_maildrop")

    def test_raises_stop_iteration(self) -> None:
        """A ``next()`` that finds nothing lets nobody in."""
        for own, kind in ((raising(StopIteration("alice")), StopIteration), (of(StopIteration("alice")), RuntimeError)):
            handler = make(own)
            session = make_session(handler)
            assert ask(session, b"AUTH OWN") == [INTERNAL] and session.over
            assert kinds(handler.mail.errors) == [kind] and not handler.mail.count("lock_maildrop")

    def test_the_same_generator_again(self) -> None:
        """A generator that is used up returns None, which is no name."""
        exchange = of(b"", "alice")()
        handler = make(lambda: exchange)
        session = make_session(handler)
        handler.mail.locked = True
        assert ask(session, b"AUTH OWN =")[0].startswith(b"-ERR [IN-USE]")
        handler.mail.locked = False
        assert ask(session, b"AUTH OWN =") == [BROKEN] and kinds(handler.mail.errors) == [HandlerError]

    def test_any_generator(self) -> None:
        """It need not be a function's generator.  It is closed once, after its end, a cancellation or the session."""
        for line in (b"AAAA", b"*", None):
            exchange = Spoken()
            session = make_session(make(lambda exchange=exchange: exchange))
            ask(session, b"AUTH OWN", *[line] * (line is not None))
            session.close()
            assert exchange.closed == 1

    @each("last", [b"*", None])
    def test_fails_when_closed(self, last: bytes | None) -> None:
        """What is raised when it is closed is reported, and answered if there is somebody to answer."""
        error = OSError("s3cr3t")

        def own() -> Generator[bytes, bytes, str]:
            try:
                yield b""
            finally:
                raise error
            return "alice"

        handler = make(own)
        session = make_session(handler)
        ask(session, b"AUTH OWN")
        if last is not None:
            assert ask(session, last) == [INTERNAL] and session.over
        session.close()
        assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error
        assert handler.mail.calls[-1] == ("close",)

    @each("last", [b"*", None])
    def test_swallows_generator_exit(self, last: bytes | None) -> None:
        """A generator that goes on is no exchange any more: the handler is told, and nobody is let in."""

        def own() -> Generator[bytes, bytes, str]:
            try:
                yield b""
            except GeneratorExit:
                yield b"and on"
            return "alice"

        handler = make(own)
        session = make_session(handler)
        ask(session, b"AUTH OWN")
        if last is not None:
            assert ask(session, last) == [INTERNAL] and session.over and not session.in_exchange
        session.close()
        assert errors_of(handler) == ["RuntimeError: generator ignored GeneratorExit"]
        assert not handler.mail.count("lock_maildrop")

    def test_returns_a_name_when_closed(self) -> None:
        """Who cancels is not let in, whatever the generator says to that."""

        def own() -> Generator[bytes, bytes, str]:
            try:
                yield b""
            except GeneratorExit:
                pass
            return "alice"

        handler = make(own)
        session = make_session(handler)
        assert ask(session, b"AUTH OWN", b"*")[1] == CANCELLED and goes_on(session)
        assert not handler.mail.count("lock_maildrop")

    def test_refuses_when_closed(self) -> None:
        """A refusal that a cancellation cannot take back: it is the answer, and a failed login."""

        def own() -> Generator[bytes, bytes, str]:
            try:
                yield b"you were wrong"
            finally:
                raise ReportableError("wrong")
            return "alice"

        session = make_session(make(own), max_failed_logins=1)
        assert ask(session, b"AUTH OWN", b"*")[1] == b"-ERR [AUTH] wrong\r\n" and session.over

    def test_secrets(self) -> None:
        """Neither a reply nor what popart itself reports holds what the client sent."""
        for own in (of(b"", SECRET), of(b"", f"{SECRET.decode()}\n"), of(SECRET.decode(), ""), of(SECRET * 9000, "")):
            handler = make(own)
            answers = ask(make_session(handler), b"AUTH OWN " + b64(SECRET))
            assert SECRET not in b"".join(answers) and SECRET.decode() not in str(handler.mail.errors)


LONG_NAMES = {f"{'X' * 18}{number}": of("alice") for number in range(10, 30)}
"""20 names of 20 characters: 420 octets with their spaces."""


class TestNames:
    """What get_mechanisms may return, and when it is asked."""

    @each("name", ["X", "CRAM-MD5", "X_Y-2", "A" * 20, "-", "_", "9", "APOP", "SCRAM-SHA-256-PLUS", "USER"])
    def test_good(self, name: str) -> None:
        """1 to 20 capital letters, digits, hyphens and underscores (RFC 4422 section 3.1)."""
        session = make_session(make(**{name: of("alice")}))
        assert ask(session, b"AUTH")[0].split(b"\r\n")[1:-2] == [b"OWN", name.encode(), b"PLAIN"]
        assert ask(session, b"AUTH " + name.encode()) == [SIGNED_IN]

    @each("name", ["", "cram-md5", "Own", "A" * 21, "A B", "A\r\nX", "A\n", "A\0", "A.B", "A+", "\xc4", "Ａ", "A=",
                   None, 7, b"OWN", ("OWN",)])  # fmt: skip
    def test_bad(self, name: Any) -> None:
        """Anything else is a HandlerError, at CAPA, which names it; nothing is announced, and the session goes on."""
        handler = make()
        handler.mechanisms = {"OWN": handler.own, name: handler.own}
        session = make_session(handler)
        assert ask(session, b"CAPA", b"AUTH") == [BROKEN] * 2 and not session.over
        assert kinds(handler.mail.errors) == [HandlerError] * 2
        assert "a mechanism's name has 1 to 20" in str(handler.mail.errors[0])
        assert ask(session, b"USER alice", b"PASS secret")[1] == SIGNED_IN

    def test_subclass_of_text(self) -> None:
        """A name is its letters, however a subclass of str prints itself."""

        class Name(str, enum.Enum):
            OWN = "OWN"

        handler = make()
        handler.mechanisms = {Name.OWN: handler.own}
        session = make_session(handler)
        assert ask(session, b"AUTH")[0].split(b"\r\n")[1:-2] == [b"OWN", b"PLAIN"]
        assert ask(session, *RIGHT)[-1] == SIGNED_IN

    def test_reserved(self) -> None:
        """popart's own names are all that popart can offer."""
        assert list(BUILT_IN) == list(mechanisms(make_handler(), CERTIFICATE)) == ALL

    @each("name", ALL)
    def test_built_in(self, name: str) -> None:
        """The name of a mechanism of popart's is a HandlerError, where popart offers it and where it does not."""
        for handler in (make(**{name: of("alice")}), type("Able", (Handler,), {"allow_sasl_login": True})(Mail(*TWO))):
            handler.mechanisms = {name: of("alice")}
            session = make_session(handler, certificate=CERTIFICATE)
            assert ask(session, b"CAPA") == [BROKEN]
            assert errors_of(handler) == [f"HandlerError: {name} is a mechanism of popart's own"]
            assert not ask(session, b"AUTH " + name.encode())[0].startswith(b"+OK")

    @each("result", [None, [], ["OWN"], "OWN", {"OWN"}, 7, True])
    def test_no_mapping(self, result: object) -> None:
        """A result that is no mapping is a HandlerError; in AUTH it ends the session."""
        handler = make()
        handler.mechanisms = result
        session = make_session(handler)
        assert ask(session, b"CAPA") == [BROKEN] and not session.over
        assert ask(session, b"AUTH OWN") == [BROKEN] and session.over
        kind = type(result).__name__
        assert (
            errors_of(handler)
            == [f"HandlerError: get_mechanisms returned {kind}, not a mapping of names to functions"] * 2
        )

    @each("begin", [None, "alice", of("alice")()])
    def test_no_function(self, begin: object) -> None:
        """A value that cannot be called is a HandlerError."""
        handler = make(OTHER=begin)
        assert ask(make_session(handler), b"CAPA") == [BROKEN]
        assert "for OTHER, returned" in str(handler.mail.errors[0])

    def test_too_many(self) -> None:
        """CAPA's line has 512 octets at most, so all names have 400, with their spaces (RFC 2449 section 5)."""
        fitting = dict([*LONG_NAMES.items()][:19])
        handler = type("Able", (Handler,), {name: returning(None) for name in (
            "authenticate_certificate", "get_scram_credentials", "authenticate_token")})(Mail())  # fmt: skip
        handler.allow_sasl_login = True
        handler.mechanisms = fitting | {"X": of("alice")}  # 401 octets
        session = make_session(handler, certificate=CERTIFICATE)
        assert ask(session, b"CAPA") == [BROKEN] and "more than 400 octets" in str(handler.mail.errors[0])
        handler.mechanisms = fitting  # 399
        lines = ask(session, b"CAPA")[0].split(b"\r\n")
        (line,) = (line for line in lines if line.startswith(b"SASL "))
        assert line.count(b" ") == len(ALL) + 19 and 450 < len(line) <= 510

    def test_no_end(self) -> None:
        """A mapping that goes on for ever is too long, too: nobody waits for its end."""

        class Endless(dict[str, Any]):
            read = 0

            def items(self) -> Any:
                for self.read in range(1000):
                    yield f"X{self.read}", of("alice")
                raise AssertionError("read on and on")

        handler = make()
        handler.mechanisms = Endless()
        assert ask(make_session(handler), b"CAPA") == [BROKEN] and handler.mechanisms.read < 400
        assert "more than 400 octets" in str(handler.mail.errors[0])

    @each("error", [OSError("s3cr3t"), KeyboardInterrupt(), StopIteration()])
    def test_raises(self, error: BaseException) -> None:
        """What get_mechanisms raises is reported: it fails CAPA and AUTH's list, and in AUTH also ends the session."""
        handler = make()
        handler.get_mechanisms = raising(error)  # type: ignore[method-assign]
        session = make_session(handler)
        assert ask(session, b"CAPA", b"AUTH") == [INTERNAL] * 2 and not session.over
        assert ask(session, b"AUTH PLAIN", b"*")[0] == b"+ \r\n"
        assert ask(session, b"AUTH OWN") == [INTERNAL] and session.over
        assert handler.mail.errors == [error] * 3

    def test_refuses(self) -> None:
        """It may refuse, too."""
        handler = make()
        handler.get_mechanisms = raising(ReportableError("not now", code="SYS/TEMP"))  # type: ignore[method-assign]
        session = make_session(handler)
        assert ask(session, b"CAPA", b"AUTH", b"AUTH X") == [b"-ERR [SYS/TEMP] not now\r\n"] * 3
        assert not session.over and not handler.mail.errors

    def test_when_it_is_asked(self) -> None:
        """For CAPA in both states, for a bare AUTH, and for AUTH with a mechanism that popart does not offer: what it
        returns then is what holds."""
        handler = make()
        session = make_session(handler)

        def asked(line: bytes) -> int:
            before = handler.mail.count("get_mechanisms")
            ask(session, line)
            return handler.mail.count("get_mechanisms") - before

        assert asked(b"USER alice") == asked(b"PASS wrong") == asked(b"AUTH PLAIN") == asked(b"*") == 0
        assert asked(b"CAPA") == asked(b"AUTH") == asked(b"AUTH X") == asked(b"AUTH OWN") == 1
        assert asked(b"*") == 0
        handler.mechanisms = {"OTHER": of("alice")}
        assert ask(session, b"AUTH OWN") == [UNKNOWN]
        assert asked(b"AUTH OTHER") == 1 and asked(b"STAT") == 0 and asked(b"CAPA") == 1

    def test_announced(self) -> None:
        """CAPA and AUTH list the same, in both states (RFC 2449 section 6.3); what shows a secret comes last."""
        handler = type("Able", (Handler,), {name: returning(None) for name in (
            "authenticate_certificate", "get_scram_credentials", "authenticate_token")})(Mail(*TWO))  # fmt: skip
        handler.mechanisms = MappingProxyType({"Z": of("alice"), "A": of("alice")})
        session = make_session(handler, certificate=CERTIFICATE)
        names = b"EXTERNAL SCRAM-SHA-256 Z A OAUTHBEARER XOAUTH2 PLAIN"
        before, listed, _, after = ask(session, b"CAPA", b"AUTH", b"AUTH Z", b"CAPA")
        assert commands_of(before)[b"SASL"] == commands_of(after)[b"SASL"] == names
        assert listed.split(b"\r\n")[1:-2] == names.split()

    @each("abilities", [{}, {"get_mechanisms": None}])
    def test_without_the_ability(self, abilities: dict[str, Any]) -> None:
        """A handler without it has popart's alone."""
        handler = type("Plain", (ClosingHandler,), abilities)(Mail())
        assert ask(make_session(handler), b"AUTH", b"AUTH CRAM-MD5")[1] == UNKNOWN

    def test_delegated(self) -> None:
        """A handler that delegates by ``__getattr__`` has it."""

        class Delegating:
            def __init__(self, handler: Handler) -> None:
                self._handler = handler

            def __getattr__(self, name: str) -> Any:
                return getattr(self._handler, name)

        session = make_session(Delegating(make()))  # type: ignore[arg-type]
        assert ask(session, *RIGHT)[-1] == SIGNED_IN

    @each("options", [{}, {"allow_cleartext": True}])
    def test_passwords_do_not_matter(self, options: dict[str, Any]) -> None:
        """``allow_passwords = False`` does not concern it."""
        handler = make()
        handler.allow_passwords = False  # type: ignore[attr-defined]
        handler.mechanisms["USER"] = of("alice")
        session = make_session(handler, **options)
        assert ask(session, b"AUTH")[0].split(b"\r\n")[1:-2] == [b"OWN", b"USER"]
        assert ask(session, b"AUTH USER") == [SIGNED_IN]

    def test_needs_tls(self) -> None:
        """Where cleartext is not allowed it is neither announced nor begun; the client is told that TLS is needed, and
        of what TLS would not bring either, that it is unknown."""
        handler = make()
        session = make_session(handler, allow_cleartext=False)
        capa, listed, *answers = ask(session, b"CAPA", b"AUTH", b"AUTH OWN", b"AUTH own YWxpY2U=", b"AUTH X")
        assert b"SASL" not in commands_of(capa) and listed.split(b"\r\n")[1:-2] == []
        assert answers == [NEEDS_TLS, NEEDS_TLS, UNKNOWN] and not session.in_exchange
        assert handler.ended == [] and not handler.mail.errors


# Over real connections.


@pytest.fixture(params=[None, "TLS"], ids=["plain", "TLS"])
def contexts(
    request: pytest.FixtureRequest, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    return (server_context, client_context) if request.param else (None, None)


def test_a_session(contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None]) -> None:
    """With ``allow_cleartext=False`` it is offered over TLS only, and there it signs in."""
    handler = make()
    server = Server(HOST, lambda peer: handler, ssl_context=contexts[0], allow_cleartext=False)
    with running(server), connected(server, contexts[1]) as client:
        client.line()
        client.send(b"CAPA\r\n")
        announced = b"\r\nSASL OWN PLAIN\r\n" in client.lines()
        answers = [client.ask(line) for line in RIGHT[: None if contexts[0] else 1]]
        assert announced is (contexts[0] is not None)
        assert answers[-1] == (SIGNED_IN if contexts[0] else NEEDS_TLS)


class Watching(Handler):
    """Lets a test wait until its generator was closed."""

    def __init__(self, mail: Mail) -> None:
        super().__init__(mail)
        self.exchange_ended = threading.Event()
        self.thread = ""

    def authenticate_pass(self, username: str, password: str) -> None:
        self.thread = threading.current_thread().name

    def own(self) -> Generator[bytes, bytes, str]:
        self.thread = threading.current_thread().name
        try:
            yield from super().own()
        finally:
            assert self.mail.count("close") == 0  # that comes last
            self.exchange_ended.set()
        return "alice"


@each(
    ("end", "errors"),
    [("leaves", [ClientGoneError]), ("is late", [ClientTimeoutError]), ("server closes", []), ("quits", None)],
)
@each("steps", [1, 2])
def test_dropped(end: str, errors: list[type] | None, steps: int) -> None:
    """An exchange that the client leaves, that lasts too long or that the server ends is closed once, in the session's
    thread, before ``close``."""
    handler = Watching(Mail())

    class OneThread(QuickServer):
        login_timeout = 1 if end == "is late" else 60

    with running(OneThread(HOST, lambda peer: handler)) as server, connected(server) as client:
        client.line()
        for line in RIGHT[:steps]:
            assert client.ask(line).startswith(b"+ ")
        if end == "leaves":
            client.close()
        elif end == "server closes":
            server.server_close()
        elif end == "quits":
            assert client.ask(b"*") == CANCELLED
            assert client.ask(b"QUIT") == b"+OK goodbye\r\n"
        assert handler.exchange_ended.wait(PATIENCE) and handler.closed.wait(PATIENCE)
    assert handler.ended == [handler.thread] != [threading.current_thread().name]
    assert handler.mail.calls[-1] == ("close",) and kinds(handler.mail.errors) == (errors or [])


def test_an_exchange_without_end() -> None:
    """``login_timeout`` bounds it, however busy the client is."""

    def own() -> Generator[bytes, bytes, str]:
        while True:
            yield b"more?"

    handler = make(own)

    class Short(QuickServer):
        login_timeout = 0.3

    with running(Short(HOST, lambda peer: handler)) as server, connected(server) as client:
        client.line()
        assert client.ask(b"AUTH OWN") == b"+ bW9yZT8=\r\n"
        with suppress(ConnectionError):
            while answer := client.ask(b"AAAA"):
                assert answer == b"+ bW9yZT8=\r\n"
        assert handler.closed.wait(PATIENCE)
    assert kinds(handler.mail.errors) == [ClientTimeoutError]


def test_monitored() -> None:
    """The steps are one AUTH to who counts commands; an exchange that is broken off is lost."""
    told: list[tuple[str, str]] = []

    class Counting(Handler):
        def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
            told.append((verb, outcome))

        def session_finished(self, commands: int, octets: int, seconds: float) -> None:
            told.append(("session", str(commands)))

    for lines, expected in (
        ([*RIGHT, b"NOOP"], [("AUTH", "+OK"), ("NOOP", "+OK"), ("session", "2")]),
        (RIGHT[:2], [("AUTH", "lost"), ("session", "1")]),
    ):
        told.clear()
        handler = Counting(Mail(*TWO))
        with running(QuickServer(HOST, lambda peer, handler=handler: handler)) as server, connected(server) as client:
            client.line()
            for line in lines:
                client.ask(line)
            client.close()
            assert handler.closed.wait(PATIENCE)
        assert told == expected


def test_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test kit's records have stars in the place of its responses, and a record that fails ends the exchange."""
    handler = make()
    monkeypatch.setattr(StoredMailHandler, "get_mechanisms", lambda _: {"OWN": handler.own}, raising=False)

    class Recording(MailServer):
        def record_command(self, command: tuple[str, ...]) -> None:
            super().record_command(command)
            assert len(self.commands) != 6

    with Recording() as server, socket.create_connection((server.host, server.port)) as sock:
        client = Client(sock)
        for line in (b"", b"AUTH OWN " + SECRET, *RIGHT[:2], b"*", b"AUTH OWN", b64(b"alice")):
            answer = client.ask(line) if line else client.line()
        assert client.ask(b"QUIT") == b"+OK goodbye\r\n"
        client.file.close()
        assert server.commands[:-1] == [
            ("", "AUTH", "OWN", "***"), ("", "AUTH", "OWN"), ("", "***"), ("", "***"), ("", "AUTH", "OWN"), ("", "***"),
        ]  # fmt: skip
        assert answer == INTERNAL and len(handler.ended) == 3
    assert kinds(server.errors) == [AssertionError]


# Authorization identities.


class Authorizing(ClosingHandler):
    """Lets alice and zoë act for others, but not for root."""

    def authenticate_pass(self, username: str, password: str) -> None:
        self.mail.calls.append(("authenticate_pass", username, password))
        if password != "secret":
            raise ReportableError("wrong name or password")

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        self.mail.calls.append(("get_scram_credentials", username))
        return popart.scram_credentials("pencil", iterations=4096)

    def authorize(self, username: str, identity: str) -> None:
        self.mail.calls.append(("authorize", username, identity))
        if identity == "root":
            raise ReportableError("not root")


def authorizing(**changes: Any) -> Authorizing:
    return type("Changed", (Authorizing,), changes)(Mail(*TWO))  # type: ignore[no-any-return]


def plain(session: Session, response: bytes) -> bytes:
    return ask(session, b"AUTH PLAIN " + b64(response))[0]


def scram(session: Session, header: bytes, name: bytes = b"alice", password: bytes = b"pencil") -> list[bytes]:
    """Sign in by SCRAM; return the answers from the client's last message on, or the first if it is no challenge."""
    client = ScramClient(name, password, header)
    (answer,) = ask(session, b"AUTH SCRAM-SHA-256 " + b64(client.first))
    challenge = challenge_in(answer)
    if challenge is None:
        return [answer]
    answers = ask(session, b64(client.final(challenge)))
    if answers[0].startswith(b"+ "):
        assert challenge_in(answers[0]) == client.verifier
        answers += ask(session, b"")
    return answers


OTHER = b"-ERR [AUTH] nobody may act for another user\r\n"


class TestAuthorization:
    """``authorize`` decides about other identities, after the secret was right (RFC 4422 section 3.4.1)."""

    @each(("response", "names"), [
        (b"bob\0alice\0secret", ("alice", "bob")),
        ("zoë\0alice\0secret".encode(), ("alice", "zoë")),
        (b"Alice\0alice\0secret", ("alice", "Alice")),
        (b" \0alice\0secret", ("alice", " ")),
    ])  # fmt: skip
    def test_plain(self, response: bytes, names: tuple[str, str]) -> None:
        """PLAIN: the handler checks the password, then who may act as whom, and then locks the maildrop."""
        handler = authorizing()
        assert plain(make_session(handler), response) == SIGNED_IN
        assert handler.mail.calls[:3] == [
            ("authenticate_pass", names[0], "secret"), ("authorize", *names), ("lock_maildrop",),
        ]  # fmt: skip

    @each("response", [b"\0alice\0secret", b"alice\0alice\0secret"])
    def test_own_identity(self, response: bytes) -> None:
        """Nobody is asked about a user's own identity, named or not."""
        handler = authorizing()
        assert plain(make_session(handler), response) == SIGNED_IN and not handler.mail.count("authorize")

    def test_wrong_password(self) -> None:
        """Nor after a wrong password."""
        handler = authorizing()
        assert plain(make_session(handler), b"bob\0alice\0wrong") == b"-ERR [AUTH] wrong name or password\r\n"
        assert not handler.mail.count("authorize")

    @each("response", [b"bo\nb\0alice\0secret", b"bo\rb\0alice\0secret", b"\xff\0alice\0secret"])
    def test_malformed_identity(self, response: bytes) -> None:
        """An identity is UTF-8 without CR and LF, as every name; otherwise the handler is asked nothing."""
        handler = authorizing()
        session = make_session(handler, max_failed_logins=1)
        answer = plain(session, response)
        assert answer.startswith(b"-ERR ") and b"[" not in answer and goes_on(session) and not handler.mail.calls

    def test_refused(self) -> None:
        """A refusal is [AUTH], delayed and counted as a wrong password is; then another identity may be taken."""
        handler = authorizing()
        session = make_session(handler, max_failed_logins=3)
        for delay in (0.25, 0.5):
            reply = session.respond(b"AUTH PLAIN " + b64(b"root\0alice\0secret"))
            assert reply.status == b"-ERR [AUTH] not root\r\n" and reply.delay == delay
        assert goes_on(session) and plain(session, b"bob\0alice\0secret") == SIGNED_IN
        assert not handler.mail.errors

    def test_code(self) -> None:
        """It keeps its code; SYS/TEMP is no failed login."""
        handler = authorizing(authorize=raising(ReportableError("down", code="SYS/TEMP")))
        session = make_session(handler, max_failed_logins=1)
        assert plain(session, b"bob\0alice\0secret") == b"-ERR [SYS/TEMP] down\r\n" and goes_on(session)

    @each("error", [OSError("s3cr3t"), KeyboardInterrupt(), StopIteration("alice"), GeneratorExit()])
    def test_raises(self, error: BaseException) -> None:
        """Whatever else it raises is [SYS/TEMP], reported as it was raised, and ends the session."""
        for sign_in in (
            lambda session: plain(session, b"bob\0alice\0secret"),
            lambda session: scram(session, b"n,a=bob,")[-1],
        ):
            handler = authorizing(authorize=raising(error))
            session = make_session(handler)
            assert sign_in(session) == INTERNAL and session.over
            assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error
            assert not handler.mail.count("lock_maildrop")

    @each("result", [False, True, "bob", 0])
    def test_wrong_result(self, result: object) -> None:
        """Only None lets the user act as another."""
        handler = authorizing(authorize=returning(result))
        session = make_session(handler)
        assert plain(session, b"bob\0alice\0secret") == BROKEN and session.over
        assert kinds(handler.mail.errors) == [HandlerError] and not handler.mail.count("lock_maildrop")

    @each(("header", "identity"), [
        (b"n,a=bob,", "bob"), (b"y,a=bob,", "bob"), ("n,a=zoë,".encode(), "zoë"), (b"n,a=b=2Co=3Db,", "b,o=b"),
        (b"n,a=Alice,", "Alice"),
    ])  # fmt: skip
    def test_scram(self, header: bytes, identity: str) -> None:
        """SCRAM: the same, after the client's proof, and before the server shows its own (RFC 5802 section 5.1)."""
        handler = authorizing()
        assert scram(make_session(handler), header)[-1] == SIGNED_IN
        assert handler.mail.calls[:3] == [
            ("get_scram_credentials", "alice"), ("authorize", "alice", identity), ("lock_maildrop",),
        ]  # fmt: skip

    @each(("header", "name"), [
        (b"n,,", b"alice"), (b"n,a=alice,", b"alice"), (b"n,a=al=2Cice,", b"al=2Cice"),
        (b"n,a=alice,", "\u2070alice\xad".encode()[3:]), (b"n,a=IX,", "\u2168".encode()),
    ])  # fmt: skip
    def test_scram_own_identity(self, header: bytes, name: bytes) -> None:
        """An identity that is the name, as it was sent or as SASLprep makes it, is nobody else's."""
        handler = authorizing()
        assert scram(make_session(handler), header, name)[-1] == SIGNED_IN
        assert not handler.mail.count("authorize")

    def test_scram_refused(self) -> None:
        """A refusal comes in the place of the server's own proof."""
        session = make_session(authorizing(), max_failed_logins=1)
        assert scram(session, b"n,a=root,") == [b"-ERR [AUTH] not root\r\n"] and session.over

    def test_scram_wrong_password(self) -> None:
        """Nobody is asked if the proof is wrong."""
        handler = authorizing()
        wrong = scram(make_session(handler), b"n,a=bob,", password=b"wrong")
        assert wrong == [b"-ERR [AUTH] wrong name or password\r\n"] and not handler.mail.count("authorize")

    def test_scram_malformed_identity(self) -> None:
        """An identity that is no UTF-8 is a bad command, before anybody is asked."""
        handler = authorizing()
        assert scram(make_session(handler), b"n,a=\xff,") == [b"-ERR responses must be UTF-8\r\n"]
        assert not handler.mail.calls

    def test_without_the_ability(self) -> None:
        """Without the method another identity is refused, and nobody is asked for the password."""
        handler = authorizing(authorize=None)
        session = make_session(handler)
        assert plain(session, b"bob\0alice\0secret") == OTHER and scram(session, b"n,a=bob,") == [OTHER]
        assert not handler.mail.calls and plain(session, b"alice\0alice\0secret") == SIGNED_IN

    def test_one_name_only(self) -> None:
        """OAUTHBEARER and EXTERNAL name one identity: who decides about the token or the certificate decides."""
        handler = make_handler(authorize=raising(OSError("not asked")))
        session = make_session(handler, certificate=CERTIFICATE)
        handler.mail.locked = True
        ask(session, b"AUTH EXTERNAL " + b64(b"bob"), b"AUTH OAUTHBEARER " + b64(b"n,a=bob,\1auth=Bearer x\1\1"))
        assert [call[:2] for call in handler.mail.calls] == [
            ("authenticate_certificate", "bob"), ("authenticate_token", "bob"),
        ]  # fmt: skip
        assert not handler.mail.errors
