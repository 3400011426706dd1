"""`popart.BaseHandler`: what it does for a handler that lists its maildrop at once."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

import popart
from tests.conftest import Client, Mail, MemoryHandler, connected, running, signed_in

LEFT = [
    "lock_maildrop",
    "list_messages",
    "get_message_reader",
    "delete_messages",
    "unlock_maildrop",
    "handle_session_error",
]


class TokenMail(popart.BaseHandler, popart.SupportsTokens):
    """Serves a `Mail` to whoever comes with a token, and has no method that could be left out."""

    def __init__(self, mail: Mail) -> None:
        self.mail = mail

    def authenticate_token(self, username: str, token: str) -> None: ...

    def lock_maildrop(self) -> None:
        if self.mail.locked:
            raise popart.ReportableError("another session has the maildrop")

    def list_messages(self) -> Iterable[tuple[int, str]]:
        self.mail.calls.append(("list_messages",))
        for number, octets in enumerate(self.mail.messages, 1):
            yield len(octets), f"id-{number}"

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(self.mail.messages[number - 1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self.mail.calls.append(("delete_messages", list(numbers)))

    def unlock_maildrop(self) -> None: ...

    def handle_session_error(self, error: BaseException) -> None:
        self.mail.errors.append(error)


class Passwords:
    """A mixin, which knows nothing of `BaseHandler`."""

    def authenticate_pass(self, username: str, password: str) -> None:
        if password != "secret":
            raise popart.ReportableError("wrong name or password")


class PasswordMail(Passwords, TokenMail):
    """Takes passwords, too."""


class Wrapper:
    """Has whatever another handler has, but for what it *hides*."""

    def __init__(self, handler: popart.Handler, *hides: str) -> None:
        self._handler = handler
        self._hides = hides

    def __getattr__(self, name: str) -> Any:
        if name in self._hides:
            raise AttributeError(name)
        return getattr(self._handler, name)


class OneTry(popart.Server):
    """Ends a session at its first failed sign-in."""

    max_failed_logins = 1


def serve(handler: Any, kind: type[popart.Server] = popart.Server, **options: Any) -> Any:
    """Serve one handler, in a thread."""
    return running(kind(("127.0.0.1", 0), lambda peer: handler, **options))


def greeted(client: Client) -> Client:
    assert client.line().startswith(b"+OK")
    return client


# What is left to write.


@pytest.mark.parametrize("forgotten", LEFT)
def test_what_a_person_must_think_about_is_abstract(forgotten: str) -> None:
    """A subclass without a lock, a listing, a reader, a deletion or an ear for errors cannot be built."""
    methods = {name: getattr(TokenMail, name) for name in LEFT if name != forgotten}
    with pytest.raises(TypeError, match=forgotten):
        type("Forgetful", (popart.BaseHandler,), methods)()


def test_nothing_else_is_abstract() -> None:
    """Six methods are all that a subclass must have, and it is a handler that lists."""
    handler = type("Complete", (popart.BaseHandler,), {name: getattr(TokenMail, name) for name in LEFT})()
    assert isinstance(handler, popart.SupportsListing)
    assert popart.Handler in type(handler).__mro__


def test_a_session() -> None:
    """With passwords a BaseHandler serves as any handler does, and is asked for its listing once."""
    mail = Mail(b"Subject: x\r\n\r\nhello\r\n", b"a\r\n")
    with serve(PasswordMail(mail)) as server, signed_in(server) as client:
        assert client.ask(b"STAT") == b"+OK 2 24\r\n"
        assert client.ask(b"UIDL 2") == b"+OK 2 id-2\r\n"
        assert client.ask(b"RETR 2") == b"+OK 3 octets\r\n" and client.lines() == b"a\r\n.\r\n"
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert client.ask(b"QUIT") == b"+OK goodbye\r\n"
        assert client.rest() == b""
    assert mail.calls == [("list_messages",), ("delete_messages", [1])] and not mail.errors


# Passwords.


def with_attribute(name: str, value: object) -> popart.BaseHandler:
    handler = TokenMail(Mail())
    setattr(handler, name, value)
    return handler


def make(name: str, *bases: type, **attributes: object) -> Any:
    return type(name, bases, attributes)(Mail())


@pytest.mark.parametrize(
    ("handler", "taken"),
    [
        (TokenMail(Mail()), False),
        (make("Grandchild", TokenMail), False),
        (make("Child", TokenMail, authenticate_pass=Passwords.authenticate_pass), True),
        (make("Static", TokenMail, authenticate_pass=staticmethod(lambda username, password: None)), True),
        (PasswordMail(Mail()), True),
        (make("Grandchild", PasswordMail), True),
        (make("MixinBehind", TokenMail, Passwords), False),
        (with_attribute("authenticate_pass", lambda username, password: None), True),
        (with_attribute("authenticate_pass", TokenMail(Mail()).authenticate_pass), False),
        (Wrapper(TokenMail(Mail())), False),
        (Wrapper(PasswordMail(Mail())), True),
        (Wrapper(with_attribute("authenticate_pass", print)), True),
    ],
)
def test_passwords_are_taken_if_there_is_a_method_for_them(handler: Any, taken: bool) -> None:
    """``allow_passwords`` is true exactly if ``authenticate_pass`` is overridden, however that is done."""
    assert handler.allow_passwords is taken


@pytest.mark.parametrize(
    ("handler", "taken"),
    [
        (make("Child", PasswordMail, allow_passwords=False), False),
        (make("Grandchild", type("Child", (TokenMail,), {"allow_passwords": False}), authenticate_pass=print), False),
        (make("Child", TokenMail, allow_passwords=True), True),
        (make("Child", PasswordMail, allow_passwords=property(lambda handler: False)), False),
        (with_attribute("allow_passwords", True), True),
    ],
)
def test_a_value_of_ones_own_holds(handler: Any, taken: bool) -> None:
    """``allow_passwords`` is what a subclass, or one handler, sets it to."""
    assert handler.allow_passwords is taken


def test_the_class_says_so_too() -> None:
    """``allow_passwords`` can be asked of a class."""
    assert (popart.BaseHandler.allow_passwords, PasswordMail.allow_passwords) == (False, True)


def test_a_handler_of_tokens_only() -> None:
    """It has no stub to write: USER, PASS and PLAIN are neither announced nor taken, and its tokens are."""
    mail = Mail(b"a\r\n")
    with serve(TokenMail(mail)) as server, connected(server) as client:
        greeted(client).send(b"CAPA\r\n")
        capabilities = client.lines().splitlines()
        assert b"SASL OAUTHBEARER XOAUTH2" in capabilities and b"USER" not in capabilities
        for line in (b"USER alice", b"PASS secret", b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="):
            assert client.ask(line) == b"-ERR passwords are not taken here\r\n"
        token = b64encode(b"user=alice\x01auth=Bearer x\x01\x01")
        assert client.ask(b"AUTH XOAUTH2 " + token) == b"+OK maildrop has 1 message (3 octets)\r\n"
    assert not any(isinstance(error, popart.HandlerError) for error in mail.errors)


def test_a_password_that_the_subclass_does_not_know() -> None:
    """``super().authenticate_pass`` refuses."""

    class AskTheNext(TokenMail):
        def authenticate_pass(self, username: str, password: str) -> None:
            super().authenticate_pass(username, password)

    with serve(AskTheNext(Mail())) as server, connected(server) as client:
        assert greeted(client).ask(b"USER alice").startswith(b"+OK")
        assert client.ask(b"PASS secret") == b"-ERR [AUTH] passwords are not taken here\r\n"


# APOP.

APOP = b"APOP alice " + b"0" * 32


def test_the_banner_is_kept() -> None:
    """``banner`` is what the greeting holds, with its angle brackets, though ``__init__`` has not been called."""
    handler = PasswordMail(Mail())
    assert handler.banner == ""
    with serve(handler, apop=True) as server, connected(server) as client:
        assert client.line() == f"+OK POP3 server ready {handler.banner}\r\n".encode()
        assert handler.banner[0] == "<"
    assert PasswordMail(Mail()).banner == ""


def test_apop_that_is_offered_by_oversight() -> None:
    """The client reads a refusal that blames no password, and may sign in otherwise; the handler is told once."""
    mail = Mail()
    with serve(PasswordMail(mail), OneTry, apop=True) as server, connected(server) as client:
        greeted(client)
        assert [client.ask(APOP) for _ in range(3)] == [b"-ERR [SYS/PERM] APOP is not taken here\r\n"] * 3
        client.sign_in()
        (error,) = mail.errors
        assert isinstance(error, popart.HandlerError) and "PasswordMail.authenticate_apop" in str(error)
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
    assert mail.errors == [error]


def test_each_handler_is_told() -> None:
    """Once for each handler: the next connection's is told as well."""
    mail = Mail()
    server = popart.Server(("127.0.0.1", 0), lambda peer: PasswordMail(mail), apop=True)
    with running(server):
        for _ in range(2):
            with connected(server) as client:
                assert greeted(client).ask(APOP).startswith(b"-ERR")
                assert client.ask(b"QUIT").startswith(b"+OK")
    assert [type(error) for error in mail.errors] == [popart.HandlerError] * 2


