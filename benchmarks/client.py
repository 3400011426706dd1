"""The load client: it sends prepared octets, compares the answers with the octets it expects, and measures the time.

`learn` first holds one slow session, to check each answer against the data and to learn the wording of the status
lines.  After that an answer is right if it equals the learnt one, octet for octet.  That is one comparison and no
parsing, so the client costs little more than its system calls.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data import Exchange

PATIENCE = 30
"""Seconds after which a missing answer counts as a wrong one."""

READ_SIZE = 65_536

Step = tuple[bytes, bytes | None]
"""What to send, and the whole answer.  None means any greeting; sending b"" means waiting."""

GREETING: Step = (b"", None)
END: Step = (b"", b"")
"""After QUIT: the server closes the connection."""


class WrongAnswerError(Exception):
    """A server sent a wrong answer, or none."""


@dataclass
class Target:
    """Where to connect to."""

    port: int
    context: ssl.SSLContext | None = None
    session: ssl.SSLSession | None = None
    """A TLS session to resume; None for a full handshake."""

    def connect(self) -> socket.socket:
        """Connect, over TLS if there is a context.  Reads and writes on the socket may block."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Python's own timeout would cost a poll() before each recv(), and would defeat MSG_WAITALL.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", PATIENCE, 0))
        return sock if self.context is None else self.context.wrap_socket(sock, session=self.session)


def make_context() -> ssl.SSLContext:
    """Make the TLS context of all clients.  It does not check the certificate: only the client would pay for that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass
class Measurement:
    """The result of one run of one row."""

    amount: float
    seconds: float
    client_cpu: float
    """Seconds of CPU that the client used meanwhile."""

    server_cpu: float = 0.0
    others_cpu: float = 0.0
    """Seconds of CPU that the rest of the machine used."""

    details: dict[str, float] = field(default_factory=dict)


def learn(target: Target, exchanges: Iterable[Exchange], first_words: dict[bytes, bytes]) -> list[Step]:
    """Hold a session, check each answer, and return the steps to repeat it.

    The answer to a command of *first_words* must begin with these octets, other status lines with ``+OK``.
    """
    steps: list[Step] = [GREETING]
    with _closing(target.connect()) as sock, sock.makefile("rb") as file:
        try:
            _check_start(file.readline(), b"+OK", "the greeting")
            for command, body in exchanges:
                sock.sendall(command)
                status = file.readline()
                what = command.decode().strip()
                _check_start(status, first_words.get(command, b"+OK"), what)
                if body is not None:
                    _check(file.read(len(body)), body, what)
                steps.append((command, status + (body or b"")))
            _check(file.read(), b"", "the end of the connection")
        except OSError as error:
            raise WrongAnswerError(str(error)) from error
    return [*steps, END]


def learn_identifiers(target: Target, sign_in: Iterable[Exchange], count: int) -> bytes:
    """Return all after UIDL's status line, from a server that makes its own unique-ids."""
    with _closing(target.connect()) as sock, sock.makefile("rb") as file:
        _check_start(file.readline(), b"+OK", "the greeting")
        for command, _ in sign_in:
            sock.sendall(command)
            _check_start(file.readline(), b"+OK", command.decode().strip())
        sock.sendall(b"UIDL\r\n")
        _check_start(file.readline(), b"+OK", "UIDL")
        lines = [file.readline() for _ in range(count)]
        identifiers = {line.partition(b" ")[2] for line in lines}
        if not all(line.startswith(b"%d " % n) for n, line in enumerate(lines, 1)) or len(identifiers) != count:
            raise WrongAnswerError("UIDL: not a unique-id for each message")
        sock.sendall(b"QUIT\r\n")
        file.read()
        return b"".join(lines) + b".\r\n"


