"""The backends that the gateways are tested with: real ones, and one that is made to fail as its model fails."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from door import PATIENCE
from fake_graph import FakeGraph

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "GRAPH_TENANT": "tenant",
    "GRAPH_CLIENT_ID": "id",
    "GRAPH_CLIENT_SECRET": "client-secret",
    "POP3_USERS": "alice:secret",
}


class MissingError(Exception):
    """What a backend needs is not installed."""


class Backend:
    """A backend with a maildrop for alice.  It keeps its mail while it is stopped."""

    script: str
    """The gateway to it, in docs/examples."""

    commit: bytes
    """What the gateway says when it deletes: the request that decides."""

    lacks: tuple[str, ...] = ()
    """What the gateway cannot do because the backend cannot: names that the wire suite takes."""

    fails: frozenset[str] = frozenset()
    """Tests of the wire suite that must fail, because the backend keeps no octets, or knows no sizes."""

    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def deliver(self, *messages: bytes) -> None: ...

    def mail(self) -> list[bytes]:
        """Return what is in alice's maildrop, and not marked as deleted, in its order."""
        raise NotImplementedError

    def arguments(self, port: int) -> list[str]:
        """Return the gateway's arguments, for the backend on this port."""
        raise NotImplementedError


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Dovecot(Backend):
    """Dovecot's IMAP.  Its mail is a Maildir."""

    script = "imap_gateway.py"
    commit = b" UID STORE "
    lacks = ("nul",)  # an IMAP literal has none, so Dovecot sends 0x80
    fails = frozenset({"test_sizes_are_octets_on_the_wire"})  # the size leaves out the CRLF that ends the last line

    def __init__(self, directory: Path, settings: str = "ssl = no", listener: str = "imap") -> None:
        dovecot = shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if dovecot is None or not Path("/usr/lib/dovecot/imap").exists():
            raise MissingError("dovecot-imapd")
        if os.geteuid() != 0:
            raise MissingError("root, for Dovecot,")
        if not subprocess.run([dovecot, "--version"], stdout=subprocess.PIPE, text=True).stdout.startswith("2.3."):
            pytest.skip("the configuration is for Dovecot 2.3")
        self._command = [dovecot, "-F", "-c", str(directory / "dovecot.conf")]
        self._directory = directory
        self.port = free_port()
        directory.chmod(0o755)
        # Dovecot does not touch mail as root.
        self._owner = pwd.getpwnam("nobody")
        for name in ("tmp", "new", "cur"):
            self._own(directory / "mail" / name).mkdir(parents=True)
        for path in (directory / "mail", *(directory / "mail").iterdir()):
            self._own(path)
        (directory / "passwords").write_text('alice:{PLAIN}secret\nbob builder:{PLAIN}pässwört \\ "x"\n')
        (directory / "tokens").write_text("alice:{PLAIN}a.token\n")
        (directory / "dovecot.conf").write_text(
            f"""\
protocols = imap
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
{settings}
disable_plaintext_auth = no
auth_mechanisms = plain xoauth2
auth_username_chars =
auth_failure_delay = 0
passdb {{
  driver = passwd-file
  args = {directory}/tokens
  mechanisms = xoauth2
}}
passdb {{
  driver = passwd-file
  args = {directory}/passwords
  mechanisms = plain
}}
userdb {{
  driver = static
  args = uid={self._owner.pw_uid} gid={self._owner.pw_gid} home={directory}
}}
first_valid_uid = 1
mail_location = maildir:{directory}/mail
mail_max_userip_connections = 0
# It would answer later and later, because the tests fail to sign in from one address again and again.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = 0
  }}
  inet_listener {listener} {{
    port = {self.port}
  }}
}}
"""
        )
        self._delivered = 0

    def _own(self, path: Path) -> Path:
        if path.exists():
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        return path

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"Dovecot did not start: {(self._directory / 'log').read_text('utf-8', 'replace')}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def deliver(self, *messages: bytes) -> None:
        for message in messages:
            self._delivered += 1
            path = self._directory / "mail" / "new" / f"{1_000_000_000 + self._delivered}.{self._delivered}.host"
            path.write_bytes(message)
            self._own(path)

    def mail(self) -> list[bytes]:
        files = [*(self._directory / "mail").glob("new/*"), *(self._directory / "mail").glob("cur/*")]
        # T is Maildir's flag for a message that is marked as deleted.
        left = [file for file in files if "T" not in file.name.partition(":2,")[2]]
        return [file.read_bytes() for file in sorted(left, key=lambda file: int(file.name.split(".")[1]))]

    def files(self) -> int:
        """Return how many messages are there, marked as deleted or not."""
        return sum(1 for _ in (self._directory / "mail").glob("*/*.host*"))

    def renumber(self) -> None:
        """Forget all UIDs, while it is stopped, and begin with another UIDVALIDITY."""
        for path in (self._directory / "mail").glob("dovecot*"):
            path.unlink()
        uids = self._directory / "mail" / "dovecot-uidlist"
        uids.write_text("3 V12345 N1\n")
        self._own(uids)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let Dovecot read the mail, but change nothing of it."""
        directories = [self._directory / "mail" / name for name in ("", "new", "cur")]
        modes = [directory.stat().st_mode for directory in directories]
        for directory in directories:
            directory.chmod(0o555)
        try:
            yield
        finally:
            for directory, mode in zip(directories, modes, strict=True):
                directory.chmod(mode)

    def arguments(self, port: int) -> list[str]:
        return ["127.0.0.1", "--imap-port", str(port), "--imap-plain"]


class S3(Backend):
    """moto's S3."""

    script = "s3_gateway.py"
    commit = b"PUT /mail/alice/.deleting/"
    fails = frozenset({"test_sizes_are_octets_on_the_wire"})  # those of objects with bare LF are too small

    def __init__(self, directory: Path) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ImportError:
            raise MissingError("moto[server]") from None
        import boto3

        self.port = free_port()
        self._make_server = lambda: ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.client: Any = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}")
        self._delivered = 0

    def start(self) -> None:
        self._server = self._make_server()  # type: ignore[no-untyped-call]
        self._server.start()
        if not self._delivered:
            with closing(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)) as sock:
                sock.sendall(b"POST /moto-api/reset HTTP/1.0\r\n\r\n")
                sock.makefile("rb").read()
            self.client.create_bucket(Bucket="mail")

    def stop(self) -> None:
        self._server.stop()

    def close(self) -> None:
        self.client.close()

    def deliver(self, *messages: bytes) -> None:
        for message in messages:
            self._delivered += 1
            self.client.put_object(Bucket="mail", Key=f"alice/{self._delivered:032d}", Body=message)

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="mail")
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def mail(self) -> list[bytes]:
        keys = [key for key in self.keys() if key.startswith("alice/0")]
        return [self.client.get_object(Bucket="mail", Key=key)["Body"].read() for key in sorted(keys)]

    def arguments(self, port: int) -> list[str]:
        return ["mail", "--endpoint", f"http://127.0.0.1:{port}"]


class Graph(Backend):
    """A small Microsoft Graph, that can fail as it does."""

    script = "graph_gateway.py"
    commit = b"POST /v1.0/$batch"
    fails = frozenset({"test_sizes_are_octets_on_the_wire"})  # all are announced as 1

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.fake = FakeGraph()

    def start(self) -> None:
        self._server = self.fake.make_server(self.port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def deliver(self, *messages: bytes) -> None:
        for message in messages:
            self.fake.deliver(message)

    def mail(self) -> list[bytes]:
        return self.fake.in_folder("inbox")

    def arguments(self, port: int) -> list[str]:
        return ["--api", f"http://127.0.0.1:{port}/v1.0", "--login", f"http://127.0.0.1:{port}"]


BACKENDS: dict[str, type[Dovecot] | type[S3] | type[Graph]] = {"imap": Dovecot, "s3": S3, "graph": Graph}
