"""Differences between operating systems: one function for each thing that popart asks of the system.

Linux comes first.  If another system lacks something, the function says what it does there instead.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, TypeVar

try:
    import fcntl
    import termios
except ImportError:  # Windows
    pass

# PyPy reads a codec from a file at its first use.  Without this, a refusal would fail if descriptors were short.
_CODECS = codecs.lookup("ascii"), codecs.lookup("latin-1")

REUSE_ADDRESS: bool = os.name == "posix"
"""Whether SO_REUSEADDR does no more than let a server start again soon.  On Windows another process could take the port
from it."""

SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, getattr(errno, "WSAEMFILE", errno.EMFILE)}
"""Errors of accept() that pass when something is released."""

_LOST_NAMES = "ENETDOWN EPROTO ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH"
_LOST = {getattr(errno, name) for name in _LOST_NAMES.split() if hasattr(errno, name)}  # accept(2) of Linux

POLL_PAUSE = 0.1
"""On Windows: seconds after which a waiting thread checks again whether it was woken."""

# Windows has no MSG_DONTWAIT, and on macOS `send` ignores it: on both the sockets themselves never block.
_AT_ONCE = 0 if sys.platform == "darwin" else getattr(socket, "MSG_DONTWAIT", 0)
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_SO_NWRITE = 0x1024  # macOS, sys/socket.h


def processors() -> list[int]:
    """Return the numbers of the processors that this thread may run on; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def run_on(*processors: int) -> None:
    """Let this thread run on these processors only, if the system can do that and still has one of them."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, processors)


def current_processor() -> int:
    """Return the number of the processor that this thread runs on.

    :raises OSError: the system does not tell.
    """
    with open("/proc/thread-self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[36])


Found = TypeVar("Found")


class WaitingSocket(socket.socket):
    """A connection in non-blocking mode whose `recv` and `recv_into` still wait, for macOS."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return self._wait_for(super().recv, b"", size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        return self._wait_for(super().recv_into, 0, buffer, size, flags)

    def _wait_for(self, receive: Callable[..., Found], end: Found, *arguments: Any) -> Found:
        while True:
            try:
                return receive(*arguments)
            except BlockingIOError:
                if not self._wait():
                    return end

    def _wait(self) -> bool:
        """Wait for input or its end.  Return False if no more is wanted."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        poll.poll()
        return True


class PolledSocket(WaitingSocket):
    """A `WaitingSocket` for Windows, where `shutdown` wakes nobody.

    It checks every `POLL_PAUSE` seconds whether ``shutdown(SHUT_RD)`` was called.  If so, it returns what has come, and
    after that the end.  It does not pass this call on to the system, which would reset the connection if the client
    sent more.  (CancelIoEx could wake a thread, but nobody promises that for a blocking recv.)
    """

    _input_is_over = False

    def _wait(self) -> bool:
        if self._input_is_over:
            return False
        select.select([self], [], [], POLL_PAUSE)
        return True

    def shutdown(self, how: int, /) -> None:
        if how == socket.SHUT_RD:
            self._input_is_over = True
        else:
            super().shutdown(how)


def is_unix(sock: socket.socket) -> bool:
    """Return whether it is a UNIX socket, which Windows' Python does not have."""
    return sock.family == getattr(socket, "AF_UNIX", None)


def wake_reader(sock: socket.socket) -> None:
    """Make a thread that waits for this socket's input find the end, now and in each later read.

    The other direction stays open: a FIN would tell the client that everything arrived.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)


def receive_at_once(sock: socket.socket, size: int) -> bytes | None:
    """Return what has arrived, at most *size* octets, or None if nothing has."""
    try:
        return socket.socket.recv(sock, size, _AT_ONCE)
    except BlockingIOError:
        return None


def send_at_once(sock: socket.socket, octets: bytes | memoryview) -> int:
    """Hand as many octets to the system as it has room for, and return how many it took."""
    try:
        return sock.send(octets, _AT_ONCE)
    except BlockingIOError:
        return 0


def wait_for_room(sock: socket.socket, seconds: float) -> None:
    """Wait until the system takes octets again.  Linux does so when a third of a large send buffer is free."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll(seconds * 1000)
    else:
        select.select([], [sock], [], seconds)


def unsent(sock: socket.socket) -> int | None:
    """Return how many of the octets that were sent the client's system has not taken yet.

    On a UNIX socket it is the memory that they take up, which is more.  None if the system does not tell: macOS always
    says 0 for a UNIX socket.
    """
    try:
        if sys.platform == "darwin":
            return None if is_unix(sock) else sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (NameError, OSError, ValueError):  # no such module, no such option, closed meanwhile
        return None


def reset_when_closed(sock: socket.socket) -> None:
    """Make the close of a connection a reset: its client reads an error, and the rest of the send queue is dropped.

    On a UNIX socket this does not work: the client reads an error only if some of its input was left unread.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def acknowledge(sock: socket.socket) -> None:
    """Acknowledge at once what has come: a client may hold back the rest of its line until then (Nagle's algorithm)."""
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # a UNIX socket has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, True)


def send_small_writes_at_once(sock: socket.socket) -> None:
    """Switch Nagle's algorithm off: each reply would wait for the acknowledgement of the one before.

    macOS refuses that if the client has gone, which the next read finds too.
    """
    if not is_unix(sock):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)


# Listening sockets.


def take_both_families(listener: socket.socket) -> None:
    """Let a socket that will be bound to ``::`` take IPv4 too, as Linux does by default, and Windows does not."""
    with contextlib.suppress(OSError):  # OpenBSD cannot
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def can_share_ports() -> bool:
    """Return whether several sockets may listen on one port."""
    return hasattr(socket, "SO_REUSEPORT")


def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Accept a connection, in the form that the other functions want: its recv waits until it is woken.

    :raises ConnectionAbortedError: the client has gone; macOS then accepts it without an address.
    """
    # SSLSocket.accept shakes hands: one silent client would stop the server.
    sock, address = socket.socket.accept(listener)
    if address is None:  # it must not pass for a UNIX client
        sock.close()
        raise ConnectionAbortedError("the client has gone")
    if _AT_ONCE:
        sock.setblocking(True)  # whatever the default, and whatever it inherits from the listening socket
        return sock, address
    kind = WaitingSocket if hasattr(select, "poll") else PolledSocket
    waiting = kind(sock.family, sock.type, sock.proto, sock.detach())
    waiting.setblocking(False)
    return waiting, address


def is_lost(error: OSError) -> bool:
    """Return whether an error of accept() concerns one client: it has gone, and others may be waiting."""
    return isinstance(error, (ConnectionAbortedError, ConnectionResetError)) or error.errno in _LOST


def bound_address(sock: socket.socket) -> Any:
    """Return the address that a stream socket is bound to; None if it is not a bound stream socket, TCP or UNIX."""
    try:
        address = sock.getsockname()
    except OSError:  # Windows raises it if the socket is not bound
        return None
    is_bound = address[1] if isinstance(address, tuple) else address
    is_known = sock.family in (socket.AF_INET, socket.AF_INET6) or is_unix(sock)
    return address if sock.type == socket.SOCK_STREAM and is_known and is_bound else None


def is_listening(sock: socket.socket) -> bool:
    """Return whether a socket listens.  macOS does not tell; then it is False, and listening again does no harm."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
