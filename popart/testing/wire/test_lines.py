"""Command lines, in whatever pieces they arrive."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from popart.testing.wire.client import WireClient

optional: pytest.MarkDecorator = pytest.mark.optional


def test_a_line_in_single_octets(guest: WireClient) -> None:
    """A command that the network cuts in pieces is still one command (RFC 1939 section 3)."""
    for octet in b"USER " + guest.target.user + b"\r\n":
        guest.send(bytes([octet]))
    assert guest.status().startswith(b"+OK")
    guest.ok(b"PASS " + guest.target.password)


def test_a_line_apart_from_its_end(client: WireClient) -> None:
    """Some clients send a line and its CRLF in two packets (RFC 1939 section 3)."""
    for octets in (b"STAT", b"\r\n", b"NOOP\r", b"\n"):
        client.send(octets)
    assert client.status().startswith(b"+OK ")
    assert client.status().startswith(b"+OK")


def test_half_a_line_holds_up_nobody(connect: Callable[[], WireClient]) -> None:
    """A client in the middle of a command does not keep others from their mail."""
    slow = connect()
    slow.send(b"USER ")
    assert connect().signs_in()


@optional("bare-lf")
def test_lf_ends_a_line(client: WireClient) -> None:
    """LF alone ends a line like CRLF."""
    client.send(b"NOOP\nSTAT\n")
    assert client.status().startswith(b"+OK")
    assert client.status().startswith(b"+OK ")


def test_a_lone_cr_ends_no_line(client: WireClient) -> None:
    """A CR without an LF does not end a line, and what follows it is not run (RFC 1939 section 3)."""
    drop_listing = client.ask(b"STAT")
    client.send(b"XYZZY\rNOOP\r\nSTAT\r\n")
    assert client.status().startswith(b"-ERR")
    assert client.status() == drop_listing


def test_a_line_of_255_octets(guest: WireClient) -> None:
    """A command line of 255 octets, CRLF included, is answered like a short one (RFC 2449 section 4)."""
    assert guest.ask(b"USER " + b"x" * 248)[:3] == guest.ask(b"USER x")[:3]
    assert guest.signs_in()


@pytest.mark.parametrize("length", [10_000, 1_000_000])
def test_a_line_that_is_too_long(client: WireClient, length: int) -> None:
    """A line that is too long is refused once, or ends the session, but no part of it is run (RFC 2449 section 4)."""
    drop_listing = client.ask(b"STAT")
    answers = b""
    with suppress(ConnectionError, ssl.SSLError):  # a server may hang up on it
        client.send(b"NOOP " * (length // 5) + b"\r\nSTAT\r\nQUIT\r\n")
        answers = client.rest()
    statuses = answers.split(b"\r\n")[:-1]
    assert len(statuses) <= 1 or statuses[1:-1] == [drop_listing]


@optional("pipelining")
def test_a_session_in_one_write(guest: WireClient) -> None:
    """A client may send a whole session at once; the answers come in order (RFC 2449 section 6.6)."""
    lines = [b"USER " + guest.target.user, b"PASS " + guest.target.password, b"STAT", b"NOOP", b"XYZZY", b"QUIT", b""]
    guest.send(b"\r\n".join(lines))
    assert [guest.status()[:3] for _ in lines[:-1]] == [b"+OK", b"+OK", b"+OK", b"+OK", b"-ER", b"+OK"]


@optional("pipelining")
def test_many_commands_in_one_write(client: WireClient) -> None:
    """Each of many pipelined commands is answered, in their order (RFC 2449 section 6.6)."""
    drop_listing = client.ask(b"STAT")
    client.send(b"STAT\r\nXYZZY\r\nNOOP\r\n" * 5 + b"NOOP\r\n" * 500 + b"STAT\r\n")
    for _ in range(5):
        assert client.status() == drop_listing
        assert client.status().startswith(b"-ERR")
        assert client.status().startswith(b"+OK")
    for _ in range(500):
        assert client.status().startswith(b"+OK")
    assert client.status() == drop_listing


@optional("pipelining")
def test_many_messages_in_one_write(client: WireClient, two_messages: int) -> None:
    """Pipelined RETRs give whole messages, one after the other (RFC 2449 section 6.6)."""
    messages = [client.raw(b"RETR %d" % number) for number in (1, 2)]
    client.send(b"RETR 1\r\nRETR 2\r\n" * 50)
    for _ in range(50):
        for message in messages:
            assert client.status().startswith(b"+OK")
            assert client.lines() == message
