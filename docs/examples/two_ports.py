import signal
import threading

from mail_in_sqlite import LOCKS, SQLiteHandler
from serve_tls import make_context

import popart

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def make_handler(peer: tuple[str, int]) -> SQLiteHandler:
    return SQLiteHandler()


def serve(server: popart.Server) -> None:
    try:
        with server:  # leaving it ends the sessions
            server.serve_forever()
    finally:
        stop()  # if one ends, for whatever reason, the other ends, too


def stop() -> None:
    for server in servers:
        server.shutdown()


def end_grace() -> None:
    for server in servers:
        server.shutdown_grace = 0
        server.server_close()


def hear(*_: object) -> None:
    """The first signal ends the service, and a second one the grace of clients that are
    still reading."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: end_grace())
    stop()


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    servers = [
        popart.Server(("127.0.0.1", 1100), make_handler),
        popart.Server(("127.0.0.1", 9950), make_handler, ssl_context=make_context()),
    ]
    threads = [threading.Thread(target=serve, args=[server]) for server in servers]
    for number in SIGNALS:
        signal.signal(number, hear)
    for server in servers:
        print("POP3 on port", server.server_address[1], flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # on Windows, Ctrl-C does not interrupt join()
            thread.join(1)
