"""The help of the commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from popart.testing import __main__ as testing
from popart.testing.check import __main__ as check

HELP = Path(__file__).with_name("help.txt").read_text("utf-8")


@pytest.mark.parametrize("main", [testing.main, check.main], ids=["testing", "check"])
def test_what_help_says(
    main: Callable[[Sequence[str]], object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``--help`` prints what tests/help.txt has, each option with its words.

    To write the file anew, run ``python3 -m popart.testing --help`` and then ``python3 -m popart.testing.check --help``
    with COLUMNS=1000.
    """
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capfd.readouterr().out
    assert said in re.split(r"(?m)^(?=usage: )", HELP)
