"""The gateway to IMAP: what other programs do to the mailbox meanwhile."""

from __future__ import annotations

import base64
import imaplib
import importlib
import poplib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from backends import Dovecot
from conftest import EXAMPLES, Gateway, command, started
from door import PATIENCE, Door
from test_each_gateway import SMALL, connected, delete, fetch, fetch_all

import popart
from tests.conftest import Client, authority, wait_until

__all__ = ["authority"]

pytestmark = pytest.mark.parametrize("backend", ["imap"], indirect=True)


@contextmanager
def other_program(backend: Dovecot) -> Iterator[imaplib.IMAP4]:
    """Another program that has the mailbox open."""
    with imaplib.IMAP4("127.0.0.1", backend.port, timeout=PATIENCE) as imap:
        imap.login("alice", "secret")
        imap.select("INBOX")
        yield imap


def test_tokens(backend: Dovecot, gateway: Gateway) -> None:
    """A token is passed through by XOAUTH2; the client reads of a wrong one as the mechanism demands."""
    backend.deliver(*SMALL)
    for token, answer in ((b"wrong", b"-ERR [AUTH] "), (b"a.token", b"+OK ")):
        client = connected(gateway)
        response = base64.b64encode(b"user=alice\1auth=Bearer " + token + b"\1\1")
        line = client.ask(b"AUTH XOAUTH2 " + response)
        if line.startswith(b"+ "):
            line = client.ask(b"")
        assert line.startswith(answer)
        client.ask(b"QUIT")
        client.close()
    assert "wrong" not in gateway.log() and "a.token" not in gateway.log()


def test_a_name_in_another_case(backend: Dovecot, gateway: Gateway) -> None:
    """For Dovecot ALICE is alice, so the maildrop is locked for both."""
    with gateway.client():
        client = connected(gateway)
        client.ask(b"USER ALICE")
        assert client.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
        client.close()


def test_names_and_passwords_are_passed_as_they_are(backend: Dovecot, gateway: Gateway) -> None:
    """Spaces, quotes and letters outside ASCII reach the backend."""
    client = poplib.POP3("127.0.0.1", gateway.port, timeout=PATIENCE)
    client.user("bob builder")
    client.pass_('pässwört \\ "x"')
    client.quit()


@pytest.mark.parametrize(
    ("refusal", "answer"),
    [
        ("NO [UNAVAILABLE] Temporary authentication failure.", "SYS/TEMP"),
        ("NO [AUTHENTICATIONFAILED] Authentication failed.", "AUTH"),
        ("NO sorry", "AUTH"),
        ("NO [PRIVACYREQUIRED] Not without TLS.", "SYS/TEMP"),
        ("NO [CONTACTADMIN] The account is locked.", "SYS/TEMP"),
        ("BAD User is authenticated but not connected.", "SYS/TEMP"),
        ("", "SYS/TEMP"),  # no way to sign in
    ],
)
def test_a_failure_of_the_backend_is_not_a_wrong_password(
    backend: Dovecot, tmp_path: Path, refusal: str, answer: str
) -> None:
    """If the IMAP server does not say that the password is wrong (RFC 5530), the client reads SYS/TEMP."""
    mechanisms = "AUTH=PLAIN" if refusal else "AUTH=GSSAPI"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse_sign_ins, args=[listener, refusal, mechanisms], daemon=True)
        thread.start()
        with started(command(backend, listener.getsockname()[1]), tmp_path / "log") as gateway:
            with pytest.raises(poplib.error_proto, match=rf"-ERR \[{answer}\]"), gateway.client():
                pass
        thread.join()


def refuse_sign_ins(listener: socket.socket, refusal: str, mechanisms: str) -> None:
    """Be an IMAP server, for one connection."""
    sock, _ = listener.accept()
    with sock, sock.makefile("rwb", buffering=0) as file:
        file.write(b"* OK ready\r\n")
        while line := file.readline():
            tag, command = line.split()[:2]
            if command == b"AUTHENTICATE":
                file.write(b"+ \r\n")
                file.readline()
                file.write(tag + f" {refusal}\r\n".encode())
            else:
                file.write(f"* CAPABILITY IMAP4rev1 {mechanisms}\r\n".encode() + tag + b" OK done\r\n")


