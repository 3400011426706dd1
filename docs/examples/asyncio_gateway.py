"""The mail of an application that is all asyncio, by POP3: here its store is
aiosqlite::

    POP3_USERS='alice:secret' python3 docs/examples/asyncio_gateway.py mail.db

It needs aiosqlite: pip install -e '.[gateways]'.  The program goes on with whatever it
does in its event loop.  popart has threads of its own; they ask the loop, and wait for
it.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import aiosqlite
from gateway import (
    TIMEOUT,
    OwnUsersHandler,
    PieceReader,
    Users,
    make_parser,
    open_server,
    read_users,
)

import popart

Answer = TypeVar("Answer")

SCHEMA = """
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again for another message
    username TEXT NOT NULL,
    uid TEXT NOT NULL UNIQUE,
    octets BLOB NOT NULL  -- as POP3 sends it: its length is then the size to announce
)
"""

# 1. The application's store.  Only the event loop's thread touches it.


class Store:
    """Each call has a connection of its own.  If the call is cancelled, its connection
    closes, and rolls back.  A commit that has begun is not rolled back: closing waits
    for it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _connect(self) -> aiosqlite.Connection:
        return aiosqlite.connect(self._path, timeout=TIMEOUT / 2)

    async def create(self) -> None:
        async with self._connect() as db:
            await db.execute(SCHEMA)

    async def deliver(self, username: str, message: bytes) -> None:
        row = (username, secrets.token_hex(16), popart.wire_form(message))
        async with self._connect() as db:
            await db.execute(
                "INSERT INTO message (username, uid, octets) VALUES (?, ?, ?)", row
            )
            await db.commit()

    async def find(self, username: str) -> list[tuple[int, int, str]]:
        query = (
            "SELECT id, length(octets), uid FROM message WHERE username = ? ORDER BY id"
        )
        async with self._connect() as db, db.execute(query, (username,)) as cursor:
            return [(row[0], row[1], row[2]) async for row in cursor]

    async def read(self, message: int, offset: int, count: int) -> bytes | None:
        # SQL counts from 1.  For SQLite, a part of an empty message is NULL.
        query = "SELECT substr(octets, ?, ?) FROM message WHERE id = ?"
        async with (
            self._connect() as db,
            db.execute(query, (offset + 1, count, message)) as cursor,
        ):
            row = await cursor.fetchone()
        return None if row is None else row[0] or b""

    async def delete(self, messages: list[int]) -> None:
        async with self._connect() as db:
            await db.executemany(
                "DELETE FROM message WHERE id = ?", [(message,) for message in messages]
            )
            await db.commit()  # one transaction: all or none


# 2. The handler.  popart calls it in the session's thread.


class AsyncHandler(OwnUsersHandler):
    def __init__(
        self, store: Store, users: Users, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(users)
        self._store = store
        self._loop = loop
        self._messages: list[tuple[int, int, str]] = []

    def _ask(self, question: Coroutine[Any, Any, Answer]) -> Answer:
        """Have the event loop answer, and cancel the question if that takes too long.

        The loop itself looks at the time, and says so only when the question is over:
        nothing happens later, when the maildrop is unlocked.  The second limit is for a
        loop that is stuck.
        """
        limited = asyncio.wait_for(question, TIMEOUT)
        answer = asyncio.run_coroutine_threadsafe(limited, self._loop)
        try:
            return answer.result(2 * TIMEOUT)
        finally:
            answer.cancel()

    def list_messages(self) -> list[tuple[int, str]]:
        self._messages = self._ask(self._store.find(self.username))
        return [(size, uid) for _, size, uid in self._messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        message = self._messages[number - 1][0]

        def fetch(offset: int, count: int) -> bytes:
            octets = self._ask(self._store.read(message, offset, count))
            if octets is None:
                raise popart.ReportableError("the message is gone")
            return octets

        return PieceReader(fetch)

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self._ask(
            self._store.delete([self._messages[number - 1][0] for number in numbers])
        )


# 3. The server.


@asynccontextmanager
async def serving(server: popart.Server) -> AsyncIterator[popart.Server]:
    """Serve in a thread, and at the end close the server in another one.

    Never call ``server_close`` on the event loop's own thread, nor ``with server:``
    there: it waits for sessions, whose handlers wait for the loop.
    """
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        await asyncio.to_thread(server.server_close)
        thread.join()


async def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "database", help="the file with the mail; it is made if it is not there"
    )
    options = parser.parse_args()
    users, store = read_users(), Store(options.database)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    await store.create()
    # A signal handler that closes the server would do so on the loop's thread.  So it
    # only sets an event.  It is the loop's own, because signal.signal() would not wake
    # a loop that is about to sleep.  On Windows there is none.
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with serving(
        open_server(options, lambda peer: AsyncHandler(store, users, loop))
    ) as server:
        print("POP3 on port", server.server_address[1], flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
