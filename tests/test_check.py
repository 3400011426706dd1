"""The check for handlers finds each wrong one, and nothing in right ones."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import popart
from popart.testing import MailServer
from popart.testing.check import CheckError, Report, check_handler
from popart.testing.check.__main__ import main
from popart.testing.check.client import Client, LateError, hide
from popart.testing.check.explanations import explain_raise, explain_result
from popart.testing.check.recorder import Recorder
from popart.testing.check.report import in_brackets
from popart.testing.wire.messages import ALL
from tests.conftest import PATIENCE, wait_until
from tests.test_docs import django_site  # noqa: F401
from tests.test_readme import code_blocks
from tests.wrong_handlers import (
    MESSAGES,
    MESSAGES_OF_BOB,
    WRONG,
    Drop,
    OpeningRefused,
    Reader,
    ReadersShareAPosition,
    Reading,
    Rewrites,
    Right,
    Speaking,
    Store,
    Tokens,
    Wrong,
)

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hold back refusals nor wait for long until a client is logged out."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    monkeypatch.setattr("popart.testing.check.locking.SILENCE", 0.1)


@pytest.fixture
def store() -> Iterator[Store]:
    """A store whose handlers are all done in the end."""
    threads = set(threading.enumerate())
    store = Store()
    yield store
    store.go_on.set()
    wait_until(lambda: set(threading.enumerate()) <= threads)


def check(handler: type[Right], store: Store, *, fails: bool = False, **options: Any) -> Report:
    """Check a handler whose user is alice with the password "secret"."""
    if fails:
        options["break_backend"] = store.break_backend
    if "token" not in options:
        options["password"] = "secret"
    options.setdefault("patience", PATIENCE)
    return check_handler(lambda peer: handler(store), user="alice", **options)


def special(report: Report) -> list[str]:
    """Return the notes but those that say that there is no second user, and that nothing is deleted."""
    return [note for note in report.notes if note not in (NOT_TWO_USERS, NOT_DELETED)]


# Wrong handlers.

FILE = Path(__file__).with_name("findings.txt")

FINDINGS: dict[str, list[str]] = {
    name: findings.splitlines()
    for name, findings in re.findall(r"(?m)^(\w+)\n((?:    .+\n)+)", FILE.read_text("utf-8"))
}
"""What the check says of each wrong handler, each finding as a line."""

NAMES = [*(wrong.handler.__name__ for wrong in WRONG), "explain_raise", "explain_result"]


def as_written(finding: str) -> str:
    """Return a finding as a line of the file, without what differs each time: how often, random ids and names."""
    more = re.sub(r"\(And \d+ more", "(And N more", finding)
    return "    " + re.sub(r"(?<=nobody-)[0-9a-f]{8}\b|(?:[0-9a-f]{16})+", "RANDOM", more)


def compare_findings(name: str, report: Report) -> None:
    """Compare a report with the file, or write the file anew, in the order of the handlers."""
    found = [as_written(finding) for finding in report.findings]
    if os.environ.get("WRITE_FINDINGS"):
        FINDINGS[name] = found
        written = ["\n".join([name, *FINDINGS[name], ""]) for name in NAMES if name in FINDINGS]
        FILE.write_text("".join(written), "utf-8")
    assert found == FINDINGS[name]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.handler.__name__)
def test_each_wrong_handler_is_found(wrong: Wrong, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """Each handler that is wrong has the findings that tests/findings.txt shows: what is wrong, what a client suffers,
    and what to change.

    After a change to the texts, or for a new handler, write the file anew, and read its diff:
    WRITE_FINDINGS=1 .venv/bin/python -m pytest -q tests/test_check.py -k each_wrong_handler
    """
    try:
        report = check(wrong.handler, store, **wrong.options)
    finally:
        store.go_on.set()
    capfd.readouterr()  # what the handler has printed
    assert report.findings, wrong.handler.__doc__
    assert [finding for finding in report.findings if not re.fullmatch(r"(?s).+, so .+\. [A-Z].+\.\)?", finding)] == []
    compare_findings(wrong.handler.__name__, report)


def test_what_is_said_of_each_method() -> None:
    """Whatever method raises, the finding says what a client suffers from that one, and what to change.

    As for `test_each_wrong_handler_is_found`, WRITE_FINDINGS=1 writes the file anew.
    """
    report = Report()
    for method in [
        *("on_new_connection", "authenticate_pass", "authenticate_apop", "authenticate_token"),
        *("get_scram_credentials", "lock_maildrop", "list_messages", "get_message_count", "get_message_size"),
        *("get_message_id", "get_message_reader", "get_top_reader", "read", "delete_messages", "unlock_maildrop"),
        *("handle_session_error", "close", "another"),
    ]:
        explain_raise(report, method, OSError(method))
    compare_findings("explain_raise", report)


def test_what_is_said_of_each_wrong_result() -> None:
    """Whatever is wrong with a result, the finding says so in popart's words, and then what to change."""
    report = Report()
    for text in [
        "message 1 ended after 5 octets, its size was said to be 7",
        "get_message_count must return an int, not a coroutine: popart calls plain functions",
        "list_messages must return an iterable, not async_generator",
        "the unique-id of message 1 is empty",
        "the reader of message 1 must return bytes, not str",
        "read returned 5",
        "authenticate_token must return None",
        "get_scram_credentials must return ScramCredentials or None",
        "delete_messages must return None",
        "the size of message 1 is -1",
        "get_message_count must return an int, not str",
        "list_messages must return pairs",
        "something else",
    ]:
        explain_result(report, text)
    compare_findings("explain_result", report)


def test_a_report() -> None:
    """What differs in its first words alone is one finding, which says how often it was found; a note is there once."""
    report = Report()
    for number in range(3):
        report.add(f"Message {number} is wrong", "a client waits", "Do it right")
    report.add("Message 3 is wrong", "a client waits", "Do it right", kind="another")
    report.add("All is wrong", "nobody can sign in", "Begin anew")
    for text in ("a note", "another note", "a note"):
        report.note(text)
    assert report.events == 5
    assert str(report).splitlines() == [
        "finding: Message 0 is wrong, so a client waits. Do it right. (And 2 more of this kind.)",
        "finding: Message 3 is wrong, so a client waits. Do it right.",
        "finding: All is wrong, so nobody can sign in. Begin anew.",
        "note: a note",
        "note: another note",
        "3 findings, 2 notes",
    ]
    assert str(Report()) == "no findings, no notes"
    assert [in_brackets([]), in_brackets(["a", "b"])] == ["", " (a)"]


