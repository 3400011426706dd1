"""The faults of popart.testing, as a client sees them; those of 0.1.0 are in test_testing.py."""

from __future__ import annotations

import io
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import popart
from popart import system
from popart.testing import MailServer, packets
from popart.testing.handler import StoredMailHandler

from .conftest import Client, wait_until
from .test_testing import connected, dial, pop, signed_in

MESSAGE = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
ON_THE_WIRE = b"Subject: x\r\n\r\nhello\r\n..dot\r\n"
STATUS = b"+OK 27 octets\r\n"
ANSWER = STATUS + ON_THE_WIRE + b".\r\n"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the server hands to the system, piece by piece: a client may find several pieces in one read."""
    pieces: list[bytes] = []
    send = system.send_at_once

    def send_at_once(sock: socket.socket, octets: bytes) -> int:
        pieces.append(bytes(octets))
        return send(sock, octets)

    monkeypatch.setattr(system, "send_at_once", send_at_once)
    return pieces


# Answers.


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("tls", [False, True])
def test_hang_up(how: Any, tls: bool) -> None:
    """The whole answer arrives, with its final dot, then the connection breaks, and nothing is deleted."""
    with MailServer(tls=tls) as server:
        server.deliver("alice", MESSAGE)
        server.hang_up("RETR", how=how)
        with signed_in(server) as client:
            client.send(b"DELE 1\r\nRSET\r\nRETR 1\r\nSTAT\r\n")
            client.line(), client.line()
            assert client.file.read(len(ANSWER)) == ANSWER
            if how == "end":
                assert client.rest() == b""
            else:
                with pytest.raises(ConnectionResetError):
                    socket.socket.recv(client.sock, 1)
        server.wait_for_session_end()
        assert server.messages("alice") == [MESSAGE]


def test_hang_up_after_one_line() -> None:
    """It works for an answer of one line too: the client has it, and may believe that its session goes on."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.hang_up("DELE")
        with signed_in(server) as client:
            client.send(b"DELE 1\r\n")
            assert client.rest() == b"+OK message marked as deleted\r\n"
        server.wait_for_session_end()
        assert server.messages("alice") == [MESSAGE]


@pytest.mark.parametrize(
    ("after", "body"),
    [
        (0, b""),
        (1, b"S\r\n"),
        (11, b"Subject: x\r\n"),
        (12, b"Subject: x\r\n"),
        (21, b"Subject: x\r\n\r\nhello\r\n"),
        (22, b"Subject: x\r\n\r\nhello\r\n"),
        (23, b"Subject: x\r\n\r\nhello\r\n..\r\n"),
        (10_000, ON_THE_WIRE),
    ],
)
def test_truncate(after: int, body: bytes) -> None:
    """A message ends early with its dot, wherever it was cut, and the session goes on."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.truncate("RETR", after)
        with signed_in(server) as client:
            assert client.ask(b"RETR 1") == STATUS
            assert client.lines() == body + b".\r\n"
            assert client.ask(b"RETR 1") == STATUS
            assert client.lines() == ON_THE_WIRE + b".\r\n"
    assert server.pending_faults == (["truncate('RETR', 10000)"] if body == ON_THE_WIRE else [])


def test_truncate_a_dot() -> None:
    """A body that was cut after half of a stuffed dot does not end with it: that would be a second final dot."""
    with MailServer() as server:
        server.deliver("alice", ".\n")
        server.truncate("RETR", 1)
        with signed_in(server) as client:
            client.ask(b"RETR 1")
            assert client.line() == b".\r\n"
            assert client.ask(b"NOOP").startswith(b"+OK")


def test_truncate_leaves_a_refusal_alone() -> None:
    """What has one line is as it is."""
    with MailServer() as server, signed_in(server) as client:
        server.truncate("RETR", 0)
        assert client.ask(b"RETR 9").startswith(b"-ERR no such message")


def test_stall(sent: list[bytes]) -> None:
    """The first line and so many octets come at once, the rest after the pause."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.stall("RETR", 0.3, after=20)
        with signed_in(server) as client:
            sent.clear()
            begin = time.monotonic()
            assert client.ask(b"RETR 1") + client.lines() == ANSWER
            assert time.monotonic() - begin >= 0.3
            assert sent == [ANSWER[: len(STATUS) + 20], ANSWER[len(STATUS) + 20 :]]


def test_stall_one_line() -> None:
    """An answer of one line stalls in its middle."""
    with MailServer() as server, signed_in(server) as client:
        server.stall("STAT", float("inf"))
        client.send(b"STAT\r\n")
        assert client.file.read(4) == b"+OK "
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.sock.recv(100)


def test_stall_for_ever_ends_with_the_server() -> None:
    """An infinite stall does not keep the server from closing."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.stall("RETR", float("inf"), after=1_000_000)
        with signed_in(server) as client:
            client.send(b"RETR 1\r\n")
            assert client.file.read(len(ANSWER) - 3) == ANSWER[:-3]
            begin = time.monotonic()
            server.stop()
    assert time.monotonic() - begin < 3


def test_drip(sent: list[bytes]) -> None:
    """The answer comes octet by octet, or in larger drops; it is complete, and takes its time."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.drip("RETR", 0.01)
        server.drip("RETR", 0.0, size=20)
        with signed_in(server) as client:
            sent.clear()
            begin = time.monotonic()
            assert client.ask(b"RETR 1") + client.lines() == ANSWER
            assert time.monotonic() - begin >= 0.01 * (len(ANSWER) - 1)
            assert sent == [ANSWER[number : number + 1] for number in range(len(ANSWER))]
            sent.clear()
            assert client.ask(b"RETR 1") + client.lines() == ANSWER
            assert sent == [ANSWER[number : number + 20] for number in range(0, len(ANSWER), 20)]


