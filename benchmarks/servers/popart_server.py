"""A popart server with a maildrop in memory or in files, as one process or as several on one port."""

from __future__ import annotations

import argparse
import io
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("port", type=int)
parser.add_argument("maildrop")
parser.add_argument("--tls", metavar="PEM", help="a file with a certificate and its key")
parser.add_argument("--mail", choices=["memory", "fileio", "open"], default="memory", help="where messages are")
parser.add_argument("--store", type=Path, help="the directory of Maildirs")
parser.add_argument("--no-listing", action="store_true", help="have popart ask about each message by itself")
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--pin", action="store_true", help="run on one processor, the last one")
parser.add_argument("--processor", action="store_true", help="sessions on one processor; processes on one each")
parser.add_argument("--popart", default=str(HERE.parent.parent), help="the directory that popart is imported from")
arguments = parser.parse_args()
sys.path[:0] = [arguments.popart, str(HERE.parent)]

import data  # noqa: E402

import popart  # noqa: E402

MAILDROP = data.make_maildrop(arguments.maildrop)
LISTING = MAILDROP.listing()
PATHS = [] if arguments.mail == "memory" else data.paths(MAILDROP, arguments.store)


class BenchmarkHandler(popart.Handler):
    """A handler like that of an application with a fast store."""

    def set_banner(self, banner: str) -> None: ...

    def authenticate_pass(self, username: str, password: str) -> None:
        if (username, password) != (MAILDROP.name, data.PASSWORD):
            raise popart.ReportableError("wrong name or password")

    def authenticate_apop(self, username: str, hexdigest: str) -> None: ...

    def lock_maildrop(self) -> None: ...

    def get_message_count(self) -> int:
        return len(LISTING)

    def get_message_size(self, number: int) -> int:
        return LISTING[number - 1][0]

    def get_message_id(self, number: int) -> str:
        return LISTING[number - 1][1]

    def get_message_reader(self, number: int) -> popart.MessageReader:
        if arguments.mail == "memory":
            return io.BytesIO(MAILDROP.message(number))
        return open(PATHS[number - 1], "rb", buffering=0 if arguments.mail == "fileio" else -1)

    def delete_messages(self, numbers: Sequence[int]) -> None: ...

    def unlock_maildrop(self) -> None: ...

    def handle_session_error(self, error: BaseException) -> None: ...


class ListingHandler(BenchmarkHandler):
    """Lists its maildrop at once."""

    def list_messages(self) -> list[tuple[int, str]]:
        return LISTING


class BenchmarkServer(popart.Server):
    """Has no limits on connections, because all come from one peer here.  Several processes may share its port."""

    max_connections = None
    max_connections_per_peer = None

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def main() -> None:
    if arguments.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    context = None
    if arguments.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.tls)
    number = 0
    while number < arguments.processes - 1 and os.fork():
        number += 1
    own = {}
    if arguments.processor:
        processors = sorted(os.sched_getaffinity(0), reverse=True)
        own["processor"] = processors[number % len(processors)]
    address = ("127.0.0.1", arguments.port)
    kind = BenchmarkHandler if arguments.no_listing else ListingHandler
    with BenchmarkServer(address, lambda peer: kind(), ssl_context=context, **own) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
