"""The suite as it is installed: python3 -m popart.testing.wire."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from popart.testing import MailServer
from popart.testing.wire.__main__ import main


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "popart.testing.wire", *arguments]
    return subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_any_server_is_asked_from_any_directory(tmp_path: Path) -> None:
    """It asks the server that is named, whatever pytest's settings are in the directory where it is started."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    with MailServer() as server:
        server.deliver("alice", "Subject: x\n\nhello\n")
        done = run(tmp_path, f"127.0.0.1:{server.port}", "-q", "-k", "test_messages or test_quit")
        assert done.returncode == 0, done.stdout
        assert ("alice", "QUIT") in server.commands
        assert len(server.messages("alice")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pytest.ini"]


def test_a_server_must_be_named(tmp_path: Path) -> None:
    """Without an address it says what it wants, and tests nothing."""
    with pytest.raises(SystemExit, match="usage: python3 -m popart.testing.wire HOST:PORT"):
        main([])
    done = run(tmp_path, "-q")
    assert done.returncode != 0
    assert "the wire suite needs --pop3-server HOST:PORT" in done.stdout


def test_pytest_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pytest is missing, it says which extra brings it."""
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(SystemExit, match=r"the wire suite needs pytest: pip install pytest, or .* \[testing\]"):
        main(["127.0.0.1:1100"])
