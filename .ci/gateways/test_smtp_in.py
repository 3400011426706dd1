"""The test mail server: what comes by SMTP is fetched by POP3."""

from __future__ import annotations

import importlib.util
import smtplib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import EXAMPLES, Gateway, need, started
from door import PATIENCE
from test_each_gateway import LARGE, SMALL, curl, fetch_all
from wire_suite import HARD, ORDINARY, failures, on_the_wire

NOT_BY_SMTP = {"long-line", "large"}
"""Hard messages that RFC 5321 forbids: their lines are too long."""


@dataclass
class MailServer:
    gateway: Gateway

    def send(self, message: bytes, *to: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.gateway.smtp_port, timeout=PATIENCE) as client:
            client.sendmail("bob@example.org", to or ("alice@example.org",), message)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MailServer]:
    need(importlib.util.find_spec("aiosmtpd"), "aiosmtpd")
    command = [sys.executable, str(EXAMPLES / "smtp_in.py"), "--port", "0", "--smtp-port", "0"]
    with started(command, tmp_path / "log") as gateway:
        yield MailServer(gateway)


def test_send_and_fetch(server: MailServer) -> None:
    """smtplib sends, poplib fetches and deletes."""
    for message in (*SMALL, LARGE):
        server.send(message)
    with server.gateway.client() as client:
        assert fetch_all(client) == [*SMALL, LARGE]
        client.dele(2)
        server.send(b"Subject: late\r\n\r\n")
        assert client.stat()[0] == 5
        client.quit()
    with server.gateway.client() as client:
        assert fetch_all(client) == [SMALL[0], *SMALL[2:], LARGE, b"Subject: late\r\n\r\n"]
        client.quit()


def test_curl(server: MailServer) -> None:
    """curl fetches each message, octet by octet."""
    messages = [HARD["dots"], HARD["eight-bit"], LARGE]
    for message in messages:
        server.send(message)
    assert [curl(server.gateway, number) for number in (1, 2, 3)] == messages


def test_recipients(server: MailServer) -> None:
    """Who is named twice gets the message once; who is unknown is refused."""
    server.send(SMALL[0], "alice@one.example", "Alice@two.example")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        server.send(SMALL[1], "nobody@example.org")
    with server.gateway.client() as client:
        assert fetch_all(client) == [SMALL[0]]
        client.quit()


def test_the_wire_suite(server: MailServer) -> None:
    """It passes all of the wire suite, with the messages that SMTP can carry."""
    messages = [message for name, message in HARD.items() if name not in NOT_BY_SMTP] + ORDINARY
    for message in messages:
        server.send(on_the_wire(message))
    with server.gateway.client() as client:
        assert client.stat()[0] == len(messages)
        client.quit()
    assert failures(server.gateway.port) == set()
