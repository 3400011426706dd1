"""Clients that hold random sessions, and what they witness: a record from which every promise can be checked."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import postgres
import psycopg

PASSWORD = "secret"
FULL = 12
"""Messages that are kept in a maildrop while clients delete them."""


@dataclass
class Session:
    """What a client knows of a session that it signed in to."""

    maildrop: str
    peer: str
    start: float
    """When the answer to PASS had come: the lock was held before."""

    known_held: float
    """When the last command that was answered was sent: the lock was held after."""

    deleted: set[str] = field(default_factory=set)
    """Unique-ids of which the client knows by the answer to QUIT that they are deleted."""

    in_doubt: set[str] = field(default_factory=set)
    """Those for which it said QUIT, and never got an answer."""


class Mail:
    """Every message that was ever delivered, by its unique-id."""

    def __init__(self, maildrops: list[str]) -> None:
        self.maildrops = maildrops
        self.delivered: dict[str, bytes] = {}
        self._random = random.Random(1)

    def fill(self, connection: psycopg.Connection[Any]) -> None:
        """Deliver to each maildrop until it is full."""
        rows = connection.execute(
            "SELECT name, count(m.id) FROM users u LEFT JOIN messages m ON user_id = u.id GROUP BY name"
        )
        for name, count in rows.fetchall():
            for _ in range(FULL - count):
                octets = self._make(self._random.choice([300, 2000, 2000, 8000, 20_000, 400_000]))
                # Its unique-id is known before it is committed, so that no client can be faster.
                with connection.transaction():
                    self.delivered[postgres.deliver(connection, name, octets)] = octets

    def _make(self, size: int) -> bytes:
        words = [".", "..", ".dots", "popart", "x" * 40, "From here", "8-bit \xe9", "QUIT", "+OK"]
        lines = ["Subject: a message", "", f"{self._random.getrandbits(128):x}"]
        while size > 0:
            lines.append(" ".join(self._random.choices(words, k=6)))
            size -= len(lines[-1]) + 2
        return "\r\n".join([*lines, ""]).encode("latin-1")


class Refused(Exception):
    """The server said -ERR."""


class Witness:
    """Runs the clients and keeps what they saw."""

    def __init__(self, address: tuple[str, int], mail: Mail, client_address: Callable[[int], str], count: int) -> None:
        self.address = address
        self.mail = mail
        self.sessions: list[Session] = []
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(client_address(number), random.Random(number)))
            for number in range(1, count + 1)
        ]

    def __enter__(self) -> Witness:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _live(self, address: str, rng: random.Random) -> None:
        while not self._over.wait(rng.uniform(0.05, 0.5)):
            try:
                with Client(self.address, address) as client:
                    self._hold_session(client, rng)
            except Refused as refusal:
                self.counts["refused: " + str(refusal)] += 1
            except OSError:
                self.counts["connections broken by the server or the proxy"] += 1

    def _hold_session(self, client: Client, rng: random.Random) -> None:
        maildrop = rng.choice(self.mail.maildrops)
        client.ask("USER " + maildrop)
        client.ask("PASS " + PASSWORD)
        session = Session(maildrop, client.name, time.monotonic(), client.answered)
        self.sessions.append(session)
        try:
            self._read_and_delete(client, session, rng)
        finally:
            session.known_held = max(session.start, client.answered)

    def _read_and_delete(self, client: Client, session: Session, rng: random.Random) -> None:
        client.ask("UIDL")
        ids = dict(line.split() for line in client.lines().decode().splitlines())
        client.ask("LIST")
        sizes = dict(line.split() for line in client.lines().decode().splitlines())
        marked = set()
        for number in rng.sample(sorted(ids), min(len(ids), rng.randrange(6))):
            unique_id = ids[number]
            octets = self.mail.delivered[unique_id]
            if int(sizes[number]) != len(octets):
                self.violations.append(f"a size of {sizes[number]} for {len(octets)} octets")
            client.ask("RETR " + number)
            if rng.random() < 0.08:
                client.drop_within(len(octets))
                self.counts["dropped in mid-message"] += 1
                return
            if client.lines() != octets:
                self.violations.append(f"message {unique_id} was accepted with wrong octets")
            self.counts["messages retrieved"] += 1
            if rng.random() < 0.5:
                client.ask("DELE " + number)
                marked.add(unique_id)
            self._over.wait(rng.choice([0, 0, 0.02, 0.3]))
        ending = rng.random()
        if ending < 0.1:
            self.counts["dropped after DELE, without QUIT"] += bool(marked)
            return
        if ending < 0.2:
            client.ask("RSET")
            marked.clear()
        session.in_doubt = marked
        client.ask("QUIT")
        session.deleted, session.in_doubt = marked, set()
        self.counts["sessions ended with QUIT and +OK"] += 1
        self.counts["messages deleted"] += len(marked)


class Client:
    """A strict client: whatever is not a whole reply is an OSError."""

    def __init__(self, server: tuple[str, int], address: str, first: bytes = b"") -> None:
        self.socket = socket.create_connection(server, timeout=30, source_address=(address, 0))
        self.socket.sendall(first)
        self.name = "{}:{}".format(*self.socket.getsockname())
        self.file = self.socket.makefile("rb")
        self.sent = self.answered = time.monotonic()

    def __enter__(self) -> Client:
        try:
            self.line()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def line(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection ended")
        return line

    def ask(self, command: str) -> None:
        self.sent = time.monotonic()
        self.socket.sendall(command.encode() + b"\r\n")
        line = self.line()
        if not line.startswith(b"+OK"):
            with contextlib.suppress(OSError):
                self.socket.sendall(b"QUIT\r\n")
            raise Refused(line.decode().strip())
        self.answered = self.sent

    def lines(self) -> bytes:
        lines = []
        while (line := self.line()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    def drop_within(self, size: int) -> None:
        """Leave in the midst of a message, with a reset."""
        self.file.read(size // 2)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
