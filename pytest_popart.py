"""The pytest plugin: a mail server for each test that asks for one.

    @pytest.mark.pop3(users={"alice": "secret"}, timeout=5)
    def test_fetch(pop3_server):
        pop3_server.deliver("alice", "Subject: x\\n\\nhello\\n")
        fetch(pop3_server.url)

The marker takes the arguments of `popart.testing.MailServer`.  Arguments on a test override those on its class, and
these override those on its module.

If a test fails, its report shows the conversations of the servers that it used, whether they came by a fixture or not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from popart.testing import MailServer

_BEGIN = "_popart_begin"  # an attribute, as pytest before 7 has no stash


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "pop3(**options): arguments of popart.testing.MailServer for pop3_server and pop3s_server"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note where the test begins."""
    if "popart.testing.server" in sys.modules:  # suites that use no server are not made to import it
        from popart.testing.session_record import moments

        setattr(item, _BEGIN, next(moments))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Add the conversations to the report of a failed test."""
    outcome = yield
    found = outcome.get_result()
    if found.failed and "popart.testing.server" in sys.modules:
        from popart.testing.report import sections

        for title, text in sections(getattr(item, _BEGIN, 0)):
            if hasattr(found.longrepr, "addsection"):
                found.longrepr.addsection(title, text)  # so that it is in JUnit's XML, too
            else:
                found.sections.append((title, text))


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
