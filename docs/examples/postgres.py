"""A POP3 server whose mail is in PostgreSQL, for one machine or many.

    pip install 'psycopg[binary,pool]'                   beside popart
    DB='host=db dbname=mail'
    python3 postgres.py --dsn "$DB" init                 makes the tables
    python3 postgres.py --dsn "$DB" adduser alice        the password is standard input
    python3 postgres.py --dsn "$DB" deliver alice        the message is standard input
    python3 postgres.py --dsn "$DB" serve --port 1100    until SIGTERM

Any number of such servers may run against one database.  A maildrop's lock is an
advisory lock of the session's own database connection, and QUIT deletes through the
same connection.  So a session that deletes still has the lock.  When a process is
killed or a machine vanishes, PostgreSQL ends the connection, and the lock is free.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import logging
import secrets
import signal
import ssl
import sys
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

import popart

log = logging.getLogger("postgres")

# 1. The tables.

SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    cost integer NOT NULL,
    salt bytea NOT NULL,
    key bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users ON DELETE CASCADE,
    unique_id uuid NOT NULL DEFAULT gen_random_uuid(),
    size integer NOT NULL,
    octets bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_of_user
    ON messages (user_id, id) INCLUDE (unique_id, size);
-- Not compressed: PostgreSQL then finds a piece of a large message without unpacking
-- all that is before it.
ALTER TABLE messages ALTER octets SET STORAGE EXTERNAL;
-- One secret for all servers.  popart makes the salts of users who do not exist from
-- it: see serve().
CREATE TABLE IF NOT EXISTS decoy_key (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    octets bytea NOT NULL
        DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);
INSERT INTO decoy_key DEFAULT VALUES ON CONFLICT DO NOTHING;
"""
# A random unique_id is never used again, even if the database is restored from a backup
# and counts again from there.

LOCK_CLASS = int.from_bytes(b"POP3", "big")
"""The first key of the advisory locks; the second is a user's id.

Other programs in the database use another.
"""

COST = 2**14
"""scrypt's cost for new passwords: 16 MB and some 40 ms of a core for each sign-in."""


def derive_key(password: str, salt: bytes, cost: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=cost, r=8, p=1)


def add_user(
    connection: psycopg.Connection[Any], name: str, password: str, cost: int = COST
) -> None:
    salt = secrets.token_bytes(16)
    connection.execute(
        "INSERT INTO users (name, cost, salt, key) VALUES (%s, %s, %s, %s)",
        (name, cost, salt, derive_key(password, salt, cost)),
    )


def deliver(connection: psycopg.Connection[Any], name: str, message: bytes) -> str:
    """Store a message as it goes over the wire, and return its unique-id.

    Its length is then the size to announce.
    """
    octets = popart.wire_form(message)
    row = connection.execute(
        "INSERT INTO messages (user_id, size, octets) SELECT id, %s, %s FROM users"
        " WHERE name = %s RETURNING unique_id",
        (len(octets), octets, name),
    ).fetchone()
    if row is None:
        raise LookupError(f"there is no user {name!r}")
    return str(row[0])


# 2. The connections.


def open_pool(
    dsn: str, size: int, dead_after: int
) -> ConnectionPool[psycopg.Connection[Any]]:
    """Open a pool of at most *size* connections.

    That is also how many sessions can be signed in at a time.

    A machine that loses its power or its network vanishes without a word.  Each end
    notices within *dead_after* seconds that the other has vanished.  By default the
    kernel of PostgreSQL's machine would wait for more than two hours, and keep the
    locks as long.  TCP's keepalives ask an idle peer, and TCP_USER_TIMEOUT limits the
    wait for a peer that was sent something.  Each connection can set them for
    PostgreSQL's end too, so you need not configure anything there.
    """
    probe = max(1, dead_after // 3)
    server_settings = {
        "tcp_keepalives_idle": probe,
        "tcp_keepalives_interval": probe,
        "tcp_keepalives_count": 2,
        "tcp_user_timeout": dead_after * 1000,
        "statement_timeout": 60_000,
    }
    return ConnectionPool(
        dsn,
        min_size=min(4, size),
        max_size=size,
        timeout=10,
        # Without it the first client after a failure gets an error.
        check=ConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "connect_timeout": max(2, dead_after),
            "keepalives_idle": probe,
            "keepalives_interval": probe,
            "keepalives_count": 2,
            "tcp_user_timeout": dead_after * 1000,
            "options": " ".join(
                f"-c {name}={value}" for name, value in server_settings.items()
            ),
        },
    )


# 3. The handler.


