"""What the tests share: a handler with its mail in memory, servers that are ready, raw clients, a check for leaks."""

from __future__ import annotations

import io
import os
import signal
import socket
import ssl
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import popart
from popart.server import Server
from popart.session import Session
from popart.session_settings import SessionSettings

PATIENCE = 20.0
"""Seconds after which a test gives up waiting for what should come at once."""

ABSENT = [name for name in ("hypothesis", "trustme") if find_spec(name) is None]
"""What is not installed of the packages that cannot be had everywhere.  The tests that need them are skipped."""

if TYPE_CHECKING or "trustme" not in ABSENT:
    import trustme
if "hypothesis" not in ABSENT:
    from hypothesis import HealthCheck, settings

    # A busy machine may take its time for one example, or for making some.
    slow = [HealthCheck.too_slow]
    settings.register_profile("unhurried", settings.default, deadline=None, suppress_health_check=slow)
    settings.load_profile("unhurried")


def is_wine() -> bool:
    """Is this Wine, and not Windows?"""
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.windll.ntdll, "wine_get_version")


def expect_reset() -> AbstractContextManager[object]:
    """Expect, in a ``with`` block, that a read finds the connection reset.  Wine tells its clients of a plain end."""
    return suppress(ConnectionResetError) if is_wine() else pytest.raises(ConnectionResetError)


class Mail:
    """A maildrop in memory, its lock, and a record of all calls from all sessions.  Tests look at it afterwards."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)
        self.calls: list[tuple[Any, ...]] = []
        self.errors: list[BaseException] = []
        self.locked = False

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


class MemoryHandler(popart.Handler):
    """Serves a `Mail` to alice with the password "secret"; tests override what they want to see fail."""

    def __init__(self, mail: Mail) -> None:
        self.mail = mail

    def set_banner(self, banner: str) -> None:
        self.mail.calls.append(("set_banner", banner))

    def authenticate_pass(self, username: str, password: str) -> None:
        self.mail.calls.append(("authenticate_pass", username, password))
        if (username, password) != ("alice", "secret"):
            raise popart.ReportableError("wrong name or password")

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        self.mail.calls.append(("authenticate_apop", username, hexdigest))

    def lock_maildrop(self) -> None:
        if self.mail.locked:
            raise popart.ReportableError("another session has the maildrop")
        self.mail.locked = True
        self.mail.calls.append(("lock_maildrop",))

    def get_message_count(self) -> int:
        self.mail.calls.append(("get_message_count",))
        return len(self.mail.messages)

    def get_message_size(self, number: int) -> int:
        self.mail.calls.append(("get_message_size", number))
        return len(self.mail.messages[number - 1])

    def get_message_id(self, number: int) -> str:
        self.mail.calls.append(("get_message_id", number))
        return f"id-{number}"

    def get_message_reader(self, number: int) -> popart.MessageReader:
        self.mail.calls.append(("get_message_reader", number))
        return io.BytesIO(self.mail.messages[number - 1])

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self.mail.calls.append(("delete_messages", list(numbers)))

    def unlock_maildrop(self) -> None:
        self.mail.locked = False
        self.mail.calls.append(("unlock_maildrop",))

    def handle_session_error(self, error: BaseException) -> None:
        self.mail.errors.append(error)


class ClosingHandler(MemoryHandler):
    """Also records the end of its session, and lets a test wait for it."""

    def __init__(self, mail: Mail) -> None:
        super().__init__(mail)
        self.closed = threading.Event()

    def close(self) -> None:
        self.mail.calls.append(("close",))
        self.closed.set()


class Client:
    """A client of raw octets.  Every wait ends after `PATIENCE` seconds with an error."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self.file = sock.makefile("rb", 8_192)  # from Python 3.14 on it would be 128 KiB, which tests of memory count

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def line(self) -> bytes:
        """Read one line, with its end; b"" when the server has closed the connection."""
        return self.file.readline()

    def lines(self) -> bytes:
        """Read the rest of a multi-line reply, final dot included."""
        octets = b""
        while not (octets == b".\r\n" or octets.endswith(b"\r\n.\r\n")):
            line = self.line()
            assert line, f"the connection ended within a reply: {octets[-100:]!r}"
            octets += line
        return octets

    def ask(self, command: bytes) -> bytes:
        """Send a command line without its end, read one line."""
        self.send(command + b"\r\n")
        return self.line()

    def sign_in(self) -> None:
        assert self.ask(b"USER alice").startswith(b"+OK")
        assert self.ask(b"PASS secret").startswith(b"+OK")

    def rest(self) -> bytes:
        """Read all that comes until the server closes the connection."""
        return self.file.read()

    def rest_until_reset(self) -> bytes:
        """Read all that comes before the server resets the connection; fail if it ends in another way."""
        octets = b""
        with expect_reset():
            while piece := self.file.read1(65_536):
                octets += piece
        return octets

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def is_bare_end(error: ssl.SSLError) -> bool:
    """Is it that of a TLS connection which ended without close_notify?

    Python before 3.11.4, with OpenSSL 3, raises a plain SSLError then.
    """
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


