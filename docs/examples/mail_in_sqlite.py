import io
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import mailstore

import popart

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCKS = Path("locks")


def try_to_lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class SQLiteHandler(popart.BaseHandler, popart.SupportsClose):
    def __init__(self) -> None:
        self.db = mailstore.connect()
        self.user_id: int | None = None
        self.lock: IO[str] | None = None
        self.messages: list[tuple[int, int, str]] = []

    # Signing in.

    def authenticate_pass(self, username: str, password: str) -> None:
        self.user_id = mailstore.find_user(self.db, username, password)
        if self.user_id is None:
            raise popart.ReportableError("wrong name or password")

    def lock_maildrop(self) -> None:
        lock = open(LOCKS / f"{self.user_id}.lock", "w")
        try:
            try_to_lock(lock)
        except (BlockingIOError, PermissionError):  # the second on Windows
            lock.close()
            raise popart.ReportableError("another session has the maildrop") from None
        self.lock = lock

    # Reading.

    def list_messages(self) -> Iterable[tuple[int, str]]:
        query = "SELECT id, size, uid FROM message WHERE user_id = ? ORDER BY id"
        self.messages = self.db.execute(query, (self.user_id,)).fetchall()
        return [(size, uid) for _, size, uid in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        query = "SELECT octets FROM message WHERE id = ?"
        row = self.db.execute(query, (self.messages[number - 1][0],)).fetchone()
        if row is None:
            raise popart.ReportableError("the message is gone", code="SYS/PERM")
        return io.BytesIO(row[0])

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        doomed = [(self.messages[number - 1][0],) for number in numbers]
        with self.db:  # one transaction: COMMIT at its end, ROLLBACK at any error
            self.db.executemany("DELETE FROM message WHERE id = ?", doomed)

    def unlock_maildrop(self) -> None:
        assert self.lock is not None
        self.lock.close()  # which releases it

    def handle_session_error(self, error: BaseException) -> None:
        print("session error:", repr(error))

    def close(self) -> None:
        self.db.close()


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    with popart.Server(("127.0.0.1", 1100), lambda peer: SQLiteHandler()) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.server_close())
        print("POP3 on port", server.server_address[1])
        server.serve_forever()
