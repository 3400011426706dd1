"""Start the servers, each as a tree of processes, and read their costs from ``/proc``."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import data

HERE = Path(__file__).resolve().parent
START_PATIENCE = 30.0
TICK = os.sysconf("SC_CLK_TCK")


class CannotStartError(Exception):
    """A server did not start to answer."""


@dataclass
class Setting:
    """What a server must serve."""

    maildrop: data.Maildrop
    store: Path
    """The directory of Maildirs, one for each user."""

    pem: Path | None
    """A certificate and its key; None for plain TCP."""

    handler: tuple[str, ...] = ()
    """How popart's handler differs."""


class Peer:
    """A kind of server.  Its *name* heads a column."""

    own_identifiers = False
    """True if the server makes its own unique-ids."""

    needs_store = False
    """True if it serves Maildirs, and not the data in memory."""

    most_sessions = sys.maxsize
    """The most idle sessions to open."""

    def __init__(self, name: str) -> None:
        self.name = name

    def missing(self, tls: bool) -> str | None:
        """Return why it cannot run here, or None."""
        return None

    def command(self, port: int, setting: Setting, scratch: Path) -> list[str]:
        """Return the command line of a server that stays in the foreground."""
        raise NotImplementedError


class PythonPeer(Peer):
    """One of the scripts in ``servers/``."""

    def __init__(self, name: str, script: str, *first: str, last: tuple[str, ...] = (), python: str = "") -> None:
        super().__init__(name)
        self._start = [python or sys.executable, str(HERE / "servers" / script), *first]
        self._last = last

    def command(self, port: int, setting: Setting, scratch: Path) -> list[str]:
        tls = ["--tls", str(setting.pem)] if setting.pem else []
        return [*self._start, str(port), setting.maildrop.name, *tls, *self._last]


class PopartPeer(PythonPeer):
    needs_store = True  # for the rows with mail in files

    def __init__(self, name: str, *last: str) -> None:
        super().__init__(name, "popart_server.py", last=last)

    def command(self, port: int, setting: Setting, scratch: Path) -> list[str]:
        handler = [*setting.handler, "--store", str(setting.store)]
        return [*super().command(port, setting, scratch), *handler]


class CeilingPeer(PythonPeer):
    def __init__(self) -> None:
        super().__init__("client ceiling", "canned_server.py", "epoll")

    def missing(self, tls: bool) -> str | None:
        return "serves plain TCP only" if tls else None


class TwistedPeer(PythonPeer):
    def __init__(self, python: str) -> None:
        super().__init__("Twisted", "twisted_server.py", python=python)
        self._python = python

    def missing(self, tls: bool) -> str | None:
        modules = "twisted.mail.pop3, OpenSSL" if tls else "twisted.mail.pop3"
        try:
            found = subprocess.run([self._python, "-c", f"import {modules}"], capture_output=True)
        except OSError as error:
            return str(error)
        return f"{self._python} cannot import {modules}" if found.returncode else None


