"""Differences between operating systems: one function for each thing that popart asks of a connected socket.

Linux comes first.  If another system lacks something, the function says what it does there instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys

try:
    import fcntl
    import termios
except ImportError:  # Windows
    pass

_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)  # Windows has none: there a send may block
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_SO_NWRITE = 0x1024  # macOS, sys/socket.h


def processors() -> list[int]:
    """Return the numbers of the processors that this thread may run on; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def run_on(processor: int) -> None:
    """Let this thread run on one processor only, if the system can do that and still has it."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {processor})


def current_processor() -> int:
    """Return the number of the processor that this thread runs on.

    :raises OSError: the system does not tell.
    """
    with open("/proc/thread-self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[36])


def wake_reader(sock: socket.socket) -> None:
    """Make a thread that waits for this socket's input find its end, and find it again in each later read.

    The other direction stays open: a FIN would tell the client that everything arrived.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)


def receive_at_once(sock: socket.socket, size: int) -> bytes | None:
    """Return what has arrived, at most *size* octets, or None if nothing has."""
    try:
        return sock.recv(size, _AT_ONCE)
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

    On a UNIX socket it is the memory that they take up, which is more.  None if the system does not tell.
    """
    try:
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (NameError, OSError, ValueError):  # no such module, no such option, closed meanwhile
        return None


def reset(sock: socket.socket) -> None:
    """Close a connection so that the client reads an error; the rest of the send queue is dropped.

    On a UNIX socket this does not work: the client reads an error only if some of its input was left unread.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def acknowledge(sock: socket.socket) -> None:
    """Acknowledge at once what has come: a client may hold back the rest of its line until then (Nagle's algorithm)."""
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # a UNIX socket has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def send_small_writes_at_once(sock: socket.socket) -> None:
    """Switch Nagle's algorithm off: each reply would wait for the acknowledgement of the one before."""
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
