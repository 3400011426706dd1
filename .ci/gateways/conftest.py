"""Fixtures: a backend, a door before it, and the gateway as its docstring starts it."""

from __future__ import annotations

import importlib.util
import os
import poplib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backends import BACKENDS, ENVIRONMENT, Backend, MissingError
from door import PATIENCE, Door

from tests.conftest import signals_as_at_a_terminal

__all__ = ["signals_as_at_a_terminal"]  # the gateways are processes: what backends leave in this one is theirs

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
NEEDS = {"s3_gateway.py": "boto3", "asyncio_gateway.py": "aiosqlite", "smtp_in.py": "aiosmtpd"}


def need(found: object, what: str) -> None:
    """Skip a test where something is missing, but fail it in CI."""
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is not installed")


class Gateway:
    """A gateway that runs."""

    killed = False

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.startswith("SMTP on port "):
            self.smtp_port = int(line.split()[-1])
            line = process.stdout.readline()
        assert line.startswith("POP3 on port "), line + self.log()
        self.port = int(line.split()[-1])

    def log(self) -> str:
        return self._log.read_text("utf-8")

    def kill(self) -> None:
        self.killed = True
        self._process.kill()
        self._process.wait(PATIENCE)

    @contextmanager
    def client(self, password: str = "secret") -> Iterator[poplib.POP3]:
        """Sign in as alice."""
        client = poplib.POP3("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            client.user("alice")
            client.pass_(password)
            yield client
        finally:
            client.close()


@contextmanager
def started(command: list[str], log: Path, end_by: signal.Signals = signal.SIGTERM) -> Iterator[Gateway]:
    """Start a gateway, and end it as a service manager does: it says nothing more and leaves no traceback."""
    environment = {**os.environ, **ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            gateway = Gateway(process, log)
            yield gateway
            if gateway.killed:
                return
            said = len(gateway.log())
            process.send_signal(end_by)
            assert process.wait(PATIENCE) == 0
            assert process.stdout is not None and process.stdout.read() == ""
            assert "Traceback" not in gateway.log()[said:]
        finally:
            process.kill()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that a backend can reach after it has given up root: those of tmp_path are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="gateways-") as name:
        yield Path(name)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that has started, with an empty maildrop."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    kind = BACKENDS[request.param]
    try:
        backend = kind(directory)
    except MissingError as error:
        need(False, str(error))
        raise
    module = NEEDS.get(backend.script)
    need(module is None or importlib.util.find_spec(module), str(module))
    backend.start()
    yield backend
    backend.stop()
    backend.close()


@pytest.fixture
def door(backend: Backend) -> Iterator[Door]:
    """The door through which the gateway reaches its backend."""
    door = Door(backend.port)
    yield door
    door.close()


def command(backend: Backend, port: int, *options: str) -> list[str]:
    """Return the command of a gateway whose backend is on this port."""
    return [sys.executable, str(EXAMPLES / backend.script), *backend.arguments(port), "--port", "0", *options]


@pytest.fixture
def gateway(backend: Backend, door: Door, tmp_path: Path) -> Iterator[Gateway]:
    """The gateway, as its command starts it."""
    with started(command(backend, door.port), tmp_path / "log") as gateway:
        yield gateway


IMPATIENT = """
import gateway, importlib, sys
gateway.TIMEOUT = 3.0
importlib.import_module(sys.argv.pop(1)).main()
"""


@pytest.fixture
def impatient_gateway(
    backend: Backend, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    """The gateway, with a time limit of three seconds."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    _, script, *arguments = command(backend, door.port)
    with started([sys.executable, "-c", IMPATIENT, Path(script).stem, *arguments], tmp_path / "log") as gateway:
        yield gateway
