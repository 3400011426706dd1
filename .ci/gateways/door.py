"""A door before a backend: a test shuts it at a given moment, as if the backend had been killed just then."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

PATIENCE = 20.0


class _Passage(BaseRequestHandler):
    server: Door

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.backend), timeout=PATIENCE) as backend:
            if self.server.enter(self.request, backend):
                try:
                    self._pass_on(self.request, backend)
                except OSError:
                    pass
                finally:
                    self.server.leave(self.request, backend)

    def _pass_on(self, client: socket.socket, backend: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(backend, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = client if key.fileobj is client else backend
                    self.server.flowing.wait()
                    octets = source.recv(65_536)
                    if not octets:
                        return
                    if source is client:
                        if self.server.may_ask(octets):
                            backend.sendall(octets)
                    else:
                        self.server.pass_answer(octets, client)


class Door(ThreadingTCPServer):
    """Passes on what comes to `port`.  When it shuts, all that pass through it are cut off."""

    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, backend: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.backend = backend
        self.port: int = self.server_address[1]
        self.was_shut = threading.Event()
        self.flowing = threading.Event()
        """Cleared by a test, the backend says nothing more, and nobody is told why."""

        self.flowing.set()
        self.at_shut: Callable[[], None] = lambda: None
        self._is_shut = False
        self._inside: set[socket.socket] = set()
        self._guard = threading.RLock()
        self._forget()
        self._thread = threading.Thread(target=self.serve_forever, args=[0.01])
        self._thread.start()

    def _forget(self) -> None:
        self._budget: int | None = None
        self._question = b""
        self._answer_is_lost = False
        self._stays_shut = False
        self._seen = b""

    def shut_after(self, octets: int, *, stays_shut: bool = False) -> None:
        """Shut when so many octets of the backend's have passed."""
        with self._guard:
            self._budget, self._stays_shut = octets, stays_shut

    def shut_at(self, question: bytes, *, answer_is_lost: bool = False, stays_shut: bool = False) -> None:
        """Shut when this question comes, or if its answer is to be lost, when the backend has answered it."""
        with self._guard:
            self._question, self._answer_is_lost, self._stays_shut = question, answer_is_lost, stays_shut

    def shut(self, *, stays_shut: bool = True) -> None:
        with self._guard:
            self.at_shut()  # before anybody can notice
            self._is_shut = stays_shut
            self._forget()
            for sock in self._inside:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.flowing.set()
            self.was_shut.set()

    def open(self) -> None:
        with self._guard:
            self._is_shut = False
            self._forget()

    @property
    def inside(self) -> int:
        """How many connections are there."""
        return len(self._inside) // 2

    # What the passages ask.

    def enter(self, *sockets: socket.socket) -> bool:
        with self._guard:
            if not self._is_shut:
                self._inside.update(sockets)
            return not self._is_shut

    def leave(self, *sockets: socket.socket) -> None:
        with self._guard:
            self._inside.difference_update(sockets)

    def may_ask(self, octets: bytes) -> bool:
        with self._guard:
            if not self._question:
                return True
            self._seen = self._seen[-200:] + octets
            if self._question not in self._seen:
                return True
            if self._answer_is_lost:
                self._question, self._budget = b"", 0
                return True
            self.shut(stays_shut=self._stays_shut)
            return False

    def pass_answer(self, octets: bytes, client: socket.socket) -> None:
        with self._guard:
            # That answer only lets boto3 go on with its question.
            if self._budget is None or octets.startswith(b"HTTP/1.1 100 "):
                client.sendall(octets)
                return
            client.sendall(octets[: self._budget])
            self._budget -= len(octets)
            if self._budget <= 0:
                self.shut(stays_shut=self._stays_shut)

    def handle_error(self, request: Any, client_address: Any) -> None: ...

    def close(self) -> None:
        self.shut()
        self.shutdown()
        self._thread.join()
        self.server_close()