def test_drip_of_one_line(sent: list[bytes]) -> None:
    """What was answered before leaves first, and what is answered after it leaves apart."""
    with MailServer() as server, signed_in(server) as client:
        server.drip("STAT", 0.0, size=5)
        sent.clear()
        client.send(b"NOOP\r\nSTAT\r\nNOOP\r\n")
        assert client.line() + client.line() + client.line() == b"+OK nothing done\r\n+OK 0 0\r\n+OK nothing done\r\n"
        assert sent == [b"+OK nothing done\r\n", b"+OK 0", b" 0\r\n", b"+OK nothing done\r\n"]


@pytest.mark.parametrize(
    ("command", "packets"),
    [
        (b"RETR 1", [b"+", b"OK 27 octets\r", b"\n", ON_THE_WIRE, b".", b"\r\n"]),
        (b"STAT", [b"+", b"OK 2 27\r", b"\n"]),
        (b"RETR 2", [b"+", b"OK 0 octets\r", b"\n", b".", b"\r\n"]),
    ],
)
def test_split(command: bytes, packets: list[bytes], sent: list[bytes]) -> None:
    """The answer is cut within +OK, within the first CRLF, after it, and around the final dot; no packet is empty."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.deliver("alice", b"")
        server.split(command.decode(), 0.01)
        with signed_in(server) as client:
            sent.clear()
            begin = time.monotonic()
            client.send(command + b"\r\n")
            answer = b"".join(packets)
            assert client.file.read(len(answer)) == answer
            assert time.monotonic() - begin >= 0.01 * (len(packets) - 1)
            assert sent == packets


def test_split_over_tls(sent: list[bytes]) -> None:
    """Each packet is a record of its own."""
    with MailServer(tls=True) as server:
        server.split("STAT", 0.0)
        with signed_in(server) as client:
            sent.clear()
            assert client.ask(b"STAT") == b"+OK 0 0\r\n"
            assert len(sent) == 3


# The greeting.


def test_refuse_connection() -> None:
    """A client is greeted with -ERR, and the connection ends; the next one is welcome."""
    with MailServer() as server:
        server.refuse_connection()
        with dial(server) as sock:
            client = Client(sock)
            assert client.rest() == b"-ERR [SYS/TEMP] too many connections, please try again later\r\n"
            client.close()
        with signed_in(server):
            pass
        server.wait_for_session_end(sessions=2)
        server.refuse_connection("closed\nfor good", code=None)
        with dial(server) as sock:
            client = Client(sock)
            assert client.rest() == b"-ERR closed for good\r\n"
            client.close()
    assert server.pending_faults == []


def test_delay_greeting() -> None:
    """The greeting comes late, or never."""
    with MailServer() as server:
        server.delay_greeting(0.2)
        begin = time.monotonic()
        with connected(server):
            assert time.monotonic() - begin > 0.15
        server.delay_greeting()
        with dial(server) as sock:
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(100)


def test_a_silent_greeting_ends_with_the_login_timeout() -> None:
    """Then the session is over, and can be waited for."""
    with MailServer(login_timeout=0.1) as server:
        server.delay_greeting()
        with dial(server):
            wait_until(lambda: server.sessions != [])
        server.wait_for_session_end()
    assert server.errors == []


# Sizes, unique-ids and capabilities.


@pytest.mark.parametrize(("by", "sizes"), [(1, [28, 4]), (-5, [22, 0]), (1_000_000, [1_000_027, 1_000_003])])
def test_spoil_sizes(by: int, sizes: list[int]) -> None:
    """A session reads wrong sizes everywhere, and messages that are whole all the same; the next one reads right ones.

    popart takes a message that is shorter than was said for a broken one: not so here.
    """
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.deliver("alice", b"x\r\n")
        server.spoil_sizes(by)
        with signed_in(server) as client:
            assert client.ask(b"STAT") == b"+OK 2 %d\r\n" % max(0, 30 + 2 * by)
            client.ask(b"LIST")
            assert client.lines() == b"1 %d\r\n2 %d\r\n.\r\n" % tuple(sizes)
            assert client.ask(b"LIST 1") == b"+OK 1 %d\r\n" % sizes[0]
            assert client.ask(b"LIST 9").startswith(b"-ERR")
            assert client.ask(b"RETR 1") == b"+OK %d octets\r\n" % sizes[0]
            assert client.lines() == ON_THE_WIRE + b".\r\n"
            client.ask(b"UIDL")
            assert client.lines().count(b"\r\n") == 3
            client.ask(b"QUIT")
        with signed_in(server) as client:
            assert client.ask(b"LIST 1") == b"+OK 1 27\r\n"
            client.ask(b"QUIT")
    assert server.errors == []


def ids_of(server: MailServer) -> list[str]:
    with signed_in(server) as client:
        client.ask(b"UIDL")
        listed = [line.partition(b" ")[2].decode("latin-1") for line in client.lines().splitlines()[:-1]]
        single = [
            client.ask(b"UIDL %d" % number).removesuffix(b"\r\n").split(b" ", 2)[2].decode("latin-1")
            for number in range(1, len(listed) + 1)
        ]
        assert listed == single
        client.ask(b"QUIT")
    return listed


def test_spoil_ids_repeat() -> None:
    """All messages have one id."""
    with MailServer() as server:
        right = [server.deliver("alice", MESSAGE) for _ in range(3)]
        server.spoil_ids("repeat")
        found = ids_of(server)
        assert len(found) == 3 and len(set(found)) == 1
        assert ids_of(server) == right


def test_spoil_ids_change() -> None:
    """All messages have other ids than ever before, for the session; well-formed ones, and no two the same."""
    with MailServer() as server:
        right = [server.deliver("alice", MESSAGE) for _ in range(3)]
        server.spoil_ids("change", times=2)
        seen = [*ids_of(server), *ids_of(server), *right]
        assert len(set(seen)) == 9
        assert all(re.fullmatch("[!-~]{1,70}", unique_id) for unique_id in seen)
        assert ids_of(server) == right


def test_spoil_ids_malformed() -> None:
    """The four ways in which RFC 1939 section 7 does not allow an id."""
    with MailServer() as server:
        for _ in range(5):
            server.deliver("alice", MESSAGE)
        server.spoil_ids("malformed")
        blank, long, high, none, again = ids_of(server)
        assert " " in blank and again == blank
        assert len(long) == 71
        assert any(character > "~" for character in high)
        assert none == ""


def capabilities(client: Client) -> list[str]:
    client.send(b"CAPA\r\n")
    return client.lines().decode().splitlines()[1:-1]


def test_hide() -> None:
    """A server that lacks UIDL and TOP does not announce them, and does not know them; the others stay."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        with connected(server) as client:
            before = capabilities(client)
        server.hide("UIDL", "TOP")
        with connected(server) as client:
            assert capabilities(client) == [line for line in before if line not in ("UIDL", "TOP")]
            client.sign_in()
            assert not {"UIDL", "TOP"} & set(capabilities(client))
            for command in (b"UIDL", b"uidl 1", b"TOP 1 0"):
                assert client.ask(command) == b"-ERR unknown command\r\n"
            assert client.ask(b"RETR 1") == STATUS
            client.lines()
            client.ask(b"QUIT")
        with signed_in(server) as client:
            assert "UIDL" in capabilities(client)
            assert client.ask(b"UIDL 1").startswith(b"+OK")


