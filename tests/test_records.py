"""What a MailServer keeps between and within tests: its start and stop, its port, reset, sessions, unique-ids."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import poplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import freezegun
import pytest

import popart
from popart.testing import Maildrop, MailServer, SessionRecord

from .conftest import PATIENCE, wait_until
from .test_testing import MESSAGE, connected, fetch_and_delete, pop, signed_in

ROOT = Path(popart.__file__).parent.parent


# Beginning and end.


def test_start_and_stop() -> None:
    """They do what the block does; a second stop does nothing, and a second start while it runs is an error."""
    server = MailServer()
    server.stop()
    assert server.start() is server
    server.deliver("alice", MESSAGE)
    assert fetch_and_delete(server)
    with pytest.raises(RuntimeError, match="running already"):
        server.start()
    with pytest.raises(RuntimeError, match="running already"), server:
        pass
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), PATIENCE)


@pytest.mark.parametrize("tls", [False, True])
def test_the_same_port_again(tls: bool) -> None:
    """Who has been told the port finds the server there when it comes back."""
    server = MailServer(tls=tls)
    ports = set()
    for _ in range(3):
        with server, signed_in(server):
            ports.add(server.port)
    assert len(ports) == 1


def test_a_start_that_fails() -> None:
    """It leaves nothing, and may be tried again."""
    with MailServer() as other:
        server = MailServer(port=other.port)
        with pytest.raises(OSError):
            server.start()
    with server, signed_in(server):
        pass


def test_unittest_example(tmp_path: Path) -> None:
    """The example for unittest in howto-testing passes by itself."""
    for name in ("fetcher.py", "test_fetcher_unittest.py"):
        (tmp_path / name).write_text((ROOT / "docs" / "examples" / name).read_text("utf-8"), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "unittest", "test_fetcher_unittest"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr


@pytest.mark.parametrize("users", [{"alice": ""}, {"": "secret"}, {"alice": "secret", "bob": ""}])
def test_users_who_could_never_sign_in(users: dict[str, str]) -> None:
    """An empty name or password is refused: popart takes none, so that a test would fail for no visible reason."""
    with pytest.raises(ValueError, match="could never sign in: names and passwords must not be empty"):
        MailServer(users)


@pytest.mark.parametrize(
    ("users", "why"),
    [
        ({"alice": 5}, "be str"),
        ({"alice": b"secret"}, "be str"),
        ({"alice": "sec\nret"}, "have no NUL, CR or LF"),
        ({"ali\0ce": "secret"}, "have no NUL, CR or LF"),
        ({"alice": "\udc80"}, "be text that UTF-8 can encode"),
    ],
)
def test_users_whom_no_client_can_name(users: Any, why: str) -> None:
    """What cannot stand in a command is refused, as name, password or token."""
    with pytest.raises(ValueError, match=f"could never sign in: names and passwords must {why}"):
        MailServer(users)
    (secret,) = users.values()
    if secret != "secret":
        with pytest.raises(ValueError, match=f"could never sign in: it must {why}"):
            MailServer(tokens={"alice": secret})


@pytest.mark.parametrize("tokens", [{"bob": "ya29.x"}, {"alice": ""}])
def test_tokens_of_nobody(tokens: dict[str, str]) -> None:
    """A token that could never sign in is refused: it is of somebody who is no user, or empty."""
    with pytest.raises(ValueError, match="could never sign in: it must be a user's, and not empty"):
        MailServer(tokens=tokens)


# TLS, by whatever address the host's name means.


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tls_on_both_addresses(address: str) -> None:
    """`localhost` is IPv6 first on some machines: the server is there too, and its certificate is for each name."""
    if address == "::1" and not has_ipv6():
        pytest.skip("no IPv6")
    with MailServer(tls=True) as server:
        server.deliver("alice", MESSAGE)
        context = ssl.create_default_context(cafile=server.ca_file)
        for name in ("localhost", address):
            with (
                socket.create_connection((address, server.port), PATIENCE) as raw,
                context.wrap_socket(raw, server_hostname=name) as sock,
            ):
                assert sock.recv(100).startswith(b"+OK")
        server.wait_for_session_end(sessions=2)
        assert len(server.sessions) == 2


def test_tls_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ::1 cannot be bound, nobody can reach it either, and the server does without."""
    bind = socket.socket.bind

    class Sockets(socket.socket):
        def bind(self, address: Any) -> None:
            if address[0] == "::1":
                raise OSError(errno.EADDRNOTAVAIL, "no IPv6")
            bind(self, address)

    monkeypatch.setattr(socket, "socket", Sockets)
    with MailServer(tls=True) as server, signed_in(server):
        pass


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_tls_where_the_port_is_taken_on_one_address() -> None:
    """A port that was asked for must be free on both: otherwise clients would find another's server."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        with pytest.raises(OSError, match="in use"), MailServer(tls=True, port=other.getsockname()[1]):
            pass


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_tls_tries_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any free port is one that is free on both addresses."""
    bind = socket.socket.bind
    refused: list[Any] = []

    class Sockets(socket.socket):
        def bind(self, address: Any) -> None:
            if address[0] == "::1" and len(refused) < 3:
                refused.append(address)
                raise OSError(errno.EADDRINUSE, "in use")
            bind(self, address)

    monkeypatch.setattr(socket, "socket", Sockets)
    with MailServer(tls=True) as server, signed_in(server):
        assert len(refused) == 3


