"""The gateway to an asyncio application: its loop answers popart's threads, and neither waits for ever."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import poplib
import sqlite3
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import EXAMPLES, Gateway, need, started
from door import PATIENCE
from test_each_gateway import LARGE, SMALL, curl, delete, fetch_all
from wire_suite import ALL, HARD, failures

import popart
from tests.conftest import nothing_left as nothing_left
from tests.conftest import wait_until


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    need(importlib.util.find_spec("aiosqlite"), "aiosqlite")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("asyncio_gateway")


@pytest.fixture
def store(module: ModuleType, tmp_path: Path) -> Iterator[Any]:
    store = module.Store(str(tmp_path / "mail.db"))
    asyncio.run(store.create())
    yield store
    # aiosqlite tells the thread of a closed connection to end, and does not wait for it.
    wait_until(lambda: not [thread for thread in threading.enumerate() if "_connection_worker" in thread.name])


def deliver(store: Any, *messages: bytes) -> None:
    async def deliver_all() -> None:
        for message in messages:
            await store.deliver("alice", message)

    asyncio.run(deliver_all())


@pytest.fixture
def gateway(store: Any, tmp_path: Path) -> Iterator[Gateway]:
    command = [sys.executable, str(EXAMPLES / "asyncio_gateway.py"), str(tmp_path / "mail.db"), "--port", "0"]
    with started(command, tmp_path / "log") as gateway:
        yield gateway


def test_poplib(store: Any, gateway: Gateway) -> None:
    """poplib fetches each message whole, and deletes what it says."""
    deliver(store, *SMALL, LARGE)
    for left in ([*SMALL, LARGE], [SMALL[1], SMALL[3], SMALL[4], LARGE]):
        with gateway.client() as client:
            assert fetch_all(client) == left
            delete(client, *[number for number in (1, 3) if len(left) == 6])
            client.quit()


def test_curl(store: Any, gateway: Gateway) -> None:
    """curl fetches each message, octet by octet."""
    messages = [HARD["dots"], HARD["eight-bit"], LARGE]
    deliver(store, *messages)
    assert [curl(gateway, number) for number in (1, 2, 3)] == messages


def test_the_wire_suite(store: Any, gateway: Gateway) -> None:
    """It passes all of the wire suite."""
    deliver(store, *ALL)
    assert failures(gateway.port) == set()


def test_a_message_that_vanished(store: Any, gateway: Gateway) -> None:
    """RETR of it is refused, and deleting it is no error."""
    deliver(store, *SMALL)
    with gateway.client() as client:
        asyncio.run(store.delete([1]))
        with pytest.raises(poplib.error_proto, match="-ERR the message is gone"):
            client.retr(1)
        delete(client, 1, 2)
        client.quit()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL[2:]
        client.quit()


def test_an_empty_message(store: Any, gateway: Gateway) -> None:
    """It is there, and empty."""
    deliver(store, b"")
    with gateway.client() as client:
        assert client.list()[1] == [b"1 0"]
        assert client.retr(1)[1] == []
        client.quit()


def test_a_database_that_is_locked(store: Any, gateway: Gateway, tmp_path: Path) -> None:
    """If the commit takes too long, QUIT is refused, and nothing is deleted then or later."""
    deliver(store, *SMALL)
    other = sqlite3.connect(tmp_path / "mail.db", isolation_level=None)
    try:
        with gateway.client() as client:
            delete(client, 1, 3)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                client.quit()
            other.execute("ROLLBACK")
    finally:
        other.close()
    with gateway.client() as client:
        assert fetch_all(client) == SMALL
        client.quit()


def test_a_termination_with_clients(store: Any, tmp_path: Path) -> None:
    """SIGTERM ends the program while clients are signed in, and deletes nothing."""
    deliver(store, *SMALL)
    command = [sys.executable, str(EXAMPLES / "asyncio_gateway.py"), str(tmp_path / "mail.db"), "--port", "0"]
    with started(command, tmp_path / "log") as gateway:
        client = poplib.POP3("127.0.0.1", gateway.port, timeout=PATIENCE)
        client.user("alice")
        client.pass_("secret")
        client.dele(1)
    client.close()
    assert len(asyncio.run(store.find("alice"))) == len(SMALL)


class SlowStore:
    """A store whose deletion waits until a test lets it go on."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.begun = threading.Event()
        self.may_go_on = asyncio.Event()
        self.was_cancelled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete(self, messages: list[int]) -> None:
        self.begun.set()
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        await self._store.delete(messages)


