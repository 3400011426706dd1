"""The option *processor*: the sessions' threads stay on one processor, and slow sign-ins do not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import popart
from popart import HandlerError, Server
from popart.processor import Processor
from tests.conftest import Client, Mail, MemoryHandler, connected, running, signed_in, wait_until

HOST = ("127.0.0.1", 0)


def burn(seconds: float) -> None:
    """Use processor time."""
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass


class System:
    """Pretends to have the processors 3, 5 and 8, and records where each thread is put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves: dict[int, list[set[int]]] = {}
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {8, 3, 5}, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.move, raising=False)

    def move(self, thread: int, processors: set[int]) -> None:
        assert thread == 0  # the calling one
        self.moves.setdefault(threading.get_ident(), []).append(set(processors))

    @property
    def here(self) -> set[int]:
        return self.moves[threading.get_ident()][-1]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    return System(monkeypatch)


class PlacedHandler(MemoryHandler):
    """Records the processor of each sign-in and each message."""

    def __init__(self, mail: Mail, system: System, seconds: list[float]) -> None:
        super().__init__(mail)
        self.system = system
        self.seconds = seconds
        self.signed_in_on: list[set[int]] = []
        self.read_on: list[set[int]] = []

    def authenticate_pass(self, username: str, password: str) -> None:
        self.signed_in_on.append(self.system.here)
        burn(self.seconds.pop(0))
        super().authenticate_pass(username, password)

    def get_message_reader(self, number: int) -> popart.MessageReader:
        self.read_on.append(self.system.here)
        return super().get_message_reader(number)


def session(server: Server) -> None:
    with connected(server) as client:
        client.line()
        client.sign_in()
        client.send(b"RETR 1\r\n")
        client.lines()
        client.ask(b"QUIT")
        client.rest()


def test_sessions_stay_on_one(system: System) -> None:
    """All that a handler does runs on the chosen processor, and so does serve_forever, until it returns."""
    handler = PlacedHandler(Mail(b"a\r\n"), system, [0.0] * 3)
    with running(Server(HOST, lambda peer: handler, processor=5)) as server:
        wait_until(lambda: len(server._loops) == 1)
        (accepts,) = server._loops
        for _ in range(3):
            session(server)
    assert handler.signed_in_on == handler.read_on == [{5}] * 3
    assert accepts.ident is not None
    assert system.moves[accepts.ident] == [{5}, {3, 5, 8}]