def test_hide_leaves_a_refusal_alone() -> None:
    """A CAPA that is refused has one line, and hides nothing yet."""
    with MailServer() as server, connected(server) as client:
        server.hide("UIDL")
        assert client.ask(b"CAPA x").startswith(b"-ERR")
        assert client.ask(b"NOOP").startswith(b"-ERR")
        assert server.pending_faults == ["hide('UIDL')"]
        assert "UIDL" not in capabilities(client)


def test_hide_sasl() -> None:
    """Without SASL there is no AUTH, and a capability of several words goes as a whole."""
    with MailServer() as server:
        server.hide("SASL", "IMPLEMENTATION")
        with connected(server) as client:
            assert client.ask(b"AUTH PLAIN") == b"-ERR unknown command\r\n"
            assert not [line for line in capabilities(client) if line.startswith(("SASL", "IMPLEMENTATION"))]
            client.sign_in()


def test_lasting_faults_take_turns() -> None:
    """Two of one kind are for two sessions; those of different kinds meet in one, and end with it."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.spoil_sizes(1)
        server.spoil_sizes(2)
        server.spoil_ids("repeat")
        server.hide("TOP")
        server.delay("LIST 1", 0)
        for size in (b"28", b"29", b"27"):
            with signed_in(server) as client:
                assert client.ask(b"LIST 1") == b"+OK 1 %b\r\n" % size
                repeated = client.ask(b"UIDL 1") == b"+OK 1 the-same-for-all\r\n"
                hidden = client.ask(b"TOP 1 0") == b"-ERR unknown command\r\n"
                assert repeated == hidden == (size == b"28")
                if not hidden:
                    client.lines()
                client.ask(b"QUIT")
    assert server.pending_faults == []


def test_lasting_faults_of_one_user() -> None:
    """They happen to the user who was named, and to nobody else."""
    with MailServer({"alice": "secret", "bob": "secret"}) as server:
        for name in ("alice", "bob"):
            server.deliver(name, MESSAGE)
        server.spoil_sizes(1, username="bob")
        with pop(server) as alice, pop(server, "bob") as bob:
            assert alice.stat() == (1, 27)
            assert bob.stat() == (1, 28)


# What cannot happen, and what has not happened yet.


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda server: server.fail("RETRE"), "'RETRE' begins with no keyword of POP3: is it RETR?"),
        (lambda server: server.fail("RECV"), "'RECV' begins with no keyword of POP3"),
        (lambda server: server.drop("STAT "), "'STAT ' has a space too many"),
        (lambda server: server.drop(" STAT"), "' STAT' begins with no keyword of POP3"),
        (lambda server: server.delay("RETR  1", 1), "'RETR  1' has a space too many"),
        (lambda server: server.fail(""), "'' begins with no keyword of POP3"),
        (lambda server: server.fail("***"), "no keyword"),
        (lambda server: server.fail(b"RETR"), "a command must be a str"),
        (lambda server: server.fail("PASS secret"), "PASS has a secret in it, which is hidden from faults too"),
        (lambda server: server.stall("pass two words", 1), "PASS has a secret in it"),
        (lambda server: server.drip("APOP alice 0123"), "APOP has a secret in it"),
        (lambda server: server.split("AUTH PLAIN AGFs"), "AUTH has a secret in it"),
        (lambda server: server.fail("AUTH PLIAN"), "'AUTH PLIAN' names no mechanism of SASL: is it PLAIN?"),
        (lambda server: server.fail("AUTH PLAIN", username="alice"), "AUTH comes before the user is known"),
        (
            lambda server: server.truncate("LIST 1", 0),
            "the answer to LIST 1 has one line: there is nothing to truncate",
        ),
        (lambda server: server.truncate("UIDL 1", 0), "the answer to UIDL 1 has one line"),
        (lambda server: server.drop("STAT 1"), "'STAT 1' has more than STAT takes: no arguments"),
        (lambda server: server.drop("RETR 1 2"), "'RETR 1 2' has more than RETR takes: 1 argument$"),
        (lambda server: server.drop("TOP 1 2 3"), "'TOP 1 2 3' has more than TOP takes: 2 arguments"),
        (lambda server: server.fail("RETR one"), "'RETR one' has an argument that is no number"),
        (lambda server: server.fail("TOP 1 \u0661"), "has an argument that is no number"),
        (lambda server: server.fail("RETR", username="alicia"), "there is no user 'alicia' yet"),
        (lambda server: server.spoil_sizes(1, username="alicia"), "there is no user 'alicia' yet"),
        (lambda server: server.refuse_sign_in(username=""), "there is no user '' yet"),
        (lambda server: server.truncate("STAT", 1), "the answer to STAT has one line"),
        (lambda server: server.truncate("RETR", -1), "after must be 0 octets or more, not -1"),
        (lambda server: server.truncate("RETR", None), "after must be 0 octets or more"),
        (lambda server: server.hang_up("RETR", how="fin"), 'how must be "end" or "reset"'),
        (lambda server: server.stall("RETR", -1), "seconds must be 0 or more"),
        (lambda server: server.stall("RETR", True), "seconds must be 0 or more"),
        (lambda server: server.stall("RETR", 1, after=-1), "after must be 0 octets"),
        (lambda server: server.drip("RETR", size=0), "size must be 1 octets or more"),
        (lambda server: server.drip("RETR", "1"), "seconds must be 0 or more"),
        (lambda server: server.split("RETR", float("nan")), "seconds must be 0 or more"),
        (lambda server: server.delay_greeting(-1), "seconds must be 0 or more"),
        (lambda server: server.refuse_connection(code="no code"), "not a POP3 response code"),
        (lambda server: server.refuse_connection(times=0), "times must be 1 or more"),
        (lambda server: server.spoil_sizes(0), "by must be a number of octets other than 0"),
        (lambda server: server.spoil_sizes(10**4000), "by must be at most 10"),
        (lambda server: server.spoil_sizes(-(10**18) - 1), "by must be at most 10"),
        (lambda server: server.spoil_sizes(1.5), "by must be a number of octets"),
        (lambda server: server.spoil_sizes(True), "by must be a number of octets"),
        (lambda server: server.spoil_ids("repeated"), "how must be one of"),
        (lambda server: server.spoil_ids("change", times=0), "times must be 1 or more"),
        (lambda server: server.hide("UILD"), r"not \['UILD'\]"),
        (lambda server: server.hide(), "hide some of"),
        (lambda server: server.hide("UIDL", times=1.5), "times must be 1 or more"),
    ],
)
def test_misspelt_faults(ask: Callable[[MailServer], None], why: str) -> None:
    """What cannot happen is a ValueError at once, which says why, and nothing is kept of it."""
    server = MailServer()
    with pytest.raises(ValueError, match=why):
        ask(server)
    assert server.pending_faults == []


@pytest.mark.parametrize(
    "command",
    ["LAST", "STLS", "RPOP", "HELP", "XTND XMIT", "xsender 1", "PASS", "APOP alice", "auth plain", "AUTH PLAIN ***",
     "AUTH CRAM-MD5", "AUTH SCRAM-SHA-1-PLUS", "AUTH XOAUTH", "TOP 1", "TOP 1 0", "LIST 1", "dele 12",
     "USER two words", "LANG de", "UTF8", "QUIT"],
)  # fmt: skip
def test_commands_that_may_come(command: str) -> None:
    """Keywords of POP3, in any case, and those of other servers, which clients try."""
    server = MailServer()
    server.fail(command)
    assert server.pending_faults == [f"fail({command!r})"]


def test_a_command_of_other_servers_can_fail() -> None:
    """A fault for a keyword that popart does not know happens when a client tries it."""
    with MailServer() as server, signed_in(server) as client:
        server.fail("LAST", "not here")
        assert client.ask(b"LAST") == b"-ERR not here\r\n"


@pytest.mark.parametrize("line", [b"USER bob", b"APOP bob c0ffee"])
def test_a_fault_of_the_user_whom_a_command_names(line: bytes) -> None:
    """USER and APOP name the user themselves, so a fault of one user can happen at the first of them."""
    with MailServer(users={"alice": "secret", "bob": "hunter2"}, apop=True) as server:
        server.fail(line[:4].decode(), username="bob")
        with connected(server) as client:
            assert not client.ask(line.replace(b"bob", b"alice")).endswith(b"on demand\r\n")
        with connected(server) as client:
            assert client.ask(line) == b"-ERR failed on demand\r\n"


def test_a_user_who_comes_later() -> None:
    """Once the user is there, faults may name them."""
    server = MailServer()
    server.users["alicia"] = "secret"
    server.fail("RETR", username="alicia")
    assert server.pending_faults == ["fail('RETR', username='alicia')"]


def test_pending_faults() -> None:
    """A fault is pending until it has happened as often as it was asked for, or once with ``times=None``."""
    with MailServer() as server, signed_in(server) as client:
        server.fail("NOOP", code="SYS/TEMP", times=2, username="alice")
        server.drop("RETR", after=10, how="reset")
        server.delay("STAT", 0.0, times=None)
        server.hide("UIDL", "TOP")
        others = ["drop('RETR', after=10, how='reset')", "delay('STAT', 0.0, times=None)", "hide('UIDL', 'TOP')"]
        assert server.pending_faults == ["fail('NOOP', code='SYS/TEMP', times=2, username='alice')", *others]
        client.ask(b"NOOP")
        assert server.pending_faults == ["fail('NOOP', code='SYS/TEMP', username='alice')", *others]
        client.ask(b"NOOP")
        client.ask(b"STAT")
        assert server.pending_faults == ["drop('RETR', after=10, how='reset')", "hide('UIDL', 'TOP')"]
        server.clear_faults()
        assert server.pending_faults == []
        assert client.ask(b"STAT").startswith(b"+OK")


@pytest.mark.parametrize(
    ("ask", "unchanged", "changed"),
    [
        (lambda server: server.truncate("RETR", 20), [b"RETR 9", b"RETR 1"], b"RETR 2"),
        (lambda server: server.truncate("LIST", 7), [b"LIST 1"], b"LIST"),
        (lambda server: server.truncate("RETR", 20, times=2), [b"RETR 9", b"RETR 1"], b"RETR 2"),
        (lambda server: server.truncate("RETR", 20, times=None), [b"RETR 9", b"RETR 1"], b"RETR 2"),
        (lambda server: server.spoil_sizes(1), [b"LIST 9", b"RETR 9"], b"STAT"),
        (lambda server: server.spoil_ids("change"), [b"UIDL 9"], b"UIDL"),
        (lambda server: server.spoil_ids("repeat"), [b"UIDL 9"], b"UIDL 1"),
    ],
)
def test_what_a_fault_does_not_change(
    ask: Callable[[MailServer], None], unchanged: list[bytes], changed: bytes
) -> None:
    """A fault has happened only where it has changed something: not in an -ERR, nor in a message that is shorter than
    what is left of it."""
    with MailServer() as server:
        server.deliver("alice", b"Subject: x\n\nx\n")
        server.deliver("alice", b"Subject: longer\n\nhello\n")
        ask(server)
        pending = server.pending_faults
        assert len(pending) == 1
        with signed_in(server) as client:
            for command in unchanged:
                if client.ask(command).startswith(b"+OK") and command.startswith(b"RETR"):
                    assert client.lines() == b"Subject: x\r\n\r\nx\r\n.\r\n"
                assert server.pending_faults == pending
            assert "has nothing to change here, and waits" in server.transcript()
            client.ask(changed)
            assert server.pending_faults == [text.removesuffix(", times=2)") + ")" for text in pending if "=2" in text]


def test_a_fault_that_waits_keeps_its_place() -> None:
    """Faults that were asked for before still come before it."""
    with MailServer() as server:
        server.fail("RETR 1")
        server.truncate("RETR", 1_000)
        server.deliver("alice", MESSAGE)
        server.deliver("alice", MESSAGE)
        with signed_in(server) as client:
            client.ask(b"RETR 2")
            client.lines()
            assert server.pending_faults == ["fail('RETR 1')", "truncate('RETR', 1000)"]
            assert client.ask(b"RETR 1").startswith(b"-ERR")


@pytest.mark.parametrize(
    ("ask", "commands"),
    [
        (lambda server: server.spoil_sizes(1), [b"STAT", b"LIST"]),
        (lambda server: server.spoil_ids("change"), [b"UIDL"]),
        (lambda server: server.spoil_ids("repeat"), [b"UIDL"]),
    ],
)
def test_a_maildrop_in_which_nothing_can_be_wrong(ask: Callable[[MailServer], None], commands: list[bytes]) -> None:
    """Faults of a session wait for one that has messages, and unique-ids that repeat for one that has two."""
    with MailServer() as server:
        ask(server)
        for count in (1, 2):
            if count == 2 or commands == [b"UIDL"] and "repeat" in server.pending_faults[0]:
                server.deliver("alice", MESSAGE)
            with signed_in(server) as client:
                for command in commands:
                    client.ask(command)
                    if command != b"STAT":
                        client.lines()
                assert len(server.pending_faults) == 2 - count
            server.wait_for_session_end(sessions=count)  # until then it has the lock


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda server: server.hang_up("RETR", how="reset"), "hang_up('RETR', how='reset')"),
        (lambda server: server.truncate("RETR", 5), "truncate('RETR', 5)"),
        (lambda server: server.stall("RETR", 5, after=6), "stall('RETR', 5, after=6)"),
        (lambda server: server.drip("RETR", 0.5, size=2), "drip('RETR', 0.5, size=2)"),
        (lambda server: server.split("RETR", 0.5), "split('RETR', 0.5)"),
        (lambda server: server.refuse_connection(), "refuse_connection(code='SYS/TEMP')"),
        (lambda server: server.delay_greeting(5), "delay_greeting(5)"),
        (lambda server: server.refuse_sign_in(times=3), "refuse_sign_in(code='AUTH', times=3)"),
        (lambda server: server.lock_maildrop(), "lock_maildrop(code='IN-USE')"),
        (lambda server: server.fail_commit(username="alice"), "fail_commit(code='SYS/TEMP', username='alice')"),
        (lambda server: server.spoil_sizes(-1), "spoil_sizes(-1)"),
        (lambda server: server.spoil_ids("change"), "spoil_ids('change')"),
    ],
)
def test_pending_faults_are_calls(ask: Callable[[MailServer], None], text: str) -> None:
    """Each reads as the call that asked for it, and can be asked for so again."""
    server = MailServer()
    ask(server)
    assert server.pending_faults == [text]
    eval(f"server.{text}")
    assert server.pending_faults == [text, text]


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_leaves_ends_a_stall(tls: bool) -> None:
    """It frees the lock at once, as a server does that learns of it: the client may come again."""
    with MailServer(tls=tls) as server:
        server.deliver("alice", MESSAGE)
        server.stall("RETR", float("inf"), after=10)
        with signed_in(server) as client:
            client.send(b"RETR 1\r\n")
            assert client.file.read(len(STATUS) + 10) == ANSWER[: len(STATUS) + 10]
        server.wait_for_session_end()
        assert [type(error) for error in server.errors] == [popart.ClientGoneError]
        with signed_in(server):
            pass


def test_a_system_that_cannot_tell_who_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a stall lasts as long as it was asked for, and the client has the rest."""
    monkeypatch.delattr(select, "POLLRDHUP", raising=False)
    with MailServer() as server, signed_in(server) as client:
        server.stall("STAT", 0.1)
        assert client.ask(b"STAT") == b"+OK 0 0\r\n"


