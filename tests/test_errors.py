"""What a handler raises, and what it is told."""

from __future__ import annotations

import copy
import pickle

import pytest

from popart import errors
from popart.errors import ReportableError


@pytest.mark.parametrize(
    "code", [None, "AUTH", "IN-USE", "SYS/TEMP", "SYS/PERM", "a/b/c", "LOGIN-DELAY", "[", "x" * 64]
)
def test_code_is_kept(code: str | None) -> None:
    """A response code is one or more levels of printable ASCII with slashes between them (RFC 2449 section 3)."""
    assert ReportableError("no", code=code).code == code


@pytest.mark.parametrize(
    "code",
    [
        "",
        "/",
        "SYS/",
        "/TEMP",
        "SYS//TEMP",
        "A]",
        "A B",
        "A\n",
        "A\r\n+OK",
        "\0",
        "\x7f",
        "caf\xe9",
        "\uff21",
        "x" * 65,
    ],
    ids=ascii,
)
def test_code_that_cannot_stand_on_the_wire(code: str) -> None:
    """A code outside the grammar of RFC 2449 section 3 is a ValueError where it is made, not a line on the wire."""
    with pytest.raises(ValueError, match="response code"):
        ReportableError("no", code=code)


def test_text_is_kept_and_printed() -> None:
    """The text is what the application's own log shows of the exception; the code is an attribute beside it."""
    error = ReportableError("mailbox is full", code="SYS/PERM")
    assert (str(error), error.text, error.code) == ("mailbox is full", "mailbox is full", "SYS/PERM")


def test_text_of_a_subclass_is_printed() -> None:
    """So it is of an application's own refusal, whatever arguments that takes."""

    class FullError(ReportableError):
        def __init__(self, megabytes: int) -> None:
            super().__init__(f"mailbox is full: {megabytes} MB")

    assert str(FullError(5)) == FullError(5).text == "mailbox is full: 5 MB"


@pytest.mark.parametrize("remake", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_survives_a_copy(remake) -> None:  # type: ignore[no-untyped-def]
    """A backend in another process may raise it: text and code survive a copy."""
    error = remake(ReportableError("busy", code="IN-USE"))
    assert (error.text, error.code) == ("busy", "IN-USE")


@pytest.mark.parametrize(
    "name", ["BrokenMessageError", "ClientGoneError", "ClientTimeoutError", "HandlerError", "LimitError"]
)
def test_session_errors_are_not_shown(name: str) -> None:
    """What popart tells the handler is never by accident what it shows to the client, nor an OSError of a backend."""
    kind = getattr(errors, name)
    assert issubclass(kind, errors.SessionError)
    assert not issubclass(kind, (ReportableError, OSError))
