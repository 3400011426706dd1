"""example_maildir.py, run as its users run it: as a process, read by the standard library's own POP3 client."""

from __future__ import annotations

import email
import email.message
import email.policy
import importlib.util
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
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import example_maildir
from tests.conftest import PATIENCE, Client, wait_until

if TYPE_CHECKING:
    import trustme

SCRIPT = Path(example_maildir.__file__)
MAIL = b"Subject: one\n\nbody\n"


class Example:
    """The example in a process of its own, listening."""

    def __init__(self, process: subprocess.Popen[str], how_to_connect: str) -> None:
        self.process = process
        self.how_to_connect = how_to_connect
        address = re.search(r" on (\S+):(\d+): ", how_to_connect)
        assert address, how_to_connect
        self.host, self.port = address[1].strip("[]"), int(address[2])

    def stop(self, number: signal.Signals = signal.SIGINT) -> list[str]:
        """End it by a signal, see that it ends well, and return what it printed once it was ready."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, err) == (0, "")
        return out.splitlines()


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the example, in a directory that is not its own.  A file or socket left open is told on stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", SCRIPT, *arguments],
        cwd=SCRIPT.anchor,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def example(*arguments: str | Path) -> Iterator[Example]:
    """Run the example on a free port.  When left, it has been stopped, and stopped well."""
    with start("--port", "0", *arguments) as process:
        watchdog = threading.Timer(3 * PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            started = Example(process, process.stdout.readline())
            yield started
            if process.poll() is None:
                started.stop()
        finally:
            process.kill()
            watchdog.cancel()
            watchdog.join()


@contextmanager
def signed_in(server: Example, context: ssl.SSLContext | None = None) -> Iterator[poplib.POP3]:
    """Sign in with poplib.  The test says QUIT itself, or leaves without it."""
    if context is None:
        client = poplib.POP3(server.host, server.port, timeout=PATIENCE)
    else:
        client = poplib.POP3_SSL("localhost", server.port, timeout=PATIENCE, context=context)
    with closing(client):
        client.user("alice")
        client.pass_("secret")
        yield client


@contextmanager
def connected(server: Example) -> Iterator[Client]:
    """Connect a raw client and read the greeting."""
    with socket.create_connection((server.host, server.port)) as sock, closing(Client(sock)) as client:
        assert client.line().startswith(b"+OK")
        yield client


def is_refused(server: Example) -> bool:
    """Tell whether the example listens no more."""
    with socket.socket() as sock:
        return sock.connect_ex((server.host, server.port)) != 0


def read(client: poplib.POP3, number: int) -> bytes:
    """Return a message as poplib gives it, the line ends put back."""
    return b"".join(line + b"\r\n" for line in client.retr(number)[1])


def read_all(client: poplib.POP3) -> list[bytes]:
    """Return all messages, and see that STAT and LIST told their true sizes."""
    messages = [read(client, number) for number in range(1, client.stat()[0] + 1)]
    assert client.stat() == (len(messages), sum(map(len, messages)))
    assert client.list()[1] == [b"%d %d" % (number, len(octets)) for number, octets in enumerate(messages, 1)]
    return messages


def on_the_wire(octets: bytes) -> bytes:
    """Return the message that a client must receive for these octets of a file."""
    octets = re.sub(rb"\r?\n", b"\r\n", octets)
    return octets if octets.endswith(b"\r\n") or not octets else octets + b"\r\n"


def ids(server: Example) -> list[bytes]:
    """Return all unique-ids, in the order of the message numbers."""
    with signed_in(server) as client:
        found = [line.split(b" ")[1] for line in client.uidl()[1]]
        client.quit()
    return found


def parse(octets: bytes) -> email.message.EmailMessage:
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    assert not message.defects
    return message


def make_maildir(directory: Path) -> Path:
    for name in ("new", "cur", "tmp"):
        (directory / name).mkdir(parents=True)
    return directory


class TestSamples:
    """What is served without --maildir."""

    def test_are_read_byte_for_byte(self) -> None:
        """Another process made the same samples, and a client receives their very octets, as many as announced."""
        expected = []
        for message in example_maildir.make_samples():
            with closing(message.open()) as reader:
                expected.append(on_the_wire(reader.read(1_000_000)))
        with example() as server, signed_in(server) as client:
            assert read_all(client) == expected
            client.quit()

    def test_are_what_they_say(self) -> None:
        """There are a UTF-8 mail, a mail with a picture that is a PNG file, and one with lines that start with dots."""
        with example() as server, signed_in(server) as client:
            mail = {str(message["Subject"]): message for message in map(parse, read_all(client))}
            client.quit()

        utf8 = mail["Grüße in UTF-8: ζ, 日本語, 🐦"]
        assert str(utf8["From"]) == "Zoë Nováková <zoe@example.org>"
        assert utf8["Content-Transfer-Encoding"] == "8bit"
        assert utf8.get_content().splitlines()[0] == "Zwölf Boxkämpfer jagen Viktor über den Sylter Deich."

        (attachment,) = mail["A small picture"].iter_attachments()
        assert attachment.get_content_type() == "image/png"
        png = attachment.get_content()
        assert png[:16] == b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
        width, height = struct.unpack(">II", png[16:24])
        (length,) = struct.unpack(">I", png[33:37])
        assert png[37:41] == b"IDAT"
        # One bit for each of its pixels, and one octet before each of its rows.
        assert len(zlib.decompress(png[41 : 41 + length])) == height * (width // 8 + 1)

        lines = mail["Lines that start with dots"].get_content().splitlines()
        assert [line for line in lines if line.startswith(".")] == [
            ".",
            "..",
            "...",
            ".profile and .netrc are files.",
        ]

    def test_have_fixed_ids(self) -> None:
        """RFC 1939 section 7: unique-ids persist across sessions, here from one run to the next."""
        with example() as first, example() as second:
            assert ids(first) == ids(second)


class TestDirectories:
    """What is served with --maildir."""

    def test_plain_directory(self, tmp_path: Path) -> None:
        """Files are messages, sorted by name, and keep their ids; what is no file, or a dot file, is not served."""
        names = ["1.eml", "2 two:words", "3" * 200, "4\n\x1b[31m", "5-é", "6-\udcff"]
        for name in names:
            (tmp_path / name).write_bytes(MAIL + os.fsencode(name))
        (tmp_path / "7-empty").touch()
        (tmp_path / ".hidden").write_bytes(MAIL)
        (tmp_path / "directory").mkdir()
        (tmp_path / "directory" / "inside").write_bytes(MAIL)
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "dangling").symlink_to("nowhere")
        with example("--maildir", tmp_path) as server:
            with signed_in(server) as client:
                assert read_all(client) == [on_the_wire(MAIL + os.fsencode(name)) for name in names] + [b""]
                client.quit()
            first = ids(server)
        assert len(set(first)) == 7
        assert (first[0], first[-1]) == (b"1.eml", b"7-empty")
        with example("--maildir", tmp_path) as server:
            assert ids(server) == first

    def test_maildir(self, tmp_path: Path) -> None:
        """new/ and cur/ are served by name; a message keeps its number and id when it moves and its flags change."""
        maildir = make_maildir(tmp_path)
        files = ["cur/1.host:2,S", "new/2.host", "cur/3.host:2,", "new/4.host"]
        for name in files:
            (maildir / name).write_bytes(MAIL + name.encode())
        (maildir / "tmp" / "5.host").write_bytes(MAIL)
        (maildir / ".Sent").mkdir()
        (maildir / "not-in-a-folder").write_bytes(MAIL)
        with example("--maildir", maildir) as server:
            with signed_in(server) as client:
                assert read_all(client) == [on_the_wire(MAIL + name.encode()) for name in files]
                client.quit()
            assert ids(server) == [b"1.host", b"2.host", b"3.host", b"4.host"]
            (maildir / "new" / "2.host").rename(maildir / "cur" / "2.host:2,RS")
            (maildir / "cur" / "3.host:2,").rename(maildir / "cur" / "3.host:2,T")
            assert ids(server) == [b"1.host", b"2.host", b"3.host", b"4.host"]

    def test_message_seen_twice(self, tmp_path: Path) -> None:
        """A message that moves from new/ to cur/ while they are listed is one message: ids stay unique."""
        maildir = make_maildir(tmp_path)
        for name in ("new/1.host", "cur/1.host:2,S"):
            (maildir / name).write_bytes(MAIL)
        with example("--maildir", maildir) as server:
            assert ids(server) == [b"1.host"]

    @pytest.mark.parametrize("change", [Path.unlink, lambda path: (path.unlink(), path.mkdir())], ids=["gone", "other"])
    def test_message_that_cannot_be_opened_any_more(self, tmp_path: Path, change: Callable[[Path], object]) -> None:
        """It is an -ERR that tells nothing of the machine, and the session goes on."""
        for name in ("1", "2"):
            (tmp_path / name).write_bytes(MAIL)
        with example("--maildir", tmp_path) as server:
            with signed_in(server) as client:
                change(tmp_path / "1")
                with pytest.raises(
                    poplib.error_proto, match=r"-ERR \[SYS/TEMP\] the message is gone or cannot be opened'"
                ):
                    client.retr(1)
                assert read(client, 2) == on_the_wire(MAIL)
                client.quit()
            assert sum("session error" in line for line in server.stop()) == 1

    @pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that even root cannot read")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A file that cannot be read is left out, and said to be; if it could be before, it is an -ERR."""
        (tmp_path / "1").symlink_to("/proc/self/mem")
        (tmp_path / "2").write_bytes(MAIL)
        (tmp_path / "3").write_bytes(MAIL)
        with example("--maildir", tmp_path) as server:
            with signed_in(server) as client:
                (tmp_path / "2").unlink()
                (tmp_path / "2").symlink_to("/proc/self/mem")
                with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                    client.retr(1)
                assert read(client, 2) == on_the_wire(MAIL)
                client.quit()
            lines = server.stop()
        assert sum(line.startswith("left out: OSError") for line in lines) == 1
        assert sum("session error: OSError" in line for line in lines) == 1

    def test_directory_that_goes_away(self, tmp_path: Path) -> None:
        """A sign-in then fails with an -ERR; the server goes on and serves the directory when it is back."""
        directory = tmp_path / "mail"
        directory.mkdir()
        with example("--maildir", directory) as server:
            directory.rmdir()
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"), signed_in(server):
                pass
            directory.mkdir()
            with signed_in(server) as client:
                assert client.stat() == (0, 0)
                client.quit()

    def test_real_mail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The odd messages, and the pictures and sounds, of CPython's own email tests arrive octet for octet."""
        try:
            spec = importlib.util.find_spec("test.test_email")
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None or not (data := Path(spec.origin).parent / "data").is_dir():
            pytest.skip("this Python was installed without its test_email data")
        # One of the sounds has a "line" of 22,825 octets, and poplib stops at 2,046.
        monkeypatch.setattr(poplib, "_MAXLINE", 1_000_000)
        files = sorted(path for path in data.iterdir() if path.is_file() and not path.name.startswith("."))
        assert len([path for path in files if path.name.startswith("msg_")]) > 40
        with example("--maildir", data) as server, signed_in(server) as client:
            for path, octets in zip(files, read_all(client), strict=True):
                assert octets == on_the_wire(path.read_bytes()), path.name
            client.quit()


