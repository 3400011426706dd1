"""The options, markers and fixtures of the wire suite."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from popart.testing.wire.client import PATIENCE, Target, WireClient, make_context

FEATURES: dict[str, str] = {
    "bare-lf": "LF alone ends a command line, as telnet and scripts send it (no RFC asks for it)",
    "capa": "CAPA (RFC 2449)",
    "close-notify": "TLS ends with close_notify after QUIT (RFC 8446 section 6.1)",
    "lock": "a second session is refused while the first has the maildrop (RFC 1939 section 4)",
    "nul": "NUL in a message arrives as it is (RFC 5322 has none)",
    "one-refusal": "the same answer to a wrong password and to an unknown user (RFC 1939 section 13)",
    "pipelining": "commands may be sent before the last one is answered (RFC 2449 section 6.6)",
    "retry": "a connection whose sign-in was refused may try again (RFC 1939 section 4)",
    "strict": "arguments outside the RFCs' grammar are refused, not guessed at",
    "top": "TOP (RFC 1939 section 7)",
    "uidl": "UIDL (RFC 1939 section 7)",
}
"""The features that a good server may lack, by the names that ``--pop3-lacks`` and the marker ``optional`` take."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say which server is tested."""
    group = parser.getgroup("pop3", "the POP3 server that the wire suite asks")
    group.addoption("--pop3-server", metavar="HOST:PORT", type=_address, help="its address")
    group.addoption("--pop3-user", metavar="U", default="alice", help="a user whose maildrop has messages (alice)")
    group.addoption("--pop3-password", metavar="P", default="secret", help="that user's password (secret)")
    group.addoption("--pop3-tls", action="store_true", help="TLS from the first octet; any certificate is taken")
    group.addoption("--pop3-delete", action="store_true", help="run the tests that delete messages for good, too")
    names = ", ".join(FEATURES)
    group.addoption("--pop3-lacks", metavar="X,Y", type=_features, default=(), help=f"what it lacks, of: {names}")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal()):
        raise argparse.ArgumentTypeError(f"not HOST:PORT: {text}")
    return host.strip("[]"), int(port)


def _features(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - FEATURES.keys():
        raise argparse.ArgumentTypeError(f"no such feature: {', '.join(sorted(unknown))}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "optional(feature): skipped when --pop3-lacks names the feature")
    config.addinivalue_line("markers", "deletes: needs --pop3-delete, as it deletes messages of a foreign server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Name the server in each test's id."""
    if "target" in metafunc.fixturenames:
        address = metafunc.config.getoption("--pop3-server", None)
        if address is None:
            raise pytest.UsageError("the wire suite needs --pop3-server HOST:PORT")
        metafunc.parametrize("target", [f"{address[0]}:{address[1]}"], indirect=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the server lacks, and what would delete its mail."""
    lacks = item.config.getoption("--pop3-lacks", ())
    for marker in item.iter_markers("optional"):
        (feature,) = marker.args
        assert feature in FEATURES
        if feature in lacks:
            pytest.skip(f"the server lacks {feature}")
    is_foreign = item.config.getoption("--pop3-server", None) is not None
    if is_foreign and item.get_closest_marker("deletes") and not item.config.getoption("--pop3-delete"):
        pytest.skip("needs --pop3-delete")


def find_target(config: pytest.Config) -> Target:
    """Return the server that the options name."""
    option = config.getoption
    context = make_context() if option("--pop3-tls") else None
    return Target(option("--pop3-server"), option("--pop3-user").encode(), option("--pop3-password").encode(), context)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    """The server under test."""
    return find_target(request.config)


@pytest.fixture
def connect(target: Target) -> Iterator[Callable[[], WireClient]]:
    """Connects a client, whose greeting has been read."""
    with ExitStack() as clients:
        yield lambda: clients.enter_context(closing(WireClient(target)))


@pytest.fixture
def sign_in(connect: Callable[[], WireClient]) -> Callable[[], WireClient]:
    """Connects a client and signs in, as soon as an earlier session has unlocked the maildrop."""

    def sign_in() -> WireClient:
        for _ in range(round(PATIENCE / 0.1)):
            client = connect()
            if client.signs_in():
                return client
            client.close()
            time.sleep(0.1)
        raise AssertionError("the maildrop stays locked")

    return sign_in


@pytest.fixture
def guest(connect: Callable[[], WireClient]) -> WireClient:
    """A client that has not signed in."""
    return connect()


@pytest.fixture
def client(sign_in: Callable[[], WireClient]) -> WireClient:
    """A client that has signed in."""
    return sign_in()


@pytest.fixture
def two_messages(client: WireClient) -> int:
    """How many messages are in the maildrop: at least two."""
    count, _ = client.stat()
    if count < 2:
        pytest.skip(f"the maildrop has {count} messages, two are needed")
    return count
