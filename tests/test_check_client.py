"""The check's client, with servers that say what a test wants."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from popart.testing.check import CheckError
from popart.testing.check.client import (
    BlockedError,
    Client,
    Credentials,
    LateError,
    StopError,
    choose_way,
    longest_wait,
)
from tests.conftest import PATIENCE, expect_reset


@contextmanager
def talking(*answers: bytes, reads: bool = True, patience: float = PATIENCE) -> Iterator[tuple[Client, list[str]]]:
    """Yield a client, and the lines that it sends.  Its server answers the connection, and each line, in turn.

    After the last answer the server ends the stream, unless that answer is empty.
    """
    heard: list[str] = []
    done = threading.Event()

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as lines:
            for number, answer in enumerate(answers):
                if number and reads:
                    heard.append(lines.readline().decode())
                sock.sendall(answer)
            if not answers[-1]:
                done.wait(PATIENCE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with closing(Client(listener.getsockname()[1], patience, lambda: False)) as client:
                yield client, heard
        finally:
            done.set()
            thread.join()


def test_lines() -> None:
    """Each answer is read as far as it goes, however the lines end and wherever they are cut."""
    with talking(b"+OK hello\r\n", b"+OK \r X\r\n", b"\r\n", b"\n") as (client, heard):
        assert client.greeting == "+OK hello"
        assert client.ok("STAT") == "+OK \r X"
        assert (client.ask("NOOP"), client.ask("NOOP")) == ("", "")
    assert heard == ["STAT\r\n", "NOOP\r\n", "NOOP\r\n"]


def test_data() -> None:
    """Stuffed dots are taken away, and nothing else is."""
    with talking(b"+OK\r\n", b"+OK 2\r\n\n..a\r\n.b\r\n. \r\n.\r\n", b"+OK\r\n1 10\r\n2 20 x\r\n.\r\n") as (client, _):
        assert client.data("RETR 1") == b"\n.a\r\nb\r\n \r\n"
        assert client.listing("LIST") == ["10", "20 x"]


@pytest.mark.parametrize(
    ("answer", "ask", "says"),
    [
        (b"+OK", lambda client: client.ask("PASS x"), "the connection ended after PASS ***"),
        (b"-ERR no\r\n", lambda client: client.ok("PASS x"), "PASS *** was answered -ERR no"),
        (b"-ERR no\r\n", lambda client: client.data("LIST"), "LIST was answered -ERR no"),
        (
            b"+OK\r\n1 1\r\n",
            lambda client: client.data("LIST"),
            "the connection was reset in the middle of the answer to LIST",
        ),
    ],
)
def test_what_stops_it(answer: bytes, ask: Any, says: str) -> None:
    """A client that cannot go on says why, without a secret."""
    with talking(b"+OK\r\n", answer) as (client, _), pytest.raises(StopError) as error:
        ask(client)
    assert str(error.value) == says


def test_each_answer_has_its_own_time() -> None:
    """However long the client has been connected, it waits for an answer as long as for the first."""
    with talking(b"+OK\r\n", b"+OK\r\n") as (client, _):
        client._deadline = 0.0
        assert client.ask("NOOP") == "+OK"


def test_no_greeting() -> None:
    """A connection that ends at once is closed."""
    with pytest.raises(StopError, match="^the connection ended after connecting$"), talking(b"+O"):
        pass


def test_a_connection_that_has_ended() -> None:
    """Nothing can be sent any more."""
    with talking(b"+OK\r\n") as (client, _):
        client.close()
        assert client._receive("nothing") == b""
        with pytest.raises(StopError) as error:
            client.send("PASS x")
    assert str(error.value) == "PASS *** could not be sent, as the connection has ended"


@pytest.mark.parametrize("blocked", [True, False])
def test_no_answer(blocked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client waits until a call of the handler is slow, or for as long as all may take, and says for what."""
    with talking(b"+OK\r\n", b"", patience=0.1) as (client, _):
        client._is_blocked = lambda: blocked
        monkeypatch.setattr("popart.testing.check.client.LONGEST", 0.2)
        monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
        with pytest.raises(BlockedError if blocked else LateError) as error:
            client.ask("PASS x")
    assert str(error.value) == "there is no answer after PASS ***"


def test_how_often_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client looks whether a call is slow some ten times within its patience."""
    looks: list[None] = []
    with talking(b"+OK\r\n", b"", patience=0.5) as (client, _):
        client._is_blocked = lambda: bool(looks.append(None))  # type: ignore[func-returns-value]
        monkeypatch.setattr("popart.testing.check.client.LONGEST", 0.5)
        monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
        client._begin_answer()
        with pytest.raises(LateError, match="^the connection does not end$"):
            client.wait_for_end()
    assert 2 <= len(looks) <= 11  # on a busy machine


def test_reset() -> None:
    """The server reads that the client has broken off, and no end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as other:
        connecting = other.submit(Client, listener.getsockname()[1], PATIENCE, lambda: False)
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(PATIENCE)
            sock.sendall(b"+OK\r\n")
            connecting.result().reset()
            with expect_reset():
                sock.recv(1)


