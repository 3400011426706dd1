"""Bad clients of every kind against one server process, for as long as you like.  Run by hand, not collected:

    python3 -m tests.soak [SECONDS]

The server, one plain and one TLS port in one process, is allowed few descriptors, so that it is short of them most
of the time.  A good client signs in and reads all the while.  Printed: what the good client saw, and the server's CPU
time, memory, descriptors and threads at the start, every minute and at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import trustme

import popart

DESCRIPTORS = 100
BAD_CLIENTS = 150
MESSAGE = b"Subject: soak\n\n" + b"All work and no play makes Jack a dull boy.\n" * 20_000


class SoakHandler(popart.Handler):
    """Counts locks and unlocks in one place for all sessions."""

    balance: Counter[str] = Counter()

    def set_banner(self, banner: str) -> None: ...

    def authenticate_pass(self, username: str, password: str) -> None:
        if password != "secret":
            raise popart.ReportableError("wrong name or password")

    def authenticate_apop(self, username: str, hexdigest: str) -> None: ...

    def lock_maildrop(self) -> None:
        self.balance["locks"] += 1

    def get_message_count(self) -> int:
        return 3

    def get_message_size(self, number: int) -> int:
        return len(MESSAGE)

    def get_message_id(self, number: int) -> str:
        return f"id-{number}"

    def get_message_reader(self, number: int) -> popart.MessageReader:
        return io.BytesIO(MESSAGE)

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self.balance["deletions"] += 1

    def unlock_maildrop(self) -> None:
        self.balance["unlocks"] += 1

    def handle_session_error(self, error: BaseException) -> None:
        self.balance[type(error).__name__] += 1


class SoakServer(popart.Server):
    minimum_timeout = 1
    login_timeout = 10
    handshake_timeout = 5


def serve(certificate: str) -> None:
    """The server's process: two ports, until its input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    plain = SoakServer(("127.0.0.1", 0), lambda peer: SoakHandler(), timeout=10)
    tls = SoakServer(("127.0.0.1", 0), lambda peer: SoakHandler(), timeout=10, ssl_context=context)
    with plain, tls:
        threads = [threading.Thread(target=server.serve_forever) for server in (plain, tls)]
        for thread in threads:
            thread.start()
        print(plain.server_address[1], tls.server_address[1], flush=True)
        sys.stdin.read()
    for thread in threads:
        thread.join()
    print(dict(SoakHandler.balance), "threads left:", threading.active_count() - 1, flush=True)


def say_nothing(sock: socket.socket) -> None:
    sock.recv(1000)
    time.sleep(random.uniform(1, 20))


def trickle(sock: socket.socket) -> None:
    for octet in b"USER alice\r\nPASS sec" * 10:
        sock.send(bytes([octet]))
        time.sleep(0.5)


def flood(sock: socket.socket) -> None:
    for _ in range(100):
        sock.sendall(b"x" * 100_000)


def chatter(sock: socket.socket) -> None:
    while sock.send(random.choice([b"NOOP\r\n", b"\r\n", b"\0\xff\r\n", b"GET / HTTP/1.1\r\n", b"PASS x\r\n"])):
        sock.recv(1000)


def guess(sock: socket.socket) -> None:
    while sock.send(b"USER alice\r\nPASS guess\r\n") and sock.recv(1000):
        pass


def read_slowly(sock: socket.socket) -> None:
    sock.sendall(b"USER alice\r\nPASS secret\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nDELE 1\r\n")
    for _ in range(60):
        sock.recv(10)
        time.sleep(0.5)


def vanish(sock: socket.socket) -> None:
    sock.sendall(b"USER alice\r\nPASS secret\r\nDELE 1\r\nRETR 2\r\nQUIT"[: random.randrange(60)])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_hello(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: random.randrange(12)])
    time.sleep(random.uniform(0, 10))


BAD: list[Callable[[socket.socket], None]] = [
    say_nothing,
    trickle,
    flood,
    chatter,
    guess,
    read_slowly,
    vanish,
    half_hello,
]


def misbehave(ports: list[int], context: ssl.SSLContext, end: float, seen: Counter[str]) -> None:
    while time.monotonic() < end:
        port = random.choice(ports)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            act = random.choice(BAD)
            seen[act.__name__] += 1
            if port == ports[1] and act is not half_hello and random.random() < 0.8:
                with context.wrap_socket(sock, server_hostname="localhost") as wrapped:
                    act(wrapped)
            else:
                act(sock)


def behave(port: int, end: float, seconds: list[float], failures: list[str]) -> None:
    while time.monotonic() < end:
        started = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, sock.makefile("rb") as replies:
                assert replies.readline().startswith(b"+OK")
                connected = time.monotonic()
                sock.sendall(b"USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n")
                assert [reply[:3] for reply in replies] == [b"+OK"] * 4
                seconds.append(time.monotonic() - connected)
        except (OSError, AssertionError) as error:
            failures.append(f"{time.monotonic() - started:.1f} s: {error!r}")
        time.sleep(0.1)


def figures(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    memory = int(fields[21]) * resource.getpagesize() / 1e6
    return (
        f"CPU {cpu:.1f} s, memory {memory:.1f} MB, "
        f"{len(os.listdir(f'/proc/{pid}/fd'))} descriptors, {fields[17]} threads"
    )


def main(seconds: float) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tempfile.NamedTemporaryFile() as certificate:
        certificate.write(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        certificate.flush()
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.soak", "--serve", certificate.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        ports = [int(port) for port in server.stdout.readline().split()]
    print("start:", figures(server.pid), flush=True)
    end = time.monotonic() + seconds
    seen: Counter[str] = Counter()
    latencies: list[float] = []
    failures: list[str] = []
    threads = [threading.Thread(target=misbehave, args=(ports, context, end, seen)) for _ in range(BAD_CLIENTS)]
    threads.append(threading.Thread(target=behave, args=(ports[0], end, latencies, failures)))
    for thread in threads:
        thread.start()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(60, left))
        print(f"{seconds - left + min(60, left):.0f} s:", figures(server.pid), flush=True)
    for thread in threads:
        thread.join()
    time.sleep(12)  # the server's own timeouts
    print("end, no client left:", figures(server.pid))
    out, _ = server.communicate("")
    print("the server:", out.strip(), "exit code", server.returncode)
    print("bad clients:", dict(seen))
    latencies.sort()
    if latencies:
        print(
            f"good sessions: {len(latencies)}, seconds once accepted: median {latencies[len(latencies) // 2]:.4f}, "
            f"99 % {latencies[len(latencies) * 99 // 100]:.4f}, longest {latencies[-1]:.4f}"
        )
    print("good sessions that failed:", len(failures), failures[:5])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 600.0)
