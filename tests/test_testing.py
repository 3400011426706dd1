"""popart.testing: a real server for tests, with mail in memory and faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import poplib
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import scramp

import popart
from popart.testing import Maildrop, MailServer
from popart.testing.__main__ import main, signals_that_end

from .conftest import PATIENCE, Client, expect_reset

if TYPE_CHECKING:
    import trustme

MESSAGE = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
ON_THE_WIRE = b"Subject: x\r\n\r\nhello\r\n..dot\r\n"


def dial(server: MailServer, certificate: str | None = None) -> socket.socket:
    """Connect, over TLS where the server speaks it."""
    raw = socket.create_connection((server.host, server.port), PATIENCE)
    if not server.url.startswith("pop3s:"):
        return raw
    assert server.ca_file is not None
    context = ssl.create_default_context(cafile=server.ca_file)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context.wrap_socket(raw, server_hostname=server.host)


@contextmanager
def connected(server: MailServer, certificate: str | None = None) -> Iterator[Client]:
    """Connect a raw client and read the greeting."""
    with dial(server, certificate) as sock:
        client = Client(sock)
        try:
            assert client.line().startswith(b"+OK")
            yield client
        finally:
            client.close()


@contextmanager
def signed_in(server: MailServer) -> Iterator[Client]:
    with connected(server) as client:
        client.sign_in()
        yield client


@contextmanager
def pop(server: MailServer, username: str = "alice", password: str = "secret") -> Iterator[poplib.POP3]:
    """Sign in with poplib.  It is closed, without QUIT, when left."""
    client = poplib.POP3(server.host, server.port, timeout=PATIENCE)
    try:
        client.user(username)
        client.pass_(password)
        yield client
    finally:
        client.close()


def fetch_and_delete(server: MailServer) -> list[bytes]:
    """What a program that fetches mail does."""
    with pop(server) as client:
        count, _ = client.stat()
        fetched = []
        for number in range(1, count + 1):
            fetched.append(b"\n".join(client.retr(number)[1]))
            client.dele(number)
        client.quit()
    return fetched


# Mail.


def test_three_lines() -> None:
    """A program's fetch takes three lines to test."""
    with MailServer(users={"alice": "secret"}) as server:
        server.deliver("alice", b"Subject: x\n\nhello\n")
        assert fetch_and_delete(server) == [b"Subject: x\n\nhello"]
    assert server.messages("alice") == []


def email_message() -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "x"
    message.set_content("hello\n")
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(b"Subject: x\n\nhello\n", b"Subject: x\r\n\r\nhello\r\n", id="bytes"),
        pytest.param(b"Subject: x\r\n\r\nhello", b"Subject: x\r\n\r\nhello\r\n", id="no final line end"),
        pytest.param(b"\n\xff\0\rx\n", b"\r\n\xff\0\rx\r\n", id="odd octets"),
        pytest.param("\nh\u00e4\n", b"\r\nh\xc3\xa4\r\n", id="str"),
        pytest.param("\nh\udcff\n", b"\r\nh\xff\r\n", id="str from octets"),
        pytest.param(email_message(), email_message().as_bytes().replace(b"\n", b"\r\n"), id="EmailMessage"),
        pytest.param(MIMEText("x\n"), MIMEText("x\n").as_bytes().replace(b"\n", b"\r\n"), id="Message"),
        pytest.param(b"", b"", id="empty"),
    ],
)
def test_deliver(message: bytes | str | Message, expected: bytes) -> None:
    """A message is served with CRLF line ends, its size is exact, and its unique-id is the one that was returned."""
    with MailServer() as server:
        unique_id = server.deliver("alice", message)
        with signed_in(server) as client:
            assert client.ask(b"LIST 1") == b"+OK 1 %d\r\n" % len(expected)
            assert client.ask(b"UIDL 1") == b"+OK 1 %b\r\n" % unique_id.encode()
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert client.lines() == expected + b".\r\n"
    assert server.messages("alice") == [expected]


def test_deliver_refuses_other_types() -> None:
    """A message of another type is a TypeError, and nothing is delivered."""
    server = MailServer()
    with pytest.raises(TypeError, match="not int"):
        server.deliver("alice", 5)  # type: ignore[arg-type]
    assert server.messages("alice") == []


def test_unknown_user() -> None:
    """A name that is no user's is a KeyError, lest mail be delivered to a typing error."""
    server = MailServer()
    for ask in (server.maildrop, server.messages, lambda name: server.deliver(name, b"")):
        with pytest.raises(KeyError, match="bob"):
            ask("bob")


def test_users_have_their_own_mail() -> None:
    """Each user sees their own messages, with their own password; users may be added later."""
    with MailServer({"alice": "secret"}) as server:
        server.users["bob"] = " two words "
        server.deliver("bob", MESSAGE)
        with pop(server) as alice, pop(server, "bob", " two words ") as bob:
            assert alice.stat() == (0, 0)
            assert bob.stat() == (1, len(MESSAGE))


@pytest.mark.parametrize(("username", "password"), [("alice", "wrong"), ("bob", "secret")])
def test_wrong_password(username: str, password: str) -> None:
    """Nobody else gets in, and a wrong name reads the same as a wrong password."""
    with (
        MailServer() as server,
        pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\] wrong name or password"),
        pop(server, username, password),
    ):
        pass


@pytest.mark.parametrize(("secret", "answer"), [("secret", b"+OK"), ("wrong", b"-ERR [AUTH]")])
def test_apop(secret: str, answer: bytes) -> None:
    """With apop=True the digest of the banner and the password lets in (RFC 1939 section 7)."""
    with MailServer(apop=True) as server, dial(server) as sock:
        client = Client(sock)
        banner = re.search(rb"<.*>", client.line())
        assert banner is not None
        digest = hashlib.md5(banner[0] + secret.encode()).hexdigest()
        assert client.ask(b"APOP alice " + digest.encode()).startswith(answer)
        client.close()
    assert server.commands == [("", "APOP", "alice", "***")]


def test_delivery_during_a_session() -> None:
    """A message that comes during a session moves no number, is not deleted, and is there in the next session."""
    with MailServer() as server:
        server.deliver("alice", b"1\n")
        with pop(server) as client:
            server.deliver("alice", b"2\n")
            assert client.stat()[0] == 1
            client.dele(1)
            client.quit()
        assert server.messages("alice") == [b"2\r\n"]
        with pop(server) as client:
            assert client.retr(1)[1] == [b"2"]


def test_one_session_at_a_time() -> None:
    """While a session holds the maildrop, the next one is told so (RFC 1939 section 4, RFC 2449 section 8.1.2)."""
    with MailServer() as server, pop(server):
        with pytest.raises(poplib.error_proto, match=r"\[IN-USE\]"), pop(server):
            pass


def test_maildrop_unique_ids() -> None:
    """No id is used again, not after a deletion, nor in another maildrop, nor when threads deliver together."""
    maildrop, other = Maildrop(), Maildrop()
    ids = [maildrop.deliver(b""), other.deliver(b"")]
    maildrop.delete(ids[:1])

    def deliver() -> None:
        ids.extend([maildrop.deliver(b"") for _ in range(500)])

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 2002
    assert len(maildrop.snapshot()) == 2000


