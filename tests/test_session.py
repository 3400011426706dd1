"""The protocol without a socket: one line in, one reply out."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

import popart
from popart.errors import BrokenMessageError, HandlerError, LimitError, ReportableError
from popart.session import Session, State

from .conftest import ClosingHandler, Mail, MemoryHandler, make_session

INTERNAL = b"-ERR [SYS/TEMP] internal error, please try again later\r\n"
BROKEN = b"-ERR [SYS/PERM] the mailbox is broken, please tell its administrator\r\n"

BANNER = "<1.2@localhost>"
DIGEST = "c4c9334bac560ecc979e58001b3e22fb"
APOP = b"APOP alice " + DIGEST.encode()
SIGN_IN = [b"USER alice", b"PASS secret"]

LONGEST = 1024
"""Octets of a command line that are taken; AUTH may have more."""

TWO = (b"A: b\r\n\r\none\r\n", b"A: b\r\n\r\nline one\r\n.line two\r\nline three\r\n")  # 13 and 41 octets


def name_of(value: object) -> str:
    return ascii(value)[:24] if isinstance(value, (bytes, str, int, list, tuple)) else type(value).__name__


each = functools.partial(pytest.mark.parametrize, ids=name_of)


def ask(session: Session, *lines: bytes) -> list[bytes]:
    """Give a session some lines and return its replies as they stand on the wire."""
    replies = []
    for line in lines:
        reply = session.respond(line)
        assert re.fullmatch(rb"(\+OK|-ERR) [ -~]*\r\n", reply.status) and len(reply.status) <= 512
        octets = reply.head()
        if reply.message is not None:
            with closing(reply.message) as pieces:
                octets += b"".join(pieces)
        replies.append(octets)
    return replies


def begin(handler: popart.Handler, **options: Any) -> Session:
    """Make a session that has signed in."""
    session = make_session(handler, **options)
    assert [reply[:3] for reply in ask(session, *SIGN_IN)] == [b"+OK"] * 2
    return session


def goes_on(session: Session) -> bool:
    """Tell whether the session takes another command."""
    line = b"NOOP" if session.state is State.TRANSACTION else b"AUTH"
    return not session.over and ask(session, line)[0].startswith(b"+OK")


def is_refusal(reply: bytes) -> bool:
    """Tell whether a reply is one line, and says no."""
    return reply.startswith(b"-ERR ") and reply.index(b"\r\n") == len(reply) - 2


def kinds(errors: list[BaseException]) -> list[type]:
    return [type(error) for error in errors]


def raising(error: BaseException) -> Callable[..., Any]:
    def action(*arguments: object) -> Any:
        raise error

    return action


def returning(value: object) -> Callable[..., Any]:
    return lambda *arguments: value


class Reader:
    """Returns or raises what it was given, one thing a call, then ends."""

    def __init__(self, *results: object, at_close: BaseException | None = None) -> None:
        self.results = list(results)
        self.at_close = at_close
        self.asked: list[int] = []
        self.closed = 0

    def read(self, n: int, /) -> Any:
        self.asked.append(n)
        result = self.results.pop(0) if self.results else b""
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        self.closed += 1
        if self.at_close is not None:
            raise self.at_close


class ListingHandler(MemoryHandler):
    """Knows its whole maildrop at once."""

    def list_messages(self) -> Any:
        self.mail.calls.append(("list_messages",))
        return [(13, "first"), (41, "second")]


class TopHandler(MemoryHandler):
    """Opens the beginning of a message, and returns more of it than it was asked for."""

    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        self.mail.calls.append(("get_top_reader", number, lines))
        return io.BytesIO(self.mail.messages[number - 1])


def altered(kind: type[MemoryHandler] = MemoryHandler, /, **actions: Callable[..., Any]) -> MemoryHandler:
    """Make a handler some of whose methods do something else; their calls are recorded as before."""
    handler = kind(Mail(*TWO))

    def alter(name: str, action: Callable[..., Any]) -> None:
        def method(*arguments: Any) -> Any:
            handler.mail.calls.append((name, *arguments))
            return action(*arguments)

        setattr(handler, name, method)

    for name, action in actions.items():
        alter(name, action)
    return handler


class TestGreeting:
    @each(
        ("banner", "greeting", "calls"),
        [
            (None, rb"\+OK [^<>@\r\n]*\r\n", []),
            (BANNER, rb"\+OK [^<>@\r\n]*<1\.2@localhost>[^<>@\r\n]*\r\n", [("set_banner", BANNER)]),
        ],
    )
    def test_greeting(self, banner: str | None, greeting: bytes, calls: list[tuple[str, ...]]) -> None:
        """A timestamp stands in the greeting with APOP only, and the handler has had it before (RFC 1939 section 7)."""
        mail = Mail()
        session = make_session(MemoryHandler(mail), banner=banner)
        assert re.fullmatch(greeting, session.greet().head()) and mail.calls == calls and not session.over

    @pytest.mark.parametrize(
        ("action", "status", "reports"),
        [
            (raising(ReportableError("not today", code="SYS/TEMP")), b"-ERR [SYS/TEMP] not today\r\n", 0),
            (raising(OSError("secret")), INTERNAL, 1),
            (returning("ok"), BROKEN, 1),
        ],
        ids=["refuses", "raises", "returns"],
    )
    def test_banner_fails(self, action: Callable[..., Any], status: bytes, reports: int) -> None:
        """A handler that cannot keep the banner turns the client away."""
        handler = altered(set_banner=action)
        session = make_session(handler, banner=BANNER)
        assert session.greet().head() == status
        assert session.over and len(handler.mail.errors) == reports


REFUSED = [
    *b"RETR 0|RETR +1|RETR 1_0|RETR -1|RETR 3|RETR 4294967297|RETR 1.0|RETR 0x1|RETR x|RETR 1,2|RETR *".split(b"|"),
    *b"RETR|RETR |RETR 1 |RETR  1|RETR 1 2|RETR\t1|RETR 1\r|RETR 1\0|RETR \xff|RE TR 1|RETR1".split(b"|"),
    *("RETR \uff11|RETR \u0661|RETR \u0967|TOP 1 \uff11|LIST \uff11|RETR \u00b9".encode().split(b"|")),
    *(b"RETR " + b"9" * 900, b"RETR " + b"9" * 5000, b"RETR " + b"0" * 900 + b"1", b"TOP 1 " + b"9" * 900),
    *b"DELE|DELE 0|DELE 3|DELE 1 2|LIST 0|LIST 3|LIST  1|LIST 1 |LIST 1 2|LIST +1|UIDL 0|UIDL 3|UIDL x".split(b"|"),
    *b"UIDL 1 2|TOP|TOP 1|TOP 1 |TOP 1 -1|TOP 1 +1|TOP 1 1_0|TOP 1  1|TOP  1 1|TOP 1 1 1|TOP 0 1|TOP 3 1".split(b"|"),
    *b"TOP x 1|TOP 1 \xff|NOOP x|STAT x|RSET 1|QUIT x|QUIT  |QUIT\r|CAPA x|NOOP\t|NOOP\r|NOOP\0|NOOP \0".split(b"|"),
    *b"| | NOOP|\0|\r|XYZZY|LAST|STLS|HELP 1|\xff\xfe|do_QUIT|QUIT\r\nQUIT|EHLO localhost|a1 LOGIN a b".split(b"|"),
    *(b"x" * (LONGEST + 1), b"NOOP" + b" " * 2000, b"USER " + b"x" * LONGEST),
]


class TestCommands:
    @each("days", ["NEVER", "0", "30"])
    @each("user", ["", " USER"])
    def test_capa(self, days: str, user: str) -> None:
        """CAPA is one list in both states, but for USER after EXPIRE, gone after sign-in (RFC 2449 sections 5, 6.7)."""
        session = make_session(MemoryHandler(Mail()), expire=days + user, implementation="popart 1.0")
        for shown in (days + user, days):
            status, *capabilities = ask(session, b"CAPA")[0].decode().split("\r\n")
            assert status.startswith("+OK")
            assert capabilities[:6] == ["TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"]
            assert capabilities[6:] == ["SASL PLAIN", f"EXPIRE {shown}", "IMPLEMENTATION popart 1.0", ".", ""]
            ask(session, *SIGN_IN)

    @each("line", [b"USER alice", b"PASS secret", APOP, b"AUTH", b"AUTH PLAIN"])
    def test_signed_in_already(self, line: bytes) -> None:
        """The commands that sign in are refused in the TRANSACTION state (RFC 1939 sections 3 and 7)."""
        session = begin(MemoryHandler(Mail()), banner=BANNER)
        assert is_refusal(ask(session, line)[0]) and goes_on(session)

    @each("line", b"STAT|LIST|LIST 1|RETR 1|DELE 1|NOOP|RSET|TOP 1 1|UIDL|UIDL 1|stat|noop|RETR".split(b"|"))
    def test_sign_in_first(self, line: bytes) -> None:
        """The TRANSACTION state's commands, NOOP among them, are refused before sign-in (RFC 1939 sections 3 and 5)."""
        handler = MemoryHandler(Mail(*TWO))
        session = make_session(handler)
        assert is_refusal(ask(session, line)[0]) and goes_on(session)
        assert not handler.mail.calls

    @pytest.mark.parametrize("state", [make_session, begin], ids=["before", "after"])
    @each("line", b"capa|CaPa|CAPA |quit|QUIT |QuiT".split(b"|"))
    def test_any_state(self, state: Callable[..., Session], line: bytes) -> None:
        """CAPA and QUIT work in both states, and keywords in any case (RFC 1939 section 3, RFC 2449 section 5)."""
        assert ask(state(MemoryHandler(Mail(*TWO))), line)[0].startswith(b"+OK")

    @each("line", REFUSED)
    def test_refused(self, line: bytes) -> None:
        """What cannot be understood gets one -ERR, touches nothing, and the session goes on (RFC 1939 section 3)."""
        handler = MemoryHandler(Mail(*TWO))
        session = begin(handler)
        calls = list(handler.mail.calls)
        assert is_refusal(ask(session, line)[0])
        assert goes_on(session)
        assert ask(session, b"STAT") == [b"+OK 2 54\r\n"]
        assert handler.mail.calls == calls and not handler.mail.errors

    @each("line", [b"LIST 01", b"LIST 0000000001", b"list 1"])
    def test_leading_zeros(self, line: bytes) -> None:
        """Numbers are ASCII digits, and zeros before them change nothing."""
        assert ask(begin(MemoryHandler(Mail(*TWO))), line) == [b"+OK 1 13\r\n"]

    @each(
        ("line", "status"),
        [
            (b"LIST 9999999999", b"-ERR no such message, the maildrop was opened with 2\r\n"),
            (b"LIST 00000000001", b"-ERR bad message number\r\n"),
            (b"TOP 1 9999999999", b"+OK top of message follows\r\n"),
            (b"TOP 1 10000000000", b"-ERR bad number of lines\r\n"),
        ],
    )
    def test_digits(self, line: bytes, status: bytes) -> None:
        """A number has ten digits at most."""
        assert ask(begin(MemoryHandler(Mail(*TWO))), line)[0].startswith(status)

    @each("size", [255, LONGEST])
    def test_long_command(self, size: int) -> None:
        """A command may have the 255 octets of RFC 2449 section 4, and more."""
        user, password = ask(make_session(MemoryHandler(Mail())), *(word.ljust(size, b"x") for word in SIGN_IN))
        assert user.startswith(b"+OK") and password.startswith(b"-ERR [AUTH]")

    @each("line", b"GET / HTTP/1.1|POST /x?y=1 HTTP/1.0|OPTIONS * HTTP/1.1|PRI * HTTP/2.0|\x16\x03\x01\x02".split(b"|"))
    def test_other_protocol(self, line: bytes) -> None:
        """A web page or a TLS client is told once and the session ends: what follows is not read as commands."""
        handler = MemoryHandler(Mail())
        session = make_session(handler)
        assert is_refusal(ask(session, line)[0])
        assert session.over and not handler.mail.errors

    @pytest.mark.parametrize(
        ("state", "line"),
        [
            (make_session, b"RETR /x"),
            (make_session, b"LIST *"),
            (make_session, b"XYZZY x GET / HTTP/1.1"),
            (make_session, b" GET / HTTP/1.1"),
            (make_session, b"XGET/ HTTP/1.1"),
            (begin, b"USER /x"),
            (begin, b"APOP /x y"),
            (begin, b"AUTH *"),
            (begin, b"RETR /x"),
            (begin, b"XYZZY x GET / HTTP/1.1"),
        ],
        ids=name_of,
    )
    def test_not_another_protocol(self, state: Callable[..., Session], line: bytes) -> None:
        """A command of POP3 in the wrong state, and a web page's words within a line, are refused as any bad command;
        the session goes on.
        """
        session = state(MemoryHandler(Mail(*TWO)))
        assert is_refusal(ask(session, line)[0]) and goes_on(session)


