"""The clients, and a popart server that records what they send.

Each client is a program beside this file.  It reads alice's mail from localhost and writes each message into a file.
Environment variables tell it the rest:

POP3_PORT
    the port
POP3_CA
    a PEM file with the authority to trust: connect over TLS; empty: do not
POP3_AUTH
    the mechanism to sign in by: APOP, or one of AUTH; empty: USER and PASS, or the client's own choice
POP3_PASSWORD
    the password, or for XOAUTH2 and OAUTHBEARER the token
POP3_CERTIFICATE
    a PEM file with the certificate, and its key, for EXTERNAL
POP3_INITIAL
    ``yes``: send an initial response with AUTH; empty: do not.  Most clients can do only one of the two
POP3_ACTION
    ``keep`` leaves the messages on the server, ``delete`` deletes them
INBOX
    the directory for the files; a Maildir will do.  Libraries name the files by the unique-ids.  They also store what
    TOP returns with no lines of the body, in files that end with ``.top``
HOME
    a directory for everything else.  If a client should remember, it stays the same from run to run
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from popart.connection import Connection
from popart.handler import Handler
from popart.server import Server
from popart.session import Session
from popart.testing.wire.messages import HARD, make_message, on_the_wire
from tests.conftest import Mail

HERE = Path(__file__).parent
JAVA_PATH = "/usr/share/java/javax.mail.jar:/usr/share/java/javax.activation.jar"
PATIENCE = 50.0
"""Seconds for one run of a client.  Each client gives up before that, after 30 seconds of waiting, and says why."""


MESSAGES = {
    **HARD,
    # No line may be longer (RFC 5322 section 2.1.1).
    "line-of-998": make_message("line-of-998", b"." + b"x" * 997 + b"\r\nend\r\n"),
    "megabyte": make_message("megabyte", b"".join(b"%b%070d\r\n" % (b"." * (n % 3), n) for n in range(14_000))),
}
"""The maildrop.  A client does not get the messages that it is known to change."""

ODD = {"nul": "NUL", "lone-cr": "lone CR", "long-line": "long lines"}
"""The messages that some clients change, and the table's words for their contents."""


@dataclass(frozen=True)
class Client:
    """A program, and how it behaves."""

    name: str
    command: tuple[str, ...]
    version: str
    """A shell command that fails if the client is not installed."""

    signs_in: tuple[str, ...] = ()
    """The mechanisms that it knows, besides USER and PASS."""

    chooses_initial: bool = False
    """You can tell it whether to send an initial response."""

    remembers: bool = False
    """It does not fetch again the messages that it left on the server."""

    changes: tuple[str, ...] = ()
    """The odd messages that arrive changed, or not at all."""

    may_change: tuple[str, ...] = ()
    """The messages that arrive changed in some runs."""

    adds: bytes = b""
    """A pattern for the text that it adds to a message."""


def has_version(command: str, least: tuple[int, ...]) -> bool:
    """Return whether a program is here, in this version or a later one."""
    output = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", output)
    return found is not None and tuple(map(int, found[0].split("."))) >= least