def test_half_a_stuffed_dot() -> None:
    """A message that is cut within a stuffed dot, later than at its beginning, does not end twice."""
    with MailServer() as server:
        server.deliver("alice", "x\n.y\n")
        server.truncate("RETR", 4)
        with signed_in(server) as client:
            client.ask(b"RETR 1")
            assert client.lines() == b"x\r\n.\r\n"
            assert client.ask(b"NOOP").startswith(b"+OK")


def test_a_fault_for_good_has_happened_once_it_has_happened() -> None:
    """With ``times=None`` it is not pending again when a later answer has nothing to change."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.deliver("alice", b"x\n")
        server.truncate("RETR", 12, times=None)
        with signed_in(server) as client:
            for command, lines in ((b"RETR 1", b"Subject: x\r\n.\r\n"), (b"RETR 2", b"x\r\n.\r\n")):
                client.ask(command)
                assert client.lines() == lines
        assert server.pending_faults == []


def test_a_lasting_fault_behind_another() -> None:
    """It begins with the first answer that it changes, so it waits where another fault answers in its place."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.spoil_sizes(1)
        server.fail("LIST")
        with signed_in(server) as client:
            assert client.ask(b"LIST 1") == b"-ERR failed on demand\r\n"
            assert server.pending_faults == ["spoil_sizes(1)"]
            assert client.ask(b"LIST 1") == b"+OK 1 28\r\n"
        assert server.pending_faults == []


