"""The suite as it is installed: python3 -m popart.testing.wire."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import popart
from popart.testing import MailServer
from popart.testing.wire import test_sign_in
from popart.testing.wire.__main__ import main
from popart.testing.wire.client import Target, WireClient
from popart.testing.wire.messages import ALL
from popart.testing.wire.test_messages import top
from tests.conftest import Mail, MemoryHandler, running


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


@pytest.mark.parametrize(
    "message, count, beginning",
    [
        (b"A: b\r\n\r\none\r\ntwo\r\n", 1, b"A: b\r\n\r\none\r\n"),
        (b"\r\none\r\n\r\ntwo\r\n", 0, b"\r\n"),
        (b"\r\none\r\n\r\ntwo\r\n", 2, b"\r\none\r\n\r\n"),
        (b"A: b\r\n", 0, b"A: b\r\n"),
        (b"", 5, b""),
    ],
)
def test_what_the_suite_wants_of_top(message: bytes, count: int, beginning: bytes) -> None:
    """The header ends with the first blank line, which may be the first line (RFC 1939 section 7)."""
    assert top(message, count) == beginning


def test_a_refusal_may_repeat_the_name() -> None:
    """Two refusals that differ only in the name that the client sent tell no user apart (RFC 1939 section 13)."""

    class Repeats(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            raise popart.ReportableError(f"there is no {username} with this password")

    server = popart.Server(("127.0.0.1", 0), lambda peer: Repeats(Mail()))
    with running(server), ExitStack() as clients:
        target = Target(("127.0.0.1", server.server_address[1]), b"alice", b"secret", None)
        test_sign_in.test_users_cannot_be_guessed(lambda: clients.enter_context(closing(WireClient(target))), target)


def test_the_messages_need_a_directory(tmp_path: Path) -> None:
    """The hard messages are written into the directory that is named; without one, the command says what it wants."""
    command = [sys.executable, "-m", "popart.testing.wire.messages"]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: python3 -m popart.testing.wire.messages DIR\n")
    subprocess.run([*command, "mail"], cwd=tmp_path, check=True)
    assert len(list((tmp_path / "mail" / "cur").iterdir())) == len(ALL)


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
