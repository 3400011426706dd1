"""One client: octets between its socket and its session, over TLS or not, and how that ends."""

from __future__ import annotations

import contextlib
import enum
import math
import secrets
import socket
import socketserver
import ssl
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Any

from popart import system
from popart.errors import (
    BrokenMessageError,
    ClientGoneError,
    ClientTimeoutError,
    HandlerError,
    ReportableError,
    SessionError,
)
from popart.handler import SupportsMonitoring, ability, expect_handler, tell_end
from popart.monitor import Monitor
from popart.pacing import MESSAGE_STEPS, STEPS, Pace
from popart.places import TAKEN_SIZE, TOO_SLOW, Place, deadline_in, makes_progress
from popart.proxy import ProxyError, read_header
from popart.session import Session, State, explain
from popart.tls import RECORD_SIZE, TLS
from popart.wire import LineReader, Reply, cut, err

READ_SIZE = 4096
"""Octets asked of a socket at a time.  Kept small, as each waiting thread holds a buffer of this size."""

GATHER_SIZE = 32_768
"""Octets of replies that are kept before they are sent: less than a chunk of a message, which so is never copied."""

LINGER = 2.0
"""Seconds that a closing connection goes on reading, lest unread input turn the last reply into a reset; the most that
a reset waits for what was sent before; and what is left for an answer when the server's grace is over."""

TAKEN_PAUSE = 0.005
"""Seconds between two looks whether that has arrived."""

ROOM_PAUSE = 0.5
"""Seconds after which a thread that waits for a client to read looks up, to see whether it should go on waiting."""

RECORDS = 8
"""TLS records that are made before they are sent: a chunk of a message fills five."""

_NOWHERE = bytearray(65_536)  # where what nobody wants is read to, by all threads

TOO_MANY = "too many connections, please try again later"


class End(enum.Enum):
    """How a connection ends."""

    COMPLETE = enum.auto()
    """All that was sent arrives; over TLS a close_notify says that it was all."""

    CUT = enum.auto()
    """All that was sent arrives, and nothing says that it was all."""

    RESET = enum.auto()
    """In the midst of a reply, by a reset once what was sent before has arrived, or after `LINGER` seconds: some
    clients take a plain end, or over TLS one without close_notify, for the end of the message."""

    RESET_AT_ONCE = enum.auto()
    """The same, by a client that has gone or does not read."""

    AT_ONCE = enum.auto()
    """The client has gone, or was late."""