@pytest.mark.parametrize("forget", [MailServer.clear_faults, MailServer.reset])
def test_faults_removed_while_one_happens(
    forget: Callable[[MailServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone with the others, though it finds nothing to change afterwards."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.truncate("RETR", 1_000)
        monkeypatch.setattr(StoredMailHandler, "get_message_reader", lambda *_: forget(server) or io.BytesIO(MESSAGE))
        with signed_in(server) as client:
            assert client.ask(b"RETR 1") == STATUS
            client.lines()
        assert (server.pending_faults, server.errors) == ([], [])


def test_faults_that_have_happened_are_forgotten() -> None:
    """A server that runs for months without a reset keeps no more than the last hundred."""
    with MailServer() as server, signed_in(server) as client:
        for _ in range(120):
            server.fail("NOOP")
            client.ask(b"NOOP")
        server.fail("NOOP")
        assert len(server._faults) == 101
        assert server.pending_faults == ["fail('NOOP')"]
        assert client.ask(b"NOOP").startswith(b"-ERR")


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda server: server.fail("NOOP"), "fail('NOOP')"),
        (lambda server: server.drop("NOOP"), "drop('NOOP')"),
        (lambda server: server.hang_up("NOOP"), "hang_up('NOOP')"),
        (lambda server: server.truncate("RETR", 5), "truncate('RETR', 5)"),
        (lambda server: server.delay("NOOP", 5), "delay('NOOP', 5)"),
        (lambda server: server.stall("NOOP", 5), "stall('NOOP', 5, after=0)"),
        (lambda server: server.drip("NOOP"), "drip('NOOP', 0.01, size=1)"),
        (lambda server: server.split("NOOP"), "split('NOOP', 0.02)"),
        (lambda server: server.refuse_connection(), "refuse_connection(code='SYS/TEMP')"),
        (lambda server: server.delay_greeting(), "delay_greeting(inf)"),
        (lambda server: server.refuse_sign_in(), "refuse_sign_in(code='AUTH')"),
        (lambda server: server.lock_maildrop(), "lock_maildrop(code='IN-USE')"),
        (lambda server: server.fail_commit(), "fail_commit(code='SYS/TEMP')"),
        (lambda server: server.spoil_sizes(1), "spoil_sizes(1)"),
        (lambda server: server.spoil_ids("repeat"), "spoil_ids('repeat')"),
        (lambda server: server.hide("TOP"), "hide('TOP')"),
    ],
)
def test_what_a_fault_is_by_default(ask: Callable[[MailServer], None], text: str) -> None:
    """It happens once, with the arguments that the manual shows."""
    server = MailServer()
    ask(server)
    assert server.pending_faults == [text]


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (
            lambda server: server.fail("AUTH", username="alice"),
            "AUTH comes before the user is known: leave out username, or use refuse_sign_in",
        ),
        (lambda server: server.fail("NOOP", username=5), "username must be a str or None, not 5"),
        (
            lambda server: server.fail("NOOP", username="bob"),
            "there is no user 'bob' yet, so nothing can happen to them: ['alice']",
        ),
        (lambda server: server.fail("NOOP", times=0), "times must be 1 or more, or None, not 0"),
        (lambda server: server.fail("NOOP", code=5), "code must be a str or None, not 5"),
        (lambda server: server.drop("RETR", after=-1), "after must be 0 octets or more, not -1"),
        (lambda server: server.drop("RETR", how="fin"), 'how must be "end" or "reset", not \'fin\''),
        (lambda server: server.delay("RETR", -1), "seconds must be 0 or more, not -1"),
        (
            lambda server: server.truncate("STAT", 1),
            "the answer to STAT has one line: there is nothing to truncate",
        ),
        (lambda server: server.spoil_sizes(0), "by must be a number of octets other than 0, not 0"),
        (
            lambda server: server.spoil_sizes(10**18 + 1),
            "by must be at most 10**18: a line of an answer holds no more",
        ),
        (
            lambda server: server.spoil_ids("all"),
            "how must be one of ('repeat', 'change', 'malformed'), not 'all'",
        ),
        (
            lambda server: server.hide("RETR"),
            "hide some of ['AUTH-RESP-CODE', 'EXPIRE', 'IMPLEMENTATION', 'PIPELINING', 'RESP-CODES', 'SASL', 'TOP', "
            "'UIDL', 'USER'], not ['RETR']",
        ),
        (lambda server: server.fail(5), "a command must be a str, not 5"),
        (lambda server: server.fail("RETRE"), "'RETRE' begins with no keyword of POP3: is it RETR?"),
        (lambda server: server.fail("STLT"), "'STLT' begins with no keyword of POP3: is it STLS?"),
        (lambda server: server.fail("RECV"), "'RECV' begins with no keyword of POP3"),
        (lambda server: server.fail("AUTH PLIAN ***"), "'AUTH PLIAN ***' names no mechanism of SASL: is it PLAIN?"),
        (lambda server: server.fail("AUTH FOO"), "'AUTH FOO' names no mechanism of SASL"),
        (lambda server: server.fail("STAT "), "'STAT ' has a space too many"),
        (
            lambda server: server.fail("PASS x"),
            "PASS has a secret in it, which is hidden from faults too: leave it out",
        ),
        (lambda server: server.fail("AUTH PLIAN"), "'AUTH PLIAN' names no mechanism of SASL: is it PLAIN?"),
        (lambda server: server.fail("STAT 1"), "'STAT 1' has more than STAT takes: no arguments"),
        (lambda server: server.fail("RETR 1 2"), "'RETR 1 2' has more than RETR takes: 1 argument"),
        (lambda server: server.fail("RETR x"), "'RETR x' has an argument that is no number"),
    ],
)
def test_what_a_wrong_fault_is_told(ask: Callable[[MailServer], None], text: str) -> None:
    """The error says what is wrong with the call, and what is right."""
    with pytest.raises(ValueError) as error:
        ask(MailServer())
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("ask", "command", "answer"),
    [
        (lambda server: server.fail("NOOP"), b"NOOP", b"-ERR failed on demand\r\n"),
        (lambda server: server.fail_commit(), b"QUIT", b"-ERR [SYS/TEMP] no message was deleted\r\n"),
        (
            lambda server: server.lock_maildrop(),
            b"PASS secret",
            b"-ERR [IN-USE] another session has the maildrop\r\n",
        ),
        (lambda server: server.refuse_sign_in(), b"PASS secret", b"-ERR [AUTH] wrong name or password\r\n"),
        (
            lambda server: server.maildrop("alice").lock(),
            b"PASS secret",
            b"-ERR [IN-USE] another session has the maildrop\r\n",
        ),
    ],
)
def test_what_a_client_reads(ask: Callable[[MailServer], None], command: bytes, answer: bytes) -> None:
    """Without a *text* of the test's own, a refusal has the manual's; a lock that somebody has is refused alike."""
    with MailServer() as server, connected(server) as client:
        server.deliver("alice", MESSAGE)
        ask(server)
        client.ask(b"USER alice")
        if command != b"PASS secret":
            client.ask(b"PASS secret")
            client.ask(b"DELE 1")
        assert client.ask(command) == answer