def test_a_handler_that_cannot_be_told() -> None:
    """What ``handle_session_error`` raises is dropped: the client reads the same."""

    class Deaf(PasswordMail):
        def handle_session_error(self, error: BaseException) -> None:
            super().handle_session_error(error)
            raise OSError("no log")

    mail = Mail()
    with serve(Deaf(mail), apop=True) as server, connected(server) as client:
        assert greeted(client).ask(APOP) == b"-ERR [SYS/PERM] APOP is not taken here\r\n"
        assert len(mail.errors) == 1


def test_apop_that_is_not_offered() -> None:
    """Without ``apop=True`` nothing has been overlooked: APOP is refused, and nobody is told."""
    mail = Mail()
    handler = PasswordMail(mail)
    with serve(handler) as server, connected(server) as client:
        assert greeted(client).ask(APOP) == b"-ERR APOP is not offered here\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
    with pytest.raises(popart.ReportableError):
        handler.authenticate_apop("alice", "0" * 32)
    assert not mail.errors


def test_apop_of_ones_own() -> None:
    """A subclass that overrides ``authenticate_apop`` finds the banner, and nothing is refused or told."""

    class ApopMail(TokenMail):
        def authenticate_apop(self, username: str, hexdigest: str) -> None:
            if hexdigest != popart.apop_digest(self.banner, "secret"):
                raise popart.ReportableError("wrong name or password")

    mail = Mail()
    with serve(ApopMail(mail), apop=True) as server, connected(server) as client:
        banner = client.line().decode().split()[-1]
        assert client.ask(b"USER alice") == b"-ERR passwords are not taken here\r\n"
        digest = popart.apop_digest(banner, "secret").encode()
        assert client.ask(b"APOP alice " + digest).startswith(b"+OK maildrop")
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
    assert not mail.errors


