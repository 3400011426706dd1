"""Sockets, TLS, threads, deadlines and limits.

`Server` accepts, counts, gives each connection a thread and ends them all; `Connection` moves octets between its
socket and its `Session`.  Every wait for a client has a deadline that no octet extends: the thread notes it in its
`Line` and blocks, and one watchdog thread cuts the connections whose deadline has passed.  Timeouts of the sockets'
own would bound one system call each, not a command, and cost three system calls where blocking costs one.
"""

from __future__ import annotations

import contextlib
import contextvars
import ipaddress
import math
import re
import secrets
import selectors
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from popart.errors import BrokenMessageError, ClientGoneError, ClientTimeoutError, ReportableError, SessionError
from popart.handler import Handler, SupportsMonitoring, ability, expect_handler, expect_none, tell_end
from popart.proxy import ProxyError, read_header
from popart.session import Session, State, explain
from popart.wire import LineReader, Reply, encode_message, err

READ_SIZE = 4096
"""Octets asked of a socket at a time.  Kept small, as each waiting thread holds a buffer of this size."""

WRITE_SIZE = 131_072
"""Octets that are written under one deadline."""

GATHER_SIZE = 32_768
"""Octets of replies that are kept before they are sent: less than a chunk of a message, which so is never copied."""

LINGER = 2.0
"""Seconds that a closing connection goes on reading, lest unread input turn the last reply into a reset."""

ACCEPT_PAUSE = 0.1
"""Seconds to wait when a connection cannot be accepted, mostly for want of descriptors: it stays in the queue, and the
listening socket readable."""

WAKE_PAUSE = 0.002
"""Seconds that a session gets to end before the next is woken: thousands at once would fight for the interpreter."""

SPARE_SECONDS = 1.0
"""Seconds that a thread waits for another connection when its own has ended."""

MAX_TIMEOUT = 86_400.0
"""Seconds.  The most that ``Server(timeout=...)`` takes; sockets cannot count much further than to 24 days."""

TOO_MANY = "too many connections, please try again later"

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""The networks of this machine alone."""

_HOSTNAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAX_HOSTNAME = 255
_IMPLEMENTATION = re.compile(r"[!-~]+( [!-~]+)*")
_MAX_IMPLEMENTATION = 400  # a capability line has 512 octets, RFC 2449 section 5
_EXPIRE = re.compile(r"(NEVER|[0-9]{1,9})( USER)?")


@dataclass(slots=True, eq=False)
class Line:
    """What the server holds of a live connection."""

    socket: socket.socket
    peer: str | None = None
    """What it counts as in ``max_connections_per_peer``; None as long as a proxy has yet to name the client."""

    deadline: float = math.inf
    """On the monotonic clock: when the client must have done what its thread waits for."""

    late: bool = False
    """True when the watchdog has cut the connection."""

    def until(self, deadline: float) -> Line:
        """Wait for the client in a ``with`` block that the watchdog ends at *deadline*.

        :raises ClientTimeoutError: it did.
        :raises ClientGoneError: the connection is broken.
        """
        self.deadline = deadline
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.deadline = math.inf
        if self.late:
            raise ClientTimeoutError("the client was too slow") from None
        if isinstance(error, OSError):
            raise ClientGoneError("the connection broke") from error

    def shut(self, how: int) -> None:
        """Wake the connection's thread where it reads or writes."""
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown would drop the TLS object: what is written later would go out in the clear.
            socket.socket.shutdown(self.socket, how)


AnyServer = TypeVar("AnyServer", bound="Server")


