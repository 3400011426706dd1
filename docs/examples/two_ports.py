import signal
import threading

from mail_in_sqlite import LOCKS, SQLiteHandler
from serve_tls import make_context

import popart


def make_handler(peer: tuple[str, int]) -> SQLiteHandler:
    return SQLiteHandler()


def serve(server: popart.Server) -> None:
    with server:  # leaving it ends the sessions
        server.serve_forever()


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    servers = [
        popart.Server(("127.0.0.1", 1100), make_handler),
        popart.Server(("127.0.0.1", 9950), make_handler, ssl_context=make_context()),
    ]
    threads = [threading.Thread(target=serve, args=[server]) for server in servers]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: [server.shutdown() for server in servers])
    for server in servers:
        print("POP3 on port", server.server_address[1], flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