# Mail with ids of one's own.


def test_deliver_with_an_id() -> None:
    """The message has the id that was given, and that is free again after its deletion."""
    with MailServer() as server:
        assert server.deliver("alice", MESSAGE, unique_id="id-1") == "id-1"
        with signed_in(server) as client:
            assert client.ask(b"UIDL 1") == b"+OK 1 id-1\r\n"
        with pytest.raises(ValueError, match="another message has the unique-id 'id-1'"):
            server.deliver("alice", MESSAGE, unique_id="id-1")
        server.wait_for_session_end()
        assert len(fetch_and_delete(server)) == 1
        server.deliver("alice", MESSAGE, unique_id="id-1")


@pytest.mark.parametrize("unique_id", ["", "a b", "x" * 71, "\u00e9", "a\n", 5, b"x"])
def test_malformed_ids(unique_id: Any) -> None:
    """An id that no session could show is refused, and nothing is delivered: `spoil_ids` is for such."""
    maildrop = Maildrop()
    with pytest.raises(ValueError, match="a unique-id is a str of 1 to 70 characters from '!' to '~', not "):
        maildrop.deliver(MESSAGE, unique_id=unique_id)
    assert maildrop.snapshot() == []


# Records.


def test_sessions() -> None:
    """Each session has its own commands, in the order of their beginning, and says whether it is open."""
    with MailServer({"alice": "secret", "bob": "secret"}) as server:
        with pop(server) as alice, pop(server, "bob") as bob:
            alice.stat()
            bob.noop()
            alice.quit()
            wait_until(lambda: not server.sessions[0].is_open)
            assert [session.is_open for session in server.sessions] == [False, True]
        server.wait_for_session_end(sessions=2)
        first, second = server.sessions
        assert isinstance(first, SessionRecord)
        assert (first.number, first.username, second.number, second.username) == (1, "alice", 2, "bob")
        sign_in = [("", "USER", "alice"), ("alice", "PASS", "***")]
        assert first.commands == [*sign_in, ("alice", "STAT"), ("alice", "QUIT")]
        assert [words[1] for words in second.commands] == ["USER", "PASS", "NOOP"]
        assert len(server.commands) == 7
        assert not second.is_open


def test_reset() -> None:
    """Mail, records and faults are gone; users and tokens stay, and new mail has new ids."""
    with MailServer(tokens={"alice": "x"}) as server:
        server.users["bob"] = "secret"
        before = server.deliver("alice", MESSAGE)
        server.fail("NOOP")
        with pop(server):
            pass
        server.wait_for_session_end()
        server.reset()
        assert (server.messages("alice"), server.commands, server.errors, server.sessions) == ([], [], [], [])
        assert (server.pending_faults, server.transcript()) == ([], "")
        assert (server.users, server.tokens) == ({"alice": "secret", "bob": "secret"}, {"alice": "x"})
        assert server.deliver("alice", MESSAGE) != before
        with pytest.raises(TimeoutError):
            server.wait_for_session_end(0.01)
        with pop(server) as client:
            client.noop()
            client.quit()
        server.wait_for_session_end()
        assert server.sessions[0].number == 1
        assert server.errors == []


