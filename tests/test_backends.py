"""Backends that fail: every call into the application x every kind of failure, over real sockets.

The table is computed.  `PLACES` says where popart calls the application and what a client sends to get there, `ERRORS`
and each place's `wrong` values say how that call fails, and three short functions are the rules of what follows:
`expected_answer`, `session_goes_on` and `expected_reports`.
"""

from __future__ import annotations

import enum
import functools
import io
import itertools
import re
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import popart
from tests.conftest import PATIENCE, Client, ClosingHandler, Mail, connected, running, signed_in, wait_until

MESSAGES = (b"Subject: 1\r\n\r\n.one\r\ntwo\r\nthree\r\n", b"Subject: 2\r\n\r\nanother\r\n")
ON_THE_WIRE = (b"Subject: 1\r\n\r\n..one\r\ntwo\r\nthree\r\n.\r\n", b"Subject: 2\r\n\r\nanother\r\n.\r\n")

HIDDEN = "hidden-text"
"""Stands in all that the client must not see."""

TEMPORARY = b"-ERR [SYS/TEMP] internal error, please try again later\r\n"
PERMANENT = b"-ERR [SYS/PERM] the mailbox is broken, please tell its administrator\r\n"


class When(enum.Enum):
    """The moment of a call decides what its failure does."""

    CONNECT = enum.auto()  # there is no handler yet
    GREETING = enum.auto()
    SIGN_IN = enum.auto()
    COMMAND = enum.auto()  # before the first octet of the reply
    MESSAGE = enum.auto()  # after +OK
    AFTERWARDS = enum.auto()  # the client has its reply already


@dataclass(frozen=True)
class Place:
    """A call from popart into the application."""

    name: str
    when: When
    commands: tuple[bytes, ...] = ()
    """What the client sends; the call is made while the last one is answered."""
    wrong: tuple[Any, ...] = ()
    """Results that the call must not have."""
    code: bytes | None = None
    """The response code of a ReportableError that has none of its own."""
    call: int = 1
    """Which call of the method fails.  All others work."""
    listing: bool = False
    """Whether the handler satisfies SupportsListing."""

    @property
    def method(self) -> str:
        return self.name.partition(",")[0]


USER, PASS = b"USER alice", b"PASS secret"
NOT_NONE = (False, HIDDEN)
NOT_A_SIZE = (None, HIDDEN, 1.5, -1, 2**63, 10**30)
NOT_A_READER = (None, HIDDEN, HIDDEN.encode(), 7)
NOT_OCTETS = (None, HIDDEN, 7, bytearray(HIDDEN.encode()))
NOT_AN_ID = (None, 7, HIDDEN.encode(), "", "hidden text", "x" * 71, "hidden-\u00e9", "hidden\r\n+OK")