@pytest.mark.parametrize("command", ["CAPA", "LIST", "RETR", "RETR 1", "TOP", "TOP 1 0", "UIDL"])
def test_what_can_be_truncated(command: str) -> None:
    """Each answer that may have several lines, of one message too."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.truncate(command, 0)
        with signed_in(server) as client:
            sent = {"RETR": "RETR 1", "TOP": "TOP 1 0"}.get(command, command)
            assert client.ask(sent.encode()).startswith(b"+OK")
            assert client.lines() == b".\r\n"


def test_stall_of_one_line(sent: list[bytes]) -> None:
    """An answer of one line stalls in the middle of it."""
    with MailServer() as server, signed_in(server) as client:
        server.stall("STAT", 0.01)
        sent.clear()
        assert client.ask(b"STAT") == b"+OK 0 0\r\n"
        assert sent == [b"+OK ", b"0 0\r\n"]


@pytest.mark.parametrize(
    "name",
    ["SASL", "TOP", "UIDL", "USER", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "EXPIRE", "IMPLEMENTATION"],
)
def test_each_capability_can_be_hidden(name: str) -> None:
    """It is left out of CAPA, no other is, and the command that it stands for is unknown."""
    with MailServer() as server, connected(server) as client:
        client.ask(b"CAPA")
        all_of_them = client.lines().splitlines()
        server.hide(name)
        client.ask(b"CAPA")
        assert client.lines().splitlines() == [line for line in all_of_them if line.split()[0].decode() != name]
        command = {"SASL": b"AUTH PLAIN", "USER": b"USER alice"}.get(name)
        if command is not None:
            assert client.ask(command) == b"-ERR unknown command\r\n"


@pytest.mark.parametrize("by", [10**18, -(10**18)])
def test_sizes_that_are_as_wrong_as_can_be(by: int) -> None:
    """10**18 octets either way can be asked for, and no size or sum is below 0."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.spoil_sizes(by)
        with signed_in(server) as client:
            size = max(0, 27 + by)
            assert client.ask(b"LIST").startswith(b"+OK")
            assert client.lines() == b"1 %d\r\n.\r\n" % size
            assert client.ask(b"STAT") == b"+OK 1 %d\r\n" % size


