"""The greeting: the text that the server's owner chooses, and APOP's timestamp after it (RFC 1939 sections 4 and 7)."""

from __future__ import annotations

import poplib
import re
from typing import Any

import pytest

import popart
from popart.testing import MailServer

from .conftest import Mail, MemoryHandler, connected, running
from .test_listeners import listening
from .test_server import HOST

GREETINGS = ["x", "mail.example.org POP3", "Welcome! [beta] (a=b; c?) {~} \"'\\`^_|", "+OK -ERR", "0", "x" * 206]
TIMESTAMP = re.compile(rb"<\d+\.\d+@[a-z.]+>")


def server_with(**options: Any) -> popart.Server:
    return popart.Server(HOST, lambda peer: MemoryHandler(Mail()), **options)


@pytest.mark.parametrize("greeting", GREETINGS)
def test_greeting(greeting: str) -> None:
    """It follows +OK, and is all that the client reads."""
    with running(server_with(greeting=greeting)) as server, connected(server) as client:
        assert client.line() == b"+OK %b\r\n" % greeting.encode()
        assert server.greeting == greeting


@pytest.mark.parametrize("greeting", GREETINGS)
def test_with_apop(greeting: str) -> None:
    """With *apop* the timestamp comes after it, and a client finds it there."""
    with running(server_with(greeting=greeting, apop=True)) as server:
        client = poplib.POP3(*server.server_address[:2], timeout=10)
        try:
            text, _, timestamp = client.getwelcome().rpartition(b" ")
            assert text == b"+OK " + greeting.encode() and re.fullmatch(rb"<\d+\.\d+@[^<>@]+>", timestamp)
            client.apop("alice", "secret")
        finally:
            client.close()


def test_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest greeting, timestamp and host's name are one line of 512 octets (RFC 2449 section 4)."""
    monkeypatch.setattr("secrets.randbits", lambda bits: (1 << bits) - 1)
    with running(server_with(greeting="x" * 206, hostname="h" * 255, apop=True)) as server:
        with connected(server) as client:
            line = client.line()
    assert line == b"+OK %b <%d.%d@%b>\r\n" % (b"x" * 206, 2**64 - 1, 2**64 - 1, b"h" * 255)
    assert len(line) == 512


@pytest.mark.parametrize("options", [{}, {"apop": True, "hostname": "mail.example"}])
def test_default(options: dict[str, Any]) -> None:
    """The default says only what it is."""
    with running(server_with(**options)) as server, connected(server) as client:
        assert TIMESTAMP.sub(b"T", client.line()) == b"+OK POP3 server ready%b\r\n" % (b" T" if options else b"")


@pytest.mark.parametrize("greeting", [
    "", " ", " x", "x ", "x  y", "x\r\n+OK", "x\n", "x\ry", "x\0", "x\ty", "x\x7f", "grüß",
    "x <y", "x> y", "x@y", "<1.2@x>",
    "[IN-USE] x", "[x", "x" * 207, b"x", None, 5, ["x"],
])  # fmt: skip
def test_what_cannot_be_a_greeting(greeting: Any) -> None:
    """More than a line of ASCII, APOP's signs or what looks like a response code is a ValueError that says so."""
    with pytest.raises(ValueError, match="^greeting cannot be .*: it is at most 206 characters, words") as error:
        server_with(greeting=greeting)
    assert repr(greeting) in str(error.value)
    assert str(error.value).endswith("without <, > and @, and no [ at the beginning")


def test_everywhere() -> None:
    """``from_socket`` takes it, and the test kit's server."""
    with running(popart.Server.from_socket(listening(), lambda peer: MemoryHandler(Mail()), greeting="here")) as server:
        with connected(server) as client:
            assert client.line() == b"+OK here\r\n"
    with MailServer(greeting="kit") as kit:
        client = poplib.POP3(kit.host, kit.port, timeout=10)
        assert client.getwelcome() == b"+OK kit"
        client.quit()


def test_refused_clients_do_not_read_it() -> None:
    """A client that is turned away reads no greeting."""
    with running(popart.Server(HOST, lambda peer: None, greeting="here")) as server, connected(server) as client:
        assert client.rest() == b"-ERR connection refused\r\n"
