"""Real clients sign in to popart by each mechanism that they know.

    python3 -m pytest .ci/clients

Everything is over TLS.  CAPA announces only one mechanism, because clients have their own ideas about which is best:
curl takes OAUTHBEARER when it is told XOAUTH2.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from clients import CLIENTS, HERE, Client, RecordingServer, Run, make_context, sent
from conftest import Table

import popart
from popart.replies import Reply
from popart.session import Session
from popart.testing.wire.messages import ORDINARY
from tests.conftest import Mail, running
from tests.wire.conftest import DeletingHandler

SHORT_TOKEN = "ya29.a0Af_B~y+C/D-e=="
LONG_TOKEN = "eyJ0eXAiOiJKV1Qi." * 120
"""As long as Microsoft's tokens."""


CRAM_MD5 = runpy.run_path(str(HERE.parent.parent / "docs/examples/cram_md5.py"))


class WillingHandler(CRAM_MD5["CramMD5SignIn"], DeletingHandler):  # type: ignore[misc]
    """Takes each credential that alice may have."""

    allow_sasl_login = True

    def authenticate_token(self, username: str, token: str) -> None:
        if username != "alice" or token not in (SHORT_TOKEN, LONG_TOKEN):
            raise popart.ReportableError("wrong token")

    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        names = [value for part in certificate["subject"] for name, value in part if name == "commonName"]
        if names != [identity]:
            raise popart.ReportableError("another's certificate")


class OneMechanism(Session):
    """Announces only the mechanism of its class."""

    mechanism: str

    def respond(self, line: bytes) -> Reply:
        reply = super().respond(line)
        if line != b"CAPA" or reply.lines is None:
            return reply
        others, (offered,) = re.sub(rb"SASL .*\r\n", b"", reply.lines), re.findall(rb"SASL (.*)\r\n", reply.lines)
        if self.mechanism == "APOP":
            return reply._replace(lines=others)
        assert self.mechanism.encode() in offered.split(b" "), offered
        return reply._replace(lines=others + b"SASL %b\r\n" % self.mechanism.encode())


class SigningIn:
    """A client that shall sign in by a mechanism, and its server."""

    def __init__(self, client: Client, mechanism: str, authority: trustme.CA, directory: Path) -> None:
        self.mail = Mail(ORDINARY[0])
        session_class = type("", (OneMechanism,), {"mechanism": mechanism})
        context = make_context(authority)
        apop = mechanism == "APOP"
        self.server = RecordingServer(self.mail, WillingHandler, session_class, ssl_context=context, apop=apop)
        environment = {"POP3_AUTH": mechanism, "POP3_CA": str(directory / "ca.pem")}
        authority.cert_pem.write_to_path(environment["POP3_CA"])
        if mechanism == "EXTERNAL":
            environment["POP3_CERTIFICATE"] = str(directory / "alice.pem")
            certificate = authority.issue_cert("alice@example.org", common_name="alice")
            certificate.private_key_and_cert_chain_pem.write_to_path(environment["POP3_CERTIFICATE"])
        self.run = Run(client, self.server, directory / "home", **environment)

    def attempts(self) -> list[list[str]]:
        """Return the words of all commands that begin a sign-in."""
        return [line.split(" ") for line in self.server.lines() if line.startswith(("APOP ", "AUTH ", "USER "))]


@pytest.mark.parametrize(
    "client, mechanism, initial",
    [
        pytest.param(client, mechanism, initial, id="-".join([client.name, mechanism, *["initial"] * initial]))
        for client in CLIENTS
        for mechanism in client.signs_in
        for initial in ([False, True] if client.chooses_initial and mechanism not in ("APOP", "CRAM-MD5") else [False])
    ],
    indirect=["client"],
)
def test_sign_in(
    client: Client, mechanism: str, initial: bool, table: Table, authority: trustme.CA, tmp_path: Path
) -> None:
    """The client signs in by the mechanism, with an initial response or without, and reads the mail."""
    trial = SigningIn(client, mechanism, authority, tmp_path)
    environment = {"POP3_INITIAL": "yes" if initial else ""}
    if mechanism in ("XOAUTH2", "OAUTHBEARER"):
        # A command has 255 octets at most, so a long token cannot be an initial response (RFC 5034 section 4).
        environment["POP3_PASSWORD"] = SHORT_TOKEN if initial else LONG_TOKEN
    with running(trial.server):
        assert trial.run.fetch(**environment) == sent(trial.mail.messages)
    assert trial.mail.errors == []
    attempts = trial.attempts()
    assert attempts
    if mechanism == "APOP":
        assert all(words[:2] == ["APOP", "alice"] for words in attempts)
        table.add(client, "APOP")
    else:
        assert all(words[:2] == ["AUTH", mechanism] for words in attempts)
        assert not client.chooses_initial or all((len(words) == 3) == initial for words in attempts)
        table.add(client, f"AUTH {mechanism}")


@pytest.mark.parametrize(
    "client, mechanism",
    [
        pytest.param(client, mechanism, id=f"{client.name}-{mechanism}")
        for client in CLIENTS
        for mechanism in client.signs_in
        if mechanism in ("PLAIN", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256", "CRAM-MD5")
    ],
    indirect=["client"],
)
def test_a_refusal(client: Client, mechanism: str, authority: trustme.CA, tmp_path: Path) -> None:
    """With a wrong password or token, a client gets no mail and the server no errors, whatever the client does with the
    challenge that refuses a token."""
    trial = SigningIn(client, mechanism, authority, tmp_path)
    with running(trial.server):
        messages, _ = trial.run.try_to_fetch(POP3_PASSWORD="wrong")
    assert messages == []
    assert ["AUTH", mechanism] in [words[:2] for words in trial.attempts()]
    assert all(isinstance(error, popart.ClientGoneError) for error in trial.mail.errors)
