"""A program that fetches mail rightly, and ones with the bugs that the table of faults in docs/howto-testing.rst names.

`Fetcher` moves a maildrop into its `stored` list: each message once, whole, and only then deleted.  Each subclass has
one bug, of a kind that real programs have.
"""

from __future__ import annotations

import hashlib
import re
import socket
from contextlib import closing


class FetchError(Exception):
    """The server said no, or nonsense."""


class Fetcher:
    """Fetches rightly."""

    patience: float | None = 0.4
    """Seconds that it waits for the server to send something."""

    expected: tuple[type[Exception], ...] = (FetchError, OSError)
    """What may go wrong with a server.  It tries again then."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.seen: set[str] = set()
        self._buffer = b""

    def run(self, address: tuple[str, int]) -> None:
        """Fetch all mail.

        :raises FetchError: it did not work this time.
        """
        try:
            with closing(socket.create_connection(address, self.patience)) as self.sock:
                self._buffer = b""
                self.converse()
        except self.expected as error:
            raise FetchError from error

    def converse(self) -> None:
        self.greeting(self.line())
        self.ask("USER alice")
        self.sign_in()
        ids = self.ids() if self.can("UIDL") else {}
        for number, size in self.sizes().items():
            self.take(number, size, ids)
        self.leave()

    # The parts in which bugs live.

    def greeting(self, line: bytes) -> None:
        self.expect_ok(line)

    def sign_in(self) -> None:
        self.ask("PASS secret")

    def can(self, capability: str) -> bool:
        try:
            return capability in self.ask_list("CAPA")
        except FetchError:
            return False  # an old server: do without

    def ids(self) -> dict[int, str]:
        listing = dict(line.partition(" ")[::2] for line in self.ask_list("UIDL"))
        good = all(re.fullmatch("[!-~]{1,70}", unique_id) for unique_id in listing.values())
        if not good or len(set(listing.values())) < len(listing):
            return {}  # no good as ids: do without
        return {int(number): unique_id for number, unique_id in listing.items()}

    def sizes(self) -> dict[int, int]:
        return {int(number): int(size) for number, size in map(str.split, self.ask_list("LIST"))}

    def take(self, number: int, size: int, ids: dict[int, str]) -> None:
        if ids.get(number) not in self.seen:
            message = self.retrieve(number, size)
            self.store(message, ids.get(number))
        self.delete(number)

    def retrieve(self, number: int, size: int) -> bytes:
        self.ask(f"RETR {number}")
        message = self.body()
        if len(message) < size:
            raise FetchError("cut short")
        return message

    def store(self, message: bytes, unique_id: str | None) -> None:
        digest = hashlib.sha256(message).hexdigest()
        if digest not in self.seen:  # ids may change
            self.stored.append(message)
        self.seen |= {digest, unique_id or digest}

    def delete(self, number: int) -> None:
        self.ask(f"DELE {number}")

    def leave(self) -> None:
        self.ask("QUIT")

    # Octets.

    def receive(self) -> bytes:
        octets = self.sock.recv(4096)
        if not octets:
            raise FetchError("the connection ended")
        return octets

    def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._buffer += self.receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def body(self) -> bytes:
        lines = []
        while (line := self.line()) != b".":
            lines.append(line[line.startswith(b".") :] + b"\r\n")
        return b"".join(lines)

    def ask(self, command: str) -> str:
        self.sock.sendall(command.encode() + b"\r\n")
        return self.expect_ok(self.line())

    def ask_list(self, command: str) -> list[str]:
        self.ask(command)
        return self.body().decode("latin-1").split("\r\n")[:-1]

    def expect_ok(self, line: bytes) -> str:
        if not line.startswith(b"+OK"):
            raise FetchError(line)
        return line.decode()


class TakesRefusalForEver(Fetcher):
    """After one refusal it never signs in again, as if the password were wrong for good."""

    disabled = False

    def run(self, address: tuple[str, int]) -> None:
        if not self.disabled:
            super().run(address)

    def sign_in(self) -> None:
        self.disabled = True
        super().sign_in()
        self.disabled = False


class IgnoresTheSignIn(Fetcher):
    """A refusal of PASS is not looked at: an empty maildrop, it seems."""

    def sign_in(self) -> None:
        self.sock.sendall(b"PASS secret\r\n")
        self.refused = not self.line().startswith(b"+OK")

    def sizes(self) -> dict[int, int]:
        return {} if self.refused else super().sizes()

    def can(self, capability: str) -> bool:
        return not self.refused and super().can(capability)


class GivesUpWhenLocked(Fetcher):
    """[IN-USE] ends the program."""

    def sign_in(self) -> None:
        self.sock.sendall(b"PASS secret\r\n")
        if not self.line().startswith(b"+OK"):
            raise SystemExit("cannot sign in")


class StoresTheRefusal(Fetcher):
    """The answer to RETR is the message, whatever it begins with."""

    def retrieve(self, number: int, size: int) -> bytes:
        self.sock.sendall(f"RETR {number}\r\n".encode())
        status = self.line()
        return self.body() if status.startswith(b"+OK") else status


class SkipsAndDeletes(Fetcher):
    """A message that cannot be had is deleted with the rest."""

    def take(self, number: int, size: int, ids: dict[int, str]) -> None:
        try:
            super().take(number, size, ids)
        except FetchError:
            self.delete(number)


class RemembersNothing(Fetcher):
    """What was fetched before the connection broke is fetched and stored again."""

    def store(self, message: bytes, unique_id: str | None) -> None:
        self.stored.append(message)


class TrustsTheEnd(Fetcher):
    """The end of the connection is the end of the message."""

    def retrieve(self, number: int, size: int) -> bytes:
        self.ask(f"RETR {number}")
        while not self._buffer.endswith(b"\r\n.\r\n"):
            octets = self.sock.recv(4096)
            if not octets:
                message, self._buffer = self._buffer, b""
                return message
            self._buffer += octets
        message, self._buffer = self._buffer.removesuffix(b".\r\n"), b""
        return message.replace(b"\r\n..", b"\r\n.")


class KnowsNoResets(Fetcher):
    """A socket's error is none that it expects."""

    expected = (FetchError, TimeoutError)


