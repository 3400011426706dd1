import signal

from mail_in_sqlite import LOCKS, SQLiteHandler

import popart

LOCKS.mkdir(exist_ok=True)
with popart.Server(
    ("127.0.0.1", 1100), lambda peer: SQLiteHandler(), reuse_port=True
) as server:
    signal.signal(
        signal.SIGTERM, lambda *_: server.shutdown()
    )  # makes serve_forever return
    print("serving on port", server.server_address[1])
    server.serve_forever()
    signal.signal(
        signal.SIGTERM, lambda *_: server.server_close()
    )  # a second signal ends the draining
    server.drain(30)
