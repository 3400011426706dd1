"""The floors: servers that know no protocol.  They answer prepared octets with prepared octets.

``threads`` is a stock `socketserver.ThreadingTCPServer`: it shows what a thread per connection costs before any
protocol.  ``epoll`` serves all connections from one loop: it shows how fast the client can go.
"""

from __future__ import annotations

import argparse
import select
import socket
import socketserver
import ssl
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data

GREETING = b"+OK ready\r\n"


def prepare(maildrop: data.Maildrop) -> dict[bytes, bytes]:
    """Return the answers: to single commands and to the pipelined writes."""
    numbers = range(1, min(maildrop.count, data.BATCH) + 1)
    exchanges = data.sign_in(maildrop) + data.look(maildrop) + data.retrieve(maildrop, numbers) + data.QUIT
    answers = {command: b"+OK\r\n" + (body or b"") for command, body in exchanges}
    answers[b"STAT\r\n"] = data.stat_line(maildrop) + b"\r\n"
    for exchanges in data.batches(maildrop).values() if maildrop.count >= data.BATCH else ():
        answers.update({command: b"+OK\r\n" + (body or b"") for command, body in exchanges})
        whole = b"".join([command for command, _ in exchanges])
        answers[whole] = b"".join([answers[command] for command, _ in exchanges])
    return answers


class CannedHandler(socketserver.StreamRequestHandler):
    """Looks up each piece that arrives and sends its answer, until QUIT."""

    disable_nagle_algorithm = True
    server: CannedServer

    def handle(self) -> None:
        request = self.request
        if self.server.context is not None:
            request.do_handshake()
        answers = self.server.answers
        request.sendall(GREETING)
        command = b""
        while octets := request.recv(65_536):
            command += octets
            answer = answers.get(command)
            if answer is not None:
                request.sendall(answer)
                if command == b"QUIT\r\n":
                    return
                command = b""


class CannedServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128  # with the stock 5, some of 64 connections at once are dropped, and each loses a second

    def __init__(self, port: int, answers: dict[bytes, bytes], context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", port), CannedHandler)
        self.answers = answers
        self.context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Wrap the socket in the connection's thread: in `get_request` one handshake would wait for another."""
        if self.context is not None:
            request = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        super().finish_request(request, client_address)
        if self.context is not None:
            request.close()  # the wrapped socket has taken over the descriptor

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the client notices the error."""


def serve_with_epoll(port: int, answers: dict[bytes, bytes]) -> None:
    """Serve all connections from one loop.  It blocks in large answers; only one client at a time asks for them."""
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    live: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.send(GREETING)
                live[sock.fileno()] = sock
                poller.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = live[fd]
            try:
                command = sock.recv(65_536)
                if command:
                    sock.sendall(answers[command])
                if command and command != b"QUIT\r\n":
                    continue
            except OSError:
                pass
            sock.close()
            del live[fd]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["threads", "epoll"])
    parser.add_argument("port", type=int)
    parser.add_argument("maildrop", choices=data.MAILDROPS)
    parser.add_argument("--tls", metavar="PEM", help="a file with a certificate and its key")
    arguments = parser.parse_args()
    answers = prepare(data.make_maildrop(arguments.maildrop))
    if arguments.kind == "epoll":
        serve_with_epoll(arguments.port, answers)
    context = None
    if arguments.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.tls)
    with CannedServer(arguments.port, answers, context) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