def test_maildrop_deletes_all_or_none() -> None:
    """If one of the messages is not there, none is deleted."""
    maildrop = Maildrop()
    ids = [maildrop.deliver(text) for text in "abc"]
    before = maildrop.snapshot()
    assert before == [(ids[0], b"a\r\n"), (ids[1], b"b\r\n"), (ids[2], b"c\r\n")]
    with pytest.raises(KeyError):
        maildrop.delete([ids[0], "gone"])
    assert maildrop.snapshot() == before
    maildrop.delete([ids[0], ids[2]])
    assert maildrop.snapshot() == before[1:2]


def test_maildrop_lock() -> None:
    """The lock is one at a time; a server whose maildrop a test has locked says so until it is unlocked."""
    with MailServer() as server:
        maildrop = server.maildrop("alice")
        maildrop.lock()
        with pytest.raises(popart.ReportableError) as refusal:
            maildrop.lock()
        assert refusal.value.code == "IN-USE"
        with connected(server) as client:
            client.ask(b"USER alice")
            assert client.ask(b"PASS secret").startswith(b"-ERR [IN-USE] ")
            maildrop.unlock()
            client.sign_in()


# Modern sign-in.


def answer(client: Client, response: bytes) -> bytes:
    """Send a response and return what is answered: a challenge's octets, or another line."""
    line = client.ask(b64encode(response))
    return b64decode(line[2:-2], validate=True) if line.startswith(b"+ ") else line


def sign_in_by_scram(client: Client, username: str = "alice", password: str = "secret") -> bytes:
    """Do as scramp's client does."""
    scram = scramp.ScramClient(["SCRAM-SHA-256"], username, password)
    assert client.ask(b"AUTH SCRAM-SHA-256") == b"+ \r\n"
    scram.set_server_first(answer(client, scram.get_client_first().encode()).decode())
    final = answer(client, scram.get_client_final().encode())
    if final.startswith(b"-ERR"):
        return final
    scram.set_server_final(final.decode())
    return answer(client, b"")


def offered(client: Client) -> list[str]:
    client.send(b"CAPA\r\n")
    (found,) = re.findall(r"\r\nSASL (.*)\r\n", client.lines().decode())
    return found.split()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("options", "mechanisms"),
    [
        ({}, "PLAIN"),
        ({"scram": True}, "SCRAM-SHA-256 PLAIN"),
        ({"tokens": {"alice": "ya29.x"}}, "OAUTHBEARER XOAUTH2 PLAIN"),
        ({"tokens": {}}, "OAUTHBEARER XOAUTH2 PLAIN"),
        ({"login": True}, "PLAIN LOGIN"),
        ({"tls": True}, "PLAIN"),
        ({"tls": True, "client_certificates": True}, "EXTERNAL PLAIN"),
        (
            {"tokens": {}, "scram": True, "login": True, "tls": True, "client_certificates": True},
            "EXTERNAL SCRAM-SHA-256 OAUTHBEARER XOAUTH2 PLAIN LOGIN",
        ),
    ],
)
def test_mechanisms(options: dict[str, Any], mechanisms: str) -> None:
    """A server offers the mechanisms that it was asked for; EXTERNAL only to those who present a certificate."""
    with MailServer(**options) as server:
        certificate = server.client_certificate("alice") if "client_certificates" in options else None
        with connected(server, certificate) as client:
            assert offered(client) == mechanisms.split()
        with connected(server) as client:
            assert offered(client) == mechanisms.removeprefix("EXTERNAL ").split()


def test_no_external_unasked(authority: trustme.CA) -> None:
    """A certificate is no way to sign in where nobody asked for it, whatever the server's TLS makes of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    clients = ssl.create_default_context()
    authority.configure_trust(clients)
    authority.issue_cert(common_name="alice").configure_cert(clients)
    with MailServer(ssl_context=context) as server, socket.create_connection((server.host, server.port)) as raw:
        client = Client(clients.wrap_socket(raw, server_hostname="localhost"))
        client.line()
        assert offered(client) == ["PLAIN"]
        client.close()


ALL_OPTIONS: dict[str, Any] = {"tokens": {"alice": "ya29.x"}, "login": True}
RESPONSES = {
    "PLAIN": [b"\0alice\0secret"],
    "LOGIN": [b"alice", b"secret"],
    "OAUTHBEARER": [b"n,a=alice,\x01auth=Bearer ya29.x\x01\x01"],
    "XOAUTH2": [b"user=alice\x01auth=Bearer ya29.x\x01\x01"],
}


@pytest.mark.parametrize("mechanism", RESPONSES)
@pytest.mark.parametrize("initial", [True, False])
def test_auth(mechanism: str, initial: bool) -> None:
    """A client signs in by AUTH and sees its mail; what it sent is recorded without its responses."""
    first, *more = RESPONSES[mechanism]
    with MailServer(**ALL_OPTIONS) as server:
        server.deliver("alice", MESSAGE)
        with connected(server) as client:
            if initial:
                line = client.ask(b"AUTH %b %b" % (mechanism.encode(), b64encode(first)))
            else:
                assert client.ask(b"AUTH " + mechanism.encode()).startswith(b"+ ")
                line = client.ask(b64encode(first))
            for response in more:
                assert line == b"+ UGFzc3dvcmQ6\r\n"
                line = client.ask(b64encode(response))
            assert line.startswith(b"+OK")
            assert client.ask(b"STAT") == b"+OK 1 %d\r\n" % len(MESSAGE)
    begin = [("", "AUTH", mechanism, "***")] if initial else [("", "AUTH", mechanism), ("", "***")]
    assert server.commands == [*begin, *[("", "***") for _ in more], ("alice", "STAT")]


def test_scram() -> None:
    """A client that never sends its password signs in with it, and the server proves that it knows it as well."""
    with MailServer({"alice": "secret", "zo\xeb": "\u2168"}, scram=True) as server:
        with connected(server) as client:
            assert sign_in_by_scram(client).startswith(b"+OK")
            client.ask(b"QUIT")
        assert server.commands == [
            ("", "AUTH", "SCRAM-SHA-256"), ("", "***"), ("alice", "***"), ("alice", "***"), ("alice", "QUIT"),
        ]  # fmt: skip
        with connected(server) as client:
            assert sign_in_by_scram(client, "zo\xeb", "IX").startswith(b"+OK")  # SASLprep makes it that
            client.ask(b"QUIT")
    assert server.errors == []


def test_scram_refuses() -> None:
    """A wrong password and a wrong name read the same; a new password counts at once, and the salt stays."""
    with MailServer(scram=True, max_failed_logins=None) as server, connected(server) as client:
        for username, password in (("alice", "wrong"), ("nobody", "secret")):
            assert sign_in_by_scram(client, username, password) == b"-ERR [AUTH] wrong name or password\r\n"
        salts = set()
        for _ in range(2):
            client.ask(b"AUTH SCRAM-SHA-256")
            salts.add(answer(client, b"n,,n=alice,r=x").split(b",")[1])
            assert client.ask(b"*").startswith(b"-ERR")
        assert len(salts) == 1
        server.users["alice"] = "new"
        assert sign_in_by_scram(client, "alice", "new").startswith(b"+OK")


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_expired_token(mechanism: str) -> None:
    """A token that is not the user's any more is refused as both mechanisms demand; a fresh one lets in."""
    with MailServer(tokens={"alice": "ya29.y"}) as server, connected(server) as client:
        client.ask(b"AUTH " + mechanism.encode())
        assert b'"status"' in answer(client, RESPONSES[mechanism][0])
        assert answer(client, b"\x01") == b"-ERR [AUTH] wrong name or password\r\n"
        server.tokens["alice"] = "ya29.x"
        client.ask(b"AUTH " + mechanism.encode())
        assert answer(client, RESPONSES[mechanism][0]).startswith(b"+OK")


