"""What the gateways beside this file share: their command line, their users, their
locks, and messages in pieces."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import io
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import popart

log = logging.getLogger("gateway")

TIMEOUT = 10.0
"""Seconds that a backend may take for one answer.  Clients wait for theirs: a minute,
some of them."""

PIECE = 1 << 20
"""Octets of a message that are fetched, and kept in memory, at a time."""

FIRST_PIECE = 1 << 16
"""Octets of the first piece: for TOP, which many clients send for each message, it is
most often enough."""

Answer = TypeVar("Answer")


def twice(ask: Callable[[], Answer], *faults: type[Exception]) -> Answer:
    """Return ``ask()``, and if one of these faults breaks it, ask once more.

    Nobody knows what a backend did whose answer was lost.  So ask only for what may be
    done twice.
    """
    try:
        return ask()
    except faults:
        return ask()


def short_id(*parts: str) -> str:
    """Return a unique-id of 64 characters that stands for names which are too long, or
    hold spaces."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Users:
    """Names and passwords of the gateway's own, such as "alice:secret bob:hunter2"."""

    def __init__(self, pairs: str) -> None:
        self._passwords = {
            name: password
            for name, _, password in (pair.partition(":") for pair in pairs.split())
        }
        if not (
            self._passwords and all(self._passwords) and all(self._passwords.values())
        ):
            raise ValueError(
                "Each user needs a name and a password: set POP3_USERS to names and "
                "passwords, such as 'alice:secret bob:hunter2'."
            )

    def __contains__(self, username: str) -> bool:
        return username in self._passwords

    def check(self, username: str, password: str) -> None:
        """Return if the password is right.  The time that it takes does not show
        whether there is such a user."""
        wanted = self._passwords.get(username, "")
        if not (
            hmac.compare_digest(wanted.encode(), password.encode()) and username in self
        ):
            raise popart.ReportableError("wrong name or password")


class _Locks:
    """The users whose maildrops are locked, by this process: the backends know no such
    lock.

    All gateways of a process share them.  If it serves several backends, make the
    backend a part of the name, or the same name at two of them is locked for both.
    """

    def __init__(self) -> None:
        self._users: set[str] = set()
        self._guard = threading.Lock()

    def take(self, user: str) -> None:
        with self._guard:
            if user in self._users:
                raise popart.ReportableError("another session has the maildrop")
            self._users.add(user)

    def release(self, user: str) -> None:
        with self._guard:
            self._users.remove(user)


class GatewayHandler(popart.BaseHandler):
    """A handler whose user's maildrop no other session of this process has."""

    username: str = ""
    _locks = _Locks()

    def lock_maildrop(self) -> None:
        self._locks.take(self.username)

    def unlock_maildrop(self) -> None:
        self._locks.release(self.username)

    def handle_session_error(self, error: BaseException) -> None:
        # Not its traceback, and not repr(error): a UnicodeEncodeError's, for one, shows
        # all that was to be encoded.
        log.warning("%r: %s: %r", self.username, type(error).__name__, str(error))


class OwnUsersHandler(GatewayHandler):
    """A handler for a backend that knows no passwords for POP3: the gateway has
    them."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def authenticate_pass(self, username: str, password: str) -> None:
        self._users.check(username, password)
        self.username = username


class PieceReader:
    """A message that is fetched piece by piece.

    ``fetch(offset, count)`` returns *count* octets from *offset* on, and fewer only
    where the message ends.  If it is cut off, it raises.
    """

    def __init__(self, fetch: Callable[[int, int], bytes]) -> None:
        self._fetch = fetch
        self._offset = 0
        self._piece = io.BytesIO()
        self._at_end = False

    def read(self, n: int, /) -> bytes:
        octets = self._piece.read(n)
        if octets or self._at_end:
            return octets
        count = PIECE if self._offset else FIRST_PIECE
        piece = self._fetch(self._offset, count)
        self._offset += len(piece)
        self._at_end = len(piece) < count
        self._piece = io.BytesIO(piece)
        return self._piece.read(n)

    def close(self) -> None:
        self._piece.close()


class GatewayServer(popart.Server):
    """A server that logs what no handler can be told, such as a TLS handshake that
    fails."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        log.warning("%s: %s: %r", client_address, type(error).__name__, str(error))


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser that knows where to listen: `serve` takes its result."""
    logging.basicConfig()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; any but loopback needs --pem",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=1100,
        help="the port to listen on; 0 is any free one",
    )
    parser.add_argument(
        "--pem", help="a file with a certificate, its chain and its key, for TLS"
    )
    return parser


def read_users(default: str = "") -> Users:
    """Return the users that the environment variable POP3_USERS has, or end the
    program."""
    try:
        return Users(os.environ.get("POP3_USERS", default))
    except ValueError as error:
        sys.exit(str(error))


def open_server(
    options: argparse.Namespace, on_new_connection: Callable[[Any], popart.Handler]
) -> GatewayServer:
    """Listen as the command line says.  Without TLS only on loopback, because passwords
    come this way."""
    context = None
    if options.pem:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.pem)
    return GatewayServer(
        (options.host, options.port),
        on_new_connection,
        ssl_context=context,
        require_tls=True,
    )


def serve(
    options: argparse.Namespace, on_new_connection: Callable[[Any], popart.Handler]
) -> None:
    """Serve until Ctrl-C or SIGTERM.  A second one ends the grace of clients that are
    still reading."""
    with open_server(options, on_new_connection) as server:
        signal.signal(signal.SIGINT, lambda *_: server.server_close())
        signal.signal(signal.SIGTERM, lambda *_: server.server_close())
        print("POP3 on port", server.server_address[1], flush=True)
        server.serve_forever()