class Server(socketserver.ThreadingTCPServer):
    """A POP3 server on one listening socket, used as any `socketserver` server.

    *on_new_connection* is called with the client's socket address, in the connection's own thread and after the TLS
    handshake; it returns the connection's `Handler`, or None to turn the client away.  What it raises is given to
    `handle_error`, but for a `ReportableError`, which the client reads.

    *hostname* is the name in APOP's timestamp (default: this machine's).  *timeout* is how many seconds a client may
    take for a command, and for reading each 128 KiB of a reply, before it is logged out without a word (RFC 1939
    section 3).  *implementation* and *expire* are announced by CAPA (RFC 2449 sections 6.9 and 6.7).
    With *apop* the greeting holds a timestamp and APOP is accepted.  With *ssl_context* each connection is TLS from
    its first octet; ``server.socket = context.wrap_socket(server.socket, server_side=True)`` does the same.  To renew a
    certificate, assign a new context to the attribute ``ssl_context``: it counts for the connections to come.
    With *require_tls* a listener without TLS is refused, unless it is on loopback or a UNIX socket.  Without
    *allow_cleartext*, whatever shows a secret (USER and PASS, AUTH PLAIN, LOGIN, XOAUTH2 and OAUTHBEARER) is neither
    announced nor accepted on a connection that is not TLS (RFC 5034 section 4); a client that came to a proxy by TLS,
    by what a PROXY header of version 2 says, counts as TLS too.

    From *scram_decoy_key* SCRAM-SHA-256 derives the salts of users who do not exist.  Left out, it is made at random
    for each process: give all processes that serve the same users the same secret, and keep it, or whoever compares
    them finds out who exists.  32 random octets are good, less than 16 are not.

    With *proxy_protocol* each connection must begin with a PROXY header, version 1 or 2, before TLS and within
    `handshake_timeout`.  The address in it is the one that *on_new_connection* and the limit per peer see.  It is
    believed of a UNIX socket's clients and of *trusted_proxies*, addresses or networks (default: loopback); without a
    good header, or from elsewhere, a connection is closed without a word.  With *reuse_port* several processes may
    listen on one port, and the system deals new connections out among them (SO_REUSEPORT).

    A connection has a thread to itself, and that thread may have served others before: what an application keeps in
    thread-local variables stays there.

    :raises ValueError: a *hostname*, *implementation* or *expire* that cannot stand on the wire, a *timeout* below
        `minimum_timeout` or above a day, a client's *ssl_context*, an *on_new_connection* that cannot be called,
        *trusted_proxies* that are no networks, a listener that *require_tls* refuses, *reuse_port* where there is
        no SO_REUSEPORT, a *scram_decoy_key* that is empty or no bytes, a limit that is no number.
    :raises OSError: the address cannot be bound.
    """

    minimum_timeout: float = 600
    """Seconds: an autologout timer must be of at least ten minutes (RFC 1939 section 3)."""

    max_connections: int | None = 2000
    """Connections at a time; one more is refused with ``-ERR [SYS/TEMP]``, or closed before a TLS handshake."""

    max_connections_per_peer: int | None = 1000
    """The same for one IPv4 address or one IPv6 /64, and half as many, so that no peer alone takes every place."""

    max_bad_commands: int | None = 50
    """Unknown, malformed or misplaced commands in a row; the session ends with the answer to the last of them."""

    max_failed_logins: int | None = 5
    """Refused sign-ins of a connection, but for refusals with the code SYS/TEMP or SYS/PERM; the session ends with the
    answer to the last of them."""

    handshake_timeout: float | None = 30
    """Seconds for the whole TLS handshake, and for the PROXY header before it, if there is one."""

    login_timeout: float | None = 180
    """Seconds for the whole AUTHORIZATION state."""

    shutdown_grace: float | None = 5
    """Seconds that `server_close` gives to running commands before it cuts their connections."""

    allow_reuse_address = True
    request_queue_size = 1024
    # Threads that die with the interpreter would never call unlock_maildrop.
    daemon_threads = False

    def __init__(
        self,
        server_address: tuple[str, int],
        on_new_connection: Callable[[Any], Handler | None],
        *,
        hostname: str | None = None,
        timeout: float = 600.0,
        implementation: str = "popart",
        expire: str = "NEVER",
        apop: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        require_tls: bool = False,
        allow_cleartext: bool = True,
        scram_decoy_key: bytes | None = None,
        proxy_protocol: bool = False,
        trusted_proxies: Iterable[str] = LOOPBACK,
        reuse_port: bool = False,
        bind_and_activate: bool = True,
    ) -> None:
        if self.address_family == socket.AF_INET and not isinstance(server_address, tuple):
            raise ValueError(f"server_address must be a host and a port, not {server_address!r}")
        if not callable(on_new_connection):
            raise ValueError(f"on_new_connection must be callable, not {on_new_connection!r}")
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise ValueError(f"ssl_context must be an SSLContext, not {ssl_context!r}")
        if ssl_context is not None and ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("ssl_context is one for clients; a server's is made with ssl.Purpose.CLIENT_AUTH")
        if scram_decoy_key is not None and not (isinstance(scram_decoy_key, bytes) and scram_decoy_key):
            raise ValueError("scram_decoy_key must be bytes, and not empty")  # not shown, as it is a secret
        if isinstance(trusted_proxies, str):
            raise ValueError(f"trusted_proxies must be several: [{trusted_proxies!r}]")
        for limit in Server.__annotations__:  # which are the limits
            if not isinstance(getattr(self, limit), (int, float, type(None))):
                raise ValueError(f"{limit} must be a number or None, not {getattr(self, limit)!r}")
        if not (isinstance(timeout, (int, float)) and self.minimum_timeout <= timeout <= MAX_TIMEOUT):
            raise ValueError(f"timeout must be {self.minimum_timeout} to {MAX_TIMEOUT} seconds, not {timeout!r}")
        if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError("reuse_port needs SO_REUSEPORT, which this system does not have")
        if hostname is None:
            hostname = socket.gethostname()
            if not _HOSTNAME.fullmatch(hostname):
                hostname = "localhost"
        self.on_new_connection = on_new_connection
        self.hostname = _checked("hostname", hostname, _HOSTNAME, _MAX_HOSTNAME)
        self.command_timeout = float(timeout)
        self.implementation = _checked("implementation", implementation, _IMPLEMENTATION, _MAX_IMPLEMENTATION)
        self.expire = _checked("expire", expire, _EXPIRE, 32)
        self.apop = apop
        self.ssl_context = ssl_context
        self.require_tls = require_tls
        self.allow_cleartext = allow_cleartext
        self.scram_decoy_key = scram_decoy_key
        self.proxy_protocol = proxy_protocol
        self.trusted_proxies = [ipaddress.ip_network(network) for network in trusted_proxies]
        self.reuse_port = reuse_port
        self.closing = threading.Event()
        self.grace_over = False
        # Reentrant, as a signal handler may close the server while its thread is accepting.
        self._lock = threading.RLock()
        self._lines: dict[socket.socket, Line] = {}
        self._line_gone = threading.Condition(self._lock)
        self._peers: Counter[str] = Counter()
        self._threads: set[threading.Thread] = set()
        self._spare_threads = 0
        self._jobs: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        self._watchdog: threading.Thread | None = None
        self._ended = threading.Event()
        self._finished: deque[threading.Thread] = deque()
        self._stopping = False
        self._serving: threading.Thread | None = None
        self._served = threading.Event()
        self._waker: socket.socket | None = None
        if ":" in server_address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(server_address, Connection, bind_and_activate)

    @classmethod
    def from_socket(
        cls: type[AnyServer],
        listener: socket.socket,
        on_new_connection: Callable[[Any], Handler | None],
        **options: Any,
    ) -> AnyServer:
        """Make a server of a stream socket that is bound already, and may be listening: TCP or UNIX.

        Such sockets come from systemd or from a parent process.  The server closes *listener* at its end; the path of
        a UNIX socket is the caller's to remove.  *options* are the keyword arguments of `Server` but *reuse_port*,
        for which it is too late.

        :raises ValueError: *listener* is no bound stream socket, or as for `Server`.
        """
        address = listener.getsockname()
        if listener.type != socket.SOCK_STREAM or not address or (isinstance(address, tuple) and not address[1]):
            raise ValueError(f"listener must be a bound stream socket, not {listener!r}")
        server = cls(("", 0), on_new_connection, **options, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.address_family = listener.family
        server.server_address = address
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            server._check_tls()
        else:
            server.server_activate()
        return server

    def server_bind(self) -> None:
        """Bind the socket, to a port that others may share with *reuse_port*."""
        if self.reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def server_activate(self) -> None:
        """Listen.

        :raises ValueError: *require_tls* forbids it.
        """
        self._check_tls()
        super().server_activate()

    def _check_tls(self) -> None:
        if self.require_tls and self.tls_context is None and isinstance(address := self.socket.getsockname(), tuple):
            if not _ip_address(address).is_loopback:
                raise ValueError(f"require_tls: {address[0]} is not loopback, so this server needs an ssl_context")

    # Accepting.

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept connections until `shutdown` or `server_close`; return at once if either was called before.

        `service_actions` is called every *poll_interval* seconds, or when all that waited has been accepted.
        """
        self._served.clear()
        self._serving = threading.current_thread()
        try:
            wakened, self._waker = socket.socketpair()
            with wakened, self._waker, selectors.DefaultSelector() as selector:
                if not (self._stopping or self.closing.is_set()):
                    selector.register(self.socket, selectors.EVENT_READ)
                    selector.register(wakened, selectors.EVENT_READ)
                while not (self._stopping or self.closing.is_set()):
                    selector.select(poll_interval)
                    self._accept_waiting()
                    self.service_actions()
        finally:
            self._stopping = False
            self._serving = None
            self._served.set()
            if self.closing.is_set():
                self.server_close()

    def shutdown(self) -> None:
        """Make `serve_forever` return, and wait until it has, unless this is its own thread.

        Sessions go on; `server_close` ends them.  Before `serve_forever`, it makes that return at once.
        """
        self._stopping = True
        if self._waker is not None:
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")
        if self._serving not in (None, threading.current_thread()):
            self._served.wait()

    def handle_request(self) -> None:
        """Accept one connection, or call `handle_timeout` after ``self.timeout`` seconds, unless that is None."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while selector.select(self.timeout):
                if self._accept_one():
                    return
        self.handle_timeout()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection without a TLS handshake, even where `socket` is an SSLSocket that would make one."""
        try:
            # SSLSocket.accept shakes hands: one silent client would stop the server.
            request, client_address = socket.socket.accept(self.socket)
        except (BlockingIOError, ConnectionAbortedError):
            raise
        except OSError:
            time.sleep(ACCEPT_PAUSE)
            raise
        request.setblocking(True)  # whatever the default, and whatever it inherits from the listening socket
        return request, client_address

    def _accept_waiting(self) -> None:
        while not self._stopping and self._accept_one():
            pass

    def _accept_one(self) -> bool:
        """Accept a connection, or return False when none is left, or none can be had now."""
        try:
            # A client may be gone before it is accepted, and then accept would wait for the next.  It is said anew each
            # time, as other processes that share the socket may say otherwise.
            self.socket.setblocking(False)
            request, client_address = self.get_request()
        except ConnectionAbortedError:
            return True  # this one is lost, and others may be waiting
        except OSError:
            return False
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.close_request(request)
        except Exception:
            with contextlib.suppress(Exception):
                self.handle_error(request, client_address)
            self.close_request(request)
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or refuse it when a limit is reached or no thread can start."""
        if not self._admit(request, client_address):
            if self.proxy_protocol and not self.trusts(client_address):
                self.close_request(request)
            else:
                self.refuse(request, TOO_MANY)
            return
        with self._lock:
            if self._spare_threads:
                self._jobs.put((request, client_address))
                self._spare_threads -= 1
                return
        while self._finished and not self._finished[0].is_alive():
            self._finished.popleft()
        thread = threading.Thread(target=self._work, args=(request, client_address), daemon=self.daemon_threads)
        try:
            if self._watchdog is None:
                watchdog = threading.Thread(target=self._watch, daemon=True)
                watchdog.start()
                self._watchdog = watchdog
            with self._lock:
                self._threads.add(thread)
            thread.start()
        except BaseException as error:
            if thread.ident is None:
                self._threads.discard(thread)
                self._forget(request)
                self.refuse(request, "short of resources, please try again later")
            if not isinstance(error, (RuntimeError, MemoryError)):
                raise  # a signal handler's

    def _work(self, request: Any, client_address: Any) -> None:
        """Hold a connection, then others that come while this thread is spare.  The body of a thread.

        A new thread for each connection took a third of a short session's processor time.
        """
        while True:
            # In a context of its own: no session finds another's context variables.
            contextvars.Context().run(self.process_request_thread, request, client_address)
            with self._lock:
                if self.closing.is_set():
                    break
                self._spare_threads += 1
            try:
                job = self._jobs.get(timeout=SPARE_SECONDS)
            except Empty:
                with self._lock:
                    if self._spare_threads:
                        self._spare_threads -= 1
                        break
                job = self._jobs.get()  # it was promised to this thread meanwhile
            if job is None:
                break
            request, client_address = job
        with self._lock:
            thread = threading.current_thread()
            self._finished.append(thread)
            self._threads.discard(thread)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Hold a connection from its first octet to its last."""
        try:
            self.finish_request(request, client_address)
        except BaseException:
            with contextlib.suppress(BaseException):
                self.handle_error(request, client_address)
        finally:
            self.close_request(self._forget(request))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Learn, in an ``except`` block, of a failure without a handler to tell: PROXY, TLS, *on_new_connection*.

        It does nothing; override it to log `sys.exc_info()`.
        """

    def close_request(self, request: Any) -> None:
        """Close a socket, whatever the system says to that: nobody is left to be told."""
        with contextlib.suppress(OSError):
            super().close_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection.  The end of its octets was seen to by `Connection`."""
        self.close_request(request)

    # The registry of live connections.

    def drain(self, timeout: float | None = None) -> bool:
        """Stop listening and let the sessions come to their own ends, at most for *timeout* seconds (None: no limit).

        For a server that another one takes over from: call it after `serve_forever` has returned, and `server_close`
        next, which ends what is left.  Connections that the system had accepted already are served too.  Returns
        whether all sessions have ended.  A handler's method that calls it waits for its own session.
        """
        deadline = _deadline(timeout)
        self.shutdown()
        for _ in range(self.request_queue_size):  # clients may go on coming
            if time.monotonic() >= deadline or not self._accept_one():
                break
        self._stopping = True  # serve_forever has nothing to serve any more
        self.socket.close()
        with self._lock:
            patience = None if timeout is None else max(0.0, deadline - time.monotonic())
            return self._line_gone.wait_for(lambda: not self._lines, patience)

    def _admit(self, request: socket.socket, client_address: Any) -> bool:
        with self._lock:
            if self.closing.is_set() or (self.max_connections is not None and len(self._lines) >= self.max_connections):
                return False
            line = Line(request)
            if not (self.proxy_protocol or self.admit_peer(line, client_address)):
                return False
            self._lines[request] = line
            return True

    def admit_peer(self, line: Line, client_address: Any) -> bool:
        """Count a connection as one of its client's, or return False if there are too many of those."""
        peer = _peer(client_address)
        with self._lock:
            if self.max_connections_per_peer is not None and self._peers[peer] >= self.max_connections_per_peer:
                return False
            line.peer = peer
            self._peers[peer] += 1
            return True

    def _forget(self, request: socket.socket) -> socket.socket:
        with self._lock:
            line = self._lines.pop(request, None)
            if line is None:
                return request  # server_close was faster
            self._line_gone.notify_all()
            if line.peer is not None:
                self._peers[line.peer] -= 1
                if not self._peers[line.peer]:
                    del self._peers[line.peer]
            return line.socket

    def trusts(self, client_address: Any) -> bool:
        """Tell whether a PROXY header is believed of this socket address: of a UNIX socket's always."""
        if not isinstance(client_address, tuple):
            return True
        address = _ip_address(client_address)
        return any(address in network for network in self.trusted_proxies)

    def line_of(self, request: socket.socket) -> Line:
        """Return what the server holds of the connection that was accepted as *request*."""
        return self._lines[request]

    def _watch(self) -> None:
        """Cut the connections that are late, until the server has ended.  The body of the watchdog's thread."""
        pause = 0.0
        while not (self._ended.wait(pause) or (self.closing.is_set() and not self._lines)):
            now = time.monotonic()
            # Late by a quarter of the smallest limit is soon enough, and looking more often would cost more.
            limits = (self.command_timeout, self.handshake_timeout, self.login_timeout, LINGER)
            pause = max(0.01, min(limit for limit in limits if limit is not None) / 4)
            with self._lock:
                for line in [line for line in self._lines.values() if line.deadline <= now]:
                    line.late = True
                    line.shut(socket.SHUT_RDWR)

    def refuse(self, request: socket.socket, text: str) -> None:
        """Refuse without waiting for the client: neither may the accepting thread, nor may this take up a place."""
        with contextlib.suppress(OSError):
            request.setblocking(False)
            if self.tls_context is None:
                request.send(err(text, "SYS/TEMP").status)
                request.recv(READ_SIZE)  # unread input would turn the reply into a reset
        self.close_request(request)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context that makes connections TLS: ``ssl_context``, or that of a wrapped ``server.socket``."""
        if self.ssl_context is not None:
            return self.ssl_context
        return self.socket.context if isinstance(self.socket, ssl.SSLSocket) else None

    def server_close(self) -> None:
        """End the service: refuse new connections, end idle sessions at once, wait for the others.

        A command that is running may finish within `shutdown_grace` seconds, then its connection is cut.  A call to
        a handler cannot be interrupted and is always waited for: a commit completes, every maildrop is unlocked and
        no thread is left.  Calling it twice, from any thread or before `serve_forever` is fine.

        Called by a handler's method, it does not wait, as that session would wait for itself.  Called in the thread
        of `serve_forever`, by a signal handler for one, it makes that return, and is carried out before that returns.
        """
        if not self.closing.is_set():
            self.closing.set()
        self.shutdown()
        if self._serving is threading.current_thread():
            return  # a signal handler may have interrupted anything; serve_forever calls again when it is done
        self.socket.close()
        deadline = _deadline(self.shutdown_grace)
        with self._lock:
            lines = list(self._lines)
            # A signal may have come while a thread is being started.  It ends by itself, and a later call waits for it.
            threads = [thread for thread in (*self._threads, *self._finished) if thread.is_alive()]
            for _ in range(self._spare_threads):
                self._jobs.put(None)
            self._spare_threads = 0
        waits = threading.current_thread() not in threads
        for request in lines:
            self._wake(request, pause=waits and time.monotonic() < deadline)
        if not waits:
            return
        for thread in threads:
            thread.join(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        self.grace_over = True
        with self._lock:
            for line in self._lines.values():
                # One that waits for its handler may still say what became of a commit.
                if line.deadline != math.inf:
                    line.shut(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for request in list(self._lines):
            self.close_request(self._forget(request))  # Ctrl-C came before they had a thread
        self._ended.set()
        if self._watchdog is not None and self._watchdog.is_alive():
            self._watchdog.join()

    def _wake(self, request: socket.socket, pause: bool) -> None:
        # Under the lock, as afterwards the descriptor may be somebody else's.
        with self._lock:
            if request in self._lines:
                self._lines[request].shut(socket.SHUT_RD)
                if pause:
                    self._line_gone.wait(WAKE_PAUSE)


class Connection(socketserver.StreamRequestHandler):
    """One client: moves octets between its socket and its session."""

    server: Server
    request: socket.socket

    session_class: type[Session] = Session
    """What converses with the client: a subclass, as `popart.testing` has one, may listen in."""

    def setup(self) -> None:
        """Make no file objects: they would be one more layer of buffers, and are unusable after a timeout."""
        self._replies: list[bytes] = []
        self._gathered = 0
        self._sent_octets = 0
        self._had_command = False
        self._came_by_tls = False
        self._monitor: _Monitor | None = None
        self._session: Session | None = None
        self._login_deadline = math.inf
        self._line = self.server.line_of(self.request)

    def finish(self) -> None:
        """Do nothing: the server closes the socket."""

    def handle(self) -> None:
        """Hold the whole connection."""
        if self.request.family != getattr(socket, "AF_UNIX", None):
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        deadline = _deadline(self.server.handshake_timeout)
        if self.server.proxy_protocol and not self._read_proxy_header(deadline):
            return
        if (context := self.server.tls_context) is not None:
            self._shake_hands(context, deadline)
        session = self._make_session()
        if session is not None:
            self._hold_session(session)

    def _read_proxy_header(self, deadline: float) -> bool:
        if not self.server.trusts(self.client_address):
            raise ProxyError("a client that is no trusted proxy")
        reading = read_header()
        wanted = next(reading)
        try:
            with self._line.until(deadline):
                while True:
                    wanted = reading.send(self.request.recv(wanted))
        except StopIteration as end:
            self._came_by_tls = end.value.tls
            if end.value.address is not None:
                self.client_address = end.value.address
        if self.server.admit_peer(self._line, self.client_address):
            return True
        self.server.refuse(self.request, TOO_MANY)
        return False

    def _shake_hands(self, context: ssl.SSLContext, deadline: float) -> None:
        self.request = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        self._line.socket = self.request
        if self.server.closing.is_set():
            raise ConnectionAbortedError("the server is closing")
        with self._line.until(deadline):
            self.request.do_handshake()

    def _make_session(self) -> Session | None:
        server = self.server
        handler = None
        try:
            handler = server.on_new_connection(self.client_address)
            if handler is None:
                raise ReportableError("connection refused")
            expect_handler(handler)
        except ReportableError as refusal:
            self._turn_away(err(refusal.text, refusal.code))
            return None
        except BaseException:
            tell_end(handler)
            self._turn_away(err("internal error, please try again later", "SYS/TEMP"))
            raise
        try:
            if ability(handler, SupportsMonitoring, "command_finished") is not None:
                self._monitor = _Monitor(handler)
            return self.session_class(
                handler,
                implementation=server.implementation,
                expire=server.expire,
                banner=_make_banner(server.hostname) if server.apop else None,
                certificate=self.request.getpeercert() if isinstance(self.request, ssl.SSLSocket) else None,
                allow_cleartext=server.allow_cleartext or self._came_by_tls or isinstance(self.request, ssl.SSLSocket),
                scram_decoy_key=server.scram_decoy_key,
                max_bad_commands=server.max_bad_commands,
                max_failed_logins=server.max_failed_logins,
            )
        except BaseException as error:  # a property's of the handler, for one
            answer = explain(handler, error)
            tell_end(handler)
            self._turn_away(answer)
            return None

    def _turn_away(self, answer: Reply) -> None:
        with contextlib.suppress(SessionError):
            self._send(answer)
            self._flush()
            self._hang_up(complete=True)

    def _hold_session(self, session: Session) -> None:
        try:
            complete = self._converse(session)
        except (ClientGoneError, ClientTimeoutError) as error:
            if self._had_command and not self.server.closing.is_set():
                session.report(error)
            return
        finally:
            session.release()
            if self._monitor is not None:
                if session.in_exchange:
                    self._monitor.tell_command(session, "lost", self._sent_octets)
                self._monitor.tell_session(session, self._sent_octets)
            session.close()
        self._hang_up(complete)

    def _converse(self, session: Session) -> bool:
        """Exchange commands and replies until the session is over.  Return False if a message was left incomplete."""
        self._session = session
        lines = LineReader()
        closing = self.server.closing.is_set
        self._login_deadline = _deadline(self.server.login_timeout)
        self._send(session.greet())
        while not (session.over or closing()):
            self._flush()
            deadline = self._next_deadline()
            while not (commands := lines.feed(self._receive(deadline))):
                if closing():
                    return True
            self._had_command = True
            for line in commands:
                if session.is_quit(line):
                    self._flush()
                try:
                    if self._monitor is None:
                        self._send(session.respond(line))
                    else:
                        self._answer_monitored(session, line, self._monitor)
                except BrokenMessageError:
                    with contextlib.suppress(SessionError):
                        self._flush()
                    return False
                if session.over or closing():
                    break
        self._flush()
        return True

    def _answer_monitored(self, session: Session, line: bytes, monitor: _Monitor) -> None:
        if not session.in_exchange:
            monitor.begin_command(session.verb(line), self._sent_octets)
        outcome = "lost"
        try:
            reply = session.respond(line)
            self._send(reply)
            self._flush()
            outcome = reply.status.partition(b" ")[0].strip().decode()
        finally:
            if not session.in_exchange:
                monitor.tell_command(session, outcome, self._sent_octets + self._gathered)

    def _receive(self, deadline: float) -> bytes:
        with self._line.until(deadline):
            if isinstance(self.request, ssl.SSLSocket) and not self.request.pending():
                # Where server_close() ends the wait, OpenSSL must not see it: it would answer with an alert.
                socket.socket.recv(self.request, 1, socket.MSG_PEEK)
                if self.server.closing.is_set():
                    return b""
            octets = self.request.recv(READ_SIZE)
        if not octets and not self.server.closing.is_set():
            raise ClientGoneError("the client left without QUIT")
        return octets

    def _send(self, reply: Reply) -> None:
        """Send a reply, or keep it until more is there or the thread would wait for the client: see `_flush`.

        :raises BrokenMessageError: the message's reader failed; what was read before is kept or sent.
        """
        if reply.delay:
            self._flush()
            self.server.closing.wait(min(reply.delay, self._login_limit() - time.monotonic()))
        if reply.message is None:
            self._keep(reply.head())
            return
        with contextlib.closing(reply.message) as chunks:
            self._keep(reply.head())
            for octets in encode_message(chunks, reply.top):
                if self.server.grace_over:
                    raise ClientGoneError("the server has closed")
                self._keep(octets)

    def _keep(self, octets: bytes) -> None:
        self._replies.append(octets)
        self._gathered += len(octets)
        if self._gathered >= GATHER_SIZE:
            self._flush()

    def _flush(self) -> None:
        octets = b"".join(self._replies)
        self._replies.clear()
        self._gathered = 0
        self._sent_octets += len(octets)
        for start in range(0, len(octets), WRITE_SIZE):
            with self._line.until(self._next_deadline()):
                self.request.sendall(memoryview(octets)[start : start + WRITE_SIZE])

    def _next_deadline(self) -> float:
        """Return when the client's next step, a command or reading one write, must be done."""
        return min(
            _deadline(LINGER if self.server.grace_over else self.server.command_timeout),
            self._login_limit(),
        )

    def _login_limit(self) -> float:
        """Return when the AUTHORIZATION state must be over: never, when it is."""
        in_time = self._session is None or self._session.state is State.TRANSACTION
        return math.inf if in_time else self._login_deadline

    def _hang_up(self, complete: bool) -> None:
        """End the connection so that all that was sent arrives; over TLS with close_notify if it is *complete*."""
        with contextlib.suppress(SessionError), self._line.until(_deadline(LINGER)):
            if complete and isinstance(self.request, ssl.SSLSocket):
                self._notify_close(self.request)
            self._line.shut(socket.SHUT_WR)
            while socket.socket.recv(self.request, READ_SIZE):
                pass

    def _notify_close(self, request: ssl.SSLSocket) -> None:
        # Allowed to wait, unwrap() would wait for the peer's close_notify too.
        request.setblocking(False)
        with contextlib.suppress(ssl.SSLError):  # of what it reads then
            try:
                request.unwrap()
            except ssl.SSLWantWriteError:
                request.setblocking(True)  # the client has yet to read what was sent before
                request.unwrap()
        request.setblocking(True)


class _Monitor:
    """Measures a session for a handler that satisfies `SupportsMonitoring`."""

    def __init__(self, handler: Any) -> None:
        self._handler: SupportsMonitoring = handler
        self._session_began = self._command_began = time.monotonic()
        self._commands = 0
        self._verb = ""
        self._octets_before = 0

    def begin_command(self, verb: str, octets: int) -> None:
        self._verb = verb
        self._octets_before = octets
        self._command_began = time.monotonic()

    def tell_command(self, session: Session, outcome: str, octets: int) -> None:
        self._commands += 1
        seconds = time.monotonic() - self._command_began
        self._tell(session, "command_finished", self._verb, outcome, octets - self._octets_before, seconds)

    def tell_session(self, session: Session, octets: int) -> None:
        seconds = time.monotonic() - self._session_began
        self._tell(session, "session_finished", self._commands, octets, seconds)

    def _tell(self, session: Session, method: str, *facts: object) -> None:
        try:
            expect_none(method, getattr(self._handler, method)(*facts))
        except BaseException as error:
            session.report(error)


def _checked(name: str, value: object, pattern: re.Pattern[str], longest: int) -> str:
    if not (isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value)):
        raise ValueError(f"{name} cannot be {value!r}")
    return value


def _deadline(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _make_banner(hostname: str) -> str:
    """Make APOP's timestamp (RFC 1939 section 7): process and clock would repeat, random digits do not."""
    return f"<{secrets.randbits(64)}.{secrets.randbits(64)}@{hostname}>"


def _peer(client_address: Any) -> str:
    """Return what counts as one peer: an IPv4 address, an IPv6 /64, or all clients of a UNIX socket."""
    if not isinstance(client_address, tuple):
        return ""
    if ":" not in client_address[0]:
        return str(client_address[0])
    address = _ip_address(client_address)
    return str(address) if address.version == 4 else str(int(address) >> 64)


def _ip_address(client_address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(client_address[0].partition("%")[0])
    return (address.version == 6 and address.ipv4_mapped) or address
