"""The interface that applications implement."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import socket
import sys
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import popart
from popart import Handler, SupportsClose, SupportsListing, SupportsTop
from popart.errors import HandlerError, ReportableError
from popart.handler_calls import ability
from popart.message_framing import encode_message
from popart.replies import ok
from popart.server import Server

from .conftest import Client, ClosingHandler, Mail, MemoryHandler, connected, make_session, running

METHODS = {
    "set_banner": ["banner"],
    "authenticate_pass": ["username", "password"],
    "authenticate_apop": ["username", "hexdigest"],
    "lock_maildrop": [],
    "get_message_count": [],
    "get_message_size": ["number"],
    "get_message_id": ["number"],
    "get_message_reader": ["number"],
    "delete_messages": ["numbers"],
    "unlock_maildrop": [],
    "handle_session_error": ["error"],
}


def nothing(self: object, *arguments: object) -> Any:
    return None


def test_methods_are_those_of_the_contract() -> None:
    """Applications are written against these names of methods and parameters, and no other method is asked for."""
    public = {name: value for name, value in vars(Handler).items() if inspect.isfunction(value) and name[0] != "_"}
    assert {name: list(inspect.signature(method).parameters)[1:] for name, method in public.items()} == METHODS


@pytest.mark.parametrize("forgotten", METHODS)
def test_forgotten_method(forgotten: str) -> None:
    """A subclass that forgets a method fails when it is built, not in the midst of a session."""
    methods = {name: nothing for name in METHODS if name != forgotten}
    with pytest.raises(TypeError, match=forgotten):
        type("Forgetful", (Handler,), methods)()


def test_isinstance_tells_a_handler() -> None:
    """What has all methods is an instance of Handler, whatever it derives from; what lacks one is none."""
    methods = dict.fromkeys(METHODS, nothing)
    assert isinstance(type("Structural", (), methods)(), Handler)
    del methods["unlock_maildrop"]
    assert not isinstance(type("Forgetful", (), methods)(), Handler)


def test_complete_handler_is_built() -> None:
    """The contract's methods are all that a subclass must have."""
    type("Complete", (Handler,), dict.fromkeys(METHODS, nothing))()


@pytest.mark.parametrize(
    ("protocol", "method"),
    [(SupportsListing, "list_messages"), (SupportsTop, "get_top_reader"), (SupportsClose, "close")],
    ids=["SupportsListing", "SupportsTop", "SupportsClose"],
)
def test_abilities_are_found_by_their_method(protocol: type, method: str) -> None:
    """An ability is had by whoever has its method, derived from the protocol or not."""
    assert isinstance(type("Able", (MemoryHandler,), {method: nothing})(Mail()), protocol)
    assert not isinstance(MemoryHandler(Mail()), protocol)


def test_handler_need_not_derive() -> None:
    """Handler is an interface: any object with its methods will do."""

    class Duck:
        def __getattr__(self, name: str) -> Any:
            return getattr(handler, name) if name in METHODS else object.__getattribute__(self, name)

    handler = MemoryHandler(Mail(b"a\r\n"))
    duck: Any = Duck()
    session = make_session(duck)
    replies = [session.respond(line).status for line in (b"USER alice", b"PASS secret", b"STAT", b"QUIT")]
    session.close()
    assert replies[2] == b"+OK 1 3\r\n"
    assert not handler.mail.errors
    assert popart.Handler not in type(duck).__mro__


ABILITIES: dict[type, list[str]] = {
    popart.SupportsListing: ["list_messages"],
    popart.SupportsTop: ["get_top_reader"],
    popart.SupportsTokens: ["authenticate_token"],
    popart.SupportsScram: ["get_scram_credentials"],
    popart.SupportsCertificates: ["authenticate_certificate"],
    popart.SupportsMechanisms: ["get_mechanisms"],
    popart.SupportsAuthorization: ["authorize"],
    popart.SupportsUTF8: ["enable_utf8"],
    popart.SupportsLanguages: ["get_languages", "set_language"],
    popart.SupportsLoginDelay: ["get_login_delay"],
    popart.SupportsExpire: ["get_expire"],
    popart.SupportsMonitoring: ["command_finished", "session_finished"],
    popart.SupportsClose: ["close"],
}
each_ability = pytest.mark.parametrize(("protocol", "methods"), ABILITIES.items(), ids=lambda value: str(value)[-24:-2])