@pytest.mark.parametrize("name", [b"bob", b"carol"])
def test_token_of_another_user(name: bytes) -> None:
    """A token is good for its own user, who must be one of the server's."""
    with MailServer({"alice": "x", "bob": "x"}, tokens={"alice": "ya29.x"}) as server:
        server.tokens["carol"] = "ya29.x"
        with connected(server) as client:
            client.ask(b"AUTH XOAUTH2")
            assert b'"status"' in answer(client, RESPONSES["XOAUTH2"][0].replace(b"alice", name))
            assert answer(client, b"").startswith(b"-ERR [AUTH]")


@pytest.mark.parametrize("identity", ["", "zo\xeb x"])
def test_client_certificate(identity: str) -> None:
    """A certificate that the server made signs its user in, whether the client says who that is or not."""
    users = {"alice": "secret", "zo\xeb x": "secret"}
    with MailServer(users, tls=True, client_certificates=True) as server:
        path = server.client_certificate("zo\xeb x")
        with connected(server, path) as client:
            client.ask(b"AUTH EXTERNAL")
            assert answer(client, identity.encode()).startswith(b"+OK")
            client.ask(b"NOOP")
        assert server.commands[-1] == ("zo\xeb x", "NOOP")
        assert path != server.client_certificate("alice")
    assert not os.path.lexists(path)


@pytest.mark.parametrize("identity", [b"", b"alice", b"bob"])
def test_certificate_of_another_user(identity: bytes) -> None:
    """Nobody signs in as somebody else by it, nor once they are a user no more."""
    with MailServer({"alice": "x", "bob": "x"}, tls=True, client_certificates=True) as server:
        with connected(server, server.client_certificate("bob")) as client:
            del server.users["bob"]
            client.ask(b"AUTH EXTERNAL")
            assert answer(client, identity) == b"-ERR [AUTH] wrong name or password\r\n"


def test_no_client_certificate() -> None:
    """Who asks for a certificate where there is none is told why."""
    with pytest.raises(ValueError, match="tls=True"):
        MailServer(client_certificates=True)
    with MailServer(tls=True) as without, pytest.raises(RuntimeError, match="client_certificates=True"):
        without.client_certificate("alice")
    server = MailServer({"alice": "x", "x" * 65: "x"}, tls=True, client_certificates=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="block"):
            server.client_certificate("alice")
        with server:
            assert server.client_certificate("alice")
            with pytest.raises(KeyError, match="bob"):
                server.client_certificate("bob")
            with pytest.raises(ValueError):
                server.client_certificate("x" * 65)


def test_one_lock_for_all() -> None:
    """Whoever is signed in by AUTH holds the maildrop as one who gave a password does."""
    with MailServer() as server, connected(server) as first, connected(server) as second:
        line = b"AUTH PLAIN " + b64encode(b"\0alice\0secret")
        assert first.ask(line).startswith(b"+OK")
        assert second.ask(line).startswith(b"-ERR [IN-USE] ")


# Watching.


@pytest.mark.parametrize(
    ("line", "recorded"),
    [
        (b"retr 1", ("RETR", "1")),
        (b"TOP 1 0", ("TOP", "1", "0")),
        (b"RETR", ("RETR",)),
        (b"RETR  1 ", ("RETR", "", "1", "")),
        (b"", ("",)),
        (b"XYZZY \xff\x01", ("XYZZY", "\\xff\x01")),
        (b"USER two words", ("USER", "two", "words")),
        (b"PASS", ("PASS",)),
        (b"PASS secret", ("PASS", "***")),
        (b"pass  with spaces ", ("PASS", "***")),
        (b"PASS\tsecret", ("PASS\t***",)),
        (b" PASS secret", ("", "PASS", "***")),
        (b"PASS sec\x0bret", ("PASS", "***")),
        (b"APOP alice 0123456789abcdef", ("APOP", "alice", "***")),
        (b"APOP alice 01 23", ("APOP", "alice", "***")),
        (b"AUTH PLAIN AGFsaWNlAHNlY3JldA==", ("AUTH", "PLAIN", "***")),
        (b"AUTH", ("AUTH",)),
        (b"auth plain", ("AUTH", "PLAIN")),
        (b"AUTH PLAIN =", ("AUTH", "PLAIN", "***")),
        (b"AUTH PLAIN AGFs aWNl", ("AUTH", "PLAIN", "***")),
        (b"AUTH  AGFsaWNl", ("AUTH", "", "***")),
    ],
)
def test_command_recorded(line: bytes, recorded: tuple[str, ...]) -> None:
    """Every line is recorded, malformed or not, with its keyword in upper case and without its secret."""
    with MailServer() as server, connected(server) as client:
        assert client.ask(line)
        assert server.commands == [("", *recorded)]


def test_commands_in_order() -> None:
    """Each command stands with the name that its own connection had given before."""
    with MailServer({"alice": "secret", "bob": "secret"}) as server:
        with pop(server) as alice:
            with connected(server) as bob:
                bob.ask(b"NOOP")
                bob.ask(b"USER nobody")
                bob.ask(b"USER bob")
                alice.stat()
                bob.ask(b"PASS secret")
                bob.ask(b"USER eve")
                bob.ask(b"STAT")
    assert server.commands == [
        ("", "USER", "alice"),
        ("alice", "PASS", "***"),
        ("", "NOOP"),
        ("", "USER", "nobody"),
        ("nobody", "USER", "bob"),
        ("alice", "STAT"),
        ("bob", "PASS", "***"),
        ("bob", "USER", "eve"),
        ("bob", "STAT"),
    ]


def test_lines_of_an_exchange() -> None:
    """Whatever a client sends while a challenge is pending is recorded as a response, and as a command after it."""
    with MailServer() as server, connected(server) as client:
        for line in (b"PASS secret", b"*", b"", b"c2VjcmV0", b"s\xff", b"QUIT", b"x" * 20_000):
            assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
            assert client.ask(line).startswith(b"-ERR")
    assert server.commands == [("", "AUTH", "PLAIN"), ("", "***")] * 7


class Stopped(BaseException):
    """What a test framework raises to end a test is no Exception."""


class Picky(MailServer):
    """Raises an error at the commands that begin with a word."""

    def __init__(self, word: str, error: BaseException, **options: Any) -> None:
        super().__init__(**options)
        self.word = word
        self.error = error

    def record_command(self, command: tuple[str, ...]) -> None:
        super().record_command(command)
        if command[1] == self.word:
            raise self.error


@pytest.mark.parametrize("error", [AssertionError("no RETR before LIST"), Stopped()], ids=repr)
def test_record_command_that_raises(error: BaseException) -> None:
    """What it raises is among the errors, and the client reads that the command was not run; the session goes on."""
    with Picky("DELE", error) as server:
        server.deliver("alice", MESSAGE)
        with signed_in(server) as client:
            assert client.ask(b"DELE 1").startswith(b"-ERR ")
            assert server.errors == [error]
            assert client.ask(b"STAT") == b"+OK 1 27\r\n"
            assert client.ask(b"QUIT").startswith(b"+OK")
            assert client.rest() == b""
    assert server.errors == [error]
    assert server.messages("alice") == [MESSAGE]