def test_what_the_transcript_says_of_a_fault_that_waits() -> None:
    """The fault, and why it has not happened."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.truncate("RETR", 1_000)
        with signed_in(server) as client:
            client.ask(b"RETR 1")
            client.lines()
            found = re.findall(r"\*: (.*)\n", server.transcript())
        assert found == ["truncate('RETR', 1000)", "truncate('RETR', 1000) has nothing to change here, and waits"]


def test_a_stall_leaves_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for its client now and then, and sleeps meanwhile."""
    looks = []
    monkeypatch.setattr(packets, "_has_left", looks.append)
    with MailServer() as server, signed_in(server) as client:
        server.stall("STAT", 0.3)
        assert client.ask(b"STAT") == b"+OK 0 0\r\n"
    assert 1 <= len(looks) <= 7


@pytest.mark.parametrize(
    "mechanism",
    [
        "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256", "EXTERNAL", "ANONYMOUS", "CRAM-MD5", "DIGEST-MD5",
        "GSSAPI", "GSS-SPNEGO", "KERBEROS_V4", "KERBEROS_V5", "NTLM", "OTP", "SKEY", "SECURID", "SAML20", "OPENID20",
        "OAUTH10A", "SCRAM-SHA-1-PLUS", "GS2-KRB5", "ECDSA-NIST256P-CHALLENGE", "EAP-AES128", "9798-U-RSA-SHA1-ENC",
        "NMAS_LOGIN", "X-MINE",
    ],
)  # fmt: skip
def test_mechanisms_that_clients_try(mechanism: str) -> None:
    """A fault may name any mechanism that is registered for SASL, and those that begin with X."""
    server = MailServer()
    server.fail(f"AUTH {mechanism}")
    server.fail(f"AUTH {mechanism} ***")
    assert server.pending_faults == [f"fail('AUTH {mechanism}')", f"fail('AUTH {mechanism} ***')"]