def test_reading_leaves_no_trace(backend: Dovecot, gateway: Gateway) -> None:
    """No message is marked as read."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        fetch_all(client)
        client.quit()
    with other_program(backend) as imap:
        assert imap.search(None, "SEEN") == ("OK", [b""])


def test_what_others_marked_is_not_removed(backend: Dovecot, gateway: Gateway) -> None:
    """Messages that other programs mark as deleted, before or meanwhile, stay until these programs remove them."""
    backend.deliver(*SMALL)
    with other_program(backend) as imap:
        imap.store("1", "+FLAGS", r"(\Deleted)")
        with gateway.client() as client:
            assert fetch_all(client) == SMALL[1:]
            imap.store("3", "+FLAGS", r"(\Deleted)")
            delete(client, 1, 3)  # messages 2 and 4 of IMAP: in a range of UIDs, 3 would be between them
            client.quit()
        assert backend.files() == 3
        imap.store("1:*", "-FLAGS", r"(\Deleted)")
    assert backend.mail() == [SMALL[0], SMALL[2], SMALL[4]]


def test_a_message_that_vanished(backend: Dovecot, gateway: Gateway) -> None:
    """RETR of a message that another program has deleted is refused; the others keep their numbers."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        with other_program(backend) as imap:
            imap.store("1,3", "+FLAGS", r"(\Deleted)")
            imap.expunge()
        with pytest.raises(poplib.error_proto, match="-ERR the message is gone"):
            client.retr(3)
        assert fetch(client, 4) == SMALL[3]
        delete(client, 3, 4)
        client.quit()
    assert backend.mail() == [SMALL[1], SMALL[4]]


def test_a_mailbox_that_was_made_anew(backend: Dovecot, gateway: Gateway) -> None:
    """With another UIDVALIDITY the UIDs stand for other messages: nothing is read and nothing deleted by them."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        before = client.uidl()[1]
        delete(client, 1, 2)
        backend.stop()
        backend.renumber()
        backend.start()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] the mailbox was made anew"):
            client.retr(3)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\] the mailbox was made anew"):
            client.quit()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        assert not set(client.uidl()[1]) & set(before)
        client.quit()


def test_marked_but_not_removed(backend: Dovecot, door: Door, gateway: Gateway) -> None:
    """If the backend dies between the two steps of the commit, all messages are deleted, and the client reads +OK."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        door.shut_at(b" UID EXPUNGE ", stays_shut=True)
        client.quit()
    assert door.was_shut.is_set()
    assert "'alice': " in gateway.log()
    door.open()
    with gateway.client() as client:
        assert fetch_all(client) == [SMALL[1], SMALL[3], SMALL[4]]
        client.quit()


def test_a_store_that_only_claims_to_work(backend: Dovecot, gateway: Gateway) -> None:
    """Dovecot answers STORE with OK though it cannot write: QUIT is refused, and nothing is deleted."""
    backend.deliver(*SMALL)
    with gateway.client() as client:
        delete(client, 1, 3)
        with backend.read_only(), pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            client.quit()
    assert "did not mark all messages" in gateway.log()
    assert backend.mail() == SMALL
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()


def test_without_uidplus(backend: Dovecot, directory: Path, tmp_path: Path) -> None:
    """A server without UID EXPUNGE keeps the messages.  They are marked, and listed no more."""
    (directory / "old").mkdir()
    old = Dovecot(directory / "old", "imap_capability = IMAP4rev1")
    old.deliver(*SMALL)
    old.start()
    try:
        with started(command(old, old.port), tmp_path / "log") as gateway:
            for left in (SMALL, [SMALL[1], SMALL[3], SMALL[4]]):
                with gateway.client() as client:
                    assert fetch_all(client) == left
                    delete(client, *[number for number in (1, 3) if left == SMALL])
                    client.quit()
        assert old.files() == len(SMALL)
    finally:
        old.stop()


def test_tls(backend: Dovecot, authority: trustme.CA, directory: Path, tmp_path: Path) -> None:
    """TLS on both sides: without --imap-plain the server's certificate is checked, and --pem is the gateway's own."""
    (directory / "tls").mkdir()
    pem = directory / "pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    secure = Dovecot(directory / "tls", f"ssl = yes\nssl_cert = <{pem}\nssl_key = <{pem}", listener="imaps")
    secure.deliver(*SMALL)
    secure.start()
    script = str(EXAMPLES / backend.script)
    arguments = [sys.executable, script, "localhost", "--imap-port", str(secure.port), "--port", "0", "--pem", str(pem)]
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    try:
        for trusted, answer in ((directory / "ca.pem", b"+OK "), (directory / "none.pem", b"-ERR [SYS/TEMP] ")):
            with started(["env", f"SSL_CERT_FILE={trusted}", *arguments], tmp_path / "log") as gateway:
                raw = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
                client = Client(context.wrap_socket(raw, server_hostname="localhost"))
                assert client.line().startswith(b"+OK ")
                client.ask(b"USER alice")
                assert client.ask(b"PASS secret").startswith(answer)
                client.close()
    finally:
        secure.stop()


