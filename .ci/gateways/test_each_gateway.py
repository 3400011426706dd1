"""What each gateway promises, whatever its backend does: nothing is lost, and nothing else is deleted."""

from __future__ import annotations

import json
import os
import poplib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from backends import Backend
from conftest import Gateway, command, need, started
from door import PATIENCE, Door
from wire_suite import ALL, HARD, failures

from tests.conftest import Client, wait_until
from tests.test_check import CHECK

SMALL = [b"Subject: %d\r\n\r\nThis is message %d.\r\n" % (number, number) for number in range(1, 6)]
LARGE = b"Subject: large\r\n\r\n" + b"".join(b"%09d is a line of a large message\r\n" % n for n in range(80_000))


def fetch(client: poplib.POP3, number: int) -> bytes:
    """Return a message, without its stuffed dots."""
    return b"".join(line + b"\r\n" for line in client.retr(number)[1])


def fetch_all(client: poplib.POP3) -> list[bytes]:
    return [fetch(client, number) for number in range(1, client.stat()[0] + 1)]


def delete(client: poplib.POP3, *numbers: int) -> None:
    for number in numbers:
        client.dele(number)


def curl(gateway: Gateway, number: int) -> bytes:
    """Return a message as curl writes it."""
    need(shutil.which("curl"), "curl")
    command = ["curl", "-sS", "-u", "alice:secret", f"pop3://127.0.0.1:{gateway.port}/{number}"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def connected(gateway: Gateway) -> Client:
    """Connect a client that sees each octet."""
    client = Client(socket.create_connection(("127.0.0.1", gateway.port)))
    client.sock.settimeout(3 * PATIENCE)
    assert client.line().startswith(b"+OK")
    return client


# Mail.


def test_poplib(backend: Backend, gateway: Gateway) -> None:
    """poplib fetches each message whole, in its order, and deletes what it says, for good."""
    backend.deliver(*SMALL, LARGE)
    with gateway.client() as client:
        assert fetch_all(client) == [*SMALL, LARGE]
        ids = client.uidl()[1]
        delete(client, 2, 4)
        client.quit()
    assert backend.mail() == [SMALL[0], SMALL[2], SMALL[4], LARGE]
    with gateway.client() as client:
        assert [line.split()[1] for line in client.uidl()[1]] == [ids[n].split()[1] for n in (0, 2, 4, 5)]
        client.quit()


def test_curl(backend: Backend, gateway: Gateway) -> None:
    """curl fetches each message, octet by octet."""
    messages = [HARD["dots"], HARD["eight-bit"], LARGE]
    backend.deliver(*messages)
    assert [curl(gateway, number) for number in (1, 2, 3)] == messages


def test_an_empty_maildrop(gateway: Gateway) -> None:
    """There may be no mail."""
    with gateway.client() as client:
        assert client.stat() == (0, 0)
        assert client.uidl()[1] == []
        client.quit()


# Signing in.


def test_a_wrong_password(backend: Backend, door: Door, gateway: Gateway) -> None:
    """It is refused with the code AUTH, and is shown nowhere.  The client may try again."""
    client = poplib.POP3("127.0.0.1", gateway.port, timeout=PATIENCE)
    for name in ("alice", "bob"):
        client.user(name)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\] wrong name or password"):
            client.pass_("hunter2")
    client.user("alice")
    client.pass_("secret")
    client.quit()
    assert "hunter2" not in gateway.log()


def test_a_locked_maildrop(backend: Backend, door: Door, gateway: Gateway) -> None:
    """A second session is refused with IN-USE, and may try again.  No connection to the backend is left over."""
    backend.deliver(*SMALL)
    second = poplib.POP3("127.0.0.1", gateway.port, timeout=PATIENCE)
    with gateway.client() as first:
        for _ in range(3):
            second.user("alice")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[IN-USE\]"):
                second.pass_("secret")
        wait_until(lambda: door.inside <= 2)
        first.quit()
    second.user("alice")
    second.pass_("secret")
    assert second.stat()[0] == len(SMALL)
    second.quit()


def test_a_backend_that_is_down_at_sign_in(backend: Backend, door: Door, gateway: Gateway) -> None:
    """The client reads SYS/TEMP, not that its password is wrong, and comes back."""
    backend.deliver(*SMALL)
    door.shut()
    with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), gateway.client():
        pass
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()
    assert "secret" not in gateway.log()


# A backend that is stopped and started.


def test_a_backend_that_is_restarted_between_commands(backend: Backend, gateway: Gateway) -> None:
    """The session goes on, and deletes what the client has marked, and nothing else."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        assert fetch(client, 1) == SMALL[0]
        delete(client, 1, 3)
        backend.stop()
        backend.start()
        assert fetch(client, 2) == SMALL[1]
        backend.stop()
        backend.start()
        client.quit()
    assert backend.mail() == [SMALL[1], SMALL[3], SMALL[4]]


def test_a_backend_that_is_down(backend: Backend, door: Door, gateway: Gateway) -> None:
    """RETR is refused, and the session goes on when the backend is back."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        door.shut()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.retr(1)
        door.open()
        assert fetch_all(client) == SMALL
        client.quit()