class Connection(socketserver.StreamRequestHandler):
    """One client: moves octets between its socket and its session."""

    server: Any
    """The `popart.Server`."""

    session_class: type[Session] = Session
    """What converses with the client: a subclass, as `popart.testing` has one, may listen in."""

    def setup(self) -> None:
        """Make no file objects: they would be one more layer of buffers, and are unusable after a timeout."""
        self._replies: list[bytes] = []
        self._gathered = 0
        self._sent_octets = 0
        self._incomplete = False  # true in the midst of a reply
        self._had_command = False
        self._came_by_tls = False
        self._tls: TLS | None = None
        self._early = b""  # what came with the last octets of the handshake
        self._monitor: Monitor | None = None
        self._login_deadline = math.inf
        self._ending = self.server.ending
        self._pace = Pace(self.server.pacer)
        self._steps = 0  # since the last look at it
        self._place: Place = self.server.place_of(self.request)

    def finish(self) -> None:
        """Count no more as busy.  The server closes the socket."""
        self._pace.rest()

    def handle(self) -> None:
        """Hold the whole connection."""
        system.send_small_writes_at_once(self.request)
        deadline = deadline_in(self.server.handshake_timeout)
        if self.server.proxy_protocol and not self._read_proxy_header(deadline):
            return
        if (context := self.server.tls_context) is not None:
            self._shake_hands(context, deadline)
        session = self._make_session()
        if session is not None:
            self._hold_session(session)

    # Before there is a session.

    def _read_proxy_header(self, deadline: float) -> bool:
        if not self.server.trusts(self.client_address):
            raise ProxyError("a client that is no trusted proxy")
        reading = read_header()
        wanted = next(reading)
        try:
            while True:
                wanted = reading.send(self._receive(deadline, wanted))
        except StopIteration as end:
            self._came_by_tls = end.value.tls
            if end.value.address is not None:
                self.client_address = end.value.address
        if self.server.count_client(self._place, self.client_address):
            return True
        self.server.refuse(self.request, TOO_MANY)
        return False

    def _shake_hands(self, context: ssl.SSLContext, deadline: float) -> None:
        tls = TLS(context)
        try:
            while not tls.shake_hands(self._receive(deadline)):
                self._write(tls.outgoing(), deadline)
            if tls.version != "TLSv1.3":  # the client waits for the end of the handshake
                self._write(tls.outgoing(), deadline)
            self._early = tls.decrypt(b"")
        except ssl.SSLError:
            self._send_alert(tls)
            raise
        self._tls = tls  # its session tickets go out with the greeting

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
        except BaseException as error:
            if not isinstance(error, HandlerError):  # what is no handler may be closed by others only
                tell_end(handler)
            self._turn_away(err("internal error, please try again later", "SYS/TEMP"))
            raise
        try:
            if ability(handler, SupportsMonitoring, "command_finished") is not None:
                self._monitor = Monitor(handler)
            return self.session_class(
                handler,
                implementation=server.implementation,
                expire=server.expire,
                banner=_make_banner(server.hostname) if server.apop else None,
                certificate=None if self._tls is None else self._tls.certificate(),
                allow_cleartext=server.allow_cleartext or self._came_by_tls or self._tls is not None,
                scram_decoy_key=server.scram_decoy_key,
                max_bad_commands=server.max_bad_commands,
                max_failed_logins=server.max_failed_logins,
                max_messages=server.max_messages,
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
            self._hang_up(End.COMPLETE)

    # The session.

    def _hold_session(self, session: Session) -> None:
        try:
            end = self._converse(session)
        except BaseException as error:
            is_clients = isinstance(error, (ClientGoneError, ClientTimeoutError))  # or a MemoryError, for one
            if not is_clients or (self._had_command and not self._ending.closing):
                session.report(error)
            end = End.RESET_AT_ONCE if self._incomplete else End.AT_ONCE
        finally:
            session.release()
            if self._monitor is not None:
                if session.in_exchange:
                    self._monitor.tell_command(session, "lost", self._sent_octets)
                self._monitor.tell_session(session, self._sent_octets)
            session.close()
        self._hang_up(end)

    def _converse(self, session: Session) -> End:
        """Exchange commands and replies until the session is over."""
        self._place.signed_in = lambda: session.state is State.TRANSACTION
        lines = LineReader()
        ending = self._ending
        self._login_deadline = deadline_in(self.server.login_timeout)
        self._send(session.greet())
        while not (session.over or ending.closing):
            self._flush()
            commands = self._next_commands(lines)
            pipelined = len(commands) > 1
            sent = self._sent_octets
            for line in commands:
                if session.is_quit(line):
                    self._flush()
                try:
                    if self._monitor is None:
                        self._send(session.respond(line))
                    else:
                        self._answer_monitored(session, line, self._monitor)
                except BrokenMessageError as broken:
                    with contextlib.suppress(SessionError):  # the handler has been told of a failure already
                        self._flush()
                    return End.RESET if broken.reset else End.CUT
                if session.over or ending.closing:
                    break
                self._steps += 1
                if pipelined and (self._steps >= STEPS or self._sent_octets > sent):
                    self._keep_pace()
                    sent = self._sent_octets
            if pipelined and not session.over:
                self._keep_pace()
        self._flush()
        return End.COMPLETE

    def _next_commands(self, lines: LineReader) -> list[bytes]:
        """Wait for command lines; return none when the server closes."""
        timeout = self.server.command_timeout
        deadline = min(deadline_in(timeout), self._login_limit())
        period = timeout if self._place.signed_in() else 0.0
        while not (commands := lines.feed(self._receive_octets(deadline, period))):
            if self._ending.closing:
                return []
            system.acknowledge(self.request)
            # Octets without a line end are work too.
            self._pace.begin()
            self._keep_pace()
        self._had_command = True
        if len(commands) > 1:
            self._pace.begin()
        return commands

    def _receive_octets(self, deadline: float, period: float) -> bytes:
        """Return what the client says next, without TLS; it may be nothing yet.

        :raises ClientGoneError: it will say no more.
        """
        if self._early:
            octets, self._early = self._early, b""
            return octets
        if self._tls is not None and self._tls.ended:
            raise ClientGoneError("the client left without QUIT")
        found = None
        if self._pace.counts:
            with self._place.until(deadline, period):
                found = system.receive_at_once(self.request, READ_SIZE)
        if found is None:
            self._pace.rest()
            found = self._receive(deadline, READ_SIZE, period)
        if self._ending.closing:
            return b""  # what has come meanwhile is not begun
        if not found:
            raise ClientGoneError("the client left without QUIT")
        return found if self._tls is None else self._decrypt(self._tls, found)

    def _decrypt(self, tls: TLS, octets: bytes) -> bytes:
        try:
            found = tls.decrypt(octets)
        except ssl.SSLError as error:
            self._send_alert(tls)
            raise ClientGoneError("the connection broke") from error
        if not found and (answer := tls.outgoing()):
            self._write(answer)  # TLS has something to say of its own
        return found

    def _send_alert(self, tls: TLS) -> None:
        with contextlib.suppress(OSError):
            system.send_at_once(self.request, tls.outgoing())

    def _receive(self, deadline: float, size: int = READ_SIZE, period: float = 0.0) -> bytes:
        """Return octets as they are on the wire; none when the client has ended them, or the server closes."""
        with self._place.until(deadline, period, idle=True):
            return b"" if self._ending.closing else self.request.recv(size)

    def _keep_pace(self) -> None:
        self._steps = 0
        seconds = self._pace.pause()
        if seconds:
            self._flush()
            self._place.pause(min(seconds, self._login_limit() - time.monotonic()))

    def _answer_monitored(self, session: Session, line: bytes, monitor: Monitor) -> None:
        if not session.in_exchange:
            monitor.begin_command(session.verb(line), self._sent_octets)
        outcome = "lost"
        try:
            status = self._send(session.respond(line))
            self._flush()
            outcome = status.partition(b" ")[0].strip().decode()
        finally:
            if not session.in_exchange:
                monitor.tell_command(session, outcome, self._sent_octets + self._gathered)

    # Sending.

    def _send(self, reply: Reply) -> bytes:
        """Send a reply, or keep it until more is there or the thread would wait for the client: see `_flush`.

        Returns its status line, or that of the ``-ERR`` that took the place of a message which was found broken before
        any of it had left.

        :raises BrokenMessageError: the message is broken; what was read before is kept or sent.
        """
        message = reply.message
        try:
            if reply.delay:
                self._flush()
                self._place.pause(min(reply.delay, self._login_limit() - time.monotonic()))
            if message is None:
                self._keep(reply.head())
                return reply.status
            return self._send_message(reply.status, message)
        finally:
            if message is not None:
                message.close()

    def _send_message(self, status: bytes, message: Iterator[bytes]) -> bytes:
        kept, gathered, sent = len(self._replies), self._gathered, self._sent_octets
        self._steps += MESSAGE_STEPS
        self._incomplete = True
        try:
            self._keep(status)
            for octets in message:
                if self._ending.grace_over:
                    raise BrokenMessageError("the server has closed")
                self._keep(octets)
        except BrokenMessageError as broken:
            if broken.answer is None or self._sent_octets != sent:
                raise
            status = broken.answer
            del self._replies[kept:]
            self._gathered = gathered
            self._keep(status)
        self._incomplete = False
        return status

    def _keep(self, octets: bytes) -> None:
        self._replies.append(octets)
        self._gathered += len(octets)
        if self._gathered >= GATHER_SIZE:
            self._flush()

    def _flush(self) -> None:
        if not self._replies:
            return
        octets = b"".join(self._replies)
        before, self._incomplete = self._incomplete, True
        replies, self._replies = self._replies, []
        self._gathered = 0
        self._sent_octets += len(octets)
        if self._tls is None:
            self._write(octets)
        else:
            # Where a message goes on no end needs care, and none is harmed by it.
            ends = [*accumulate(map(len, replies))]
            self._write_records(self._tls, cut(octets, ends, RECORD_SIZE))
        self._incomplete = before

    def _write_records(self, tls: TLS, pieces: Iterator[memoryview]) -> None:
        while group := list(islice(pieces, RECORDS)):
            self._write(b"".join(map(tls.encrypt, group)))

    def _write(self, octets: bytes, deadline: float = math.inf) -> None:
        """Hand octets to the system, as the client makes room for them.

        :raises ClientTimeoutError: it did not take as much as it must in each *timeout*, or the server has closed.
        """
        with self._place.until(math.inf):
            sent = system.send_at_once(self.request, octets)
            if sent < len(octets):
                self._push(memoryview(octets)[sent:], min(deadline, self._login_limit()))

    def _push(self, octets: memoryview, limit: float) -> None:
        after_grace = self._ending.grace_over
        timeout = LINGER if after_grace else self.server.command_timeout
        deadline = deadline_in(timeout)
        taken = 0
        queued = system.unsent(self.request)
        while octets:
            system.wait_for_room(self.request, min(ROOM_PAUSE, timeout / 4))
            if queued is not None:
                left = system.unsent(self.request) or 0
                taken += queued - left
                if not left:
                    taken = max(taken, TAKEN_SIZE)
            if makes_progress(self.request, taken):
                taken = 0
                deadline = deadline_in(timeout)
            if time.monotonic() >= min(deadline, limit):
                raise ClientTimeoutError(TOO_SLOW)
            if self._place.cut or (self._ending.grace_over and not after_grace):
                raise ClientTimeoutError("the server has closed")
            sent = system.send_at_once(self.request, octets)
            octets = octets[sent:]
            queued = system.unsent(self.request)
            if queued is None:
                taken += sent  # it may have been taken, or not

    def _login_limit(self) -> float:
        """Return when the AUTHORIZATION state must be over: never, when it is."""
        return math.inf if self._place.signed_in() else self._login_deadline

    # The end.

    def _hang_up(self, end: End) -> None:
        if end is End.RESET:
            self._wait_until_taken()
        if end in (End.RESET, End.RESET_AT_ONCE):
            system.reset(self.request)
        if end not in (End.COMPLETE, End.CUT):
            return
        with contextlib.suppress(SessionError):
            if end is End.COMPLETE and self._tls is not None:
                self._write(self._tls.close_notify())
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_WR)
            deadline = deadline_in(LINGER)
            while True:
                with self._place.until(deadline, LINGER, idle=True):
                    if not self.request.recv_into(_NOWHERE):
                        return
                self._pace.begin()  # to read what nobody wants is work too
                self._keep_pace()
                if time.monotonic() >= deadline and not system.unsent(self.request):
                    return

    def _wait_until_taken(self) -> None:
        # No system tells when that is so.
        end = time.monotonic() + LINGER
        while system.unsent(self.request) and time.monotonic() < end:
            time.sleep(TAKEN_PAUSE)


def _make_banner(hostname: str) -> str:
    """Make APOP's timestamp (RFC 1939 section 7): process and clock would repeat, random digits do not."""
    return f"<{secrets.randbits(64)}.{secrets.randbits(64)}@{hostname}>"