def test_record_command_that_raises_at_quit() -> None:
    """Then nothing is deleted, the lock is free when the client reads so, and the session is over."""
    error = AssertionError()
    with Picky("QUIT", error) as server:
        server.deliver("alice", MESSAGE)
        with signed_in(server) as client:
            client.ask(b"DELE 1")
            assert client.ask(b"QUIT").startswith(b"-ERR ")
            with pop(server):
                assert client.rest() == b""
    assert server.errors[0] is error
    assert server.messages("alice") == [MESSAGE]


def test_record_command_that_raises_within_an_exchange() -> None:
    """Then AUTH is over, for the server as for the client: the next line is a command."""
    error = AssertionError()
    with Picky("***", error) as server, connected(server) as client:
        assert client.ask(b"AUTH PLAIN") == b"+ \r\n"
        assert client.ask(b64encode(b"\0alice\0secret")).startswith(b"-ERR ")
        server.word = ""
        client.sign_in()
    assert error in server.errors


def test_record_command_that_refuses_without_words() -> None:
    """What cannot be sent is an error, too."""
    refusal = popart.ReportableError("")
    refusal.text = 5  # type: ignore[assignment]
    with Picky("STAT", refusal) as server, signed_in(server) as client:
        assert client.ask(b"STAT").startswith(b"-ERR ")
        assert len(server.errors) == 1


def test_record_command_that_is_a_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never run, and so is an error."""

    async def record_command(command: tuple[str, ...]) -> None:
        raise AssertionError

    with MailServer() as server, connected(server) as client:
        monkeypatch.setattr(server, "record_command", record_command)
        assert client.ask(b"USER alice").startswith(b"-ERR ")
        assert [type(error) for error in server.errors] == [TypeError]


def test_record_command_that_refuses() -> None:
    """A ReportableError is what the client reads, and no error."""
    with Picky("STAT", popart.ReportableError("not now", code="SYS/TEMP")) as server, signed_in(server) as client:
        assert client.ask(b"STAT") == b"-ERR [SYS/TEMP] not now\r\n"
        client.ask(b"QUIT")
    assert server.errors == []


def test_errors() -> None:
    """A client that leaves without QUIT is found in `errors`."""
    with MailServer() as server:
        with pop(server):
            pass
        server.wait_for_session_end()
        assert [type(error) for error in server.errors] == [popart.ClientGoneError]


def test_wait_for_session_end() -> None:
    """Whatever the session's end, once it is waited for, its lock is free."""
    with MailServer() as server:
        for sessions in range(1, 21):
            with pop(server):
                pass
            server.wait_for_session_end(PATIENCE, sessions=sessions)
            assert len(server.errors) == sessions


def test_wait_for_session_end_times_out() -> None:
    """It is a TimeoutError if no session came, if one stays open, and if too few have ended."""
    with MailServer() as server:
        with pytest.raises(TimeoutError, match="0 sessions open, 0 ended"):
            server.wait_for_session_end(0.01)
        with connected(server), pytest.raises(TimeoutError, match="1 sessions open, 0 ended"):
            server.wait_for_session_end(0.01)
        server.wait_for_session_end(PATIENCE)
        with pytest.raises(TimeoutError, match="0 sessions open, 1 ended"):
            server.wait_for_session_end(0.01, sessions=2)
        with connected(server), pytest.raises(TimeoutError, match="1 sessions open, 1 ended"):
            server.wait_for_session_end(0.01)


# Faults.


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        pytest.param(None, b"-ERR try later\r\n", id="without a code"),
        pytest.param("SYS/TEMP", b"-ERR [SYS/TEMP] try later\r\n", id="with a code"),
    ],
)
def test_fail(code: str | None, answer: bytes) -> None:
    """A command that fails on demand is answered so once, is not run, and works the next time."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.fail("DELE", "try later", code=code)
        with signed_in(server) as client:
            assert client.ask(b"dele 1") == answer
            assert client.ask(b"STAT") == b"+OK 1 %d\r\n" % len(MESSAGE)
            assert client.ask(b"DELE 1").startswith(b"+OK")
    assert [words[1] for words in server.commands[2:]] == ["DELE", "STAT", "DELE"]


def test_fail_for_poplib() -> None:
    """poplib reads the refusal, and its session goes on."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.fail("RETR", "try later", code="SYS/TEMP")
        with pop(server) as client:
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] try later"):
                client.retr(1)
            assert client.retr(1)[2] == len(MESSAGE)


def answers(client: Client, *commands: bytes) -> str:
    """Return ``+`` or ``-`` for each command's answer."""
    return "".join(client.ask(command).decode()[0] for command in commands)


def test_times() -> None:
    """A fault happens once, as often as it is told, or until the faults are cleared."""
    with MailServer() as server, signed_in(server) as client:
        server.fail("NOOP", times=2)
        assert answers(client, *[b"NOOP"] * 4) == "--++"
        server.fail("NOOP", times=None)
        assert answers(client, *[b"NOOP"] * 4) == "----"
        server.clear_faults()
        assert answers(client, b"NOOP") == "+"


def test_faults_happen_in_order() -> None:
    """Faults for one command happen one after the other, those of other commands apart from them."""
    with MailServer() as server, signed_in(server) as client:
        server.fail("NOOP", "first")
        server.fail("STAT", "other")
        server.fail("NOOP", "second")
        asked = [client.ask(command) for command in (b"NOOP", b"NOOP", b"NOOP", b"STAT")]
        assert asked == [b"-ERR first\r\n", b"-ERR second\r\n", b"+OK nothing done\r\n", b"-ERR other\r\n"]


def test_fault_of_one_message() -> None:
    """With an argument only the command that has it fails, whatever the case of the keyword."""
    with MailServer() as server:
        for _ in range(20):
            server.deliver("alice", MESSAGE)
        server.fail("dele 2", times=None)
        with signed_in(server) as client:
            assert answers(client, b"DELE 1", b"DELE 2", b"DELE 20", b"dele 2", b"DELE 22", b"NOOP") == "+-+--+"


def test_fault_of_one_user() -> None:
    """With a name only that user's commands fail, from the one that gives the name on."""
    with MailServer({"alice": "secret", "bob": "secret"}) as server:
        server.fail("USER", username="bob")
        with pop(server), pytest.raises(poplib.error_proto, match="failed on demand"), pop(server, "bob"):
            pass
        server.fail("STAT", username="bob")
        with pop(server) as alice, pop(server, "bob") as bob:
            assert alice.stat() == (0, 0)
            with pytest.raises(poplib.error_proto):
                bob.stat()


@pytest.mark.parametrize("username", ["alice", None])
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        pytest.param(MailServer.refuse_sign_in, b"-ERR [AUTH] wrong name or password\r\n", id="refuse_sign_in"),
        pytest.param(MailServer.lock_maildrop, b"-ERR [IN-USE] another session has the maildrop\r\n", id="lock"),
    ],
)
def test_sign_in_faults(ask: Callable[..., None], answer: bytes, username: str | None) -> None:
    """A user with the right password is refused on demand, may try again, and gets in then."""
    with MailServer({"alice": "secret", "bob": "secret"}) as server:
        ask(server, username=username)
        ask(server, username="bob")
        with connected(server) as client:
            client.ask(b"USER alice")
            assert client.ask(b"PASS secret") == answer
            client.sign_in()


