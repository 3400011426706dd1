"""Runs the wire suite against a gateway, and has its messages."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

from popart.testing.wire.messages import ALL, HARD, ORDINARY, on_the_wire

__all__ = ["ALL", "HARD", "ORDINARY", "failures", "on_the_wire"]

ROOT = Path(__file__).parent.parent.parent


def failures(port: int, lacks: Sequence[str] = ()) -> set[str]:
    """Return the names of the tests that fail for alice, in at least one of their cases."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "popart.testing.wire", f"127.0.0.1:{port}", "-q", "--tb=short"]
        command += ["--pop3-delete", f"--junitxml={report}"]
        command += [f"--pop3-lacks={','.join(lacks)}"] * bool(lacks)
        # With CI set, pytest shows all differences between octets, and may need minutes to find them.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        tests = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    passed = [test for test in tests if len(test) == 0]
    assert len(passed) > 100, "the suite could not run"
    broken = [test for test in tests if test.find("failure") is not None or test.find("error") is not None]
    return {test.attrib["name"].partition("[")[0] for test in broken}