@pytest.mark.parametrize(
    ("endless", "kind", "more"), [(10, LateError, ""), (9, BlockedError, " after 10 octets: it has no end")]
)
def test_half_an_answer(endless: int, kind: type[Exception], more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come to its end says which.  One that is longer than all messages has none."""
    with talking(b"+OK\r\n", b"+OK\r\n1 1\r\n", b"", patience=0.1) as (client, _):
        monkeypatch.setattr("popart.testing.check.client.LONGEST", 1.0)
        monkeypatch.setattr("popart.testing.check.client.ANSWER_SHARE", 0)
        monkeypatch.setattr("popart.testing.check.client.ENDLESS", endless)
        with pytest.raises(kind) as error:
            client.data("LIST")
    assert str(error.value) == f"the answer to LIST is not complete{more}"


@pytest.mark.skipif(sys.platform == "win32", reason="the system may take the whole line at once")
def test_a_server_that_does_not_read() -> None:
    """A line that cannot be sent within the patience is waited for no longer."""
    with talking(b"+OK\r\n", b"", reads=False, patience=0.1) as (client, _), pytest.raises(BlockedError) as error:
        client.send("NOOP " + "x" * 30_000_000)
    assert str(error.value).endswith("x is not read")


def test_longest_wait() -> None:
    """Anything may take a minute, or six times the patience."""
    assert [longest_wait(patience) for patience in (1.0, 10.0, 11.0)] == [60.0, 60.0, 66.0]


@pytest.mark.parametrize(
    ("way", "user", "greeting", "sends"),
    [
        ("APOP", "alice", b"+OK <1.2@host>\r\n", f"APOP alice {hashlib.md5(b'<1.2@host>secret').hexdigest()}\r\n"),
        ("APOP", "alice", b"+OK\r\n", f"APOP alice {hashlib.md5(b'secret').hexdigest()}\r\n"),
        ("XOAUTH2", "a=b,c", b"+OK\r\n", "user=a=b,c\1auth=Bearer secret\1\1"),
        ("OAUTHBEARER", "a=b,c", b"+OK\r\n", "n,a=a=3Db=2Cc,\1auth=Bearer secret\1\1"),
    ],
)
def test_ways_to_sign_in(way: str, user: str, greeting: bytes, sends: str) -> None:
    """What is sent is what the RFCs 1939, 7628 and 5801 want, and Google's XOAUTH2."""
    with talking(greeting, b"-ERR no\r\n") as (client, heard):
        assert client.sign_in(Credentials(user, "secret", way)) == "-ERR no"
    (line,) = heard
    if way != "APOP":
        assert line.startswith(f"AUTH {way} ")
        line = b64decode(line.split(" ")[2]).decode()
    assert line == sends


def test_a_refused_token() -> None:
    """A client answers the server's error, and reads the refusal (RFC 7628 section 3.2.3)."""
    with talking(b"+OK\r\n", b"+ e30=\r\n", b"-ERR no\r\n") as (client, heard):
        assert client.sign_in(Credentials("alice", "x", "XOAUTH2")) == "-ERR no"
    assert heard[1] == "AQ==\r\n"


def test_scram_that_is_broken_off() -> None:
    """A client that cannot go on with the server's challenge cancels (RFC 5034 section 4)."""
    challenge = b64encode(b"r=another,s=AAAA,i=4096")
    with talking(b"+OK\r\n", b"+ " + challenge + b"\r\n", b"-ERR cancelled\r\n") as (client, heard):
        assert client.sign_in(Credentials("alice", "secret", "SCRAM-SHA-256")) == "-ERR cancelled"
    assert heard[1] == "*\r\n"


@pytest.mark.parametrize(
    ("takes_user", "mechanisms", "options", "way"),
    [
        (True, ["PLAIN", "SCRAM-SHA-256"], {}, "PASS"),
        (False, ["PLAIN", "SCRAM-SHA-256"], {}, "SCRAM-SHA-256"),
        (True, ["OAUTHBEARER", "XOAUTH2"], {"token": True}, "OAUTHBEARER"),
        (False, ["XOAUTH2"], {"token": True}, "XOAUTH2"),
        (False, [], {"apop": True}, "APOP"),
        (False, [], {}, "the handler takes no passwords; of SASL it offers: nothing"),
        (True, ["PLAIN", "X"], {"token": True}, "the handler takes no tokens; of SASL it offers: PLAIN X"),
    ],
)
def test_which_way(takes_user: bool, mechanisms: list[str], options: dict[str, bool], way: str) -> None:
    """The first way that is offered for what is given is taken; without one the error says what there is."""
    try:
        found = choose_way(takes_user, mechanisms, **{"token": False, "apop": False, **options})
    except CheckError as error:
        found = str(error)
    assert found == way
