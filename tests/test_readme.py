"""What the README shows is so."""

from __future__ import annotations

import poplib
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import popart
from popart.options import COUNTS, TIMES, LimitOptions, Limits
from tests.conftest import PATIENCE, Mail, MemoryHandler, connected, signed_in

README_PATH = Path(__file__).parent.parent / "README.rst"
README = README_PATH.read_text(encoding="utf-8")


def blocks(introduction: str) -> list[str]:
    """Return the indented blocks after lines that match *introduction*."""
    found = re.findall(rf"{introduction}\n\n((?:    .*\n|\n)+)", README)
    return [textwrap.dedent(block).strip() + "\n" for block in found]


def code_blocks() -> list[str]:
    return blocks(r"\.\. code-block:: python")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> SimpleQueue[popart.Server]:
    """The servers that example code starts, each with a free port instead of the one that it names."""
    servers: SimpleQueue[popart.Server] = SimpleQueue()

    class FreePortServer(popart.Server):
        def __init__(self, server_address: tuple[str, int], *args: Any, **options: Any) -> None:
            super().__init__((server_address[0], 0), *args, **options)
            servers.put(self)

    monkeypatch.setattr(popart, "Server", FreePortServer)
    return servers


@contextmanager
def run_beside(serve: Callable[[], None], started: SimpleQueue[popart.Server]) -> Iterator[popart.Server]:
    """Run an example in a thread until its server has been used."""
    thread = threading.Thread(target=serve)
    thread.start()
    server = started.get(timeout=PATIENCE)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def test_the_first_server_gives_the_session_that_is_shown(
    started: SimpleQueue[popart.Server], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first example runs as it stands, and the session below it is what a client sees."""
    (transcript,) = (block for block in blocks(r".*::") if "C: USER alice" in block)
    with run_beside(lambda: exec(code_blocks()[0], {}), started) as server, connected(server) as client:
        for line in transcript.splitlines():
            side, said = line[:2], line[3:].encode() + b"\r\n"
            if side == "C:":
                client.send(said)
            else:
                assert client.line() == said
        assert client.rest() == b""
    port = server.server_address[1]
    assert capfd.readouterr().out == f"POP3 on 127.0.0.1 {port}\nto be deleted: [1]\n"


def test_the_first_server_shows_a_traceback(
    started: SimpleQueue[popart.Server], capfd: pytest.CaptureFixture[str]
) -> None:
    """A failure of the first example's handler is printed with the line that failed."""
    example: dict[str, Any] = {}
    with run_beside(lambda: exec(code_blocks()[0], example), started) as server, signed_in(server) as client:
        example["MAIL"].clear()
        assert client.ask(b"RETR 1").startswith(b"-ERR")
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.rest() == b""
    err = capfd.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n") and err.endswith(
        "IndexError: list index out of range\n"
    )
    assert "in get_message_reader" in err


def test_the_first_server_ends_quietly() -> None:
    """Ctrl-C ends the first example: no traceback, status 0, and all that it said is where it listens."""
    code = code_blocks()[0].replace("1100", "0")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert re.fullmatch(r"POP3 on 127\.0\.0\.1 \d+\n", process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=PATIENCE) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
            watchdog.cancel()
            watchdog.join()


def test_the_testing_example_tests() -> None:
    """The example's test passes as it stands: one RETR is cut off, and the fetcher tries again."""
    example: dict[str, Any] = {}
    exec(code_blocks()[1], example)
    fetch = example["fetch"]
    tries = []

    def counted(*arguments: Any) -> None:
        tries.append(arguments)
        fetch(*arguments)

    example["fetch"] = counted
    example["test_fetch"]()
    assert len(tries) == 2


def test_the_testing_example_can_fail() -> None:
    """A fetcher that does not try again fails the example's test."""
    example: dict[str, Any] = {}
    exec(code_blocks()[1].replace("tries=2", "tries=1"), example)
    with pytest.raises(poplib.error_proto):
        example["test_fetch"]()


def test_the_tls_example_serves_over_tls(
    started: SimpleQueue[popart.Server], authority: Any, client_context: Any, tmp_path: Path
) -> None:
    """The TLS example runs as it stands, given a certificate."""
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(tmp_path / "cert.pem"), append=True)
    example: dict[str, Any] = {}
    exec(code_blocks()[2], example)
    mail = Mail(b"Subject: x\r\n\r\n")

    def serve() -> None:
        example["serve_with_tls"](lambda peer: MemoryHandler(mail), tmp_path / "cert.pem", tmp_path / "key.pem")

    with run_beside(serve, started) as server, signed_in(server, client_context) as client:
        assert client.ask(b"STAT") == b"+OK 1 14\r\n"


def test_the_table_of_limits_is_the_servers() -> None:
    """Each limit stands in the README with the default that the class has, and none is missing."""
    rows = re.findall(r"^``(\w+)``\s+([\d,]+)\s", README, re.MULTILINE)
    table = {name: figure.replace(",", "") for name, figure in rows}
    limits = list(Limits.__annotations__)
    assert table == {name: str(getattr(popart.Server, name)) for name in limits}


def test_each_limit_is_checked_and_may_be_named() -> None:
    """A limit is a count or a time, which says how it is checked, and the test kit takes each by its name."""
    limits = sorted(Limits.__annotations__)
    assert limits == sorted(["minimum_timeout", *COUNTS, *TIMES]) == sorted(LimitOptions.__annotations__)


def test_each_link_leads_somewhere() -> None:
    """A link to a file of the checkout leads to one that is there.  The README of a sdist has none."""
    links = re.findall(r"`[^`<]+<([^>`]+)>`_|^\.\. image:: (.*)", README, re.MULTILINE)
    paths = [path or picture for path, picture in links if not path.startswith("https://")]
    assert paths or README_PATH.with_name("PKG-INFO").exists()
    assert [path for path in paths if not README_PATH.parent.joinpath(path).exists()] == []


def test_all_python_of_the_readme_is_executed() -> None:
    """An example that is added needs a test above."""
    assert len(code_blocks()) == 3
