import signal

from mail_in_sqlite import LOCKS, SQLiteHandler

import popart


def on_new_connection(peer: tuple[str, int]) -> popart.Handler:
    print("client:", peer[0])
    return SQLiteHandler()


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    address = ("127.0.0.1", 1100)
    with popart.Server(address, on_new_connection, proxy_protocol=True) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.server_close())
        print("POP3 on port", server.server_address[1])
        server.serve_forever()
