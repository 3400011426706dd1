"""The six promises, each shown on the wire."""

from __future__ import annotations

import io
import poplib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import popart
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    running,
    signed_in,
)
from tests.test_server import HOST, MESSAGE, Held
from tests.test_tls import TLSClient

if TYPE_CHECKING:
    import trustme

LONG = b"".join(b"%d. line\r\n.\r\n" % number for number in range(20_000))
ON_THE_WIRE = re.sub(rb"(?m)^\.", b"..", LONG) + b".\r\n"


class FailingReader(io.BytesIO):
    """A long message whose reader fails after some reads."""

    def __init__(self, reads: int) -> None:
        super().__init__(LONG)
        self.left = reads

    def read(self, n: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().read(n)


class FailingHandler(ClosingHandler):
    """Message 2 fails after some reads."""

    reads = 1

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return FailingReader(self.reads) if number == 2 else super().get_message_reader(number)


class TestPromise1AMessageThatLooksCompleteIsComplete:
    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_every_octet_arrives(
        self, tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        """RETR, and TOP of more lines than there are, give the whole message, with lines of dots in it."""
        context = server_context if tls else None
        server = QuickServer(HOST, lambda peer: MemoryHandler(Mail(LONG)), ssl_context=context)
        with running(server), signed_in(server, client_context if tls else None) as client:
            for command in (b"RETR 1", b"TOP 1 99999999"):
                assert client.ask(command).startswith(b"+OK")
                assert client.file.read(len(ON_THE_WIRE)) == ON_THE_WIRE
            assert client.ask(b"NOOP").startswith(b"+OK")

    @pytest.mark.parametrize("command", [b"RETR 2", b"TOP 2 99999999"])
    @pytest.mark.parametrize("reads", [1, 2, 3])
    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_a_broken_message_ends_the_connection(
        self, command: bytes, reads: int, tls: bool, server_context: ssl.SSLContext, authority: trustme.CA
    ) -> None:
        """A reader that fails after +OK: no final dot, a reset, over TLS no close_notify; no further command is run."""
        mail = Mail(MESSAGE, LONG)
        handler = FailingHandler(mail)
        handler.reads = reads
        server = QuickServer(HOST, lambda peer: handler, ssl_context=server_context if tls else None)
        commands = command + b"\r\nDELE 1\r\nQUIT\r\n"
        with running(server):
            if tls:
                with TLSClient(server, authority) as client:
                    client.send(commands)
                    received, notified = client.rest()
                    assert not notified
            else:
                with signed_in(server) as plain:
                    plain.send(commands)
                    received = plain.rest_until_reset()
        assert received.startswith(b"+OK")
        assert ON_THE_WIRE.startswith(received.partition(b"\r\n")[2])
        assert not received.endswith(b"\r\n.\r\n")
        assert [str(error) for error in mail.errors] == ["the disk is gone"]
        assert (mail.count("unlock_maildrop"), mail.count("delete_messages")) == (1, 0)

    def test_a_failure_before_the_first_octet_is_an_error(self) -> None:
        """A reader that fails at once is an -ERR, and the session goes on."""
        handler = FailingHandler(Mail(MESSAGE, LONG))
        handler.reads = 0
        with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
            assert client.ask(b"RETR 2").startswith(b"-ERR [SYS/TEMP] ")
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert client.lines() == MESSAGE + b".\r\n"


# How a session may end without QUIT: what a client does, or its server, when a message is marked as deleted.


def leave(client: Client, server: Server) -> None:
    client.sock.shutdown(socket.SHUT_WR)


def reset(client: Client, server: Server) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def quit_without_line_end(client: Client, server: Server) -> None:
    client.send(b"QUIT\r")
    client.sock.shutdown(socket.SHUT_WR)


def time_out(client: Client, server: Server) -> None:
    server.command_timeout = 0.2
    client.ask(b"NOOP")
    client.send(b"QUIT")


def close_the_server(client: Client, server: Server) -> None:
    server.server_close()


def misbehave(client: Client, server: Server) -> None:
    client.send(b"BAD\r\n" * 50 + b"QUIT\r\n")


def read_what_breaks(client: Client, server: Server) -> None:
    client.send(b"RETR 2\r\nQUIT\r\n")


def quit(client: Client, server: Server) -> None:
    client.send(b"QUIT\r\n")


WITHOUT_QUIT = [leave, reset, quit_without_line_end, time_out, close_the_server, misbehave, read_what_breaks]


def visit(mail: Mail, end: Callable[[Client, Server], None]) -> None:
    handler = FailingHandler(mail)
    with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        end(client, server)
        assert handler.closed.wait(PATIENCE)


class TestPromise2NothingIsDeletedWithoutQuit:
    @pytest.mark.parametrize("end", WITHOUT_QUIT)
    def test_no_other_end_deletes(self, end: Callable[[Client, Server], None]) -> None:
        """Messages marked by DELE survive every end of the session but QUIT with its line end."""
        mail = Mail(MESSAGE, LONG)
        visit(mail, end)
        assert mail.count("delete_messages") == 0

    @pytest.mark.parametrize("where", ["delete_messages", "unlock_maildrop"])
    def test_ok_comes_after_the_commit(self, where: str) -> None:
        """+OK to QUIT is sent after delete_messages and unlock_maildrop have returned, not before."""
        mail = Mail(MESSAGE, MESSAGE)
        handler = ClosingHandler(mail)
        held = Held(handler, where)
        with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
            client.ask(b"DELE 2")
            client.send(b"QUIT\r\n")
            assert held.entered.wait(PATIENCE)
            client.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.sock.settimeout(PATIENCE)
            held.go_on.set()
            assert client.sock.recv(3) == b"+OK"
        assert mail.calls[-3:] == [("delete_messages", [2]), ("unlock_maildrop",), ("close",)]

    @pytest.mark.parametrize("line", [b"QUIT", b"quit", b"QUIT "])
    def test_what_was_answered_before_is_sent_before(self, line: bytes) -> None:
        """The replies to what stands before QUIT in a pipeline are read while the deletion still runs."""
        handler = ClosingHandler(Mail(MESSAGE))
        held = Held(handler, "delete_messages")
        with running(QuickServer(HOST, lambda peer: handler)) as server, signed_in(server) as client:
            client.send(b"RETR 1\r\nDELE 1\r\n" + line + b"\r\n")
            assert held.entered.wait(PATIENCE)
            try:
                assert client.line() == b"+OK 34 octets\r\n" and client.lines() == MESSAGE + b".\r\n"
                assert client.line() == b"+OK message marked as deleted\r\n"
            finally:
                held.go_on.set()
            assert client.line() == b"+OK goodbye\r\n"
        assert handler.mail.count("delete_messages") == 1

    def test_a_message_that_cannot_be_sent_is_not_deleted(self) -> None:
        """Replies that are kept while pipelined commands wait go out before QUIT runs; if they cannot, it does not."""
        mail = Mail(MESSAGE)
        handler = ClosingHandler(mail)
        held = Held(handler, "get_message_reader")
        with running(QuickServer(HOST, lambda peer: handler)) as server:
            with signed_in(server) as client:
                client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
                assert held.entered.wait(PATIENCE)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            held.go_on.set()
            assert handler.closed.wait(PATIENCE)
        assert mail.count("delete_messages") == 0
        assert [type(error) for error in mail.errors] == [popart.ClientGoneError]

    @pytest.mark.parametrize("where", ["delete_messages", "unlock_maildrop"])
    def test_a_failed_commit_is_an_error(self, where: str) -> None:
        """The client reads -ERR when the deletion or the release of the lock has failed."""

        class Failing(MemoryHandler):
            def fail(self, *arguments: Any) -> None:
                raise OSError("the disk is full")

        setattr(Failing, where, Failing.fail)
        with running(QuickServer(HOST, lambda peer: Failing(Mail(MESSAGE)))) as server, signed_in(server) as client:
            client.ask(b"DELE 1")
            assert client.ask(b"QUIT").startswith(b"-ERR")
            assert client.rest() == b""


class TestPromise3EachLockIsReleasedOnce:
    @pytest.mark.parametrize("end", [*WITHOUT_QUIT, quit])
    def test_however_the_session_ends(self, end: Callable[[Client, Server], None]) -> None:
        """unlock_maildrop is called once, after the last use of the maildrop and before close."""
        mail = Mail(MESSAGE, LONG)
        visit(mail, end)
        assert mail.count("lock_maildrop") == mail.count("unlock_maildrop") == 1
        assert mail.calls[-2:] == [("unlock_maildrop",), ("close",)]

    def test_a_lock_that_was_not_taken_is_not_released(self) -> None:
        """A second session that finds the maildrop in use does not release the lock of the first."""
        mail = Mail(MESSAGE)
        with running(QuickServer(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as first:
            with connected(server) as second:
                second.send(b"USER alice\r\nPASS secret\r\nQUIT\r\n")
                assert b"\r\n-ERR [IN-USE] " in second.rest()
            assert mail.locked
            assert first.ask(b"QUIT").startswith(b"+OK")
        assert mail.count("unlock_maildrop") == 1


class TestPromise4NoClientStopsAnother:
    """Silence, slowness, volume, junk and TLS: see test_hostile.py and test_tls.py."""

    @pytest.mark.parametrize(
        "where",
        "authenticate_pass lock_maildrop get_message_count get_message_size get_message_id get_message_reader "
        "delete_messages unlock_maildrop close".split(),
    )
    def test_a_slow_backend_call_blocks_its_own_session_only(self, where: str) -> None:
        """While one session's handler hangs in a method, another session goes from its greeting to QUIT."""
        handlers = [MemoryHandler(Mail(MESSAGE)), ClosingHandler(Mail(MESSAGE))]
        held = Held(handlers[-1], where)
        with running(QuickServer(HOST, lambda peer: handlers.pop())) as server, connected(server) as stuck:
            try:
                stuck.send(b"USER alice\r\nPASS secret\r\nUIDL\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
                assert held.entered.wait(PATIENCE)
                client = poplib.POP3(*server.server_address[:2], timeout=PATIENCE)
                client.user("alice")
                client.pass_("secret")
                assert b"\r\n".join(client.retr(1)[1]) + b"\r\n" == MESSAGE
                client.dele(1)
                client.quit()
            finally:
                held.go_on.set()
            assert stuck.rest().endswith(b"+OK goodbye\r\n")

    def test_a_slow_factory_blocks_its_own_connection_only(self) -> None:
        """While on_new_connection hangs for one client, others are served."""
        entered, go_on = threading.Event(), threading.Event()

        def factory(peer: Any) -> popart.Handler:
            if not entered.is_set():
                entered.set()
                assert go_on.wait(PATIENCE)
            return MemoryHandler(Mail(MESSAGE))

        with running(QuickServer(HOST, factory)) as server, connected(server) as stuck:
            assert entered.wait(PATIENCE)
            with signed_in(server) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
            go_on.set()
            assert stuck.line().startswith(b"+OK")


class TestPromise5NoOctetBecomesACommandOrAReply:
    @pytest.mark.parametrize(
        "octets",
        [
            b"NOOP\rDELE 1\r\n",
            b"NOOP\0\r\n",
            b"NOOP\xe2\x80\xa8DELE 1\r\n",
            b"x" * 100_000 + b"DELE 1\r\n",
            b"RETR 1 DELE 1\r\n",
            b"\x0bDELE 1\r\n",
            b"\x85DELE 1\r\n",
            b"\r\r\n",
            b"\r\n",
        ],
        ids=lambda octets: repr(octets[-20:]),
    )
    def test_one_line_is_one_command(self, octets: bytes) -> None:
        """Whatever stands in a line: one answer, and nothing of it runs as another command."""
        with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server:
            with signed_in(server) as client:
                client.send(octets + b"STAT\r\n")
                assert client.line().startswith(b"-ERR ")
                assert client.line() == b"+OK 1 34\r\n"

    @pytest.mark.parametrize("where", ["authenticate_pass", "lock_maildrop", "get_message_reader", "delete_messages"])
    def test_an_applications_text_is_one_line(self, where: str) -> None:
        """A ReportableError's text never makes a second line, nor one of more than 512 octets."""

        class Refusing(MemoryHandler):
            def refuse(self, *arguments: Any) -> Any:
                raise popart.ReportableError("x\r\n.\r\n+OK y\n-ERR z\0\r\u2028\x85w" + "v" * 1000, code="SYS/PERM")

        setattr(Refusing, where, Refusing.refuse)
        with running(QuickServer(HOST, lambda peer: Refusing(Mail(b"a\r\n")))) as server, connected(server) as client:
            client.send(b"USER alice\r\nPASS secret\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
            lines = client.rest().splitlines(keepends=True)
        assert len(lines) == (8 if where == "delete_messages" else 6)
        (refusal,) = [line for line in lines if line.startswith(b"-ERR [SYS/PERM]")]
        assert refusal.startswith(b"-ERR [SYS/PERM] x  .  +OK y -ERR z  ??wvvv")
        assert len(refusal) == 512

    def test_a_message_never_ends_early(self) -> None:
        """Lines of dots in a message, whatever their line ends, are not the end of it (RFC 1939 section 3)."""
        evil = b".\r\n.\n..\r\n\r\n.\r\n+OK fake\n.\n-ERR fake\r\n."
        with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(evil)))) as server, signed_in(server) as client:
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert client.lines() == b"..\r\n..\r\n...\r\n\r\n..\r\n+OK fake\r\n..\r\n-ERR fake\r\n..\r\n.\r\n"
            assert client.ask(b"STAT").startswith(b"+OK 1 ")


class TestPromise6NothingIsPrintedAndNoSecretShown:
    """That nothing is printed is checked after every test, by conftest.py."""

    @pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, SystemExit, RuntimeError])
    @pytest.mark.parametrize("command", [b"USER alice\r\nPASS S3cr3t", b"APOP alice 5ec3e75ec3e75ec3e75ec3e75ec3e700"])
    def test_an_internal_error_stays_inside(self, command: bytes, kind: type[BaseException]) -> None:
        """An exception's text reaches the handler and nobody else."""
        mail = Mail()

        class Failing(MemoryHandler):
            def authenticate_pass(self, username: str, password: str) -> None:
                raise kind(f"internal detail: {username} {password}")

            authenticate_apop = authenticate_pass

        with running(QuickServer(HOST, lambda peer: Failing(mail), apop=True)) as server, connected(server) as client:
            client.line()
            client.send(command + b"\r\n")
            *_, answer = client.rest().splitlines()
            assert answer == b"-ERR [SYS/TEMP] internal error, please try again later"
        assert [type(error) for error in mail.errors] == [kind]

    @pytest.mark.parametrize(
        "line",
        [
            b"PASS S3cr3t",
            b"USER alice\r\nPASS S3cr3t",
            b"USER alice\r\nPASS S3cr3t\xff",
            b"USER alice\r\nPASS S3cr3t\0",
            b"USER alice\r\nPASS " + b"S3cr3t" * 300,
            b"USER alice\r\nPASS " + b"S3cr3t" * 3000,
            b"PASSS3cr3t",
            b"APOP alice S3cr3t",
            b"S3cr3t",
        ],
        ids=lambda line: repr(line[:30]),
    )
    def test_what_a_client_sent_is_never_echoed(self, line: bytes) -> None:
        """No password or digest stands in a reply, in an exception that popart makes, or behind one."""
        mail = Mail()
        server = QuickServer(HOST, lambda peer: MemoryHandler(mail), apop=True)
        server.max_bad_commands = server.max_failed_logins = 1
        with running(server), connected(server) as client:
            client.send(line + b"\r\n")
            assert b"S3cr3t" not in client.rest()
        (error,) = mail.errors
        assert isinstance(error, popart.SessionError)
        assert "S3cr3t" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"

    def test_hooks_that_raise_are_silent(self) -> None:
        """What handle_session_error and handle_error raise ends nothing and is printed nowhere."""

        class Raising(QuickServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                raise RuntimeError("no log")

        class Failing(MemoryHandler):
            def get_message_id(self, number: int) -> str:
                raise OSError("no id")

            def handle_session_error(self, error: BaseException) -> None:
                raise RuntimeError("no log")

        handlers: list[popart.Handler] = [Failing(Mail(MESSAGE))]
        with running(Raising(HOST, lambda peer: handlers.pop())) as server:
            with signed_in(server) as client:
                assert client.ask(b"UIDL").startswith(b"-ERR [SYS/TEMP]")
                assert client.ask(b"QUIT").startswith(b"+OK")
            for _ in range(2):
                with connected(server) as client:
                    assert client.line().startswith(b"-ERR [SYS/TEMP]")