def quit_with_deletions(port: int, before_quit: Callable[[], None] = lambda: None) -> bytes:
    """Delete message 1; return the answer to QUIT."""
    client = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.user("alice")
        client.pass_("secret")
        client.dele(1)
        before_quit()
        return client.quit()
    except poplib.error_proto as error:
        return error.args[0]  # type: ignore[no-any-return]
    finally:
        client.close()


def serve(module: ModuleType, store: SlowStore, during: Any) -> None:
    """Run the server in an application, and *during* it this coroutine, which is given the port."""
    users = module.Users("alice:secret")

    async def application() -> None:
        loop = asyncio.get_running_loop()
        server = popart.Server(("127.0.0.1", 0), lambda peer: module.AsyncHandler(store, users, loop))
        coroutine: Coroutine[Any, Any, None]
        async with module.serving(server):
            coroutine = during(server.server_address[1])
            await coroutine

    asyncio.run(application())


def test_closing_waits_for_a_commit_that_waits_for_the_loop(module: ModuleType, store: Any) -> None:
    """The server closes while a handler's question is still to be answered by the loop: the commit completes."""
    deliver(store, *SMALL)
    slow = SlowStore(store)
    answers = []

    async def during(port: int) -> None:
        thread = threading.Thread(target=lambda: answers.append(quit_with_deletions(port)))
        thread.start()
        threads.append(thread)
        await asyncio.to_thread(slow.begun.wait, PATIENCE)
        asyncio.get_running_loop().call_later(0.2, slow.may_go_on.set)

    threads: list[threading.Thread] = []
    serve(module, slow, during)
    threads[0].join()
    assert answers == [b"+OK goodbye"]
    assert len(asyncio.run(store.find("alice"))) == len(SMALL) - 1


def test_a_question_that_takes_too_long_is_cancelled(
    module: ModuleType, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads -ERR, and what was asked for does not happen later."""
    deliver(store, *SMALL)
    monkeypatch.setattr(module, "TIMEOUT", 2.0)
    slow = SlowStore(store)
    answers = []

    async def during(port: int) -> None:
        answers.append(await asyncio.to_thread(quit_with_deletions, port))
        slow.may_go_on.set()

    serve(module, slow, during)
    assert answers[0].startswith(b"-ERR [SYS/TEMP]")
    assert slow.was_cancelled
    assert len(asyncio.run(store.find("alice"))) == len(SMALL)


class LateStore(SlowStore):
    """A store whose commit has begun when the question is cancelled: it ends a moment later, and is over then."""

    async def delete(self, messages: list[int]) -> None:
        try:
            await self.may_go_on.wait()
        finally:
            await asyncio.sleep(0.1)
            await self._store.delete(messages)
            self.begun.set()


def test_a_commit_that_cannot_be_cancelled(module: ModuleType, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads -ERR only when the commit is over: nothing is deleted after the maildrop was unlocked."""
    deliver(store, *SMALL)
    late = LateStore(store)
    was_over = []

    def ask(port: int) -> None:
        answer = quit_with_deletions(port, lambda: monkeypatch.setattr(module, "TIMEOUT", 1.0))
        assert answer.startswith(b"-ERR [SYS/TEMP]")
        was_over.append(late.begun.is_set())

    async def during(port: int) -> None:
        await asyncio.to_thread(ask, port)

    serve(module, late, during)
    assert was_over == [True]
