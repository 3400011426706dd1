"""Nobody stops another: pacing, places, and the accept loop (promise 4)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import popart
from popart import system
from popart.client_socket import Stream
from popart.command_deadlines import Closing, Place
from popart.connection_limits import Places
from popart.fairness import Pace, Pacer
from popart.options import Limits
from popart.reply_sending import Sender
from popart.server import Server
from tests.conftest import (
    PATIENCE,
    Client,
    ClosingHandler,
    Mail,
    MemoryHandler,
    QuickServer,
    connected,
    running,
    signed_in,
    wait_until,
)
from tests.test_monitoring import Monitor
from tests.test_server import HOST, MESSAGE, Held

# Pacing.


class Clock:
    """Stands in for the processor's clock, of which each session's thread has its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: Counter[Pace] = Counter()
        self.now = 0.0
        monkeypatch.setattr("time.thread_time", lambda: self.now)

    def work(self, pace: Pace, seconds: float) -> float:
        self.now = self.used[pace]
        pace.begin()
        self.now += seconds
        self.used[pace] = self.now  # type: ignore[assignment]
        return pace.pause()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_who_pipelines_alone_never_pauses(clock: Clock) -> None:
    """Without another busy session there is nobody to wait for."""
    pace = Pace(Pacer())
    assert [clock.work(pace, seconds) for seconds in (0.0001, 0.5, 100.0, 0.1)] == [0] * 4


def test_a_busy_session_pauses_for_the_others(clock: Clock) -> None:
    """Each of n busy sessions pauses for twice what the n - 1 others may use meanwhile, for five seconds at most."""
    pacer = Pacer()
    first, second, third = (Pace(pacer) for _ in range(3))
    assert clock.work(first, 0.01) == 0
    assert clock.work(second, 0.01) == pytest.approx(0.02)
    assert clock.work(third, 0.01) == pytest.approx(0.04)
    assert clock.work(first, 0.02) == pytest.approx(0.08)
    assert clock.work(first, 60.0) == 5.0
    third.rest()
    assert clock.work(second, 0.01) == pytest.approx(0.02)
    second.rest()
    assert clock.work(first, 0.01) == 0
    first.rest()
    assert pacer.busy == 0


def test_a_short_pipeline_is_free(clock: Clock) -> None:
    """A session may use a millisecond for pipelined commands before it counts as busy, and then no more of it."""
    pacer = Pacer()
    other = Pace(pacer)
    clock.work(other, 1.0)
    pace = Pace(pacer)
    assert clock.work(pace, 0.0006) == 0 and not pace.busy
    pace.rest()
    assert clock.work(pace, 0.0006) == pytest.approx(0.0012) and pace.busy
    pace.rest()
    assert clock.work(pace, 0.0001) == pytest.approx(0.0002)
    assert clock.work(Pace(pacer), 0.001) == pytest.approx(2 * 2 * 0.001)  # it counts once that is used


def test_what_counts_as_used(clock: Clock) -> None:
    """All time from the first pipelined command until the client lets itself be waited for, and none after that."""
    pacer = Pacer()
    clock.work(Pace(pacer), 1.0)
    pace = Pace(pacer)
    pace.begin()
    clock.now += 0.01
    pace.begin()
    assert pace.pause() == pytest.approx(0.02)
    pace.rest()
    assert not pace.counts
    clock.now += 60.0
    pace.begin()
    clock.now += 0.02
    assert pace.counts and pace.pause() == pytest.approx(0.04)


