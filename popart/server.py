"""The server: its options, the listening socket, accepting, closing.

`Server` accepts connections and gives each a place (`popart.places`) and a thread (`popart.workers`), in which a
`Connection` holds the client's session.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import re
import selectors
import socket
import socketserver
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from popart.connection import LINGER, READ_SIZE, TOO_MANY, Connection
from popart.handler import Handler
from popart.pacing import Pacer
from popart.places import Ending, Place, Places, Watchdog, deadline_in, ip_address
from popart.wire import err
from popart.workers import Workers

ACCEPT_PAUSE = 0.1
"""Seconds to wait when a connection cannot be accepted, mostly for want of descriptors: it stays in the queue, and the
listening socket readable."""

MAX_ACCEPTED = 100
"""Connections that are accepted before the loop looks at anything else: clients may come without end."""

LONGEST_QUEUE = 65_535
"""Connections that `drain` accepts at the most: no system's queue is longer, and clients may go on coming."""

SIGNAL_PAUSE = 0.05
"""Seconds between two looks for a wish that a signal handler has left, which may not take the lock to say so."""

LONGEST_WAIT = 0.5
"""Seconds that a thread waits for clients at a time.  A signal handler runs only then, if its signal came in the moment
before the wait, or to another thread."""

MAX_TIMEOUT = 86_400.0
"""Seconds.  The most that ``Server(timeout=...)`` takes; sockets cannot count much further than to 24 days."""

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""The networks of this machine alone."""

_HOSTNAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAX_HOSTNAME = 255
_IMPLEMENTATION = re.compile(r"[!-~]+( [!-~]+)*")
_MAX_IMPLEMENTATION = 400  # a capability line has 512 octets, RFC 2449 section 5
_EXPIRE = re.compile(r"(NEVER|[0-9]{1,9})( USER)?")


_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

AnyServer = TypeVar("AnyServer", bound="Server")
P = ParamSpec("P")
Result = TypeVar("Result")


def _operation(method: Callable[Concatenate[AnyServer, P], Result]) -> Callable[Concatenate[AnyServer, P], Result]:
    """Make a method of `Server` one that a signal handler may interrupt with `server_close`.

    The handler's call finds a frame below it that may hold the lock.  So it only notes the wish, and the interrupted
    method carries it out when it is done.
    """

    @functools.wraps(method)
    def run(server: AnyServer, /, *arguments: P.args, **options: P.kwargs) -> Result:
        if server._interrupts():
            return method(server, *arguments, **options)
        me = threading.get_ident()
        try:
            server._interrupted[me] = False
            return method(server, *arguments, **options)
        finally:
            if server._interrupted.pop(me, False):
                server.server_close()

    return run


class Server(socketserver.ThreadingTCPServer):
    """A POP3 server on one listening socket, used as any `socketserver` server.

    *on_new_connection* is called with the client's socket address, in the connection's own thread and after the TLS
    handshake; it returns the connection's `Handler`, or None to turn the client away.  What it raises is given to
    `handle_error`, but for a `ReportableError`, which the client reads.

    *hostname* is the name in APOP's timestamp (default: this machine's).  *timeout* is how many seconds a client may
    take for a command, and for reading 128 KiB of what was sent, or all that is left of it, before it is logged out
    without a word (RFC 1939 section 3).  *implementation* and *expire* are announced by CAPA (RFC 2449 sections 6.9
    and 6.7).

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
    """Connections at a time.  For one more, the oldest makes room that has not signed in and whose handler is not at
    work: it is cut.  If there is none, the newcomer is refused with ``-ERR [SYS/TEMP]``, or closed before a TLS
    handshake."""

    max_connections_per_peer: int | None = 1000
    """Connections of one IPv4 address or one IPv6 /64; one more is refused.  Half of all, so that no peer alone takes
    every place: a subclass that sets `max_connections` alone gets half of that.  Clients of a UNIX socket are no peer,
    unless a PROXY header names one."""

    max_bad_commands: int | None = 50
    """Unknown, malformed or misplaced commands in a row; the session ends with the answer to the last of them."""

    max_failed_logins: int | None = 5
    """Refused sign-ins of a connection, but for refusals with the code SYS/TEMP or SYS/PERM; the session ends with the
    answer to the last of them."""

    handshake_timeout: float | None = 30
    """Seconds for the whole TLS handshake, and for the PROXY header before it, if there is one."""

    login_timeout: float | None = 180
    """Seconds for the whole AUTHORIZATION state."""

    max_messages: int | None = 10_000_000
    """Messages in a maildrop: it ends the loop over a handler that counts wrongly.  More are a `HandlerError`."""

    shutdown_grace: float | None = 5
    """Seconds that `server_close` gives to running commands, and to clients that have yet to read replies, before it
    cuts their connections."""

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
        self._begin()
        if ":" in server_address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(server_address, Connection, bind_and_activate)

    def __init_subclass__(cls, **options: Any) -> None:
        """Halve ``max_connections`` for the limit per peer, in a subclass that sets the first alone."""
        super().__init_subclass__(**options)
        if "max_connections" in vars(cls) and "max_connections_per_peer" not in vars(cls):
            most = cls.max_connections
            cls.max_connections_per_peer = max(1, most // 2) if isinstance(most, int) else most

    def _begin(self) -> None:
        """Make what a server has while it runs: at the start, and again in a forked child, where nothing of it is."""
        self.ending = Ending()
        self.pacer = Pacer()
        self._changed = threading.Condition(threading.RLock())
        self._places = Places(self.ending, self._changed)
        self._workers = Workers(self._hold, self._changed, daemon=self.daemon_threads)
        self._watchdog = Watchdog(self._places, self.ending, self._changed)
        self._stop_wanted = False
        self._serving: threading.Thread | None = None
        self._doors: set[_Door] = set()
        # What a thread is doing here, for the signal handlers that interrupt it.  See `_operation`.
        self._interrupted: dict[int, bool] = {}
        self._closers: set[int] = set()
        _servers.add(self)

    def _begin_in_child(self) -> None:
        """Let go of the copies of what was there at a fork: the parent's sessions, and its threads, go on there."""
        within_loop = self._serving is threading.current_thread()
        for place in self._places:
            place.socket.close()
        for door in self._doors:
            door.close()
        self._begin()
        self._stop_wanted = within_loop

    @classmethod
    def from_socket(
        cls: type[AnyServer],
        listener: socket.socket,
        on_new_connection: Callable[[Any], Handler | None],
        **options: Any,
    ) -> AnyServer:
        """Make a server of a stream socket that is bound already, and may be listening: TCP or UNIX.

        Such sockets come from systemd or from a parent process.  The server closes *listener* at its end; the path of
        a UNIX socket is the caller's to remove.  A connection to that cannot be reset: where a message breaks off, its
        client reads an error only if some of what it sent was left unread.  *options* are the keyword arguments of
        `Server` but *reuse_port*, for which it is too late.

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
            if not ip_address(address).is_loopback:
                raise ValueError(f"require_tls: {address[0]} is not loopback, so this server needs an ssl_context")

    # Accepting.

    @_operation
    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept connections until `shutdown` or `server_close`; return at once if either was called before.

        `service_actions` is called every *poll_interval* seconds, or when all that waited, or a hundred, have been
        accepted.
        """
        self._serving = threading.current_thread()
        try:
            with self._door() as door:
                while not (self._stop_wanted or self.ending.closing):
                    door.wait(poll_interval)
                    self._accept_waiting()
                    self.service_actions()
        finally:
            self._stop_wanted = False
            with self._changed:
                self._serving = None
                self._changed.notify_all()

    def shutdown(self) -> None:
        """Make `serve_forever` return, and wait until it has, unless this is its own thread.

        Sessions go on; `server_close` ends them.  Before `serve_forever`, it makes that return at once.  A signal
        handler that interrupts another method of the server does not wait.
        """
        self._stop_wanted = True
        self._knock()
        if not self._interrupts():
            self._wait_for_loop()

    @_operation
    def _wait_for_loop(self) -> None:
        with self._changed:
            while self._serving not in (None, threading.current_thread()):
                self._changed.wait(SIGNAL_PAUSE)

    @_operation
    def handle_request(self) -> None:
        """Accept one connection, or call `handle_timeout` after ``self.timeout`` seconds, unless that is None.

        It returns without either when the server closes.
        """
        with self._door() as door:
            while not self.ending.closing and door.wait(self.timeout):
                with contextlib.suppress(OSError):
                    self._accept_one()
                    return
        if not self.ending.closing:
            self.handle_timeout()

    @contextlib.contextmanager
    def _door(self) -> Iterator[_Door]:
        door = _Door(self.socket)
        self._doors.add(door)
        try:
            yield door
        finally:
            self._doors.discard(door)
            door.close()

    def _knock(self) -> None:
        """Have the threads that wait for clients look up."""
        for door in tuple(self._doors):
            door.knock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection without a TLS handshake, even where `socket` is an SSLSocket that would make one."""
        try:
            # SSLSocket.accept shakes hands: one silent client would stop the server.
            request, client_address = socket.socket.accept(self.socket)
        except OSError as error:
            if error.errno in _SHORTAGE:
                time.sleep(ACCEPT_PAUSE)
            raise
        request.setblocking(True)  # whatever the default, and whatever it inherits from the listening socket
        return request, client_address

    def _accept_waiting(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(MAX_ACCEPTED):
                if self._stop_wanted or self.ending.closing:
                    return
                self._accept_one()

    def _accept_one(self) -> None:
        """Accept a connection, and let it begin or refuse it.

        :raises BlockingIOError: nobody waits.
        :raises OSError: none can be had now.
        """
        # A client may be gone before it is accepted, and then accept would wait for the next.  It is said anew each
        # time, as other processes that share the socket may say otherwise.
        self.socket.setblocking(False)
        try:
            request, client_address = self.get_request()
        except ConnectionAbortedError:
            return  # this one is lost, and others may be waiting
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.close_request(request)
        except Exception:
            with contextlib.suppress(Exception):
                self.handle_error(request, client_address)
            self.close_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or refuse it when a limit is reached or no thread can start."""
        try:
            place = self._places.admit(request, client_address, self, named=not self.proxy_protocol)
            if place is not None:
                self._watchdog.start(self._watch_pause())
                self._workers.take(place)
            elif self.proxy_protocol and not self.trusts(client_address):
                self.close_request(request)
            else:
                self.refuse(request, TOO_MANY)
        except BaseException as error:
            place = self._places.find(request)
            if place is not None and not place.held:
                self._places.leave(request)
                self.refuse(request, "short of resources, please try again later")
            if not isinstance(error, (RuntimeError, MemoryError)):
                raise  # a signal handler's

    def _watch_pause(self) -> float:
        # Late by a quarter of the smallest limit is soon enough, and looking more often would cost more.
        limits = (self.command_timeout, self.handshake_timeout, self.login_timeout, LINGER)
        return max(0.01, min(limit for limit in limits if limit is not None) / 4)

    def _hold(self, place: Place) -> None:
        self.process_request_thread(place.socket, place.client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Hold a connection from its first octet to its last."""
        place = self.place_of(request)
        try:
            self.finish_request(request, client_address)
        except BaseException:
            with contextlib.suppress(BaseException):
                self.handle_error(request, place.client_address)
        finally:
            self._places.leave(request)
            with contextlib.suppress(BaseException):  # a thread would print it
                self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Learn, in an ``except`` block, of a failure without a handler to tell: PROXY, TLS, *on_new_connection*.

        *client_address* is the client's, as far as it is known: behind a proxy the proxy's own until the header has
        come.  It does nothing; override it to log `sys.exc_info()`.
        """

    def close_request(self, request: Any) -> None:
        """Close a socket, whatever the system says to that: nobody is left to be told."""
        with contextlib.suppress(OSError):
            super().close_request(request)

    # What a connection asks of its server.

    def place_of(self, request: socket.socket) -> Place:
        """Return the place of a live connection."""
        place = self._places.find(request)
        assert place is not None
        return place

    def count_client(self, place: Place, client_address: Any) -> bool:
        """Count a connection as one of its client's, or return False if a limit forbids it."""
        return self._places.name(place, client_address, self)

    def trusts(self, client_address: Any) -> bool:
        """Tell whether a PROXY header is believed of this socket address: of a UNIX socket's always."""
        if not isinstance(client_address, tuple):
            return True
        address = ip_address(client_address)
        return any(address in network for network in self.trusted_proxies)

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

    # Closing.

    @_operation
    def drain(self, timeout: float | None = None) -> bool:
        """Stop listening and let the sessions come to their own ends, at most for *timeout* seconds (None: no limit).

        For a server that another one takes over from: call it after `serve_forever` has returned, and `server_close`
        next, which ends what is left.  Connections that the system had accepted already are served too.  Returns
        whether all sessions have ended.  A handler's method that calls it waits for its own session.  A signal handler
        may call `server_close` meanwhile: then this returns False, and the server is closed before it does.
        """
        deadline = deadline_in(timeout)
        me = threading.get_ident()
        self.shutdown()
        self._wait_for_loop()
        self._accept_queue(deadline)
        self._stop_wanted = True  # serve_forever has nothing to serve any more
        self.socket.close()
        with self._changed:
            while len(self._places) and time.monotonic() < deadline and not self._interrupted.get(me):
                self._changed.wait(min(SIGNAL_PAUSE, max(0.0, deadline - time.monotonic())))
            return not (len(self._places) or self._interrupted.get(me))

    def _accept_queue(self, deadline: float) -> None:
        for _ in range(LONGEST_QUEUE):
            if time.monotonic() >= deadline or self.ending.closing:
                return
            try:
                self._accept_one()
            except OSError as error:
                if error.errno not in _SHORTAGE:  # it is empty, or closed
                    return

    def server_close(self) -> None:
        """End the service: refuse new connections, end idle sessions at once, wait for the others.

        A session is idle when it waits for a command and its client has taken all that was sent.  Within
        `shutdown_grace` seconds running commands may finish, and clients may read their replies; then the connections
        are cut.  A call to a handler cannot be interrupted and is always waited for: a commit completes, every maildrop
        is unlocked and no thread is left.  Calling it twice, from any thread or before `serve_forever` is fine.

        Called by a handler's method, it does not wait, as that session would wait for itself.  A signal handler may
        call it at any moment.  If that interrupts `serve_forever`, `handle_request`, `shutdown` or `drain`, the call
        returns at once; the interrupted method returns soon, and closes the server before it does.  If it interrupts
        `server_close` itself, it ends the grace of that.

        In a forked child it lets go of the child's copies of the sockets, and leaves the parent's sessions alone.
        """
        self.ending.closing = True
        me = threading.get_ident()
        if me in self._closers:
            self.ending.impatient = True
        elif me in self._interrupted:
            self._interrupted[me] = True
            self._knock()
        else:
            try:
                self._closers.add(me)
                self._close()
            finally:
                self._closers.discard(me)

    def _close(self) -> None:
        self._knock()
        self._wait_for_loop()
        self.socket.close()
        self.ending.grace_end = min(self.ending.grace_end, deadline_in(self.shutdown_grace))
        self._workers.dismiss()
        self._watchdog.look()
        if self._workers.one_calls:
            return
        with self._changed:
            while len(self._places) or not self._workers.all_done:
                self._changed.wait(SIGNAL_PAUSE)
        self._workers.join()
        self._watchdog.join()

    def __exit__(self, *error: object) -> None:
        # What a signal handler raised may have kept a method from saying that this thread has left it.
        self._interrupted.pop(threading.get_ident(), None)
        self._closers.discard(threading.get_ident())
        self.server_close()

    def _interrupts(self) -> bool:
        """Tell whether the caller has interrupted a method of the server, as a signal handler does, or is its hook."""
        me = threading.get_ident()
        return me in self._closers or me in self._interrupted


class _Door:
    """Where clients are waited for on a listening socket; knocking ends a wait, from any thread or signal handler."""

    def __init__(self, listener: socket.socket) -> None:
        self._inside, self._outside = socket.socketpair()
        self._outside.setblocking(False)
        try:
            self._selector = selectors.DefaultSelector()
        except BaseException:
            self._inside.close()
            self._outside.close()
            raise
        self._selector.register(self._inside, selectors.EVENT_READ)
        with contextlib.suppress(ValueError, OSError):  # it is closed
            self._selector.register(listener, selectors.EVENT_READ)

    def wait(self, seconds: float | None) -> bool:
        """Wait for a client, a knock or the end of *seconds*; return whether it was one of the first two."""
        deadline = deadline_in(seconds)
        while True:
            left = deadline - time.monotonic()
            found = self._selector.select(min(LONGEST_WAIT, left))
            if found or left <= LONGEST_WAIT:
                break
        if any(key.fileobj is self._inside for key, _ in found):
            self._inside.recv(READ_SIZE)
        return bool(found)

    def knock(self) -> None:
        with contextlib.suppress(OSError):
            self._outside.send(b"\0")

    def close(self) -> None:
        for part in (self._selector, self._inside, self._outside):
            part.close()


_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _begin_in_child() -> None:
    for server in list(_servers):
        server._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def _checked(name: str, value: object, pattern: re.Pattern[str], longest: int) -> str:
    if not (isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value)):
        raise ValueError(f"{name} cannot be {value!r}")
    return value