PLACES = [
    Place("on_new_connection", When.CONNECT, wrong=(HIDDEN, 7, False, object)),
    Place("set_banner", When.GREETING, wrong=NOT_NONE),
    Place("authenticate_pass", When.SIGN_IN, (USER, PASS), NOT_NONE, b"AUTH"),
    Place("authenticate_apop", When.SIGN_IN, (b"APOP alice " + b"0" * 32,), NOT_NONE, b"AUTH"),
    Place("lock_maildrop", When.SIGN_IN, (USER, PASS), NOT_NONE, b"IN-USE"),
    Place("get_message_count", When.SIGN_IN, (USER, PASS), (*NOT_A_SIZE, 10**9)),
    Place("get_message_size", When.SIGN_IN, (USER, PASS), NOT_A_SIZE),
    Place("get_message_size, second", When.SIGN_IN, (USER, PASS), NOT_A_SIZE, call=2),
    Place(
        "list_messages",
        When.SIGN_IN,
        (USER, PASS),
        (None, 7, [None], [7], ["ab"], [(1,)], [(1, "a", HIDDEN)], itertools.repeat((1, "a"))),
        listing=True,
    ),
    Place(
        "list_entry, midway",
        When.SIGN_IN,
        (USER, PASS),
        (None, 7, HIDDEN, (1,), *((size, "a") for size in NOT_A_SIZE)),
        call=2,
        listing=True,
    ),
    Place("get_message_id", When.COMMAND, (USER, PASS, b"UIDL"), (*NOT_AN_ID, "id-2")),
    Place("get_message_id, of one", When.COMMAND, (USER, PASS, b"UIDL 2"), NOT_AN_ID),
    Place("get_message_reader", When.COMMAND, (USER, PASS, b"RETR 1"), NOT_A_READER),
    Place("get_message_reader, for TOP", When.COMMAND, (USER, PASS, b"TOP 1 9"), NOT_A_READER),
    Place("get_top_reader", When.COMMAND, (USER, PASS, b"TOP 1 9"), NOT_A_READER),
    Place("read", When.COMMAND, (USER, PASS, b"RETR 1"), NOT_OCTETS),
    Place("read, of the rest of a short message", When.COMMAND, (USER, PASS, b"RETR 1"), NOT_OCTETS, call=2),
    Place("read, midway", When.MESSAGE, (USER, PASS, b"RETR 1"), NOT_OCTETS, call=3),
    Place("read, midway in TOP", When.MESSAGE, (USER, PASS, b"TOP 1 9"), NOT_OCTETS, call=3),
    Place("close_reader", When.AFTERWARDS, (USER, PASS, b"RETR 1"), NOT_NONE),
    Place("close_reader, of TOP", When.AFTERWARDS, (USER, PASS, b"TOP 1 9"), NOT_NONE),
    Place("delete_messages", When.COMMAND, (USER, PASS, b"DELE 1", b"QUIT"), NOT_NONE),
    Place("unlock_maildrop", When.COMMAND, (USER, PASS, b"QUIT"), NOT_NONE),
    Place("unlock_maildrop, after a deletion", When.COMMAND, (USER, PASS, b"DELE 1", b"QUIT"), NOT_NONE),
    Place("close", When.AFTERWARDS, (USER, PASS, b"QUIT"), NOT_NONE),
    Place("close, signed out", When.AFTERWARDS, (b"QUIT",), NOT_NONE),
]

# A listing's ids are looked at when the first one is needed.
BAD_ID = Place(
    "list_messages, bad id",
    When.COMMAND,
    (USER, PASS, b"UIDL 1"),
    tuple([(1, "a"), (1, identifier)] for identifier in (*NOT_AN_ID, "a")),
    listing=True,
)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise AssertionError("nobody needs the text of a handler's exception")


# Made anew for each row, as an exception that was raised keeps its traceback.
ERRORS: dict[str, Callable[[], BaseException]] = {
    "ReportableError": lambda: popart.ReportableError("shown\r\n+OK by mistake"),
    "ReportableError with a code": lambda: popart.ReportableError("shown", code="SYS/PERM"),
    "LookupError": lambda: LookupError(HIDDEN),
    "TypeError": lambda: TypeError(HIDDEN),
    "AttributeError": lambda: AttributeError(HIDDEN),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", HIDDEN.encode(), 0, 1, HIDDEN),
    "StopIteration": lambda: StopIteration(HIDDEN),
    "MemoryError": lambda: MemoryError(HIDDEN),
    "OSError": lambda: OSError(5, HIDDEN),
    "TimeoutError": lambda: TimeoutError(HIDDEN),
    "BrokenPipeError": lambda: BrokenPipeError(32, HIDDEN),
    "ConnectionResetError": lambda: ConnectionResetError(104, HIDDEN),
    "SSLError": lambda: ssl.SSLWantReadError(2, HIDDEN),
    "ClientGoneError": lambda: popart.ClientGoneError(HIDDEN),
    "ClientTimeoutError": lambda: popart.ClientTimeoutError(HIDDEN),
    "Unprintable": lambda: Unprintable(HIDDEN),
    "SystemExit": lambda: SystemExit(HIDDEN),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(HIDDEN),
    "GeneratorExit": lambda: GeneratorExit(HIDDEN),
}


