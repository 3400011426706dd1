"""popart.testing from outside: the program's first line, the HTTP interface, and that no reader or page harms it."""

from __future__ import annotations

import errno
import http.client
import json
import os
import poplib
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import popart
from popart.testing import MailServer, operations, output
from popart.testing.__main__ import CommandLineServer, describe, main, make_parser
from popart.testing.control import PAGE, PAGE_POLICY, ControlServer
from popart.testing.operations import FAULTS, ROUTES
from popart.testing.output import Output

from .conftest import PATIENCE, wait_until
from .test_records import has_ipv6
from .test_testing import Shell, needs_signals, pop, run_main, signals_kept

ROOT = Path(popart.__file__).parent.parent
TOKEN = "a-token"


class Program:
    """`python3 -m popart.testing`, run as another process."""

    def __init__(self, process: subprocess.Popen[str], first: str) -> None:
        self.process = process
        self.first: dict[str, Any] = json.loads(first)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.first["control"].rpartition(":")[2]), PATIENCE)
        return request(connection, method, path, body, Authorization=f"Bearer {self.first['token']}", **headers)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Send a request; a body that is no bytes is sent as JSON, and JSON is read."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(found) if is_json else found
    finally:
        connection.close()


@contextmanager
def program(*options: str, **popen: Any) -> Iterator[Program]:
    command = [sys.executable, "-m", "popart.testing", "--control", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **popen) as process:
        try:
            assert process.stdout is not None
            yield Program(process, process.stdout.readline())
        finally:
            process.kill()


