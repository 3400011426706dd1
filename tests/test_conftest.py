"""The tests themselves run wherever they are started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IGNORES = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    "tests",
    [
        ["tests/test_server.py", "-k", "test_a_signal"],
        ["tests/test_docs.py", "-k", "test_the_tutorial_can_be_followed"],
        ["tests/test_example.py", "-k", "test_signals"],
    ],
    ids=lambda tests: tests[0],
)
def test_where_signals_are_ignored(tests: list[str]) -> None:
    """A script's background job ignores SIGINT, and so do its children: tests that raise or send signals pass there."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", IGNORES, *tests]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert done.returncode == 0, done.stdout.decode()
