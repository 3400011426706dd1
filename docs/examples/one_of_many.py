import signal

from mail_in_sqlite import LOCKS, SQLiteHandler

import popart

LOCKS.mkdir(exist_ok=True)
address = ("127.0.0.1", 1100)
with popart.Server(address, lambda peer: SQLiteHandler(), reuse_port=True) as server:
    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())  # ends serve_forever
    print("serving on port", server.server_address[1])
    server.serve_forever()
    signal.signal(signal.SIGTERM, lambda *_: server.server_close())  # ends drain
    server.drain(30)
