"""Parts of the gateways that no backend here shows."""

from __future__ import annotations

import imaplib
import importlib
import time
from email.utils import formatdate

import pytest
from conftest import EXAMPLES

import popart


def test_short_answers_without_a_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece may come as a quoted string (RFC 3501 section 4.3), where it is short."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("imap_gateway")
    handler = module.IMAPHandler(lambda: None)
    for answer, octets in (
        (rb'1 (UID 7 BODY[]<0> "a \"b\" \\")', b'a "b" \\'),
        (b'1 (UID 7 BODY[]<0> "")', b""),
    ):
        monkeypatch.setattr(handler, "_uid_command", lambda *command, answer=answer: [answer])
        assert handler._fetch(7, 0, 100) == octets


@pytest.mark.parametrize("offset", [0, 100])
def test_nil(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """An empty string is the end of a message.  NIL says that the message is gone."""
    monkeypatch.syspath_prepend(EXAMPLES)
    handler = importlib.import_module("imap_gateway").IMAPHandler(lambda: None)
    monkeypatch.setattr(handler, "_uid_command", lambda *command: [b"1 (UID 7 BODY[]<%d> NIL)" % offset])
    with pytest.raises(popart.ReportableError, match="gone"):
        handler._fetch(7, offset, 100)
    monkeypatch.setattr(handler, "_uid_command", lambda *command: [b'1 (UID 7 BODY[]<%d> "")' % offset])
    assert handler._fetch(7, offset, 100) == b""


def test_marks_of_other_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may also tell of messages that nobody asked for (RFC 3501 section 7): their flags do not matter."""
    monkeypatch.syspath_prepend(EXAMPLES)
    handler = importlib.import_module("imap_gateway").IMAPHandler(lambda: None)
    monkeypatch.setattr(
        handler, "_command", lambda command: [rb"2 (UID 8 FLAGS (\Seen))", rb"1 (UID 7 FLAGS (\Deleted))"]
    )
    handler._expect_marks([7])
    with pytest.raises(imaplib.IMAP4.error, match="did not mark all"):
        handler._expect_marks([7, 8])


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [(None, 1, 1), ("", 1, 1), ("soon", 1, 1), ("0", 1, 1), ("7", 7, 7), (formatdate(time.time() + 9999), 9, 9999)],
)
def test_how_long_to_wait(monkeypatch: pytest.MonkeyPatch, retry_after: str | None, least: int, most: int) -> None:
    """Retry-After has seconds or a date (RFC 9110 section 10.2.3).  No wait is shorter than a second."""
    monkeypatch.syspath_prepend(EXAMPLES)
    assert least <= importlib.import_module("graph_gateway").seconds(retry_after) <= most


def test_errors_that_hold_a_secret(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log has an error's type and text, not what it carries."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("imap_gateway")
    handler = module.IMAPHandler(lambda: None)
    handler.username = "alice"
    handler.handle_session_error(UnicodeEncodeError("ascii", "p\xe4sswort", 1, 2, "ordinal not in range(128)"))
    assert "'alice': UnicodeEncodeError: " in caplog.text and "sswort" not in caplog.text