@each_ability
def test_who_derives_from_an_ability_must_have_its_methods(protocol: type, methods: list[str]) -> None:
    """A misspelt method is found when the handler is built, not when nothing comes of it."""
    type("Able", (protocol,), dict.fromkeys(methods, nothing))()
    for missing in methods:
        with pytest.raises(TypeError, match=missing):
            type("Forgetful", (protocol,), {method: nothing for method in methods if method != missing})()


class Wrapper:
    """Has whatever a complete handler has, and nothing of its own."""

    def __init__(self, handler: object) -> None:
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)


class CompleteHandler(ClosingHandler):
    """Can do everything."""

    def record(self, *call: Any) -> None:
        self.mail.calls.append(call)

    def list_messages(self) -> Any:
        self.record("list_messages")
        return [(len(message), f"listed-{number}") for number, message in enumerate(self.mail.messages)]

    def get_top_reader(self, number: int, lines: int) -> Any:
        self.record("get_top_reader", number, lines)
        return self.get_message_reader(number)

    def authenticate_token(self, username: str, token: str) -> None:
        self.record("authenticate_token", username, token)

    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        self.record("authenticate_certificate", identity)

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        return popart.ScramCredentials(bytes(16), 4096, bytes(32), bytes(32))

    def get_mechanisms(self) -> Any:
        return {"X-OWN": self.get_login_delay}

    def authorize(self, username: str, identity: str) -> None:
        self.record("authorize", username, identity)

    def enable_utf8(self) -> None:
        self.record("enable_utf8")

    def get_languages(self) -> Mapping[str, str]:
        return {"de": "Deutsch"}

    def set_language(self, tag: str) -> None:
        self.record("set_language", tag)

    def get_login_delay(self) -> int:
        return 5

    def get_expire(self) -> int | None:
        return 7

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        self.record("command_finished", verb, outcome)

    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        self.record("session_finished", commands)


class TestAbility:
    """An ability is had by whoever has all of its methods, and it does not matter how, on any Python."""

    def test_all_are_tested(self) -> None:
        """The abilities are these, and the methods of each."""
        names = {name for name in popart.__all__ if name.startswith("Supports")}
        assert names == {protocol.__name__ for protocol in ABILITIES}
        for protocol, methods in ABILITIES.items():
            assert [name for name in vars(protocol) if name[0] != "_"] == methods

    @each_ability
    def test_found(self, protocol: type, methods: list[str]) -> None:
        """By the class, a base, an instance's attribute, a property, a static or partial function, __getattr__."""
        base = type("Base", (MemoryHandler,), dict.fromkeys(methods, nothing))
        with_attributes = MemoryHandler(Mail())
        vars(with_attributes).update(dict.fromkeys(methods, functools.partial(nothing, None)))
        properties = {name: property(lambda self: self.handle_session_error) for name in methods}
        for handler in (
            base(Mail()),
            type("Derived", (base,), {})(Mail()),
            with_attributes,
            type("Properties", (MemoryHandler,), properties)(Mail()),
            type("Static", (MemoryHandler,), dict.fromkeys(methods, staticmethod(print)))(Mail()),
            Wrapper(base(Mail())),
            Wrapper(Wrapper(with_attributes)),
        ):
            for method in methods:
                assert ability(handler, protocol, method) == getattr(handler, method)

    @each_ability
    def test_not_found(self, protocol: type, methods: list[str]) -> None:
        """None, and what cannot be called, is no method; a handler that lacks one of two has neither."""
        for method in methods:
            others = {name: nothing for name in methods if name != method}
            for value in (None, 5, "text", True, NotImplemented, property(lambda self: None)):
                handler = type("Unable", (MemoryHandler,), {**others, method: value})(Mail())
                assert [ability(handler, protocol, name) for name in methods] == [None] * len(methods)
            assert ability(type("Half", (MemoryHandler,), others)(Mail()), protocol, methods[0]) is None
        assert ability(Wrapper(MemoryHandler(Mail())), protocol, methods[0]) is None
        broken = property(lambda self: self.there_is_no_such_attribute)
        handler = type("Broken", (MemoryHandler,), dict.fromkeys(methods, broken))(Mail())
        assert ability(handler, protocol, methods[0]) is None

    @pytest.mark.parametrize("wrap", [lambda handler: handler, Wrapper, lambda handler: Wrapper(Wrapper(handler))])
    def test_delegating_wrapper(self, wrap: Callable[[Any], Any]) -> None:
        """A wrapper around a complete handler keeps its listing, tokens, UTF8, monitoring, close() and all the rest."""
        handler = CompleteHandler(Mail(b"A: b\r\n\r\nc\r\n"))
        with running(Server(("127.0.0.1", 0), lambda peer: wrap(handler))) as server, connected(server) as client:
            client.line()
            client.send(b"CAPA\r\n")
            capabilities = client.lines().split(b"\r\n")
            for line in (b"SASL SCRAM-SHA-256 X-OWN OAUTHBEARER XOAUTH2 PLAIN", b"UTF8 USER", b"LANG"):
                assert line in capabilities
            assert b"LOGIN-DELAY 5 USER" in capabilities
            assert client.ask(b"UTF8").startswith(b"+OK") and client.ask(b"LANG *") == b"+OK de Deutsch\r\n"
            token = b64encode(b"user=alice\x01auth=Bearer x\x01\x01")
            assert client.ask(b"AUTH XOAUTH2 " + token).startswith(b"+OK")
            assert client.ask(b"UIDL 1") == b"+OK 1 listed-0\r\n"
            assert client.ask(b"TOP 1 9").startswith(b"+OK") and client.lines()
            assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
            assert handler.closed.wait(10)
        names = {call[0] for call in handler.mail.calls}
        assert {name for methods in ABILITIES.values() for name in methods if name != "get_message_count"} - names == {
            *("get_scram_credentials", "authenticate_certificate", "get_mechanisms", "authorize"),
            *("get_languages", "get_login_delay", "get_expire"),
        }
        assert handler.mail.calls[-1] == ("close",) and handler.mail.count("close") == 1
        assert not handler.mail.count("get_message_size") and not handler.mail.errors


