"""The pytest plugin: a mail server for each test that asks for one.

    @pytest.mark.pop3(users={"alice": "secret"}, timeout=5)
    def test_fetch(pop3_server):
        pop3_server.deliver("alice", "Subject: x\\n\\nhello\\n")
        fetch(pop3_server.url)

The marker takes the arguments of `popart.testing.MailServer`.  Arguments on a test override those on its class, and
these override those on its module.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from popart.testing import MailServer


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "pop3(**options): arguments of popart.testing.MailServer for pop3_server and pop3s_server"
    )


@pytest.fixture
def pop3_server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """A `popart.testing.MailServer` for this test; by default its user is alice, with the password "secret"."""
    yield from _serve(request, tls=False)


@pytest.fixture
def pop3s_server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """The same over TLS: clients trust the certificates in its ``ca_file``."""
    yield from _serve(request, tls=True)


def _serve(request: pytest.FixtureRequest, *, tls: bool) -> Iterator[MailServer]:
    from popart.testing import MailServer

    signature = inspect.signature(MailServer)
    options: dict[str, Any] = {"tls": tls}
    for marker in reversed([*request.node.iter_markers("pop3")]):
        # By their names: otherwise positional arguments of two markers would add up.
        named = signature.bind_partial(*marker.args, **marker.kwargs).arguments
        options.update(named.pop("server_options", {}), **named)
    with MailServer(**options) as server:
        yield server