def test_a_secret_before_a_hidden_one() -> None:
    """All of PASS is hidden, so no part of it can be named."""
    with pytest.raises(ValueError, match="PASS has a secret in it"):
        MailServer().fail("PASS x ***")


@pytest.mark.parametrize(
    ("command", "takes"),
    [
        *[(f"{keyword} 1 2", "1 argument") for keyword in ("LIST", "UIDL", "RETR", "DELE")],
        ("TOP 1 2 3", "2 arguments"),
        *[
            (f"{keyword} 1", "no arguments")
            for keyword in ("STAT", "NOOP", "RSET", "QUIT", "CAPA", "UTF8", "LAST", "STLS")
        ],
    ],
)
def test_an_argument_too_many(command: str, takes: str) -> None:
    """No client's command has more arguments than its keyword takes (RFC 1939, RFC 2449, RFC 2595, RFC 6856)."""
    with pytest.raises(ValueError) as error:
        MailServer().fail(command)
    assert str(error.value) == f"{command!r} has more than {command.split()[0]} takes: {takes}"


@pytest.mark.parametrize("command", ["LIST 1", "UIDL 1", "RETR 1", "DELE 1", "TOP 1 1"])
def test_a_number_is_no_secret(command: str) -> None:
    """A command's number is shown, though a user's password is the same number."""
    with MailServer({"alice": "1"}) as server, connected(server) as client:
        client.ask(command.encode())
        assert server.commands == [("", *command.split())]