class Served:
    """A server whose factory returns what it is given, and what `handle_error` was told."""

    def __init__(self, handler: Any) -> None:
        self.errors: list[BaseException] = []
        served = self

        class Telling(Server):
            def handle_error(self, request: Any, client_address: Any) -> None:
                served.errors += [error for error in sys.exc_info()[1:2] if error is not None]

        self.server = Telling(("127.0.0.1", 0), lambda peer: handler() if inspect.isfunction(handler) else handler)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with running(self.server), connected(self.server) as client:
            yield client


INTERNAL = b"-ERR [SYS/TEMP] internal error, please try again later\r\n"
BROKEN = b"-ERR [SYS/PERM] the mailbox is broken, please tell its administrator\r\n"

ERRORS: list[tuple[BaseException, bytes]] = [
    (OSError("hidden"), INTERNAL),
    (KeyError("hidden"), INTERNAL),
    (SystemExit(), INTERNAL),
    (HandlerError("hidden"), BROKEN),
    (ReportableError("not today"), b"-ERR not today\r\n"),
]


class TestAttributeThatRaises:
    """A property or __getattr__ that fails is told as any failure of the handler's, and close() is told of the end."""

    def make(self, name: str, error: BaseException) -> ClosingHandler:
        def fail(handler: object) -> Any:
            raise error

        kind = type("Failing", (CompleteHandler,), {name: property(fail)})
        return kind(Mail(b"a\r\n"))  # type: ignore[no-any-return]

    @pytest.mark.parametrize(("error", "answer"), ERRORS, ids=lambda value: type(value).__name__)
    @pytest.mark.parametrize("name", [
        "allow_passwords", "allow_sasl_login", "authenticate_pass", "get_message_id", "get_top_reader", "enable_utf8",
        "get_languages", "set_language", "authenticate_token", "get_scram_credentials", "get_mechanisms", "authorize",
        "command_finished", "session_finished",
    ])  # fmt: skip
    def test_when_the_session_is_made(self, name: str, error: BaseException, answer: bytes) -> None:
        """What is asked for at the start turns the client away; nobody else is told."""
        handler = self.make(name, error)
        served = Served(handler)
        with served.client() as client:
            assert client.rest() == answer
            assert handler.closed.wait(10)
        assert handler.mail.errors == ([] if isinstance(error, ReportableError) else [error])
        assert handler.mail.calls == [("close",)] and not served.errors

    @pytest.mark.parametrize(("error", "answer"), ERRORS, ids=lambda value: type(value).__name__)
    @pytest.mark.parametrize(
        ("name", "line", "over"),
        [("get_login_delay", b"CAPA", False), ("get_expire", b"CAPA", False), ("list_messages", b"PASS secret", True)],
    )
    def test_later(self, name: str, line: bytes, over: bool, error: BaseException, answer: bytes) -> None:
        """What is asked for later fails the command."""
        handler = self.make(name, error)
        session = make_session(handler)
        session.respond(b"USER alice")
        assert session.respond(line).head() == answer
        assert session.over is (over and not isinstance(error, ReportableError))
        session.close()
        assert handler.mail.errors == ([] if isinstance(error, ReportableError) else [error])
        assert handler.mail.calls[-1] == ("close",) and not handler.mail.locked

    def test_close(self) -> None:
        """A close that cannot be had is reported, and ends nothing else."""
        error = OSError("hidden")
        handler = self.make("close", error)
        session = make_session(handler)
        assert session.respond(b"QUIT").head() == b"+OK goodbye\r\n"
        session.close()
        assert handler.mail.errors == [error]

    def test_handle_session_error(self) -> None:
        """Where the handler cannot be told, the server's handle_error is; close() is told as ever."""
        error = OSError("hidden")
        handler = self.make("handle_session_error", error)
        served = Served(handler)
        with served.client() as client:
            assert client.rest() == INTERNAL
            assert handler.closed.wait(10)
        assert served.errors == [error] and handler.mail.calls == [("close",)]

    @pytest.mark.parametrize(("name", "times"), [("command_finished", 2), ("session_finished", 1)])
    def test_monitoring(self, name: str, times: int) -> None:
        """Where it fails only later, in the midst of a session, it is reported each time, and the session goes on."""
        error = OSError("hidden")

        def fail_after_sign_in(handler: MemoryHandler) -> Any:
            if handler.mail.count("lock_maildrop"):
                raise error
            return nothing

        handler = type("Failing", (CompleteHandler,), {name: property(fail_after_sign_in)})(Mail(b"a\r\n"))
        served = Served(handler)
        with served.client() as client:
            client.line()
            client.sign_in()
            assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
            assert handler.closed.wait(10)
        assert handler.mail.errors == [error] * times and not served.errors

    def test_monitoring_by_a_partial(self) -> None:
        """A method that is any callable, without a name, is called as any."""
        told: list[Any] = []
        handler = CompleteHandler(Mail())
        handler.command_finished = functools.partial(lambda *facts: told.append(facts[:3]), "told")  # type: ignore[method-assign]
        with Served(handler).client() as client:
            client.line()
            assert client.ask(b"QUIT").startswith(b"+OK") and client.rest() == b""
            assert handler.closed.wait(10)
        assert told == [("told", "QUIT", "+OK")] and not handler.mail.errors


