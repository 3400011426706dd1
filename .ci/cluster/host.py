"""The server of one host: the example, which also records who took and released a lock, in the database."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[2] / "docs/examples"))

import postgres  # noqa: E402

LOCK_LOG = """
CREATE TABLE lock_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    maildrop text NOT NULL,
    event text NOT NULL,
    backend integer NOT NULL DEFAULT pg_backend_pid(),
    host text NOT NULL DEFAULT current_setting('application_name'),
    peer text NOT NULL
)
"""


class RecordingHandler(postgres.MailHandler):
    def record(self, event: str) -> None:
        peer = "{}:{}".format(*self.peer)
        self.query("INSERT INTO lock_log (maildrop, event, peer) VALUES (%s, %s, %s)", self.username, event, peer)

    def lock_maildrop(self) -> None:
        super().lock_maildrop()
        self.record("lock")

    def unlock_maildrop(self) -> None:
        with contextlib.suppress(psycopg.Error):  # the connection is lost, and the lock with it
            self.record("unlock")
        super().unlock_maildrop()


if __name__ == "__main__":
    postgres.main(handler_class=RecordingHandler)