class DovecotPeer(Peer):
    """Debian's dovecot-pop3d on a configuration of its own, tuned for speed as its manual says."""

    needs_store = True
    most_sessions = 1000  # each is a process

    def __init__(self) -> None:
        super().__init__("Dovecot")
        self._path = shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

    def missing(self, tls: bool) -> str | None:
        if self._path is None:
            return "dovecot is not installed"
        if not any(
            Path(place, "dovecot/pop3").exists() for place in ("/usr/lib", "/usr/libexec", "/usr/local/libexec")
        ):
            return "dovecot-pop3d is not installed"
        return None

    def command(self, port: int, setting: Setting, scratch: Path) -> list[str]:
        assert self._path is not None
        root = os.geteuid() == 0
        # Dovecot refuses to touch mail as root.
        mail = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(mail.pw_gid).gr_name
        if root:
            for directory, _, _ in os.walk(setting.store):
                os.chown(directory, mail.pw_uid, mail.pw_gid)
        listener, other = ("pop3s", "pop3") if setting.pem else ("pop3", "pop3s")
        tls = f"ssl = yes\nssl_cert = <{setting.pem}\nssl_key = <{setting.pem}" if setting.pem else "ssl = no"
        users = (
            ""
            if root
            else f"default_internal_user = {mail.pw_name}\ndefault_internal_group = {group}\n"
            f"default_login_user = {mail.pw_name}\n"
            "service anvil {\n  chroot =\n}\nservice stats {\n  chroot =\n}\n"
        )
        config = scratch / "dovecot.conf"
        config.write_text(
            f"""\
protocols = pop3
listen = 127.0.0.1
base_dir = {scratch}/run
state_dir = {scratch}/state
log_path = {scratch}/dovecot.log
{users}
{tls}
disable_plaintext_auth = no
auth_mechanisms = plain
passdb {{
  driver = static
  args = password={data.PASSWORD}
}}
userdb {{
  driver = static
  args = uid={mail.pw_uid} gid={mail.pw_gid} home={setting.store}/%u
}}
first_valid_uid = 1
mail_location = maildir:{setting.store}/%u
pop3_uidl_format = %f
pop3_no_flag_updates = yes
maildir_very_dirty_syncs = yes
mail_fsync = never
mail_max_userip_connections = 0
service pop3-login {{
  chroot = {"login" if root else ""}
  # Its high-performance mode: processes that serve many logins.
  service_count = 0
  process_min_avail = {os.cpu_count()}
  client_limit = 20000
  inet_listener {listener} {{
    port = {port}
  }}
  inet_listener {other} {{
    port = 0
  }}
}}
service pop3 {{
  service_count = 0
  process_min_avail = {os.cpu_count()}
  process_limit = 20000
}}
service anvil {{
  client_limit = 50000
}}
service auth {{
  client_limit = 50000
}}
service stats {{
  client_limit = 50000
}}
"""
        )
        return [self._path, "-F", "-c", str(config)]


class CommandPeer(Peer):
    """Any server that can be started with a command."""

    own_identifiers = True
    needs_store = True

    def __init__(self, option: str) -> None:
        name, equals, self._command = option.partition("=")
        if not equals or "{port}" not in self._command:
            raise ValueError(f"not NAME=COMMAND with a {{port}} in it: {option!r}")
        super().__init__(name)

    def missing(self, tls: bool) -> str | None:
        return "its command has no {pem}" if tls and "{pem}" not in self._command else None

    def command(self, port: int, setting: Setting, scratch: Path) -> list[str]:
        # Without TLS, {pem} is empty, which tells the command to serve plain TCP.
        values = {"port": port, "store": setting.store, "user": setting.maildrop.name, "pem": setting.pem or ""}
        return [part.format(**values) for part in shlex.split(self._command)]


class Running:
    """A server's tree of processes."""

    def __init__(self, peer: Peer, setting: Setting, scratch: Path) -> None:
        scratch.mkdir(parents=True)
        # Dovecot's processes give up root, and must still reach this directory.
        scratch.chmod(0o755)
        self.peer = peer
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self._output = scratch / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                peer.command(self.port, setting, scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until it accepts connections."""
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=START_PATIENCE).close()
                return
            time.sleep(0.02)
        output = self._output.read_text(errors="replace").strip()
        raise CannotStartError(f"{self.peer.name} did not start: {output[-1000:] or 'no word from it'}")

    def stop(self) -> None:
        """End it, and all processes it started.  SIGKILL will do: the shutdown is not measured."""
        processes = self._tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used, including children that have ended."""
        # utime, stime and the same of children that were waited for
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in self._tree()) / TICK

    def memory(self) -> float:
        """Return its KB of memory; each process counts its part of shared memory."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total

    def _tree(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat(int(entry))):
                children.setdefault(int(fields[1]), []).append(int(entry))
        tree = [self._process.pid]
        for pid in tree:
            tree += children.get(pid, [])
        return tree


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def machine_cpu() -> float:
    """Return the seconds of CPU that all processes have used, plus those that a hypervisor took away."""
    user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / TICK


def make_certificate(path: Path) -> str | None:
    """Write a self-signed P-256 certificate and its key; return why not if that fails."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return "no openssl command to make a certificate with"
    key = path.with_suffix(".key")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-days", "30", "-keyout", str(key), "-out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"openssl made no certificate: {done.stderr.strip()[-200:]}"
    path.write_bytes(path.read_bytes() + key.read_bytes())
    path.chmod(0o644)
    return None


def describe_machine() -> str:
    """Return a line about the machine."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{os.cpu_count()} x {line.partition(':')[2].strip()}, Python {sys.version.split()[0]}"
    return f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