def test_quick_sign_ins_stay(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as sign-ins are quick, no thread is moved but at the beginning of its session."""
    monkeypatch.setattr("popart.processor.SLOW_SIGN_IN", 60.0)
    with running(Server(HOST, lambda peer: MemoryHandler(Mail(b"a\r\n")), processor=8)) as server:
        for _ in range(2):
            session(server)
    moves = [places for places in system.moves.values() if {3, 5, 8} not in places]
    assert sum(moves, []) == [{8}] * 2


def test_slow_sign_ins_are_spread(system: System) -> None:
    """After a sign-in of a millisecond or more, the next ones run where the fewest do, until one is quick."""
    mail = Mail(b"a\r\n")
    slow = PlacedHandler(mail, system, [0.002])
    at_once = threading.Barrier(3)
    placed: list[set[int]] = []

    class HeldHandler(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            placed.append(system.here)
            at_once.wait(10)
            burn(0.002)
            super().authenticate_pass(username, password)

    handlers: list[popart.Handler] = [slow, *(HeldHandler(Mail(b"a\r\n")) for _ in range(3))]
    after = [PlacedHandler(mail, system, [seconds]) for seconds in (0.002, 0.0, 0.0)]
    handlers += after
    with running(Server(HOST, lambda peer: handlers.pop(0), processor=8)) as server:
        session(server)
        clients = [threading.Thread(target=session, args=(server,)) for _ in range(3)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for _ in after:
            session(server)
    assert sorted(map(sorted, placed)) == [[3], [5], [8]]
    assert slow.signed_in_on == [{8}]
    assert [handler.signed_in_on for handler in after] == [[{8}]] * 3
    assert [handler.read_on for handler in (slow, *after)] == [[{8}]] * 4


def test_failed_sign_in_is_no_measure(system: System) -> None:
    """What is over quickly and does not sign anybody in, such as USER, does not change where the next one runs."""
    processor = Processor(3)

    def raise_after(seconds: float) -> None:
        burn(seconds)
        raise HandlerError("no")

    def here_and_next() -> tuple[set[int], set[int]]:
        here = system.here
        return here, processor.sign_in(lambda: system.here, lambda: False)

    with pytest.raises(HandlerError):
        processor.sign_in(lambda: raise_after(0.002), lambda: False)
    assert processor.sign_in(here_and_next, lambda: False) == ({3}, {5})
    assert processor.sign_in(lambda: None, lambda: False) is None
    assert processor.sign_in(here_and_next, lambda: True) == ({3}, {5})
    moves = len(system.moves[threading.get_ident()])
    processor.sign_in(lambda: None, lambda: False)
    assert len(system.moves[threading.get_ident()]) == moves and system.here == {3}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no such call")
@pytest.mark.parametrize("processor", ["current", min(getattr(os, "sched_getaffinity", lambda _: {0})(0))])
def test_the_real_one(processor: Any) -> None:
    """A session sees itself on the one processor; the caller's thread keeps all of its own."""
    before = os.sched_getaffinity(0)
    found: list[set[int]] = []

    class Handler(MemoryHandler):
        def lock_maildrop(self) -> None:
            found.append(os.sched_getaffinity(0))
            super().lock_maildrop()

    with running(Server(HOST, lambda peer: Handler(Mail()), processor=processor)) as server, signed_in(server):
        assert found == [{server.processor}] and server.processor in before
    assert os.sched_getaffinity(0) == before


def test_the_processor_is_gone(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is taken away from the process later is no reason to serve nobody."""

    def refuse(thread: int, processors: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with running(Server(HOST, lambda peer: MemoryHandler(Mail()), processor=3)) as server, signed_in(server) as client:
        assert client.ask(b"NOOP").startswith(b"+OK")


def test_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no such call, the option does nothing."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    for processor in (7, "current"):
        make: Callable[..., Server] = Server
        server = make(HOST, lambda peer: MemoryHandler(Mail()), processor=processor)
        assert server.processor is None
        with running(server), signed_in(server) as client:
            assert client.ask(b"NOOP").startswith(b"+OK")


def test_a_system_that_does_not_tell_the_current_one(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, "current" does nothing; a number still does."""

    def refuse() -> int:
        raise FileNotFoundError

    monkeypatch.setattr("popart.system.current_processor", refuse)
    with Server(HOST, lambda peer: None, processor="current") as server:
        assert server.processor is None
    with Server(HOST, lambda peer: None, processor=5) as server:
        assert server.processor == 5


@pytest.mark.parametrize("processor", [4, -1, "3", "", True, 3.0, {3}, b"current"])
def test_wrong_values(processor: Any, system: System) -> None:
    """A processor is the number of one that the process may use, or "current"."""
    with pytest.raises(ValueError, match="processor"):
        Server(HOST, lambda peer: MemoryHandler(Mail()), processor=processor)


def test_listeners_take_it(system: System) -> None:
    """A server from a socket takes the option too, and without it no thread is moved."""
    for options, moved in (({"processor": 3}, True), ({}, False)):
        make: Callable[..., Server] = Server.from_socket
        listener = socket.create_server(HOST)
        system.moves.clear()
        with running(make(listener, lambda peer: MemoryHandler(Mail()), **options)) as server:
            with signed_in(server) as client:
                assert isinstance(client, Client)
            assert bool(system.moves) is moved
