"""Each gateway starts by the command of its docstring, and ends quietly."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES, NEEDS, need, started
from door import PATIENCE

SCRIPTS = ["imap_gateway.py", "s3_gateway.py", "graph_gateway.py", "asyncio_gateway.py", "smtp_in.py"]


def documented_command(script: str) -> str:
    """Return the command of the docstring, in a shell's words."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / script).read_text("utf-8")))
    found = re.search(r"::\n\n((?:    .*\n)+)", f"{docstring}\n")
    assert found
    return found[1].replace("\\\n", " ").strip()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_documented_command(script: str, number: signal.Signals, tmp_path: Path) -> None:
    """The gateway starts by it, in a fresh checkout.  Ctrl-C and SIGTERM end it without a word."""
    need(script not in NEEDS or importlib.util.find_spec(NEEDS[script]), NEEDS.get(script, ""))
    command = documented_command(script).replace("mail.db", str(tmp_path / "mail.db"))
    command += " --port 0 --smtp-port 0" if script == "smtp_in.py" else " --port 0"
    with started(["sh", "-c", f"exec env {command}"], tmp_path / "log", end_by=number) as gateway:
        if script == "smtp_in.py":
            with gateway.client() as client:
                client.quit()
    assert gateway.log() == ""


@pytest.mark.parametrize("users", [None, "", "alice", "alice:secret bob", "alice:", ":secret"])
def test_nobody_can_sign_in(tmp_path: Path, users: str | None) -> None:
    """Without users of its own, or a name or password of one, a gateway that needs them says so and does not start."""
    need(importlib.util.find_spec("aiosqlite"), "aiosqlite")
    command = [sys.executable, str(EXAMPLES / "asyncio_gateway.py"), str(tmp_path / "mail.db")]
    environment = {name: value for name, value in os.environ.items() if name != "POP3_USERS"}
    if users is not None:
        environment["POP3_USERS"] = users
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and "set POP3_USERS" in done.stderr and "Traceback" not in done.stderr


def test_variables_that_are_missing() -> None:
    """The gateway to an HTTP API names what it needs, and does not start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRAPH_")}
    command = [sys.executable, str(EXAMPLES / "graph_gateway.py")]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "GRAPH_TENANT, GRAPH_CLIENT_ID, GRAPH_CLIENT_SECRET" in done.stderr
