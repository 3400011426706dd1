from collections.abc import Iterator
from contextlib import closing, contextmanager

import mailstore
from mail_in_sqlite import LOCKS, SQLiteHandler

import popart

LOCKS.mkdir(exist_ok=True)


def on_new_connection(peer: object) -> popart.Handler:
    return SQLiteHandler()


@contextmanager
def break_backend() -> Iterator[None]:
    """Let the deletion of every second message fail."""
    with closing(mailstore.connect()) as db:
        db.execute(
            "CREATE TRIGGER broken BEFORE DELETE ON message WHEN OLD.id % 2 = 0 "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
        yield
        db.execute("DROP TRIGGER broken")
