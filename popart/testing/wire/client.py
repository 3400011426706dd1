"""A client of raw octets that checks how a server frames its answers."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

PATIENCE = 10.0
"""Seconds after which a test gives up waiting for what should come at once."""


@dataclass(frozen=True)
class Target:
    """The server under test."""

    address: tuple[str, int]
    user: bytes
    password: bytes
    context: ssl.SSLContext | None


class WireClient:
    """A client that checks each status line against RFC 1939 section 3, and the framing of everything else.

    Every wait ends after `PATIENCE` seconds with an error.
    """

    def __init__(self, target: Target) -> None:
        sock = socket.create_connection(target.address, timeout=PATIENCE)
        if target.context is not None:
            # Without suppress_ragged_eofs=False a connection that was cut looks like one that ended as it should.
            sock = target.context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
        self._sock = sock
        self._file = sock.makefile("rb")
        self.target = target
        self.greeting: bytes = self.status()

    def send(self, octets: bytes) -> None:
        self._sock.sendall(octets)

    def line(self) -> bytes:
        """Read one line, with its end; b"" when the server has closed the connection."""
        return self._file.readline()

    def rest(self) -> bytes:
        """Read all that comes until the server closes the connection."""
        return self._file.read()

    def status(self) -> bytes:
        """Read a status line, and return it without its end."""
        line = self.line()
        assert re.fullmatch(rb"(?s)(\+OK|-ERR)( .*)?\r\n", line), f"no status line: {line[:100]!r}"
        assert len(line) <= 512, "a status line is longer than 512 octets"
        return line[:-2]

    def ask(self, command: bytes) -> bytes:
        self.send(command + b"\r\n")
        return self.status()

    def ok(self, command: bytes) -> bytes:
        """Send a command that must succeed, and return the text of its status line."""
        status = self.ask(command)
        assert status.startswith(b"+OK"), f"{command!r} was answered {status!r}"
        return status[4:]

    def refused(self, command: bytes) -> bytes:
        """Send a command that must fail, and return the text of its status line."""
        status = self.ask(command)
        assert status.startswith(b"-ERR"), f"{command!r} was answered {status!r}"
        return status[5:]

    def lines(self) -> bytes:
        """Read the rest of a multi-line answer, final dot included."""
        lines: list[bytes] = []
        while not lines or lines[-1] != b".\r\n":
            lines.append(self.line())
            assert lines[-1], f"the connection ended within an answer: {b''.join(lines)[-100:]!r}"
        return b"".join(lines)

    def raw(self, command: bytes) -> bytes:
        """Send a command with a multi-line answer, and return all after its status line, final dot included."""
        self.ok(command)
        return self.lines()

    def data(self, command: bytes) -> bytes:
        """Send a command with a multi-line answer, and return its octets without the stuffed dots."""
        return unstuff(self.raw(command))

    def listing(self, command: bytes) -> dict[int, bytes]:
        """Send LIST or UIDL, and return what it says about each message."""
        listing: dict[int, bytes] = {}
        for line in self.data(command).split(b"\r\n")[:-1]:
            number, space, value = line.partition(b" ")
            assert re.fullmatch(rb"[1-9][0-9]*", number) and space and value, f"no line of a listing: {line!r}"
            listing[int(number)] = value
        return listing

    def stat(self) -> tuple[int, int]:
        """Return the drop listing: how many messages there are, and their octets."""
        found = re.match(rb"(0|[1-9][0-9]*) (0|[1-9][0-9]*)(?= |$)", self.ok(b"STAT"))
        assert found, "no drop listing"
        return int(found[1]), int(found[2])

    def signs_in(self) -> bool:
        """Sign in; return False when another session still has the maildrop."""
        self.ok(b"USER " + self.target.user)
        status = self.ask(b"PASS " + self.target.password)
        assert status.startswith((b"+OK", b"-ERR [IN-USE]")), f"the sign-in was answered {status!r}"
        return status.startswith(b"+OK")

    def drop(self) -> None:
        """Leave without a word."""
        self._file.close()
        self._sock.close()

    def close(self) -> None:
        """Leave as a client should: the next session finds the maildrop unlocked, and nothing deleted."""
        if not self._file.closed:
            self._sock.settimeout(1)
            with suppress(OSError):
                self.send(b"RSET\r\nQUIT\r\n")
                self.rest()
        self.drop()


def unstuff(octets: bytes) -> bytes:
    """Return a multi-line answer without its final dot and its stuffed dots (RFC 1939 section 3)."""
    assert not re.search(rb"(?<!\r)\n", octets), "an LF without its CR"
    lines = octets.removesuffix(b".\r\n").split(b"\r\n")
    assert not [line for line in lines if line.startswith(b".") and not line.startswith(b"..")], "a dot is not stuffed"
    return b"\r\n".join([line.removeprefix(b".") for line in lines])


def make_context() -> ssl.SSLContext:
    """Make a context that takes any certificate: the suite tests the protocol alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Python tells OpenSSL 3 to take a bare end for close_notify; other clients do not.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def is_bare_end(error: ssl.SSLError) -> bool:
    """Return whether this is the error of a TLS connection that ended without close_notify.

    Python before 3.11.4, with OpenSSL 3, raises a plain SSLError then.
    """
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"