def test_no_connection_is_left(backend: Dovecot, door: Door, gateway: Gateway) -> None:
    """When a session is over, signed in or not, its connection to the backend is closed."""
    for password in (b"secret", b"wrong"):
        client = connected(gateway)
        client.ask(b"USER alice")
        client.ask(b"PASS " + password)
        client.close()
        wait_until(lambda: door.inside == 0)


def test_estimated_sizes(backend: Dovecot, tmp_path: Path) -> None:
    """With --estimated-sizes nothing depends on what the server says of sizes."""
    backend.deliver(*SMALL)
    arguments = command(backend, backend.port, "--estimated-sizes")
    with started(arguments, tmp_path / "log") as gateway, gateway.client() as client:
        assert client.list()[1] == [b"%d 1" % number for number in range(1, 6)]
        assert fetch_all(client) == SMALL
        client.quit()


@pytest.fixture
def handler(backend: Dovecot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A handler without a server, for which alice has signed in.  It names two messages in one command."""
    backend.deliver(*SMALL)
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("imap_gateway")
    monkeypatch.setattr(module, "BATCH", 2)
    handler = module.IMAPHandler(lambda: imaplib.IMAP4("127.0.0.1", backend.port, PATIENCE))
    handler.authenticate_pass("alice", "secret")
    handler.list_messages()
    yield handler
    handler.close()


Refuse = Callable[[tuple[str, ...], Callable[[], Any]], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """A function that lets the UID commands fail which begin with these words."""

    def refuse(words: tuple[str, ...], answer: Callable[[], Any]) -> None:
        uid = imaplib.IMAP4.uid

        def ask(imap: imaplib.IMAP4, *command: str) -> Any:
            return answer() if command[: len(words)] == words else uid(imap, *command)

        monkeypatch.setattr(imaplib.IMAP4, "uid", ask)

    return refuse


def refusal() -> Any:
    return "NO", [b"[NOPERM] no"]


def loss() -> Any:
    raise imaplib.IMAP4.abort("the connection is lost")


def silence() -> Any:
    raise TimeoutError("timed out")


@pytest.mark.parametrize(
    ("answer", "error"), [(refusal, imaplib.IMAP4.error), (loss, imaplib.IMAP4.abort), (silence, TimeoutError)]
)
def test_marks_are_taken_back(
    backend: Dovecot, handler: Any, refuse: Refuse, answer: Callable[[], Any], error: type[Exception]
) -> None:
    """If only some of many messages can be marked, for whatever reason, none is deleted."""
    refuse(("STORE", "3,4", "+FLAGS.SILENT"), answer)
    with pytest.raises(error):
        handler.delete_messages([1, 2, 3, 4, 5])
    assert len(handler.list_messages()) == len(SMALL)
    assert backend.mail() == SMALL


def test_marks_that_cannot_be_taken_back(handler: Any, refuse: Refuse, caplog: pytest.LogCaptureFixture) -> None:
    """The client reads the first failure, and the log has the second."""
    refuse(("STORE", "3,4", "+FLAGS.SILENT"), refusal)
    refuse(("STORE", "1,2", "-FLAGS.SILENT"), silence)
    with pytest.raises(imaplib.IMAP4.error, match="NOPERM"):
        handler.delete_messages([1, 2, 3, 4, 5])
    assert "TimeoutError" in caplog.text


@pytest.mark.parametrize("answer", [refusal, loss, silence])
def test_expunge_fails(backend: Dovecot, handler: Any, refuse: Refuse, answer: Callable[[], Any]) -> None:
    """The marks have decided: the messages are deleted, although they are still there, and nothing is raised."""
    refuse(("EXPUNGE", "3,4"), answer)
    handler.delete_messages([1, 2, 3, 4])
    assert len(handler.list_messages()) == 1
    assert backend.mail() == SMALL[4:]


def test_a_password_that_is_refused_later(backend: Dovecot, handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token may expire before a reconnect.  Nobody is told of a wrong password, and it is not sent again."""
    asked = []

    def refuse(imap: imaplib.IMAP4, mechanism: str, respond: Any) -> Any:
        asked.append(mechanism)
        raise imaplib.IMAP4.error("[AUTHENTICATIONFAILED] no")

    monkeypatch.setattr(imaplib.IMAP4, "authenticate", refuse)
    handler._imap.shutdown()
    for ask in (lambda: handler.get_message_reader(1).read(10), lambda: handler.delete_messages([1])):
        with pytest.raises(popart.ReportableError, match="by now") as caught:
            ask()
        assert caught.value.code == "SYS/TEMP"
    assert asked == ["PLAIN"]
    assert backend.mail() == SMALL
