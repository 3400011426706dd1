"""What the documentation shows is so: its tutorial can be followed, its examples run, its pictures are current.

What an example needs besides the ``test`` extra may be missing: then its test is skipped, but with the environment
variable DOCS=complete it fails.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import importlib.util
import os
import poplib
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import scramp

import popart
from popart.testing import MailServer
from popart.testing.faults import Faults
from tests.conftest import PATIENCE, Client, Mail, MemoryHandler, connected, running, signed_in, wait_until
from tests.wire.other_servers import make_table

if TYPE_CHECKING:
    import trustme

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted(DOCS.glob("*.rst"))


def load(name: str) -> ModuleType:
    """Import one of the scripts in docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams = load("diagrams")
follow_tutorial = load("follow_tutorial")


def need(found: object, what: str) -> None:
    """Skip a test, or fail it, where something is missing."""
    if not found:
        (pytest.fail if os.environ.get("DOCS") == "complete" else pytest.skip)(f"{what} is not installed")


def copy_examples(directory: Path, *names: str) -> None:
    """Make the files that a page shows, with any free port in place of 1100 and 9950."""
    for name in names:
        (directory / name).write_text(re.sub(r"\b(1100|9950)\b", "0", (EXAMPLES / name).read_text("utf-8")), "utf-8")