class Control:
    """A control server in this process."""

    def __init__(self, control: ControlServer, mail: MailServer, stopped: threading.Event) -> None:
        self.control = control
        self.mail = mail
        self.stopped = stopped

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Ask with the token; ``Authorization=""`` asks without."""
        headers = {"Authorization": f"Bearer {TOKEN}", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.control.port, PATIENCE)
        return request(connection, method, path, body, **{name: value for name, value in headers.items() if value})

    def raw(self, octets: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.control.port), PATIENCE) as sock:
            sock.sendall(octets)
            with sock.makefile("rb") as file:
                return file.read()

    def sentence(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        status, found = self.ask(method, path, body, **headers)
        assert list(found) == ["error"]
        return status, found["error"]


@pytest.fixture
def control() -> Iterator[Control]:
    stopped = threading.Event()
    with MailServer(tokens={}) as mail:
        made = ControlServer(
            ("127.0.0.1", 0), mail, {"version": "x"}, token=TOKEN, hosts=["pop.example"], stop=stopped.set
        )
        with closing(made):
            yield Control(made, mail, stopped)


# A day in its life.


def test_a_fetch_that_breaks_off(control: Control) -> None:
    """Deliver, let a fetch break off, let it try again, and look at what is left: as a test in any language does."""
    status, found = control.ask("POST", "/messages/alice", {"message": "Subject: x\n\nhello\n"})
    assert status == 201
    assert control.ask("GET", "/messages/alice") == (200, [{"unique_id": found["unique_id"], "size": 21}])
    pending = ["drop('RETR', after=5)"]
    assert control.ask("POST", "/faults", {"fault": "drop", "command": "RETR", "after": 5}) == (201, pending)
    assert control.ask("GET", "/faults") == (200, pending)
    with pop(control.mail) as client, pytest.raises(poplib.error_proto):
        client.retr(1)
    assert control.ask("POST", "/wait", {"since_last_call": True}) == (200, {})
    with pop(control.mail) as client:
        client.retr(1)
        client.dele(1)
        client.quit()
    assert control.ask("POST", "/wait", {"since_last_call": True, "timeout": 10}) == (200, {})
    assert control.ask("GET", "/messages") == (200, {"alice": []})
    assert control.ask("GET", "/faults") == (200, [])
    assert control.ask("GET", "/errors") == (200, [])
    status, commands = control.ask("GET", "/commands")
    assert commands[:3] == [["", "USER", "alice"], ["alice", "PASS", "***"], ["alice", "RETR", "1"]]
    status, sessions = control.ask("GET", "/sessions")
    assert [(session["number"], session["username"], session["is_open"]) for session in sessions] == [
        (1, "alice", False),
        (2, "alice", False),
    ]
    assert sessions[1]["commands"] == commands[3:]
    assert "C: RETR 1" in sessions[0]["transcript"]
    status, text = control.ask("GET", "/transcript")
    assert text.decode() == control.mail.transcript()


def test_the_last_sessions(control: Control) -> None:
    """The page asks for the last ones, and not for what it does not show."""
    for _ in range(3):
        with pop(control.mail) as client:
            client.quit()
    control.ask("POST", "/wait", {"sessions": 3})
    found = control.ask("GET", "/sessions?last=2")[1]
    assert [session["number"] for session in found] == [2, 3]
    assert set(found[0]) == {"number", "username", "is_open", "transcript"}
    assert [len(control.ask("GET", f"/sessions?last={last}")[1]) for last in (0, 3, 9)] == [0, 3, 3]
    for wrong in ("x", "-1", "", "1" * 5_000, "%D9%A1"):
        assert control.sentence("GET", f"/sessions?last={wrong}") == (400, "last must be a number of sessions")


def test_messages_as_octets(control: Control) -> None:
    """A message may be sent as it is, with its unique-id in the query, and is got as it is on the wire."""
    octets = b"Subject: x\r\n\r\n\xff\x00<b>\r\n"
    for kind in ("message/rfc822", "application/octet-stream; x=y"):
        path = f"/messages/alice?unique_id=id%2F{len(kind)}"
        assert control.ask("POST", path, octets, Content_Type=kind) == (201, {"unique_id": f"id/{len(kind)}"})
        assert control.ask("GET", f"/messages/alice/id%2F{len(kind)}") == (200, octets)
    assert control.ask("POST", "/messages/alice", {"message": "x", "unique_id": "mine"})[0] == 201
    assert control.mail.messages("alice") == [octets, octets, b"x\r\n"]


def test_octets_in_a_path(control: Control) -> None:
    """A name may stand in the path as it is, in UTF-8: some clients do not encode it."""
    body = b'{"password": "p"}'
    for name in ("zo\u00eb", "\u00e0"):
        head = f"PUT /users/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        token = f"Authorization: Bearer a-token\r\nContent-Length: {len(body)}\r\n\r\n"
        assert control.raw((head + token).encode() + body).startswith(b"HTTP/1.1 200 ")
        assert control.ask("GET", "/users")[1][-1] == name


def test_no_body_is_an_empty_one(control: Control) -> None:
    """A request that takes no body may have an empty object all the same, as some clients always send one."""
    for method, path in (("POST", "/reset"), ("DELETE", "/faults"), ("POST", "/stop")):
        assert control.ask(method, path, {})[0] == 200


def test_users_and_tokens(control: Control) -> None:
    """Users come and go, under any name."""
    assert control.ask("PUT", "/users/zo%C3%AB%20x", {"password": "p"}) == (200, ["alice", "zo\u00eb x"])
    assert control.ask("PUT", "/tokens/zo%C3%AB%20x", {"token": "t"}) == (200, ["zo\u00eb x"])
    assert control.mail.tokens == {"zo\u00eb x": "t"}
    assert control.ask("DELETE", "/tokens/zo%C3%AB%20x") == (200, [])
    assert control.ask("PUT", "/tokens/zo%C3%AB%20x", {"token": "t"})[0] == 200
    assert control.ask("POST", "/messages/zo%C3%AB%20x", {"message": "x"})[0] == 201
    assert control.ask("DELETE", "/users/zo%C3%AB%20x") == (200, ["alice"])
    assert control.ask("PUT", "/users/zo%C3%AB%20x", {"password": "p"})[0] == 200
    assert (control.mail.messages("zo\u00eb x"), control.mail.tokens) == ([], {})
    assert control.ask("DELETE", "/users/zo%C3%AB%20x")[0] == 200
    assert control.ask("GET", "/users") == (200, ["alice"])


FAULT_CALLS = [
    {"fault": "fail", "command": "RETR", "code": "SYS/TEMP", "times": None, "username": "alice"},
    {"fault": "drop", "command": "RETR", "after": 1, "how": "reset"},
    {"fault": "hang_up", "command": "RETR", "how": "end"},
    {"fault": "truncate", "command": "RETR", "after": 5},
    {"fault": "delay", "command": "RETR", "seconds": "inf"},
    {"fault": "stall", "command": "RETR", "seconds": 0.5, "after": 2},
    {"fault": "drip", "command": "RETR"},
    {"fault": "split", "command": "RETR"},
    {"fault": "refuse_connection", "text": "no"},
    {"fault": "delay_greeting"},
    {"fault": "refuse_sign_in", "times": 3},
    {"fault": "lock_maildrop"},
    {"fault": "fail_commit"},
    {"fault": "spoil_sizes", "by": -1},
    {"fault": "spoil_ids", "how": "change"},
    {"fault": "hide", "capabilities": ["UIDL", "TOP"]},
]


def test_all_faults(control: Control) -> None:
    """Each fault of the kit can be asked for, and all are cleared at once."""
    assert sorted(call["fault"] for call in FAULT_CALLS) == sorted(FAULTS)
    for number, call in enumerate(FAULT_CALLS, 1):
        status, pending = control.ask("POST", "/faults", call)
        assert (status, len(pending)) == (201, number)
        assert pending[-1].startswith(f"{call['fault']}(")
    assert control.ask("DELETE", "/faults") == (200, [])
    assert control.mail.pending_faults == []


def test_reset_and_stop(control: Control) -> None:
    """A reset forgets mail, records and faults; a stop is told to whoever runs the server."""
    control.ask("POST", "/messages/alice", {"message": "x"})
    control.ask("POST", "/faults", {"fault": "fail", "command": "RETR"})
    assert control.ask("POST", "/reset") == (200, {})
    assert control.ask("GET", "/messages/alice") == (200, [])
    assert control.ask("GET", "/faults") == (200, [])
    assert not control.stopped.is_set()
    assert control.ask("POST", "/stop") == (200, {})
    assert control.stopped.is_set()


def test_wait_in_vain(control: Control) -> None:
    """It is 408 with the counts, as MailServer says them."""
    assert control.sentence("POST", "/wait", {"timeout": 0.01}) == (408, "0 sessions open, 0 ended")
    assert control.sentence("POST", "/wait", {"timeout": 0.5, "sessions": 2}) == (408, "0 sessions open, 0 ended")


# Wrong requests.


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("GET", "/ca", None, 404, "this server has no certificate: start it with --tls"),
        ("GET", "/nothing", None, 404, "there is no /nothing here"),
        ("GET", "/messages/bob", None, 404, "there is no 'bob' here"),
        ("GET", "/messages/alice/x", None, 404, "there is no 'x' here"),
        ("POST", "/messages/bob", {"message": "x"}, 404, "there is no 'bob' here"),
        ("DELETE", "/users/bob", None, 404, "there is no 'bob' here"),
        ("DELETE", "/tokens/alice", None, 404, "there is no 'alice' here"),
        ("PUT", "/tokens/bob", {"token": "x"}, 404, "there is no 'bob' here"),
        ("PUT", "/tokens/alice", {"token": 5}, 400, "a token must be a string that is not empty"),
        ("GET", "/reset", None, 405, "/reset takes POST, not GET"),
        ("DELETE", "/messages/alice", None, 405, "/messages/alice takes GET and POST, not DELETE"),
        ("POST", "/", None, 405, "/ is the page, and takes GET, not POST"),
        ("POST", "/messages/alice", {"message": 5}, 400, "a message is a JSON string, or the body itself"),
        ("POST", "/messages/alice", {}, 400, "the JSON object lacks 'message'"),
        ("POST", "/messages/alice", {"message": "x", "to": "y"}, 400, "has a member 'to', which means nothing here"),
        ("POST", "/messages/alice", {"message": "x", "unique_id": "a b"}, 400, "a unique-id is a str of 1 to 70"),
        ("POST", "/messages/alice", {"message": "x", "unique_id": 5}, 400, "a unique-id is a str of 1 to 70"),
        ("POST", "/messages/alice", ["x"], 400, "the body must be a JSON object"),
        ("PUT", "/users/bob", {"password": ""}, 400, "a password must be a string that is not empty"),
        ("PUT", "/users/bob", {"password": "a\r\nb"}, 400, "a password must have no NUL, CR or LF"),
        ("PUT", "/users/bob", {"password": "\ud800"}, 400, "a password must be text that UTF-8 can encode"),
        ("PUT", "/users/b%0Db", {"password": "x"}, 400, "a name must have no NUL, CR or LF"),
        ("PUT", "/tokens/alice", {"token": "x\0"}, 400, "a token must have no NUL, CR or LF"),
        ("PUT", "/users/bob", None, 400, "the JSON object lacks 'password'"),
        ("POST", "/faults", {"fault": "fial"}, 400, "there is no fault 'fial': it is one of delay, "),
        ("POST", "/faults", {"fault": ["drop"]}, 400, r"there is no fault \['drop'\]"),
        ("POST", "/faults", {"fault": "clear_faults"}, 400, "there is no fault 'clear_faults'"),
        ("POST", "/faults", {"fault": "_add"}, 400, "there is no fault '_add'"),
        ("POST", "/faults", {}, 400, "there is no fault None"),
        ("POST", "/faults", {"fault": "fail"}, 400, "missing a required argument: 'command'"),
        ("POST", "/faults", {"fault": "fail", "command": "RETRE"}, 400, "begins with no keyword of POP3: is it RETR"),
        ("POST", "/faults", {"fault": "fail", "command": "RETR", "aftr": 5}, 400, "keyword argument 'aftr'"),
        ("POST", "/faults", {"fault": "fail", "command": "RETR", "code": 5}, 400, "code must be a str or None, not 5"),
        ("POST", "/faults", {"fault": "fail", "command": "RETR", "username": "bob"}, 400, "there is no user 'bob' yet"),
        ("POST", "/faults", {"fault": "fail", "command": "RETR", "self": 1}, 400, "keyword argument 'self'"),
        ("POST", "/faults", {"fault": "hide", "capabilities": "UIDL"}, 400, "capabilities must be a list"),
        ("POST", "/faults", {"fault": "hide", "capabilities": [["UIDL"]]}, 400, "hide some of "),
        ("POST", "/faults", {"fault": "drop", "command": "RETR", "how": ["end"]}, 400, 'how must be "end" or "reset"'),
        ("POST", "/faults", {"fault": "spoil_ids", "how": ["repeat"]}, 400, "how must be one of"),
        ("POST", "/messages/alice?unique_id=x", {"message": "x"}, 400, "is a member of the JSON object"),
        ("POST", "/messages/alice?unique-id=x", {"message": "x"}, 400, "has 'unique-id', which means nothing here"),
        ("GET", "/messages/alice?last=1", None, 400, "the query has 'last', which means nothing here"),
        ("DELETE", "/faults", {"fault": "drop"}, 400, "has a member 'fault', which means nothing here"),
        ("DELETE", "/users/alice", {"password": "x"}, 400, "has a member 'password', which means nothing here"),
        ("POST", "/reset", {"mail": True}, 400, "has a member 'mail', which means nothing here"),
        ("POST", "/stop", ["x"], 400, "the body must be a JSON object"),
        ("PUT", "/users/%FF", {"password": "x"}, 400, "'%FF' in the path is not UTF-8"),
        ("POST", "/wait", {"sessions": True}, 400, "sessions must be a number from 0 on"),
        ("POST", "/wait", {"sessions": -5}, 400, "sessions must be a number from 0 on"),
        ("POST", "/wait", {"since_last_call": 1}, 400, "since_last_call true or false"),
        ("POST", "/wait", {"timeout": True}, 400, "timeout must be 0 to 600"),
        ("POST", "/wait", {"timeout": "long"}, 400, "timeout must be 0 to 600"),
        ("POST", "/wait", {"timeout": 601}, 400, "timeout must be 0 to 600"),
        ("POST", "/wait", {"sessions": "two"}, 400, "sessions must be a number"),
    ],
)
def test_wrong_requests(control: Control, method: str, path: str, body: Any, status: int, sentence: str) -> None:
    """What is wrong is told by a status from 400 on and a sentence, and changes nothing."""
    found = control.sentence(method, path, body)
    assert found[0] == status
    assert re.search(sentence, found[1])
    assert control.mail.pending_faults == [] and control.mail.messages("alice") == []
    assert control.mail.users == {"alice": "secret"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {}, 415),
        (b"message=x", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b"x", {"Content_Type": "text/plain"}, 415),
        (b"{", {"Content_Type": "application/json"}, 400),
        (b"\xff", {"Content_Type": "application/json"}, 400),
        (b"[" * 200_000, {"Content_Type": "application/json"}, 400),
        (b"", {"Content_Type": "message/rfc822"}, 400),
        (b"x", {"Content_Length": "-1"}, 400),
        (b"x", {"Content_Length": "1_0"}, 400),
        (b"x", {"Content_Length": "99999999999999999999"}, 413),
        (b"x", {"Content_Length": "67108865"}, 413),
        (b"x", {"Content_Type": "message/rfc822", "Content_Encoding": "gzip"}, 415),
    ],
)
def test_wrong_bodies(control: Control, body: bytes, headers: dict[str, str], status: int) -> None:
    """A body must be what its header says, and not too large."""
    assert control.sentence("POST", "/messages/alice", body, **headers)[0] == status


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PATCH /users HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS /reset HTTP/1.1\r\nHost: localhost\r\nOrigin: http://x.example\r\n\r\n", 405),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /users HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (
            b"POST /messages/alice HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-token\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
    ],
)
def test_what_is_no_request(control: Control, octets: bytes, status: int) -> None:
    """What the standard library finds wrong is told in the same way, and no header lets another page in."""
    answer = control.raw(octets)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert list(json.loads(body)) == ["error"]
    assert b"Access-Control" not in head


@pytest.mark.parametrize(
    ("request_line", "allow"),
    [
        ("GET /reset", "POST"),
        ("DELETE /messages/alice", "GET, POST"),
        ("PATCH /faults?x", "GET, POST, DELETE"),
        ("HEAD /users", "GET"),
        ("PATCH /", "GET"),
    ],
)
def test_wrong_methods(control: Control, request_line: str, allow: str) -> None:
    """A method that is not taken is told which ones are, and HEAD gets no body (RFC 9110 sections 9.3.2 and 15.5.6)."""
    head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-token\r\n\r\n"
    found, _, body = control.raw(head.encode()).decode().partition("\r\n\r\n")
    assert found.startswith("HTTP/1.1 405 ") and f"\r\nAllow: {allow}\r\n" in f"{found}\r\n"
    assert (body == "") is request_line.startswith("HEAD")
    assert control.raw(head.replace(request_line, "PATCH /x").encode()).startswith(b"HTTP/1.1 404 ")


def test_two_lengths(control: Control) -> None:
    """A body whose length is said twice, and not the same, is not guessed at (RFC 9112 section 6.3)."""
    head = WITH_TOKEN + b"Content-Length: 1\r\nContent-Length: %d\r\n\r\nx"
    assert b" 400 " in control.raw(head % 2)[:15]
    assert control.mail.messages("alice") == []
    assert b" 201 " in control.raw(head % 1)[:15]


def test_half_a_body(control: Control) -> None:
    """A client that ends its stream too early is told so, and nothing is delivered."""
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock:
        sock.sendall(
            b"POST /messages/alice HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-token\r\n"
            b"Content-Type: message/rfc822\r\nContent-Length: 100\r\n\r\nSubject: x\r\n"
        )
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            assert file.readline() == b"HTTP/1.1 400 Bad Request\r\n"
            assert json.loads(file.read().partition(b"\r\n\r\n")[2]) == {
                "error": "the body is shorter than its Content-Length"
            }
    assert control.mail.messages("alice") == []


HEAD = b"POST /messages/alice HTTP/1.1\r\nHost: localhost\r\nContent-Type: message/rfc822\r\n"
WITH_TOKEN = HEAD + b"Authorization: Bearer a-token\r\n"


def test_a_body_that_does_not_come(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has one deadline, however slowly its octets come; a body that lacks some is told so."""
    monkeypatch.setattr("popart.testing.control.REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(WITH_TOKEN + b"Content-Length: 100\r\n\r\nSubject: x\r\n")
        assert file.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        assert json.loads(file.read().partition(b"\r\n\r\n")[2]) == {
            "error": "the body does not come, or is shorter than its Content-Length"
        }
    ended, begin = threading.Event(), time.monotonic()
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock:

        def drip() -> None:
            with suppress(OSError):
                while not ended.wait(0.05):
                    sock.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        ended.set()
        dripping.join()
    assert 0.2 < time.monotonic() - begin < 10
    assert control.mail.messages("alice") == []


def test_a_body_is_asked_for_last(control: Control) -> None:
    """A client that waits for 100 reads why it is refused instead, and need not send what is not taken."""
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert file.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(WITH_TOKEN + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
        assert (file.readline(), file.readline()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        sock.sendall(b"a\r\n")
        assert file.readline() == b"HTTP/1.1 201 Created\r\n"
    assert control.mail.messages("alice") == [b"a\r\n"]


def test_a_body_that_is_much_too_long(control: Control) -> None:
    """A client that sends all of it first reads why it is refused."""
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(WITH_TOKEN + b"Content-Length: 100000000\r\n\r\n")
        piece = b"x" * 1_000_000
        for _ in range(100):
            sock.sendall(piece)
        assert file.readline().startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_refused_client_that_stays(is_silent: bool, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for until it has been silent for a second, and no longer than a request may take."""
    monkeypatch.setattr("popart.testing.control.LAST_SECONDS", 0.2 if is_silent else 600.0)
    monkeypatch.setattr("popart.testing.control.REQUEST_SECONDS", 600.0 if is_silent else 2.0)
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(HEAD + b"\r\n")
        assert file.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
        file.read()

        def has_ended() -> bool:
            if not is_silent:
                with suppress(ConnectionError):
                    sock.sendall(b"x")
            return not control.control._open

        wait_until(has_ended)


def test_without_tokens_for_mail() -> None:
    """A server that takes no OAuth tokens refuses them here too, and says what to do."""
    with MailServer() as mail, closing(_control(mail)) as made:
        found = Control(made, mail, threading.Event()).sentence("PUT", "/tokens/alice", {"token": "x"})
        assert found == (409, "this server takes no tokens: start it with --oauth")


def _control(mail: MailServer, address: str = "127.0.0.1") -> ControlServer:
    return ControlServer((address, 0), mail, {}, token=TOKEN, hosts=[], stop=lambda: None)


# Who may ask.

CHANGES = [
    ("POST", "/messages/alice"),
    ("PUT", "/users/alice"),
    ("DELETE", "/users/alice"),
    ("PUT", "/tokens/alice"),
    ("DELETE", "/tokens/alice"),
    ("POST", "/faults"),
    ("DELETE", "/faults"),
    ("POST", "/reset"),
    ("POST", "/wait"),
    ("POST", "/stop"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic a-token", "a-token", "Bearer \xe9"])
def test_changes_need_the_token(control: Control, method: str, path: str, given: str) -> None:
    """Nothing is changed without it."""
    status, text = control.sentence(method, path, {"message": "x"}, Authorization=given)
    assert (status, text) == (401, "this needs the header Authorization: Bearer TOKEN, with the server's token")
    assert control.mail.messages("alice") == [] and not control.stopped.is_set()


def test_reading_at_home(control: Control) -> None:
    """On loopback reading needs no token; who may change is asked by it alone, in any case of its scheme."""
    for path in ("/server", "/users", "/messages", "/commands", "/errors", "/sessions", "/transcript", "/faults"):
        assert control.ask("GET", path, Authorization="")[0] == 200
    assert control.ask("POST", "/reset", Authorization="bearer  a-token")[0] == 200


def test_reading_from_elsewhere() -> None:
    """Beyond loopback reading needs the token as well; only the page, which holds nothing, does not."""
    with MailServer() as mail, closing(_control(mail, "0.0.0.0")) as made:
        control = Control(made, mail, threading.Event())
        assert control.sentence("GET", "/messages", Authorization="")[0] == 401
        assert control.ask("GET", "/messages")[0] == 200
        assert control.ask("GET", "/", Authorization="") == (200, PAGE)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1234", 200),
        ("10.1.2.3", 200),
        ("[::1]:80", 200),
        ("[::1]", 200),
        ("pop.example", 200),
        ("POP.example:99", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil@localhost", 403),
        ("localhost:80:80", 403),
        ("localhost:x", 403),
        ("", 403),
    ],
)
def test_hosts(control: Control, host: str, status: int) -> None:
    """Only names that are known here are answered, even for the page: another's name may lead to this address (DNS
    rebinding)."""
    for path in ("/users", "/"):
        raw = control.raw(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert raw.startswith(b"HTTP/1.1 %d " % status)
    for hosts in (b"Host: localhost\r\nHost: x\r\n", b"Host:\r\n", b""):
        answer = control.raw(b"GET /users HTTP/1.1\r\n" + hosts + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ") and b"send the header Host, once" in answer
    assert control.raw(b"GET /users HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:80", 200),
        ("http://localhost", 403),
        ("https://localhost:80", 403),
        ("http://127.0.0.1:80", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ],
)
def test_origins(control: Control, origin: str, status: int) -> None:
    """A page of another origin is refused, even if it knows the token."""
    assert control.ask("POST", "/reset", Host="localhost:80", Origin=origin)[0] == status
    assert control.ask("GET", "/users", Host="localhost:80", Origin=origin)[0] == status


def test_headers(control: Control) -> None:
    """A message is text for every browser, nothing is kept in caches, and the page runs its own script alone."""
    unique_id = control.mail.deliver("alice", b"<script>alert(1)</script>")
    heads = {}
    for path in ("/", f"/messages/alice/{unique_id}"):
        head, _, body = control.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
        heads[path] = head.decode()
        assert "X-Content-Type-Options: nosniff\r\n" in heads[path]
        assert "Cache-Control: no-store\r\n" in heads[path]
        assert "frame-ancestors 'none'" in heads[path]
        assert TOKEN not in heads[path] and TOKEN.encode() not in body
        assert "unsafe" not in heads[path]
    page, message = heads.values()
    assert "script-src 'sha256-" in page
    assert "Content-Type: text/plain" in message and "; sandbox" in message and "script-src" not in message


def test_the_page_makes_text_of_everything() -> None:
    """It has no way to make HTML of what it is given, and asks nobody but its server."""
    page = PAGE.decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "srcdoc"):
        assert way not in page
    assert not re.search(r"https?:|src=|href=", page)


# Its end.


def test_closing_ends_what_waits() -> None:
    """A request that waits, a client that is silent and one that does not read do not keep it."""
    with MailServer() as mail:
        made = _control(mail)
        control = Control(made, mail, threading.Event())
        results: list[Any] = []
        waiting = threading.Thread(
            target=lambda: results.append(control.ask("POST", "/wait", {"timeout": 100, "sessions": 5}))
        )
        with socket.create_connection(("127.0.0.1", made.port), PATIENCE):
            waiting.start()
            wait_until(lambda: len(made._open) == 2)
            begin = time.monotonic()
            made.close()
            assert time.monotonic() - begin < 8
        waiting.join()
    assert results[0][0] == 408


def test_too_many_connections() -> None:
    """More than a hundred at a time are closed at once, and it goes on."""
    with MailServer() as mail, closing(_control(mail)) as made:
        sockets = [socket.create_connection(("127.0.0.1", made.port), PATIENCE) for _ in range(101)]
        assert sockets[100].recv(1) == b""
        for sock in sockets:
            sock.close()
        wait_until(lambda: not made._open)
        assert Control(made, mail, threading.Event()).ask("GET", "/users")[0] == 200


def test_no_descriptors(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no connection can be accepted, the server tries again ten times a second, and not as often as it can."""
    times: list[float] = []
    enough = threading.Event()

    def accept(self: socket.socket) -> Any:
        times.append(time.monotonic())
        if len(times) < 4:
            raise OSError(errno.EMFILE, "no descriptors")
        enough.set()
        return real(self)

    real = socket.socket.accept
    monkeypatch.setattr(socket.socket, "accept", accept)
    assert control.ask("GET", "/users")[0] == 200
    assert enough.wait(PATIENCE)
    assert times[3] - times[0] > 0.25


# The program.


FIRST_LINE = {"version", "url", "host", "port", "tls", "ca_file", "users", "control", "token", "page"}
"""The members of the first line."""


def test_the_first_line(tmp_path: Path) -> None:
    """The first line is JSON and tells all that one needs; then the program says nothing more, and ends by a stop."""
    message = tmp_path / "message.eml"
    message.write_bytes(b"Subject: x\n\nhello\n")
    with program("--user", "bob:a:b", "--user", "carol:c", str(message), stderr=subprocess.PIPE) as running:
        first = running.first
        assert first == {
            "version": popart.__version__,
            "url": f"pop3://127.0.0.1:{first['port']}",
            "host": "127.0.0.1",
            "port": first["port"],
            "tls": False,
            "ca_file": None,
            "users": {"bob": "a:b", "carol": "c"},
            "control": first["control"],
            "token": first["token"],
            "page": f"{first['control']}/#{first['token']}",
        }
        assert set(first) == FIRST_LINE
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", first["control"])
        assert len(first["token"]) >= 20
        client = poplib.POP3("127.0.0.1", first["port"], timeout=PATIENCE)
        client.user("bob")
        client.pass_("a:b")
        assert client.stat() == (1, 21)
        client.quit()
        assert running.ask("GET", "/messages") == (
            200, {"bob": running.ask("GET", "/messages/bob")[1], "carol": []},
        )  # fmt: skip
        facts = running.ask("GET", "/server")[1]
        assert facts["users"] == ["bob", "carol"] and "token" not in facts and "page" not in facts
        assert running.ask("POST", "/stop") == (200, {})
        assert running.end() == 0
        assert running.process.communicate() == ("", "")


def test_options() -> None:
    """TLS, ports, the token, limits and ways to sign in are options."""
    pytest.importorskip("trustme")
    with program("--tls", "--token", "mine", "--timeout", "2", "--max-failed-logins", "none", "--max-messages", "7",
                 "--oauth", "--scram", "--user-token", "alice:t") as running:  # fmt: skip
        first = running.first
        assert (first["tls"], first["host"], first["token"]) == (True, "localhost", "mine")
        context = ssl.create_default_context(cafile=first["ca_file"])
        client = poplib.POP3_SSL("localhost", first["port"], timeout=PATIENCE, context=context)
        assert client.capa()["SASL"] == ["SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN"]
        with pytest.raises(poplib.error_proto, match="EOF"):
            client._getresp()  # type: ignore[attr-defined]  # logged out after two seconds
        client.close()
        running.ask("POST", "/stop")
        assert running.end() == 0
        assert not os.path.lexists(first["ca_file"])


def test_limits_are_options() -> None:
    """Each limit of the server has its option, and reaches the server."""
    names = ["max_connections", "max_connections_per_peer", "max_bad_commands", "max_failed_logins", "max_messages"]
    times = ["handshake_timeout", "login_timeout", "shutdown_grace"]
    for name in [*names, *times]:
        for text, value in (("7", 7), ("none", None)):
            parsed = make_parser().parse_args([f"--{name.replace('_', '-')}", text])
            assert getattr(parsed, name) == value
    with program("--max-bad-commands", "1") as running:
        with socket.create_connection(("127.0.0.1", running.first["port"]), PATIENCE) as sock:
            sock.sendall(b"X\r\nX\r\n")
            with sock.makefile("rb") as file:
                assert file.read().count(b"\r\n") == 2


def test_another_host() -> None:
    """With --host it listens there, and may be called by that name and the others that are allowed."""
    pytest.importorskip("trustme")
    with program("--host", "0.0.0.0", "--allow-host", "mail", "--tls") as running:
        first = running.first
        assert first["url"] == f"pop3s://0.0.0.0:{first['port']}"
        context = ssl.create_default_context(cafile=first["ca_file"])
        assert running.ask("GET", "/ca") == (200, Path(first["ca_file"]).read_bytes())
        for name in ("mail", "127.0.0.1"):
            with (
                socket.create_connection(("127.0.0.1", first["port"]), PATIENCE) as raw,
                context.wrap_socket(raw, server_hostname=name),
            ):
                pass
        assert running.ask("GET", "/users", Host="mail")[0] == 200
        assert running.ask("GET", "/users", Host="other")[0] == 403


@pytest.mark.parametrize(
    "options",
    [["--user", "alice"], ["--user", ":x"], ["--timeout", "soon"], ["--max-messages", "-1"], ["--control-port", "x"],
     ["--user-token", "alice:"], ["--user-token", "bob:x"], ["--tok", "abbreviated"],
     ["--host", ""], ["--allow-host", ""], ["--token", ""], ["--token", "100%"], ["--token", "a b"]],
)  # fmt: skip
def test_bad_options(options: list[str]) -> None:
    """What cannot be is told on stderr, with exit code 2."""
    command = [sys.executable, "-m", "popart.testing", "--control", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "python3 -m popart.testing: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--token", "x"], "--token needs --control"),
        (["--control-port", "1100"], "--control-port needs --control"),
        (["--allow-host", "mail"], "--allow-host needs --control"),
        (["--user", "a:x", "--user", "a:y"], "--user gives one name twice"),
        (["--control", "--user-token", "alice:x", "--user-token", "alice:y"], "--user-token gives one name twice"),
    ],
)
def test_options_without_effect(options: list[str], sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An option that would do nothing, or undo another, is refused."""
    with pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    assert capfd.readouterr().err.endswith(f": error: {sentence}\n")


def test_a_control_port_that_is_taken(control: Control) -> None:
    """The error says which of the two ports cannot be had."""
    port = str(control.control.port)
    command = [sys.executable, "-m", "popart.testing", "--control", "--control-port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert f"python3 -m popart.testing: --control-port {port}: " in done.stderr


@needs_signals
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_a_terminal_that_is_closed(ignored: bool) -> None:
    """SIGHUP ends it and leaves no file behind; under nohup it goes on."""
    pytest.importorskip("trustme")
    how = "SIG_IGN" if ignored else "SIG_DFL"  # not what these tests were started with
    begin = f"import os, signal, sys; signal.signal(signal.SIGHUP, signal.{how}); os.execv"
    command = [sys.executable, "-m", "popart.testing", "--tls", "--control"]
    run = [sys.executable, "-c", f"{begin}(sys.argv[1], sys.argv[1:])", *command]
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            running = Program(process, process.stdout.readline())
            process.send_signal(signal.SIGHUP)
            if ignored:
                assert running.ask("GET", "/users")[0] == 200
                process.send_signal(signal.SIGTERM)
            assert running.end() == 0
            assert not Path(running.first["ca_file"]).exists()
        finally:
            process.kill()


def test_verbose() -> None:
    """With --verbose the conversation goes to stderr as it happens, and the first line of stdout is the only one."""
    with program("--verbose", stderr=subprocess.PIPE) as running:
        assert running.process.stderr is not None
        client = poplib.POP3("127.0.0.1", running.first["port"], timeout=PATIENCE)
        client.user("alice")
        lines = [running.process.stderr.readline() for _ in range(3)]
        assert [re.sub(r"\d\d:\d\d:\d\d\.\d\d\d", "T", line) for line in lines] == [
            "1 T S: +OK POP3 server ready\n",
            "1 T C: USER alice\n",
            "1 T S: +OK send PASS\n",
        ]
        client.quit()
        client.close()
        running.ask("POST", "/reset")
        poplib.POP3("127.0.0.1", running.first["port"], timeout=PATIENCE).close()
        assert "2 " in {running.process.stderr.readline()[:2] for _ in range(5)}, "a reset does not mix sessions up"
        running.ask("POST", "/stop")
        assert running.end() == 0
        assert running.process.stdout is not None and running.process.stdout.read() == ""


def test_stopped_twice() -> None:
    """A stop and signals that come together end it once, and all of it."""
    for _ in range(3):
        with program(stderr=subprocess.PIPE) as running:
            running.ask("POST", "/stop")
            for _ in range(5):
                running.process.send_signal(signal.SIGTERM)
                running.process.send_signal(signal.SIGINT)
            assert running.end() == 0
            assert running.process.communicate() == ("", "")


FLOOD = b"NOOP\r\n" * 1000


@pytest.mark.parametrize("options", [[], ["--verbose"], ["--control", "--verbose"]])
def test_nobody_reads(options: list[str]) -> None:
    """A parent that stops reading freezes nothing: sessions go on, and SIGTERM ends the program."""
    command = [sys.executable, "-m", "popart.testing", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.search(r"pop3://127\.0\.0\.1:(\d+)", first)
            assert found is not None
            with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as sock:
                sock.sendall(b"USER alice\r\nPASS secret\r\n")
                with sock.makefile("rb") as file:
                    for _ in range(3):
                        file.readline()
                    for _ in range(10):  # more than a pipe holds
                        sock.sendall(FLOOD)
                        for _ in range(1000):
                            assert file.readline().startswith(b"+OK")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_the_parent_is_gone() -> None:
    """With --exit-with-parent it ends when the process that started it has ended, however that ended."""
    starter = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-m', 'popart.testing', '--control', '--exit-with-parent'])\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = json.loads(parent.stdout.readline())["port"]
        with socket.create_connection(("127.0.0.1", port), PATIENCE):
            pass
        parent.kill()
        assert parent.stdout.read() == ""  # the end of the child, too, has this pipe open
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)


@needs_signals
def test_the_parent_on_windows(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """There a process cannot tell that its parent is gone, and the program says so."""
    monkeypatch.setattr(sys, "platform", "win32")
    run_main(["--exit-with-parent"], lambda shell: [shell.line()], signal.SIGINT)
    assert "--exit-with-parent does nothing on Windows: end the server by POST /stop" in capfd.readouterr().err


def test_records_are_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    """The program listens for days: it keeps the last ten thousand commands, of a session and of all, cut to what a
    command can be, and the last hundred sessions; an error keeps nothing of its session alive."""
    options = make_parser().parse_args(["--control"])
    with Output(sys.stdout) as output, CommandLineServer(options, {"max_bad_commands": None}, output) as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock, sock.makefile("rb") as file:
            file.readline()
            sock.sendall(b"X" * 900 + b" y" * 40 + b"\r\n")
            file.readline()
            assert server.commands[0] == ("", "X" * 200, *["y"] * 6)
            for _ in range(11):
                sock.sendall(b"USER alice\r\n" * 1000)
                for _ in range(1000):
                    file.readline()
        server.wait_for_session_end()
        assert len(server.commands) == len(server.sessions[0].commands) == 10_000
        assert (type(server.errors[0]), server.errors[0].__traceback__) == (popart.ClientGoneError, None)
        for _ in range(110):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE):
                pass
        server.wait_for_session_end(sessions=111)
        assert [session.number for session in server.sessions] == [*range(12, 112)]
    assert capfd.readouterr() == ("", "")


def test_output_that_nobody_reads() -> None:
    """Lines that nobody reads are left out, and how many is told to who reads again."""
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as file, open(writing, "w", encoding="utf-8") as stream:
        with Output(stream) as output:
            for number in range(20_000):
                output.print(f"{number} {'x' * 100}")
            seen = [file.readline() for _ in range(5_000)]  # now the queue has room
            output.print("after")
            while seen[-1] != "after\n":
                seen.append(file.readline())
        left_out = [
            int(found[1])
            for line in seen
            if (found := re.fullmatch(r"\.\.\. (\d+) lines left out, because nobody read them\n", line))
        ]
        kept = [int(line.split()[0]) for line in seen if line.endswith("x\n")]
        assert kept == sorted(set(kept))
        assert len(kept) + sum(left_out) == 20_000
        assert sum(left_out) > 5_000
        assert len(kept) + len(left_out) + 1 == len(seen)


def test_output_whose_reader_has_gone() -> None:
    """It is thrown away."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream, Output(stream) as output:
        for number in range(3):
            output.print(str(number))
    with suppress(BrokenPipeError):
        stream.close()


def test_no_output_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs with its output closed from the beginning, as by ``>&-``: the lines are dropped."""
    lines: list[str] = []

    def stop_at_once(server: MailServer, options: Any, stop: threading.Event, block: Any) -> str:
        stop.set()
        lines.append(server.url)
        return lines[0]

    monkeypatch.setattr("popart.testing.__main__.begin_control", stop_at_once)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with signals_kept():
        main(["--control", "--verbose"])
    assert lines


def test_the_page_of_the_manual() -> None:
    """howto-control: its table has each operation, and its options are those of the program."""
    text = (ROOT / "docs" / "howto-control.rst").read_text("utf-8")
    table = re.findall(r"^``([A-Z]+ /[\w/]*)`` ", text, re.MULTILINE)
    routes = [f"{method} {path.replace('([^/]+)', 'NAME')}" for path, operations in ROUTES for method in operations]
    assert sorted(table) == sorted(routes)
    (line,) = re.findall(r"\$ python3 -m popart.testing --control\n(.*?)\n\n", text, re.DOTALL)
    assert set(json.loads(line)) == FIRST_LINE
    known = set(re.findall(r"--[a-z-]+", make_parser().format_help()))
    assert set(re.findall(r"(?<!-)--[a-z][a-z-]*", text)) <= known


def test_the_kits_own_fault(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """What should not be is a 500 with the error, and the next request is answered."""

    def fail() -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(control.mail, "reset", fail)
    assert control.sentence("POST", "/reset") == (500, "ZeroDivisionError: x")
    assert control.ask("GET", "/users") == (200, ["alice"])


def test_a_client_that_does_not_wait(control: Control) -> None:
    """Who leaves before the answer disturbs nobody, and is not told about."""
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(b"GET /users HTTP/1.1\r\nHost: localhost\r\n")
    wait_until(lambda: not control.control._open)
    assert control.ask("GET", "/users") == (200, ["alice"])


def test_in_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    """The program, over IPv6, told by its interface to stop."""
    if not has_ipv6():
        pytest.skip("no IPv6")

    def user(shell: Shell) -> None:
        first = json.loads(shell.line())
        assert first["url"] == f"pop3://[::1]:{first['port']}"
        assert first["control"].startswith("http://[::1]:")
        client = poplib.POP3("::1", first["port"], timeout=PATIENCE)
        client.quit()
        client.close()
        connection = http.client.HTTPConnection("::1", int(first["control"].rpartition(":")[2]), PATIENCE)
        assert request(connection, "POST", "/stop", Authorization="Bearer mine") == (200, {})

    run_main(["--control", "--verbose", "--host", "::1", "--token", "mine"], user, signal.SIGINT)
    out, err = capfd.readouterr()
    assert out == "" and "C: QUIT" in err


@pytest.mark.parametrize(
    ("options", "why"),
    [(["--user", "alice"], "not a name and a"), (["--max-messages", "x"], "invalid"), (["--timeout", "0"], "timeout"),
     (["--timeout", "none"], "invalid")],
)  # fmt: skip
def test_bad_options_in_this_process(options: list[str], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What cannot be is told in a sentence."""
    with signals_kept(), pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    assert why in capfd.readouterr().err


def test_output_to_a_pipe_that_does_not_block() -> None:
    """A parent may share such a pipe: it is waited for, by the output's own thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, encoding="utf-8") as file, open(writing, "w", encoding="utf-8") as stream:
        with Output(stream) as output:
            for number in range(5_000):
                output.print(f"{number} {'x' * 100}")
            for number in range(5_000):
                assert file.readline() == f"{number} {'x' * 100}\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "sentence"),
    [
        ("POST", "/messages/alice", {}, "the JSON object lacks 'message'"),
        (
            "POST",
            "/reset",
            {"mail": 1, "users": 2},
            "the JSON object has a member 'mail', which means nothing here",
        ),
        ("POST", "/reset", b"{}", "send JSON, with the header Content-Type: application/json"),
        ("POST", "/reset", ["x"], "the body must be a JSON object"),
        ("GET", "/ca", None, "this server has no certificate: start it with --tls"),
        ("GET", "/nothing", None, "there is no /nothing here"),
        ("GET", "/messages/bob", None, "there is no 'bob' here"),
        (
            "POST",
            "/messages/alice?unique_id=x",
            {"message": "x"},
            "the unique_id of a message in JSON is a member of the JSON object",
        ),
        (
            "POST",
            "/messages/alice",
            {"message": 5},
            "a message is a JSON string, or the body itself as message/rfc822",
        ),
        ("POST", "/faults", {"fault": "hide", "capabilities": "TOP"}, "capabilities must be a list of strings"),
        ("POST", "/wait", {"timeout": 601}, "timeout must be 0 to 600.0 seconds"),
        (
            "POST",
            "/wait",
            {"sessions": -1},
            "sessions must be a number from 0 on, and since_last_call true or false",
        ),
    ],
)
def test_what_a_wrong_request_is_told(control: Control, method: str, path: str, body: Any, sentence: str) -> None:
    """The sentence says what is wrong with the request, and what is right."""
    assert control.sentence(method, path, body)[1] == sentence


def test_what_is_no_json(control: Control) -> None:
    """The sentence is the interface's, not that of whatever reads JSON."""
    for body in (b"{", b"\xff", b"[" * 200_000):
        found = control.sentence("POST", "/reset", body, Content_Type="application/json")
        assert found == (400, "the body is not JSON in UTF-8")


def test_what_is_said_of_the_server(control: Control) -> None:
    """GET /server returns the facts that it was given."""
    assert control.ask("GET", "/server") == (200, {"version": "x"})


def test_only_a_wrong_method_names_others(control: Control) -> None:
    """Allow comes with 405 alone (RFC 9110 section 15.5.6)."""
    found = control.raw(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 404 ") and b"\r\nAllow:" not in found


@pytest.fixture
def waits(control: Control, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the server was asked to wait each time, in vain, by a clock that moves as asked."""
    timeouts: list[float] = []

    def wait_for_session_end(timeout: float, **options: Any) -> None:
        assert options == {"sessions": 1, "since_last_call": False}
        timeouts.append(timeout)
        raise TimeoutError("0 sessions open, 0 ended, after a while")

    monkeypatch.setattr(control.mail, "wait_for_session_end", wait_for_session_end)
    monkeypatch.setattr(operations, "time", SimpleNamespace(monotonic=lambda: sum(timeouts)))
    return timeouts


def test_how_long_to_wait(control: Control, waits: list[float]) -> None:
    """It is ten seconds unless the request says otherwise, and ten minutes at most.  Every fifth of a second it looks
    whether the server is stopping."""
    for body, most in ((None, 10), ({"timeout": 600}, 600), ({"timeout": 0.5}, 0.5), ({"timeout": 0}, 0)):
        assert control.sentence("POST", "/wait", body) == (408, "0 sessions open, 0 ended")
        assert sum(waits) == pytest.approx(most)
        assert max(waits) <= 0.2 and len(waits) <= 5 * most + 2
        waits.clear()
    assert control.sentence("POST", "/wait", {"timeout": 0.2}) == (408, "0 sessions open, 0 ended")
    assert waits == [0.2]


def test_a_wait_goes_on(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts until sessions have ended, if the server is not stopping."""
    asked = threading.Semaphore(0)
    wait = control.mail.wait_for_session_end

    def wait_for_session_end(timeout: float, **options: Any) -> None:
        asked.release()
        wait(timeout, **options)

    monkeypatch.setattr(control.mail, "wait_for_session_end", wait_for_session_end)
    found = []
    thread = threading.Thread(target=lambda: found.append(control.ask("POST", "/wait")))
    thread.start()
    for _ in range(2):
        assert asked.acquire(timeout=PATIENCE)
    with pop(control.mail):
        pass
    thread.join(PATIENCE)
    assert found == [(200, {})]


def test_a_wait_for_no_session(control: Control) -> None:
    """With 0 *sessions* it waits only for those that are open."""
    assert control.ask("POST", "/wait", {"sessions": 0, "timeout": 0}) == (200, {})


def test_errors_and_texts(control: Control) -> None:
    """An error is its type and its text; a conversation is text in UTF-8, whatever is in it."""
    with pop(control.mail):
        pass
    control.mail.wait_for_session_end()
    (error,) = control.mail.errors
    assert control.ask("GET", "/errors") == (200, [{"type": "ClientGoneError", "text": str(error)}])
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(b"GET /transcript HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in file.read()


def test_an_empty_message(control: Control) -> None:
    """Octets that are a message are at least one: nothing at all is more likely a mistake."""
    found = control.sentence("POST", "/messages/alice", b"", Content_Type="message/rfc822")
    assert found == (400, "the body is the message, and it is empty")


def test_the_ca_file_is_pem() -> None:
    """GET /ca returns the file, and its type."""
    pytest.importorskip("trustme")
    with MailServer(tls=True) as mail:
        made = ControlServer(("127.0.0.1", 0), mail, {}, token=TOKEN, hosts=[], stop=lambda: None)
        with closing(made):
            connection = http.client.HTTPConnection("127.0.0.1", made.port, PATIENCE)
            with closing(connection):
                connection.request("GET", "/ca")
                answer = connection.getresponse()
                assert answer.headers["Content-Type"] == "application/x-pem-file"
                assert mail.ca_file is not None
                assert answer.read() == Path(mail.ca_file).read_bytes()


@pytest.mark.parametrize(
    ("octets", "sentence"),
    [
        (b"GET /users HTTP/1.1\r\n\r\n", "send the header Host, once"),
        (
            b"GET /users HTTP/1.1\r\nHost: Evil.example:80\r\n\r\n",
            "the host 'evil.example:80' is not known here: allow it with --allow-host",
        ),
        (
            b"GET /users HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n",
            "other web pages may not use this interface",
        ),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", "this is no URL"),
        (
            b"POST /reset HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "this needs the header Authorization: Bearer TOKEN, with the server's token",
        ),
        (HEAD.replace(b"POST", b"PUT"), "/messages/alice takes GET and POST, not PUT"),
        (HEAD.replace(b"/messages/alice", b"/"), "/ is the page, and takes GET, not POST"),
        (WITH_TOKEN.replace(b"alice", b"%FF"), "'%FF' in the path is not UTF-8"),
        (WITH_TOKEN + b"Transfer-Encoding: chunked\r\n\r\n", "send the body in one piece, with its Content-Length"),
        (WITH_TOKEN + b"Content-Encoding: gzip\r\n\r\n", "send the body as it is, without Content-Encoding"),
        (
            WITH_TOKEN + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "there are two lengths of the body: send one Content-Length",
        ),
        (WITH_TOKEN + b"Content-Length: +1\r\n\r\n", "Content-Length is no number"),
        (WITH_TOKEN + b"Content-Length: 67108865\r\n\r\n", "the body has more than 67108864 octets"),
    ],
)
def test_what_is_refused_before_its_body(control: Control, octets: bytes, sentence: str) -> None:
    """The sentence says what is wrong with the head of a request, and what is right."""
    if not octets.endswith(b"\r\n\r\n"):
        octets += b"Authorization: Bearer a-token\r\n\r\n"
    body = control.raw(octets).partition(b"\r\n\r\n")[2]
    assert json.loads(body) == {"error": sentence}


def test_all_headers(control: Control) -> None:
    """Each answer has these, so that no browser takes it for a page, keeps it, or lets another page in."""
    common = [
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    closed = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    for request_line, status, kind, policy, more in (
        ("GET /users", "200 OK", "application/json", f"{closed}; sandbox", []),
        ("POST /reset", "401 Unauthorized", "application/json", f"{closed}; sandbox", ["WWW-Authenticate: Bearer"]),
        ("PUT /", "405 Method Not Allowed", "application/json", f"{closed}; sandbox", ["Allow: GET"]),
        ("GET /", "200 OK", "text/html; charset=utf-8", PAGE_POLICY, []),
    ):
        token = "Authorization: Bearer a-token\r\n" if request_line == "PUT /" else ""
        answer = control.raw(f"{request_line} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first == f"HTTP/1.1 {status}"
        assert [line for line in lines if not line.startswith(("Date:", "Server:"))] == [
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            f"Content-Security-Policy: {policy}",
            *common,
            *more,
        ]
        assert [line.rstrip() for line in lines if line.startswith("Server:")] == ["Server: popart.testing"]
    digest = "'sha256-[A-Za-z0-9+/]{43}='"
    assert re.fullmatch(f"{closed}; connect-src 'self'; script-src {digest}; style-src {digest}", PAGE_POLICY)


def test_lines_left_out_are_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are told before the next line that has room, whatever characters the lines have."""
    written: list[bytes] = []
    begun, may_go_on = threading.Event(), threading.Event()

    def write(descriptor: int, octets: bytes) -> int:
        begun.set()
        may_go_on.wait(PATIENCE)
        written.append(octets)
        return len(octets)

    monkeypatch.setattr(output, "os", SimpleNamespace(write=write))
    monkeypatch.setattr(output, "MOST_LINES", 2)
    with open(tmp_path / "unused", "w") as stream, Output(stream) as lines:
        lines.print("a\udcff")
        assert begun.wait(PATIENCE)
        for line in ("b", "c", "d", "e"):
            lines.print(line)
        may_go_on.set()
        wait_until(lambda: len(written) == 3)
        lines.print("f")
        wait_until(lambda: len(written) == 5)
        lines.print("g")
    assert written == [
        b"a\\udcff\n",
        b"b\n",
        b"c\n",
        b"... 2 lines left out, because nobody read them\n",
        b"f\n",
        b"g\n",
    ]


def test_output_waits_for_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe that does not block is not asked again before it has room."""
    calls: list[Any] = []

    def write(descriptor: int, octets: bytes) -> int:
        calls.append(octets)
        if len(calls) == 1:
            raise BlockingIOError
        return len(octets)

    monkeypatch.setattr(output, "os", SimpleNamespace(write=write))
    monkeypatch.setattr(output, "select", SimpleNamespace(select=lambda *lists: calls.append(lists)))
    with open(tmp_path / "unused", "w") as stream:
        with Output(stream) as lines:
            lines.print("a")
        assert calls == [b"a\n", ([], [stream.fileno()], []), b"a\n"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--user", "x"], "argument --user: 'x' is not a name and a secret with a colon between them"),
        (["--user-token", "x:"], "argument --user-token: 'x:' is not a name and a secret with a colon between them"),
        (["--host", ""], "argument --host: it must not be empty"),
        (["--allow-host", ""], "argument --allow-host: it must not be empty"),
        (["--token", "a b"], "argument --token: a token is letters, digits and ._~+/-, with = at its end alone"),
        (["--token", "="], "argument --token: a token is letters, digits and ._~+/-, with = at its end alone"),
    ],
)
def test_what_a_wrong_option_is_told(options: list[str], sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The sentence says what is wrong with the option, and what is right."""
    with pytest.raises(SystemExit) as end:
        main(["--control", *options])
    assert end.value.code == 2
    assert capfd.readouterr().err.endswith(f"\npython3 -m popart.testing: error: {sentence}\n")


HELP = {
    "--port": "N: TCP port (default: any free one)",
    "--tls": "TLS from the first octet, with a certificate of its own",
    "--user": "NAME:PASSWORD: a user; may be repeated (default: alice:secret)",
    "messages": "MESSAGE.eml: a message for the first user",
    "--apop": "offer APOP",
    "--scram": "offer AUTH SCRAM-SHA-256",
    "--login": "offer AUTH LOGIN",
    "--oauth": "offer AUTH XOAUTH2 and OAUTHBEARER",
    "--user-token": "NAME:TOKEN: a user's OAuth 2.0 token; may be repeated, and means --oauth",
    "--control": "an HTTP interface; the first line of the output is JSON",
    "--control-port": "N: its TCP port (default: any free one)",
    "--token": "what each request that changes something must carry (default: a random one)",
    "--host": "the address to listen on (default: this machine alone); elsewhere all must give the token",
    "--allow-host": "NAME: a name by which HTTP clients may call this host; may be repeated",
    "--exit-with-parent": "end when the process that has started this one is gone",
    "--verbose": "write what is said in each session to stderr",
    "--timeout": "SECONDS: for a command (default: 600)",
    "--max-messages": "N",
    "--login-timeout": "SECONDS",
}


def test_help() -> None:
    """It says what each option takes and does, and its groups are those of the manual."""
    parser = make_parser()
    found = {
        action.option_strings[0] if action.option_strings else action.dest: ": ".join(
            [str(text) for text in (action.metavar, action.help) if text]
        )
        for action in parser._actions
    }
    assert {option: found.get(option) for option in HELP} == HELP
    assert [group.title for group in parser._action_groups][2:] == [
        "more ways to sign in", "for tests in any language", "limits",
    ]  # fmt: skip
    assert parser._action_groups[-1].description == ("as in popart's manual; none switches one off, except --timeout")
    assert parser.description == (
        "Serve messages from memory to POP3 clients on this machine, and print each command. "
        "Nothing is changed but memory.  Ends with Ctrl-C."
    )


def test_the_line_for_people() -> None:
    """Without --control the first line is for people: the URL, the first user, and with TLS what to trust."""
    pytest.importorskip("trustme")
    for tls in (False, True):
        with MailServer({"bob": "x", "carol": "y"}, tls=tls) as mail:
            trust = f", trust {mail.ca_file}" if tls else ""
            assert describe(mail) == f"{mail.url} user bob, password x{trust}"


def test_defaults() -> None:
    """Without options there is one user, alice, and nothing but what a plain POP3 server has."""
    options = vars(make_parser().parse_args([]))
    assert options == {
        "port": 0, "tls": False, "user": None, "messages": [], "apop": False, "scram": False, "login": False,
        "oauth": False, "user_token": [], "control": False, "control_port": 0, "token": None, "host": None,
        "allow_host": [], "exit_with_parent": False, "verbose": False,
    }  # fmt: skip
    with Output(None) as lines:
        server = CommandLineServer(make_parser().parse_args([]), {}, lines)
    assert (server.users, server.tokens, server._offers) == ({"alice": "secret"}, {}, set())


def test_limits_that_are_none() -> None:
    """Counts are whole numbers and times are seconds, and none of either is no limit."""
    given = ["--max-messages", "none", "--max-connections", "5", "--login-timeout", "none", "--shutdown-grace", "0.5"]
    options = make_parser().parse_args([*given, "--timeout", "2.5"])
    assert (options.max_messages, options.max_connections) == (None, 5)
    assert (options.login_timeout, options.shutdown_grace, options.timeout) == (None, 0.5, 2.5)


def test_the_hundredth_connection() -> None:
    """A hundred at a time are taken."""
    with MailServer() as mail, closing(_control(mail)) as made, ExitStack() as block:
        for _ in range(99):
            block.enter_context(socket.create_connection(("127.0.0.1", made.port), PATIENCE))
        wait_until(lambda: len(made._open) == 99)
        assert Control(made, mail, threading.Event()).ask("GET", "/users")[0] == 200


def test_the_longest_body(control: Control) -> None:
    """It has 64 MiB: a client that is about to send as much is asked to go on."""
    with socket.create_connection(("127.0.0.1", control.control.port), PATIENCE) as sock, sock.makefile("rb") as file:
        sock.sendall(WITH_TOKEN + b"Expect: 100-continue\r\nContent-Length: 67108864\r\n\r\n")
        assert file.readline() == b"HTTP/1.1 100 Continue\r\n"


def test_closing_waits_for_no_silent_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has not come yet is not waited for."""
    monkeypatch.setattr("popart.testing.control.LAST_SECONDS", 30.0)
    with MailServer() as mail:
        made = _control(mail)
        with socket.create_connection(("127.0.0.1", made.port), PATIENCE):
            wait_until(lambda: len(made._open) == 1)
            begin = time.monotonic()
            made.close()
            assert time.monotonic() - begin < 10


def test_closing_waits_for_no_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not read is waited for no longer than the last seconds, whatever a request may take else."""
    monkeypatch.setattr("popart.testing.control.LAST_SECONDS", 0.1)
    monkeypatch.setattr("popart.testing.control.REQUEST_SECONDS", 30.0)
    with MailServer() as mail:
        unique_id = mail.deliver("alice", b"x" * 20_000_000)
        made = _control(mail)
        with socket.create_connection(("127.0.0.1", made.port), PATIENCE) as sock:
            sock.sendall(f"GET /messages/alice/{unique_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert sock.recv(10) == b"HTTP/1.1 2"
            begin = time.monotonic()
            made.close()
            assert time.monotonic() - begin < 10


def test_the_sentences_of_the_standard_library(control: Control) -> None:
    """What it says of a request is handed on, and where it says nothing there is a sentence, too."""
    for octets, sentence in (
        (b"GET\r\n\r\n", "Bad request syntax ('GET')"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", "this is not a request of HTTP"),
    ):
        assert json.loads(control.raw(octets).partition(b"\r\n\r\n")[2]) == {"error": sentence}


def test_a_ca_file_that_is_gone(tmp_path: Path) -> None:
    """It is told, as all that goes wrong within the server."""
    with MailServer() as mail, closing(_control(mail)) as made:
        mail.ca_file = str(tmp_path / "ca.pem")
        status, found = Control(made, mail, threading.Event()).ask("GET", "/ca")
        assert status == 500 and found["error"].startswith("FileNotFoundError: ")
