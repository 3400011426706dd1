"""The wire suite on popart itself: `popart.testing.wire`, plain and over TLS, with no thread or descriptor left.

pytest tests/wire                                   tests popart
pytest tests/wire --pop3-server localhost:1100      tests another server, as python3 -m popart.testing.wire does
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Iterator, Sequence

import pytest

import popart
from popart.server import Server
from popart.testing.wire import conftest as suite
from popart.testing.wire.client import Target, make_context
from popart.testing.wire.conftest import (  # noqa: F401
    client,
    connect,
    guest,
    pytest_addoption,
    pytest_configure,
    pytest_runtest_setup,
    sign_in,
    two_messages,
)
from popart.testing.wire.messages import ALL, on_the_wire
from tests.conftest import Mail, MemoryHandler, running

# Their modules here only import them.
pytest.register_assert_rewrite(
    *(f"popart.testing.wire.test_{name}" for name in ("capabilities", "lines", "messages", "quit", "sign_in"))
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("--pop3-server", None) is not None:
        suite.pytest_generate_tests(metafunc)
    elif "target" in metafunc.fixturenames:
        metafunc.parametrize("target", ["popart", "popart-tls"], indirect=True)


scram_credentials = functools.cache(lambda: popart.scram_credentials("secret"))


class DeletingHandler(MemoryHandler):
    """Serves the messages with ids of their own, checks APOP and SCRAM, and deletes for good."""

    def set_banner(self, banner: str) -> None:
        self.banner = banner

    def authenticate_apop(self, username: str, hexdigest: str) -> None:
        wanted = hashlib.md5(f"{self.banner}secret".encode()).hexdigest()
        if username != "alice" or not hmac.compare_digest(hexdigest, wanted):
            raise popart.ReportableError("wrong name or password")

    def get_scram_credentials(self, username: str) -> popart.ScramCredentials:
        if username != "alice":
            raise popart.ReportableError("wrong name or password")
        return scram_credentials()

    def get_message_size(self, number: int) -> int:
        return len(on_the_wire(self.mail.messages[number - 1]))

    def get_message_id(self, number: int) -> str:
        return hashlib.sha256(self.mail.messages[number - 1]).hexdigest()

    def delete_messages(self, numbers: Sequence[int]) -> None:
        kept = [message for number, message in enumerate(self.mail.messages, 1) if number not in numbers]
        self.mail.messages = kept


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The server under test: that of the options, or a popart server with a maildrop of its own."""
    if request.config.getoption("--pop3-server", None) is not None:
        yield suite.find_target(request.config)
        return
    # The octets of a refusal do not show how long it takes.
    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    tls = request.param == "popart-tls"
    mail = Mail(*ALL)
    server_context = request.getfixturevalue("server_context") if tls else None
    # One of the two servers offers APOP, the other does not.
    server = Server(("127.0.0.1", 0), lambda peer: DeletingHandler(mail), ssl_context=server_context, apop=not tls)
    with running(server):
        yield Target(("127.0.0.1", server.server_address[1]), b"alice", b"secret", make_context() if tls else None)
