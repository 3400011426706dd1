"""Transcripts: what was said in a session, with times and without secrets, in Python and in pytest's reports."""

from __future__ import annotations

import re
import sys
import threading
from base64 import b64encode
from datetime import datetime
from types import FrameType
from xml.etree import ElementTree

import pytest

from popart.testing import MailServer, SessionRecord
from popart.testing.report import sections
from popart.testing.server import started
from popart.testing.session_record import Entry, moments

from .conftest import wait_until
from .test_pytest_plugin import Run, run
from .test_testing import MESSAGE, connected, dial, sign_in_by_scram, signed_in

__all__ = ["run"]  # a fixture

pytest_plugins = ["pytester"]


def without_times(transcript: str) -> list[str]:
    """Return its lines; each first line of an entry begins with the time of day, and the others are as far in."""
    lines = []
    for line in transcript.split("\n"):
        found = re.fullmatch(r"(?:\d\d:\d\d:\d\d\.\d{3}| {12}) (.*)", line)
        lines.append(found[1] if found else line)
    return lines


def test_a_conversation() -> None:
    """Both sides of a session, in order, with its faults and its end."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE, unique_id="id-1")
        server.fail("DELE", code="SYS/TEMP")
        with signed_in(server) as client:
            client.ask(b"uidl")
            client.lines()
            client.ask(b"DELE 1")
            client.ask(b"RETR 1")
            client.lines()
            assert without_times(server.transcript())[0] == "session 1 of alice, still open"
            client.ask(b"QUIT")
        server.wait_for_session_end()
    assert without_times(server.transcript()) == [
        "session 1 of alice",
        "S: +OK POP3 server ready",
        "C: USER alice",
        "S: +OK send PASS",
        "C: PASS ***",
        "S: +OK maildrop has 1 message (27 octets)",
        "C: UIDL",
        "S: +OK unique-id listing follows",
        "   1 id-1",
        "   .",
        "C: DELE 1",
        "*: fail('DELE', code='SYS/TEMP')",
        "S: -ERR [SYS/TEMP] failed on demand",
        "C: RETR 1",
        "S: +OK 27 octets",
        "   Subject: x",
        "   ",
        "   hello",
        "   ..dot",
        "   .",
        "C: QUIT",
        "S: +OK goodbye",
        "*: the session is over",
    ]


def test_after_quit() -> None:
    """A session whose client has sent QUIT is not called open, though it may be seen before its end."""
    seen = threading.Event()

    class Slow(MailServer):
        def _end_session(self, record: SessionRecord) -> None:
            seen.wait(60)
            super()._end_session(record)

    with Slow() as server, signed_in(server) as client:
        client.ask(b"QUIT")
        text = without_times(server.transcript())
        seen.set()
    assert (text[0], text[-1]) == ("session 1 of alice", "S: +OK goodbye")


def test_no_secrets() -> None:
    """Passwords, digests, tokens and each line of an exchange are ***, whatever it holds and however it ends."""
    options = {"tokens": {"alice": "token"}, "login": True, "scram": True, "apop": True}
    with MailServer(users={"alice": "hunter2"}, max_failed_logins=None, **options) as server:
        with connected(server) as client:
            client.ask(b"PASS hunter2")
            client.ask(b"pass\thunter2")
            client.ask(b"APOP alice " + b"c0ffee" * 5)
            client.ask(b"AUTH PLAIN " + b64encode(b"\0alice\0hunter2"))
            client.ask(b"AUTH PLAIN")
        with connected(server) as client:
            client.ask(b"AUTH LOGIN")
            client.ask(b"hunter2")
            client.ask(b"AUTH LOGIN")
            client.ask(b64encode(b"alice"))
            client.ask(b64encode(b"hunter2"))
        with connected(server) as client:
            client.ask(b"AUTH XOAUTH2 " + b64encode(b"user=alice\1auth=Bearer token\1\1"))
            client.ask(b"QUIT")
        with connected(server) as client:
            sign_in_by_scram(client, "alice", "hunter2")
            client.ask(b"QUIT")
        server.wait_for_session_end(sessions=4)
        text = server.transcript()
    secrets = [b"hunter2", b"\0alice\0hunter2", b"alice", b"user=alice\1auth=Bearer token\1\1"]
    for secret in ["hunter2", "c0ffee", "token", *[b64encode(secret).decode() for secret in secrets]]:
        assert secret not in text
    assert text.count("***") >= 11
    assert text.count("session ") >= 4


def test_no_secrets_in_wrong_places() -> None:
    """A client's mistake shows no user's password or token, whatever the line is, and leaves all else to be read."""
    users = {"alice": "Hunter2", "bob": "1", "carol": "alice"}
    lines = [b"PASSHunter2", b"PASSW Hunter2", b"xpass Hunter2", b"STLS Hunter2", b"NOOP Hunter2", b"PASS",
             b"XYZZY " + b64encode(b"\0alice\0Hunter2"), b64encode(b"user=alice\1auth=Bearer ya29.x\1\1"),
             b"USER alice Hunter2", b"PASS x", b"NOOP", b"USER alice", b"PASS Hunter2", b"RETR 1", b"DELE 1 Hunter2",
             b"XYZZY 1", b"LAST two"]  # fmt: skip
    with MailServer(users, tokens={"alice": "ya29.x"}, max_bad_commands=None) as server:
        server.deliver("alice", MESSAGE)
        with connected(server) as client:
            for line in lines:
                client.ask(line)
                if line.startswith(b"RETR"):
                    client.lines()
            text = server.transcript()
            assert server.sessions[0].username == "alice"
    assert server.commands == [
        ("", "PASS***"), ("", "PASSW", "***"), ("", "XPASS", "***"), ("", "STLS", "***"), ("", "NOOP", "***"),
        ("", "PASS"), ("", "XYZZY", "***"), ("", "***"), ("", "USER", "alice", "***"), ("alice ***", "PASS", "***"),
        ("alice ***", "NOOP"), ("alice ***", "USER", "alice"), ("alice", "PASS", "***"), ("alice", "RETR", "1"),
        ("alice", "DELE", "***", "***"), ("alice", "XYZZY", "***"), ("alice", "LAST", "two"),
    ]  # fmt: skip
    assert "hunter2" not in text.lower()


def test_no_secrets_after_a_refusal() -> None:
    """A client may send its response although AUTH was refused: what is no command then is ***, until one comes."""
    response, answers = b64encode(b"\0alice\0hunter2"), 0
    with MailServer(users={"alice": "hunter2"}, login=True, max_bad_commands=None) as server:
        server.fail("AUTH PLAIN")
        with connected(server) as client:
            for line in (b"AUTH PLAIN", response, b"AUTH NTLM", response, response, b"CAPA"):
                answers += client.ask(line).startswith(b"-ERR")
            client.lines()
            client.ask(b"XYZZY one")
            client.ask(b"AUTH LOGIN")
            client.ask(b"!")
            client.ask(response)
            client.ask(b"AUTH PLAIN " + response)
            client.ask(b"XYZZY two")
        server.wait_for_session_end()
        text = f"{server.transcript()} {server.commands}"
    assert answers == 5
    assert response.decode() not in text and response.decode().upper() not in text and "hunter2" not in text
    assert "XYZZY one" in text and "XYZZY two" in text


def test_long_answers_are_abridged() -> None:
    """The beginning of a long answer is shown, how much more there was, and its final dot, if it came."""
    with MailServer() as server:
        server.deliver("alice", b"Subject: x\n\n" + b"x" * 5_000 + b"\n" + b"line\n" * 50)
        server.drop("RETR", after=3_000)
        with signed_in(server) as client:
            client.ask(b"TOP 1 50")
            client.lines()
            client.ask(b"RETR 1")
            client.rest()
        server.wait_for_session_end()
    lines = without_times(server.transcript())
    begin = lines.index("C: TOP 1 50")
    assert lines[begin + 1 : begin + 4] == ["S: +OK top of message follows", "   Subject: x", "   "]
    assert set(lines[begin + 4]) == {" ", "x"} and len(lines[begin + 4]) < 700
    assert re.fullmatch(r"   \.\.\. \d,?\d+ octets more", lines[begin + 5])
    assert lines[begin + 6 : begin + 9] == ["   .", "C: RETR 1", "*: drop('RETR', after=3000)"]
    assert re.fullmatch(r"   \.\.\. \d+ octets more", lines[begin + 13])
    assert lines[begin + 14] == "*: the session is over"


def test_many_lines_are_abridged() -> None:
    """A listing of many messages is, too, and the numbers add up."""
    with MailServer() as server:
        for _ in range(30):
            server.deliver("alice", b"x")
        with signed_in(server) as client:
            client.ask(b"LIST")
            octets = client.lines()
    lines = without_times(server.transcript())
    begin = lines.index("C: LIST")
    shown = "".join(f"{line[3:]}\r\n" for line in lines[begin + 2 : begin + 11])
    left = re.fullmatch(r"   \.\.\. (\d+) octets more", lines[begin + 11])
    assert left is not None and len(shown) + int(left[1]) + 3 == len(octets) == len(shown.encode()) + int(left[1]) + 3
    assert lines[begin + 12] == "   ."


def test_no_line_commands_a_terminal() -> None:
    """What a client or a message says is text: control characters are escaped, and octets that are no UTF-8."""
    with MailServer() as server:
        server.deliver("alice", b"\x1b[2J\r\n\xff \xc3\xa9 \x9b\r\n")
        with signed_in(server) as client:
            client.ask(b"\x1b]0;X\x07 \xff")
            client.ask(b"RETR 1")
            client.lines()
            client.ask(b"X" * 900)
        with connected(server) as client:
            client.ask(b"USER \x1b[3J\rsession 9 \xff")
    text = server.transcript()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert " of \\x1b[3J\\rsession 9 " in text
    assert "\\x1b[2J" in text and "\\xff \u00e9 \\x9b" in text and "\\x1b]0;X\\x07" in text
    assert "X" * 600 + "..." in text and "X" * 601 not in text


def test_errors_and_ends() -> None:
    """A client that left, and a greeting that was refused, are seen."""
    with MailServer() as server:
        server.refuse_connection()
        with dial(server) as sock:
            sock.recv(1000)
        server.wait_for_session_end()
        with signed_in(server):
            pass
        server.wait_for_session_end(sessions=2)
    assert without_times(server.transcript()) == [
        "session 1",
        "*: refuse_connection(code='SYS/TEMP')",
        "S: -ERR [SYS/TEMP] too many connections, please try again later",
        "*: the session is over",
        "",
        "session 2 of alice",
        "S: +OK POP3 server ready",
        "C: USER alice",
        "S: +OK send PASS",
        "C: PASS ***",
        "S: +OK maildrop has 0 messages (0 octets)",
        "*: ClientGoneError: the client left without QUIT",
        "*: the session is over",
    ]


def test_bounded() -> None:
    """A session's transcript holds its last 400 entries; a server's the last 100 sessions."""
    with MailServer() as server:
        with signed_in(server) as client:
            for _ in range(300):
                client.ask(b"NOOP")
            lines = server.transcript().split("\n")
        assert lines[1] == "... 205 earlier"
        assert len(lines) == 402
        for _ in range(100):
            with connected(server) as client:
                client.ask(b"QUIT")
        server.wait_for_session_end(sessions=101)
        text = server.transcript()
        assert text.startswith("session 2\n") and text.count("session is over") == 100
        assert len(server.sessions) == 101
        assert server.sessions[0].transcript().count("\n") < 5


# In pytest.


def test_report_of_a_failed_test(run: Run) -> None:
    """The conversation stands in the report of a failed test, whether its server came from a fixture or from a block.

    A test that passes shows nothing, and a test shows nothing of those before it.
    """
    result = run(
        """
        import poplib

        import pytest

        from popart.testing import MailServer

        kept = []

        def visit(server, name):
            client = poplib.POP3(server.host, server.port, timeout=10)
            client.user(name)
            client.quit()
            client.close()

        @pytest.fixture(scope="session")
        def long_lived():
            with MailServer() as server:
                yield server

        def test_passes(pop3_server, long_lived):
            visit(pop3_server, "passes")
            visit(long_lived, "passes")

        def test_fixture(pop3_server):
            visit(pop3_server, "fixture")
            assert False

        def test_block():
            with MailServer() as server:
                kept.append(server)
                visit(server, "block")
                assert False

        def test_session_scope(long_lived):
            visit(long_lived, "scope")
            assert False

        def test_nobody_came(pop3_server):
            assert False

        def test_no_server():
            assert False
        """
    )
    result.assert_outcomes(passed=1, failed=5)
    text = result.stdout.str()
    reports = {
        name: report
        for name, report in re.findall(r"^_+ (test_\w+) _+$(.*?)(?=^_+ test_|^=+ short)", text, re.M | re.S)
    }
    assert set(reports) == {"test_fixture", "test_block", "test_session_scope", "test_nobody_came", "test_no_server"}
    titled = {name for name, report in reports.items() if "POP3 conversation with pop3://127.0.0.1:" in report}
    assert titled == set(reports) - {"test_no_server"}
    for name in ("fixture", "block"):
        assert f"C: USER {name}\n" in reports[f"test_{name}"]
    assert "C: USER scope\n" in reports["test_session_scope"]
    assert "no client has come" in reports["test_nobody_came"]
    assert "USER passes" not in text
    assert text.count("C: USER") == 3


def test_report_of_a_unittest(run: Run) -> None:
    """unittest's tests under pytest have it as well."""
    result = run(
        """
        import poplib
        import unittest

        from popart.testing import MailServer

        class FetchTest(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.server = MailServer().start()
                cls.addClassCleanup(cls.server.stop)

            def test_it(self):
                client = poplib.POP3(self.server.host, self.server.port, timeout=10)
                client.quit()
                client.close()
                self.fail()
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*POP3 conversation with*", "*C: QUIT"])


def test_report_in_xml(run: Run, pytester: pytest.Pytester) -> None:
    """JUnit's XML, which is all that many a CI shows, has the conversation of a failed test."""
    result = run(
        """
        import poplib

        def test_it(pop3_server):
            client = poplib.POP3(pop3_server.host, pop3_server.port, timeout=10)
            client.quit()
            client.close()
            assert False
        """,
        "--junitxml=report.xml",
    )
    result.assert_outcomes(failed=1)
    failure = ElementTree.parse(pytester.path / "report.xml").find(".//failure")
    assert failure is not None and failure.text is not None
    assert re.search(r"POP3 conversation with .* C: QUIT\n", failure.text, re.DOTALL)
    assert result.stdout.str().count(" C: QUIT\n") == 1


def test_servers_that_start_while_a_report_is_made() -> None:
    """Tests in threads may start servers at any moment, here at each call: a report shows those that were there."""
    servers = [MailServer()]

    def start_another(frame: FrameType, event: str, argument: object) -> None:
        servers.append(MailServer())
        started[servers[-1]] = 0

    started[servers[0]] = since = next(moments)
    sys.setprofile(start_another)
    try:
        found = sections(since - 1)
    finally:
        sys.setprofile(None)
    assert found == [("POP3 conversation with pop3://127.0.0.1:0", "no client has come")]
    assert len(servers) > 1


def test_what_comes_after_a_refused_auth() -> None:
    """Some clients send the response anyway: what is no command is hidden then, until the next command, and only where
    a client signs in."""
    response = b64encode(b"\0alice\0secret")
    sent = [b"AUTH", b"a", b"AUTH CRAM-MD5", b"b", b"c", b"USER alice", b"d", b"AUTH PLAIN " + response, b"e",
            b"AUTH CRAM-MD5", b"f"]  # fmt: skip
    with MailServer() as server, connected(server) as client:
        for line in sent:
            client.ask(line)
            if line == b"AUTH":
                client.lines()
        words = [command[1:] for command in server.commands]
    refused = ("AUTH", "CRAM-MD5")
    assert words == [
        ("AUTH",), ("A",), refused, ("***",), ("***",), ("USER", "alice"), ("D",), ("AUTH", "PLAIN", "***"), ("E",),
        refused, ("F",),
    ]  # fmt: skip


def test_one_entry_too_many() -> None:
    """The 401st takes the place of the first, and the transcript says so."""
    with MailServer() as server, signed_in(server) as client:
        for _ in range(198):
            client.ask(b"NOOP")
        assert server.transcript().split("\n")[1] == "... 1 earlier"


def test_a_session_in_which_nothing_was_said() -> None:
    """It is in the transcript from its beginning on."""
    with MailServer() as server:
        server.delay_greeting()
        with dial(server):
            wait_until(lambda: "delay_greeting" in server.transcript())
            assert without_times(server.transcript()) == ["session 1, still open", "*: delay_greeting(inf)"]


@pytest.mark.parametrize("moment", [1_700_000_123.75, 1_700_000_123.03125])
def test_the_time_of_day(moment: float) -> None:
    """An entry begins with the hour, minute and second of this machine's clock, and the milliseconds."""
    begin = datetime.fromtimestamp(moment).isoformat(timespec="milliseconds")[11:]
    assert str(Entry(moment, "S", ["+OK", "x"])) == f"{begin} S: +OK\n                x"


def test_whose_test_a_session_belongs_to() -> None:
    """A report shows a session of an earlier test if something was said in it since: its end alone does not count."""
    with MailServer() as server:
        title = f"POP3 conversation with {server.url}"
        with connected(server) as client:
            wait_until(lambda: "POP3 server ready" in server.transcript())
            begin = next(moments)
            assert title not in dict(sections(begin))
            client.ask(b"USER alice")
            wait_until(lambda: "send PASS" in server.transcript())
            assert "C: USER alice" in dict(sections(begin))[title]
            begin = next(moments)
        server.wait_for_session_end()
        assert title not in dict(sections(begin))


@pytest.mark.parametrize("size", [3, 500, 10_000])
def test_an_answer_in_pieces_is_abridged(size: int) -> None:
    """It is shown as if it had come at once: what is left out is counted, and the final dot is there."""
    with MailServer() as server:
        server.deliver("alice", b"x" * 900)
        server.drip("RETR", 0, size=size)
        with signed_in(server) as client:
            client.ask(b"RETR 1")
            client.lines()
        server.wait_for_session_end()
    lines = without_times(server.transcript())
    begin = lines.index("S: +OK 902 octets")
    shown = 600 - len("+OK 902 octets\r\n")
    assert lines[begin + 1 : begin + 4] == ["   " + "x" * shown, f"   ... {902 - shown} octets more", "   ."]


def test_what_is_just_not_abridged() -> None:
    """An answer of eleven lines is whole, and so is a line of 600 octets."""
    with MailServer() as server:
        for _ in range(9):
            server.deliver("alice", b"x")
        with signed_in(server) as client:
            client.ask(b"X" * 600)
            client.ask(b"LIST")
            listing = client.lines().decode().splitlines()
        server.wait_for_session_end()
    lines = without_times(server.transcript())
    assert "C: " + "X" * 600 in lines
    begin = lines.index("C: LIST") + 2
    assert lines[begin : begin + 10] == [f"   {line}" for line in listing]


@pytest.mark.parametrize(
    ("secrets", "line", "shown"),
    [
        (["1"], "LANG 1", "LANG ***"),
        (["HELP"], "HELP", "HELP"),
        (["abc", "ab"], "xabcx", "X***X"),
        (["ab", "abc"], "xabcx", "X***X"),
        (["\ud800"], "xyzzy eHl6", "XYZZY eHl6"),
    ],
)
def test_what_is_masked(secrets: list[str], line: str, shown: str) -> None:
    """A secret where none belongs is masked as a whole, and what cannot be one is shown: a command that is known, and
    any line where a test has made a password that no client can send."""
    with MailServer() as server, connected(server) as client:
        server.users.update({f"user-{number}": secret for number, secret in enumerate(secrets)})
        client.ask(line.encode())
        assert server.commands == [("", *shown.split())]