@pytest.mark.parametrize("mechanism", [*RESPONSES, "EXTERNAL", "SCRAM-SHA-256"])
@pytest.mark.parametrize("code", ["AUTH", "LOGIN-DELAY"])
def test_sign_in_faults_of_auth(mechanism: str, code: str) -> None:
    """The same by any mechanism, in the words that were asked for; but SCRAM has one text for a wrong password."""
    options = {**ALL_OPTIONS, "scram": True, "tls": True, "client_certificates": True}
    with MailServer({"alice": "secret", "bob": "secret"}, **options) as server:
        server.refuse_sign_in("try later", code=code, username="alice")
        server.refuse_sign_in(username="bob")
        server.lock_maildrop(username="alice")
        answers = []
        with connected(server, server.client_certificate("alice")) as client:
            for _ in range(3):
                if mechanism == "SCRAM-SHA-256" and (answers or code == "AUTH"):
                    answers.append(sign_in_by_scram(client))
                    continue
                client.ask(b"AUTH " + mechanism.encode())
                for response in RESPONSES.get(mechanism, [b"n,,n=alice,r=x" if "SCRAM" in mechanism else b"alice"]):
                    line = answer(client, response)
                answers.append(answer(client, b"") if line.startswith(b"{") else line)
    refusal = "wrong name or password" if (mechanism, code) == ("SCRAM-SHA-256", "AUTH") else "try later"
    assert answers[0] == f"-ERR [{code}] {refusal}\r\n".encode()
    assert answers[1] == b"-ERR [IN-USE] another session has the maildrop\r\n"
    assert answers[2].startswith(b"+OK")


def test_faults_of_the_command() -> None:
    """AUTH fails on demand in place of its challenge, is answered late, or never; each mechanism by itself."""
    with MailServer(**ALL_OPTIONS) as server:
        server.fail("AUTH", code="SYS/TEMP")
        server.fail("AUTH XOAUTH2", "not today")
        server.delay("AUTH LOGIN", 0.2)
        server.drop("AUTH PLAIN")
        with connected(server) as client:
            assert client.ask(b"AUTH PLAIN") == b"-ERR [SYS/TEMP] failed on demand\r\n"
            assert client.ask(b"AUTH XOAUTH2 " + b64encode(RESPONSES["XOAUTH2"][0])) == b"-ERR not today\r\n"
            begin = time.monotonic()
            assert client.ask(b"AUTH LOGIN").startswith(b"+ ")
            assert time.monotonic() - begin >= 0.2
            assert client.ask(b"*").startswith(b"-ERR")
            client.send(b"AUTH PLAIN\r\n")
            assert client.rest() == b""
        with connected(server) as client:
            client.ask(b"AUTH PLAIN")
            assert answer(client, RESPONSES["PLAIN"][0]).startswith(b"+OK")


def test_drop_after_a_challenge() -> None:
    """With ``after=0`` the client reads the challenge, and then the connection ends."""
    with MailServer() as server, connected(server) as client:
        server.drop("AUTH", after=0)
        client.send(b"AUTH PLAIN\r\n")
        assert client.rest() == b"+ \r\n"


def test_refusal_in_other_words() -> None:
    """A sign-in can be refused with any response code, which APOP reads as well."""
    with MailServer(apop=True) as server:
        server.refuse_sign_in("wait 5 minutes", code="LOGIN-DELAY")
        server.lock_maildrop("for another reason", code="SYS/PERM")
        with connected(server) as client:
            assert client.ask(b"APOP alice " + b"0" * 32) == b"-ERR [LOGIN-DELAY] wait 5 minutes\r\n"
            client.ask(b"USER alice")
            assert client.ask(b"PASS secret") == b"-ERR [SYS/PERM] for another reason\r\n"


def test_fail_commit() -> None:
    """A commit that fails deletes nothing, frees the lock and ends the session; the next QUIT deletes."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.fail_commit("disk full")
        with pop(server) as client:
            client.quit()
        with signed_in(server) as raw:
            raw.ask(b"DELE 1")
            assert raw.ask(b"QUIT") == b"-ERR [SYS/TEMP] disk full\r\n"
            assert server.messages("alice") == [MESSAGE]
            assert fetch_and_delete(server)
            assert raw.rest() == b""
    assert server.messages("alice") == []


@pytest.mark.parametrize(
    "text", ["a\r\n+OK b", "\0\x1b[2J", "\u65e5\udcff", "[IN-USE] x", "x" * 9999, "", b"x", None, 5]
)
def test_any_text(text: Any) -> None:
    """Whatever is to stand in a refusal, the client reads one line of it (RFC 1939 section 3), and goes on."""
    with MailServer() as server:
        server.refuse_sign_in(text)
        server.lock_maildrop(text)
        server.fail("STAT", text)
        with connected(server) as client:
            client.ask(b"USER alice")
            assert client.ask(b"PASS secret").startswith(b"-ERR [AUTH]")
            client.ask(b"USER alice")
            assert client.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
            client.sign_in()
            answer = client.ask(b"STAT")
            assert answer.startswith(b"-ERR") and len(answer) <= 512
            assert client.ask(b"STAT") == b"+OK 0 0\r\n"
            client.ask(b"QUIT")
    assert server.errors == []


def test_fail_quit() -> None:
    """A QUIT that fails deletes nothing, has freed the lock when the client reads so, and ends the session."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.fail("QUIT", times=2)
        with connected(server) as client:
            assert client.ask(b"QUIT") == b"-ERR failed on demand\r\n"
            assert client.rest() == b""
        with signed_in(server) as client:
            client.ask(b"DELE 1")
            assert client.ask(b"QUIT") == b"-ERR failed on demand\r\n"
            assert fetch_and_delete(server)
            assert client.rest() == b""
    assert server.errors == []


@pytest.mark.parametrize("tls", [False, True])
def test_drop(tls: bool) -> None:
    """The connection ends in place of the answer: what was answered before arrives, and nothing is deleted."""
    with MailServer(tls=tls) as server:
        server.deliver("alice", MESSAGE)
        server.drop("QUIT")
        with signed_in(server) as client:
            client.send(b"DELE 1\r\nQUIT\r\nNOOP\r\n")
            assert client.rest() == b"+OK message marked as deleted\r\n"
        server.wait_for_session_end()
        assert server.messages("alice") == [MESSAGE]
        assert server.commands[-1] == ("alice", "QUIT")
        with signed_in(server) as client:
            assert client.ask(b"QUIT").startswith(b"+OK")