class TestSignIn:
    @each("name", [b"alice", b"nobody", b"a b", b"'--", b"\xc3\xa9", b"x" * 1000])
    def test_any_user_is_welcome(self, name: bytes) -> None:
        """USER is answered in the same way for any name: it tells nobody which ones exist (RFC 1939 section 13)."""
        handler = MemoryHandler(Mail())
        known, asked = ask(make_session(handler), b"USER alice", b"USER " + name)
        assert known.startswith(b"+OK") and asked == known
        assert not handler.mail.calls

    @each("name", ["alice", " a  b ", "\u00e9\u20ac\U0001f4a5", "\ufeffa", "a\tb", "USER", "e\u0301", "a HTTP/1"])
    @each("password", ["secret", " secret", "secret ", " ", "  c  d  ", "\u00e9\u20ac\U0001f4a5", "\ufeffb"])
    def test_every_octet_is_kept(self, name: str, password: str) -> None:
        """The handler gets each octet after the one space, spaces at both ends included (RFC 1939 section 7)."""
        handler = MemoryHandler(Mail())
        ask(make_session(handler), b"USER " + name.encode(), b"PASS " + password.encode())
        assert handler.mail.calls[:1] == [("authenticate_pass", name, password)]

    @each("password", ["\tb\x0b\x0c\x1c\x85\u2028", "PASS x", "\u212b", "b HTTP/1.1", "[AUTH]", "\x7f"])
    def test_no_octet_means_anything(self, password: str) -> None:
        """No separator that Python knows, and nothing like a command, changes a password."""
        self.test_every_octet_is_kept("alice", password)

    @each(
        "lines",
        [
            *(b"PASS secret|USER;PASS secret|USER ;PASS secret|USER \xff;PASS secret|USER a\0;PASS secret".split(b"|")),
            *(b"USER a;PASS|USER a;PASS |USER a;PASS s\xff|USER a;PASS \xed\xa0\x80|USER a;PASS \xc0\xaf".split(b"|")),
            *(b"USER a;PASS s\0", b"USER a;PASS " + b"x" * LONGEST, b"APOP", b"APOP a", b"APOP a ", APOP[:-1]),
            *(APOP.replace(b"alice", b""), APOP.replace(b"alice", b"\xff"), APOP.replace(b"c", b"g"), APOP + b"0"),
            *(APOP + b" ", APOP.replace(b"e ", b"e  "), b"APOP alice " + "\uff11".encode() * 32),
            *b"USER a\r;PASS secret|USER \rb;PASS secret|USER a;PASS s\rs|USER a;PASS s\r|USER a;PASS s\n".split(b"|"),
            *(APOP.replace(b"alice", b"al\rice"), APOP + b"\r", APOP.replace(b"alice", b"al\nice")),
        ],
    )
    def test_never_reaches_the_handler(self, lines: bytes) -> None:
        """An empty name or password, invalid UTF-8, NUL, CR, LF, a digest that is none: -ERR; the session goes on."""
        handler = MemoryHandler(Mail())
        session = make_session(handler, banner=BANNER)
        assert is_refusal(ask(session, *lines.split(b";"))[-1]) and goes_on(session)
        assert not handler.mail.calls and not handler.mail.errors

    def test_user_is_needed_again(self) -> None:
        """After a refused PASS the client begins with USER (RFC 1939 section 7)."""
        session = make_session(MemoryHandler(Mail()))
        replies = ask(session, b"USER alice", b"PASS wrong", b"PASS secret", b"USER bob", *SIGN_IN)
        assert [reply[:4] for reply in replies] == [b"+OK ", b"-ERR", b"-ERR", b"+OK ", b"+OK ", b"+OK "]

    @each("digest", [DIGEST, DIGEST.upper()])
    def test_apop(self, digest: str) -> None:
        """APOP takes a name and 32 hexadecimal digits, in lower case for the handler (RFC 1939 section 7)."""
        handler = MemoryHandler(Mail(*TWO))
        session = make_session(handler, banner=BANNER)
        apop, stat = ask(session, b"apop mrose " + digest.encode(), b"STAT")
        assert apop.startswith(b"+OK") and stat == b"+OK 2 54\r\n"
        assert handler.mail.calls[:2] == [("authenticate_apop", "mrose", DIGEST), ("lock_maildrop",)]

    def test_apop_is_off(self) -> None:
        """Without a banner there is no APOP."""
        handler = MemoryHandler(Mail())
        session = make_session(handler)
        assert is_refusal(ask(session, APOP)[0]) and goes_on(session)
        assert not handler.mail.calls

    @each(
        ("method", "code", "status"),
        [
            ("authenticate_pass", None, b"-ERR [AUTH] no\r\n"),
            ("authenticate_pass", "LOGIN-DELAY", b"-ERR [LOGIN-DELAY] no\r\n"),
            ("authenticate_pass", "SYS/TEMP", b"-ERR [SYS/TEMP] no\r\n"),
            ("lock_maildrop", None, b"-ERR [IN-USE] no\r\n"),
            ("lock_maildrop", "SYS/PERM", b"-ERR [SYS/PERM] no\r\n"),
            ("get_message_count", None, b"-ERR no\r\n"),
            ("get_message_size", "SYS/TEMP", b"-ERR [SYS/TEMP] no\r\n"),
        ],
    )
    def test_refusal(self, method: str, code: str | None, status: bytes) -> None:
        """A refusal gets its default code or its own, and the client may sign in again (RFC 2449 section 8)."""
        handler = altered(**{method: raising(ReportableError("no", code=code))})
        session = make_session(handler)
        assert ask(session, *SIGN_IN)[1] == status
        assert goes_on(session) and is_refusal(ask(session, b"STAT")[0])
        assert not handler.mail.locked and not handler.mail.errors
        delattr(handler, method)
        assert ask(session, *SIGN_IN, b"STAT")[2] == b"+OK 2 54\r\n"

    @each("result", [False, True, 0, "", (x for x in "abc"), object()])
    @each("line", [b"PASS secret", APOP])
    def test_result_that_is_not_none(self, result: object, line: bytes) -> None:
        """A handler that returns False, or an awaitable, has let nobody in: that is its error and ends the session."""
        handler = altered(authenticate_pass=returning(result), authenticate_apop=returning(result))
        session = make_session(handler, banner=BANNER)
        assert ask(session, b"USER alice", line)[1] == BROKEN
        assert session.over and not handler.mail.count("lock_maildrop")
        assert kinds(handler.mail.errors) == [HandlerError]

    def test_result_of_a_partial(self) -> None:
        """The same for a method that is any callable: it need not have a name."""
        handler = MemoryHandler(Mail())
        handler.authenticate_pass = functools.partial(returning(False))  # type: ignore[method-assign]
        assert ask(make_session(handler), *SIGN_IN)[1] == BROKEN
        assert kinds(handler.mail.errors) == [HandlerError]

    def test_coroutine(self) -> None:
        """An ``async def`` lets nobody in, and Python has no reason to print that it was never awaited."""

        async def authenticate(username: str, password: str) -> None: ...

        handler = MemoryHandler(Mail())
        handler.authenticate_pass = authenticate  # type: ignore[method-assign,assignment]
        assert ask(make_session(handler), *SIGN_IN)[1] == BROKEN
        assert kinds(handler.mail.errors) == [HandlerError]

    def test_questions(self) -> None:
        """Without SupportsListing the count and each size is asked once, at sign-in, and ids when first needed."""
        handler = MemoryHandler(Mail(*TWO, *TWO))
        session = begin(handler)
        ask(session, b"STAT", b"LIST", b"LIST 2", b"DELE 1", b"RSET")
        sizes = [("get_message_size", number) for number in range(1, 5)]
        assert handler.mail.calls[1:] == [("lock_maildrop",), ("get_message_count",), *sizes]
        asked = len(handler.mail.calls)
        ask(session, b"UIDL 3", b"UIDL 3", b"DELE 4", b"UIDL", b"RSET", b"UIDL", b"UIDL", b"UIDL 1")
        assert handler.mail.calls[asked:] == [("get_message_id", number) for number in (3, 1, 2, 4)]

    def test_listing(self) -> None:
        """With SupportsListing 100,000 messages cost one call, whatever the client asks."""
        entries = [(number, f"id{number}") for number in range(100_000)]
        handler = altered(ListingHandler, list_messages=lambda: iter(entries))
        stat, sizes, ids, one = ask(begin(handler), b"STAT", b"LIST", b"UIDL", b"UIDL 100000")
        assert stat == b"+OK 100000 4999950000\r\n" and one == b"+OK 100000 id99999\r\n"
        assert sizes.split(b"\r\n")[1:] == [b"%d %d" % (n + 1, n) for n in range(100_000)] + [b".", b""]
        assert ids.split(b"\r\n")[1:] == [b"%d id%d" % (n + 1, n) for n in range(100_000)] + [b".", b""]
        assert handler.mail.calls[1:] == [("lock_maildrop",), ("list_messages",)]

    @each("entries", [[], [(0, "a")], [(1, "!"), (2**63 - 1, 70 * "~")]])
    def test_what_is_right_is_checked_together(
        self, entries: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sizes and ids are looked at one by one only to find a wrong one: that takes ten times as long."""
        for module in ("maildrop", "unique_ids"):
            monkeypatch.setattr(f"popart.{module}.check_each", raising(AssertionError()))
        handler = altered(ListingHandler, list_messages=returning(entries))
        assert ask(begin(handler), b"UIDL")[0].startswith(b"+OK") and not handler.mail.errors

    @each("kind", [MemoryHandler, ListingHandler])
    def test_ids_are_checked_once(self, kind: type[MemoryHandler], monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that asks for the id of each of n messages, or lists them again, has none checked again."""
        checked = []

        def check(ids: list[str]) -> list[str]:
            checked.append(ids)
            return ids

        monkeypatch.setattr("popart.maildrop.check_ids", check)
        ask(begin(kind(Mail(*TWO))), b"UIDL 1", b"UIDL 2", b"UIDL", b"UIDL 1", b"UIDL")
        assert len(checked) == 1

    @each("entries", [[(5, "a")], ([5, "a"],), iter([(5, "a")]), {(5, "a")}])
    def test_listing_is_any_iterable(self, entries: Any) -> None:
        """A listing may be a list or a generator, and its pairs tuples or lists."""
        stat, uidl = ask(begin(altered(ListingHandler, list_messages=returning(entries))), b"STAT", b"UIDL")
        assert stat == b"+OK 1 5\r\n" and uidl.endswith(b"\r\n1 a\r\n.\r\n")


class Odd(int):
    """An integer that prints as something else, as an enum's members do."""

    def __str__(self) -> str:
        return "1\r\n+OK"

    __repr__ = __str__


class OddText(str):
    """A text that prints as something else."""

    def __str__(self) -> str:
        return "x\r\n+OK"


def with_ids(listed: bool, *identifiers: Any) -> MemoryHandler:
    """Make a handler whose messages have these ids, told in a listing or one by one."""
    if listed:
        return altered(ListingHandler, list_messages=lambda: [(len(TWO[n]), id) for n, id in enumerate(identifiers)])
    return altered(get_message_count=lambda: len(identifiers), get_message_id=lambda number: identifiers[number - 1])


BAD_IDS = ["", "x" * 71, "a b", " ", " a", "a\r\n+OK", "a\n", "\0", "\x7f", "\xe9", "\uff11", "first"]
NO_NUMBERS = [None, "2", b"2", 2.0, -1, 10**30, [], object()]


class TestWrongValues:
    @each(
        ("method", "result"),
        [
            *(("lock_maildrop", value) for value in (False, True, object())),
            *(("get_message_count", value) for value in NO_NUMBERS),
            *(("get_message_size", value) for value in NO_NUMBERS),
            *(("list_messages", [(1, "a"), (value, "b")]) for value in NO_NUMBERS),
            *(("list_messages", value) for value in (None, 3, True, object(), [1], [None], ["abc"], [(1,)], "ab")),
            *(("list_messages", value) for value in ([(1, "a"), (1, 2, 3)], [(1, "a"), 5])),
        ],
    )
    def test_sign_in(self, method: str, result: object) -> None:
        """A count, size or listing that is none, or a lock with a result, is [SYS/PERM]; the maildrop is unlocked."""
        handler = altered(ListingHandler if method == "list_messages" else MemoryHandler, **{method: returning(result)})
        session = make_session(handler)
        assert ask(session, *SIGN_IN)[1] == BROKEN and session.over
        assert handler.mail.count("lock_maildrop") == handler.mail.count("unlock_maildrop") == 1
        assert kinds(handler.mail.errors) == [HandlerError]

    def test_endless_listing(self) -> None:
        """A listing that never ends is given up at max_messages."""
        taken: list[tuple[int, str]] = []

        def entries() -> Iterator[tuple[int, str]]:
            while True:
                taken.append((1, "a"))
                yield taken[-1]

        handler = altered(ListingHandler, list_messages=entries)
        assert ask(make_session(handler, max_messages=1000), *SIGN_IN)[1] == BROKEN
        assert len(taken) <= 1001
        assert re.search(r"\b1000\b.*\bmax_messages\b", str(handler.mail.errors[0]))

    @each("value", [True, Odd(1)])
    def test_number_of_another_kind(self, value: int) -> None:
        """An integer of any class stands on the wire as its digits."""
        handler = altered(get_message_count=returning(value), get_message_size=returning(value))
        stat, listing, one, _ = ask(begin(handler), b"STAT", b"LIST", b"LIST 1", b"RETR 1")
        assert stat == one == b"+OK 1 1\r\n" and listing.endswith(b"\r\n1 1\r\n.\r\n")

    @each("identifier", [*BAD_IDS, None, 7, b"a"])
    @each("listed", [False, True])
    def test_id(self, listed: bool, identifier: Any) -> None:
        """An id outside RFC 1939's grammar, or one of two alike, is [SYS/PERM] and never on the wire (section 7)."""
        handler = with_ids(listed, "first", identifier)
        session = begin(handler)
        assert ask(session, b"UIDL", b"UIDL 2") == [BROKEN, BROKEN]
        assert kinds(handler.mail.errors) == [HandlerError, HandlerError]
        assert goes_on(session) and ask(session, b"STAT") == [b"+OK 2 54\r\n"]

    @each("identifier", ["!", "~" * 70, ".", "..", "[1]", "1", "a<b>@c"])
    @each("listed", [False, True])
    def test_good_id(self, listed: bool, identifier: str) -> None:
        """1 to 70 characters from ! to ~ are an id, a dot is no end, and nothing follows it (RFC 1939 section 7)."""
        listing, one = ask(begin(with_ids(listed, identifier)), b"UIDL", b"UIDL 1")
        assert one == b"+OK 1 %b\r\n" % identifier.encode() and listing.endswith(b"\r\n" + one[4:] + b".\r\n")

    @each("listed", [False, True])
    def test_id_that_prints_otherwise(self, listed: bool) -> None:
        """An id stands on the wire as it was checked, also where its class prints it as something else (promise 5)."""
        assert ask(begin(with_ids(listed, OddText("abc"))), b"UIDL 1") in ([b"+OK 1 abc\r\n"], [BROKEN])


class TestReports:
    """A HandlerError names the message, and the value beside the rule, for whoever has to mend the handler."""

    @each(
        ("method", "result", "report"),
        [
            ("get_message_count", "2", "the count of messages must be an integer: str"),
            ("get_message_count", -7, "the count of messages must be 0 to 9223372036854775807: -7"),
            ("get_message_count", 2**63, "the count of messages must be 0 to 9223372036854775807: 9223372036854775808"),
            ("get_message_size", "13", "the size of message 1 must be an integer: str"),
            ("get_message_size", -1, "the size of message 1 must be 0 to 9223372036854775807: -1"),
            ("list_messages", [(1, "a"), (None, "b")], "the size of message 2 must be an integer: NoneType"),
            ("list_messages", [(1, "a"), (-5, "b")], "the size of message 2 must be 0 to 9223372036854775807: -5"),
            ("list_messages", [(1, "a"), 5], "list_messages has no pair of size and id for message 2: int"),
            ("list_messages", [(1, "a", 3)], "list_messages has no pair of size and id for message 1: tuple"),
            ("list_messages", None, "list_messages returned NoneType, not pairs of size and id"),
        ],
    )
    def test_at_sign_in(self, method: str, result: object, report: str) -> None:
        """So for counts, sizes and listings."""
        handler = altered(ListingHandler if method == "list_messages" else MemoryHandler, **{method: returning(result)})
        assert ask(make_session(handler), *SIGN_IN)[1] == BROKEN
        assert list(map(str, handler.mail.errors)) == [report]

    def test_more_digits_than_python_writes(self) -> None:
        """A number that cannot be written is told by its length."""
        handler = altered(get_message_size=returning(10**5000))
        assert ask(make_session(handler), *SIGN_IN)[1] == BROKEN
        assert str(handler.mail.errors[0]).endswith("must be 0 to 9223372036854775807: a number of 16610 bits")

    def test_second_size(self) -> None:
        """The message is the one whose size is wrong, not the first."""
        handler = altered(get_message_size=lambda number: 1.5 if number == 2 else 13)
        ask(make_session(handler), *SIGN_IN)
        assert list(map(str, handler.mail.errors)) == ["the size of message 2 must be an integer: float"]

    @each(
        ("identifier", "report"),
        [
            ("a b", "the unique-id of message 2 must have 1 to 70 characters from '!' to '~': 'a b'"),
            ("", "the unique-id of message 2 must have 1 to 70 characters from '!' to '~': ''"),
            ("a\r\n", "the unique-id of message 2 must have 1 to 70 characters from '!' to '~': 'a\\r\\n'"),
            ("x" * 71, f"the unique-id of message 2 must have 1 to 70 characters from '!' to '~': '{'x' * 71}'"),
            (7, "the unique-id of message 2 must be a str: int"),
            (None, "the unique-id of message 2 must be a str: NoneType"),
            ("first", "messages 1 and 2 have the same unique-id: 'first'"),
        ],
    )
    @each("listed", [False, True])
    def test_id(self, listed: bool, identifier: Any, report: str) -> None:
        """So for ids, in a listing or one by one; the client reads none of it."""
        handler = with_ids(listed, "first", identifier)
        assert ask(begin(handler), b"UIDL") == [BROKEN]
        assert list(map(str, handler.mail.errors)) == [report]

    @each("listed", [False, True])
    def test_length_is_bounded(self, listed: bool) -> None:
        """An id of a megabyte does not fill a log."""
        handler = with_ids(listed, "first", "\u2028" * 1_000_000)
        assert ask(begin(handler), b"UIDL") == [BROKEN]
        assert len(str(handler.mail.errors[0])) < 1000

    @each(
        ("identifier", "shown"),
        [
            ("x" * 128, f"'{'x' * 128}'"),
            ("x" * 129, f"'{'x' * 128}' and 1 more"),
            ("x" * 138, f"'{'x' * 128}' and 10 more"),
        ],
    )
    def test_what_is_shown_of_a_text(self, identifier: str, shown: str) -> None:
        """A report shows the first 128 characters of a text, and how many more there are."""
        handler = with_ids(False, "first", identifier)
        ask(begin(handler), b"UIDL")
        assert str(handler.mail.errors[0]).endswith(f"from '!' to '~': {shown}")

    @each(
        ("size", "shown"),
        [(2**128 - 1, str(2**128 - 1)), (2**128, "a number of 129 bits"), (-(2**128), "a number of 129 bits")],
    )
    def test_what_is_shown_of_a_number(self, size: int, shown: str) -> None:
        """A report shows a number of up to 128 bits."""
        handler = altered(get_message_size=returning(size))
        ask(make_session(handler), *SIGN_IN)
        assert str(handler.mail.errors[0]).endswith(f": {shown}")

    def test_the_same_id_much_later(self) -> None:
        """Of two messages with one id both are named, however the client came by them."""
        handler = altered(
            get_message_count=returning(4), get_message_size=returning(0), get_message_id=lambda n: f"id-{n % 3}"
        )
        session = begin(handler)
        assert ask(session, b"UIDL 4")[0] == b"+OK 4 id-1\r\n"
        assert ask(session, b"UIDL 1") == [BROKEN]
        assert list(map(str, handler.mail.errors)) == ["messages 4 and 1 have the same unique-id: 'id-1'"]

    @each(
        ("line", "method", "result", "report"),
        [
            (b"RETR 2", "get_message_reader", None, "the reader of message 2 cannot be a NoneType"),
            (b"TOP 2 1", "get_top_reader", b"x", "the reader of message 2 cannot be a bytes"),
            (b"RETR 2", "get_message_reader", Reader("x"), "the reader of message 2 returned str, not bytes"),
            (
                b"RETR 2",
                "get_message_reader",
                Reader(),
                "message 2 ended after 0 octets, its size was said to be 41",
            ),
            (
                b"RETR 2",
                "get_message_reader",
                Reader(b"A"),
                "message 2 ended after 3 octets, its size was said to be 41",
            ),
        ],
    )
    def test_reading(self, line: bytes, method: str, result: object, report: str) -> None:
        """So for readers, and for what they return or leave out."""
        handler = altered(TopHandler, **{method: returning(result)})
        reply = begin(handler).respond(line)
        if reply.message is not None:
            with pytest.raises(BrokenMessageError), closing(reply.message) as message:
                list(message)
        else:
            assert reply.status == BROKEN
        assert list(map(str, handler.mail.errors)) == [report]

    def test_what_cannot_read_is_closed(self) -> None:
        """Whatever a handler gives as a reader is closed once, also if it has no ``read``."""

        class Unreadable:
            def __init__(self) -> None:
                self.closed = 0

            def close(self) -> None:
                self.closed += 1

        unreadable = Unreadable()
        handler = altered(get_message_reader=returning(unreadable))
        assert ask(begin(handler), b"RETR 2") == [BROKEN]
        assert unreadable.closed == 1
        assert list(map(str, handler.mail.errors)) == ["the reader of message 2 cannot be a Unreadable"]


class TestMaildrop:
    @each("listed", [False, True])
    def test_empty(self, listed: bool) -> None:
        """An empty maildrop's LIST and UIDL are +OK and the final dot (RFC 1939 section 5)."""
        stat, sizes, ids, one = ask(begin(with_ids(listed)), b"STAT", b"LIST", b"UIDL", b"RETR 1")
        assert stat == b"+OK 0 0\r\n" and is_refusal(one)
        assert re.fullmatch(rb"\+OK [ -~]*\r\n\.\r\n", sizes) and re.fullmatch(rb"\+OK [ -~]*\r\n\.\r\n", ids)

    def test_numbers_never_move(self) -> None:
        """Deleted messages vanish from STAT, LIST and UIDL, the others keep their numbers, RSET brings all back."""
        session = begin(MemoryHandler(Mail(b"1\n", b"22\n", b"333\n")))

        def listed(*lines: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
            *_, stat, sizes, ids = ask(session, *lines, b"STAT", b"LIST", b"UIDL")
            return stat, sizes.split(b"\r\n")[1:-2], ids.split(b"\r\n")[1:-2]

        everything = (b"+OK 3 9\r\n", [b"1 2", b"2 3", b"3 4"], [b"1 id-1", b"2 id-2", b"3 id-3"])
        assert listed() == everything
        assert listed(b"DELE 2") == (b"+OK 2 6\r\n", [b"1 2", b"3 4"], [b"1 id-1", b"3 id-3"])
        assert listed(b"DELE 1") == (b"+OK 1 4\r\n", [b"3 4"], [b"3 id-3"])
        assert ask(session, b"LIST 3", b"UIDL 3") == [b"+OK 3 4\r\n", b"+OK 3 id-3\r\n"]
        assert ask(session, b"RETR 3") == [b"+OK 4 octets\r\n333\r\n.\r\n"]
        assert listed(b"DELE 3") == (b"+OK 0 0\r\n", [], [])
        assert listed(b"RSET") == everything

    @each("line", [b"RETR 1", b"TOP 1 0", b"DELE 1", b"LIST 1", b"UIDL 1"])
    def test_deleted(self, line: bytes) -> None:
        """Any reference to a deleted message is an error, until RSET (RFC 1939 section 5)."""
        handler = MemoryHandler(Mail(*TWO))
        session = begin(handler)
        assert ask(session, b"DELE 1")[0].startswith(b"+OK")
        asked = len(handler.mail.calls)
        assert is_refusal(ask(session, line)[0]) and goes_on(session)
        assert ask(session, b"STAT") == [b"+OK 1 41\r\n"] and len(handler.mail.calls) == asked
        assert ask(session, b"RSET", line)[1].startswith(b"+OK")

    def test_frozen(self) -> None:
        """Mail that arrives during a session is not seen in it (RFC 1939 section 4)."""
        mail = Mail(*TWO)
        session = begin(MemoryHandler(mail))
        mail.messages.append(b"new\n")
        _, stat, retr = ask(session, b"RSET", b"STAT", b"RETR 3")
        assert stat == b"+OK 2 54\r\n" and is_refusal(retr)


class TestReading:
    def test_retr_and_top(self) -> None:
        """RETR sends all, TOP the beginning; TOP n 99999999 is RETR, as fetchmail needs (RFC 1939 section 7)."""
        session = begin(MemoryHandler(Mail(*TWO)))
        lines = [b"A: b\r\n", b"\r\n", b"line one\r\n", b"..line two\r\n", b"line three\r\n"]
        assert ask(session, b"RETR 2") == [b"+OK 41 octets\r\n" + b"".join(lines) + b".\r\n"]
        for number, kept in {0: 2, 1: 3, 2: 4, 3: 5, 4: 5, 99_999_999: 5, 2**32 - 1: 5}.items():
            status, _, body = ask(session, b"TOP 2 %d" % number)[0].partition(b"\r\n")
            assert status.startswith(b"+OK") and body == b"".join(lines[:kept]) + b".\r\n"

    @each("size", [1, 2, 3, 7])
    def test_short_reads(self, size: int) -> None:
        """Fewer octets than were asked for do not end a message: only none do."""
        stored = b"A: b\n\r\n\n.\n..c\r\r\n\0\xff\r"
        reader = Reader(*(stored[i : i + size] for i in range(0, len(stored), size)))
        body = ask(begin(altered(get_message_reader=returning(reader))), b"RETR 1")[0].partition(b"\r\n")[2]
        assert body == b"A: b\r\n\r\n\r\n..\r\n...c\r\r\n\0\xff\r\r\n.\r\n"
        assert reader.closed == 1 and all(0 < asked <= 1_000_000 for asked in reader.asked)

    @each("line", [b"RETR 1", b"TOP 1 0", b"TOP 1 5"])
    @each("kind", [MemoryHandler, TopHandler])
    def test_empty_message(self, kind: type[MemoryHandler], line: bytes) -> None:
        """A message of no octets is +OK and the final dot, in one piece: that dot, too, is not sent alone."""
        reader = Reader()
        handler = altered(
            kind,
            get_message_reader=returning(reader),
            get_message_size=returning(0),
            **({"get_top_reader": returning(reader)} if kind is TopHandler else {}),
        )
        reply = begin(handler).respond(line)
        assert re.fullmatch(rb"\+OK [ -~]*\r\n\.\r\n", reply.head())
        assert reply.message is None and reader.closed == 1 and not handler.mail.errors

    @each("line", [b"RETR 1", b"TOP 1 9"])
    def test_asked_for_64_kib_at_a_time(self, line: bytes) -> None:
        """A reader is asked for 65,536 octets each time, so that memory stays flat."""
        reader = Reader(b"A: b\n", b"\none\n")
        ask(begin(altered(get_message_reader=returning(reader), get_message_size=returning(0))), line)
        assert reader.asked == [65_536] * 3

    @each("result", [OSError(), SystemExit()])
    def test_empty_message_that_fails_to_close(self, result: BaseException) -> None:
        """The same where its reader fails in close: that is told, as for any message."""
        reader = Reader(at_close=result)
        handler = altered(get_message_reader=returning(reader), get_message_size=returning(0))
        assert ask(begin(handler), b"RETR 1") == [b"+OK 0 octets\r\n.\r\n"]
        assert reader.closed == 1 and handler.mail.errors == [result]

    @each("octets", [b"", b"x\r\n", b"x" * 32_766 + b"\r\n"])
    def test_not_read_beyond_its_end(self, octets: bytes) -> None:
        """A reader that has returned b"" is not asked again: not all say so twice."""
        reader = Reader(*filter(None, [octets]), b"", AssertionError("read on"))
        handler = altered(get_message_reader=returning(reader), get_message_size=returning(len(octets)))
        assert ask(begin(handler), b"RETR 1")[0].endswith(b" octets\r\n" + octets + b".\r\n")
        assert reader.closed == 1 and not handler.mail.errors

    @each(("kind", "method"), [(MemoryHandler, "get_message_reader"), (TopHandler, "get_top_reader")])
    def test_top_reads_what_it_needs(self, kind: type[MemoryHandler], method: str) -> None:
        """What the reader returns beyond the lines is cut off, not read on, and the reader is closed."""
        reader = Reader(b"A: b\n", b"\none\n", b"two\n", AssertionError("read too far"))
        handler = altered(kind, **{method: returning(reader)})
        assert ask(begin(handler), b"TOP 1 1")[0].endswith(b"\r\nA: b\r\n\r\none\r\n.\r\n")
        assert reader.closed == 1 and len(reader.asked) == 2 and not handler.mail.errors

    def test_top_reader(self) -> None:
        """A handler that satisfies SupportsTop is asked for TOP, and only for TOP."""
        handler = TopHandler(Mail(*TWO))
        session = begin(handler)
        asked = len(handler.mail.calls)
        top, whole, retr = ask(session, b"TOP 2 1", b"TOP 2 99999999", b"RETR 2")
        assert top.endswith(b"\r\nA: b\r\n\r\nline one\r\n.\r\n")
        assert whole.partition(b"\r\n")[2] == retr.partition(b"\r\n")[2]
        tops = [("get_top_reader", 2, 1), ("get_top_reader", 2, 99_999_999)]
        assert handler.mail.calls[asked:] == [*tops, ("get_message_reader", 2)]

    @each(
        ("failure", "status"),
        [
            *((error, INTERNAL) for error in (OSError("secret"), TimeoutError(), KeyboardInterrupt(), SystemExit(1))),
            *((error, INTERNAL) for error in (StopIteration(), BrokenMessageError(), EOFError())),
            *((value, BROKEN) for value in (None, "text", 0, bytearray(b"x"), [b"x"])),
            (ReportableError("it is on tape", code="SYS/TEMP"), b"-ERR [SYS/TEMP] it is on tape\r\n"),
        ],
    )
    @each("before", [[], [b"x"], [b"A: b\n"], [b"x" * 32_767]])
    @each("line", [b"RETR 1", b"TOP 1 1"])
    def test_fails_first(self, line: bytes, before: list[bytes], failure: object, status: bytes) -> None:
        """What fails before the first octet is -ERR, the reader is closed, and the session goes on (promise 1).

        So does the second read, if the first gave less than 32,768 octets: they would have waited for more anyway.
        """
        reader = Reader(*before, failure)
        handler = altered(get_message_reader=returning(reader))
        session = begin(handler)
        assert ask(session, line) == [status] and goes_on(session) and reader.closed == 1
        if status == BROKEN:
            assert kinds(handler.mail.errors) == [HandlerError]
        else:
            assert handler.mail.errors == ([] if isinstance(failure, ReportableError) else [failure])

    @each(
        "failure", [OSError(), ConnectionResetError(), KeyboardInterrupt(), SystemExit(), StopIteration(), None, "text"]
    )
    @each("before", [[b"x" * 32_768], [b"A: b\n", b"\none\ntwo\r"]])
    @each("line", [b"RETR 1", b"TOP 1 5"])
    def test_fails_midway(self, line: bytes, before: list[bytes], failure: object) -> None:
        """A reader that fails after +OK ends the message without its final dot, and is reported once (promise 1)."""
        reader = Reader(*before, failure)
        handler = altered(get_message_reader=returning(reader))
        reply = begin(handler).respond(line)
        assert reply.head().startswith(b"+OK ") and reply.message is not None
        pieces: list[bytes] = []
        with pytest.raises(BrokenMessageError), closing(reply.message) as message:
            pieces.extend(message)
        assert b"\n.\r\n" not in b"".join(pieces) and reader.closed == 1
        if isinstance(failure, BaseException):
            assert handler.mail.errors == [failure]
        else:
            assert kinds(handler.mail.errors) == [HandlerError]

    @each("error", [OSError(), KeyboardInterrupt(), SystemExit()])
    def test_fails_to_close(self, error: BaseException) -> None:
        """A reader that fails in close has given its message: it is complete, and the failure is reported."""
        reader = Reader(b"a\n", at_close=error)
        handler = altered(get_message_reader=returning(reader), get_message_size=returning(3))
        session = begin(handler)
        assert ask(session, b"RETR 1")[0].endswith(b"\r\na\r\n.\r\n")
        assert reader.closed == 1 and handler.mail.errors == [error] and goes_on(session)

    def test_fails_twice(self) -> None:
        """A reader that fails in read and in close is reported for both, and the client reads one refusal."""
        first, second = OSError("read"), OSError("close")
        handler = altered(get_message_reader=returning(Reader(first, at_close=second)))
        assert ask(begin(handler), b"RETR 1") == [INTERNAL]
        assert sorted(map(str, handler.mail.errors)) == ["close", "read"]

    def test_reply_that_is_never_sent(self) -> None:
        """The reader of a reply that nobody sends is closed with the reply."""
        reader = Reader(b"a\n", b"b\n")
        handler = altered(get_message_reader=returning(reader))
        reply = begin(handler).respond(b"RETR 1")
        assert reply.message is not None and reader.closed == 0
        reply.message.close()
        assert reader.closed == 1 and not handler.mail.errors

    @each("reader", [None, b"octets", "text", 5, object(), iter([b"a"])])
    @each(("method", "line"), [("get_message_reader", b"RETR 1"), ("get_top_reader", b"TOP 1 1")])
    def test_no_reader(self, method: str, line: bytes, reader: object) -> None:
        """What cannot be read is no reader: [SYS/PERM], and the session goes on."""
        handler = altered(TopHandler, **{method: returning(reader)})
        session = begin(handler)
        assert ask(session, line) == [BROKEN]
        assert goes_on(session) and kinds(handler.mail.errors) == [HandlerError]

    @each(("method", "line"), [("get_message_reader", b"RETR 1"), ("get_top_reader", b"TOP 1 9")])
    @each(("results", "octets"), [((b"A: b\n", b"\none\n"), b"A: b\r\n\r\none\r\n"), ((), b"")])
    def test_reader_that_cannot_be_closed(
        self, method: str, line: bytes, results: tuple[bytes, ...], octets: bytes
    ) -> None:
        """A reader that has nothing to let go of needs no close: its message is served as any."""

        class Bare:
            read = Reader(*results).read

        handler = altered(TopHandler, **{method: returning(Bare()), "get_message_size": returning(len(octets))})
        session = begin(handler)
        assert ask(session, line)[0].partition(b"\r\n")[2] == octets + b".\r\n"
        assert goes_on(session) and not handler.mail.errors

    @each("failure", [OSError("secret"), SystemExit()])
    def test_reader_that_cannot_be_closed_fails(self, failure: BaseException) -> None:
        """What it raises is reported once, and that is all."""

        class Bare:
            read = Reader(failure).read

        handler = altered(get_message_reader=returning(Bare()))
        session = begin(handler)
        assert ask(session, b"RETR 1") == [INTERNAL] and goes_on(session)
        assert handler.mail.errors == [failure]


# The lines that lead to the call of each method.
CALLS = {
    "authenticate_pass": SIGN_IN,
    "authenticate_apop": [APOP],
    "lock_maildrop": SIGN_IN,
    "get_message_count": SIGN_IN,
    "get_message_size": SIGN_IN,
    "list_messages": SIGN_IN,
    "get_message_id": [*SIGN_IN, b"UIDL"],
    "get_message_reader": [*SIGN_IN, b"RETR 2"],
    "get_top_reader": [*SIGN_IN, b"TOP 1 1"],
    "delete_messages": [*SIGN_IN, b"DELE 1", b"QUIT"],
    "unlock_maildrop": [*SIGN_IN, b"QUIT"],
}


KINDS = {"list_messages": ListingHandler, "get_top_reader": TopHandler}


class LazyRefusal(ReportableError):
    """An application's own refusal that forgot to call its base class."""

    def __init__(self) -> None:
        self.reason = "none"


class TestFailures:
    @each("method", CALLS)
    @each(
        "error", [OSError("s3cr3t"), KeyboardInterrupt(), SystemExit(1), TimeoutError(), StopIteration(), MemoryError()]
    )
    def test_raises(self, method: str, error: BaseException) -> None:
        """Whatever a method raises is hidden behind a fixed text and reported once, as it was raised (promise 6)."""
        handler = altered(KINDS.get(method, MemoryHandler), **{method: raising(error)})
        session = make_session(handler, banner=BANNER)
        *before, reply = ask(session, *CALLS[method])
        assert all(line.startswith(b"+OK") for line in before) and reply == INTERNAL
        assert session.over or goes_on(session)
        assert session.over is (method not in ("get_message_id", "get_message_reader", "get_top_reader"))
        assert handler.mail.locked is not session.over or method in ("lock_maildrop", "unlock_maildrop")
        session.close()
        assert len(handler.mail.errors) == 1 and handler.mail.errors[0] is error

    @each("method", CALLS)
    def test_refuses(self, method: str) -> None:
        """A ReportableError is read by the client and reported to nobody; but at QUIT the session goes on."""
        refusal = raising(ReportableError("busy", code="X-BUSY"))
        handler = altered(KINDS.get(method, MemoryHandler), **{method: refusal})
        session = make_session(handler, banner=BANNER)
        assert ask(session, *CALLS[method])[-1] == b"-ERR [X-BUSY] busy\r\n"
        assert session.over is (CALLS[method][-1] == b"QUIT") and (session.over or goes_on(session))
        assert not handler.mail.errors

    @each("error", [RuntimeError(), KeyboardInterrupt(), SystemExit()])
    def test_report_that_fails(self, error: BaseException) -> None:
        """What handle_session_error raises is dropped: the client has its answer and the session goes on."""
        handler = altered(get_message_reader=raising(OSError("first")), handle_session_error=raising(error))
        session = begin(handler)
        assert ask(session, b"RETR 1") == [INTERNAL] and goes_on(session)
        assert handler.mail.count("handle_session_error") == 1

    @each(
        ("text", "status"),
        [
            ("no\r\n+OK yes\r\n.", b"-ERR no  +OK yes  .\r\n"),
            ("x" * 600, b"-ERR " + b"x" * 505 + b"\r\n"),
            ("caf\xe9\u2028\ud800\0", b"-ERR caf??? \r\n"),
            ("[AUTH] a lie", b"-ERR AUTH] a lie\r\n"),
            ("", b"-ERR \r\n"),
            (None, b"-ERR None\r\n"),
            (OSError("disk"), b"-ERR disk\r\n"),
        ],
    )
    def test_text(self, text: Any, status: bytes) -> None:
        """Any text of a ReportableError becomes one line of at most 512 octets (promise 5)."""
        session = begin(altered(get_message_reader=raising(ReportableError(text))))
        assert ask(session, b"RETR 1") == [status] and goes_on(session)

    @each("text", [None, 5, b"no", object()])
    @each("method", ["set_banner", "authenticate_pass", "get_message_reader", "delete_messages"])
    def test_text_that_is_none(self, method: str, text: Any) -> None:
        """A text that an application has put in place later and that is no str is still answered, and reported."""
        error = ReportableError("no")
        error.text = text
        handler = altered(**{method: raising(error)})
        session = make_session(handler, banner=BANNER)
        reply = session.greet().head() if method == "set_banner" else ask(session, *CALLS[method])[-1]
        assert is_refusal(reply) and len(handler.mail.errors) == (reply == INTERNAL)
        assert error not in handler.mail.errors  # the report says what is wrong with the text

    @each("method", ["authenticate_pass", "lock_maildrop", "get_message_reader", "delete_messages"])
    def test_refusal_without_a_text(self, method: str) -> None:
        """A subclass of ReportableError that forgot its base's __init__ is still answered, not a crash."""
        session = make_session(altered(**{method: raising(LazyRefusal())}))
        assert is_refusal(ask(session, *CALLS[method])[-1])

    def test_code_that_was_changed(self) -> None:
        """A code that was never checked cannot end the line either (promise 5)."""
        error = ReportableError("no")
        error.code = "X]\r\n+OK"
        assert is_refusal(ask(begin(altered(get_message_reader=raising(error))), b"RETR 1")[0])

    def test_no_secrets(self) -> None:
        """No password and no digest stands in a reply, or in an exception that popart makes (promise 6)."""
        secret, digest = b"s3cr3t", b"5ec2e7" * 5 + b"zz"
        handler = MemoryHandler(Mail())
        session = make_session(handler, banner=BANNER, max_bad_commands=1000, max_failed_logins=2)
        bad = [
            b"PASS %b",
            b"APOP %b " + digest,
            b"USER %b",
            b"PASS %b\xff",
            b"PASS %b\0",
            b"%b",
            b"PASS %b" + b"x" * 2000,
        ]
        good = [b"USER %b", b"PASS %b", b"STAT %b", b"USER alice", b"PASS %b"]
        replies = ask(session, *(line.replace(b"%b", secret) for line in bad + good))
        for result in (False, secret):
            broken = altered(authenticate_pass=returning(result))
            replies += ask(make_session(broken), b"USER alice", b"PASS " + secret)
            handler.mail.errors += broken.mail.errors
        replies += ask(make_session(handler, max_bad_commands=1), b"XPASS " + secret)
        assert kinds(handler.mail.errors) == [LimitError, HandlerError, HandlerError, LimitError]
        chain: list[BaseException | None] = list(handler.mail.errors)
        for error in chain:
            chain += [error.__cause__, error.__context__] if error is not None else []
        shown = b"".join(replies) + repr(chain).encode()
        assert secret not in shown and digest not in shown


class TestLimits:
    def test_bad_commands_in_a_row(self) -> None:
        """max_bad_commands counts bad commands in a row; a good one begins anew, and the limit is reported once."""
        handler = MemoryHandler(Mail(*TWO))
        session = begin(handler, max_bad_commands=3)
        for _ in range(5):
            ask(session, b"XYZZY", b"NOOP x")
            assert goes_on(session)
        ask(session, b"", b"RETR x")
        assert not session.over
        assert is_refusal(ask(session, b"USER alice")[0])
        assert session.over and kinds(handler.mail.errors) == [LimitError]
        session.close()
        assert len(handler.mail.errors) == 1 and handler.mail.count("unlock_maildrop") == 1

    def test_failed_logins_whose_refusals_cannot_be_written(self) -> None:
        """A refusal counts as one though its text cannot be written."""

        class Unwritable:
            def __format__(self, spec: str) -> str:
                raise OSError("secret")

        refusal = ReportableError("no")
        refusal.text = Unwritable()  # type: ignore[assignment]
        handler = altered(authenticate_pass=raising(refusal))
        session = make_session(handler, max_failed_logins=2)
        assert ask(session, *SIGN_IN)[1] == INTERNAL and not session.over
        assert ask(session, *SIGN_IN)[1] == INTERNAL and session.over
        assert kinds(handler.mail.errors) == [OSError, LimitError, OSError]

    @pytest.mark.parametrize(
        ("state", "line"),
        [
            *((make_session, line) for line in b"XYZZY||CAPA x|STAT|PASS x|USER|USER \xff|USER a\0|AUTH X".split(b"|")),
            *((make_session, line) for line in b"APOP a b|UTF8|UTF8 x|LANG|LANG *|LANG en".split(b"|")),
            *(
                (begin, line)
                for line in b"USER x|RETR|RETR x|RETR \xff|TOP 1|TOP x 1|TOP 1 x|TOP 1 -1|LANG".split(b"|")
            ),
            (begin, b"NOOP".ljust(LONGEST + 1)),
        ],
        ids=name_of,
    )
    def test_what_counts_as_bad(self, state: Callable[..., Session], line: bytes) -> None:
        """A command that is unknown, malformed, not offered or in the wrong state counts in max_bad_commands."""
        session = state(MemoryHandler(Mail(*TWO)), max_bad_commands=2)
        assert all(map(is_refusal, ask(session, line, line))) and session.over

    def test_refusals_are_not_bad_commands(self) -> None:
        """A well-formed command on a message that is not there does not count as bad."""
        session = begin(MemoryHandler(Mail()), max_bad_commands=2)
        assert all(map(is_refusal, ask(session, *[b"RETR 7"] * 10))) and goes_on(session)

    def test_a_refusal_ends_a_row(self) -> None:
        """Like a good command, it is none of the bad ones in a row, whose count begins anew."""
        session = begin(MemoryHandler(Mail()), max_bad_commands=2)
        ask(session, b"XYZZY", b"RETR 7", b"XYZZY")
        assert not session.over
        ask(session, b"RETR 7", b"XYZZY", b"XYZZY")
        assert session.over

    def test_no_login_may_fail(self) -> None:
        """A backend that failed has not refused the client, so even a limit of 0 does not end the session."""
        handler = altered(authenticate_pass=raising(ReportableError("later", code="SYS/TEMP")))
        session = make_session(handler, max_failed_logins=0)
        assert ask(session, *SIGN_IN)[-1] == b"-ERR [SYS/TEMP] later\r\n" and goes_on(session)

    def test_no_limits(self) -> None:
        """None switches a limit off: each bad command and each refused sign-in is still answered, and soon."""
        handler = MemoryHandler(Mail())
        session = make_session(handler, max_bad_commands=None, max_failed_logins=None)
        assert all(map(is_refusal, ask(session, *[b"XYZZY"] * 1000)))
        for _ in range(1100):
            assert ask(session, b"USER alice", b"PASS wrong")[1].startswith(b"-ERR [AUTH] ")
        session.respond(b"USER alice")
        assert session.respond(b"PASS wrong").delay <= 60
        assert goes_on(session) and not handler.mail.errors

    def test_failed_logins(self) -> None:
        """Each failed login is held back longer than the one before; the last one allowed ends the session."""
        handler = altered(authenticate_apop=raising(ReportableError("no")))
        session = make_session(handler, max_failed_logins=3, banner=BANNER)
        delays = [0.0]
        for line in (b"PASS wrong", APOP, b"PASS wrong"):
            assert goes_on(session)
            user, reply = session.respond(b"USER alice"), session.respond(line)
            assert reply.status.startswith(b"-ERR [AUTH] ") and user.delay == 0
            delays.append(reply.delay)
        assert delays == sorted(set(delays)) and delays[-1] <= 5
        assert session.over and kinds(handler.mail.errors) == [LimitError]

    def test_delays_of_failed_logins(self) -> None:
        """The first costs a quarter of a second, each further one twice as much, and none more than 16 seconds."""
        session = make_session(MemoryHandler(Mail()), max_failed_logins=None)
        delays = [[session.respond(line).delay for line in (b"USER alice", b"PASS wrong")][1] for _ in range(9)]
        assert delays == [0.25, 0.5, 1, 2, 4, 8, 16, 16, 16]

    def test_sign_in_after_failed_logins(self) -> None:
        """Below the limit the right password lets the client in, at once."""
        session = make_session(MemoryHandler(Mail()), max_failed_logins=3)
        ask(session, *[b"USER alice", b"PASS wrong"] * 2, b"USER alice")
        reply = session.respond(b"PASS secret")
        assert reply.status.startswith(b"+OK") and reply.delay == 0


REFUSES = raising(ReportableError("no"))
RAISES = raising(OSError())
EXITS = raising(SystemExit())
DELETE = [*SIGN_IN, b"DELE 1", b"QUIT"]

# What is replaced in the handler, what the client sends, how often unlock_maildrop is called in the end.
PATHS: dict[str, tuple[dict[str, Callable[..., Any]], list[bytes], int]] = {
    "nothing sent": ({}, [], 0),
    "QUIT at once": ({}, [b"QUIT"], 0),
    "wrong password": ({}, [b"USER alice", b"PASS wrong"], 0),
    "lock refuses": ({"lock_maildrop": REFUSES}, SIGN_IN, 0),
    "lock raises": ({"lock_maildrop": RAISES}, SIGN_IN, 0),
    "lock returns something": ({"lock_maildrop": returning(True)}, SIGN_IN, 1),
    "count refuses": ({"get_message_count": REFUSES}, SIGN_IN, 1),
    "count refuses twice": ({"get_message_count": REFUSES}, SIGN_IN * 2, 2),
    "count raises": ({"get_message_count": RAISES}, SIGN_IN, 1),
    "count is wrong": ({"get_message_count": returning(None)}, SIGN_IN, 1),
    "size exits": ({"get_message_size": EXITS}, SIGN_IN, 1),
    "count and unlock raise": ({"get_message_count": RAISES, "unlock_maildrop": RAISES}, SIGN_IN, 1),
    "end without QUIT": ({}, DELETE[:-1], 1),
    "end, unlock refuses": ({"unlock_maildrop": REFUSES}, DELETE[:-1], 1),
    "end, unlock raises": ({"unlock_maildrop": RAISES}, SIGN_IN, 1),
    "end, unlock exits": ({"unlock_maildrop": EXITS}, SIGN_IN, 1),
    "QUIT": ({}, [*SIGN_IN, b"QUIT"], 1),
    "QUIT and delete": ({}, DELETE, 1),
    "QUIT, unlock raises": ({"unlock_maildrop": RAISES}, [*SIGN_IN, b"QUIT"], 1),
    "QUIT, unlock returns": ({"unlock_maildrop": returning(1)}, [*SIGN_IN, b"QUIT"], 1),
    "delete refuses": ({"delete_messages": REFUSES}, DELETE, 1),
    "delete exits": ({"delete_messages": EXITS}, DELETE, 1),
    "delete returns": ({"delete_messages": returning(1)}, DELETE, 1),
    "delete and unlock raise": ({"delete_messages": RAISES, "unlock_maildrop": RAISES}, DELETE, 1),
    "close raises": ({"close": RAISES}, SIGN_IN, 1),
    "close exits": ({"close": EXITS}, [*SIGN_IN, b"QUIT"], 1),
}


class TestEnd:
    @each("path", PATHS)
    def test_lock_and_unlock_are_paired(self, path: str) -> None:
        """unlock_maildrop is called once for each lock_maildrop that returned, and close once, last (promise 3)."""
        methods, lines, unlocks = PATHS[path]
        handler = altered(ClosingHandler, **methods)
        session = make_session(handler)
        ask(session, *lines)
        session.close()
        assert handler.mail.count("unlock_maildrop") == unlocks
        assert handler.mail.count("close") == 1 and handler.mail.calls[-1] == ("close",)
        assert handler.mail.count("delete_messages") == (lines == DELETE)

    def test_broken_listing(self) -> None:
        """A listing that fails after the lock was taken releases it before the refusal (RFC 1939 section 4)."""

        def listing() -> Iterator[tuple[int, str]]:
            yield 1, "a"
            raise OSError("the backend went away")

        handler = altered(ListingHandler, list_messages=listing)
        session = make_session(handler)
        assert ask(session, *SIGN_IN)[1] == INTERNAL and session.over
        assert handler.mail.calls[-1] == ("unlock_maildrop",) and kinds(handler.mail.errors) == [OSError]

    @each(
        ("lines", "deleted"),
        [
            (b"QUIT", []),
            (b"DELE 3|DELE 1|DELE 3|quit", [1, 3]),
            (b"DELE 1|RSET|QUIT", []),
            (b"DELE 1|RSET|DELE 2|QUIT", [2]),
            (b"DELE 1|DELE 2|DELE 3|QUIT", [1, 2, 3]),
        ],
    )
    def test_quit(self, lines: bytes, deleted: list[int]) -> None:
        """QUIT deletes what is marked, ascending and once, unlocks, then says +OK (promise 2, RFC 1939 section 6)."""
        handler = MemoryHandler(Mail(b"1\n", b"2\n", b"3\n"))
        session = begin(handler)
        asked = len(handler.mail.calls)
        assert ask(session, *lines.split(b"|"))[-1].startswith(b"+OK") and session.over
        session.close()
        deletions = [("delete_messages", deleted)] if deleted else []
        assert handler.mail.calls[asked:] == [*deletions, ("unlock_maildrop",)]

    @each("method", ["delete_messages", "unlock_maildrop"])
    @pytest.mark.parametrize(
        ("action", "status"),
        [
            (raising(ReportableError("disk full", code="SYS/PERM")), b"-ERR [SYS/PERM] disk full\r\n"),
            (raising(OSError("secret")), INTERNAL),
            (raising(SystemExit()), INTERNAL),
            (returning([1]), BROKEN),
        ],
        ids=["refuses", "raises", "exits", "returns"],
    )
    def test_quit_that_failed(self, method: str, action: Callable[..., Any], status: bytes) -> None:
        """If the deletion or the unlocking fails, QUIT is -ERR; the session ends and is unlocked all the same."""
        handler = altered(**{method: action})
        session = begin(handler)
        assert ask(session, b"DELE 1", b"QUIT")[1] == status and session.over
        assert [call[0] for call in handler.mail.calls[-2:]] == ["delete_messages", "unlock_maildrop"]
        assert len(handler.mail.errors) == (status in (INTERNAL, BROKEN))

    def test_quit_before_sign_in(self) -> None:
        """QUIT in the AUTHORIZATION state asks nothing of the handler (RFC 1939 section 4)."""
        handler = MemoryHandler(Mail(*TWO))
        session = make_session(handler)
        assert ask(session, b"USER alice", b"QUIT")[1].startswith(b"+OK") and session.over
        assert not handler.mail.calls

    @each("line", [b"QUIT x", b"QUIT\r", b"QUI"])
    def test_no_quit_no_deletion(self, line: bytes) -> None:
        """Nothing but QUIT deletes: not half of it, not QUIT with an argument, not the connection's end (promise 2)."""
        handler = MemoryHandler(Mail(*TWO))
        session = begin(handler)
        ask(session, b"DELE 1", line)
        session.close()
        assert session.over and handler.mail.calls[-1] == ("unlock_maildrop",)
        assert not handler.mail.count("delete_messages")