@dataclass(frozen=True)
class Wrong:
    """The failure of a call that returns, but not what it should."""

    value: Any


Failure = BaseException | Wrong


def expected_answer(place: Place, failure: Failure) -> bytes:
    """A ReportableError is shown; whatever else is raised, or returned, is hidden behind one of two fixed texts.  That
    of wrong results is the handlers': a factory that returns no handler has merely failed.
    """
    if place.when in (When.MESSAGE, When.AFTERWARDS):
        return b"+OK"
    if isinstance(failure, popart.ReportableError):
        code = failure.code.encode() if failure.code else place.code
        return b"-ERR [%s] shown" % code if code else b"-ERR shown"
    return PERMANENT if isinstance(failure, Wrong) and place.when is not When.CONNECT else TEMPORARY


def session_goes_on(place: Place, failure: Failure) -> bool:
    """A failed command is only that, unless it is QUIT.  A failure in what comes before any command, in signing in
    (but for a refusal), or within a message ends the session.
    """
    if place.when in (When.COMMAND, When.AFTERWARDS):
        return place.commands[-1] != b"QUIT"
    return place.when is When.SIGN_IN and isinstance(failure, popart.ReportableError)


def expected_reports(place: Place, failure: Failure) -> list[BaseException | type[BaseException]]:
    """Each failure is told once: a ReportableError to the client while there is a reply to hold it, all else to
    handle_session_error (the server's handle_error, where there is no handler) as the very object that was raised.
    What a close returns is nobody's business: that of os.popen's files returns a number.
    """
    if isinstance(failure, Wrong):
        if place.when is When.AFTERWARDS:
            return []
        return [Exception if place.when is When.CONNECT else popart.HandlerError]
    answered = place.when not in (When.MESSAGE, When.AFTERWARDS)
    return [] if answered and isinstance(failure, popart.ReportableError) else [failure]


def rows() -> Iterator[Any]:
    for place in PLACES:
        for name, make in ERRORS.items():
            # An iterator that raises StopIteration has not failed, it has ended.
            if (place.method, name) != ("list_entry", "StopIteration"):
                yield pytest.param(place, make, id=f"{place.name}-raises-{name}")
    for place in [*PLACES, BAD_ID]:
        for value in place.wrong:
            yield pytest.param(place, functools.partial(Wrong, value), id=f"{place.name}-returns-{value!r:.40}")