def test_a_session_from_before_a_reset() -> None:
    """A client of the test before that is still there disturbs nobody: no record, no lock, no fault, no waiting."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        with signed_in(server) as old:
            old.ask(b"DELE 1")
            server.reset()
            kept = server.deliver("alice", MESSAGE)
            server.fail("NOOP", times=1)
            server.fail_commit()
            assert old.ask(b"NOOP").startswith(b"+OK")
            with signed_in(server) as new:
                assert new.ask(b"NOOP").startswith(b"-ERR")
                assert old.ask(b"QUIT").startswith(b"+OK")
                assert new.ask(b"UIDL 1") == f"+OK 1 {kept}\r\n".encode()
                new.ask(b"QUIT")
            server.wait_for_session_end()
        assert [words[1] for words in server.commands] == ["USER", "PASS", "NOOP", "UIDL", "QUIT"]
        assert server.errors == []
        assert server.messages("alice") == [MESSAGE]
        assert server.pending_faults == ["fail_commit(code='SYS/TEMP')"]


def test_a_sign_in_from_before_a_reset() -> None:
    """A client that connected before and signs in after it finds no mail, and locks nobody out."""
    with MailServer() as server, connected(server) as old:
        server.reset()
        server.deliver("alice", MESSAGE)
        old.sign_in()
        assert old.ask(b"STAT") == b"+OK 0 0\r\n"
        with signed_in(server) as new:
            assert new.ask(b"STAT") == b"+OK 1 27\r\n"
        assert len(server.sessions) == 1


def test_an_error_from_before_a_reset() -> None:
    """What goes wrong then is no error of the next test."""
    with MailServer() as server:
        with signed_in(server):
            old = server.sessions[0]
            server.reset()
        wait_until(lambda: not old.is_open)
        assert server.errors == []
        assert "ClientGoneError" in old.transcript()


def test_a_reset_while_a_command_is_recorded() -> None:
    """Whenever a reset comes, even between a command and its record, nothing of an old session is in the new ones."""

    class Resetting(MailServer):
        def record_command(self, command: tuple[str, ...]) -> None:
            if command[1:] == ("NOOP",) and self.commands:
                self.reset()
                self.fail("NOOP")
                self.maildrop("alice").lock()
            super().record_command(command)

    with Resetting() as server:
        with connected(server) as old:
            old.sign_in()
            assert old.ask(b"NOOP").startswith(b"+OK")
            assert server.commands == [] and server.sessions == []
            old.ask(b"QUIT")
        assert server.pending_faults == ["fail('NOOP')"]
        server.maildrop("alice").unlock()
        server.record_command(("", "by hand"))
        assert server.commands == [("", "by hand")]


def test_wait_since_the_last_call() -> None:
    """With since_last_call only the sessions that have ended since then count; without, all since the beginning."""
    with MailServer() as server:
        for _ in range(3):
            with pop(server):
                pass
            server.wait_for_session_end(since_last_call=True)
        with pytest.raises(TimeoutError, match="0 sessions open, 3 ended"):
            server.wait_for_session_end(0.01, since_last_call=True)
        server.wait_for_session_end(0.01, sessions=3)
        with pop(server), pytest.raises(TimeoutError):
            server.wait_for_session_end(0.01, since_last_call=True)
        server.wait_for_session_end(since_last_call=True)
        with connected(server), connected(server):
            pass
        server.wait_for_session_end(sessions=2, since_last_call=True)
        server.reset()
        with pytest.raises(TimeoutError):
            server.wait_for_session_end(0.01, since_last_call=True)


def test_reset_among_threads() -> None:
    """Sessions that begin and end while it is reset leave the counts right."""
    with MailServer() as server:
        over = threading.Event()

        def visit() -> None:
            while not over.is_set():
                with connected(server) as client:
                    client.ask(b"QUIT")

        threads = [threading.Thread(target=visit) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            server.reset()
        over.set()
        for thread in threads:
            thread.join()
        server.reset()
        with pop(server) as client:
            client.quit()
        server.wait_for_session_end()


# Frozen time.


def test_frozen_time() -> None:
    """howto-testing: with ``ignore=["popart"]`` the server has real time, whatever a test has made of it."""
    page = (ROOT / "docs" / "howto-testing.rst").read_text("utf-8")
    assert 'freeze_time("2030-01-01", ignore=["popart"])' in page
    with freezegun.freeze_time("2030-01-01", ignore=["popart"]) as frozen:
        with MailServer(timeout=2) as server:
            server.delay("NOOP", 0.1)
            with signed_in(server) as client:
                frozen.tick(3600)
                assert client.ask(b"NOOP").startswith(b"+OK")
                frozen.tick(3600)
                assert client.ask(b"STAT").startswith(b"+OK")
                assert client.rest() == b""  # by the timeout
            server.wait_for_session_end()
        assert time.strftime("%Y-%m-%d %H", time.gmtime()) == "2030-01-01 02"
    assert [type(error) for error in server.errors] == [popart.ClientTimeoutError]


def test_a_listener_of_poplib_at_home() -> None:
    """poplib finds the host by its name, plain and over TLS."""
    for tls in (False, True):
        with MailServer(tls=tls) as server:
            if tls:
                context = ssl.create_default_context(cafile=server.ca_file)
                client: poplib.POP3 = poplib.POP3_SSL(server.host, server.port, timeout=PATIENCE, context=context)
            else:
                client = poplib.POP3(server.host, server.port, timeout=PATIENCE)
            client.quit()
            client.close()


def test_a_reset_is_for_sessions_that_are_open_too() -> None:
    """One that connected before and signs in after it finds none of the old mail, and meets none of the old faults."""
    with MailServer() as server, connected(server) as old:
        server.deliver("alice", MESSAGE)
        server.fail("NOOP")
        server.reset()
        old.sign_in()
        assert old.ask(b"STAT") == b"+OK 0 0\r\n"
        assert old.ask(b"NOOP").startswith(b"+OK")


def test_serial_numbers() -> None:
    """They count the sessions of a server from 1, whatever is reset between them."""
    with MailServer() as server:
        for number in (1, 2):
            with connected(server):
                (session,) = server.sessions
            assert (session.number, session.serial_number) == (1, number)
            server.reset()


def test_how_long_to_wait() -> None:
    """Without a *timeout* it is ten seconds."""
    assert inspect.signature(MailServer.wait_for_session_end).parameters["timeout"].default == 10
