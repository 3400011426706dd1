"""The live connections: how many there may be, in all and per peer, and which one makes room for another."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

from popart.addresses import peer_of
from popart.command_deadlines import Closing, Place
from popart.options import Limits

MAX_LEAVING = 100
"""Connections allowed beyond the limit for a short time.  Some have made room, and their threads are still ending.
Others have not yet named their client by a PROXY header."""


class Places:
    """All live connections of a server.

    `popart.server` says what guards them.
    """

    def __init__(
        self, limits: Limits, closing: Closing, lock: AbstractContextManager[bool], changed: threading.Condition
    ) -> None:
        self._limits = limits
        self._closing = closing
        self._lock = lock
        self._changed = changed
        self._live: dict[socket.socket, Place] = {}  # the oldest first
        self._peers: Counter[str] = Counter()
        self._leaving = 0

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> list[Place]:
        return list(self._live.values())

    def find(self, request: socket.socket) -> Place | None:
        return self._live.get(request)

    def admit(self, request: socket.socket, client_address: Any, *, address_known: bool) -> Place | None:
        """Give a connection a place, or return None if there is none.

        If *address_known* is False, `count_client` counts the client as a peer later, and others make room for it then.
        """
        place = Place(request, client_address, self._closing)
        with self._lock:
            most = self._limits.max_connections
            if self._closing.begun or (most is not None and len(self._live) >= most + MAX_LEAVING):
                return None
            if address_known and not self.count_client(place, client_address):
                return None
            self._live[request] = place
            return place

    def count_client(self, place: Place, client_address: Any) -> bool:
        """Count a connection for its peer.  Return False if the peer has too many, or if there is no place.

        When all places are taken, the oldest connection that has not signed in and whose handler is not at work makes
        room.  Otherwise clients could shut everybody out by keeping all places, without a password.
        """
        peer = peer_of(client_address)
        with self._lock:
            most = self._limits.max_connections_per_peer
            if peer is not None and most is not None and self._peers[peer] >= most:
                return False
            most = self._limits.max_connections
            others = len(self._live) - self._leaving - (place.socket in self._live)
            if most is not None and others >= most and not self._make_room(place):
                return False
            if peer is not None:
                self._peers[peer] += 1
            place.peer = peer
            place.client_address = client_address
            return True

    def _make_room(self, newcomer: Place) -> bool:
        for place in self._live.values():
            if place.waits and not (place.cut or place is newcomer or place.signed_in()):
                self._leaving += 1
                place.makes_room = True
                place.end("the client had not signed in when another one needed its place")
                return True
        return False

    def leave(self, request: socket.socket) -> None:
        """Take a connection off the list, if it is there."""
        with self._lock:
            place = self._live.pop(request, None)
            if place is None:
                return
            if place.makes_room:
                self._leaving -= 1
            if place.peer is not None:
                self._peers[place.peer] -= 1
                if not self._peers[place.peer]:
                    del self._peers[place.peer]
            self._changed.notify_all()