def test_drop_for_poplib() -> None:
    """poplib sees the end of the connection, signs in again and fetches the rest."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.drop("RETR")
        with pytest.raises(poplib.error_proto, match="EOF"):
            fetch_and_delete(server)
        assert fetch_and_delete(server) == [MESSAGE.replace(b"\r\n", b"\n").removesuffix(b"\n")]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("after", [None, 0, 20, 1_000_000])
def test_drop_by_a_reset(after: int | None, tls: bool) -> None:
    """With how="reset" the client reads what was sent, of earlier answers too, and then a connection reset."""
    expected = b"+OK 1 27\r\n"
    if after is not None:
        expected += b"+OK 27 octets\r\n" + ON_THE_WIRE[:after]
    with MailServer(tls=tls) as server:
        server.deliver("alice", MESSAGE)
        server.drop("RETR", after=after, how="reset")
        with signed_in(server) as client:
            client.send(b"STAT\r\nRETR 1\r\n")
            assert client.file.read(len(expected)) == expected
            with expect_reset():
                socket.socket.recv(client.sock, 1)  # Python's TLS before 3.12.3 tells no reset from an end


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("after", [0, 1, 11, 12, 22, 23, len(ON_THE_WIRE) - 1, len(ON_THE_WIRE), 1_000_000])
def test_drop_after_octets(after: int, tls: bool) -> None:
    """The client reads exactly so many octets of the message, as they stand on the wire, and never the final dot."""
    with MailServer(tls=tls) as server:
        server.deliver("alice", MESSAGE)
        server.drop("RETR", after=after)
        with signed_in(server) as client:
            assert client.ask(b"RETR 1") == b"+OK %d octets\r\n" % len(MESSAGE)
            assert client.rest() == ON_THE_WIRE[:after]


def test_drop_within_a_large_message() -> None:
    """It is exact in a message of any size."""
    with MailServer() as server:
        server.deliver("alice", b"x" * 69 + b"\n" + b"." * 1_000_000)
        server.drop("RETR", after=700_001)
        with signed_in(server) as client:
            client.ask(b"RETR 1")
            assert client.rest() == b"x" * 69 + b"\r\n" + b"." * (700_001 - 71)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"TOP 1 1", b"+OK top of message follows\r\nSubj"),
        (b"LIST", b"+OK 1 message (27 octets)\r\n1 27"),
        (b"STAT", b"+OK 1 27\r\n"),
        (b"RETR 9", b"-ERR no such message, the maildrop was opened with 1\r\n"),
    ],
)
def test_drop_after_octets_of_other_answers(command: bytes, expected: bytes) -> None:
    """Listings are cut off in the same way, and an answer of one line is the last that is sent."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.drop(command.decode(), after=4)
        with signed_in(server) as client:
            client.send(command + b"\r\nNOOP\r\n")
            assert client.rest() == expected


def test_delay_is_no_part_of_the_login() -> None:
    """After sign-in an answer is delayed as long as was asked for, whatever the login timeout."""
    with MailServer(login_timeout=0.6) as server, contextlib.closing(poplib.POP3(server.host, server.port)) as client:
        client.user("alice")
        client.pass_("secret")
        server.delay("NOOP", 0.9)
        before = time.monotonic()
        client.noop()
        assert time.monotonic() - before >= 0.9
        client.quit()


def test_delay() -> None:
    """The answer comes so much later, and the next one at once."""
    with MailServer() as server, pop(server) as client:
        server.delay("STAT", 0.2)
        begin = time.monotonic()
        assert client.stat() == (0, 0)
        assert time.monotonic() - begin >= 0.2
        client.sock.settimeout(0.05)
        server.delay("NOOP", 60)
        with pytest.raises(TimeoutError):
            client.noop()


def test_answer_to_quit_is_lost() -> None:
    """With a delayed QUIT the messages are deleted, though the client has no answer."""
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        server.delay("QUIT", 1)
        with pop(server) as client:
            client.dele(1)
            client.sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.quit()
        server.wait_for_session_end()
        assert server.messages("alice") == []


def test_delay_for_ever() -> None:
    """An infinite delay lasts as long as the server is up; what was answered before arrives at once."""
    with contextlib.ExitStack() as clients:
        with MailServer() as server:
            server.delay("STAT", float("inf"))
            client = clients.enter_context(signed_in(server))
            client.send(b"NOOP\r\nSTAT\r\n")
            assert client.line() == b"+OK nothing done\r\n"
            client.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.sock.recv(100)
            client.sock.settimeout(PATIENCE)
            with pytest.raises(TimeoutError, match="1 sessions open"):
                server.wait_for_session_end(0.01)
        client.sock.recv(100)  # it is over, with the late answer or without
        assert server.errors == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda server: server.fail("RETR", code="no code"),
        lambda server: server.fail("RETR", times=0),
        lambda server: server.drop("RETR", times=-1),
        lambda server: server.drop("RETR", after=-1),
        lambda server: server.delay("RETR", -1),
        lambda server: server.drop("RETR", after=True),
        lambda server: server.drop("RETR", after=1.5),
        lambda server: server.drop("RETR", after=float("inf")),
        lambda server: server.drop("RETR", after=float("nan")),
        lambda server: server.drop("RETR", after="5"),
        lambda server: server.drop("RETR", how="RESET"),
        lambda server: server.drop("RETR", how=None),
        lambda server: server.drop("RETR", how=["end"]),
        lambda server: server.delay("RETR", float("nan")),
        lambda server: server.delay("RETR", float("-inf")),
        lambda server: server.delay("RETR", "1"),
        lambda server: server.delay("RETR", None),
        lambda server: server.refuse_sign_in(code=""),
        lambda server: server.lock_maildrop(times=0),
        lambda server: server.fail_commit(times=0),
        lambda server: server.fail_commit(times=True),
        lambda server: server.delay("RETR", 1, times=1.5),
        lambda server: server.drop("RETR", times=float("inf")),
        lambda server: server.fail("RETR", times=float("nan")),
        lambda server: server.fail("RETR", times="1"),
        lambda server: server.fail("RETR", username=b"alice"),
        lambda server: server.lock_maildrop(username=["alice"]),
    ],
)
def test_impossible_faults(ask: Callable[[MailServer], None]) -> None:
    """What cannot happen is a ValueError where it is asked for, and nothing is kept of it."""
    with MailServer() as server:
        with pytest.raises(ValueError):
            ask(server)
        server.deliver("alice", MESSAGE)
        assert fetch_and_delete(server)


# Beginning and end.


@contextmanager
def idle(server: MailServer) -> Iterator[None]:
    with connected(server):
        yield


@contextmanager
def not_reading(server: MailServer) -> Iterator[None]:
    server.deliver("alice", b"x" * 20_000_000)
    with signed_in(server) as client:
        assert client.ask(b"RETR 1").startswith(b"+OK")
        yield


@contextmanager
def waiting(server: MailServer) -> Iterator[None]:
    server.delay("NOOP", 60)
    with signed_in(server) as client:
        client.send(b"NOOP\r\n")
        while server.commands[-1][1] != "NOOP":
            time.sleep(0.001)
        yield


@contextmanager
def shaking_hands(server: MailServer) -> Iterator[None]:
    with socket.create_connection((server.host, server.port), PATIENCE):
        yield


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("client", [idle, not_reading, waiting, shaking_hands])
def test_left_with_a_session_open(client: Callable[[MailServer], Any], tls: bool) -> None:
    """Whatever its clients do, the server is gone at once; that no thread is left is checked after every test."""
    with contextlib.ExitStack() as clients:
        with MailServer(tls=tls) as server:
            clients.enter_context(client(server))
            begin = time.monotonic()
        assert time.monotonic() - begin < 3
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), PATIENCE)


