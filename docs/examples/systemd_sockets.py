import os
import signal
import socket

from mail_in_sqlite import LOCKS, SQLiteHandler

import popart


def inherited_sockets() -> list[socket.socket]:
    """Return the sockets that systemd has opened for us, as sd_listen_fds(3) does."""
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []  # the sockets are for our parent
    descriptors = range(3, 3 + int(os.environ.pop("LISTEN_FDS")))
    os.environ.pop("LISTEN_FDNAMES", None)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


if __name__ == "__main__":
    (listener,) = inherited_sockets()
    LOCKS.mkdir(exist_ok=True)
    with popart.Server.from_socket(listener, lambda peer: SQLiteHandler()) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        server.serve_forever()
        signal.signal(signal.SIGTERM, lambda *_: server.server_close())  # ends drain
        server.drain(30)
