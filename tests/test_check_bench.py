"""How the check waits for a handler, and what it says of a client that is turned away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import popart
from popart.testing.check import check_handler
from popart.testing.check.bench import Bench, Options
from popart.testing.check.client import BlockedError, Credentials, LateError
from popart.testing.check.output import Output
from popart.testing.check.recorder import Recorder
from tests.conftest import PATIENCE, wait_until
from tests.wrong_handlers import Counting, Right, Store


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench with a patience of 0.1 seconds, and of 0.3 for all calls together."""
    monkeypatch.setattr("popart.testing.check.client.LONGEST", 0.3)
    monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
    alice = Credentials("alice", "secret")
    options = Options(
        credentials=alice,
        any_secret=False,
        is_token=False,
        apop=False,
        other=None,
        delete=False,
        break_backend=None,
        patience=0.1,
    )
    recorder = Recorder(lambda peer: None)
    return Bench(recorder, Output(recorder, "marker", alice), options)


def test_waiting_in_vain(bench: Bench) -> None:
    """It looks ten times within its patience, and gives up when all calls together have taken too long."""
    never = threading.Event()
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return never.wait(seconds)

    with pytest.raises(LateError, match="^it does not come$"):
        bench.wait(wait, "it does not come")
    assert waits == pytest.approx([0.01] * len(waits)) and 1 <= len(waits) <= 31


def test_waiting_for_what_comes(bench: Bench) -> None:
    """It returns as soon as what it waits for comes."""
    answers = [False, False, True]
    bench.wait(lambda seconds: answers.pop(0), "it does not come")
    assert answers == []


def test_waiting_for_a_handler_that_blocks(bench: Bench) -> None:
    """A call that takes longer than the patience ends the wait."""
    never = threading.Event()
    with bench.recorder.calling("read", []), pytest.raises(BlockedError, match="^it does not come$"):
        bench.wait(never.wait, "it does not come")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither hold back refusals nor wait for long until a client is logged out; no thread is left in the end."""
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    monkeypatch.setattr("popart.testing.check.locking.SILENCE", 0.1)
    threads = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads)


def test_a_client_that_is_turned_away_later(no_waiting: None) -> None:
    """Who is turned away after others have been let in is a finding."""
    store = Store()
    handlers: list[Any] = [Right(store), Right(store), None]

    def make(peer: object) -> popart.Handler | None:
        return handlers.pop(0) if handlers else Right(store)

    (finding,) = check_handler(make, user="alice", password="secret", patience=PATIENCE).findings
    assert finding == (
        "While reading all messages, the greeting is -ERR connection refused, so a client does not get what the "
        "protocol promises. Look at what the handler does then."
    )


def findings(handler: type[Right]) -> list[str]:
    store = Store()
    return check_handler(lambda peer: handler(store), user="alice", password="secret", patience=PATIENCE).findings


def test_uidl_that_is_refused(no_waiting: None) -> None:
    """What no exception explains is told as the client sees it."""

    class WithoutIds(Counting):
        def get_message_id(self, number: int) -> str:
            raise popart.ReportableError("no ids")

    assert findings(WithoutIds)[0] == (
        "While reading all messages, UIDL was answered -ERR no ids, so a client does not get what the protocol "
        "promises. Look at what the handler does then."
    )


def test_a_sign_in_that_is_refused_later(no_waiting: None) -> None:
    """So is a sign-in that is refused although the name and the secret are right."""

    class RefusesTheSecond(Right):
        def lock_maildrop(self) -> None:
            self.store.seen["sessions"] = self.store.seen.get("sessions", 0) + 1
            if self.store.seen["sessions"] == 2:
                raise popart.ReportableError("not again", code="SYS/PERM")
            super().lock_maildrop()

    assert findings(RefusesTheSecond)[0] == (
        "While reading all messages, the sign-in was answered -ERR [SYS/PERM] not again, so a client does not get what "
        "the protocol promises. Look at what the handler does then."
    )


def test_messages_that_vanish(no_waiting: None) -> None:
    """The finding counts those that have gone."""

    class Loses(Right):
        def get_message_reader(self, number: int) -> popart.MessageReader:
            if number in (1, 2):
                self.drop.messages.pop(self.messages[number - 1][0], None)
            return super().get_message_reader(number)

    assert findings(Loses)[0].startswith("2 of 5 messages vanished, although no client said DELE, so ")


def test_a_lock_that_is_refused_by_another_code(no_waiting: None) -> None:
    """The finding has the answer, and what a client makes of it (RFC 2449 section 8.1.1)."""

    class SaysTemporary(Right):
        def lock_maildrop(self) -> None:
            if self.drop.locked:
                raise popart.ReportableError("the maildrop is busy", code="SYS/TEMP")
            super().lock_maildrop()

    assert findings(SaysTemporary)[0].startswith(
        "While a session has the maildrop, a second one does not know what to do: it reads -ERR [SYS/TEMP] the "
        "maildrop is busy, so many programs ask "
    )


def test_a_name_in_any_case_without_a_lock(no_waiting: None) -> None:
    """Where nothing is ever deleted, and a name in another case has the same mail, nothing is wrong."""

    class InAnyCase(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            super().authenticate_pass(username.lower(), password)

        def lock_maildrop(self) -> None:
            self.messages = list(self.drop.messages.items())

        def unlock_maildrop(self) -> None: ...

    assert findings(InAnyCase) == []


def test_a_refusal_by_another_code(no_waiting: None) -> None:
    """A wrong name that is answered as if the server had failed is a finding: a client would try again."""

    class FailsForStrangers(Right):
        def authenticate_pass(self, username: str, password: str) -> None:
            if username.startswith("nobody-"):
                raise popart.ReportableError("no such user", code="SYS/PERM")
            super().authenticate_pass(username, password)

    assert findings(FailsForStrangers) == [
        "While signing in with wrong secrets, a wrong sign-in was answered -ERR [SYS/PERM] no such user, so a client "
        "does not get what the protocol promises. Look at what the handler does then."
    ]
