"""Shared by the tests: fixtures, and the table of what each client does.

The table is printed at the end, and written to a file with ``--client-table FILE``.
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from clients import CLIENTS, ODD, Client

from tests.conftest import authority, nothing_left

__all__ = ["authority", "nothing_left"]

FEATURES = [
    *("plain", "TLS", "leaves", "new only", "deletes", *ODD.values()),
    *("CAPA", "UIDL", "LIST", "TOP", "pipelines"),
    *("APOP", "AUTH PLAIN", "AUTH LOGIN", "AUTH XOAUTH2", "AUTH OAUTHBEARER", "AUTH SCRAM-SHA-256", "AUTH EXTERNAL"),
    "AUTH CRAM-MD5",
]


@dataclass
class Table:
    """The features that each client was seen to use."""

    versions: dict[str, str] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=dict)
    """The features that get a yes, by the client's name."""

    def add(self, client: Client, *features: str) -> None:
        self.seen.setdefault(client.name, set()).update(features)

    def __str__(self) -> str:
        """Return a simple table of RST."""
        lines = [["\\", *self.seen]]
        lines += [
            [feature, *("yes" if feature in seen else "--" for seen in self.seen.values())] for feature in FEATURES
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = " ".join("=" * width for width in widths)
        head, *body = (" ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "\n".join([rule, head, rule, *body, rule, ""])


TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--client-table", metavar="FILE", type=Path, help="write the table of clients there, as RST")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = Table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    terminalreporter.write_line("")
    for name, version in table.versions.items():
        terminalreporter.write_line(f"{name}: {version}")
    terminalreporter.write(f"\n{table}")
    file = config.getoption("--client-table")
    if file is not None:
        file.write_text(str(table))


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The table, for a test to fill."""
    return request.config.stash[TABLE]


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest, table: Table) -> Client:
    """A client that is installed."""
    client: Client = request.param
    found, version = _probe(client)
    if not found:
        answer = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        answer(f"{client.name} is not installed: {version}")
    table.versions[client.name] = version
    return client


@functools.cache
def _probe(client: Client) -> tuple[bool, str]:
    """Return whether a client is installed, and its version or the reason why not."""
    probe = subprocess.run(client.version, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = probe.stdout.strip()
    return (False, output[-200:]) if probe.returncode else (True, output.partition("\n")[0][:80])


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    """A PEM file with the authority that issued the server's certificate."""
    path = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(path)
    return path