class TestSessions:
    """What a client may do, and what the example says of it."""

    def test_events(self) -> None:
        """Each event of a session is one line.  A name cannot write to the terminal, and no password is shown."""
        with example() as server:
            with connected(server) as client:
                peer = "{}:{}".format(*client.sock.getsockname())
                client.ask("USER \x1b[31m\u202eal'ice".encode())
                assert client.ask(b"PASS hunter2 hunter2").startswith(b"+OK")
                for command in (b"RETR 1", b"TOP 2 0"):
                    assert client.ask(command).startswith(b"+OK")
                    client.lines()
                for command in (b"DELE 4", b"DELE 3", b"QUIT"):
                    assert client.ask(command).startswith(b"+OK")
                assert client.rest() == b""
            assert server.stop() == [
                f"{peer} connected",
                f'{peer} signed in as "\\x1b[31m\\u202eal\'ice", messages: 5',
                f"{peer} reads message 1, '1-welcome'",
                f"{peer} reads message 2, '2-utf-8'",
                f"{peer} would delete message 3, '3-picture'",
                f"{peer} would delete message 4, '4-dots'",
                f"{peer} session over",
            ]

    def test_client_that_leaves(self) -> None:
        """A client that goes without QUIT is a session error, and nothing would be deleted."""
        with example() as server:
            with connected(server) as client:
                peer = "{}:{}".format(*client.sock.getsockname())
                client.sign_in()
                assert client.ask(b"DELE 1").startswith(b"+OK")
                client.sock.shutdown(socket.SHUT_WR)
                assert client.rest() == b""
            assert server.stop() == [
                f"{peer} connected",
                f"{peer} signed in as 'alice', messages: 5",
                f"{peer} session error: ClientGoneError('the client left without QUIT')",
                f"{peer} session over",
            ]

    def test_nothing_is_deleted(self, tmp_path: Path) -> None:
        """DELE and QUIT leave every file where it was, with what was in it."""
        maildir = make_maildir(tmp_path)
        files = [maildir / "new" / "1.host", maildir / "cur" / "2.host:2,S"]
        for path in files:
            path.write_bytes(MAIL)
        with example("--maildir", maildir) as server:
            with signed_in(server) as client:
                client.dele(1)
                client.dele(2)
                client.quit()
            assert [path.read_bytes() for path in files] == [MAIL, MAIL]
            assert [line.split(" ", 1)[1] for line in server.stop() if "would" in line] == [
                "would delete message 1, '1.host'",
                "would delete message 2, '2.host'",
            ]

    def test_two_at_a_time(self) -> None:
        """telnet and a mail program may look at the same mail: there is nothing to lock."""
        with example() as server, signed_in(server) as first, signed_in(server) as second:
            assert read_all(first) == read_all(second)
            first.quit()
            second.quit()

    def test_apop(self) -> None:
        """RFC 1939 section 7: without a timestamp in the greeting there is no APOP."""
        with example() as server, connected(server) as client:
            assert client.ask(b"APOP alice " + b"0" * 32).startswith(b"-ERR")