def test_a_backend_that_is_down_at_quit(backend: Backend, door: Door, gateway: Gateway) -> None:
    """QUIT is refused, and nothing is deleted: the next session has all."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL == backend.mail()
        client.quit()


def test_a_backend_that_is_restarted_within_a_message(backend: Backend, door: Door, gateway: Gateway) -> None:
    """The message goes on where it was cut off, or from its beginning: the client gets all of it."""
    backend.deliver(LARGE)
    with gateway.client() as client:
        for octets in (100, 50_000, 1_500_000):  # the first cuts an HTTP header
            door.was_shut.clear()
            door.shut_after(octets)
            assert fetch(client, 1) == LARGE
            assert door.was_shut.is_set()
        client.quit()


@pytest.mark.parametrize("octets", [200, 1_000, 100_000, 1_500_000])
def test_a_backend_that_dies_within_a_message(backend: Backend, door: Door, gateway: Gateway, octets: int) -> None:
    """The client never takes a part for the whole: it reads -ERR, or loses the connection before the final dot."""
    backend.deliver(LARGE)
    client = connected(gateway)
    client.sign_in()
    door.shut_after(octets, stays_shut=True)
    client.send(b"RETR 1\r\n")
    answer = b""
    try:
        if (answer := client.line()).startswith(b"+OK"):
            answer += client.rest_until_reset()
    finally:
        client.close()
    assert answer.startswith(b"-ERR") or not answer.endswith(b"\r\n.\r\n")
    assert door.was_shut.is_set()
    assert backend.mail() == [LARGE]


# The commit.


def test_a_backend_that_dies_at_the_commit(backend: Backend, door: Door, gateway: Gateway) -> None:
    """QUIT is refused, and nothing is deleted."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(backend.commit, stays_shut=True)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert backend.mail() == SMALL
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()


def test_a_commit_whose_answer_is_lost(backend: Backend, door: Door, gateway: Gateway) -> None:
    """It is made again, and that deletes nothing else."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(backend.commit, answer_is_lost=True)
        client.quit()
    assert door.was_shut.is_set()
    assert backend.mail() == [SMALL[1], SMALL[3], SMALL[4]]


def test_a_commit_that_nobody_knows_of(backend: Backend, door: Door, gateway: Gateway) -> None:
    """If the backend dies after it, the client reads -ERR, and finds all of the messages deleted, or none."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(backend.commit, answer_is_lost=True, stays_shut=True)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) in (SMALL, [SMALL[1], SMALL[3], SMALL[4]])
        client.quit()


@pytest.mark.parametrize("answer_is_lost", [False, True])
def test_a_gateway_that_is_killed_at_the_commit(
    backend: Backend, door: Door, gateway: Gateway, tmp_path: Path, answer_is_lost: bool
) -> None:
    """It has told the client nothing, and the next one finds all of the messages deleted, or none."""
    backend.deliver(*SMALL)
    door.at_shut = gateway.kill
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(backend.commit, answer_is_lost=answer_is_lost)
        with pytest.raises((poplib.error_proto, OSError), match="EOF|reset"):
            client.quit()
    with started(command(backend, backend.port), tmp_path / "next") as gateway, gateway.client() as client:
        assert fetch_all(client) == ([SMALL[1], SMALL[3], SMALL[4]] if answer_is_lost else SMALL)
        client.quit()


# A backend that says nothing.


def test_a_backend_that_says_nothing(backend: Backend, door: Door, impatient_gateway: Gateway) -> None:
    """Each command has an end, after less than six time limits.  The session goes on.  A QUIT that was refused has
    deleted all of the messages or none, even if the backend hears of it later."""
    backend.deliver(*SMALL)
    begun = time.monotonic()
    with impatient_gateway.client() as client:
        door.flowing.clear()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.retr(1)
        assert time.monotonic() - begun < 6 * 3
        door.flowing.set()
        assert fetch(client, 1) == SMALL[0]
        delete(client, 1, 3)
        door.flowing.clear()
        begun = time.monotonic()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
        assert time.monotonic() - begun < 6 * 3
    door.flowing.set()
    with impatient_gateway.client() as client:
        assert fetch_all(client) in (SMALL, [SMALL[1], SMALL[3], SMALL[4]])
        client.quit()


# The wire suite.


def test_the_wire_suite(backend: Backend, gateway: Gateway) -> None:
    """The gateway passes the wire suite, as far as its backend keeps octets and knows sizes."""
    backend.deliver(*ALL)
    with gateway.client() as client:
        assert client.stat()[0] == len(ALL)
        client.quit()
    assert failures(gateway.port, backend.lacks) == backend.fails


# The check for handlers.


def test_the_check_finds_nothing(backend: Backend) -> None:
    """The gateway's handler has no finding."""
    backend.deliver(*SMALL, LARGE)
    _, script, *arguments = command(backend, backend.port)
    options = json.dumps({"password": "secret", "delete": True})
    done = subprocess.run(
        [sys.executable, "-c", CHECK, options, script, *arguments],
        input=Path(script).read_text("utf-8"),
        env={**os.environ, "PYTHONPATH": str(Path(script).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert backend.mail() == []
