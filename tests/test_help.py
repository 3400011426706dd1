"""The help of the commands."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from popart.testing import __main__ as testing
from popart.testing.check import __main__ as check
from popart.testing.wire.conftest import FEATURES, pytest_addoption

HELP = Path(__file__).with_name("help.txt").read_text("utf-8")


def sections() -> list[str]:
    return re.split(r"(?m)^(?=usage: |bare-lf: )", HELP)


@pytest.mark.parametrize("main", [testing.main, check.main], ids=["testing", "check"])
def test_what_help_says(
    main: Callable[[Sequence[str]], object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``--help`` prints what tests/help.txt has, each option with its words.

    With COLUMNS=1000, ``python3 -m popart.testing --help`` and ``python3 -m popart.testing.check --help`` print the
    first two parts of the file.  The wire suite's options and features follow.
    """
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capfd.readouterr().out in sections()


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    """The options that the wire suite adds to pytest's."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    parser = ArgumentParser(prog="wire", add_help=False)
    pytest_addoption(SimpleNamespace(getgroup=lambda *_: SimpleNamespace(addoption=parser.add_argument)))  # type: ignore[arg-type]
    return parser


def test_what_help_says_of_the_wire_suite(options: ArgumentParser) -> None:
    """Each option that names the server, and each feature that it may lack, is there with its words."""
    assert options.format_help() in sections()
    assert "".join(f"{name}: {what}\n" for name, what in FEATURES.items()) == sections()[-1]


def test_options_of_the_wire_suite(options: ArgumentParser) -> None:
    """An address may be IPv6's, and the features are separated by commas."""
    assert vars(options.parse_args([])) == {
        "pop3_server": None,
        "pop3_user": "alice",
        "pop3_password": "secret",
        "pop3_tls": False,
        "pop3_delete": False,
        "pop3_lacks": (),
    }
    found = options.parse_args(["--pop3-server", "[::1]:110", "--pop3-lacks", "top,uidl", "--pop3-tls"])
    assert (found.pop3_server, found.pop3_lacks, found.pop3_tls) == (("::1", 110), ["top", "uidl"], True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pop3-server", "localhost"], "argument --pop3-server: not HOST:PORT: localhost"),
        (["--pop3-server", ":110"], "argument --pop3-server: not HOST:PORT: :110"),
        (["--pop3-server", "localhost:pop3"], "argument --pop3-server: not HOST:PORT: localhost:pop3"),
        (["--pop3-lacks", "top,uid,a"], "argument --pop3-lacks: no such feature: a, uid"),
    ],
)
def test_wrong_options_of_the_wire_suite(
    options: ArgumentParser, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What cannot be used is named."""
    with pytest.raises(SystemExit):
        options.parse_args(arguments)
    assert capfd.readouterr().err.splitlines()[-1] == f"wire: error: {says}"
