"""The server: its options, its listening socket, the thread that each connection is given, and all its threads.

The threads of a server::

    who                        runs                                    starts          ends
    -------------------------  --------------------------------------  --------------  ---------------------------------
    the caller's               serve_forever or handle_request: they   -               shutdown, server_close
                               accept, and find a place and a worker
    the watchdog               Watchdog: cuts who is late, wakes the   with the first  when the server closes and no
                               idle ones when the server closes        connection      connection is left
    a worker per connection    Connection, Session, the handler        when needed     a second after its connection, or
                                                                                       at once when the server closes
    any, or a signal handler   shutdown, drain, server_close           -               -

What they share, and what guards it.  "The lock" is ``_lock``.  It is held for moments, never while a thread waits for a
handler or a client.  The thread that has it may take it again::

    what                               written by                           guard
    ---------------------------------  -----------------------------------  --------------------------------------------
    Places, Workers: their lists       accepting and worker threads         the lock; len(), find() and one_calls are
                                                                            single reads
    Place: what it waits for           its worker                           none: single values, read by the watchdog
    Place: its cut, its wake-up        the watchdog, whoever makes room     the lock
    Closing                            server_close                         none: a signal handler can take no lock
    _stop_wanted                       shutdown, the last loop's end        none, for the same reason
    _doors, _loops, _operations,       the threads in these methods         none: single operations of a set or a dict
    ..._threads
    Pacer: who is busy                 workers                              a lock of its own
    Processor: slow sign-ins           workers                              a lock of its own

``_changed`` is notified when a connection has gone, a worker has ended, or `serve_forever` has returned.  A thread that
waits for that also looks every `SIGNAL_PAUSE` seconds, because a signal handler cannot notify.  A forked child makes
everything here anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from popart import options, system
from popart.addresses import IPNetwork, ip_address, is_trusted
from popart.client_socket import LAST_READ_SECONDS
from popart.command_deadlines import Place, Watchdog
from popart.connection import TOO_MANY, Connection, refuse
from popart.connection_limits import Places
from popart.fairness import Pacer
from popart.handler import Handler
from popart.options import LOOPBACK, SocketOptions
from popart.processor import Processor
from popart.server_closing import ClosingServer
from popart.workers import Workers

AnyServer = TypeVar("AnyServer", bound="Server")


class Server(ClosingServer):
    """A POP3 server on one listening socket, used like any `socketserver` server.

    popart calls *on_new_connection* with the client's socket address, in the connection's own thread, after the TLS
    handshake.  That function returns the connection's `Handler`, or None to turn the client away.  If it raises a
    `ReportableError`, the client reads that.  Any other exception goes to `handle_error`.

    *hostname* is the name in APOP's timestamp (default: this machine's).  *timeout* is how many seconds a client may
    take to send a command, and to read each 128 KiB of what was sent, or the rest of it.  After that popart ends the
    session without a reply (RFC 1939 section 3).  *greeting* is the text that clients read first, after ``+OK``.  It is
    at most 206 characters of ASCII, with single spaces between words.  It has no ``<``, ``>`` or ``@``, which belong to
    the timestamp, and does not begin with ``[``.  CAPA announces *implementation* and *expire* (RFC 2449 sections 6.9
    and 6.7).  *expire* is ``NEVER`` or a number of days, and ``USER`` may follow after a space.

    With *apop* the greeting holds a timestamp and APOP is accepted (RFC 1939 section 7).  With *ssl_context* each
    connection is TLS from its first octet; ``server.socket = context.wrap_socket(server.socket, server_side=True)``
    does the same.  To renew a certificate, assign a new context to the attribute ``ssl_context``: new connections take
    it.  With *require_tls* the server refuses to listen without TLS, except on loopback or a UNIX socket.  If
    *allow_cleartext* is False, popart neither announces nor accepts anything that shows a secret on a connection
    without TLS (RFC 5034 section 4).  That is USER and PASS, AUTH PLAIN, LOGIN, XOAUTH2 and OAUTHBEARER, and the
    handler's own mechanisms.  Behind a proxy, a connection counts as TLS if a PROXY header of version 2 says so.

    SCRAM-SHA-256 derives the salts of users who do not exist from *scram_decoy_key*.  By default each process makes its
    own at random.  Give the same secret to all processes that serve the same users, and never change it.  Otherwise
    somebody who compares salts finds out who exists.  32 random octets are good; fewer than 16 are not.

    With *proxy_protocol* each connection must begin with a PROXY header, version 1 or 2, before TLS and within
    `handshake_timeout`.  *on_new_connection* and the limit per peer see the address in it.  popart believes the header
    from clients of a UNIX socket and from *trusted_proxies*, addresses or networks (default: loopback).  It closes a
    connection without a word if the header is missing or bad, or comes from elsewhere.  With *reuse_port* several
    processes may listen on one port, and the system shares out new connections (SO_REUSEPORT; macOS does not share).

    With *processor* the threads of all sessions stay on one processor of the machine, and so does `serve_forever`: the
    one with this number, or with ``"current"`` the one on which you make the server.  Many sessions at once then take
    about half the processor time (the performance page says when).  Slow sign-ins are an exception: after one that
    takes a millisecond of processor time or more, the next ones are spread over all processors of the process.  Threads
    and processes that a handler starts inherit the one processor.  Where the system has no such call
    (`os.sched_setaffinity`) the option does nothing, and so does ``"current"`` where there is no ``/proc``.

    A connection has a thread to itself, but that thread may have served others before: data that an application keeps
    in thread-local variables stays there.

    :raises ValueError: a *server_address* that is not a host and a port, a *hostname*, *greeting*, *implementation* or
        *expire* that is not valid on the wire, a *timeout* below `minimum_timeout` or above a day, a client's
        *ssl_context*, an *on_new_connection* that cannot be called, *trusted_proxies* that are not networks, a listener
        that *require_tls* refuses, *reuse_port* on a system without SO_REUSEPORT, a *scram_decoy_key* that is empty or
        not bytes, a *processor* that the process may not use, a limit that is not a number.
    :raises OSError: the address cannot be bound.
    """

    allow_reuse_address: bool = system.REUSE_ADDRESS
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
        greeting: str = "POP3 server ready",
        implementation: str = "popart",
        expire: str = "NEVER",
        apop: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        require_tls: bool = False,
        allow_cleartext: bool = True,
        scram_decoy_key: bytes | None = None,
        processor: int | Literal["current"] | None = None,
        proxy_protocol: bool = False,
        trusted_proxies: Iterable[str] = LOOPBACK,
        reuse_port: bool = False,
        bind_and_activate: bool = True,
    ) -> None:
        if self.address_family == socket.AF_INET and options.is_ipv6(server_address):
            self.address_family: int = socket.AF_INET6
        options.check_factory(on_new_connection)
        self.on_new_connection: Callable[[Any], Handler | None] = on_new_connection
        self._check_limits()
        self.hostname: str = options.choose_hostname(hostname)
        self.command_timeout: float = options.check_timeout(timeout, self.minimum_timeout)
        self.greeting: str = options.check_text("greeting", greeting)
        self.implementation: str = options.check_text("implementation", implementation)
        self.expire: str = options.check_text("expire", expire)
        self.apop = apop
        self.ssl_context: ssl.SSLContext | None = options.check_context(ssl_context)
        self.require_tls = require_tls
        self.allow_cleartext = allow_cleartext
        self.scram_decoy_key: bytes | None = options.check_decoy_key(scram_decoy_key)
        self.processor: int | None = options.choose_processor(processor)
        self.proxy_protocol = proxy_protocol
        self.trusted_proxies: list[IPNetwork] = options.check_proxies(trusted_proxies)
        self.reuse_port: bool = options.check_reuse_port(reuse_port)
        self._begin()
        super().__init__(server_address, Connection, bind_and_activate)

    def _begin(self) -> None:
        """Make the parts of a running server: at the start, and again in a forked child, where they are missing."""
        super()._begin()
        self._pacer = Pacer()
        self._processor = None if self.processor is None else Processor(self.processor)
        self._places = Places(self, self._closing, self._lock, self._changed)
        self._workers = Workers(self._hold, self._lock, self._changed, daemon=self.daemon_threads)
        self._watchdog = Watchdog(self._places.all, self._closing, self._lock, self._watch_pause)
        _servers.add(self)

    def _begin_in_child(self) -> None:
        """Close the copies that a fork made: the parent's sessions and threads go on in the parent."""
        # A child that was forked in serve_forever, by a hook, would accept on a socket that its parent closes.
        within_loop = threading.current_thread() in self._loops
        for place in self._places.all():
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
        **arguments: options.Unpack[SocketOptions],
    ) -> AnyServer:
        """Make a server of a stream socket that is already bound, and may be listening: TCP or UNIX.

        Such sockets come from systemd or from a parent process.  The server closes *listener* when it closes, but you
        must remove the path of a UNIX socket.  A connection to a UNIX socket cannot be reset: if a message breaks off,
        its client reads an error only if some of what the client sent was left unread.  *arguments* are the keyword
        arguments of `Server` except *reuse_port*, for which it is too late.

        :raises ValueError: *listener* is not a bound stream socket, TCP or UNIX, or an argument is wrong, as for
            `Server`.
        """
        address = system.bound_address(listener)
        if address is None:
            raise ValueError(f"listener must be a bound stream socket, not {listener!r}")
        server = cls(("", 0), on_new_connection, **arguments, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.address_family = listener.family
        server.server_address = address
        if system.is_listening(listener):
            server._check_tls()
        else:
            server.server_activate()
        return server

    def server_bind(self) -> None:
        """Bind the socket, to a port that others may share with *reuse_port*."""
        if self.reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        if self.address_family == socket.AF_INET6:
            system.take_both_families(self.socket)
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

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context that makes connections TLS: ``ssl_context``, or that of a wrapped ``server.socket``."""
        if self.ssl_context is not None:
            return self.ssl_context
        return self.socket.context if isinstance(self.socket, ssl.SSLSocket) else None

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept connections until `shutdown`, `drain` or `server_close`.  Return at once if one was called before.

        It calls ``service_actions`` every *poll_interval* seconds, and whenever it has accepted all waiting
        connections, or a hundred.  If there is a *processor*, it runs there.
        """
        with contextlib.nullcontext() if self._processor is None else self._processor.borrowed():
            super().serve_forever(poll_interval)

    # Connections.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or refuse it when a limit is reached or no thread can start."""
        try:
            place = self._places.admit(request, client_address, address_known=not self.proxy_protocol)
            if place is not None:
                self._watchdog.start()
                self._workers.take(place)
            elif self.proxy_protocol and not is_trusted(client_address, self.trusted_proxies):
                self.close_request(request)
            else:
                self._refuse(request, "the server closes" if self._closing.begun else TOO_MANY)
        except BaseException as error:
            place = self._places.find(request)
            if place is not None and self._workers.withdraw(place):
                self._places.leave(request)
                self._refuse(request, "short of resources, please try again later")
            # A lack of threads or memory has been answered.  Other exceptions, such as a signal handler's or a hook's,
            # go on, to `handle_error` if they are an `Exception`.
            if not isinstance(error, (RuntimeError, MemoryError)):
                raise

    def _watch_pause(self) -> float:
        # Late by a quarter of the smallest limit is soon enough, and looking more often would cost more.
        limits = (self.command_timeout, self.handshake_timeout, self.login_timeout, LAST_READ_SECONDS)
        return max(0.01, min(limit for limit in limits if limit is not None) / 4)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection from its first octet to its last.  The server closes it, whatever an override does."""
        self.finish_request(request, client_address)

    def _hold(self, place: Place) -> None:
        request = place.socket
        try:
            self.process_request_thread(request, place.client_address)
        except BaseException:
            with contextlib.suppress(BaseException):
                self.handle_error(request, place.client_address)
        finally:
            self._places.leave(request)  # first: once it is closed, another connection may have its descriptor
            with contextlib.suppress(BaseException):  # a thread would print it
                if place.resets:
                    self.close_request(request)
                else:
                    self.shutdown_request(request)

    def _refuse(self, request: socket.socket, text: str) -> None:
        if self.tls_context is None:
            refuse(request, text)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Learn, in an ``except`` block, of a failure that no handler is told of: PROXY, TLS, *on_new_connection*.

        *client_address* is the client's address, or the proxy's until the PROXY header has come.  This method does
        nothing; override it to log `sys.exc_info`.
        """

    def close_request(self, request: Any) -> None:
        """Close a socket and ignore the system's errors: nobody is left to be told."""
        with contextlib.suppress(OSError):
            super().close_request(request)


_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _begin_in_child() -> None:
    for server in list(_servers):
        server._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