class QuickServer(Server):
    """A server whose client may be timed out in a test's time."""

    minimum_timeout = 0.01


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve in a thread; closed, with every session ended, when left."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def connected(server: Server, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    """Connect a raw client, over TLS with a *context*.  The greeting has not been read."""
    with socket.create_connection(server.server_address[:2], timeout=PATIENCE) as raw:
        sock = raw if context is None else context.wrap_socket(raw, server_hostname="localhost")
        client = Client(sock)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def signed_in(server: Server, context: ssl.SSLContext | None = None) -> Iterator[Client]:
    """Connect a raw client and sign in as alice."""
    with connected(server, context) as client:
        assert client.line().startswith(b"+OK")
        client.sign_in()
        yield client


def make_session(handler: popart.Handler, **options: Any) -> Session:
    """Make a session without a socket."""
    return Session(
        handler, SessionSettings(**{"greeting": "hello", "implementation": "popart", "expire": "NEVER", **options})
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does and tells nobody, such as closing a descriptor."""
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came true")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, Any, Any]:
    with skipped_where_it_cannot_run():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    with skipped_where_it_cannot_run():
        return (yield)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return Module.from_parent(parent, path=module_path)


class Module(pytest.Module):
    """Is skipped as a whole if it imports an absent package."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        with skipped_where_it_cannot_run():
            return super().collect()


@contextmanager
def skipped_where_it_cannot_run() -> Iterator[None]:
    """Skip a test that asks for what Windows lacks (a signal, fork(), UNIX sockets), or for an absent package."""
    try:
        yield
    except AttributeError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if sys.platform == "win32" and error.obj in (os, signal, socket) and "tests" in Path(frames[-1].filename).parts:
            pytest.skip(f"Windows has no {error.obj.__name__}.{error.name}")
        raise
    except (ImportError, pytest.Collector.CollectError) as error:
        # pytest and the test kit put an error of their own before it.
        for name in (getattr(error, "name", None), getattr(error.__context__, "name", None)):
            if name in ABSENT:
                pytest.skip(f"there is no {name} here", allow_module_level=True)
        raise


def open_descriptors() -> int:
    """Return how many descriptors this process has; 0 on Windows, which does not tell."""
    return 0 if sys.platform == "win32" else len(os.listdir("/dev/fd"))


@pytest.fixture(scope="session", autouse=True)
def signals_as_at_a_terminal() -> Iterator[None]:
    """A script's background jobs ignore SIGINT, others SIGTERM: the tests' own Ctrl-C and their processes would too."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def nothing_left(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """After each test no thread and no descriptor is left, and nothing was printed (promise 6)."""
    threads = set(threading.enumerate())
    before = open_descriptors()
    yield
    assert not [thread for thread in threading.enumerate() if thread not in threads]
    assert open_descriptors() <= before
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    pytest.importorskip("trustme")
    return trustme.CA()


@pytest.fixture(scope="session")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