def converse(
    target: Target, steps: list[Step], at_once: int, seconds: float, loop: tuple[int, int] | None = None
) -> Measurement:
    """Keep *at_once* connections busy with these steps, one command at a time on each, for about *seconds*.

    When a connection has done its steps, a new one follows it, and the finished connections are counted.  With *loop*,
    there are no new ones: each connection repeats steps loop[0] to loop[1] - 1, and the repetitions are counted.
    """
    poller = select.epoll()
    live: dict[int, _Connection] = {}
    done = resumed = 0

    def start() -> None:
        connection = _Connection(target)
        live[connection.fd] = connection
        poller.register(connection.fd, select.EPOLLIN)

    begun = time.perf_counter()
    cpu = time.process_time()
    deadline = begun + seconds
    with contextlib.ExitStack() as stack:
        stack.callback(poller.close)
        stack.callback(_close_all, live)
        for _ in range(at_once):
            start()
        while live:
            events = poller.poll(PATIENCE)
            if not events:
                raise WrongAnswerError(f"no answer in {PATIENCE} seconds")
            for fd, _ in events:
                connection = live[fd]
                try:
                    if connection.in_handshake:
                        connection.shake_hands()
                        continue
                    octets = connection.recv(READ_SIZE)
                except ssl.SSLWantReadError:
                    continue
                except OSError as error:
                    raise WrongAnswerError(f"after {steps[connection.step][0]!r}: {error}") from error
                command, expected = steps[connection.step]
                if octets != expected:
                    ended = not octets
                    octets = connection.pending + octets
                    if expected is None:
                        if not octets.endswith(b"\n"):
                            connection.pending = octets
                            continue
                        _check_start(octets, b"+OK", "the greeting")
                        resumed += connection.resumed()
                    elif octets != expected:
                        if ended or not expected.startswith(octets):
                            _check(octets, expected, command.decode().strip() or "the end of the connection")
                        connection.pending = octets
                        continue
                    connection.pending = b""
                connection.step += 1
                if loop is not None and connection.step == loop[1]:
                    done += 1
                    if time.perf_counter() < deadline:
                        connection.step = loop[0]
                if connection.step < len(steps):
                    if command := steps[connection.step][0]:
                        connection.send(command)
                    continue
                connection.sock.close()
                del live[fd]
                if loop is None:
                    done += 1
                    if time.perf_counter() < deadline:
                        start()
    found = Measurement(done, time.perf_counter() - begun, time.process_time() - cpu)
    if target.session is not None:
        found.details["resumed %"] = 100 * resumed / done
    return found


class _Connection:
    """A connection of `converse`."""

    __slots__ = ("fd", "in_handshake", "pending", "recv", "send", "sock", "step")

    def __init__(self, target: Target) -> None:
        sock = socket.socket()
        if target.context is None:
            sock.setblocking(False)
            problem = sock.connect_ex(("127.0.0.1", target.port))
            if problem not in (0, errno.EINPROGRESS):
                raise WrongAnswerError(f"cannot connect: {errno.errorcode[problem]}")
        else:
            sock.connect(("127.0.0.1", target.port))
            sock.setblocking(False)
            sock = target.context.wrap_socket(sock, do_handshake_on_connect=False, session=target.session)
        self.sock = sock
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.send = sock.send
        self.step = 0
        self.pending = b""
        self.in_handshake = target.context is not None
        if self.in_handshake:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.shake_hands()

    def shake_hands(self) -> None:
        self.sock.do_handshake()  # type: ignore[attr-defined]
        self.in_handshake = False

    def resumed(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket) and bool(self.sock.session_reused)


def _close_all(connections: dict[int, _Connection]) -> None:
    for connection in connections.values():
        connection.sock.close()


def repeat(target: Target, steps: list[Step], together: slice, seconds: float) -> Measurement:
    """Hold one session, and send the commands of the steps *together* in one write, over and over.

    Only the time from a write to its last octet counts: the comparison of the answer is outside the clock.
    """
    command = b"".join([command for command, _ in steps[together]])
    expected = b"".join([answer for _, answer in steps[together] if answer is not None])
    buffer = bytearray(len(expected))
    amount = 0
    spent = cpu = 0.0
    with _closing(target.connect()) as sock:
        for step in steps[: together.start]:
            _ask(sock, step)
        while spent < seconds or not amount:
            started, cpu_started = time.perf_counter(), time.process_time()
            sock.sendall(command)
            _receive_into(sock, buffer)
            spent += time.perf_counter() - started
            cpu += time.process_time() - cpu_started
            if buffer != expected:
                _check(bytes(buffer), expected, "the answers")
            amount += 1
        for step in steps[together.stop :]:
            _ask(sock, step)
    return Measurement(amount, spent, cpu)