class MailHandler(popart.BaseHandler, popart.SupportsClose):
    """One client's session.

    It has one of the pool's connections to itself, from sign-in to its end.
    """

    def __init__(
        self, pool: ConnectionPool[psycopg.Connection[Any]], peer: Any
    ) -> None:
        self.pool = pool
        self.peer = peer
        self.connection: psycopg.Connection[Any] | None = None
        self.username = ""
        self.user_id = 0
        self.messages: list[tuple[int, str, int]] = []

    def query(self, statement: str, *values: Any) -> psycopg.Cursor[Any]:
        """Run a statement, as a transaction of its own, in one round trip.

        If it fails, close the connection and do not use it again.  The connection
        might hold the lock without our knowing, because an error does not release an
        advisory lock.
        """
        if self.connection is None:
            self.connection = self.pool.getconn()
        try:
            return self.connection.execute(statement, values, binary=True)
        except BaseException:
            self.connection.close()
            raise

    # Signing in.

    def authenticate_pass(self, username: str, password: str) -> None:
        row = self.query(
            "SELECT id, cost, salt, key FROM users WHERE name = %s", username
        ).fetchone()
        # Unknown users take as long as others.
        user_id, cost, salt, key = row or (0, COST, b"", b"")
        if not hmac.compare_digest(derive_key(password, salt, cost), key):
            self.give_back()  # clients that guess must not keep connections from users
            raise popart.ReportableError("wrong name or password")
        self.username, self.user_id = username, user_id

    def lock_maildrop(self) -> None:
        (locked,) = self.query(
            "SELECT pg_try_advisory_lock(%s, %s)", LOCK_CLASS, self.user_id
        ).fetchone() or (False,)
        if not locked:
            self.give_back()
            raise popart.ReportableError(
                "another session has the maildrop", code="IN-USE"
            )

    # Reading.

    def list_messages(self) -> list[tuple[int, str]]:
        """One query, answered from the index alone.

        Sizes and ids were stored at delivery.
        """
        rows = self.query(
            "SELECT id, unique_id, size FROM messages WHERE user_id = %s ORDER BY id",
            self.user_id,
        )
        self.messages = [(row, str(unique_id), size) for row, unique_id, size in rows]
        return [(size, unique_id) for _, unique_id, size in self.messages]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        row, _, size = self.messages[number - 1]
        return MessageReader(self, row, size)

    # Leaving.

    def delete_messages(self, numbers: Sequence[int]) -> None:
        """Delete all in one statement, so in one transaction.

        This goes through the connection that holds the lock.
        """
        self.query(
            "DELETE FROM messages WHERE id = ANY(%s)",
            [self.messages[number - 1][0] for number in numbers],
        )

    def unlock_maildrop(self) -> None:
        # If the connection broke, its lock is gone too, and what was deleted is
        # deleted: no reason to say -ERR.
        with contextlib.suppress(psycopg.Error):
            self.query("SELECT pg_advisory_unlock(%s, %s)", LOCK_CLASS, self.user_id)

    def handle_session_error(self, error: BaseException) -> None:
        log.warning("%s, %r: %r", self.peer, self.username, error)

    def close(self) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Return the connection, without a lock or closed.

        In place of a closed one the pool opens another.
        """
        if self.connection is not None:
            self.pool.putconn(self.connection)
            self.connection = None


class MessageReader:
    """Reads a message piece by piece, one query each.

    Memory stays flat, and a slow client holds no transaction.
    """

    def __init__(self, handler: MailHandler, row: int, size: int) -> None:
        self.handler = handler
        self.row = row
        self.size = size
        self.offset = 0

    def read(self, n: int) -> bytes:
        if self.offset >= self.size:
            return b""
        found = self.handler.query(
            "SELECT substring(octets FROM %s FOR %s) FROM messages WHERE id = %s",
            self.offset + 1,
            n,
            self.row,
        ).fetchone()
        if found is None:
            raise LookupError("the message is gone")
        octets: bytes = found[0]
        self.offset += len(octets)
        return octets

    def close(self) -> None: ...


# 4. The program.


def serve(
    options: argparse.Namespace, handler_class: type[MailHandler] = MailHandler
) -> None:
    context = None
    if options.certfile:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certfile, options.keyfile)
    with open_pool(options.dsn, options.pool_size, options.dead_after) as pool:
        pool.wait()
        with pool.connection() as connection:
            (decoy_key,) = connection.execute(
                "SELECT octets FROM decoy_key"
            ).fetchone() or (None,)
        server = popart.Server(
            (options.host, options.port),
            lambda peer: handler_class(pool, peer),
            ssl_context=context,
            scram_decoy_key=decoy_key,  # for a handler_class that offers SCRAM
            proxy_protocol=bool(options.trusted_proxy),
            trusted_proxies=options.trusted_proxy,
        )
        with server:
            # The first signal makes serve_forever return, a second ends the draining.
            signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
            log.warning("serving on %s, port %d", *server.server_address[:2])
            server.serve_forever()
            signal.signal(signal.SIGTERM, lambda *_: server.server_close())
            server.drain(options.drain)


def main(
    arguments: Sequence[str] | None = None,
    handler_class: type[MailHandler] = MailHandler,
) -> None:
    parser = argparse.ArgumentParser(description="POP3 with the mail in PostgreSQL.")
    dsn = "the database, as libpq takes it: 'host=db dbname=mail'"
    parser.add_argument("--dsn", required=True, help=dsn)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="make the tables")
    adding = commands.add_parser("adduser", help="its password is standard input")
    adding.add_argument("name")
    delivering = commands.add_parser("deliver", help="the message is standard input")
    delivering.add_argument("name")
    serving = commands.add_parser("serve", help="serve until SIGTERM")
    add = serving.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=1100)
    add("--certfile", help="a certificate: all connections are then TLS")
    add("--keyfile")
    add("--trusted-proxy", action="append", default=[], metavar="NETWORK",
        help="expect the PROXY protocol from this network (repeatable)")  # fmt: skip
    add("--pool-size", type=int, default=50,
        help="signed-in sessions at a time (%(default)s)")  # fmt: skip
    add("--dead-after", type=int, default=15, metavar="SECONDS",
        help="a machine silent for so long loses its locks (%(default)s)")  # fmt: skip
    add("--drain", type=float, default=30, metavar="SECONDS",
        help="how long sessions may go on after SIGTERM (%(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    if options.command == "serve":
        serve(options, handler_class)
        return
    with psycopg.connect(options.dsn) as connection:
        if options.command == "init":
            connection.execute(SCHEMA)
        elif options.command == "adduser":
            add_user(connection, options.name, sys.stdin.readline().rstrip("\n"))
        else:
            print(deliver(connection, options.name, sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
