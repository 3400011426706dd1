"""The check for handlers finds each wrong one, and nothing in right ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from popart.testing.check import Report, check_handler
from tests.conftest import PATIENCE, wait_until
from tests.wrong_handlers import WRONG, Right, Store, Wrong


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


@pytest.mark.parametrize("options", [{}, {"delete": True, "fails": True, "other": ("bob", "hunter2")}], ids=str)
def test_nothing_is_found_in_a_right_handler(store: Store, options: dict[str, Any]) -> None:
    """A right handler has no finding."""
    assert check(Right, store, **options).findings == []


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.handler.__name__)
def test_each_wrong_handler_is_found(wrong: Wrong, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """Each handler that is wrong has a finding that says what is wrong."""
    try:
        report = check(wrong.handler, store, **wrong.options)
    finally:
        store.go_on.set()
    capfd.readouterr()  # what the handler has printed
    assert [finding for finding in report.findings if wrong.says in finding], f"{wrong.handler.__doc__}\n{report}"