class Turns(Clock):
    """The same for sessions whose commands come one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sessions: int) -> None:
        super().__init__(monkeypatch)
        self.wall = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.wall)
        self.pacer = Pacer()
        self.others = [self.session() for _ in range(sessions)]

    def session(self) -> Pace:
        self.now = 0.0
        return Pace(self.pacer)

    def work(self, pace: Pace, seconds: float) -> float:
        """Let a session work, and return how long it pauses before its next command."""
        self.now = self.used[pace] + seconds
        self.used[pace] = self.now  # type: ignore[assignment]
        return pace.turn()

    def crowd(self) -> None:
        for other in self.others:
            self.work(other, 0.002)


def test_a_crowd_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """If more than 32 sessions are busy with single commands, each pauses for twice what the others need."""
    turns = Turns(monkeypatch, 32)
    turns.crowd()
    pace = turns.session()
    assert turns.work(pace, 0.0015) == pytest.approx(0)
    assert turns.work(pace, 0.0001) == pytest.approx(2 * 32 * 0.0001)
    turns.others[0].end()
    assert turns.work(pace, 0.0001) == 0


def test_who_has_used_its_time_is_one_of_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session counts once it has used 1.5 ms, and until half a second after its last command."""
    turns = Turns(monkeypatch, 3)
    first, second, third = turns.others
    turns.work(first, 0.0015)
    turns.wall = 0.375
    turns.work(second, 0.0015)
    assert turns.pacer._crowd == {first: 0.5, second: 0.875}
    turns.wall = 0.5
    turns.work(third, 0.0015)
    assert turns.pacer._crowd == {second: 0.875, third: 1.0}


def test_32_sessions_are_no_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 32 sessions, which all want all they can get, never pause as long as they wait for each answer."""
    turns = Turns(monkeypatch, 32)
    assert [turns.work(pace, 1.0) for _ in range(3) for pace in turns.others] == [0] * 96
    turns.pacer.add(1)  # a session that pipelines is one more
    assert turns.work(turns.others[0], 0.0001) == pytest.approx(2 * 32 * 0.0001)


def test_a_short_session_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session may use 1.5 ms for single commands before it counts.  A refused command costs 1 ms more."""
    turns = Turns(monkeypatch, 40)
    turns.crowd()
    pace = turns.session()
    assert turns.work(pace, 0.0014) == 0
    assert turns.work(pace, 0.0003) == pytest.approx(2 * 40 * 0.0002)  # what is beyond
    pace = turns.session()
    assert turns.work(pace, 0.0003) == 0
    pace.refused()
    assert turns.work(pace, 0.0003) == pytest.approx(2 * 41 * 0.0001)


def test_first_pauses_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session pauses for a tenth of a second at most, then for two tenths, and so on to five seconds."""
    turns = Turns(monkeypatch, 1000)
    turns.crowd()
    pace = turns.session()
    assert [turns.work(pace, 1.0) for _ in range(8)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_who_is_silent_leaves_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session counts for half a second after its last command."""
    turns = Turns(monkeypatch, 40)
    turns.crowd()
    pace = turns.session()
    turns.wall = 0.4
    assert turns.work(pace, 0.002) > 0
    turns.wall = 0.6
    assert turns.work(pace, 0.002) == 0


def test_who_pipelines_in_between_is_one_of_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of pipelined commands counts at the next command that comes alone, too."""
    turns = Turns(monkeypatch, 40)
    turns.crowd()
    pace = turns.session()
    pace.begin()
    turns.now = 0.0016
    assert pace.pause() == 0
    pace.rest()
    assert pace.turn() == pytest.approx(2 * 40 * 0.0001)


def test_what_is_skipped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for commands that come alone nor for pipelined ones."""
    turns = Turns(monkeypatch, 40)
    turns.crowd()
    turns.pacer.add(1)
    pace = turns.session()
    turns.now = 1.0
    pace.skip()
    assert not pace.counts and pace.turn() == 0
    pace.begin()
    turns.now = 2.0
    pace.skip()
    turns.now = 2.0009
    assert pace.counts and pace.pause() == pace.turn() == 0 and not pace.busy


SIGN_IN = [b"USER alice\r\n", b"PASS secret\r\n"]


