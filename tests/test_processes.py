"""Several processes on one port, replaced one by one under load: no session fails.

The tests hold some thousands of sessions each.  With 16 replacements in place of 4, none failed of 33,399 on an
inherited socket, and none of 44,261 with ``reuse_port`` and ``tcp_migrate_req=1``; docs/howto-processes.rst has what
happens without.

Run as a program this file is such a process, or what replaces them: in a network namespace of its own, for one.
"""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

import popart
from tests.conftest import Mail, MemoryHandler

ROOT = Path(__file__).parent.parent
MIGRATE = Path("/proc/sys/net/ipv4/tcp_migrate_req")
PROCESSES = 2
REPLACEMENTS = 4
CLIENTS = 24
PAUSES = [0.15] * 4 + [0.0] * (CLIENTS - 4)
"""Seconds that each client waits between its commands: some sessions outlast a replacement."""

LONGEST = 60.0
"""Seconds that a process may take to end: the clients alone keep a machine busy."""

IN_A_NAMESPACE = ["unshare", "--map-root-user", "--net"]


class NobodysHandler(MemoryHandler):
    """Serves the same mail to all, who need no lock as they change nothing."""

    def lock_maildrop(self) -> None: ...


def serve(how: str, number: int) -> None:
    """Serve until SIGTERM, then let the sessions come to their end.  The body of a process."""
    mail = Mail(b"Subject: x\r\n\r\nhello\r\n")
    if how == "inherited":
        server = popart.Server.from_socket(socket.socket(fileno=number), lambda peer: NobodysHandler(mail))
    else:
        server = popart.Server(("127.0.0.1", number), lambda peer: NobodysHandler(mail), reuse_port=True)
    with server:
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        print("ready", flush=True)
        server.serve_forever()
        assert server.drain(LONGEST)


class Load:
    """Clients that hold one session after the other."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.failures: Counter[str] = Counter()
        self.sessions = 0
        self.enough = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.live, args=(pause,)) for pause in PAUSES]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join()

    def live(self, pause: float) -> None:
        while not self.enough.is_set():
            failure = self.hold_session(pause)
            with self.lock:
                self.sessions += 1
                if failure is not None:
                    self.failures[failure] += 1

    def hold_session(self, pause: float) -> str | None:
        step = "connect"
        try:
            with socket.create_connection(self.address, LONGEST) as client, client.makefile("rb") as file:
                for step in ("", "USER alice", "PASS secret", "STAT", "LIST 1", "DELE 1", "QUIT"):
                    if step:
                        client.sendall(step.encode() + b"\r\n")
                    if not file.readline().startswith(b"+OK"):
                        raise ConnectionError("no +OK")
                    if pause:
                        self.enough.wait(pause)
                if file.read():
                    raise ConnectionError("more than +OK")
        except OSError as error:
            return f"{step or 'greeting'}: {error}"
        return None


def replace(how: str) -> None:
    """Replace each process several times under load.  Print how many sessions there were and which failed."""
    with ExitStack() as block:
        listening = block.enter_context(
            socket.create_server(("127.0.0.1", 0), backlog=1024, reuse_port=how != "inherited")
        )
        address = listening.getsockname()
        if how == "inherited":
            what, kept = listening.fileno(), [listening.fileno()]
        else:
            what, kept = address[1], []

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tests.test_processes", "serve", how, str(what)]
            process = block.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=kept, cwd=ROOT))
            block.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            return process

        processes = [start() for _ in range(PROCESSES)]
        if how != "inherited":
            listening.close()  # it had the port reserved
        with Load(address) as load:
            for _ in range(REPLACEMENTS):
                processes.append(start())
                old = processes.pop(0)
                old.terminate()
                assert old.wait(LONGEST) == 0
        for process in processes:
            process.terminate()
            assert process.wait(LONGEST) == 0
    print(json.dumps([load.sessions, load.failures]))


def replace_in_a_namespace(how: str) -> None:
    """Do the same where sockets that close hand their queue on, whatever the machine's own setting is."""
    with socket.socket() as any_socket:
        up = struct.pack("16sh", b"lo", 1)  # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, up)
    MIGRATE.write_text("1")
    replace(how)


def run(*command: str) -> None:
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=6 * LONGEST).stdout
    sessions, failures = json.loads(output)
    assert not failures
    assert sessions > 200, "too few to mean anything"


def test_inherited_socket() -> None:
    """Processes that share a listening socket are replaced under load, and no session fails.

    The socket is the parent's and never closes, so its queue of new connections is always somebody's.
    """
    run(sys.executable, "-m", "tests.test_processes", "replace", "inherited")


def test_reuse_port() -> None:
    """Processes that have a socket each on one port are replaced under load, and no session fails.

    That takes Linux's tcp_migrate_req=1: what waits in the queue of a socket that closes, and what still shakes hands
    with it, then goes to the others.
    """
    if not MIGRATE.exists() or subprocess.run([*IN_A_NAMESPACE, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this takes Linux 5.14 and a network namespace")
    run(*IN_A_NAMESPACE, sys.executable, "-m", "tests.test_processes", "replace_in_a_namespace", "reuse_port")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "replace":
        replace(sys.argv[2])
    else:
        replace_in_a_namespace(sys.argv[2])