class Fault:
    """Makes one call of one method fail."""

    def __init__(self, place: Place, fail: Callable[[], Any]) -> None:
        self.place = place
        self._fail = fail
        self._calls = 0

    def into(self, thing: Any) -> Any:
        """Make *thing*'s method fail, if it has the one that is to."""
        real = getattr(thing, self.place.method, None)
        if real is not None:
            setattr(thing, self.place.method, self._faulty(real))
        return thing

    def _faulty(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def method(*arguments: Any) -> Any:
            self._calls += 1
            return self._fail_after(real, arguments) if self._calls == self.place.call else real(*arguments)

        return method

    def _fail_after(self, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        failure = self._fail()
        if isinstance(failure, BaseException):
            if self.place.method == "unlock_maildrop":
                real(*arguments)  # recorded in any case, as popart may try it only once
            raise failure
        result = real(*arguments)
        return failure.value if isinstance(failure, Wrong) else result


class LineByLine:
    """A reader that returns short reads, so that a message has a midway."""

    def __init__(self, message: bytes) -> None:
        self._file = io.BytesIO(message)

    def read(self, n: int) -> bytes:
        return self._file.readline(n)

    def close_reader(self) -> None:
        self._file.close()

    def close(self) -> None:
        self.close_reader()


class FaultyHandler(ClosingHandler):
    """Its methods work, and so do those of its readers, but for those with a fault and for handle_session_error."""

    def __init__(self, mail: Mail, fault: Fault) -> None:
        super().__init__(mail)
        self.fault = fault
        fault.into(self)

    def handle_session_error(self, error: BaseException) -> None:
        super().handle_session_error(error)
        raise KeyboardInterrupt(HIDDEN)  # so that each row shows that this changes nothing

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return self.fault.into(LineByLine(self.mail.messages[number - 1]))


class ListingHandler(FaultyHandler):
    def list_messages(self) -> Iterator[tuple[int, str]]:
        return map(self.list_entry, range(1, len(self.mail.messages) + 1))

    def list_entry(self, number: int) -> tuple[int, str]:
        return len(self.mail.messages[number - 1]), f"id-{number}"


class TopHandler(FaultyHandler):
    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        return self.get_message_reader(number)


class Application:
    """A factory and its server, with two maildrops: one whose handler is made with the fault, and the neighbour's."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.mail = Mail(*MESSAGES)
        self.neighbours_mail = Mail(*MESSAGES)
        self.next_handler = self.make_neighbour
        self.server_errors: list[BaseException | None] = []
        application = self

        class WatchedServer(popart.Server):
            def handle_error(self, request: Any, client_address: Any) -> None:
                application.server_errors.append(sys.exc_info()[1])

        # The attribute is looked up at each connection, the tests change it in between.
        self.server = WatchedServer(("127.0.0.1", 0), lambda peer: self.next_handler(), apop=True)

    def make_neighbour(self) -> popart.Handler:
        return ClosingHandler(self.neighbours_mail)

    def make_healthy(self) -> popart.Handler:
        return ClosingHandler(self.mail)

    def make_faulty(self) -> popart.Handler:
        kind = FaultyHandler
        if self.fault.place.listing:
            kind = ListingHandler
        elif self.fault.place.method == "get_top_reader":
            kind = TopHandler
        return kind(self.mail, self.fault)

    def on_new_connection(self) -> popart.Handler:
        return self.make_faulty()

    def break_down(self) -> None:
        """Give the next connection what has the fault."""
        self.fault.into(self)
        self.next_handler = self.on_new_connection


def read_mail(client: Client, number: int = 1) -> None:
    """See that a session works."""
    assert client.ask(b"RETR %d" % number).startswith(b"+OK")
    assert client.lines() == ON_THE_WIRE[number - 1]


def converse(application: Application, goes_on: bool) -> list[bytes]:
    """Let a client come to the fault and see what is left of its session.  Return what it was told: the greeting,
    a line for each command, the answer's further lines, and what came after all was over.
    """
    place = application.fault.place
    with signed_in(application.server) as neighbour:
        application.break_down()
        with connected(application.server) as client:
            heard = [client.line()]
            heard += [client.ask(command) for command in place.commands]
            if heard[-1].startswith(b"+OK") and place.commands[-1] != b"QUIT":
                heard.append(client.rest_until_reset() if place.when is When.MESSAGE else client.lines())
            read_mail(neighbour)
            if goes_on:
                if place.when is When.SIGN_IN:
                    client.sign_in()
                read_mail(client, 2)
                assert client.ask(b"QUIT").startswith(b"+OK")
            if place.when is not When.MESSAGE:
                heard.append(client.rest())
        wait_until(lambda: not application.mail.locked)
        application.next_handler = application.make_healthy
        with signed_in(application.server) as successor:
            read_mail(successor)
            assert successor.ask(b"QUIT").startswith(b"+OK")
        assert neighbour.ask(b"QUIT").startswith(b"+OK")
    return heard


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused sign-ins are answered at once, and a maildrop without end is noticed soon."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0.0)
    monkeypatch.setattr(popart.Server, "max_messages", 100)


@pytest.mark.parametrize(("place", "make_failure"), list(rows()))
def test_failure(place: Place, make_failure: Callable[[], Failure]) -> None:
    """Whatever a backend does, the client reads one proper answer and nothing of what is hidden, the lock is
    released, the failure is told once, and neither another session nor the next one on the same maildrop notices
    (promises 1, 3, 4, 5 and 6).
    """
    failure = make_failure()
    application = Application(Fault(place, lambda: failure))
    with running(application.server):
        heard = converse(application, session_goes_on(place, failure))

    answer = heard[len(place.commands)]
    assert answer.startswith(expected_answer(place, failure))
    assert all(re.fullmatch(rb"(\+OK|-ERR) [ -~]*\r\n", line) for line in heard[: len(place.commands) + 1])
    assert b"hidden" not in b"".join(heard)
    assert heard[-1] == b"" or place.when is When.MESSAGE
    if place.when is When.MESSAGE:
        assert ON_THE_WIRE[0].startswith(heard[-1]) and heard[-1] != ON_THE_WIRE[0]
    if place.when is When.AFTERWARDS and place.commands[-1] != b"QUIT":
        assert heard[-2] == ON_THE_WIRE[0]

    mail = application.mail
    assert mail.count("unlock_maildrop") == mail.count("lock_maildrop")
    if place.when is When.CONNECT:  # nobody but the server can be told
        told, told_others = application.server_errors, mail.errors
    else:
        told, told_others = mail.errors, application.server_errors
    for error, expected in zip(told, expected_reports(place, failure), strict=True):
        assert isinstance(error, expected) if isinstance(expected, type) else error is expected
    assert told_others == application.neighbours_mail.errors == []


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_slow_backend(place: Place) -> None:
    """A call that does not return holds up its own client and nobody else (promise 4)."""
    called, released = threading.Event(), threading.Event()
    in_time = []

    def hang() -> None:
        called.set()
        in_time.append(released.wait(PATIENCE))

    application = Application(Fault(place, hang))
    with running(application.server):
        application.break_down()
        with connected(application.server) as client:
            try:
                if place.commands:
                    assert client.line().startswith(b"+OK")
                    for command in place.commands[:-1]:
                        assert client.ask(command).startswith(b"+OK")
                    client.send(place.commands[-1] + b"\r\n")
                assert called.wait(PATIENCE)
                application.next_handler = application.make_neighbour
                with signed_in(application.server) as neighbour:
                    read_mail(neighbour)
                    assert neighbour.ask(b"QUIT").startswith(b"+OK")
            finally:
                released.set()
            assert client.line().startswith(b"+OK")
    assert in_time == [True]


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "StopIteration"])
@pytest.mark.parametrize("method", ["unlock_maildrop", "close"])
def test_failure_after_the_client_left(method: str, name: str) -> None:
    """With nobody left to read it, a ReportableError too is given to handle_session_error; the rest is done as ever."""
    failure = ERRORS[name]()
    application = Application(Fault(Place(method, When.AFTERWARDS), lambda: failure))
    with running(application.server):
        application.break_down()
        with signed_in(application.server) as client:
            assert client.ask(b"DELE 1").startswith(b"+OK")
        mail = application.mail
        wait_until(lambda: len(mail.errors) == 2)
    assert [type(error) for error in mail.errors] == [popart.ClientGoneError, type(failure)]
    assert mail.errors[1] is failure
    assert mail.count("unlock_maildrop") == 1
    assert mail.count("delete_messages") == 0


def test_failure_within_a_failure() -> None:
    """When the deletion fails and the unlocking after it too, both are told, and the lock is not released twice."""
    failures = LookupError(HIDDEN), OSError(5, HIDDEN)
    faults = iter(failures)
    application = Application(Fault(Place("delete_messages", When.COMMAND), lambda: next(faults)))
    unlock = Fault(Place("unlock_maildrop", When.COMMAND), lambda: next(faults))
    application.next_handler = lambda: unlock.into(application.make_faulty())
    with running(application.server), signed_in(application.server) as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert client.ask(b"QUIT") == TEMPORARY
        assert client.rest() == b""
    assert sorted(application.mail.errors, key=failures.index) == list(failures)
    assert application.mail.count("unlock_maildrop") == 1


def test_factory_without_a_handler() -> None:
    """A factory that returns None turns the client away with one line; that is no error."""
    application = Application(Fault(PLACES[0], lambda: Wrong(None)))
    with running(application.server):
        application.break_down()
        with connected(application.server) as client:
            assert re.fullmatch(rb"-ERR [ -~]+\r\n", client.rest())
    assert application.server_errors == []