@pytest.mark.parametrize("sign_in", [SIGN_IN, [b"".join(SIGN_IN)]], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("where", ["shake_hands", "factory", "authenticate_pass", "list_messages"])
def test_what_a_session_costs_once_is_free(
    where: str, sign_in: list[bytes], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """The handshake of TLS, the handler's hash of a password and its listing make no session pause."""

    def work(*arguments: Any) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    class Handler(ClosingHandler, popart.SupportsListing):
        def list_messages(self) -> list[tuple[int, str]]:
            return [(len(MESSAGE), "id")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("popart.fairness.CROWD", 0)
        patch.setattr("popart.fairness.ALLOWANCE", 0.015)
        patch.setattr("popart.fairness.TURN_ALLOWANCE", 0.015)
        handler = Handler(Mail(MESSAGE))
        owner: Any = Stream if where == "shake_hands" else handler
        original = getattr(owner, where, lambda peer: handler)

        def slow(*arguments: Any) -> Any:
            work()
            return original(*arguments)

        factory = slow if where == "factory" else lambda peer: handler
        if where != "factory":
            patch.setattr(owner, where, slow)
        pauses: list[float] = []
        patch.setattr(Place, "pause", lambda place, seconds: pauses.append(seconds))
        with running(QuickServer(HOST, factory, ssl_context=server_context)) as server:
            server._pacer.add(1)
            with connected(server, client_context) as client:
                client.line()
                for octets in sign_in:
                    client.send(octets)
                    for _ in octets.splitlines():
                        assert client.line().startswith(b"+OK")
                assert client.ask(b"NOOP") == b"+OK nothing done\r\n"
                client.send(b"NOOP\r\nNOOP\r\n")
                assert client.line() == client.line() == b"+OK nothing done\r\n"
            assert handler.closed.wait(PATIENCE)
        assert pauses == []


def test_turns_of_real_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that ask one by one without end pause in a crowd, and a new one does not."""
    monkeypatch.setattr("popart.fairness.CROWD", 1)
    monkeypatch.setattr("popart.fairness.TURN_ALLOWANCE", 0.02)
    pauses: dict[socket.socket, list[float]] = {}

    def pause(place: Place, seconds: float) -> None:
        pauses.setdefault(place.socket, []).append(seconds)

    monkeypatch.setattr(Place, "pause", pause)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server:
        with signed_in(server) as first, signed_in(server) as second:
            one, two = (place.socket for place in server._places.all())
            while not (one in pauses and two in pauses):
                assert first.ask(b"NOOP") == second.ask(b"NOOP") == b"+OK nothing done\r\n"
            with signed_in(server) as third:
                third.ask(b"NOOP")
                assert set(pauses) == {one, two}
                # Twenty refusals are 0.02 s.
                for _ in range(20):
                    assert third.ask(b"XYZZY").startswith(b"-ERR")
                first.ask(b"NOOP")
                third.ask(b"NOOP")
                assert len(pauses) == 3
        wait_until(lambda: not server._pacer._crowd)


@pytest.mark.parametrize("kind", [MemoryHandler, Monitor], ids=["silent", "monitoring"])
def test_which_refusals_count(kind: type[MemoryHandler], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands that came alone, whether the handler counts commands or not."""
    refusals: list[Pace] = []
    monkeypatch.setattr(Pace, "refused", lambda pace: refusals.append(pace))
    with running(QuickServer(HOST, lambda peer: kind(Mail(MESSAGE)))) as server, signed_in(server) as client:
        client.ask(b"NOOP")
        assert client.ask(b"XYZZY").startswith(b"-ERR")
        client.send(b"XYZZY\r\nXYZZY\r\nQUIT\r\n")
        client.rest()
    assert len(refusals) == 1


def test_a_turn_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command for which its session paused when the server closed is not begun: QUIT deletes nothing (promise 2)."""
    turns = iter([0.0, 0.0, 0.0, 60.0])  # USER, PASS, DELE, QUIT
    monkeypatch.setattr(Pace, "turn", lambda pace: next(turns))
    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as client:
        assert client.ask(b"DELE 1").startswith(b"+OK")
        client.send(b"QUIT\r\n")
        wait_until(lambda: any(place.waits and not place.idle for place in server._places.all()))
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
        assert client.rest() == b""
    assert not mail.locked and not mail.count("delete_messages") and mail.errors == []


NOOPS = b"NOOP\r\n" * 2000


@contextlib.contextmanager
def flooding(server: Server) -> Iterator[Client]:
    """A client that has sent commands for as long as anybody looks, and reads no more than the system takes."""
    with signed_in(server) as client, ThreadPoolExecutor() as others:
        stop = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    client.sock.sendall(NOOPS)

        def read() -> None:
            with contextlib.suppress(OSError):
                while client.sock.recv(65_536):
                    pass

        others.submit(flood)
        others.submit(read)
        try:
            yield client
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)


def test_floods_are_counted_and_forgotten() -> None:
    """Clients that pipeline without end are busy as long as they do; who lets itself be waited for is none of them."""
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server:
        with signed_in(server) as client:
            with flooding(server), flooding(server):
                wait_until(lambda: server._pacer.busy == 2)
                client.send(NOOPS[:1200])
                assert all(client.line() == b"+OK nothing done\r\n" for _ in range(200))
            wait_until(lambda: server._pacer.busy == 0)
            client.send(NOOPS)
            assert all(client.line() == b"+OK nothing done\r\n" for _ in range(2000))
            wait_until(lambda: server._pacer.busy == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_octets_without_a_line_end_are_work(
    tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Junk that never ends a line makes a session as busy as commands do."""
    context = server_context if tls else None
    with running(QuickServer(HOST, lambda peer: MemoryHandler(Mail()), ssl_context=context)) as server:
        with connected(server, client_context if tls else None) as client:
            assert client.line().startswith(b"+OK")
            server._pacer.add(1)  # or it would be the only one, and never pause
            for _ in range(300):
                client.send(b"x" * 10_000)
            wait_until(lambda: server._pacer.busy == 2)
        wait_until(lambda: server._pacer.busy == 1)


def test_a_pause_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that pauses for others does not hold up server_close()."""
    monkeypatch.setattr(Pace, "pause", lambda pace: 60.0)
    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as client:
        client.send(b"NOOP\r\nNOOP\r\n")
        assert client.line() == client.line() == b"+OK nothing done\r\n"
        with ThreadPoolExecutor() as others:
            others.submit(server.server_close).result(PATIENCE)
        assert client.rest() == b""
    assert not mail.locked and mail.errors == []


@pytest.mark.parametrize(("kind", "method"), [(Place, "pause"), (Sender, "flush")], ids=["pause", "flush"])
def test_no_command_after_a_wait_that_the_closing_ended(
    kind: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server closes while a session pauses or sends, no further command is begun: QUIT deletes nothing (promise
    2).
    """
    mail = Mail(MESSAGE)
    with running(QuickServer(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as client:
        original = getattr(kind, method)

        def wait(self: Any, *arguments: Any) -> None:
            server._closing.begun = True
            original(self, *arguments)

        monkeypatch.setattr(kind, method, wait)
        if method == "pause":  # right after the first command
            monkeypatch.setattr("popart.connection.STEPS", 1)
            monkeypatch.setattr(Pace, "pause", lambda pace: 0.01)
        client.send(b"DELE 1\r\nQUIT\r\n")
        assert client.rest() == b"+OK message marked as deleted\r\n"
    assert not mail.locked and not mail.count("delete_messages") and mail.errors == []


def test_a_pause_ends_with_the_login_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause does not outlast login_timeout."""
    monkeypatch.setattr(Pace, "pause", lambda pace: 60.0)
    handler = ClosingHandler(Mail())
    server = QuickServer(HOST, lambda peer: handler)
    server.login_timeout = 0.2
    with running(server), connected(server) as client:
        client.send(b"CAPA\r\nCAPA\r\n")
        assert handler.closed.wait(PATIENCE)


def test_no_guess_after_the_login_timeout() -> None:
    """Passwords that were sent ahead are not tried once the time to sign in is over, without their delays."""
    mail = Mail()
    handler = ClosingHandler(mail)
    server = QuickServer(HOST, lambda peer: handler)
    server.login_timeout = 0.3
    server.max_failed_logins = None
    with running(server), connected(server) as client:
        client.send(b"USER alice\r\nPASS wrong\r\n" * 9)
        assert handler.closed.wait(PATIENCE)
    assert 1 <= mail.count("authenticate_pass") <= 2  # the first answer is held back for 0.25 s


@pytest.mark.parametrize(
    ("commands", "looks"),
    [
        ([b"NOOP"], 0),
        ([b"NOOP"] * 2, 1),
        ([b"NOOP"] * 24, 1),
        ([b"NOOP"] * 25, 2),
        ([b"NOOP"] * 60, 3),
        ([b"LIST"] * 4, 1),
        ([b"LIST"] * 12, 3),
        ([b"RETR 2"] * 12, 3),
        ([b"RETR 1"] * 3, 4),
        ([b"RETR 1"] + [b"NOOP"] * 5, 2),
    ],
)
def test_how_often_the_clock_is_looked_at(commands: list[bytes], looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 25 pipelined commands, where a listing or a small message counts as 6, after sending, and at the end."""
    calls: list[Pace] = []
    mail = Mail(b"x" * 70_000, MESSAGE)

    def look(pace: Pace) -> float:
        calls.append(pace)
        return 0.0

    with running(Server(HOST, lambda peer: MemoryHandler(mail))) as server, signed_in(server) as client:
        client.send(b"NOOP\r\nNOOP\r\n")  # sign-in counts no longer
        assert client.line() + client.line() == 2 * b"+OK nothing done\r\n"
        monkeypatch.setattr(Pace, "pause", look)
        begun: list[Pace] = []
        monkeypatch.setattr(Pace, "begin", lambda pace: begun.append(pace))
        client.send(b"".join(command + b"\r\n" for command in commands))
        for command in commands:
            assert client.line().startswith(b"+OK")
            if command != b"NOOP":
                client.lines()
        assert len(calls) == looks and bool(begun) is (len(commands) > 1)
        monkeypatch.undo()


# Places.


def silent(client: Client, server: Server) -> None:
    """It has a greeting, and says nothing."""
    assert client.line().startswith(b"+OK")


def half_a_sign_in(client: Client, server: Server) -> None:
    silent(client, server)
    assert client.ask(b"USER alice").startswith(b"+OK")


def in_the_delay(client: Client, server: Server) -> None:
    """Its password was wrong, and it waits for the answer."""
    silent(client, server)
    client.send(b"USER alice\r\nPASS wrong\r\n" * 6)
    assert client.line().startswith(b"+OK")
    assert client.line().startswith(b"-ERR [AUTH]")


def deaf(client: Client, server: Server) -> None:
    """It has asked for more than it reads, so that its thread waits for room, again and again."""
    waits: list[float] = []
    wait_for_room = system.wait_for_room

    def noting(sock: socket.socket, seconds: float) -> None:
        begin = time.monotonic()
        wait_for_room(sock, seconds)
        waits.append(time.monotonic() - begin)

    silent(client, server)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    for place in server._places.all():
        place.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "wait_for_room", noting)
        client.sock.settimeout(0.1)
        end = time.monotonic() + PATIENCE
        while not (waits and waits[-1] > 0.4):  # no room for as long as the thread waits at a time
            assert time.monotonic() < end
            with contextlib.suppress(TimeoutError):
                client.send(b"CAPA\r\n" * 1000)
    wait_until(lambda: any(place.waits and not place.idle for place in server._places.all()))


STATES = [silent, half_a_sign_in, in_the_delay, deaf]


class Crowded(QuickServer):
    max_connections = 3
    max_connections_per_peer = None
    max_failed_logins = None


@pytest.mark.parametrize("state", STATES)
def test_the_oldest_that_has_not_signed_in_makes_room(state: Callable[[Client, Server], None]) -> None:
    """When all places are taken, it is cut, and its handler told; who has signed in keeps its place."""
    mail, old_mail = Mail(MESSAGE), Mail()
    handlers = [*(MemoryHandler(Mail(MESSAGE)) for _ in range(3)), ClosingHandler(old_mail), MemoryHandler(mail)]
    with running(Crowded(HOST, lambda peer: handlers.pop())) as server, signed_in(server) as first:
        with connected(server) as old:
            state(old, server)
            with connected(server) as young:
                silent(young, server)
                wait_until(lambda: all(place.waits for place in server._places.all()))
                with signed_in(server) as newcomer:
                    assert newcomer.ask(b"QUIT").startswith(b"+OK")
                    wait_until(lambda: old_mail.count("close") == 1)
                    assert first.ask(b"NOOP").startswith(b"+OK")
                    assert young.ask(b"CAPA").startswith(b"+OK")
    text = "the client had not signed in when another one needed its place"
    told = [(popart.ClientTimeoutError, text)] if state is not silent else []
    assert [(type(error), str(error)) for error in old_mail.errors] == told


def test_no_room_where_all_have_signed_in() -> None:
    """Then the newcomer is refused."""
    with running(Crowded(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(signed_in(server)) for _ in range(3)]
        with connected(server) as newcomer:
            assert newcomer.rest().startswith(b"-ERR [SYS/TEMP] too many")
        assert all(client.ask(b"NOOP").startswith(b"+OK") for client in clients)


@pytest.mark.parametrize("where", ["on_new_connection", "authenticate_pass", "lock_maildrop"])
def test_no_room_where_handlers_are_at_work(where: str) -> None:
    """A connection whose handler is at work is not cut."""
    handler = MemoryHandler(Mail(MESSAGE))
    server = Crowded(HOST, lambda peer: handler)
    server.max_connections = 1
    held = Held(server if where == "on_new_connection" else handler, where)
    with running(server), connected(server) as client:
        client.send(b"USER alice\r\nPASS secret\r\n")
        assert held.entered.wait(PATIENCE)
        with connected(server) as newcomer:
            assert newcomer.rest().startswith(b"-ERR [SYS/TEMP] too many")
        held.go_on.set()
        assert client.line().startswith(b"+OK")


def test_the_peers_own_limit_is_asked_first() -> None:
    """Who has all the places of its own makes nobody leave."""
    server = Crowded(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))
    server.max_connections_per_peer = 2
    with running(server), connected(server) as first, connected(server) as second:
        silent(first, server)
        silent(second, server)
        with socket.create_connection(server.server_address[:2], PATIENCE, ("127.0.0.2", 0)) as other:
            assert other.recv(3) == b"+OK"
            with connected(server) as third:
                assert third.rest().startswith(b"-ERR [SYS/TEMP] too many")
            assert first.ask(b"CAPA").startswith(b"+OK") and second.ask(b"CAPA").startswith(b"+OK")


def test_who_made_room_is_counted_down_once() -> None:
    """A connection that is cut for two reasons takes up no place afterwards."""
    server = Crowded(HOST, lambda peer: ClosingHandler(Mail()))
    server.login_timeout = 0.1
    with running(server), contextlib.ExitStack() as stack:
        for _ in range(30):
            # It may also be refused: if those that are cut have yet to leave.
            assert stack.enter_context(connected(server)).line()[:3] in (b"+OK", b"-ER", b"")
        wait_until(lambda: not len(server._places))
    assert server._places._leaving == 0


def test_a_hundred_more_for_a_moment() -> None:
    """Beyond the limit there are 100 places for those not known yet, and who makes room; a closing server has none.
    Who leaves twice makes room once.
    """
    limits, closing, lock = Limits(), Closing(), threading.RLock()
    limits.max_connections = 2
    places = Places(limits, closing, lock, threading.Condition(lock))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(104)]

        def is_admitted(sock: socket.socket) -> bool:
            return places.admit(sock, ("192.0.2.1", 1), address_known=False) is not None

        assert list(map(is_admitted, sockets)) == [True] * 102 + [False] * 2
        for _ in range(2):
            places.leave(sockets[0])
        assert is_admitted(sockets[-1]) and not is_admitted(sockets[-2])
        places.leave(sockets[1])
        closing.begun = True
        assert not is_admitted(sockets[-2])


def test_who_has_made_room_is_not_counted() -> None:
    """A connection that is cut, but has not ended yet, takes no place: nobody else is cut while there is one."""
    limits, closing, lock = Limits(), Closing(), threading.RLock()
    limits.max_connections = 2
    places = Places(limits, closing, lock, threading.Condition(lock))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]

        def admit(sock: socket.socket) -> Place:
            place = places.admit(sock, ("192.0.2.1", 1), address_known=True)
            assert place is not None
            place.waits = True
            return place

        first, second, third = map(admit, sockets[:3])
        assert first.makes_room and not second.makes_room
        places.leave(second.socket)
        admit(sockets[3])
        assert not third.makes_room


def test_two_addresses_lock_nobody_out() -> None:
    """Silent connections of two addresses that take all places make room for each client that comes."""

    class Small(QuickServer):
        max_connections = 20

    with running(Small(HOST, lambda peer: MemoryHandler(Mail(MESSAGE)))) as server, contextlib.ExitStack() as stack:
        for number in range(20):
            source = (f"127.0.0.{2 + number % 2}", 0)
            sock = socket.create_connection(server.server_address[:2], PATIENCE, source)
            assert stack.enter_context(sock).recv(3) == b"+OK"
        for _ in range(10):
            client = stack.enter_context(signed_in(server))
            assert client.ask(b"STAT") == b"+OK 1 34\r\n"


@pytest.mark.parametrize(("most", "half"), [(2000, 1000), (3, 1), (1, 1), (None, None)])
def test_half_of_the_places_for_one_peer(most: int | None, half: int | None) -> None:
    """A subclass that sets max_connections alone, or a mixin for it, gives one peer half of that, at least 1."""

    class Alone(Server):
        max_connections = most

    class Both(Server):
        max_connections = most
        max_connections_per_peer = 7

    class Inherits(Alone):
        pass

    class Mixin:
        max_connections = most

    class Mixed(Mixin, QuickServer):
        pass

    class MixedBoth(Mixin, Both):
        max_connections_per_peer = 8

    class MixedBelow(Both, Mixin):
        pass

    assert (Mixed.max_connections_per_peer, MixedBoth.max_connections_per_peer) == (half, 8)
    assert MixedBelow.max_connections_per_peer == 7
    assert (Alone.max_connections_per_peer, Both.max_connections_per_peer) == (half, 7)
    assert Inherits.max_connections_per_peer == half
    assert Server.max_connections_per_peer == 1000
    with Server(HOST, lambda peer: None) as server:
        server.max_connections = 4
        assert server.max_connections_per_peer == 1000


def test_clients_of_a_unix_socket_are_no_peer(tmp_path: Any) -> None:
    """They have no address, so the limit per peer does not count them."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "pop3"))
    server = QuickServer.from_socket(listener, lambda peer: MemoryHandler(Mail()))
    server.max_connections_per_peer = 1
    with running(server), contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(tmp_path / "pop3"))
            assert sock.recv(3) == b"+OK"


# The loop.


def test_connects_alone_do_not_starve_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """service_actions() is called, and shutdown() heard, while clients come without end."""
    called = threading.Event()

    class Busy(QuickServer):
        def service_actions(self) -> None:
            called.set()

    with Busy(HOST, lambda peer: None) as server:
        monkeypatch.setattr(server, "_accept_one", lambda: None)
        with ThreadPoolExecutor() as others:
            serving = others.submit(server.serve_forever)
            with connected(server):
                assert called.wait(PATIENCE)
                called.clear()
                assert called.wait(PATIENCE)
            server.shutdown()
            serving.result(PATIENCE)