async def wait(*arguments: object) -> Any: ...


class AsyncReader:
    """A reader one of whose methods is a coroutine's."""

    def __init__(self, method: str) -> None:
        setattr(self, method, wait)

    def read(self, n: int) -> bytes:
        return b""

    def close(self) -> None: ...


SIGN_IN = [b"USER alice", b"PASS secret"]
CERTIFICATE = {"subject": ()}
BANNER = "<1.2@localhost>"

# For each method the lines that lead to its call; the greeting and the end of the session come by themselves.
CALLS: dict[str, list[bytes]] = {
    "set_banner": [],
    "authenticate_pass": SIGN_IN,
    "authenticate_apop": [b"APOP alice " + b"0" * 32],
    "authenticate_token": [b"AUTH XOAUTH2 " + b64encode(b"user=alice\x01auth=Bearer x\x01\x01")],
    "authenticate_certificate": [b"AUTH EXTERNAL ="],
    "get_scram_credentials": [b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=alice,r=x")],
    "get_mechanisms": [b"CAPA"],
    "authorize": [b"AUTH PLAIN " + b64encode(b"bob\0alice\0secret")],
    "lock_maildrop": SIGN_IN,
    "list_messages": SIGN_IN,
    "get_message_count": SIGN_IN,
    "get_message_size": SIGN_IN,
    "get_message_id": [*SIGN_IN, b"UIDL"],
    "get_message_reader": [*SIGN_IN, b"RETR 1"],
    "get_top_reader": [*SIGN_IN, b"TOP 1 1"],
    "delete_messages": [*SIGN_IN, b"DELE 1", b"QUIT"],
    "unlock_maildrop": SIGN_IN,
    "enable_utf8": [b"UTF8"],
    "get_languages": [b"LANG"],
    "set_language": [b"LANG *"],
    "get_login_delay": [b"CAPA"],
    "get_expire": [*SIGN_IN, b"CAPA"],
    "command_finished": [b"QUIT"],
    "session_finished": [],
    "close": [],
}


@contextlib.contextmanager
def nothing_unawaited() -> Iterator[None]:
    """See that no coroutine was left to the garbage collector: Python would print that it was never awaited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


class TestCoroutines:
    """An ``async def`` has done nothing yet: each is closed and reported, and Python prints nothing (promise 6)."""

    def test_all_are_tested(self) -> None:
        """The methods are those of the handler and of all abilities."""
        assert {*CALLS, "handle_session_error"} == {*METHODS, *(name for names in ABILITIES.values() for name in names)}

    @pytest.mark.parametrize("method", CALLS)
    def test_method(self, method: str) -> None:
        """Of any method of a handler."""
        kind = MemoryHandler if method.startswith("get_message_") else CompleteHandler
        handler = kind(Mail(b"a\r\n", b"b\r\n"))
        setattr(handler, method, wait)
        with nothing_unawaited():
            if method in ("command_finished", "session_finished"):
                with Served(handler).client() as client:
                    client.line()
                    client.ask(b"QUIT")
                    assert handler.closed.wait(10)  # type: ignore[attr-defined]
            else:
                session = make_session(handler, banner=BANNER, certificate=CERTIFICATE)
                replies = [session.greet(), *map(session.respond, CALLS[method])]
                if method not in ("unlock_maildrop", "close"):
                    assert replies[-1].head() == BROKEN
                session.close()
        assert [type(error) for error in handler.mail.errors] == [HandlerError]
        assert (
            "coroutine" in str(handler.mail.errors[0])
            or method in ("get_message_count", "get_message_size")
            or (method in ("get_message_id", "get_login_delay", "get_expire"))
        )

    def test_handle_session_error(self) -> None:
        """That of handle_session_error is only closed: nobody is left to be told."""
        handler = MemoryHandler(Mail())
        handler.handle_session_error = wait  # type: ignore[method-assign,assignment]
        handler.get_message_reader = wait  # type: ignore[method-assign,assignment]
        with nothing_unawaited():
            session = make_session(handler, max_bad_commands=1)
            session.respond(b"XYZZY")
            session.close()
        assert handler.mail.calls == []

    @pytest.mark.parametrize("line", [b"RETR 1", b"TOP 1 0"])
    @pytest.mark.parametrize("method", ["read", "close"])
    def test_reader(self, method: str, line: bytes) -> None:
        """Of a reader's two methods."""
        handler = MemoryHandler(Mail(b""))
        handler.get_message_reader = lambda number: AsyncReader(method)  # type: ignore[method-assign,assignment]
        with nothing_unawaited():
            session = make_session(handler)
            reply = [*map(session.respond, [*SIGN_IN, line])][-1]
            if reply.message is not None:
                with contextlib.closing(reply.message) as chunks:
                    assert b"".join(encode_message(chunks)) == b".\r\n"
            assert (reply.head() == BROKEN) is (method == "read")
            del reply
            session.close()
        assert [type(error) for error in handler.mail.errors] == [HandlerError]
        assert "coroutine" in str(handler.mail.errors[0])

    @pytest.mark.parametrize("result", [0, 256, "text", object()])
    def test_what_a_close_returns(self, result: object) -> None:
        """Anything else that a close returns is nobody's business: that of os.popen's files returns a number."""
        handler = ClosingHandler(Mail(b""))
        reader = AsyncReader("nothing")
        reader.close = handler.close = lambda: result  # type: ignore[method-assign,assignment,return-value]
        handler.get_message_reader = lambda number: reader  # type: ignore[method-assign,assignment]
        session = make_session(handler)
        reply = [*map(session.respond, [*SIGN_IN, b"RETR 1"])][-1]
        assert reply == ok("0 octets", b"")
        session.close()
        assert not handler.mail.errors

    @pytest.mark.parametrize("entries", [
        lambda: [(wait(), "a")], lambda: [wait(), wait()], lambda: [(1, "a"), (wait(), "b"), (wait(), "c")],
        lambda: [(1, "a"), (1, wait())],
    ])  # fmt: skip
    def test_in_a_listing(self, entries: Callable[[], Any]) -> None:
        """In the place of an entry, a size or an id."""
        handler = MemoryHandler(Mail())
        handler.list_messages = entries  # type: ignore[attr-defined]
        with nothing_unawaited():
            session = make_session(handler)
            assert [*map(session.respond, SIGN_IN)][-1].head() == BROKEN
            session.close()
        assert [type(error) for error in handler.mail.errors] == [HandlerError]

    def test_factory(self) -> None:
        """Of on_new_connection: the client is turned away, and the server's handle_error is told."""
        with nothing_unawaited():
            served = Served(lambda: wait())
            with served.client() as client:
                assert client.rest() == INTERNAL
        assert [type(error) for error in served.errors] == [HandlerError]
        assert str(served.errors[0]) == "on_new_connection returned coroutine, not a handler"

    def test_async_generators(self) -> None:
        """An async generator is a result of the wrong kind as any; Python does not mind that it never ran."""

        async def generate(*arguments: object) -> Any:
            yield 1, "a"

        for method in ("list_messages", "lock_maildrop", "authenticate_pass"):
            handler = CompleteHandler(Mail(b"a\r\n"))
            setattr(handler, method, generate)
            with nothing_unawaited():
                session = make_session(handler)
                assert [*map(session.respond, SIGN_IN)][-1].head() == BROKEN
                session.close()
            assert [type(error) for error in handler.mail.errors] == [HandlerError]


@pytest.mark.parametrize("result", [True, 7, "text", object(), MemoryHandler])
def test_factory_that_returns_no_handler(result: object) -> None:
    """What cannot be told of errors is no handler: the client is turned away, and the server's handle_error is told."""
    served = Served(lambda: result)
    with served.client() as client:
        assert client.rest() == INTERNAL
    assert [type(error) for error in served.errors] == [HandlerError]


class FailingSocket(socket.socket):
    """A socket that is closed by its close, and then fails."""

    __slots__ = ()

    def close(self) -> None:
        super().close()
        raise OSError(5, "Input/output error")


def test_socket_that_fails_to_close() -> None:
    """An OSError when a socket is closed is nobody's business, and is printed nowhere; the thread ends as ever."""

    class Failing(Server):
        def get_request(self) -> Any:
            request, address = super().get_request()
            request.__class__ = FailingSocket
            return request, address

    handlers: list[ClosingHandler] = []

    def make_handler(peer: object) -> popart.Handler:
        handlers.append(ClosingHandler(Mail()))
        return handlers[-1]

    with running(Failing(("127.0.0.1", 0), make_handler)) as server:
        for _ in range(2):
            with connected(server) as client:
                assert client.line().startswith(b"+OK") and client.ask(b"QUIT").startswith(b"+OK")
                assert client.rest() == b""
    assert [handler.mail.calls for handler in handlers] == [[("close",)]] * 2


class Choosing:
    """Delegates to one handler before sign-in, and to another after it."""

    def __init__(self, before: MemoryHandler, after: MemoryHandler) -> None:
        self.inner = before
        self._after = after

    def authenticate_pass(self, username: str, password: str) -> None:
        self.inner = self._after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_handler_that_delegates_to_another_after_sign_in() -> None:
    """The messages are those of the user's handler, and the abilities stay as they were announced."""

    class Other(MemoryHandler):
        def enable_utf8(self) -> None: ...

        def get_languages(self) -> dict[str, str]:
            return {"en": "English"}

        def set_language(self, tag: str) -> None: ...

        def get_message_id(self, number: int) -> str:
            return f"other-{number}"

    session = make_session(Choosing(MemoryHandler(Mail()), Other(Mail(b"a\r\n"))))  # type: ignore[arg-type]
    session.respond(b"USER alice")
    session.respond(b"PASS secret")
    assert session.respond(b"UIDL 1").head() == b"+OK 1 other-1\r\n"
    assert b"\r\nLANG\r\n" not in session.respond(b"CAPA").head()
    assert session.respond(b"LANG *").head().startswith(b"-ERR")