@pytest.mark.parametrize(
    ("number", "end"),
    [
        (1, "QUIT"),
        (12, "RSET and QUIT"),
        (14, "an end without QUIT"),
        (16, "a reset in the middle of a message"),
        (18, "a timeout"),
        (20, "the end of the server"),
        (21, "QUIT"),
        (24, "an end without QUIT"),
        (26, "QUIT"),
        (27, "a QUIT whose deletion failed"),
        (28, "QUIT"),
        (38, "a refused sign-in"),
    ],
)
def test_how_a_session_ended_that_left_its_lock(
    number: int, end: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding says how the session ended, whichever it was: the *number*-th that let go of the lock."""
    monkeypatch.setattr("popart.testing.check.bench.UNLOCK_SECONDS", 0.05)

    class KeepsOne(Right):
        def unlock_maildrop(self) -> None:
            if self.username == "alice":
                self.store.seen["unlocked"] = self.store.seen.get("unlocked", 0) + 1
            if self.username != "alice" or self.store.seen["unlocked"] != number:
                super().unlock_maildrop()

    (finding,) = check(KeepsOne, store, delete=True, fails=True, other=("bob", "hunter2")).findings
    assert finding.startswith(f"The maildrop stays locked after {end}, so the user cannot get at the mail ")


@pytest.mark.parametrize("name", ["LockReleasedByTheRefused", "LockReleasedByTheRefusedEarly"])
def test_a_lock_that_is_lost_is_found_once(store: Store, name: str) -> None:
    """What follows from a lock that does not hold is no finding of its own."""
    (handler,) = (wrong.handler for wrong in WRONG if wrong.handler.__name__ == name)
    (finding,) = check(handler, store, other=("bob", "hunter2")).findings
    assert "once a refused session is over" in finding


@pytest.mark.parametrize("text", ["wrong user or password", "there is no {username} with this password"])
def test_a_refusal_may_have_a_word_that_is_the_users_name(store: Store, text: str) -> None:
    """The same refusal for a wrong password and an unknown user tells neither apart, whatever the user is called and
    whether it says the name that the client sent."""

    class Refuses(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            if self.store.users.get(username) != password:
                raise popart.ReportableError(text.format(username=username))
            self.username = username

    store.users["user"], store.drops["user"] = "secret", Drop()
    assert check_handler(lambda peer: Refuses(store), user="user", password="secret").findings == []


@pytest.mark.parametrize(
    "line, shown",
    [
        ("PASS secret", "PASS ***"),
        ("APOP alice c4c9334bac560ecc979e58001b3e22fb", "APOP alice ***"),
        ("AUTH PLAIN AGFsaWNlAHNlY3JldA==", "AUTH PLAIN ***"),
        ("Yz1iaXdzLHI9YWJjLHA9c2VjcmV0", "***"),
        ("connecting", "connecting"),
        ("AUTH SCRAM-SHA-256", "AUTH SCRAM-SHA-256"),
        ("TOP 1 0", "TOP 1 0"),
        ("UTF8", "UTF8"),
    ],
)
def test_what_a_report_shows_of_a_line(line: str, shown: str) -> None:
    """A report names a command without its secret, and shows nothing of a response of SCRAM: guesses can be tried on
    it."""
    assert hide(line) == shown


def test_no_finding_shows_the_secret(store: Store) -> None:
    """A report may be kept by a CI for all to read: it says how a wrong password differs from the right one, and shows
    neither, whatever the handler takes."""

    class TakesMost(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            if "hunter" not in password.lower():
                raise popart.ReportableError("wrong name or password")
            self.username = "alice"

    report = check_handler(lambda peer: TakesMost(store), user="alice", password="Hunter2")
    assert [text for text in report.findings if "the password with an x after it, for alice" in text]
    assert "hunter" not in str(report).lower()


class PrintsSignIns(Right):
    """Prints a text at each sign-in that is right, when it can."""

    text = "the password is right"

    def authenticate_pass(self, username: str, password: str) -> None:
        super().authenticate_pass(username, password)
        with suppress(OSError):
            print(self.text, flush=True)


@pytest.mark.parametrize(
    "secret, text", [("pass", "the password is right"), ("alice", "alice has signed in"), ("s", "signs in")]
)
def test_a_text_with_the_letters_of_the_secret_shows_no_secret(
    store: Store, capfd: pytest.CaptureFixture[str], secret: str, text: str
) -> None:
    """The secret may be a part of a word that a handler prints, or the user's name."""
    store.users["alice"] = secret
    handler = type("Handler", (PrintsSignIns,), {"text": text})
    report = check_handler(lambda peer: handler(store), user="alice", password=secret)
    capfd.readouterr()
    assert report.findings == []


def test_a_word_of_a_message_is_no_secret(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """What a handler prints of a message may have the secret among its words: it counts only at a sign-in."""

    class PrintsSubjects(Right):
        def get_message_reader(self, number: int) -> popart.MessageReader:
            with suppress(OSError):
                print("the secret life of bees")
            return super().get_message_reader(number)

    report = check(PrintsSubjects, store)
    capfd.readouterr()
    assert report.findings == []


def test_where_print_goes(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """What a handler prints while it is checked goes to stderr, and what other threads print stays where it was."""

    class Prints(Right):
        def lock_maildrop(self) -> None:
            super().lock_maildrop()
            with suppress(OSError):  # when nobody reads it
                print("by the handler", flush=True)
            with suppress(OSError, UnicodeError):
                print("\udcff", end="", flush=True)
            other = threading.Thread(target=print, args=["by another thread"])
            other.start()
            other.join()

    streams = sys.stdout, sys.stderr
    assert check(Prints, store).findings == []
    assert (sys.stdout, sys.stderr) == streams
    out, err = capfd.readouterr()
    assert set(out.splitlines()) == {"by another thread"}
    assert "by the handler\n" in err and "by another thread" not in err


def test_a_handler_may_print_where_the_output_is_closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found in a handler that prints if the check's own output is closed, as by ``>&- 2>&-``."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert check(PrintsSignIns, store).findings == []


def test_what_fails_while_it_may_is_forgotten() -> None:
    """What failed while methods had reason to fail is not kept when the check breaks off: it would excuse others."""
    recorder = Recorder(Right)
    with pytest.raises(LateError), recorder.excusing() as failures:
        recorder.fail("read raised OSError", lambda: None)
        raise LateError("there is no answer")
    assert (failures, recorder.failures, recorder.excused) == (["read raised OSError"], [], False)


def test_the_wrong_handlers_are_wrong_in_many_ways() -> None:
    """There are more than eighty kinds, and each says what is wrong; the file has no others."""
    assert len({wrong.handler.__doc__ for wrong in WRONG}) == len(WRONG) > 80
    assert list(FINDINGS) == NAMES


# Right ones.


NOT_TWO_USERS = "One user cannot show whether users share a lock, or mail: see --other."
NOT_DELETED = "Nothing has been deleted, so that has not been checked: see --delete."


@pytest.mark.parametrize("options", [{}, {"delete": True, "fails": True, "other": ("bob", "hunter2")}], ids=str)
def test_nothing_is_found_in_a_right_handler(store: Store, options: dict[str, Any]) -> None:
    """A right handler has no finding; with all options there is nothing left to be noted either."""
    report = check(Right, store, **options)
    assert report.findings == []
    assert report.notes == ([] if options else [NOT_TWO_USERS, NOT_DELETED])


class Unordered(Rewrites):
    """Lists its messages in the order of their ids, which is another one once they have been written anew."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        reverse = dict(reversed(messages.items()))
        messages.clear()
        messages.update(reverse)


class Receives(Rewrites):
    """Has new mail whenever some is deleted, and one of two new messages is a copy of what is there."""

    def rewrite(self, messages: dict[str, bytes]) -> None:
        if self.store.seen.setdefault("new", 0) < 3:
            self.store.seen["new"] += 1
            number = self.store.seen["new"]
            messages |= {f"new-{number}": b"Subject: new %d\r\n\r\n" % number, f"copy-{number}": MESSAGES[0]}


@pytest.mark.parametrize("handler", [Rewrites, Unordered, Receives], ids=lambda handler: handler.__name__)
def test_a_maildrop_that_is_written_anew_is_right(store: Store, handler: type[Right]) -> None:
    """A deletion may write the messages that stay anew, and in another order, and new mail may come with it."""
    assert check(handler, store, delete=True, fails=True).findings == []


def test_a_lock_may_be_released_a_moment_late(store: Store) -> None:
    """A database releases the lock of a connection that has broken only when it notices."""
    timers: list[threading.Timer] = []

    class LocksByConnection(Right):
        def unlock_maildrop(self) -> None:
            if self.store.broken:
                timers.append(threading.Timer(0.2, super().unlock_maildrop))
                timers[-1].start()
            else:
                super().unlock_maildrop()

    report = check(LocksByConnection, store, delete=True, fails=True)
    assert report.findings == []
    for timer in timers:
        timer.join()
    assert timers


class SizesOfZero(Right):
    """Knows no sizes."""

    def list_messages(self) -> list[tuple[int, str]]:
        return [(0, unique_id) for unique_id, _ in self.messages]


@pytest.mark.parametrize("handler", [Right, SizesOfZero], ids=lambda handler: handler.__name__)
def test_two_users_may_have_the_same_mail(store: Store, handler: type[Right]) -> None:
    """If the second user has nothing but copies of the first one's mail, that is a note."""
    store.drops["bob"] = Drop()
    report = check(handler, store, other=("bob", "hunter2"), delete=True)
    assert report.findings == []
    assert special(report)[-1] == (
        "bob has no message that alice has not, so the check may not see that one reads the other's mail. "
        "Deliver other mail."
    )


def test_one_user_may_act_as_another_one(store: Store) -> None:
    """If one of two users may act as the other, but not the other way round, that is a note."""

    class ActsAsBob(Right):
        def authorize(self, username: str, identity: str) -> None:
            if (username, identity) != ("alice", "bob"):
                raise popart.ReportableError("nobody may act for another user")
            self.username = identity

    report = check(ActsAsBob, store, other=("bob", "hunter2"))
    assert report.findings == []
    assert special(report) == ["alice may act as the other user, by AUTH PLAIN: check that this is intended."]


@pytest.mark.parametrize(
    "options", [{"other": ("bob", "ya29.second"), "token": "ya29.token"}, {"other": ("bob", "secret")}], ids=str
)
def test_the_secrets_of_two_users_are_right(store: Store, options: dict[str, Any]) -> None:
    """Two users may sign in by tokens, and they may have the same password."""
    store.users["bob"] = "secret"
    assert check(Tokens, store, **options).findings == []


class Endless(Reading):
    """A reader has no end."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            return b"" if self.handler.store.go_on.is_set() else super().read(n) or b"and so on"


def test_an_answer_without_an_end_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that goes on for ever has a finding, although each call returns."""
    monkeypatch.setattr("popart.testing.check.client.LONGEST", 1.0)
    monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
    monkeypatch.setattr("popart.testing.check.client.ENDLESS", 100_000)
    report = check(Endless, store)
    (finding,) = [re.sub(r"\d{6,}", "N", finding) for finding in report.findings]
    assert finding == (
        "the answer to RETR 1 is not complete after N octets: it has no end, so a client gives up. "
        "Find what is slow, or has no end."
    )
    assert special(report) == ["The check ended early, while reading all messages: the rest has not been checked."]


class ReadsSlowly(Reading):
    """A reader takes its time for each small piece."""

    class reader(Reader):
        def read(self, n: int | None = -1, /) -> bytes:
            assert n is not None
            if n < 60_000:
                self.handler.store.go_on.wait(0.06)
            return super().read(n)


def test_many_calls_may_take_longer_than_one(store: Store) -> None:
    """An answer may need many calls: none of them is slow because all together are."""
    store.drops["alice"].messages = {"long": MESSAGES[2]}
    report = check(ReadsSlowly, store, patience=1.0)
    assert report.findings == []
    assert [note for note in report.notes if "took too long" in note] == []


def test_an_answer_that_takes_very_long_is_noted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all together takes too long, and no call does, the report says what has not been checked."""
    monkeypatch.setattr("popart.testing.check.client.LONGEST", 1.0)
    monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
    store.drops["alice"].messages = {"long": MESSAGES[2]}
    report = check(ReadsSlowly, store)
    assert report.findings == []
    assert special(report)[1:] == [
        "While reading in small pieces, the answer to RETR 1 is not complete within 1 seconds, though no call of the "
        "handler took too long: the rest of that has not been checked."
    ]


class Able(Tokens, Speaking):
    """Has abilities, and refuses some of them in words."""

    def get_expire(self) -> int | None:
        return None if self.messages else 30

    def get_login_delay(self) -> int:
        return 0

    def set_language(self, tag: str) -> None:
        raise popart.ReportableError("not today")

    def enable_utf8(self) -> None:
        raise popart.ReportableError("not today")

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        raise popart.ReportableError("wrong name or password")

    def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
        return io.BytesIO(self.messages[number - 1][1])


@pytest.mark.parametrize("handler", [Able, Speaking, Tokens], ids=lambda handler: handler.__name__)
def test_nothing_is_found_in_abilities(store: Store, handler: type[Right]) -> None:
    """A handler may have abilities, and may refuse what a client asks of them in words."""
    assert check(handler, store).findings == []


class Remote(Right):
    """Asks for a token far away, and has a mechanism of its own."""

    def authenticate_token(self, username: str, token: str) -> None:
        raise ConnectionError("no route to host")

    def get_mechanisms(self) -> dict[str, Any]:
        return {"X-OWN": lambda: iter(())}


def test_anybody_may_have_a_maildrop(store: Store) -> None:
    """Without a secret the handler may let in anybody, and each name may have a maildrop of its own."""

    class LetsInAnybody(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            self.username = username
            with self.store.guard:
                self.store.drops.setdefault(username, Drop([]))

    report = check_handler(lambda peer: LetsInAnybody(store), user="alice", patience=PATIENCE)
    assert report.findings == []
    anybody = "Without --password and --token anybody is let in, so no wrong password has been tried."
    assert report.notes == [NOT_TWO_USERS, NOT_DELETED, anybody]


def test_ways_that_have_not_been_tried_are_noted(store: Store) -> None:
    """What is offered beside the way of the check, and cannot be tried as a whole, is a note: what a token is compared
    with may be away."""
    report = check(Remote, store)
    assert report.findings == []
    assert special(report) == [
        "X-OWN is a mechanism of your own, and has not been tried: test it yourself.",
        "XOAUTH2 is offered, and has been tried with a wrong token alone: see --token.",
        "A wrong token, by XOAUTH2, was answered -ERR [SYS/TEMP] internal error, please try again later "
        "(authenticate_token raised ConnectionError: no route to host).",
    ]


def test_passwords_beside_tokens_are_noted(store: Store) -> None:
    """So are passwords, where the check signs in by a token."""
    report = check(Tokens, store, token="ya29.token")
    assert report.findings == []
    assert special(report) == ["USER is offered, and has been tried with a wrong password alone: see --password."]


CHECK = """
import json, sys
import popart, popart.sign_in
from popart.testing.check import check_handler

class CheckingServer:
    server_address = ("127.0.0.1", 1100)
    def __init__(self, address, on_new_connection, **options):
        self.on_new_connection = on_new_connection
    def __enter__(self):
        return self
    def __exit__(self, *error): ...
    def serve_forever(self):
        found.append(check_handler(self.on_new_connection, user="alice", **json.loads(options)).findings)
    def drain(self, seconds): ...

found = []
popart.Server = CheckingServer
popart.sign_in.FIRST_LOGIN_DELAY = 0
options, *sys.argv = sys.argv[1:]
exec(compile(sys.stdin.read(), sys.argv[0], "exec"))
assert found == [[]], found
"""
"""Runs a program, and checks its handler where it would serve."""


@dataclass
class Example:
    """A program with a server, which is run as it stands."""

    file: str
    options: dict[str, Any] = field(default_factory=dict)
    """Those of the check; the user is alice."""
    arguments: Sequence[str] = ()
    """Those of the program."""
    before: str = ""
    """Another example that is run first."""


RIGHT = [
    Example("README.rst", {"password": "secret"}),
    Example("example_maildir.py"),
    Example("docs/examples/hello.py", {"password": "secret"}),
    Example("docs/examples/mail_in_a_list.py", {"password": "secret", "delete": True}),
    Example("docs/examples/mail_in_sqlite.py", {"password": "secret", "delete": True}, before="mailstore.py"),
]


@pytest.mark.parametrize("example", RIGHT, ids=lambda example: example.file)
def test_nothing_is_found_in_the_examples(example: Example, tmp_path: Path) -> None:
    """The handlers that README, tutorial and docs show have no finding."""
    run = partial(subprocess.run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}"}
    if example.before:
        run([sys.executable, EXAMPLES / example.before], env=environment, check=True)
    source = code_blocks()[0] if example.file == "README.rst" else (ROOT / example.file).read_text("utf-8")
    command = [sys.executable, "-c", CHECK, json.dumps(example.options), example.file, *example.arguments]
    done = run(command, input=source, env=environment)
    assert done.returncode == 0, done.stdout


DJANGO = """
import django
django.setup()
from django.conf import settings
from django.contrib.auth.models import User
# The default takes half a second for each sign-in.
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
for user in User.objects.all():
    user.set_password("secret")
    user.save()
from inbox.management.commands.serve_pop3 import DjangoHandler
def on_new_connection(peer):
    return DjangoHandler()
"""


def test_nothing_is_found_in_the_django_site(django_site: Path) -> None:  # noqa: F811
    """The handler of howto-django has no finding."""
    (django_site / "checked.py").write_text(DJANGO)
    command = [sys.executable, "-W", "error", "-m", "popart.testing.check", "checked:on_new_connection"]
    options = ["--user", "alice", "--password", "secret", "--other", "bob:secret", "--delete"]
    done = subprocess.run([*command, *options], cwd=django_site, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_is_found_in_the_mail_server_for_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler of smtp_in.py, which has its mail from another thread, has no finding."""
    pytest.importorskip("aiosmtpd")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(EXAMPLES)
    try:
        smtp_in = importlib.import_module("smtp_in")
    finally:
        for name in {"smtp_in", "gateway"} - before:
            sys.modules.pop(name, None)
    mail, users = smtp_in.Mail(), smtp_in.Users("alice:secret bob:hunter2")
    for message in MESSAGES:
        mail.deliver("alice", popart.wire_form(message))
    mail.deliver("bob", MESSAGES_OF_BOB[0])
    report = check_handler(
        lambda peer: smtp_in.POP3Handler(mail, users),
        user="alice",
        password="secret",
        other=("bob", "hunter2"),
        delete=True,
    )
    assert (report.findings, report.notes) == ([], [])
    assert mail.find("alice") == []


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an example's definitions."""
    monkeypatch.setattr(popart, "Server", lambda *_: (_ for _ in ()).throw(SystemExit))
    names: dict[str, Any] = {"__name__": name}
    try:
        exec((EXAMPLES / f"{name}.py").read_text("utf-8"), names)
    except SystemExit:
        pass
    monkeypatch.undo()
    return names


@pytest.mark.parametrize(
    "way, options",
    [
        ("ApopSignIn", {"apop": True, "password": "secret"}),
        ("TokenSignIn", {"token": "ya29.token"}),
        ("ScramSignIn", {"password": "secret"}),
    ],
)
def test_nothing_is_found_in_other_ways_to_sign_in(
    way: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The check signs in by APOP, by a token and by SCRAM, and the handlers of howto-sign-in have no finding."""
    base = load("mail_in_a_list", monkeypatch)["ListHandler"]
    mixin = load("sign_in", monkeypatch)[way]
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    handler = type("Handler", (mixin, base), {"allow_passwords": False})
    report = check_handler(lambda peer: handler(), user="alice", delete=True, **options)
    capfd.readouterr()
    assert report.findings == []


def test_nothing_is_found_in_the_test_kit() -> None:
    """popart.testing's own handler has no finding."""
    server = MailServer(users={"alice": "secret", "bob": "hunter2"}, scram=True)
    for message in [*ALL, b"\r\nno header", b"Subject: no body", b""]:
        server.deliver("alice", message)
    server.deliver("bob", MESSAGES_OF_BOB[0])

    @contextmanager
    def break_backend() -> Iterator[None]:
        server.fail_commit()
        yield

    report = check_handler(
        server._make_handler,
        user="alice",
        password="secret",
        other=("bob", "hunter2"),
        delete=True,
        break_backend=break_backend,
    )
    assert (report.findings, report.notes) == ([], [])


# What the check does, and leaves alone.


class Watched(Right, popart.SupportsMonitoring):
    """Keeps the commands that its sessions had."""

    def command_finished(self, verb: str, outcome: str, octets: int, seconds: float) -> None:
        self.store.seen.setdefault("verbs", set()).add(verb)

    def session_finished(self, commands: int, octets: int, seconds: float) -> None: ...


def test_nothing_is_deleted_unless_asked_for(store: Store) -> None:
    """Without *delete* no client says DELE, and the maildrop is as it was."""
    before = {name: dict(drop.messages) for name, drop in store.drops.items()}
    check(Watched, store, other=("bob", "hunter2"))
    assert {name: drop.messages for name, drop in store.drops.items()} == before
    assert store.seen["verbs"] >= {"UIDL", "RETR", "TOP", "QUIT"}
    assert "DELE" not in store.seen["verbs"]


def test_a_deletion_empties_the_maildrop(store: Store) -> None:
    """With *delete* the user's maildrop is empty afterwards, and that of the other user as it was."""
    before = dict(store.drops["bob"].messages)
    check(Watched, store, delete=True, other=("bob", "hunter2"))
    assert "DELE" in store.seen["verbs"]
    assert store.drops["alice"].messages == {}
    assert store.drops["bob"].messages == before


@pytest.mark.parametrize(
    ("total", "has"),
    [(0, "0 messages"), (1, "1 message"), (2, "2 messages"), (3, "3 messages"), (4, None)],
)
def test_too_few_messages_are_noted(store: Store, total: int, has: str | None) -> None:
    """With fewer than four messages the report says what could not be checked."""
    drop = store.drops["alice"]
    drop.messages = dict(list(drop.messages.items())[:total])
    report = check(Right, store, delete=True)
    assert report.findings == []
    missing = {0: "no message could", 1: "that two messages differ in number and unique-id could not"}.get(total)
    assert special(report) == [
        *[f"The maildrop has {has}: {missing} be checked. Deliver three or more."] * (missing is not None),
        *[f"The maildrop has {has}: four are needed to see that no other is deleted."] * (has is not None),
    ]


def test_the_id_of_one_message_is_not_noted(store: Store) -> None:
    """One id that ends with a 1 may be any id."""
    store.drops["alice"].messages = {"row-1": MESSAGES[0]}
    assert not [note for note in check(Right, store).notes if note.startswith("Each unique-id ends")]


def test_what_is_gone_without_deletion(store: Store) -> None:
    """Where the check deletes nothing, what is gone after a session was not marked."""

    class Forgets(Right):
        def handle_session_error(self, error: BaseException) -> None:
            if self.username and isinstance(error, popart.ClientGoneError):
                self.drop.messages.popitem()

    assert check(Forgets, store).findings[0].startswith("A message is gone after an end without QUIT, so ")


def test_readers_of_top_are_watched(store: Store) -> None:
    """A reader for TOP must not return more than it is asked for, either."""

    class GivesAll(Right):
        def get_top_reader(self, number: int, lines: int) -> popart.MessageReader:
            reader = io.BytesIO(self.messages[number - 1][1])
            return SimpleNamespace(read=lambda n: reader.read(), close=reader.close)  # type: ignore[return-value]

    (finding,) = check(GivesAll, store).findings
    assert re.match(r"A reader returned \d+ octets, more than it was asked for: \d+, so ", finding)


@pytest.mark.parametrize("total", [2, 5])
def test_ids_that_look_like_numbers_are_noted(total: int, store: Store) -> None:
    """Without *delete* ids that may be made from the numbers are no fault, but are noted."""
    drop = store.drops["alice"]
    drop.messages = {f"row-{number}": octets for number, octets in enumerate(MESSAGES[:total], 1)}
    report = check(Right, store)
    assert report.findings == []
    assert special(report) == [
        f"Each unique-id ends with the message's number, such as row-{total}. If it is made from the number, it "
        "moves to another message when one is deleted, and clients lose mail. Only a check with deletion can tell."
    ]


def test_sizes_that_are_too_small_are_noted(store: Store) -> None:
    """A size that is too small is harmless."""

    class Small(Right):
        def list_messages(self) -> list[tuple[int, str]]:
            return [(1, unique_id) for unique_id, _ in self.messages]

    report = check(Small, store)
    assert report.findings == []
    assert special(report) == [
        "LIST says less than it takes to send 5 messages. That is harmless for clients, but popart cannot see if such "
        "a message was cut off: see popart.wire_size."
    ]


def test_no_lock_is_noted(store: Store) -> None:
    """Without *delete* a handler without a lock may be right, as nothing need ever be deleted, if it has no unlock."""
    report = check(next(wrong.handler for wrong in WRONG if wrong.handler.__name__ == "NoLock"), store)
    assert report.findings == []
    assert special(report) == [
        "A second session is let in while the first has the maildrop. As unlock_maildrop does nothing, this seems to "
        "be intended. It is right only where nothing is ever deleted or changed: see lock_maildrop in the manual."
    ]


def test_many_messages_are_read_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time for reading is over, the report says how many messages were read."""
    monkeypatch.setattr("popart.testing.check.bench.STEP_SECONDS", 0)
    report = check(Right, store)
    assert report.findings == []
    assert special(report) == ["Only 0 of 5 messages have been read: it took too long."]


def test_a_hook_that_does_nothing_is_noted(store: Store) -> None:
    """If nothing fails while the back end should fail, the report says so."""

    @contextmanager
    def break_nothing() -> Iterator[None]:
        yield

    report = check(Right, store, delete=True, break_backend=break_nothing)
    assert report.findings == []
    assert special(report) == [
        "The hook that should make the back end fail made no difference: all was deleted.",
        "The maildrop has 2 messages: four are needed to see that no other is deleted.",
    ]


def test_a_sign_in_that_is_refused_is_an_error(store: Store) -> None:
    """The check does not guess whose fault it is that it cannot sign in."""
    refused = "-ERR .AUTH. wrong name or password$"
    with pytest.raises(CheckError, match=f"^the check cannot sign in as alice: {refused}"):
        check_handler(lambda peer: Right(store), user="alice", password="wrong")
    with pytest.raises(CheckError, match="^the handler takes no tokens; of SASL it offers: PLAIN$"):
        check_handler(lambda peer: Right(store), user="alice", token="x")
    with pytest.raises(CheckError, match="^the handler turns the check away: -ERR connection refused$"):
        check_handler(lambda peer: None, user="alice", password="secret")
    with pytest.raises(CheckError, match=f"^the check cannot sign in as bob: {refused}"):
        check(Right, store, other=("bob", "wrong"))


def test_a_delay_between_sign_ins_is_an_error(store: Store) -> None:
    """A handler that wants time between two sign-ins cannot be checked (RFC 2449 section 6.5)."""

    class Delays(Right):
        def lock_maildrop(self) -> None:
            if self.store.seen.setdefault("sessions", 0):
                raise popart.ReportableError("wait a minute", code="LOGIN-DELAY")
            self.store.seen["sessions"] = 1
            super().lock_maildrop()

    says = (
        "^the handler wants time between sign-ins, which must be off for the check: -ERR .LOGIN-DELAY. wait a minute$"
    )
    with pytest.raises(CheckError, match=says):
        check(Delays, store)


def test_a_hook_needs_deletion(store: Store) -> None:
    """A back end that fails amid a deletion says nothing if nothing is deleted."""
    with pytest.raises(ValueError, match="^break_backend needs delete=True$"):
        check(Right, store, fails=True)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"user": ""}, "^nobody can sign in: a name or a secret must not be empty"),
        ({"user": "ali\nce"}, "^nobody can sign in: a name or a secret must have no NUL, CR or LF"),
        ({"password": ""}, "^nobody can sign in: a name or a secret must not be empty"),
        ({"password": "sec\0ret"}, "^nobody can sign in: a name or a secret must have no NUL, CR or LF"),
        ({"password": "\udcff"}, "^nobody can sign in: a name or a secret must be text that UTF-8 can encode"),
        ({"token": "ya29\n"}, "^nobody can sign in: a name or a secret must have no NUL, CR or LF"),
        ({"other": ("bob", "")}, "^nobody can sign in: a name or a secret must not be empty"),
        ({"other": ("alice", "secret")}, "^the second user must be someone other than alice"),
        ({"patience": 0.0}, "^patience must be more than 0 and at most 86400 seconds: 0.0"),
        ({"patience": -1.0}, "^patience must be more than 0 and at most 86400 seconds: -1.0"),
        ({"patience": float("nan")}, "^patience must be more than 0 and at most 86400 seconds: nan"),
        ({"patience": 86_401}, "^patience must be more than 0 and at most 86400 seconds: 86401"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_meant_so_is_an_error(options: dict[str, Any], says: str) -> None:
    """Names and secrets by which nobody can sign in, the same user twice, and no patience are ValueErrors."""
    with pytest.raises(ValueError, match=f"{says}$"):
        check_handler(lambda peer: None, **{"user": "alice", "password": "secret", **options})


def test_the_longest_patience(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a day, and ten seconds are the default."""
    monkeypatch.setattr("popart.testing.check.checker.Bench.run", lambda bench, what, check: None)
    assert check(Right, store, patience=86_400.0).findings == []
    assert signature(check_handler).parameters["patience"].default == 10.0


def test_what_the_steps_are_called(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report says in these words what the check was doing; the steps come in this order."""
    steps: list[str] = []
    monkeypatch.setattr("popart.testing.check.checker.Bench.run", lambda bench, what, check: steps.append(what))
    check(Right, store)
    assert steps == [
        "reading all messages",
        "holding a second session",
        "reading in small pieces",
        "signing in again",
        "trying the lock",
        "ending sessions",
        "printing",
        "asking for abilities",
        "telling of errors",
        "deleting as the back end fails",
        "deleting",
        "looking at the mail of the second user",
        "signing in with wrong secrets",
        "signing in by other ways",
        "signing in with the secrets of two users",
    ]


@pytest.mark.parametrize("factory", [Store, lambda: None, lambda peer, store: None, lambda *, peer: None, None])
def test_a_factory_that_does_not_take_the_peer_is_found(factory: Any) -> None:
    """A class or function that cannot be called with the client's address has a finding that says so."""
    (finding,) = check_handler(factory, user="alice", password="secret").findings
    assert finding == (
        "on_new_connection cannot be called with one argument, the address of the client, so every client is turned "
        "away. Give it one parameter, the peer; if it is a class without one, give a function that makes the object."
    )


@pytest.mark.parametrize("factory", [lambda *peers: None, lambda peer, store=None: None, dict])
def test_a_factory_that_takes_the_peer_is_called(factory: Any) -> None:
    """A factory may have other parameters, and need not have a signature that can be read."""
    try:
        report = check_handler(factory, user="alice", password="secret")
    except CheckError as error:
        assert "turns the check away" in str(error)
    else:
        assert "Give it one parameter" not in str(report)


# What is tried.

QUESTIONS = Path(__file__).with_name("questions.txt")


class Breaks(Right):
    """Messages 2 and 4 end in the middle, which ends the session."""

    def list_messages(self) -> list[tuple[int, str]]:
        return [
            (99_999 if number in (2, 4) else 10, unique_id) for number, (unique_id, _) in enumerate(self.messages, 1)
        ]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(b"x" * 70_000) if number in (2, 4) else super().get_message_reader(number)


class Four(Right):
    """A user with four messages."""

    most = 4

    def lock_maildrop(self) -> None:
        while len(self.drop.messages) > self.most:
            self.drop.messages.popitem()
        super().lock_maildrop()


class Three(Four):
    """A user with three."""

    most = 3


class Many(Right):
    """A user with twelve messages."""

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.messages = [(f"id-{number}.x", b"Subject: x\r\n\r\n%d\r\n" % number) for number in range(1, 13)]


def readable(command: str) -> str:
    """Return a command without base64, with the length of what is random or very long in its place, and ``<SCRAM>`` for
    what differs in each exchange of SCRAM."""
    if command.startswith("AUTH "):
        *words, response = command.split(" ")
        command = " ".join([*words, repr(b64decode(response))])
    command = re.sub("(?<=,r=).+|^[A-Za-z0-9+/=]{99,}$", "<SCRAM>", command)
    return re.sub("(?<=nobody-)[0-9a-f]+|[0-9a-f]{16,}|x{99,}", lambda found: f"<{len(found[0])}>", command)


@pytest.mark.parametrize(
    ("title", "handler", "options"),
    [
        ("Without deletion", Right, {}),
        ("By a token", Tokens, {"token": "ya29.token"}),
        ("With all options", Right, {"delete": True, "fails": True, "other": ("bob", "hunter2")}),
        ("Where message 2 is refused", OpeningRefused, {}),
        ("Where messages end sessions", Breaks, {}),
        ("Where RETR differs the second time", ReadersShareAPosition, {}),
        ("Of twelve messages", Many, {}),
        ("Of abilities", Able, {"token": "ya29.token"}),
        ("Of four messages, with deletion", Four, {"delete": True}),
        ("Of three messages, with deletion", Three, {"delete": True}),
    ],
)
def test_what_is_asked(
    title: str, handler: type[Right], options: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check asks what tests/questions.txt has, one connection after the other.

    After a change to the check, write the file anew, and read its diff:
    WRITE_QUESTIONS=1 .venv/bin/python -m pytest -q tests/test_check.py -k what_is_asked
    """
    connections: dict[Client, list[str]] = {}

    def record(name: str, line: Callable[..., str]) -> None:
        call = getattr(Client, name)

        def recorded(client: Client, *arguments: Any) -> Any:
            connections.setdefault(client, []).append(line(*arguments))
            return call(client, *arguments)

        monkeypatch.setattr(Client, name, recorded)

    record("send", readable)
    record("close", lambda: "(close)")
    record("reset", lambda: "(reset)")
    record("wait_for_end", lambda: "(wait for the end)")
    check(handler, store, **options)
    asked = "\n\n".join("\n".join(lines) for lines in connections.values())
    sections = dict(re.findall(r"(?ms)^# (.+?)\n(.*?)(?=^# |\Z)", QUESTIONS.read_text("utf-8")))
    if "WRITE_QUESTIONS" in os.environ:
        sections[title] = f"\n{asked}\n\n"
        QUESTIONS.write_text("".join(f"# {title}\n{lines}" for title, lines in sections.items()), "utf-8")
    assert f"\n{asked}\n\n" == sections[title]


@pytest.mark.parametrize(
    ("wrong", "called"),
    [
        ("secretx", "the password with an x after it"),
        ("secre", "the password without its last character"),
        ("SECRET", "the password with its letters in the other case"),
        ("secret ", "the password with a space after it"),
        (" secret", "the password with a space before it"),
        ("' OR ''='", "a piece of SQL"),
        ("p\xe4ssw\xf6rd", "a password that is not ASCII"),
        ("x" * 900, "a password of 900 characters"),
    ],
)
def test_wrong_passwords(wrong: str, called: str, store: Store) -> None:
    """A handler that takes one of these beside the right one is found, and the finding names it."""

    class TakesIt(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            super().authenticate_pass(username, "secret" if password == wrong else password)

    (finding,) = check(TakesIt, store).findings
    assert finding.startswith(f"A wrong password is taken: {called}, for alice, so anybody can read ")


@pytest.mark.parametrize("name", ["'OR''='", "%", "*"])
def test_names_of_nobody(name: str, store: Store) -> None:
    """A handler that takes one of these names for a user's is found, and the finding has the name."""

    class TakesIt(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            super().authenticate_pass("alice" if username == name else username, password)

    (finding,) = check(TakesIt, store).findings
    assert finding.startswith(f"An unknown user is let in: the password of another one, for {name}, so anybody ")


# The command.

FACTORIES = """
from tests.wrong_handlers import *
store = Store()
right = lambda peer: Right(store)
wrong = lambda peer: AnyPassword(store)
blocks = lambda peer: ReaderBlocks(store)
hook = store.break_backend
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a module of factories."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("factories", None)


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (["right", "--password", "secret"], 0, "no findings, 2 notes\n"),
        (
            [
                "right",
                "--password",
                "secret",
                "--delete",
                "--break-backend",
                "factories:hook",
                "--other",
                "bob:hunter2",
            ],
            0,
            "no findings, no notes\n",
        ),
        (["wrong", "--password", "secret"], 1, "1 finding, 2 notes\n"),
        (["right", "--password", "x"], 2, "the check cannot sign in as alice: -ERR [AUTH] wrong name or password.\n"),
        (["none", "--password", "x"], 2, "factories:none cannot be found"),
        (["right", "--password", "x", "--break-backend", "nowhere:hook"], 2, "nowhere:hook cannot be found"),
        (["right", "--password", "x", "--break-backend", "a b:hook"], 2, "a b:hook cannot be found"),
        (["store", "--password", "x"], 2, "factories:store cannot be called: it is a Store"),
        (["right", "--password", "x", "--other", "bob"], 2, "argument --other: not NAME:SECRET\n"),
        (
            ["right", "--password", "x", "--break-backend", "factories:hook"],
            2,
            "check: error: --break-backend needs --delete\n",
        ),
        (["right", "--password", "x", "--break-backend", "hook"], 2, "not MODULE:NAME: hook"),
        (["right", "--password", "x", "--other", "alice:x"], 2, "must be someone other than alice"),
        (["right", "--password", "x", "--patience", "nan"], 2, "patience must be more than 0"),
    ],
    ids=str,
)
def test_the_command(
    factories: Path, arguments: list[str], status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 0 without findings, 1 with some, and 2 if nothing could be checked."""
    try:
        found = main([f"factories:{arguments[0]}", "--user", "alice", *arguments[1:]])
    except SystemExit as end:
        found = int(str(end.code))
    out, err = capfd.readouterr()
    assert (found, says in (err if status == 2 else out)) == (status, True), out + err


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ([], {}),
        (["--password", "a", "--apop"], {"password": "a", "apop": True}),
        (["--token", "b", "--other", "bob:c:d"], {"token": "b", "other": ("bob", "c:d")}),
        (["--delete", "--patience", "2.5"], {"delete": True, "patience": 2.5}),
    ],
    ids=str,
)
def test_what_the_command_asks_for(
    factories: Path,
    arguments: list[str],
    chosen: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each option is an argument of check_handler(), whose defaults are those of the command."""
    asked: dict[str, Any] = {}

    def check(factory: object, **options: Any) -> Report:
        asked.update(options)
        return Report()

    monkeypatch.setattr("popart.testing.check.__main__.check_handler", check)
    assert main(["factories:right", "--user", "alice", *arguments]) == 0
    assert capfd.readouterr().out == "no findings, no notes\n"
    defaults = {"password": None, "token": None, "apop": False, "other": None, "delete": False, "break_backend": None}
    assert asked == {"user": "alice", **defaults, "patience": 10.0, **chosen}


@pytest.mark.parametrize("arguments", [["--password", "x"], ["--user", "alice"]], ids=str)
def test_what_the_command_needs(factories: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """It cannot do without a factory, nor without a user."""
    with pytest.raises(SystemExit) as end:
        main(["factories:right"] * ("--user" not in arguments) + arguments)
    assert end.value.code == 2 and "the following arguments are required" in capfd.readouterr().err


def test_the_command_ends_though_a_handler_blocks(factories: Path) -> None:
    """A handler that never returns is a finding, and does not keep the program from ending."""
    command = [sys.executable, "-m", "popart.testing.check", "factories:blocks", "--user", "alice"]
    done = subprocess.run(
        [*command, "--password", "secret", "--patience", "2"],
        cwd=factories,
        env={"PYTHONPATH": f"{factories}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "read has not returned within 2 seconds" in done.stdout


# The page.

PAGE = (ROOT / "docs" / "howto-check.rst").read_text("utf-8")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory with the files that the page shows, and those of the tutorial that they need."""
    for name in ("checked_mail", "test_checked_mail", "mail_in_sqlite", "mailstore"):
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    subprocess.run([sys.executable, "mailstore.py"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    return tmp_path


@pytest.mark.parametrize("number", [0, 1])
def test_the_commands_of_the_page(desk: Path, number: int) -> None:
    """howto-check: each of the two commands has the output that is printed below it."""
    shown = re.findall(r"^   \$ python3 (.*)\n((?:   (?!\$ ).*\n)+)", PAGE.replace("\\\n", ""), re.MULTILINE)
    assert len(shown) == 2
    arguments, output = shown[number]
    done = subprocess.run([sys.executable, *arguments.split()], cwd=desk, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (textwrap.dedent(output), 0)


def test_the_test_of_the_page(desk: Path) -> None:
    """howto-check: the test passes as it stands."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_checked_mail.py"]
    done = subprocess.run(command, cwd=desk, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout


def test_the_options_of_the_page(capfd: pytest.CaptureFixture[str]) -> None:
    """howto-check: each option is explained, and no other."""
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capfd.readouterr().out)) - {"--help", "--user"}
    assert set(re.findall(r"^``(--[a-z-]+)", PAGE, re.MULTILINE)) == known
