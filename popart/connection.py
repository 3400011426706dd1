"""One client, from its first octet to its last: the PROXY header, TLS, its handler, and commands and their replies."""

from __future__ import annotations

import contextlib
import secrets
import socket
import socketserver
from collections.abc import Callable
from functools import partial
from typing import Any

from popart import system
from popart.addresses import is_trusted
from popart.client_socket import READ_SIZE, End, Stream
from popart.command_deadlines import Place, deadline_in
from popart.command_lines import LineReader
from popart.error_replies import INTERNAL, explain
from popart.errors import (
    BrokenMessageError,
    ClientGoneError,
    ClientTimeoutError,
    HandlerError,
    ReportableError,
    SessionError,
)
from popart.fairness import MESSAGE_STEPS, STEPS, Pace
from popart.handler import Handler, SupportsMonitoring
from popart.handler_calls import ability, call_close, expect_handler
from popart.monitor import Monitor
from popart.processor import Processor
from popart.proxy_header import ProxyError, read_header
from popart.replies import Reply, err
from popart.reply_sending import Sender
from popart.session import Session, State, is_quit
from popart.session_settings import SessionSettings

TOO_MANY = "too many connections, please try again later"


class Connection(socketserver.StreamRequestHandler):
    """One client: moves octets between its socket and its session."""

    server: Any
    """The `popart.Server`."""

    session_class: type[Session] = Session
    """The class that talks with the client.  A subclass, such as that of `popart.testing`, may listen in."""

    def setup(self) -> None:
        """Make no file objects: they would be one more layer of buffers, and do not work after a timeout."""
        self._place: Place = self.server._places.find(self.request)
        self._pace = Pace(self.server._pacer)
        self._stream = Stream(self._place, self._pace, self.server.command_timeout)
        self._sender = Sender(self._stream, self._place)
        self._monitor: Monitor | None = None
        self._closing = self._place.closing
        self._came_by_tls = False
        self._had_command = False
        self._processor: Processor | None = self.server._processor
        if self._processor is not None:
            self._processor.stay()
        self._steps = 0  # since the last look at the pace

    def finish(self) -> None:
        """No longer count as busy, and let go of the session.  The server closes the socket."""
        self._pace.end()
        self._place.signed_in = lambda: False  # a spare thread may keep the place

    def handle(self) -> None:
        """Serve the connection from its first octet to its last."""
        system.send_small_writes_at_once(self.request)
        deadline = deadline_in(self.server.handshake_timeout)
        if self.server.proxy_protocol and not self._read_proxy_header(deadline):
            return
        if (context := self.server.tls_context) is not None:
            self._stream.shake_hands(context, deadline)
        session = self._make_session()
        if session is not None:
            self._hold_session(session)

    # Before there is a session.

    def _read_proxy_header(self, deadline: float) -> bool:
        if not is_trusted(self.client_address, self.server.trusted_proxies):
            raise ProxyError("a client that is no trusted proxy")
        reading = read_header()
        wanted = next(reading)
        try:
            while True:
                wanted = reading.send(self._stream.receive(deadline, wanted))
        except StopIteration as end:
            self._came_by_tls = end.value.tls
            if end.value.address is not None:
                self.client_address: Any = end.value.address
        if self.server._places.count_client(self._place, self.client_address):
            return True
        if self.server.tls_context is None:
            refuse(self.request, TOO_MANY)
        return False

    def _make_session(self) -> Session | None:
        try:
            handler = self._ask_for_handler()
        except BaseException:
            self._turn_away(INTERNAL)
            raise
        if isinstance(handler, Reply):
            self._turn_away(handler)
            return None
        try:
            if ability(handler, SupportsMonitoring, "command_finished") is not None:
                self._monitor = Monitor(handler)
            return self.session_class(handler, self._make_settings())
        except BaseException as error:  # such as one from a property of the handler
            answer = explain(handler, error)
            call_close(handler, "close", handler)
            self._turn_away(answer)
            return None

    def _ask_for_handler(self) -> Handler | Reply:
        """Return what the factory made, or the answer to a client that it turns away."""
        handler = None
        try:
            handler = self.server.on_new_connection(self.client_address)
            if handler is None:
                return err("connection refused")
            return expect_handler(handler)
        except ReportableError as refusal:
            return err(refusal.text, refusal.code)
        except HandlerError:  # an object that is not a handler is not popart's to close
            raise
        except BaseException:
            call_close(handler, "close", handler)
            raise

    def _make_settings(self) -> SessionSettings:
        server, tls = self.server, self._stream.tls
        # APOP's timestamp (RFC 1939 section 7).  Process number and clock would repeat; random digits do not.
        banner = f"<{secrets.randbits(64)}.{secrets.randbits(64)}@{server.hostname}>" if server.apop else None
        return SessionSettings(
            greeting=server.greeting,
            implementation=server.implementation,
            expire=server.expire,
            banner=banner,
            certificate=None if tls is None else tls.certificate(),
            allow_cleartext=server.allow_cleartext or self._came_by_tls or tls is not None,
            scram_decoy_key=server.scram_decoy_key,
            max_bad_commands=server.max_bad_commands,
            max_failed_logins=server.max_failed_logins,
            max_messages=server.max_messages,
        )

    def _turn_away(self, answer: Reply) -> None:
        with contextlib.suppress(SessionError):
            self._sender.send(answer)
            self._sender.flush()
            self._stream.hang_up(End.COMPLETE)

    # The session.

    def _hold_session(self, session: Session) -> None:
        try:
            end = self._converse(session)
        except BaseException as error:
            is_clients = isinstance(error, (ClientGoneError, ClientTimeoutError))  # and not, say, a MemoryError
            if not is_clients or (self._had_command and not self._closing.begun):
                session.report(error)
            end = End.RESET_AT_ONCE if self._sender.incomplete else End.AT_ONCE
        finally:
            if self._monitor is not None:
                session.release()  # before anybody looks at figures: the user's next session may wait for the lock
                if session.in_exchange:
                    self._monitor.tell_command("lost", self._sender.octets)
                self._monitor.tell_session(self._sender.octets)
            session.close()
        self._stream.hang_up(end)

    def _converse(self, session: Session) -> End:
        """Exchange commands and replies until the session is over."""
        self._place.signed_in = lambda: session.state is State.TRANSACTION
        self._place.login_deadline = deadline_in(self.server.login_timeout)
        lines = LineReader()
        self._pace.skip()  # TLS's handshake, and what the factory did
        self._sender.send(session.greet())
        while not (session.over or self._closing.begun):
            self._sender.flush()
            try:
                self._answer(session, self._next_commands(lines))
            except BrokenMessageError as broken:
                with contextlib.suppress(SessionError):  # the handler has been told of a failure already
                    self._sender.flush()
                return End.RESET if broken.reset else End.CUT
        self._sender.flush()
        return End.COMPLETE

    def _next_commands(self, lines: LineReader) -> list[bytes]:
        """Wait for command lines; return none when the server closes."""
        deadline, period = self._place.command_limit(self.server.command_timeout)
        while not (commands := lines.feed(self._stream.read(deadline, period))):
            if self._closing.begun:
                return []
            system.acknowledge(self.request)
            # Octets without a line end are work too.
            self._pace.begin()
            self._keep_pace()
        self._had_command = True
        if len(commands) > 1:
            self._pace.begin()
        elif seconds := self._pace.turn():
            self._place.pause(seconds)
            if self._closing.begun:
                return []
        return commands

    def _answer(self, session: Session, commands: list[bytes]) -> None:
        sender = self._sender
        respond = session.respond if self._place.signed_in() else partial(self._respond_before_sign_in, session)
        pipelined = len(commands) > 1
        sent = sender.octets
        for line in commands:
            if is_quit(line):
                sender.flush()
            if self._closing.begun:  # while the session paused or sent
                return
            if self._monitor is None:
                reply = respond(line)
                self._steps += 1 if reply.lines is None and reply.message is None else MESSAGE_STEPS
                status = sender.send(reply)
            else:
                status = self._answer_monitored(session, line, respond, self._monitor)
            if not pipelined and status.startswith(b"-"):
                self._pace.refused()
            if session.over:
                return
            if pipelined and (self._steps >= STEPS or sender.octets > sent):
                self._keep_pace()
                sent = sender.octets
        if pipelined:
            self._keep_pace()

    def _respond_before_sign_in(self, session: Session, line: bytes) -> Reply:
        signed_in = self._place.signed_in
        if signed_in():  # by a command that came together with this one
            return session.respond(line)
        if self._processor is None:
            reply = session.respond(line)
        else:
            reply = self._processor.sign_in(lambda: session.respond(line), signed_in)
        if signed_in():
            self._pace.skip()  # a password's hash, and the listing of a large maildrop
        return reply

    def _answer_monitored(
        self, session: Session, line: bytes, respond: Callable[[bytes], Reply], monitor: Monitor
    ) -> bytes:
        sender = self._sender
        if not session.in_exchange:
            monitor.begin_command(session.verb(line), sender.octets)
        outcome = "lost"
        try:
            status = sender.send(respond(line))
            sender.flush()
            outcome = status.partition(b" ")[0].strip().decode()
        finally:
            if not session.in_exchange:
                monitor.tell_command(outcome, sender.octets_in_all)
        return status

    def _keep_pace(self) -> None:
        self._steps = 0
        seconds = self._pace.pause()
        if seconds:
            self._sender.flush()
            self._place.pause(seconds)


def refuse(request: socket.socket, text: str) -> None:
    """Refuse the client without waiting.  The accepting thread must not wait, and the client must not take a place."""
    with contextlib.suppress(OSError):
        system.send_at_once(request, err(text, "SYS/TEMP").status)
        system.receive_at_once(request, READ_SIZE)  # unread input would turn the reply into a reset
