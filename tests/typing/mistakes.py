"""A user's mistakes: the type checkers must find each, as they report an ignored line in which they find nothing."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Generator

import popart
from popart.testing import MailServer
from tests.typing.user_code import ADDRESS, Derived, Structural, make

# Handlers.


class Unfinished(popart.Handler):
    def unlock_maildrop(self) -> None: ...


class UnfinishedUnsaid:
    def unlock_maildrop(self) -> None: ...


class WrongArguments(Derived):
    def authenticate_pass(self, username: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class WrongResult(Derived):
    def authenticate_pass(self, username: str, password: str) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


class Coroutine(Derived):
    async def lock_maildrop(self) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class ReadsText(Derived):
    def get_message_reader(self, number: int) -> io.StringIO:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return io.StringIO()


class WrongListing(Derived, popart.SupportsListing):
    def list_messages(self) -> list[tuple[str, int]]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return []


class WrongListingUnsaid:
    def list_messages(self) -> list[tuple[str, int]]:
        return []


class YieldsText(Derived, popart.SupportsMechanisms):
    def get_mechanisms(self) -> dict[str, Callable[[], Generator[str, bytes, str]]]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return {}


class NoName(Derived, popart.SupportsMechanisms):
    def get_mechanisms(self) -> dict[str, Callable[[], Generator[bytes, bytes, str]]]:
        return {"X-ASK": self.ask}  # type: ignore[dict-item]  # pyright: ignore[reportReturnType]

    def ask(self) -> Generator[bytes, bytes, None]:
        yield b"who?"


Unfinished()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
listing: popart.SupportsListing = WrongListingUnsaid()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
reader: popart.MessageReader = io.StringIO()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
reader = open("message.eml")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
popart.wire_size(io.StringIO())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.wire_size("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.wire_form("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.ReportableError("refused", "AUTH")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
popart.ScramCredentials(salt="x", iterations=4096, stored_key=b"", server_key=b"")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Servers.


class WrongLimit(popart.Server):
    max_connections = "many"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


popart.Server(ADDRESS, make, tiemout=700)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
popart.Server(ADDRESS, make, greeting=b"here")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.Server(ADDRESS, make, timeout="700")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.Server(ADDRESS, make, max_connections=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
popart.Server(ADDRESS, UnfinishedUnsaid)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.Server(ADDRESS, lambda peer: UnfinishedUnsaid())  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
popart.Server(ADDRESS, Structural())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
popart.Server("127.0.0.1", make)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def from_sockets(listener: socket.socket) -> None:
    popart.Server.from_socket(listener, make, tiemout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    popart.Server.from_socket(listener, make, timeout="700")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    popart.Server.from_socket(listener, lambda peer: UnfinishedUnsaid())  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]


# The test kit.


class WrongRecord(MailServer):
    def record_command(self, command: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


MailServer(max_failed_login=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
MailServer(max_failed_logins="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer(tiemout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
MailServer(greeting=b"here")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer(apop="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer(users=["alice"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer().drop("RETR", how="rest")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer().fail("RETR", time=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
MailServer().deliver("alice", io.BytesIO())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer().spoil_ids("repeated")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
MailServer().truncate("RETR")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
MailServer().refuse_connection(username="alice")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