@contextmanager
def forked(run: Callable[[], object]) -> Iterator[int]:
    """Fork a child that calls *run* and ends.  It is gone when this is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("tls", [False, True])
def test_left_while_a_forked_child_lives(tls: bool) -> None:
    """A child that was forked in the block does not keep the port open."""
    with contextlib.ExitStack() as children:
        with MailServer(tls=tls) as server:
            children.enter_context(forked(signal.pause))
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), PATIENCE)


@pytest.mark.parametrize("tls", [False, True])
def test_a_forked_child_leaves_the_block(tls: bool) -> None:
    """It ends nothing of its parent's: neither the server, nor a session, nor a file."""
    if tls:
        pytest.importorskip("trustme")
    reading, writing = os.pipe()
    with MailServer(tls=tls) as server, signed_in(server) as client, open(reading, "rb") as told:

        def leave() -> None:
            server.__exit__()
            os.write(writing, b"left")

        with forked(leave):
            os.close(writing)
            assert select.select([told], [], [], PATIENCE)[0], "the child hangs"
            assert told.read() == b"left"
        assert client.ask(b"NOOP") == b"+OK nothing done\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK")
        with signed_in(server) as another:
            assert another.ask(b"STAT") == b"+OK 0 0\r\n"


def test_left_by_an_error() -> None:
    """An error in the block ends the server and is not hidden."""
    with pytest.raises(ZeroDivisionError), MailServer() as server:
        raise ZeroDivisionError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), PATIENCE)


def test_entered_again() -> None:
    """A server that comes back has the same mail, and the same ids."""
    server = MailServer()
    with server:
        unique_id = server.deliver("alice", MESSAGE)
    with server, pop(server) as client:
        assert client.uidl()[1] == [b"1 " + unique_id.encode()]


def test_port_taken() -> None:
    """A port that cannot be had is an OSError where the block begins."""
    with MailServer() as server, pytest.raises(OSError), MailServer(port=server.port):
        pass


@pytest.mark.parametrize(
    ("options", "error"),
    [({"timeout": 0}, ValueError), ({"hostname": "a b"}, ValueError), ({"colour": "red"}, TypeError)],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    """An option that popart.Server does not take is its error."""
    with pytest.raises(error), MailServer(**options):
        pass


def test_short_timeout() -> None:
    """A client can be logged out in a test's time."""
    with MailServer(timeout=0.6) as server, connected(server) as client:
        client.send(b"USER alice\r\n")
        assert client.rest() == b"+OK send PASS\r\n"
        server.wait_for_session_end()
    assert [type(error) for error in server.errors] == [popart.ClientTimeoutError]


def test_server_options() -> None:
    """What popart.Server takes is taken, and so are its limits by their names."""
    with MailServer(implementation="mine", max_failed_logins=1) as server, connected(server) as client:
        client.send(b"CAPA\r\n")
        assert b"\r\nIMPLEMENTATION mine\r\n" in client.lines()
        client.send(b"USER alice\r\nPASS wrong\r\nNOOP\r\n")
        assert client.rest().count(b"\r\n") == 2
        server.wait_for_session_end()
    assert [type(error) for error in server.errors] == [popart.LimitError]


def test_url() -> None:
    """The URL is where the server is."""
    with MailServer() as plain, MailServer(tls=True) as tls:
        assert plain.url == f"pop3://127.0.0.1:{plain.port}"
        assert plain.ca_file is None
        assert tls.url == f"pop3s://localhost:{tls.port}"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls(host: str) -> None:
    """poplib trusts the server by `ca_file`, for either name, and the file goes when the block is left."""
    with MailServer(tls=True) as server:
        server.deliver("alice", MESSAGE)
        assert server.ca_file is not None
        context = ssl.create_default_context(cafile=server.ca_file)
        client = poplib.POP3_SSL(host, server.port, timeout=PATIENCE, context=context)
        client.user("alice")
        client.pass_("secret")
        assert client.stat() == (1, len(MESSAGE))
        client.quit()
    assert not os.path.lexists(os.path.dirname(server.ca_file))


def test_tls_is_not_trusted_by_others() -> None:
    """A client that does not trust the throw-away authority refuses the server."""
    with (
        MailServer(tls=True) as server,
        socket.create_connection((server.host, server.port), PATIENCE) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_without_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trustme there is no TLS, and the error says what to install; everything else works."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with (
        pytest.raises(ImportError, match=r"tls=True needs trustme: pip install trustme, or .*\[testing\]"),
        MailServer(tls=True),
    ):
        pass
    with MailServer() as server:
        server.deliver("alice", MESSAGE)
        assert fetch_and_delete(server)


def test_without_scramp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scramp there is no SCRAM, and the error says what to install."""
    monkeypatch.setitem(sys.modules, "scramp", None)
    with pytest.raises(ImportError, match=r"scram=True needs scramp: pip install scramp, or .*\[testing\]"):
        MailServer(scram=True).__enter__()
    with MailServer() as server, pop(server):
        pass


def test_standard_library_alone() -> None:
    """popart.testing runs where nothing is installed (``python -S`` sees no site-packages)."""
    root = Path(popart.__file__).parent.parent
    program = "from popart.testing import MailServer\nwith MailServer() as server: print(server.url)"
    subprocess.run([sys.executable, "-S", "-c", program], cwd=root, check=True, timeout=60, stdout=subprocess.DEVNULL)


# From a shell.


class Shell:
    """What `main` prints, line by line, and the means to end it."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def line(self) -> str:
        line: str = self.output.readline()
        return line.removesuffix("\n")


@contextmanager
def signals_kept() -> Iterator[None]:
    """Undo what `main` does to the handlers of signals."""
    before = {number: signal.getsignal(number) for number in signals_that_end()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_main(arguments: list[str], user: Callable[[Shell], None], end: signal.Signals) -> None:
    """Run `main` in this thread and its user in another; then send the signal, as Ctrl-C does."""
    failures: list[BaseException] = []
    over = threading.Event()

    def use() -> None:
        try:
            user(Shell(output))
        except BaseException as error:
            failures.append(error)
        finally:
            if not over.is_set():
                os.kill(os.getpid(), end)

    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as output, open(writing, "w", encoding="utf-8") as stdout:
        thread = threading.Thread(target=use)
        with contextlib.redirect_stdout(stdout), signals_kept():
            thread.start()
            try:
                main(arguments)
            finally:
                over.set()
                stdout.close()  # a user who waits for a line reads the end
                thread.join()
    assert not failures, failures


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="a process sends no signals on Windows")


@needs_signals
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_shell(tmp_path: Path, end: signal.Signals) -> None:
    """It says in one line how to connect, then prints each command, secrets masked and controls escaped."""
    message = tmp_path / "message.eml"
    message.write_bytes(b"Subject: x\n\nhello\n")

    def user(shell: Shell) -> None:
        found = re.fullmatch(r"pop3://127\.0\.0\.1:(\d+) user alice, password secret", shell.line())
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as sock:
            client = Client(sock)
            client.line()
            client.sign_in()
            assert client.ask(b"RETR 1").startswith(b"+OK")
            assert client.lines() == b"Subject: x\r\n\r\nhello\r\n.\r\n"
            client.ask(b"\x1b[2J")
            client.close()
        printed = [shell.line() for _ in range(4)]
        assert printed == [" USER alice", "alice PASS ***", "alice RETR 1", r"alice \x1b[2J"]

    run_main([str(message)], user, end)


@needs_signals
def test_main_that_exits_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """The means to run `main` end with it, and send no signal afterwards."""
    lines: list[str] = []
    with pytest.raises(SystemExit):
        run_main(["--port", "none"], lambda shell: lines.append(shell.line()), signal.SIGTERM)
    assert lines == [""] and "invalid int value" in capfd.readouterr().err


@needs_signals
def test_shell_tls() -> None:
    """With --tls the line says which certificate to trust; without messages the maildrop is empty."""

    pytest.importorskip("trustme")

    def user(shell: Shell) -> None:
        found = re.fullmatch(r"pop3s://localhost:(\d+) user alice, password secret, trust (.+)", shell.line())
        assert found is not None
        context = ssl.create_default_context(cafile=found[2])
        client = poplib.POP3_SSL("localhost", int(found[1]), timeout=PATIENCE, context=context)
        client.user("alice")
        client.pass_("secret")
        assert client.stat() == (0, 0)
        client.quit()

    run_main(["--tls"], user, signal.SIGINT)


IGNORES = "import os, signal, sys; signal.signal(int(sys.argv[1]), signal.SIG_IGN); os.execv(sys.argv[2], sys.argv[2:])"


@needs_signals
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["-m popart.testing", "example_maildir.py --port 0"])
def test_shell_as_a_program(program: str, end: signal.Signals) -> None:
    """``python3 -m popart.testing`` is the program, and the end it is told to take is a success; so with the example.

    That is so where it was started to ignore that signal, as a script's background jobs are.
    """
    command = [sys.executable, "-c", IGNORES, str(int(end)), sys.executable, *program.split()]
    root = Path(popart.__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"127.0.0.1" in process.stdout.readline()
        process.send_signal(end)
        try:
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
        assert process.stdout.read() == process.stderr.read() == b""


@pytest.mark.parametrize("case", ["missing file", "directory", "port taken", "no port"])
def test_shell_errors(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file or a port that cannot be had is one line on stderr, and exit code 2."""
    with MailServer() as other:
        arguments = {
            "missing file": [str(tmp_path / "missing.eml")],
            "directory": [str(tmp_path)],
            "port taken": ["--port", str(other.port)],
            "no port": ["--port", "70000"],
        }[case]
        with signals_kept(), pytest.raises(SystemExit) as end:
            main(arguments)
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"python3 -m popart\.testing: [^\n]+\n", err)
    if case == "port taken":
        assert f": --port {other.port}: " in err


def test_minimum_timeout() -> None:
    """The test kit takes each limit by its name, the smallest timeout too."""
    with pytest.raises(ValueError, match="timeout must be 5 seconds"), MailServer(minimum_timeout=5, timeout=1):
        pass


def test_an_ssl_context_of_the_test() -> None:
    """With one the server speaks TLS, its URL says so, and it makes none of its own: *tls* is refused."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with MailServer(ssl_context=context) as server:
        assert server.url == f"pop3s://127.0.0.1:{server.port}"
        client = poplib.POP3_SSL(server.host, server.port, timeout=PATIENCE, context=trusting)
        client.quit()
        client.close()
    with pytest.raises(ValueError) as error:
        MailServer(tls=True, ssl_context=context)
    assert str(error.value) == "tls=True makes a certificate of its own: leave out tls or ssl_context"


def test_a_forked_child_starts_again() -> None:
    """A child that has left the block can enter it again, on the port that its parent has left."""
    parent_left, leave = os.pipe()
    child_is_back, come_back = os.pipe()

    def start_again() -> None:
        server.stop()
        os.read(parent_left, 1)
        server.start()
        os.write(come_back, b"!")
        signal.pause()

    with MailServer() as server, contextlib.ExitStack() as block:
        for descriptor in (parent_left, leave, child_is_back):
            block.callback(os.close, descriptor)
        with forked(start_again):
            os.close(come_back)
            server.stop()
            os.write(leave, b"!")
            assert os.read(child_is_back, 1) == b"!"
            with signed_in(server) as client:
                assert client.ask(b"STAT") == b"+OK 0 0\r\n"


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda: MailServer(client_certificates=True), "client_certificates=True needs tls=True"),
        (lambda: MailServer({"": "x"}), "user '' could never sign in: names and passwords must not be empty"),
        (
            lambda: MailServer(tokens={"bob": "x"}),
            "the token of 'bob' could never sign in: it must be a user's, and not empty",
        ),
        (
            lambda: MailServer(tokens={"alice": "x\n"}),
            "the token of 'alice' could never sign in: it must have no NUL, CR or LF",
        ),
        (
            lambda: MailServer().client_certificate("alice"),
            "only a server with client_certificates=True has some, while in its block",
        ),
        (lambda: MailServer().deliver("alice", 5), "a message is bytes, str or email.message.Message, not int"),
        (lambda: MailServer().wait_for_session_end(0.01), "0 sessions open, 0 ended, after 0.01 seconds"),
    ],
)
def test_what_a_wrong_call_is_told(ask: Callable[[], object], text: str) -> None:
    """The error says what is wrong with the call, and what is right."""
    with pytest.raises(Exception) as error:
        ask()
    assert str(error.value) == text


