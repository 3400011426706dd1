"""The session beside a small model of a maildrop: the same octets go into both, the same answers come out.

The model shares no code with the library.  It is written from the RFCs and the contract, the plain and slow way.
"""

from __future__ import annotations

import io
import itertools
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import popart
from popart.command_lines import LineReader
from popart.replies import Reply
from tests.conftest import Mail, MemoryHandler, make_session

BANNER = "<1234.5678@localhost>"
DIGEST = "0123456789abcdef" * 2
PASSWORD = "a secret "
MAX_BAD_COMMANDS = 6
MAX_FAILED_LOGINS = 3
MAX_LINE = 1024
MAX_AUTH_LINE = 12_288
CAPABILITIES = {b"TOP", b"UIDL", b"USER", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE", b"IMPLEMENTATION popart"}

MESSAGES = [
    b"",
    b"\n",
    b".",
    b"Subject: LF\n\n.one\n..two\nthree",
    b"Subject: CRLF\r\n\r\n.\r\n.\r\n...\r\n\r\nlast\r\n",
    b"no header, no end of line",
    b"\r\n.only\r\n.a body\n",
    b"Subject: lone CRs\r\rX: \r\n\n\r\r\n.\r.\n\r",
    b"Subject: 8-bit and NUL\n\n\xff\x00.\n.\x00\n",
    b"Subject: header only\n",
]

# What the client says; what stands here twice is said twice as often.  {9} stands for nine octets.
NUMBERS = b"1|2|3|4".split(b"|")
OTHER_NUMBERS = b"0|01|5|9999999999".split(b"|")
NO_NUMBERS = b"+1|-1|1_0| 1|1 |1 2|x|\xff|\xef\xbc\x91|\0|11111111111|{900}".split(b"|")
RIGHT, *WRONG = map(
    b64encode, [b"\0alice\0a secret ", b"\0alice\0x", b"\0bob\0a secret ", b"bob\0alice\0a secret ", b"b\0\xff\0"]
)
NO_RESPONSES = [
    *map(b64encode, [b"alice", b"\0alice", b"\0alice\0", b"\0\0x", b"\0\0\0", b"\0a\n\0x", b"\0\xff\0x", b"\0a\0\xff"]),
    *[RIGHT[:-1], RIGHT + b"=", b"!" + RIGHT, b"=" + RIGHT, RIGHT + b" ", b"***", b"\xff", b"{12280}", b"{13000}"],
]
SIGN_INS = [
    *[b"AUTH PLAIN " + RIGHT, b"auth plain\r\n" + RIGHT, b"AUTH PLAIN " + b64encode(b"alice\0alice\0a secret ")] * 2,
    *[b"AUTH PLAIN \r\n*\r\nAUTH\r\nAUTH PLAIN\r\n" + RIGHT, b"USER alice\r\nAUTH PLAIN\r\n*\r\nPASS a secret "],
    *[b"AUTH PLAIN " + response for response in WRONG],
    *[b"AUTH PLAIN\n" + response for response in WRONG],
    *[b"USER alice\r\nPASS a secret "] * 12,
    *[b"APOP alice " + digest.encode() for digest in (DIGEST, DIGEST.upper(), DIGEST[::-1])],
    *[b"user bob\nPass a secret ", b"USER alice\r\nPASS a secret", b"USER alice\nPASS  a secret ", b"NOOP"],
    b"USER alice\r\nPASS x\r\nPASS a secret ",
    b"USER bob\r\nPASS\r\nUSER alice\r\nNOOP\r\nPASS a secret ",
]
GOOD = [
    *[b"%s %s" % (keyword, number) for keyword in b"LIST|UIDL|RETR|retr|DELE|dele".split(b"|") for number in NUMBERS],
    *[b"TOP %s %s" % (number, lines) for number in NUMBERS for lines in b"0|1|2|99999999".split(b"|")],
    *b"STAT|STAT|LIST|list|UIDL|uidl |RSET|Rset|CAPA|NOOP|QUIT|quit ".split(b"|"),
]
BAD = [
    *[
        keyword + number
        for keyword in b"LIST |UIDL |RETR |DELE |TOP ".split(b"|")
        for number in OTHER_NUMBERS + NO_NUMBERS
    ],
    *[b"TOP %s 1" % number for number in OTHER_NUMBERS],
    *[b"TOP 1 " + lines for lines in NO_NUMBERS],
    *b"TOP|RETR|DELE |STAT x|RSET x|NOOP x|QUIT x|CAPA x| NOOP|NOOP\t|NOOP\r|\rNOOP|NO\rOP|NOOP\0".split(b"|"),
    *b"USER|USER |USER \xff|USER a b|USER a\0b|PASS|PASS |PASS \xff|PASS x|APOP|APOP alice|APOP alice 0123".split(b"|"),
    *[b"APOP  " + DIGEST.encode(), b"APOP alice " + b"g" * 32],
    *b"AUTH|AUTH |AUTH X|AUTH PLAIN|AUTH PLAIN =|AUTH PLAIN *|AUTH PLAIN {12277}|AUTH PLAIN {12278}".split(b"|"),
    *[b"AUTH PLAIN\n" + response for response in NO_RESPONSES],
    *[b"AUTH PLAIN " + response for response in NO_RESPONSES],
    *b"| |\r|\0|\xff\xfe|XYZZY|LAST|STLS|\xc5\xbftat|GET / HTTP/1.1|\x16\x03\x01\x02\0".split(b"|"),
    *[b"USER {%d}" % length for length in (MAX_LINE - 5, MAX_LINE - 4, 12_288, 12_289, 13_000, 40_000)],
]


def on_the_wire(message: bytes) -> list[bytes]:
    """Return a message's lines as RFC 1939 wants them, dots not yet stuffed."""
    message = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    if message and not message.endswith(b"\r\n"):
        message += b"\r\n"
    return [line + b"\r\n" for line in message.split(b"\r\n")[:-1]]


def size(message: bytes) -> int:
    return sum(map(len, on_the_wire(message)))


def unique_id(message: bytes) -> str:
    return f"id-{MESSAGES.index(message)}"


@dataclass(frozen=True)
class Answer:
    """What the model expects of a reply."""

    status: str
    """A regular expression for the first line."""
    rest: bytes | set[bytes] = b""
    """All further octets; of a list of capabilities, only what must be among them."""


BASE64 = re.compile(rb"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
OK = r"\+OK .+"
ERR = r"-ERR [^\[].*"


def multi_line(lines: list[bytes]) -> Answer:
    return Answer(OK, b"".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n")


@dataclass
class ModelMaildrop:
    """What outlasts the sessions."""

    messages: list[bytes]
    locked: bool = False
    limits_reached: int = 0


@dataclass
class ModelSession:
    """A client's session in its plainest form."""

    maildrop: ModelMaildrop
    with_apop: bool
    signed_in: bool = False
    over: bool = False
    name: str | None = None
    deleted: set[int] = field(default_factory=set)
    bad_commands: int = 0
    failed_logins: int = 0
    challenged: bool = False

    def answer_all(self, octets: bytes) -> Iterator[Answer]:
        """Answer lines for as long as the session lasts."""
        for line in octets.split(b"\n")[:-1]:
            if not self.over:
                yield self.answer(line.removesuffix(b"\r"))

    def answer(self, line: bytes) -> Answer:
        """Answer a line, and count those in a row that are unknown, malformed or misplaced."""
        answer = self.run(line)
        if answer is None:
            self.bad_commands += 1
            self.name = None
        elif not self.challenged:
            self.bad_commands = 0
        if self.bad_commands == MAX_BAD_COMMANDS:
            self.reach_limit()
        return answer or Answer(ERR)

    def reach_limit(self) -> None:
        self.over = True
        self.maildrop.limits_reached += 1

    def run(self, line: bytes) -> Answer | None:
        if self.challenged:
            self.challenged = False
            return self.authenticate(line)
        if line.startswith((b"\x16\x03", b"GET / HTTP/")):
            self.over = True
        keyword, _, octets = line.partition(b" ")
        if len(line) > (MAX_AUTH_LINE if keyword.upper() == b"AUTH" else MAX_LINE) or b"\0" in line:
            return None
        try:
            rest = octets.decode()
        except UnicodeDecodeError:
            return None
        messages = {n: message for n, message in enumerate(self.maildrop.messages, 1) if n not in self.deleted}
        match keyword.upper(), bool(rest), self.signed_in:
            case b"CAPA", False, _:
                return Answer(OK, CAPABILITIES | {b"SASL PLAIN", b"EXPIRE 7" if self.signed_in else b"EXPIRE 7 USER"})
            case b"NOOP", False, True:
                return Answer(OK)
            case b"QUIT", False, _:
                return self.quit()
            case b"USER", True, False:
                self.name = rest
                return Answer(OK)
            case b"PASS", True, False if self.name:
                name, self.name = self.name, None
                return self.sign_in((name, rest) == ("alice", PASSWORD))
            case b"APOP", True, False if self.with_apop and re.fullmatch("[^ ]+ [0-9A-Fa-f]{32}", rest):
                return self.sign_in(rest.lower() == f"alice {DIGEST}")
            case b"AUTH", False, False:
                return Answer(OK, b"PLAIN\r\n.\r\n")
            case b"AUTH", True, False if rest.upper() in ("PLAIN", "PLAIN "):
                self.challenged = True
                self.name = None
                return Answer(r"\+ ")
            case b"AUTH", True, False if rest.upper().startswith("PLAIN "):
                self.name = None
                return self.authenticate(b"" if rest[6:] == "=" else rest[6:].encode())
            case b"STAT", False, True:
                return Answer(rf"\+OK {len(messages)} {sum(map(size, messages.values()))}")
            case b"RSET", False, True:
                self.deleted = set()
                return Answer(OK)
            case b"LIST", False, True:
                return multi_line([b"%d %d\r\n" % (n, size(message)) for n, message in messages.items()])
            case b"UIDL", False, True:
                return multi_line([f"{n} {unique_id(message)}\r\n".encode() for n, message in messages.items()])
            case b"LIST", True, True:
                return self.find(rest, messages, lambda n: Answer(rf"\+OK {n} {size(messages[n])}"))
            case b"UIDL", True, True:
                return self.find(rest, messages, lambda n: Answer(rf"\+OK {n} {unique_id(messages[n])}"))
            case b"RETR", True, True:
                return self.find(rest, messages, lambda n: multi_line(on_the_wire(messages[n])))
            case b"DELE", True, True:
                return self.find(rest, messages, self.delete)
            case b"TOP", True, True if " " in rest:
                number, _, lines = rest.partition(" ")
                return self.find(number, messages, lambda n: self.top(messages[n], lines))
        return None

    def authenticate(self, response: bytes) -> Answer | None:
        if len(response) > MAX_AUTH_LINE or not BASE64.fullmatch(response):
            return None
        identity, *name_and_password = b64decode(response).split(b"\0")
        if len(name_and_password) != 2:
            return None
        if identity not in (b"", name_and_password[0]):
            return self.sign_in(False)
        try:
            name, password = [octets.decode() for octets in name_and_password]
        except UnicodeDecodeError:
            return None
        if not (name and password) or re.search(r"[\r\n]", name + password):
            return None
        return self.sign_in((name, password) == ("alice", PASSWORD))

    def sign_in(self, welcome: bool) -> Answer:
        if not welcome:
            self.failed_logins += 1
            if self.failed_logins == MAX_FAILED_LOGINS:
                self.reach_limit()
            return Answer(r"-ERR \[AUTH\] .+")
        if self.maildrop.locked:
            return Answer(r"-ERR \[IN-USE\] .+")
        self.signed_in = self.maildrop.locked = True
        return Answer(OK)

    def find(self, number: str, messages: dict[int, bytes], act: Callable[[int], Answer | None]) -> Answer | None:
        if not re.fullmatch("[0-9]{1,10}", number):
            return None
        return act(int(number)) if int(number) in messages else Answer(ERR)

    def delete(self, n: int) -> Answer:
        self.deleted.add(n)
        return Answer(OK)

    def top(self, message: bytes, lines: str) -> Answer | None:
        if not re.fullmatch("[0-9]{1,10}", lines):
            return None
        all_lines = on_the_wire(message)
        header = all_lines.index(b"\r\n") + 1 if b"\r\n" in all_lines else len(all_lines)
        return multi_line(all_lines[: header + int(lines)])

    def quit(self) -> Answer:
        messages = self.maildrop.messages
        messages[:] = [message for n, message in enumerate(messages, 1) if n not in self.deleted]
        self.leave()
        return Answer(OK)

    def leave(self) -> None:
        self.over = True
        if self.signed_in:
            self.signed_in = self.maildrop.locked = False


class ShortReader(io.BytesIO):
    def __init__(self, message: bytes, most: int) -> None:
        super().__init__(message)
        self.most = most

    def read(self, n: int | None = -1, /) -> bytes:
        return super().read(self.most)


class PlainHandler(MemoryHandler):
    """Deletes for good, and reads its messages in small pieces."""

    def __init__(self, mail: Mail, most: int) -> None:
        super().__init__(mail)
        self.most = most
        self.readers: list[ShortReader] = []

    def authenticate_pass(self, username: str, password: str) -> None:
        if (username, password) != ("alice", PASSWORD):
            raise popart.ReportableError("no")

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        if (username, hexdigest) != ("alice", DIGEST):
            raise popart.ReportableError("no")

    def get_message_size(self, number: int) -> int:
        return size(self.mail.messages[number - 1])

    def get_message_id(self, number: int) -> str:
        return unique_id(self.mail.messages[number - 1])

    def get_message_reader(self, number: int) -> ShortReader:
        self.readers.append(ShortReader(self.mail.messages[number - 1], self.most))
        return self.readers[-1]

    def delete_messages(self, numbers: list[int]) -> None:
        for number in reversed(numbers):
            del self.mail.messages[number - 1]


class AbleHandler(PlainHandler):
    """Satisfies SupportsListing and SupportsTop."""

    def list_messages(self) -> Iterator[tuple[int, str]]:
        return ((size(message), unique_id(message)) for message in self.mail.messages)

    def get_top_reader(self, number: int, lines: int) -> ShortReader:
        return self.get_message_reader(number)


def octets_of(reply: Reply) -> bytes:
    if reply.message is None:
        return reply.head()
    with closing(reply.message) as pieces:
        return reply.head() + b"".join(pieces)


class Connection:
    """A session and its model, fed with the same octets."""

    def __init__(self, handler: PlainHandler, maildrop: ModelMaildrop, with_apop: bool) -> None:
        self.handler = handler
        self.session = make_session(
            handler,
            expire="7 USER",
            banner=BANNER if with_apop else None,
            max_bad_commands=MAX_BAD_COMMANDS,
            max_failed_logins=MAX_FAILED_LOGINS,
        )
        self.lines = LineReader()
        self.model = ModelSession(maildrop, with_apop)

    def send(self, octets: bytes, cuts: list[int]) -> None:
        replies = []
        stream = io.BytesIO(octets)
        for length in itertools.chain(cuts, [len(octets)]):
            for line in self.lines.feed(stream.read(length)):
                if self.session.over:
                    break
                reply = self.session.respond(line)
                replies.append(octets_of(reply))
                assert bool(reply.delay) == replies[-1].startswith(b"-ERR [AUTH]")
        answers = list(self.model.answer_all(octets))
        for reply_octets, answer in zip(replies, answers, strict=False):
            check(reply_octets, answer)
        assert len(replies) == len(answers)
        assert self.session.over == self.model.over
        assert self.handler.mail.locked == self.model.maildrop.locked  # QUIT's answer comes after the unlocking
        assert all(reader.closed for reader in self.handler.readers)

    def leave(self, unfinished: bytes) -> None:
        assert self.session.over or not self.lines.feed(unfinished)
        self.session.close()
        self.model.leave()


def check(octets: bytes, answer: Answer) -> None:
    status, _, rest = octets.partition(b"\r\n")
    assert re.fullmatch(answer.status, status.decode("ascii"))
    if isinstance(answer.rest, set):
        *capabilities, dot, end = rest.split(b"\r\n")
        assert answer.rest <= set(capabilities)
        assert (dot, end) == (b".", b"")
    else:
        assert rest == answer.rest


WHO = st.sampled_from([0, 0, 0, 1])
LINE_END = st.sampled_from([b"\r\n", b"\n"])
CUTS = st.lists(st.sampled_from([1, 2, 3, 5, 8, 13, 40, 5000]), max_size=6)


def some(choice: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.sampled_from(choice), min_size=1, max_size=12)


class Maildrop(RuleBasedStateMachine):
    """Two clients of one maildrop, each of which comes again when its session is over."""

    @initialize(
        messages=st.just([]) | st.lists(st.sampled_from(MESSAGES), min_size=3, max_size=6, unique=True),
        handler_class=st.sampled_from([PlainHandler, AbleHandler]),
        most=st.sampled_from([1, 2, 3, 7, 65_536]),
        with_apop=st.booleans(),
    )
    def begin(self, messages: list[bytes], handler_class: type[PlainHandler], most: int, with_apop: bool) -> None:
        self.mail = Mail(*messages)
        self.maildrop = ModelMaildrop(messages)
        self.connect = lambda: Connection(handler_class(self.mail, most), self.maildrop, with_apop)
        self.connections = [self.connect(), self.connect()]

    @rule(who=WHO, sign_in=st.sampled_from(SIGN_INS), lines=some(GOOD), line_end=LINE_END, cuts=CUTS)
    def work(self, who: int, sign_in: bytes, lines: list[bytes], line_end: bytes, cuts: list[int]) -> None:
        """A client sends several lines at once, the first of them to sign in if it has not yet."""
        connection = self.connections[who]
        if not connection.model.signed_in:
            lines = [sign_in, *lines]
        octets = b"".join(line + line_end for line in lines)
        connection.send(re.sub(rb"{(\d+)}", lambda found: int(found[1]) * b"1", octets), cuts)
        if connection.model.over:
            self.leave(who, b"")

    @rule(who=WHO, lines=some(GOOD * 3 + BAD), junk=st.binary(max_size=9), line_end=LINE_END, cuts=CUTS)
    def blunder(self, who: int, lines: list[bytes], junk: bytes, line_end: bytes, cuts: list[int]) -> None:
        """A client sends much that is wrong."""
        self.work(who, b"NOOP", [*lines, junk], line_end, cuts)

    @rule(who=WHO, unfinished=st.sampled_from([b"", b"QUIT", b"QUIT\r"]))
    def leave(self, who: int, unfinished: bytes) -> None:
        """A client goes without QUIT, and comes again."""
        self.connections[who].leave(unfinished)
        self.connections[who] = self.connect()

    @invariant()
    def same_maildrop(self) -> None:
        assert self.mail.messages == self.maildrop.messages
        assert self.mail.locked == self.maildrop.locked
        assert self.mail.count("lock_maildrop") - self.mail.count("unlock_maildrop") == self.maildrop.locked
        assert [type(error) for error in self.mail.errors] == [popart.LimitError] * self.maildrop.limits_reached

    def teardown(self) -> None:
        for connection in self.connections:
            connection.leave(b"")
        assert self.mail.count("lock_maildrop") == self.mail.count("unlock_maildrop")


def test_session_and_model_agree() -> None:
    """Whatever two clients send, however it is cut, the session answers, locks and deletes as the model does."""
    run_state_machine_as_test(
        Maildrop,
        settings=settings(max_examples=600, stateful_step_count=12, derandomize=True, report_multiple_bugs=False),
    )
