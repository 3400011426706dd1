import signal
import ssl
from types import FrameType

from mail_in_sqlite import LOCKS, SQLiteHandler

import popart


def make_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("fullchain.pem", "privkey.pem")
    return context


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    with popart.Server(
        ("127.0.0.1", 9950),
        lambda peer: SQLiteHandler(),
        ssl_context=make_context(),
    ) as server:

        def renew(number: int, frame: FrameType | None) -> None:
            try:
                server.ssl_context = make_context()
                print("certificate renewed", flush=True)
            except OSError as error:  # ssl.SSLError is an OSError
                print("certificate not renewed:", error, flush=True)

        if hasattr(signal, "SIGHUP"):  # not on Windows
            signal.signal(signal.SIGHUP, renew)
        signal.signal(signal.SIGTERM, lambda *_: server.server_close())
        print("POP3 over TLS on port", server.server_address[1], flush=True)
        server.serve_forever()