class WaitsForEver(Fetcher):
    """It has no timeout."""

    patience = None


class ConnectsWithTimeout(Fetcher):
    """It has one for connecting alone."""

    def converse(self) -> None:
        self.sock.settimeout(None)
        super().converse()


class IgnoresQuit(Fetcher):
    """What it marked is deleted, it believes, whatever QUIT is answered."""

    def leave(self) -> None:
        self.sock.sendall(b"QUIT\r\n")
        self.line()


class TakesDeleForDone(Fetcher):
    """It takes a message for deleted once DELE is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    def take(self, number: int, size: int, ids: dict[int, str]) -> None:
        if ids[number] not in self.deleted:
            super().take(number, size, ids)
            self.deleted.add(ids[number])


class ComparesNoSizes(Fetcher):
    """Whatever comes before the final dot is the message."""

    def retrieve(self, number: int, size: int) -> bytes:
        return super().retrieve(number, 0)


class HasADeadlineForAll(Fetcher):
    """It wants the whole message at once, or takes the server for dead."""

    def retrieve(self, number: int, size: int) -> bytes:
        self.ask(f"RETR {number}")
        if len(self._buffer) < size:
            self._buffer += self.receive()
        if not self._buffer.endswith(b"\r\n.\r\n"):
            raise SystemExit("the server is dead")
        return self.body()


class TakesAReadForALine(Fetcher):
    """One read brings one line, it believes."""

    def line(self) -> bytes:
        if b"\r\n" not in self._buffer:
            self._buffer += self.receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line


class TimesTheFirstLine(Fetcher):
    """It has a timeout for the first line of an answer, and none for what follows."""

    def body(self) -> bytes:
        self.sock.settimeout(None)
        body = super().body()
        self.sock.settimeout(self.patience)
        return body


class LooksForTheEndInEachRead(Fetcher):
    """The final dot must stand in one read with the line end before it."""

    def retrieve(self, number: int, size: int) -> bytes:
        self.ask(f"RETR {number}")
        octets = message = self._buffer
        while b"\r\n.\r\n" not in octets:
            octets = self.receive()
            message += octets
        self._buffer = b""
        return message.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")


class SkipsTheGreeting(Fetcher):
    """It reads the greeting and does not look at it, and takes an answer for granted."""

    def greeting(self, line: bytes) -> None: ...

    def receive(self) -> bytes:
        return self.sock.recv(4096) or b"\r\n"

    def expect_ok(self, line: bytes) -> str:
        if line.split()[0] != b"+OK":
            raise FetchError(line)
        return line.decode()


class ReadsAsMuchAsWasSaid(Fetcher):
    """It reads as many octets as LIST said."""

    def retrieve(self, number: int, size: int) -> bytes:
        self.ask(f"RETR {number}")
        message = b""
        while len(message) < size:
            line = self.line() + b"\r\n"
            message += line[line.startswith(b".") :]
        self.line()  # the dot
        return message[:size]


class WaitsForWhatWasSaid(ReadsAsMuchAsWasSaid):
    """... for as long as it takes."""

    patience = None


class TrustsTheIds(Fetcher):
    """A message whose id it knows is one that it has."""

    def ids(self) -> dict[int, str]:
        return {int(number): unique_id for number, unique_id in map(str.split, self.ask_list("UIDL"))}


class KeepsItsMail(Fetcher):
    """It leaves mail on the server.  Not a bug."""

    def delete(self, number: int) -> None: ...


class GoesByTheIds(KeepsItsMail):
    """... and goes by the ids alone."""

    def store(self, message: bytes, unique_id: str | None) -> None:
        self.stored.append(message)
        self.seen.add(str(unique_id))


class NeedsUidl(Fetcher):
    """It sends UIDL without asking whether the server has it."""

    def can(self, capability: str) -> bool:
        return True


class NeedsCapa(Fetcher):
    """It cannot do without CAPA."""

    def can(self, capability: str) -> bool:
        return capability in self.ask_list("CAPA")