class TestProgram:
    """Options, signals and words."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals(self, number: signal.Signals) -> None:
        """Ctrl-C and SIGTERM end it with exit code 0 and no traceback, sessions too, and nothing would be deleted."""
        with example() as server, connected(server) as idle, signed_in(server) as client:
            client.dele(1)
            lines = server.stop(number)
            assert idle.rest() == b""
        assert sum(line.endswith(" session over") for line in lines) == 2
        assert not [line for line in lines if "error" in line or "delete" in line]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_second_signal(self, tmp_path: Path, number: signal.Signals) -> None:
        """It ends the grace of 5 seconds that a client has which does not read its message."""
        (tmp_path / "1").write_bytes(MAIL + b"x" * 30_000_000)
        with example("--maildir", tmp_path) as server, connected(server) as client:
            client.sign_in()
            assert client.ask(b"RETR 1").startswith(b"+OK")
            server.process.send_signal(number)
            wait_until(lambda: is_refused(server))
            began = time.monotonic()
            lines = server.stop(number)
            assert time.monotonic() - began < 3
        assert lines[-1].endswith(" session over")
        assert not [line for line in lines if "error" in line]

    def test_how_to_connect(self) -> None:
        """The first line names a command that connects: the real host, and the real port where 0 was asked for."""
        with example() as server:
            assert server.port != 0
            assert f"telnet 127.0.0.1 {server.port}," in server.how_to_connect

    def test_ipv6(self) -> None:
        """An IPv6 address stands in brackets before a port, and without them in a telnet command."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        with example("--host", "::1") as server:
            assert f" on [::1]:{server.port}: try telnet ::1 {server.port}," in server.how_to_connect
            with connected(server) as client:
                assert client.ask(b"QUIT").startswith(b"+OK")
            assert all(line.startswith("[::1]:") for line in server.stop())

    def test_defaults(self) -> None:
        """--help tells that it listens on port 1100, for this machine alone."""
        with start("--help") as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert "(default: 1100)" in out
        assert "(default: 127.0.0.1)" in out

    def test_nobody_reads_its_output(self) -> None:
        """After "| head -1" it serves on in silence, and still ends well."""
        with example() as server:
            assert server.process.stdout is not None
            server.process.stdout.close()
            with signed_in(server) as client:
                assert len(read_all(client)) == 5
                client.quit()
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(PATIENCE) == 0
            assert server.process.stderr is not None
            assert server.process.stderr.read() == ""

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            pytest.param(["--maildir", "{}/missing"], "No such file or directory", id="missing directory"),
            pytest.param(["--maildir", "{}/key.pem"], "Not a directory", id="no directory"),
            pytest.param(["--maildir", "{}/two\nlines"], "No such file or directory", id="directory of two lines"),
            pytest.param(["--port", "65536"], "port must be 0-65535", id="port too high"),
            pytest.param(["--port", "-1"], "port must be 0-65535", id="port negative"),
            pytest.param(["--port", "pop3"], "invalid int value", id="port no number"),
            pytest.param(["--host", "\u00fc..org"], "cannot listen on '\\xfc..org'", id="host no name"),
            pytest.param(["--certfile", "{}/cert.pem"], "together", id="no key"),
            pytest.param(["--keyfile", "{}/key.pem"], "together", id="no certificate"),
            pytest.param(["--certfile", "{}/missing", "--keyfile", "{}/key.pem"], "No such file", id="missing file"),
            pytest.param(["--certfile", "{}/mail", "--keyfile", "{}/key.pem"], "cannot use", id="bad certificate"),
            pytest.param(["--certfile", "{}/cert.pem", "--keyfile", "{}/mail"], "cannot use", id="bad key"),
            pytest.param(["--certfile", "{}/cert.pem", "--keyfile", "{}/other.pem"], "cannot use", id="other's key"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, authority: trustme.CA, arguments: list[str], reason: str) -> None:
        """What cannot work is said in one line on stderr, with exit code 2 and no traceback."""
        certificate, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        other.private_key_pem.write_to_path(tmp_path / "other.pem")
        (tmp_path / "mail").write_bytes(MAIL)
        self.assert_refused(reason, *[argument.format(tmp_path) for argument in arguments])

    def test_port_in_use(self) -> None:
        """So is a port that another program has."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            self.assert_refused("Address already in use", "--port", str(other.getsockname()[1]))

    def assert_refused(self, reason: str, *arguments: str) -> None:
        with start("--port", "0", *arguments) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        assert (process.returncode, out) == (2, "")
        assert reason in err
        assert err.endswith("\n") and err.count("\n") == 1

    def test_tls(self, tmp_path: Path, authority: trustme.CA, client_context: ssl.SSLContext) -> None:
        """With a certificate all connections are TLS; one that is not is a session error, and says so."""
        certificate = authority.issue_cert("localhost")
        certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
        certificate.cert_chain_pems[0].write_to_path(certfile)
        certificate.private_key_pem.write_to_path(keyfile)
        with example("--certfile", certfile, "--keyfile", keyfile) as server:
            assert f"openssl s_client -crlf -quiet -connect 127.0.0.1:{server.port}," in server.how_to_connect
            with signed_in(server, client_context) as client:
                assert len(read_all(client)) == 5
                client.quit()
            with socket.create_connection((server.host, server.port)) as sock, closing(Client(sock)) as plain:
                plain.send(b"CAPA\r\n")
                with suppress(ConnectionResetError):
                    assert b"OK" not in plain.rest()
            assert sum("session error: SSLError" in line for line in server.stop()) == 1