@contextmanager
def process(directory: Path, *command: str, ends: int = 0, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a server, end it as a service manager does, and see that it ends with the status *ends*."""
    with subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    ) as server:
        try:
            yield server
            server.terminate()
            assert server.wait(PATIENCE) == ends
        finally:
            server.kill()


def line_of(server: subprocess.Popen[str]) -> str:
    """Return the next line that a server prints."""
    assert server.stdout is not None
    return server.stdout.readline()


def port_of(server: subprocess.Popen[str]) -> int:
    """Return the port that an example prints first."""
    return int(line_of(server).split()[-1])


def run(directory: Path, *command: str) -> str:
    """Run a program that must succeed; return its output."""
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def client_of(port: int, password: str = "secret") -> Iterator[poplib.POP3]:
    """Sign in as alice."""
    client = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.user("alice")
        client.pass_(password)
        yield client
    finally:
        client.close()


# The tutorial.


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    """Each file is made, each command run and each session held as printed, and the answers are those printed."""
    tools, desk = tmp_path / "bin", tmp_path / "desk"
    tools.mkdir()
    desk.mkdir()
    python = tools / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    follow_tutorial.follow_all(desk, {"PATH": f"{tools}:{os.environ['PATH']}"})


def test_an_answer_that_is_not_printed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower of the tutorial does not take any answer for the right one."""
    page = tmp_path / "page.rst"
    with follow_tutorial.Reader(tmp_path, {}) as reader, MailServer() as server:
        page.write_text(".. code-block:: console\n\n   $ echo yes\n   no\n   $ true\n")
        with monkeypatch.context() as impatient, pytest.raises(AssertionError, match="should have said:\nno"):
            impatient.setattr(follow_tutorial, "PATIENCE", 0.5)
            reader.follow(page)
        page.write_text(f".. code-block:: pop3\n\n   $ telnet 127.0.0.1 {server.port}\n   S: +OK hello\n")
        with pytest.raises(AssertionError, match="POP3 server ready"):
            reader.follow(page)


@pytest.fixture
def mail_db(tmp_path: Path) -> Path:
    """A directory with the second part's files, and alice's three messages."""
    copy_examples(tmp_path, "mailstore.py", "mail_in_sqlite.py", "serve_tls.py", "two_ports.py", "systemd_sockets.py")
    copy_examples(tmp_path, "behind_haproxy.py", "one_of_many.py")
    run(tmp_path, sys.executable, "mailstore.py")
    return tmp_path


def test_a_process_killed_while_it_deletes_deletes_nothing(mail_db: Path) -> None:
    """Part 2: all is deleted or nothing, and a client that was not told +OK finds what it had."""
    (mail_db / "killed.py").write_text(
        textwrap.dedent("""
            import os, runpy, signal
            import mailstore

            connect = mailstore.connect

            def connect_and_die():
                db = connect()
                db.set_trace_callback(lambda sql: sql == "COMMIT" and os.kill(os.getpid(), signal.SIGKILL))
                return db

            mailstore.connect = connect_and_die
            runpy.run_path("mail_in_sqlite.py", run_name="__main__")
        """)
    )
    with process(mail_db, sys.executable, "killed.py", ends=-signal.SIGKILL) as server:
        with client_of(port_of(server)) as client:
            client.dele(1)
            client.dele(3)
            with pytest.raises((poplib.error_proto, ConnectionError)):
                client.quit()
        server.wait(PATIENCE)
    with process(mail_db, sys.executable, "mail_in_sqlite.py") as server, client_of(port_of(server)) as client:
        assert client.stat()[0] == 3


def test_the_lock_holds_between_processes(mail_db: Path) -> None:
    """Part 2: flock is not only between the sessions of one process."""
    with process(mail_db, sys.executable, "mail_in_sqlite.py") as server:
        port = port_of(server)
        with open(mail_db / "locks" / "1.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(poplib.error_proto, match="IN-USE"), client_of(port):
                pass
        with client_of(port) as client:
            assert client.stat()[0] == 3


# Installing.

BY_NAME = re.compile(r"popart[-_]pop3(?!-\S*\.whl)|\bpip3? install( -\S+)* ['\"]?popart\b", re.IGNORECASE)
"""The project's name on an index, but not that of a wheel's file; and what would install the other popart there."""


def test_nothing_is_installed_by_a_name_that_is_not_ours() -> None:
    """popart is on no index, and anybody may take its name there: only install.rst and the metadata speak of it."""
    files = [path for path in DOCS.parent.glob("*") if path.is_file() and path.name != "PKG-INFO"]
    for name in ("popart", "docs", "tests", "benchmarks", "fuzz", ".ci"):
        files += [path for path in (DOCS.parent / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    found = {path.name for path in files if BY_NAME.search(path.read_text("utf-8", "replace"))}
    assert found == {"install.rst", "setup.cfg"}


# The how-to pages.


def load_example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example that can be imported."""
    if name == "monitoring":
        need(importlib.util.find_spec("prometheus_client"), "prometheus_client")
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module(name)


def test_the_fetcher_passes_its_tests(tmp_path: Path) -> None:
    """The tests that howto-testing shows pass, where popart is all that is installed beside pytest."""
    copy_examples(tmp_path, "fetcher.py", "test_fetcher.py")
    output = run(tmp_path, sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
    assert "4 passed" in output


def python_blocks() -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(follow_tutorial.blocks(page), 1)
        if block.language == "python" and block.source is None
    ]


@pytest.mark.parametrize("text", python_blocks())
def test_short_examples_run(text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Python that stands in a page itself runs as it stands, where the reader has a handler called MyMail."""
    names = {"MyMail": MemoryHandler}
    for example, name in (("sign_in", "ScramSignIn"), ("sign_in", "TokenSignIn"), ("monitoring", "Counted")):
        if name in text:
            names[name] = getattr(load_example(example, monkeypatch), name)
    exec(text, names)
    capfd.readouterr()


def test_the_faults_that_are_named_exist() -> None:
    """Each call in the table of howto-testing can be made."""
    calls = re.findall(r"^``(server\..*?)`` ", (DOCS / "howto-testing.rst").read_text("utf-8"), re.MULTILINE)
    assert len(calls) == 22
    with MailServer() as server:
        for call in calls:
            eval(call, {"server": server})


def test_no_fault_is_described_twice() -> None:
    """reference-testing: what stands under Faults, with its base classes, does not stand under MailServer as well."""
    page = (DOCS / "reference-testing.rst").read_text("utf-8")
    (left_out,) = re.findall(
        r"^\.\. autoclass:: MailServer\n   :members:\n   :inherited-members: (.+)$", page, re.MULTILINE
    )
    assert left_out.split(", ") == [base.__name__ for base in Faults.__mro__ if base is not object]


def test_the_server_from_a_shell(tmp_path: Path) -> None:
    """howto-testing: it says where it is, and who may sign in."""
    (block,) = (block for block in follow_tutorial.blocks(DOCS / "howto-testing.rst") if block.language == "console")
    command, answer = block.text.replace("1100", "0").splitlines()
    (tmp_path / "message.eml").write_bytes(b"Subject: x\n\nhello\n")
    arguments = command.removeprefix("$ python3 ").split()
    with process(tmp_path, sys.executable, *arguments) as server:
        line = line_of(server)
        port = re.sub(r".*?:(\d+) .*\n", r"\1", line)
        assert line == answer.replace(":0 ", f":{port} ") + "\n"
        with client_of(int(port)) as client:
            assert client.stat()[0] == 1


class Certificates:
    """An authority, and the files that serve_tls.py reads."""

    def __init__(self, authority: trustme.CA, directory: Path) -> None:
        self.directory = directory
        self.authority = authority
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)

    def issue(self, *, key: bool = True) -> None:
        new = self.authority.issue_cert("localhost")
        new.cert_chain_pems[0].write_to_path(str(self.directory / "fullchain.pem"))
        if key:
            new.private_key_pem.write_to_path(str(self.directory / "privkey.pem"))

    def serial(self, client: Client) -> str:
        assert isinstance(client.sock, ssl.SSLSocket)
        return str((client.sock.getpeercert() or {})["serialNumber"])


def test_a_certificate_is_renewed(mail_db: Path, authority: trustme.CA) -> None:
    """howto-tls: connections to come get the new certificate, old ones go on; files that do not fit change nothing."""
    certificates = Certificates(authority, mail_db)
    certificates.issue()
    with ExitStack() as stack:
        server = stack.enter_context(process(mail_db, sys.executable, "serve_tls.py"))
        port = port_of(server)

        def connect() -> Client:
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            sock = certificates.context.wrap_socket(raw, server_hostname="localhost")
            client = stack.enter_context(closing(Client(sock)))
            assert client.line().startswith(b"+OK")
            return client

        old = connect()
        certificates.issue()
        server.send_signal(signal.SIGHUP)
        assert line_of(server) == "certificate renewed\n"
        new = connect()
        assert certificates.serial(new) != certificates.serial(old)
        old.sign_in()

        certificates.issue(key=False)
        server.send_signal(signal.SIGHUP)
        assert line_of(server).startswith("certificate not renewed: ")
        assert certificates.serial(connect()) == certificates.serial(new)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_ports(mail_db: Path, authority: trustme.CA, number: signal.Signals) -> None:
    """howto-tls: a plain port and a TLS port serve the same mail under one lock, and one signal closes both."""
    certificates = Certificates(authority, mail_db)
    certificates.issue()
    with ExitStack() as stack:
        server = stack.enter_context(process(mail_db, sys.executable, "two_ports.py"))
        clients = []
        for context in (None, certificates.context):
            sock = socket.create_connection(("127.0.0.1", port_of(server)), timeout=PATIENCE)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname="localhost")
            clients.append(stack.enter_context(closing(Client(sock))))
            assert clients[-1].line() == b"+OK POP3 server ready\r\n"
        plain, tls = clients
        plain.sign_in()
        assert tls.ask(b"USER alice").startswith(b"+OK")
        assert tls.ask(b"PASS secret").startswith(b"-ERR [IN-USE]")
        ports = [client.sock.getpeername()[1] for client in clients]
        server.send_signal(number)
        assert [client.rest() for client in clients] == [b"", b""]
        assert server.wait(PATIENCE) == 0 and all(map(is_refused, ports))


@pytest.mark.parametrize("which", [0, 1], ids=["plain", "tls"])
def test_two_ports_and_a_second_signal(mail_db: Path, authority: trustme.CA, which: int) -> None:
    """howto-tls: who is told once more does not wait for a client that does not read, which has 5 seconds."""
    certificates = Certificates(authority, mail_db)
    certificates.issue()
    context = [None, certificates.context][which]
    with process(mail_db, sys.executable, "two_ports.py") as server:
        ports = [port_of(server), port_of(server)]
        with client_that_does_not_read(mail_db, ports[which], context):
            server.terminate()
            wait_until(lambda: all(map(is_refused, ports)))
            server.terminate()
            assert server.wait(4) == 0


def test_two_ports_end_together(mail_db: Path, authority: trustme.CA) -> None:
    """howto-tls: if one server ends by itself, no half service is left."""
    Certificates(authority, mail_db).issue()
    program = textwrap.dedent("""
        import popart, runpy

        serve, fails = popart.Server.serve_forever, iter([True, False])
        popart.Server.serve_forever = lambda server: 1 / 0 if next(fails) else serve(server)
        runpy.run_path("two_ports.py", run_name="__main__")
    """)
    with process(mail_db, sys.executable, "-c", program, stderr=subprocess.PIPE) as server:
        assert server.wait(PATIENCE) == 0
        assert server.stderr is not None and "ZeroDivisionError" in server.stderr.read()


def test_a_context_in_use_is_spoilt_by_files_that_do_not_fit(authority: trustme.CA, tmp_path: Path) -> None:
    """howto-tls: why serve_tls.py makes a new context."""
    certificates = Certificates(authority, tmp_path)
    certificates.issue()
    files = [str(tmp_path / name) for name in ("fullchain.pem", "privkey.pem")]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    certificates.issue(key=False)
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(*files)
    client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = certificates.context.wrap_bio(client, server, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    with pytest.raises(ssl.SSLError, match="(?i)no.shared.cipher"):
        context.wrap_bio(server, client, server_side=True).do_handshake()


DJANGO = """
import django
django.setup()
from email.message import EmailMessage
from django.contrib.auth.models import User
from inbox.models import Message
for name in ("alice", "bob"):
    user = User.objects.create_user(name, password="secret")
    for subject in ("one", "two", "three"):
        message = EmailMessage()
        message["Subject"] = f"{subject} for {name}"
        message.set_content("hello")
        Message.deliver(user, message)
"""


SERVE_DJANGO = [sys.executable, "-W", "error", "-m", "django", "serve_pop3", "--port", "0"]


@pytest.fixture
def django_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site of howto-django with two users of three messages each."""
    need(importlib.util.find_spec("django"), "Django")
    site = tmp_path / "site"
    shutil.copytree(EXAMPLES / "django_site", site)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    run(site, sys.executable, "-m", "django", "makemigrations", "inbox")
    run(site, sys.executable, "-m", "django", "migrate")
    run(site, sys.executable, "-c", DJANGO)
    return site


def test_django(django_site: Path) -> None:
    """howto-django: a user reads and deletes their own mail, and no two sessions have one maildrop."""
    with process(django_site, *SERVE_DJANGO) as server:
        port = port_of(server)
        with pytest.raises(poplib.error_proto, match="AUTH"), client_of(port, "wrong"):
            pass
        with client_of(port) as client:
            assert client.stat()[0] == 3
            assert b"Subject: two for alice" in client.retr(2)[1]
            ids = client.uidl()[1]
            with pytest.raises(poplib.error_proto, match="IN-USE"), client_of(port):
                pass
            client.dele(1)
            client.dele(3)
            client.quit()
        with client_of(port) as client:
            assert [line.split()[1] for line in client.uidl()[1]] == [ids[1].split()[1]]
            client.quit()
        client = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
        with closing(client):
            client.user("bob")
            client.pass_("secret")
            assert client.stat()[0] == 3


def test_django_s_lock_is_lost_before_anything_is_deleted(django_site: Path) -> None:
    """howto-django: a session whose lock has expired, and was taken by another, deletes nothing; nor does it unlock."""
    expire = "import django; django.setup(); from inbox.models import *; from django.utils import timezone; "
    expire += "MaildropLock.objects.update(expires=timezone.now())"
    with process(django_site, *SERVE_DJANGO) as server:
        port = port_of(server)
        with client_of(port) as slow:
            slow.dele(1)
            run(django_site, sys.executable, "-c", expire)
            with client_of(port) as quick:
                with pytest.raises(poplib.error_proto, match="has expired"):
                    slow.retr(2)
                with pytest.raises(poplib.error_proto, match="has expired"):
                    slow.quit()
                with pytest.raises(poplib.error_proto, match="IN-USE"), client_of(port):
                    pass
                assert quick.stat()[0] == 3
                quick.quit()


SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="popart.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does in the child: the socket becomes descriptor 3, and LISTEN_PID is the child's own."""


@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_a_socket_from_systemd(mail_db: Path, family: str) -> None:
    """howto-systemd: file descriptor 3 is served, and is left to systemd when the service ends."""
    listener = socket.socket(getattr(socket, family))
    with listener:
        listener.bind(("127.0.0.1", 0) if family == "AF_INET" else str(mail_db / "pop3.sock"))
        listener.listen()
        command = [sys.executable, "-c", SYSTEMD, str(listener.fileno()), sys.executable, "systemd_sockets.py"]
        for _ in range(2):
            with process(mail_db, *command, pass_fds=[listener.fileno()]):
                with socket.socket(listener.family) as sock:
                    sock.settimeout(PATIENCE)
                    sock.connect(listener.getsockname())
                    with closing(Client(sock)) as client:
                        assert client.line().startswith(b"+OK")
                        client.sign_in()


def test_a_socket_from_systemd_is_not_passed_on(mail_db: Path) -> None:
    """howto-systemd: programs that the service starts get neither the socket nor the variables."""
    ask = "import os; from systemd_sockets import *; (listener,) = inherited_sockets(); "
    ask += "print(listener.get_inheritable(), [name for name in os.environ if name.startswith('LISTEN_')])"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SYSTEMD, str(listener.fileno()), sys.executable, "-c", ask]
        done = subprocess.run(command, cwd=mail_db, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "False []\n"


def test_sockets_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """howto-systemd: what is meant for the parent, or what no service manager has started, takes no descriptor."""
    inherited_sockets = load_example("systemd_sockets", monkeypatch).inherited_sockets
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert inherited_sockets() == []
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert inherited_sockets() == []


def open_file(process: int, descriptor: int) -> str:
    """Return what a descriptor of another process is, or "" if it is closed."""
    try:
        return os.readlink(f"/proc/{process}/fd/{descriptor}")
    except FileNotFoundError:
        return ""


def test_processes_on_one_socket(mail_db: Path) -> None:
    """howto-processes: when one has been told to stop, the other has the new clients, and the old go on to QUIT."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", SYSTEMD, str(listener.fileno()), sys.executable, "systemd_sockets.py"]
        old = stack.enter_context(process(mail_db, *command, pass_fds=[listener.fileno()]))
        client = stack.enter_context(client_of(port))
        client.dele(2)
        shared = open_file(old.pid, 3)
        old.terminate()
        wait_until(lambda: open_file(old.pid, 3) != shared)
        with process(mail_db, *command, pass_fds=[listener.fileno()]):
            with pytest.raises(poplib.error_proto, match="IN-USE"), client_of(port):
                pass
            client.quit()
            assert old.wait(PATIENCE) == 0
            with client_of(port) as new:
                assert new.stat()[0] == 2


def is_refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("namespace", [[], ["--map-root-user", "--pid", "--fork", "--kill-child"]], ids=["", "as 1"])
def test_sigterm_drains(mail_db: Path, namespace: list[str]) -> None:
    """howto-processes: after SIGTERM clients are refused, and a session goes on to QUIT; so too with process 1."""
    prefix = ["unshare", *namespace] if namespace else []
    if namespace and subprocess.run([*prefix, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this takes a PID namespace")
    with process(mail_db, *prefix, sys.executable, "one_of_many.py") as server:
        port = port_of(server)
        pid = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()) if namespace else server.pid
        with client_of(port) as client:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: is_refused(port))
            client.dele(2)
            client.quit()
        assert server.wait(PATIENCE) == 0
    with process(mail_db, sys.executable, "mail_in_sqlite.py") as server, client_of(port_of(server)) as client:
        assert client.stat()[0] == 2


@contextmanager
def client_that_does_not_read(directory: Path, port: int, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """Ask for a large message, and read no more than its first line."""
    octets = b"Subject: large\r\n\r\n" + b"x" * 30_000_000 + b"\r\n"
    with closing(sqlite3.connect(directory / "mail.db")) as db, db:
        db.execute("UPDATE message SET size = ?, octets = ? WHERE id = 1", (len(octets), octets))
    with socket.create_connection(("127.0.0.1", port)) as raw, ExitStack() as stack:
        sock = raw if context is None else stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
        client = stack.enter_context(closing(Client(sock)))
        assert client.line().startswith(b"+OK")
        client.sign_in()
        assert client.ask(b"RETR 1").startswith(b"+OK")
        yield


def test_further_sigterms_end_the_draining_and_the_grace(mail_db: Path) -> None:
    """howto-processes: the second ends the 30 seconds of idle sessions, the third the 5 of who does not read."""
    with process(mail_db, sys.executable, "one_of_many.py") as server:
        port = port_of(server)
        with client_that_does_not_read(mail_db, port), socket.create_connection(("127.0.0.1", port)) as sock:
            with closing(Client(sock)) as idle:
                assert idle.line().startswith(b"+OK")
                server.terminate()
                wait_until(lambda: is_refused(port))
                server.terminate()
                assert idle.rest() == b""
                server.terminate()
                assert server.wait(3) == 0


def test_a_second_sigterm_ends_the_grace(mail_db: Path) -> None:
    """Part 2: who is told once more does not wait for a client that does not read, which has 5 seconds."""
    with process(mail_db, sys.executable, "mail_in_sqlite.py") as server:
        port = port_of(server)
        with client_that_does_not_read(mail_db, port):
            server.terminate()
            wait_until(lambda: is_refused(port))
            server.terminate()
            assert server.wait(3) == 0


def test_a_second_signal_in_each_example() -> None:
    """The first signal of an example that drains is shutdown(); each other one is server_close().

    Exceptions are an example with several servers, which has a test of its own, and one whose signals come to an event
    loop's thread.
    """
    texts = [path.read_text("utf-8") for path in EXAMPLES.rglob("*.py") if path.name != "two_ports.py"]
    examples = [text for text in texts if "SIGTERM" in text and "import asyncio" not in text]
    assert len(examples) == 8
    for text in examples:
        wishes = re.findall(r"signal\.SIGTERM, lambda \*_: server\.(\w+)\(\)", text)
        assert wishes == (["shutdown", "server_close"] if "server.drain(" in text else ["server_close"])


def test_the_units(tmp_path: Path) -> None:
    """howto-systemd, howto-processes: systemd finds no fault with the units."""
    need(shutil.which("systemd-analyze"), "systemd")
    for name in ("popart.socket", "popart.service", "popart@.service"):
        text = (EXAMPLES / name).read_text("utf-8").replace("/opt/mail/.venv/bin/python", sys.executable)
        (tmp_path / name).write_text(text, "utf-8")
    verify = ["systemd-analyze", "verify", "--man=no"]
    assert run(tmp_path, *verify, "./popart.socket", "./popart.service") == ""
    (tmp_path / "popart.service").unlink()
    shown = follow_tutorial.blocks(DOCS / "howto-processes.rst")
    (addition,) = (block.text for block in shown if block.text.startswith("Service="))
    text = (tmp_path / "popart.socket").read_text("utf-8").replace("[Socket]\n", "[Socket]\n" + addition)
    (tmp_path / "popart.socket").write_text(text, "utf-8")
    assert run(tmp_path, *verify, "./popart.socket", "./popart@1.service") == ""


def test_behind_haproxy(mail_db: Path) -> None:
    """howto-haproxy: with the page's configuration the handler learns the client's own address."""
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    need(haproxy, "HAProxy")
    assert haproxy is not None
    with process(mail_db, sys.executable, "behind_haproxy.py") as server, socket.socket() as front:
        front.bind(("127.0.0.1", 0))
        front.listen()
        configuration = (EXAMPLES / "haproxy.cfg").read_text("utf-8").replace("1100", str(port_of(server)))
        configuration = configuration.replace("bind :110", f"bind fd@{front.fileno()}")
        (mail_db / "haproxy.cfg").write_text(configuration)
        with process(mail_db, haproxy, "-db", "-f", "haproxy.cfg", pass_fds=[front.fileno()], ends=-signal.SIGTERM):
            client = socket.create_connection(front.getsockname(), PATIENCE, source_address=("127.0.0.2", 0))
            with closing(Client(client)) as raw:
                assert raw.line().startswith(b"+OK")
                raw.sign_in()
                assert line_of(server) == "client: 127.0.0.2\n"


def refused(client: Client, command: bytes) -> bool:
    return client.ask(command).startswith(b"-ERR [AUTH]")


def test_apop_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """howto-sign-in: the right digest signs in, another does not."""

    class MyHandler(load_example("sign_in", monkeypatch).ApopSignIn, MemoryHandler): ...

    server = popart.Server(("127.0.0.1", 0), lambda peer: MyHandler(Mail()), apop=True)
    with running(server), connected(server) as client:
        banner = re.findall(r"<.*>", client.line().decode())[0]
        assert refused(client, b"APOP alice " + hashlib.md5(banner.encode() + b"wrong").hexdigest().encode())
        assert refused(client, b"APOP bob " + hashlib.md5(banner.encode()).hexdigest().encode())
        assert client.ask(b"APOP alice " + hashlib.md5(banner.encode() + b"secret").hexdigest().encode())[:3] == b"+OK"


def test_cram_md5_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """howto-sign-in: who knows the password signs in by CRAM-MD5 (RFC 2195), and nobody else; no challenge repeats."""

    class MyHandler(load_example("cram_md5", monkeypatch).CramMD5SignIn, MemoryHandler): ...

    challenges = set()

    def sign_in(client: Client, user: bytes, password: bytes, cut: int | None = None) -> bytes:
        challenge = base64.b64decode(client.ask(b"AUTH CRAM-MD5")[2:])
        challenges.add(challenge)
        assert re.fullmatch(rb"<\d+@mail\.example\.org>", challenge)
        digest = hmac.new(password, challenge, "md5").hexdigest()[:cut].encode()
        return client.ask(base64.b64encode(user + b" " + digest))

    class Patient(popart.Server):
        max_failed_logins = None

    monkeypatch.setattr("popart.sign_in.FIRST_LOGIN_DELAY", 0)
    with running(Patient(("127.0.0.1", 0), lambda peer: MyHandler(Mail()))) as server, connected(server) as client:
        assert client.line().startswith(b"+OK")
        client.send(b"CAPA\r\n")
        assert b"\r\nSASL CRAM-MD5 PLAIN\r\n" in client.lines()
        for user, password in ((b"alice", b"wrong"), (b"bob", b""), (b"bob", b"secret"), (b"\xff", b""), (b"", b"")):
            assert sign_in(client, user, password).startswith(b"-ERR [AUTH] wrong name or password")
        assert sign_in(client, b"alice", b"secret", -1).startswith(b"-ERR [AUTH]")
        assert client.ask(b"AUTH CRAM-MD5").startswith(b"+ ")
        assert refused(client, base64.b64encode("alice é".encode()))
        assert sign_in(client, b"alice", b"secret").startswith(b"+OK")
    assert len(challenges) == 7


def test_token_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """howto-sign-in: the right user's token signs in; another's, or another token, does not."""

    class MyHandler(load_example("sign_in", monkeypatch).TokenSignIn, MemoryHandler): ...

    def xoauth2(user: bytes, token: bytes) -> bytes:
        return b"AUTH XOAUTH2 " + base64.b64encode(b"user=%b\x01auth=Bearer %b\x01\x01" % (user, token))

    server = popart.Server(("127.0.0.1", 0), lambda peer: MyHandler(Mail()))
    with running(server), connected(server) as client:
        assert client.line().startswith(b"+OK")
        for user, token in ((b"bob", b"ya29.token"), (b"alice", b"ya29.other")):
            assert client.ask(xoauth2(user, token)).startswith(b"+ ")
            assert refused(client, b"")
        assert client.ask(xoauth2(b"alice", b"ya29.token")).startswith(b"+OK")


def test_scram_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """howto-sign-in: a client that knows the password signs in, another does not."""

    class MyHandler(load_example("sign_in", monkeypatch).ScramSignIn, MemoryHandler): ...

    def sign_in(client: Client, user: str, password: str) -> bytes:
        scram = scramp.ScramClient(["SCRAM-SHA-256"], user, password)
        first = base64.b64encode(scram.get_client_first().encode())
        scram.set_server_first(base64.b64decode(client.ask(b"AUTH SCRAM-SHA-256 " + first)[2:]).decode())
        answer = client.ask(base64.b64encode(scram.get_client_final().encode()))
        if answer.startswith(b"+ "):
            scram.set_server_final(base64.b64decode(answer[2:]).decode())
            answer = client.ask(b"")
        return answer

    server = popart.Server(("127.0.0.1", 0), lambda peer: MyHandler(Mail()))
    with running(server), connected(server) as client:
        assert client.line().startswith(b"+OK")
        for user, password in (("bob", "secret"), ("alice", "wrong")):
            assert sign_in(client, user, password).startswith(b"-ERR [AUTH]")
        assert sign_in(client, "alice", "secret").startswith(b"+OK")


@pytest.mark.parametrize("identity, answer", [(b"", b"+OK"), (b"alice", b"+OK"), (b"bob", b"-ERR [AUTH]")])
def test_certificate_sign_in(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path, identity: bytes, answer: bytes
) -> None:
    """howto-sign-in: with the context that it makes, a certificate signs in the user that it names, and nobody else."""

    class MyHandler(load_example("sign_in", monkeypatch).CertificateSignIn, MemoryHandler): ...

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "clients-ca.pem"))
    (setting,) = re.findall(r"::\n\n((?: +context\..*\n)+)", (DOCS / "howto-sign-in.rst").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(setting), {"context": context, "ssl": ssl})
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    authority.issue_cert("alice@example.org", common_name="alice").configure_cert(client_context)
    server = popart.Server(("127.0.0.1", 0), lambda peer: MyHandler(Mail()), ssl_context=context)
    with running(server), connected(server, client_context) as client:
        assert client.line().startswith(b"+OK")
        assert client.ask(b"AUTH EXTERNAL " + (base64.b64encode(identity) or b"=")).startswith(answer)


def test_monitoring(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """howto-monitoring: prometheus_client counts, and the log tells, what a session did."""
    monitoring = load_example("monitoring", monkeypatch)
    registry = import_module("prometheus_client").REGISTRY
    caplog.set_level("DEBUG", "pop3")

    class CountedHandler(monitoring.Counted, MemoryHandler): ...

    class LoggedHandler(monitoring.Logged, MemoryHandler): ...

    for handler in (CountedHandler, LoggedHandler):
        with running(popart.Server(("127.0.0.1", 0), lambda peer, make=handler: make(Mail()))) as server:
            with signed_in(server) as client:
                assert client.ask(b"NOOP").startswith(b"+OK")
                assert client.ask(b"RETR 1").startswith(b"-ERR")
                assert client.ask(b"QUIT").startswith(b"+OK")
                assert client.rest() == b""
    for verb, outcome in (("NOOP", "+OK"), ("RETR", "-ERR"), ("PASS", "+OK")):
        assert registry.get_sample_value("pop3_commands_total", {"verb": verb, "outcome": outcome}) == 1
    assert registry.get_sample_value("pop3_sessions_total") == 1
    assert "NOOP +OK" in caplog.text and "session of 5 commands" in caplog.text
    assert "alice" not in caplog.text and "secret" not in caplog.text


# The pages.


class DiagramHandler(MemoryHandler):
    """Lists its mail at once, and also notes what is done with a message's reader."""

    def list_messages(self) -> list[tuple[int, str]]:
        self.mail.calls.append(("list_messages",))
        return [(len(octets), f"message-{number}") for number, octets in enumerate(self.mail.messages, 1)]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        calls = self.mail.calls
        reader = super().get_message_reader(number)

        class Reader:
            def read(self, n: int) -> bytes:
                calls.append(("reader.read", n))
                return reader.read(n)

            def close(self) -> None:
                calls.append(("reader.close",))
                reader.close()

        return Reader()


def test_the_session_in_the_picture_is_real() -> None:
    """Each arrow of the sequence diagram is seen in a session: lines and calls, in their order."""
    _, steps = diagrams.read_sequence((DOCS / "pictures" / "session.txt").read_text("utf-8"))
    mail = Mail(b"Subject: Hello\r\n\r\nIt works.\r\n", b"Subject: Second\r\n\r\n.. and so do dots.\r\n")
    calls = []

    def on_new_connection(peer: object) -> popart.Handler:
        mail.calls.append(("on_new_connection",))
        return DiagramHandler(mail)

    with running(popart.Server(("127.0.0.1", 0), on_new_connection)) as server, connected(server) as client:
        for arrow in steps:
            if isinstance(arrow, str):
                continue
            if arrow.receiver == "Your handler":
                calls.append(arrow.text.replace("(peer)", "()"))
            elif arrow.sender == "Client":
                client.send(arrow.text.encode() + b"\r\n" if arrow.text else b"")
            else:
                assert client.line() == arrow.text.encode() + b"\r\n"
                if "message" in arrow.remark:
                    client.lines()
                assert [f"{name}({', '.join(map(repr, rest))})" for name, *rest in mail.calls] == calls
        assert client.rest() == b""


def test_the_first_server_gives_the_session_in_the_picture(tmp_path: Path) -> None:
    """index.rst: the shortest server runs as it stands, and its client reads what the picture below it says."""
    _, steps = diagrams.read_sequence((DOCS / "pictures" / "session.txt").read_text("utf-8"))
    copy_examples(tmp_path, "hello.py")
    with process(tmp_path, sys.executable, "hello.py", ends=-signal.SIGTERM) as server:
        port = port_of(server)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock, closing(Client(sock)) as client:
            for arrow in steps:
                if isinstance(arrow, str) or not arrow.text:
                    continue
                if arrow.sender == "Client":
                    client.send(arrow.text.encode() + b"\r\n")
                elif arrow.receiver == "Client":
                    assert client.line() == arrow.text.encode() + b"\r\n"
                    if "message" in arrow.remark:
                        client.lines()
            assert client.rest() == b""
        assert line_of(server) == "to be deleted: [1]\n"


@pytest.mark.parametrize("source", ["session.txt", "states.dot"])
def test_pictures_are_current(source: str) -> None:
    """A picture was drawn from its text as it is now: python3 docs/diagrams.py draws it."""
    text = (DOCS / "pictures" / source).read_text("utf-8")
    picture = (DOCS / "pictures" / source).with_suffix(".svg").read_text("utf-8")
    assert picture.endswith(diagrams.stamp(text))
    if source == "session.txt":
        assert picture == diagrams.draw_sequence(text) + diagrams.stamp(text)


def test_the_reference_is_complete() -> None:
    """Each public name has its place in the reference."""
    for package, page in (("popart", "reference.rst"), ("popart.testing", "reference-testing.rst")):
        text = (DOCS / page).read_text("utf-8")
        named = set(re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", text, re.MULTILINE))
        assert set(import_module(package).__all__) <= named


def test_each_name_of_popart_exists() -> None:
    """What the pages link to is there, and so are the pages."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for name in re.findall(r"(?<!`)`(popart[\w.]*)`(?!`)", text):
            assert resolve_name(name) is not None
        for name in re.findall(r":doc:`(?:[^`]*<)?([\w-]+)>?`", text):
            assert DOCS / f"{name}.rst" in PAGES


def test_each_example_is_shown_and_each_shown_file_exists() -> None:
    """No example is left over, and none is missing."""
    shown = {block.source for page in PAGES for block in follow_tutorial.blocks(page) if block.source is not None}
    assert all(path.is_file() for path in shown)
    files = (path for path in EXAMPLES.rglob("*.*") if path.suffix != ".pyc" and path.stat().st_size)
    assert {path.name for path in files if path.is_file() and path not in shown} <= {"ruff.toml", "settings.py"}


def literal_blocks(text: str) -> Iterator[str]:
    """Yield what a page or docstrings show as it stands: all that is indented behind a directive or two colons."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        words = line.lstrip()
        if words.startswith(".. code-block::") or (words.endswith("::") and not words.startswith("..")):
            (margin,) = re.findall(r"\A\s*\n( *)", "\n".join(["", *lines[number + 1 :]]))
            block = takewhile(lambda row, margin=margin: not row or row.startswith(margin), lines[number + 1 :])
            yield textwrap.dedent("\n".join(block))


def test_each_example_fits_into_a_page() -> None:
    """Code has 88 columns at most, in the manual and the reference of the test kit too: more would be cut off."""
    package = Path(popart.__file__).parent
    examples = [path for path in EXAMPLES.rglob("*.*") if path.suffix != ".pyc"]
    sources = [*PAGES, *examples, package / "handler.py", *package.glob("testing/*.py")]
    wide = []
    for path in sources:
        text = path.read_text("utf-8")
        shown = [text] if EXAMPLES in path.parents else literal_blocks(text)
        wide += [line for block in shown for line in block.splitlines() if len(line) > 88]
    assert wide == []


def test_a_cell_without_a_figure_is_no_list() -> None:
    """In the tables that programs print a lone hyphen would be drawn as a bullet: such a cell is ``--``."""
    for table in DOCS.glob("*-table.rst"):
        assert not re.search(r" - | -$", re.sub(r"^ +(\* )?- ", "", table.read_text("utf-8"), flags=re.MULTILINE))


def test_what_no_other_server_does_has_a_test() -> None:
    """README.rst: each row of the table names a test, which exists."""
    table = (DOCS.parent / "README.rst").read_text("utf-8").partition(".. The table begins.")[2]
    rows = table.partition(".. The table ends.")[0].split("   * - ")[2:]
    named = [re.search(r"\n     - ``((?:tests|popart/testing)/[\w/]+\.py)`` ``(test_\w+)``\n", row) for row in rows]
    assert len(named) == 7
    for found in named:
        assert found is not None
        assert f"def {found[2]}(" in (DOCS.parent / found[1]).read_text("utf-8")


def test_the_table_of_other_servers_is_current() -> None:
    """wire-suite-table.rst is what python3 -m tests.wire.other_servers --table prints."""
    assert (DOCS / "wire-suite-table.rst").read_text("utf-8") == make_table() + "\n"


def test_the_wire_suite_has_the_options_that_are_named() -> None:
    """wire-suite.rst: each option that it names is one."""
    named = set(re.findall(r"--pop3-\w+", (DOCS / "wire-suite.rst").read_text("utf-8")))
    known = run(DOCS.parent, sys.executable, "-m", "popart.testing.wire", "--help")
    assert named and named <= set(re.findall(r"--pop3-\w+", known))


# For contributors.

CONTRIBUTING = DOCS.parent / "CONTRIBUTING.rst"
CI = DOCS.parent / ".ci" / "run"


def steps() -> set[str]:
    """Return the steps that .ci/run lists when it is asked for another."""
    need(CI.exists() and sys.platform == "linux", ".ci/run")
    done = subprocess.run([CI, "lint", "no-step"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    return set(re.findall(r"^    (\w+)  ", done.stderr, re.MULTILINE))


def test_each_step_is_listed() -> None:
    """A step that .ci/run does not know is an error, before any other is run, and lists all: none lacks a function."""
    known = steps()
    functions = set(re.findall(r"^run_(\w+)\(\) {$", CI.read_text("utf-8"), re.MULTILINE))
    assert known == functions | {"pythons"}


def test_the_commands_for_contributors() -> None:
    """CONTRIBUTING.rst: the tests that it names pass, and its other commands are the README's, or steps of .ci/run."""
    text = CONTRIBUTING.read_text("utf-8")
    readme = (DOCS.parent / "README.rst").read_text("utf-8")
    for command in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
        if command.startswith(".venv/bin/python -m pytest") and "tests/" in command:
            run(DOCS.parent, sys.executable, *command.split()[1:], "-p", "no:cacheprovider")
        elif not command.startswith(".ci/run "):
            assert re.search(rf"(^    | && ){re.escape(command)}( && |$)", readme, re.MULTILINE)
    named = re.findall(r"\.ci/run ([a-z ]+)", text)
    assert {name for names in named for name in names.split()} <= steps()
    for module in re.findall(r"python3? -m (tests\.[\w.]+)", text):
        assert importlib.util.find_spec(module) is not None


def test_each_path_for_contributors_exists() -> None:
    """CONTRIBUTING.rst: a change has its places, and they are there."""
    need(CI.exists(), ".ci")
    paths = re.findall(r"``((?:popart|tests|docs|\.ci)/[\w./-]*)``", CONTRIBUTING.read_text("utf-8"))
    assert [path for path in paths if not (DOCS.parent / path).exists()] == []