# The count, the sizes and the ids.

ASK: list[Callable[[popart.Handler], object]] = [
    lambda handler: handler.get_message_size(2),
    lambda handler: handler.get_message_id(2),
    lambda handler: handler.get_message_size(1),
    lambda handler: handler.get_message_id(1),
]


@pytest.mark.parametrize("first", [[], [lambda handler: handler.get_message_count()]], ids=["no count", "count"])
def test_one_listing_for_all(first: list[Callable[[popart.Handler], object]]) -> None:
    """Sizes and ids come from one listing, a generator too, and the count before them is of that listing."""
    mail = Mail(b"a\r\n", b"four\r\n")
    handler = TokenMail(mail)
    assert [ask(handler) for ask in first] == [2 for _ in first]
    assert [ask(handler) for ask in ASK] == [6, "id-2", 3, "id-1"]
    assert mail.count("list_messages") == 1


def test_a_listing_that_fails_is_not_kept() -> None:
    """What ``list_messages`` raises comes out, half-way too, and the next call asks anew."""

    class Failing(TokenMail):
        fails = True

        def list_messages(self) -> Iterable[tuple[int, str]]:
            yield 3, "id-1"
            if self.fails:
                raise OSError("the database is away")
            yield 6, "id-2"

    handler = Failing(Mail())
    for ask in ASK:
        with pytest.raises(OSError, match="away"):
            ask(handler)
    handler.fails = False
    assert [ask(handler) for ask in ASK] == [6, "id-2", 3, "id-1"]


def test_behind_a_wrapper_that_does_not_list() -> None:
    """A wrapper without ``list_messages`` is asked for the count, the sizes and the ids: one listing answers all."""
    mail = Mail(b"a\r\n", b"four\r\n")
    with serve(Wrapper(PasswordMail(mail), "list_messages")) as server, signed_in(server) as client:
        assert client.ask(b"STAT") == b"+OK 2 9\r\n"
        assert client.ask(b"LIST 2") == b"+OK 2 6\r\n"
        assert client.ask(b"UIDL 2") == b"+OK 2 id-2\r\n"
        assert client.ask(b"UIDL").startswith(b"+OK")
        assert client.lines() == b"1 id-1\r\n2 id-2\r\n.\r\n"
    assert mail.count("list_messages") == 1