def test_started_twice() -> None:
    """The error says that it runs."""
    with MailServer() as server, pytest.raises(RuntimeError) as error:
        server.start()
    assert str(error.value) == "this server is running already"


def test_the_smallest_timeout() -> None:
    """It is a hundredth of a second."""
    with MailServer(timeout=0.01), pytest.raises(ValueError), MailServer(timeout=0.009):
        pass


def test_a_temporary_directory_that_is_gone() -> None:
    """Whoever empties the directory of temporary files does not break the end of the block."""
    pytest.importorskip("trustme")
    with MailServer(tls=True) as server:
        assert server.ca_file is not None
        shutil.rmtree(Path(server.ca_file).parent)


def test_a_server_that_only_a_forked_child_starts() -> None:
    """Its port, threads and files are the child's, and gone when the child stops it."""
    pytest.importorskip("trustme")
    server = MailServer(tls=True)
    reading, writing = os.pipe()

    def start_and_stop() -> None:
        server.start()
        directory = Path(server.ca_file or "").parent
        was_there = directory.is_dir()
        server.stop()
        os.write(writing, b"gone" if was_there and not directory.exists() else b"left")

    with open(reading, "rb", 0) as told, forked(start_and_stop):
        os.close(writing)
        assert told.read(4) == b"gone"


def test_a_forked_child_closes_what_it_inherited() -> None:
    """A child that leaves the block has no listening socket open any more."""
    reading, writing = os.pipe()

    def leave() -> None:
        descriptor = server._servers[0].fileno()
        server.stop()
        try:
            os.fstat(descriptor)
        except OSError:
            os.write(writing, b"closed")

    with MailServer() as server, open(reading, "rb", 0) as told, forked(leave):
        os.close(writing)
        assert told.read(6) == b"closed"


def test_an_empty_password() -> None:
    """A test may take a user's password away: then every line has the empty one in it, and is shown nevertheless."""
    with MailServer() as server, connected(server) as client:
        server.users["alice"] = ""
        client.ask(b"XTND x")
        assert server.commands == [("", "XTND", "x")]


def test_record_command_that_is_a_coroutine_function() -> None:
    """The error says why no command is recorded."""

    class Wrong(MailServer):
        async def record_command(self, command: tuple[str, ...]) -> None:  # type: ignore[override]
            """Never run."""

    with Wrong() as server, connected(server) as client:
        assert client.ask(b"CAPA").startswith(b"-ERR")
        text = "record_command must not be a coroutine function: its body would never run"
        assert [str(error) for error in server.errors] == [text]


def test_record_command_that_raises_at_another_command() -> None:
    """Only QUIT ends the session, and not a command with that word in it."""
    with Picky("NOOP", AssertionError()) as server, connected(server) as client:
        assert client.ask(b"NOOP QUIT").startswith(b"-ERR")
        assert client.ask(b"USER alice").startswith(b"+OK")
