"""The check's client: raw octets, and the ways to sign in."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from popart import system
from popart.sasl import apop_digest
from popart.testing.check.report import CheckError

LONGEST = 60.0
"""Seconds that a client waits for an answer while no single call of the handler is slow."""

ANSWER_SHARE = 6
"""The client waits at least this many times its patience."""

ENDLESS = 67_108_864
"""Octets.  A longer answer that is not complete at the end of a wait is taken to have no end."""

_GLANCES = 10
"""How many times within its patience a client checks whether a call is slow."""


class StopError(Exception):
    """The client cannot go on.  The text says what has happened."""


class LateError(Exception):
    """All calls together take too long, and no single call is to blame."""


class BlockedError(Exception):
    """A call of the handler has not returned in time, or its answer has no end."""

    explained: bool = False
    """True once it has been found which method blocks."""


class LockedError(Exception):
    """The maildrop is locked, and no session is open that may have it."""


@dataclass(frozen=True)
class Credentials:
    """A user, and the one secret that lets them in."""

    user: str
    secret: str
    way: str = ""
    """How: PASS, APOP, SCRAM-SHA-256, XOAUTH2 or OAUTHBEARER; ``""`` if it is not known yet."""


def longest_wait(patience: float) -> float:
    """Return the seconds that anything may take while no single call is slow."""
    return max(LONGEST, ANSWER_SHARE * patience)


class Client:
    """A client whose every wait ends: with a `BlockedError` if a call is slow, or with a `LateError` some time later.

    One answer may need many calls of the handler, each of which may take *patience* seconds.  *is_blocked* returns
    whether one has taken longer.
    """

    def __init__(self, port: int, patience: float, is_blocked: Callable[[], bool]) -> None:
        self._patience = patience
        self._is_blocked = is_blocked
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=LONGEST)
        self._sock.settimeout(patience / _GLANCES)
        self._buffer = bytearray()
        self._begin_answer()
        try:
            self.greeting: str = self.line()
        except BaseException:
            self.close()
            raise

    def _begin_answer(self) -> None:
        self._received = 0
        self._deadline = time.monotonic() + longest_wait(self._patience)

    def _receive(self, missing: str) -> bytes:
        """Receive some octets, or nothing at the end of the connection.  *missing* says what is waited for."""
        while True:
            if time.monotonic() > self._deadline:
                if self._received > ENDLESS:
                    raise BlockedError(f"{missing} after {self._received} octets: it has no end")
                raise LateError(missing)
            try:
                chunk = self._sock.recv(65_536)
            except TimeoutError:
                if self._is_blocked():
                    raise BlockedError(missing) from None
                continue
            except OSError:
                return b""
            self._received += len(chunk)
            return chunk

    def _read_line(self, missing: str) -> bytes:
        """Return a line with its end, or what there is of it where the connection has ended."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._buffer += self._receive(missing)
            if searched == len(self._buffer):
                break
        size = end + 1 or searched
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line

    def send(self, command: str) -> None:
        """Send a line."""
        self._begin_answer()
        try:
            self._sock.sendall(command.encode() + b"\r\n")
        except TimeoutError:
            raise BlockedError(f"{hide(command)} is not read") from None
        except OSError:
            raise StopError(f"{hide(command)} could not be sent, as the connection has ended") from None

    def line(self, after: str = "connecting") -> str:
        """Read a line, and return it without its end."""
        line = self._read_line(f"there is no answer after {hide(after)}")
        if not line.endswith(b"\n"):
            raise StopError(f"the connection ended after {hide(after)}")
        return line.decode().rstrip("\r\n")

    def ask(self, command: str) -> str:
        """Send a command and return the first line of its answer."""
        self.send(command)
        return self.line(command)

    def ok(self, command: str) -> str:
        """Send a command that must succeed, and return the first line of its answer."""
        answer = self.ask(command)
        if not answer.startswith("+OK"):
            raise StopError(f"{hide(command)} was answered {answer}")
        return answer

    def data(self, command: str) -> bytes:
        """Send a command with a multi-line answer, and return its octets without the stuffed dots."""
        self.ok(command)
        lines: list[bytes] = []
        while True:
            line = self._read_line(f"the answer to {command} is not complete")
            if line == b".\r\n":
                return b"".join(lines)
            if not line:
                raise StopError(f"the connection was reset in the middle of the answer to {command}")
            lines.append(line[1:] if line.startswith(b".") else line)

    def listing(self, command: str) -> list[str]:
        """Send LIST or UIDL, and return what it says of each message, message 1 first."""
        return [line.partition(" ")[2] for line in self.data(command).decode().splitlines()]

    def close(self) -> None:
        """Leave without a word."""
        self._sock.close()

    def reset(self) -> None:
        """Leave by a reset."""
        system.reset_when_closed(self._sock)
        self._sock.close()

    def wait_for_end(self) -> None:
        """Read until the server has closed the connection."""
        while self._receive("the connection does not end"):
            pass

    # Signing in.

    def offers(self) -> tuple[bool, list[str]]:
        """Return whether USER is offered, and the mechanisms of AUTH."""
        offers = [line.split(" ") for line in self.data("CAPA").decode().splitlines()]
        return ["USER"] in offers, [name for words in offers if words[0] == "SASL" for name in words[1:]]

    def sign_in_as(self, as_whom: Credentials, identity: str) -> str:
        """Try to sign in by AUTH PLAIN and act as another user, and return the answer."""
        return self.ask(f"AUTH PLAIN {_encode(chr(0).join((identity, as_whom.user, as_whom.secret)))}")

    def sign_in(self, as_whom: Credentials) -> str:
        """Try to sign in, and return the last line of the answer."""
        user, secret = as_whom.user, as_whom.secret
        if as_whom.way == "PASS":
            self.ok(f"USER {user}")
            return self.ask(f"PASS {secret}")
        if as_whom.way == "APOP":
            found = re.search("<.*>", self.greeting)
            return self.ask(f"APOP {user} {apop_digest(found[0] if found else '', secret)}")
        if as_whom.way == "SCRAM-SHA-256":
            return self._sign_in_by_scram(user, secret)
        escaped = user.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 section 4
        header = f"user={user}\1" if as_whom.way == "XOAUTH2" else f"n,a={escaped},\1"
        answer = self.ask(f"AUTH {as_whom.way} {_encode(f'{header}auth=Bearer {secret}' + chr(1) * 2)}")
        return self.ask("AQ==") if answer.startswith("+ ") else answer

    def _sign_in_by_scram(self, user: str, secret: str) -> str:
        from scramp import ScramClient, ScramException

        scram = ScramClient(["SCRAM-SHA-256"], user, secret)
        answer = self.ask(f"AUTH SCRAM-SHA-256 {_encode(scram.get_client_first())}")
        for is_first in (True, False):
            if not answer.startswith("+ "):
                return answer
            challenge = base64.b64decode(answer.removeprefix("+ ")).decode()
            try:
                (scram.set_server_first if is_first else scram.set_server_final)(challenge)
            except ScramException:
                return self.ask("*")
            answer = self.ask(_encode(scram.get_client_final()) if is_first else "")
        return answer


def choose_way(takes_user: bool, mechanisms: Sequence[str], *, token: bool, apop: bool) -> str:
    """Return how to sign in.

    :raises CheckError: the server offers no way that is known here.
    """
    if apop:
        return "APOP"
    if token:
        wanted = [name for name in mechanisms if name in ("XOAUTH2", "OAUTHBEARER")]
    else:
        wanted = ["PASS"] * takes_user + [name for name in mechanisms if name == "SCRAM-SHA-256"]
    if not wanted:
        secret = "tokens" if token else "passwords"
        raise CheckError(f"the handler takes no {secret}; of SASL it offers: {' '.join(mechanisms) or 'nothing'}")
    return wanted[0]


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def hide(command: str) -> str:
    """Return a command, or a response of SCRAM, as a report may show it."""
    return re.sub(r"^(PASS |APOP \S+ |AUTH \S+ ).*|^\S{16,}$", r"\1***", command)
