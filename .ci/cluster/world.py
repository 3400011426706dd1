"""Three hosts, a proxy and a database on one machine: network namespaces where they may be made, else loopback."""

from __future__ import annotations

import contextlib
import csv
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).parent
PATIENCE = 20.0
DEAD_AFTER = 6
"""Seconds after which a host that fell silent is dead to PostgreSQL."""

HAPROXY = """
global
    stats socket {scratch}/haproxy.sock
    log stderr local0 warning
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 1s
    retries 3
    option redispatch 1
listen pop3
    bind {address}:{port}
    source {address}
    balance roundrobin
    option tcp-check
    tcp-check expect string +OK
    tcp-check send QUIT\\r\\n
    tcp-check expect string +OK
    default-server check inter 500ms fall 2 rise 2 send-proxy-v2 on-marked-down shutdown-sessions
{servers}
"""


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise TimeoutError(what)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


class Place:
    """Where processes run: a network namespace of its own, held by a process, or just this machine."""

    def __init__(self, world: World, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.prefix: list[str] = []
        if world.namespaces:
            holder = world.start(["unshare", "--net", "sleep", "infinity"])
            own = os.readlink("/proc/self/ns/net")
            wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, "a network namespace")
            self.prefix = ["nsenter", "--target", str(holder.pid), "--net", "--"]
            run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
            run("ip", "link", "set", f"to-{name}", "master", "bridge", "up")
            run(*self.prefix, "ip", "address", "add", f"{address}/16", "dev", "eth0")
            run(*self.prefix, "ip", "link", "set", "eth0", "up")
            run(*self.prefix, "ip", "link", "set", "lo", "up")

    def free_port(self, fixed: int) -> int:
        if self.prefix:
            return fixed
        with socket.create_server((self.address, 0)) as probe:
            return int(probe.getsockname()[1])


class Host:
    """One of the three: a popart process and its connection to the others."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.place = Place(world, f"host{number}", world.address(10 + number))
        self.name = self.place.name
        self.port = self.place.free_port(1100)
        self.log = world.scratch / f"{self.name}.log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        trusted = [f"--trusted-proxy={address}" for address in (self.world.proxy.address, self.world.address(1))]
        with self.log.open("ab") as log:
            self.process = self.world.start(
                [*self.place.prefix, sys.executable, str(HERE / "host.py"),
                 "--dsn", f"{self.world.dsn} application_name={self.name}", "serve",
                 "--host", self.place.address, "--port", str(self.port), *trusted,
                 "--dead-after", str(DEAD_AFTER), "--drain", "5"],
                stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def cut_off(self) -> None:
        """Make the host fall silent: nobody learns of it by a FIN or a RST."""
        if self.world.namespaces:
            run("ip", "link", "set", f"to-{self.name}", "down")
        else:
            self.process.send_signal(signal.SIGSTOP)

    def fence(self, connection: psycopg.Connection[Any]) -> str:
        """End the sessions of a stopped process: the kernel answers TCP's keepalives in its name for ever."""
        if self.world.namespaces:
            return ""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        connection.execute(statement, [self.name])
        return " (ended by pg_terminate_backend, as loopback has no link to cut)"

    def reconnect(self) -> None:
        if self.world.namespaces:
            run("ip", "link", "set", f"to-{self.name}", "up")
        else:
            self.process.send_signal(signal.SIGCONT)


class World:
    """PostgreSQL, HAProxy and the hosts.  Leaving the ``with`` block ends every process and removes every file."""

    def __init__(self) -> None:
        self.namespaces = "--inside" in sys.argv
        self.network = "10.77" if self.namespaces else "127.0"
        self.how_cut = "link down" if self.namespaces else "SIGSTOP"
        self.block = contextlib.ExitStack()

    def address(self, number: int) -> str:
        return f"{self.network}.0.{number}"

    def client_address(self, number: int) -> str:
        return f"{self.network}.1.{number}"

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.block.callback(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> World:
        with contextlib.ExitStack() as self.block:
            self.scratch = Path(tempfile.mkdtemp(prefix="cluster-"))
            self.block.callback(shutil.rmtree, self.scratch)
            self.scratch.chmod(0o755)
            if self.namespaces:
                run("ip", "link", "set", "lo", "up")
                run("ip", "link", "add", "bridge", "type", "bridge")
                run("ip", "address", "add", f"{self.address(1)}/16", "dev", "bridge")
                for number in range(1, 65):
                    run("ip", "address", "add", f"{self.client_address(number)}/16", "dev", "bridge")
                run("ip", "link", "set", "bridge", "up")
            self.database = Place(self, "database", self.address(2))
            self.proxy = Place(self, "proxy", self.address(3))
            self._start_postgresql()
            self.hosts = [Host(self, number) for number in (1, 2, 3)]
            self._start_haproxy()
            self.block = self.block.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.block.close()

    def _start_postgresql(self) -> None:
        """On a scratch directory, and never as root: PostgreSQL refuses that."""
        binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        data = self.scratch / "database"
        data.mkdir()
        as_user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(data, "postgres", "postgres")
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        initdb = [f"{binaries}/initdb", "-D", str(data), "-U", "mail", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*as_user, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=data)
        with (data / "pg_hba.conf").open("a") as access:
            access.write(f"host all all {self.network}.0.0/16 trust\n")
        port = self.database.free_port(5432)
        with (self.scratch / "postgresql.log").open("wb") as log:
            process = self.start(
                [*self.database.prefix, *as_user, f"{binaries}/postgres", "-D", str(data), "-p", str(port),
                 "-c", f"listen_addresses={self.database.address}", "-c", f"unix_socket_directories={data}",
                 "-c", "max_connections=200", "-c", "fsync=off"],
                stderr=log, stdout=log, cwd=data,
            )  # fmt: skip
        self.block.callback(process.wait, 10)
        self.block.callback(process.send_signal, signal.SIGQUIT)  # after SIGKILL its shared memory would be left
        self.dsn = f"host={self.database.address} port={port} user=mail dbname=postgres"
        wait_for(self._try_connecting, "PostgreSQL")

    def _try_connecting(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=5)

    def _start_haproxy(self) -> None:
        self.port = self.proxy.free_port(1110)
        servers = [f"    server {host.name} {host.place.address}:{host.port}" for host in self.hosts]
        configuration = self.scratch / "haproxy.cfg"
        configuration.write_text(
            HAPROXY.format(scratch=self.scratch, address=self.proxy.address, port=self.port, servers="\n".join(servers))
        )
        with (self.scratch / "haproxy.log").open("wb") as log:
            self.start([*self.proxy.prefix, "haproxy", "-db", "-f", str(configuration)], stderr=log, stdout=log)

    def hosts_up(self) -> set[str]:
        """Return the hosts that HAProxy's health checks find well."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as control:
            control.connect(f"{self.scratch}/haproxy.sock")
            control.sendall(b"show stat\n")
            with control.makefile("r") as table:
                rows = csv.DictReader(table)
                return {row["svname"] for row in rows if row["svname"].startswith("host") and row["status"] == "UP"}
        return set()

    def lock_holders(self, connection: psycopg.Connection[Any]) -> Iterator[tuple[str, int]]:
        """Yield the host and the database session of each lock that is held on a maildrop."""
        yield from connection.execute(
            "SELECT application_name, pid FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND classid = %s::bigint::oid",
            [int.from_bytes(b"POP3", "big")],
        )
