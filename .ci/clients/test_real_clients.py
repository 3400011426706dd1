"""Real clients fetch a hard maildrop from popart, plain and over TLS, and no octet is lost.

    python3 -m pytest .ci/clients

If a client is not installed, its tests are skipped.  With the environment variable CI=true they fail.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from clients import CLIENTS, MESSAGES, ODD, Client, RecordingServer, Run, make_context, sent
from conftest import Table

from popart.testing.wire.messages import ORDINARY
from tests.conftest import Mail, running
from tests.wire.conftest import DeletingHandler

LATE = ORDINARY[0]


@pytest.mark.parametrize("scheme", ["plain", "TLS"])
def test_fetch_leave_and_delete(
    client: Client, scheme: str, table: Table, authority: trustme.CA, authority_file: str, tmp_path: Path
) -> None:
    """The client gets each message octet for octet, and leaves all on the server or deletes all.  When it comes back,
    it finds the new messages, or none.  Each of its sessions ends as it should."""
    tls = scheme == "TLS"
    environment = {"POP3_CA": authority_file if tls else ""}
    messages = [message for name, message in MESSAGES.items() if name not in client.changes + client.may_change]
    mail = Mail(*messages)
    context = make_context(authority) if tls else None
    with running(RecordingServer(mail, DeletingHandler, ssl_context=context)) as server:
        keeping = Run(client, server, tmp_path / "keeping", **environment)
        assert keeping.fetch() == sent(messages)
        assert mail.messages == messages
        mail.messages.append(LATE)
        assert keeping.fetch() == sent([LATE] if client.remembers else [*messages, LATE])
        assert mail.messages == [*messages, LATE]
        deleting = Run(client, server, tmp_path / "deleting", POP3_ACTION="delete", **environment)
        assert deleting.fetch() == sent([*messages, LATE])
        assert mail.messages == []
        assert deleting.fetch() == []
    assert mail.errors == []
    table.add(client, scheme, "leaves", "deletes", *server.keywords())
    table.add(client, *(feature for name, feature in ODD.items() if name not in client.changes))
    if client.remembers:
        table.add(client, "new only")
    if any(octets.count(b"\r\n") > 1 for octets in server.received):
        table.add(client, "pipelines")


@pytest.mark.parametrize(
    "client, name",
    [pytest.param(client, name, id=f"{client.name}-{name}") for client in CLIENTS for name in client.changes],
    indirect=["client"],
)
def test_what_a_client_changes(client: Client, name: str, tmp_path: Path) -> None:
    """The client asks for this message, and changes it or gives up, as it is known to do."""
    odd = MESSAGES[name]
    with running(RecordingServer(Mail(odd), DeletingHandler)) as server:
        messages, _ = Run(client, server, tmp_path / "home").try_to_fetch()
    assert server.keywords() & {"RETR", "TOP"}
    assert messages != sent([odd])
