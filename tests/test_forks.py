"""Processes that are forked from a server's: what a child has, it lets go of, and the parent's sessions go on."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from popart.server import Server
from tests.conftest import PATIENCE, ClosingHandler, Mail, MemoryHandler, QuickServer, connected, running, signed_in
from tests.test_server import HOST, MESSAGE, no_hang

__all__ = ["no_hang"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Run *work* in a child, which leaves with 0 if that returns.  At the end the child must have left so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if not child:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            work()
            status = 0
        finally:
            os._exit(status)
    yield child
    assert os.waitpid(child, 0)[1] == 0


def see_that_it_serves(server: Server) -> None:
    with signed_in(server) as client:
        assert client.ask(b"STAT") == b"+OK 1 34\r\n"
        assert client.ask(b"QUIT").startswith(b"+OK")


@pytest.mark.parametrize("way", ["server_close", "with", "drain"])
def test_a_child_that_closes(way: str) -> None:
    """server_close(), or leaving the with block, returns at once in a child, and the parent's sessions and its loop
    go on.
    """

    def close() -> None:
        if way == "with":
            with server:
                pass
        elif way == "drain":
            server.drain(0)
            server.server_close()
        else:
            server.server_close()
            server.server_close()
        assert server.socket.fileno() == -1

    mails = [Mail(MESSAGE), Mail(MESSAGE)]
    handlers = [*map(ClosingHandler, mails)]
    with running(QuickServer(HOST, lambda peer: handlers.pop())) as server, signed_in(server) as client:
        with forked(close):
            pass
        assert client.ask(b"STAT") == b"+OK 1 34\r\n"
        see_that_it_serves(server)
        assert client.ask(b"QUIT").startswith(b"+OK")
        rounds: list[None] = []
        server.service_actions = lambda: rounds.append(None)  # type: ignore[method-assign]
        threading.Event().wait(0.3)
        assert len(rounds) < 5, "the loop spins"
    assert [mail.count("unlock_maildrop") for mail in mails] == [1, 1]


def test_a_child_keeps_no_client() -> None:
    """A session that ends in the parent ends for its client too, though a child lives."""
    done, begin = os.pipe()
    with running(QuickServer(HOST, lambda peer: ClosingHandler(Mail(MESSAGE)))) as server:
        with signed_in(server) as client, connected(server) as other:
            other.line()
            with forked(lambda: os.read(done, 1) and None):
                assert client.ask(b"QUIT").startswith(b"+OK")
                assert client.rest() == b""
                server.server_close()
                assert other.rest() == b""
                os.write(begin, b"\n")
    os.close(done)
    os.close(begin)


def test_what_a_child_closes() -> None:
    """At the fork a child closes its copies of the connections, and of what wakes the loop: it does not wait until
    nothing refers to them.
    """
    copies: list[Any] = []

    def look() -> None:
        assert [copy.fileno() for copy in copies] == [-1] * 3

    with running(QuickServer(HOST, lambda peer: ClosingHandler(Mail(MESSAGE)))) as server, signed_in(server) as client:
        (place,) = server._places.all()
        (door,) = server._doors
        copies += [place.socket, door._inside, door._outside]
        with forked(look):
            pass
        assert client.ask(b"STAT") == b"+OK 1 34\r\n"


def test_a_child_that_serves() -> None:
    """A server that was made before the fork serves in the child as ever, and closes there as ever."""
    ready, told = os.pipe()

    def serve() -> None:
        locked = Mail(MESSAGE)
        server.on_new_connection = lambda peer: MemoryHandler(locked)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with signed_in(server):
            assert locked.locked
            server.server_close()
        thread.join()
        assert not locked.locked
        assert threading.active_count() == 1
        os.write(told, b"\n")

    with QuickServer(HOST, lambda peer: MemoryHandler(Mail(MESSAGE))) as server:
        with forked(serve):
            assert os.read(ready, 1)
        with running(server):
            see_that_it_serves(server)
    os.close(ready)
    os.close(told)


@pytest.mark.parametrize("where", ["authenticate_pass", "service_actions"])
def test_a_fork_within_a_call(where: str) -> None:
    """A child that is forked by a handler, or by the loop's hook, and leaves by an exception, disturbs nobody."""
    forks: list[int] = []

    def fork() -> None:
        if not forks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                forks.append(os.fork())
            if not forks[0]:
                server.server_close()
                os._exit(0)
            assert os.waitpid(forks[0], 0)[1] == 0

    class Forking(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            if where == "authenticate_pass":
                fork()

    class ForkingServer(QuickServer):
        def service_actions(self) -> None:
            if where == "service_actions":
                fork()

    server = ForkingServer(HOST, lambda peer: Forking(Mail(MESSAGE)))
    with running(server):
        see_that_it_serves(server)
        see_that_it_serves(server)
    assert forks


def test_a_child_of_a_handler_that_goes_on() -> None:
    """If it returns, its copy of the session ends without a word, and so does the child: it has no other thread."""
    forks: list[int] = []

    class Forking(MemoryHandler):
        def authenticate_pass(self, username: str, password: str) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                forks.append(os.fork())
            if forks[-1]:
                assert os.waitpid(forks[-1], 0)[1] == 0
            else:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)
                threading.excepthook = lambda _: os._exit(1)

    with running(QuickServer(HOST, lambda peer: Forking(Mail(MESSAGE)))) as server:
        see_that_it_serves(server)


def test_a_child_of_the_loop_leaves_it() -> None:
    """A child that is forked by the loop's hook, and returns from it, does not accept beside its parent."""
    parent = os.getpid()
    forks: list[int] = []

    class ForkingServer(QuickServer):
        def service_actions(self) -> None:
            if forks:
                return
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                forks.append(os.fork())
            if os.getpid() == parent:
                self.shutdown()
            else:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)

    with ForkingServer(HOST, lambda peer: None) as server:
        try:
            server.serve_forever(0.01)
        except BaseException:
            if os.getpid() != parent:
                os._exit(1)
            raise
        if os.getpid() != parent:
            os._exit(0)
        assert os.waitpid(forks[0], 0)[1] == 0