def one_by_one(target: Target, steps: list[Step], seconds: float) -> Measurement:
    """Hold one whole session after another, and also find the median time of each command."""
    times: dict[str, list[float]] = {}
    amount = 0
    begun, cpu = time.perf_counter(), time.process_time()
    while not amount or time.perf_counter() < begun + seconds:
        with _closing(target.connect()) as sock:
            for step in steps:
                started = time.perf_counter()
                _ask(sock, step)
                times.setdefault(step[0][:4].decode(), []).append(time.perf_counter() - started)
        amount += 1
    return Measurement(
        amount,
        time.perf_counter() - begun,
        time.process_time() - cpu,
        details={f"ms {name}": statistics.median(taken) * 1000 for name, taken in times.items() if name},
    )


def open_sessions(target: Target, steps: Iterable[Step], count: int) -> Iterator[socket.socket]:
    """Sign in *count* times, and leave the connections open."""
    steps = list(steps)
    for _ in range(count):
        sock = target.connect()
        for step in steps:
            _ask(sock, step)
        yield sock


def latency(target: Target, steps: list[Step], count: int) -> float:
    """Hold *count* sessions one after another, and return the median seconds of a whole session."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        with _closing(target.connect()) as sock:
            for step in steps:
                _ask(sock, step)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def get_tls_session(target: Target, steps: list[Step]) -> ssl.SSLSession | None:
    """Hold a session and return its TLS session, to resume it: TLS 1.3 sends its tickets after the handshake."""
    with _closing(target.connect()) as sock:
        assert isinstance(sock, ssl.SSLSocket)
        for step in steps:
            _ask(sock, step)
        return sock.session


@contextlib.contextmanager
def _closing(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    finally:
        sock.close()


def _ask(sock: socket.socket, step: Step) -> None:
    command, expected = step
    try:
        if command:
            sock.sendall(command)
        if expected is None:
            line = b""
            while not line.endswith(b"\n"):
                octets = sock.recv(READ_SIZE)
                if not octets:
                    break
                line += octets
            _check_start(line, b"+OK", "the greeting")
            return
        octets = sock.recv(READ_SIZE)
    except OSError as error:
        raise WrongAnswerError(f"{command!r}: {error}") from error
    if octets != expected:
        if len(octets) < len(expected) and octets:
            rest = bytearray(len(expected) - len(octets))
            _receive_into(sock, rest)
            octets += rest
        _check(octets, expected, command.decode().strip() or "the end of the connection")


def _receive_into(sock: socket.socket, buffer: bytearray) -> None:
    """Fill the buffer; over plain TCP this wakes the process only a few times."""
    view = memoryview(buffer)
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
    try:
        while view:
            received = sock.recv_into(view, len(view), flags)
            if not received:
                raise WrongAnswerError("the connection ended within an answer")
            view = view[received:]
    except OSError as error:
        raise WrongAnswerError(f"within an answer: {error}") from error


def _check_start(line: bytes, start: bytes, what: str) -> None:
    if not (line.startswith(start) and line.endswith(b"\r\n")):
        raise WrongAnswerError(f"{what}: {line[:60]!r}, not {start!r}...")


def _check(octets: bytes, expected: bytes, what: str) -> None:
    if octets != expected:
        at = next((i for i, (a, b) in enumerate(zip(octets, expected, strict=False)) if a != b), None)
        at = min(len(octets), len(expected)) if at is None else at
        here = slice(max(0, at - 20), at + 20)
        raise WrongAnswerError(f"{what}: wrong from octet {at} on: {octets[here]!r}, not {expected[here]!r}")