CLIENTS = [
    Client(
        "poplib",
        (sys.executable, "poplib_client.py"),
        f"{sys.executable} --version",
        signs_in=("APOP", "PLAIN", "XOAUTH2"),
        changes=("lone-cr", "long-line"),
    ),
    Client(
        "curl",
        ("sh", "curl.sh"),
        "curl --version",
        signs_in=("APOP", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "CRAM-MD5"),
        chooses_initial=True,
    ),
    Client(
        "fetchmail",
        ("sh", "fetchmail.sh"),
        "fetchmail --version 2>/dev/null",
        signs_in=("APOP", "CRAM-MD5"),
        remembers=True,
        changes=("lone-cr", "long-line"),
    ),
    Client(
        "getmail6",
        ("sh", "getmail.sh"),
        "getmail --version",
        signs_in=("APOP",),
        remembers=True,
        changes=("lone-cr",),
        adds=rb"\AReturn-Path: <unknown>\n",
    ),
    Client(
        "mpop",
        ("sh", "mpop.sh"),
        "mpop --version",
        signs_in=(
            *("APOP", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "CRAM-MD5"),
            # Debian 13's gives up over TLS before it sends AUTH.
            *(() if has_version("mpop --version", (1, 4, 21)) else ("SCRAM-SHA-256",)),
        ),
        remembers=True,
        changes=("lone-cr",),
    ),
    Client(
        "mutt",
        ("sh", "mutt.sh"),
        "mutt -v",
        signs_in=("APOP", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256", "EXTERNAL", "CRAM-MD5"),
        changes=("nul", "lone-cr"),
        adds=rb"Content-Length: \d+\nLines: \d+\n(?=\n)",
    ),
    Client(
        "Net::POP3",
        ("perl", "net_pop3.pl"),
        "perl -MNet::POP3 -MIO::Socket::SSL -MAuthen::SASL -MDigest::HMAC_MD5 -e 'print Net::POP3->VERSION'",
        signs_in=("APOP", "PLAIN", "LOGIN", "EXTERNAL", "CRAM-MD5"),
        changes=("lone-cr",),
    ),
    Client(
        "net/pop",
        ("ruby", "net_pop.rb"),
        "ruby -rnet/pop -ropenssl -e 'puts Net::POP3::VERSION'",
        signs_in=("APOP",),
        # It leaves stuffed dots in long messages, wherever its reads happen to end.
        may_change=("large", "megabyte") if has_version("ruby --version", (3, 3)) else (),
    ),
    Client(
        "node-pop3",
        ("node", "node_pop3.js"),
        "node -e \"require('node-pop3')\" && echo Node.js $(node --version)",
    ),
    Client(
        "JavaMail",
        # The second compiler would take longer than the program does.
        ("java", "-XX:TieredStopAtLevel=1", "-cp", JAVA_PATH, "JavaMail.java"),
        "javac -version && ls " + JAVA_PATH.replace(":", " "),
        signs_in=("APOP", "PLAIN", "XOAUTH2"),
    ),
]


class RecordingServer(Server):
    """Serves the mail, and records what it receives and all errors."""

    def __init__(
        self,
        mail: Mail,
        make_handler: Callable[[Mail], Handler],
        session_class: type[Session] = Session,
        **options: Any,
    ) -> None:
        super().__init__(("127.0.0.1", 0), lambda peer: make_handler(mail), **options)
        self.RequestHandlerClass = type("", (RecordingConnection,), {"session_class": session_class})
        self.mail = mail
        self.received: list[bytes] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.mail.errors.append(sys.exc_info()[1])

    def lines(self) -> list[str]:
        """Return all lines that were received."""
        return b"".join(self.received).decode().split("\r\n")[:-1]

    def keywords(self) -> set[str]:
        """Return the first words of all lines."""
        return {line.partition(" ")[0].upper() for line in self.lines()}


class RecordingConnection(Connection):
    server: RecordingServer

    def setup(self) -> None:
        super().setup()
        read = self._stream.read

        def record(deadline: float, period: float) -> bytes:
            octets = read(deadline, period)
            self.server.received.append(octets)
            return octets

        self._stream.read = record  # type: ignore[method-assign]


def make_context(authority: trustme.CA) -> ssl.SSLContext:
    """Make a server's context that also takes the certificates of clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # fetchmail takes no certificate without a common name.
    authority.issue_cert("localhost", common_name="localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Run:
    """A client with a home directory of its own."""

    def __init__(self, client: Client, server: Server, home: Path, **environment: str) -> None:
        self.client = client
        self.inbox = home / "inbox"
        self.environment = {
            "HOME": str(home),
            "INBOX": str(self.inbox),
            "LC_ALL": "C.UTF-8",
            "NODE_PATH": os.environ.get("NODE_PATH", ""),
            "PATH": os.environ["PATH"],
            "POP3_ACTION": "keep",
            "POP3_AUTH": "",
            "POP3_CA": "",
            "POP3_CERTIFICATE": "",
            "POP3_INITIAL": "",
            "POP3_PASSWORD": "secret",
            "POP3_PORT": str(server.server_address[1]),
            "TERM": "xterm",
            **environment,
        }
        home.mkdir()

    def try_to_fetch(self, **environment: str) -> tuple[list[str], str]:
        """Run the client.  Return the digests of what it fetched, and its complaint."""
        self.inbox.mkdir()
        done = subprocess.run(
            self.client.command,
            cwd=HERE,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
        files = {path: unix(path.read_bytes()) for path in self.inbox.rglob("*") if path.is_file()}
        shutil.rmtree(self.inbox)
        tops = {path: files.pop(path) for path in list(files) if path.suffix == ".top"}
        for path, octets in tops.items():
            header, blank, _ = files[path.with_suffix("")].partition(b"\n\n")
            assert octets == header + blank
        messages = digests(re.sub(self.client.adds, b"", message) for message in files.values())
        return messages, done.stdout[-2000:].decode(errors="replace") if done.returncode else ""

    def fetch(self, **environment: str) -> list[str]:
        """Run a client that must succeed.  Return the digests of what it fetched."""
        messages, complaint = self.try_to_fetch(**environment)
        assert not complaint, complaint
        return messages


def unix(message: bytes) -> bytes:
    """Return a message with the line ends of Unix."""
    return message.replace(b"\r\n", b"\n")


def digests(messages: Iterable[bytes]) -> list[str]:
    """Return a short, unique digest of each message: the octets would fill screens."""
    return sorted(
        f"{message[9 : message.find(b'.example')].decode(errors='replace')}:{hashlib.sha256(message).hexdigest()[:16]}"
        for message in messages
    )


def sent(messages: Iterable[bytes]) -> list[str]:
    """Return the digests that a client must have of the server's messages."""
    return digests(unix(on_the_wire(message)) for message in messages)