@pytest.mark.parametrize("hidden", [["list_messages"], []], ids=["wrapper without listing", "wrapper"])
def test_each_sign_in_has_its_own_listing(hidden: list[str]) -> None:
    """Who signs in after a locked maildrop sees the mail of now, not what was listed before."""
    mail = Mail(b"a\r\n")
    handler = PasswordMail(mail)
    assert (handler.get_message_count(), handler.get_message_size(1)) == (1, 3)
    with serve(Wrapper(handler, *hidden)) as server, connected(server) as client:
        mail.locked = True
        assert greeted(client).ask(b"USER alice").startswith(b"+OK")
        assert client.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
        mail.locked = False
        mail.messages = [b"four\r\n", b"a\r\n"]
        client.sign_in()
        assert client.ask(b"STAT") == b"+OK 2 9\r\n"
        assert client.ask(b"LIST 1") == b"+OK 1 6\r\n"
    assert mail.count("list_messages") == 2


@pytest.mark.parametrize("wrap", [lambda handler: handler, Wrapper], ids=["itself", "wrapper"])
def test_the_handler_counts_as_its_session_does(wrap: Callable[[popart.Handler], Any]) -> None:
    """In a session the count, the sizes and the ids are those of sign-in, whatever mail has come: numbers are frozen
    (RFC 1939 section 5), and a deletion by them meets what the client marked."""

    class Deleting(PasswordMail):
        def delete_messages(self, numbers: Sequence[int]) -> None:
            self.deleted = [
                (self.get_message_count(), self.get_message_size(n), self.get_message_id(n)) for n in numbers
            ]

    mail = Mail(b"a\r\n", b"four\r\n")
    handler = Deleting(mail)
    with serve(wrap(handler)) as server, signed_in(server) as client:
        mail.messages.insert(0, b"new, and listed first\r\n")
        assert client.ask(b"DELE 2").startswith(b"+OK")
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert handler.deleted == [(2, 6, "id-2")]
    assert mail.count("list_messages") == 1


def test_an_empty_listing_is_kept() -> None:
    """A maildrop that was empty at sign-in stays so for its session, whatever mail comes."""
    mail = Mail()
    handler = PasswordMail(mail)
    with serve(handler) as server, signed_in(server):
        mail.messages.append(b"new\r\n")
        assert handler.get_message_count() == 0
        for ask in ASK:
            with pytest.raises(IndexError):
                ask(handler)
        assert handler.get_message_count() == 0
    assert mail.count("list_messages") == 1


def test_a_wrapper_that_numbers_anew() -> None:
    """A wrapper that lists for itself has numbers of its own, and the handler in it keeps the ones that it knows."""

    class Deleting(PasswordMail):
        def delete_messages(self, numbers: Sequence[int]) -> None:
            self.mail.calls.append(("deleted", [self.get_message_id(number) for number in numbers]))

    class WithoutTheFirst(Wrapper):
        def list_messages(self) -> Iterable[tuple[int, str]]:
            return list(self._handler.list_messages())[1:]  # type: ignore[attr-defined]

        def get_message_reader(self, number: int) -> popart.MessageReader:
            return self._handler.get_message_reader(number + 1)

        def delete_messages(self, numbers: Sequence[int]) -> None:
            self._handler.delete_messages([number + 1 for number in numbers])

    mail = Mail(b"spam\r\n", b"b\r\n", b"c\r\n")
    with serve(WithoutTheFirst(Deleting(mail))) as server, signed_in(server) as client:
        assert client.ask(b"UIDL 1") == b"+OK 1 id-2\r\n"
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert ("deleted", ["id-2"]) in mail.calls


def test_a_method_of_the_same_name() -> None:
    """What popart tells a `BaseHandler` of its listing, it tells no other handler."""

    class Keeping(MemoryHandler, popart.SupportsListing):
        def list_messages(self) -> Iterable[tuple[int, str]]:
            return [(3, "a")]

        def _keep_listing(self) -> None:
            raise AssertionError("it is not popart's to call")

    handler = Keeping(Mail(b"a\r\n"))
    with serve(handler) as server, signed_in(server) as client:
        assert client.ask(b"UIDL 1") == b"+OK 1 a\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert not handler.mail.errors
