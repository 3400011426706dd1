"""The handler on the bench: it is served on loopback, and clients come to it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field

from popart.server import Server
from popart.testing.check.client import (
    BlockedError,
    Client,
    Credentials,
    LateError,
    LockedError,
    StopError,
    longest_wait,
)
from popart.testing.check.explanations import explain_block
from popart.testing.check.output import Output
from popart.testing.check.recorder import Recorder, WatchedHandler
from popart.testing.check.report import CheckError, Report

STEP_SECONDS = 60.0
"""After this long a check reads no further message: there may be very many."""

UNLOCK_SECONDS = 1.0
"""How long after a session its lock may be held: a database may notice a moment later that its connection has gone."""


class _Server(Server):
    # A thread whose handler blocks must not keep the program from ending.
    daemon_threads = True
    max_failed_logins = None


@dataclass(frozen=True)
class Options:
    """What the caller of the check has asked for."""

    credentials: Credentials
    any_secret: bool
    """True if the handler lets in anybody."""
    is_token: bool
    apop: bool
    other: Credentials | None
    """A second user."""
    delete: bool
    break_backend: Callable[[], AbstractContextManager[object]] | None
    patience: float


@dataclass
class Snapshot:
    """A maildrop as one session saw it."""

    ids: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of the messages that were read, by their ids."""

    exact: set[str] = field(default_factory=set)
    """The ids of the messages whose sizes were found to be right."""

    def add(self, unique_id: str, size: str, message: bytes) -> None:
        """Add a message that was read."""
        self.digests[unique_id] = digest(message)
        if int(size) == len(message):
            self.exact.add(unique_id)

    def differing(self, later: Snapshot) -> list[int]:
        """Return the numbers of the messages that have another size or content in a later snapshot."""
        sizes = dict(zip(later.ids, later.sizes, strict=True))
        both_read = self.digests.keys() & later.digests.keys()
        return [
            number
            for number, (unique_id, size) in enumerate(zip(self.ids, self.sizes, strict=True), 1)
            if sizes.get(unique_id, size) != size
            or (unique_id in both_read and self.digests[unique_id] != later.digests[unique_id])
        ]

    def copied(self, later: Snapshot) -> int:
        """Return how many more messages a later snapshot has if each is a copy, else 0: they may be new mail."""
        new = set(later.ids) - set(self.ids)
        known = set(self.digests.values())
        return len(new) if all(later.digests.get(unique_id) in known for unique_id in new) else 0


class Visitor(Client):
    """A client, and the session of the handler that it talks to."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.port, bench.options.patience, bench.is_blocked)
        sessions = bench.recorder.sessions
        self.session: WatchedHandler | None = sessions[-1] if sessions else None
        self._bench = bench

    def wait_until_over(self) -> None:
        """Wait until the handler has been called for the last time."""
        if self.session is not None:
            self._bench.wait(self.session.over.wait, "the session does not end")

    def leave(self, end: str = "an end without QUIT") -> None:
        """Leave without a word, and wait for the end of the session.  *end* is what a report calls it."""
        self.close()
        self.wait_until_over()
        self._bench.last_end = end

    def part(self) -> None:
        """Say QUIT, if the session goes on, and wait for the end of the session."""
        self.is_answered("QUIT")
        self.leave("QUIT")

    def quit(self) -> None:
        """Say QUIT, which must succeed."""
        self.ok("QUIT")
        self.leave("QUIT")

    def is_answered(self, command: str) -> bool:
        """Return whether the session goes on."""
        try:
            self.ok(command)
        except StopError:
            return False
        return True

    def read(self, number: int) -> bytes:
        """Return a message, or in its place why it cannot be read."""
        try:
            return self.data(f"RETR {number}")
        except StopError as stop:
            self.ok("NOOP")
            return f"{stop}".encode()

    def look(self) -> Snapshot:
        """List the maildrop."""
        return Snapshot(self.listing("UIDL"), self.listing("LIST"))

    def look_into(self, most: int) -> Snapshot:
        """List the maildrop, and read those of its first *most* messages that can be read."""
        found = self.look()
        for number, (unique_id, size) in enumerate(zip(found.ids[:most], found.sizes[:most], strict=True), 1):
            if self._bench.is_late:
                break
            try:
                found.add(unique_id, size, self.data(f"RETR {number}"))
            except StopError:
                if not self.is_answered("NOOP"):
                    break
        return found


class Bench:
    """What the checks share."""

    def __init__(self, recorder: Recorder, output: Output, options: Options) -> None:
        self.recorder = recorder
        self.output = output
        self.report: Report = recorder.report
        self.options = options
        self.credentials: Credentials = options.credentials
        self.takes_user: bool = False
        """True if USER and PASS are offered."""

        self.mechanisms: list[str] = []
        """The mechanisms of AUTH that are offered."""

        self.first: Snapshot = Snapshot()
        """The maildrop as the first session saw it."""

        self.second: Snapshot = Snapshot()
        """The second user's maildrop, as it was when nobody else was there."""

        self.small_sizes: int = 0
        """Messages that are longer than announced."""

        self.has_lock: bool = True
        """False once a second session was let in that should have been refused."""

        self.stopped: bool = False
        """True if no more can be checked."""

        self.last_end: str = "QUIT"
        """How the last session ended."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the handler.  At the end the server closes, which ends the open sessions."""
        self._server = _Server(("127.0.0.1", 0), self.recorder, apop=self.options.apop)
        self.port: int = self._server.server_address[1]
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        except BlockedError:
            threading.Thread(target=self._server.server_close, daemon=True).start()
            raise
        except BaseException:
            with suppress(BlockedError, LateError):
                self.close_server()
            raise
        self.close_server()
        thread.join()

    def close_server(self) -> None:
        """Close the server.  You may call it again.

        :raises BlockedError: it waits for a handler that blocks.
        """
        closed = threading.Event()

        def close() -> None:
            self._server.server_close()
            closed.set()

        threading.Thread(target=close, daemon=True).start()
        self.wait(closed.wait, "the server does not close")

    def is_blocked(self) -> bool:
        """Return whether a call of the handler takes longer than it may."""
        return bool(self.recorder.slow(self.options.patience))

    def wait(self, wait_for: Callable[[float], bool], missing: str) -> None:
        """Wait for an event.  *missing* says what is waited for.

        :raises BlockedError: a call of the handler is slow.
        :raises LateError: no call is slow, but it takes too long.
        """
        deadline = time.monotonic() + longest_wait(self.options.patience)
        while not wait_for(self.options.patience / 10):
            if self.is_blocked():
                raise BlockedError(missing)
            if time.monotonic() > deadline:
                raise LateError(missing)

    @contextmanager
    def nobody_reads_output(self) -> Iterator[None]:
        """Let handlers print into nothing, as when nobody reads the server's output any more, and report what fails."""
        try:
            with self.recorder.excusing() as failures, self.output.broken():
                yield
        finally:
            for failure in failures:
                method, is_broken, _ = failure.partition(" raised BrokenPipeError")
                if is_broken and method != "handle_session_error":
                    self.report.add(
                        f"print in {method} fails once nobody reads the output of the server any more",
                        "the client is answered -ERR [SYS/TEMP], though nothing is wrong with its mail",
                        "Use logging, or print where a failure does no harm",
                    )

    def log_out_after(self, seconds: float) -> None:
        """Log out a client that is silent for this long, from its next command on."""
        self._server.command_timeout = seconds

    @contextmanager
    def visitor(self) -> Iterator[Visitor]:
        """Connect a client that has not signed in.

        :raises CheckError: it is turned away.
        """
        with self._explaining():
            visitor = Visitor(self)
        with closing(visitor), self._explaining():
            if not visitor.greeting.startswith("+OK"):
                if not self.credentials.way and self.report.events == 0:
                    raise CheckError(f"the handler turns the check away: {visitor.greeting}")
                raise StopError(f"the greeting is {visitor.greeting}")
            yield visitor

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Report what blocks, before the client leaves, because leaving might end it."""
        try:
            yield
        except BlockedError as stop:
            self.explain_block(stop)
            raise

    @contextmanager
    def session(self) -> Iterator[Visitor]:
        """Connect a client and sign in, which must succeed.

        :raises LockedError: the maildrop is locked, although no other session is open.
        """
        until = time.monotonic() + UNLOCK_SECONDS
        with ExitStack() as stack:
            while True:
                visitor = stack.enter_context(self.visitor())
                answer = visitor.sign_in(self.credentials)
                if not answer.startswith("-ERR [IN-USE]") or time.monotonic() >= until:
                    break
                stack.close()
                visitor.wait_until_over()
                time.sleep(UNLOCK_SECONDS / 20)
            if answer.startswith("-ERR [IN-USE]"):
                self.report.add(
                    f"The maildrop stays locked after {self.last_end}",
                    "the user cannot get at the mail until the server is restarted",
                    "Release in unlock_maildrop all that lock_maildrop took, however the session ended",
                )
                raise LockedError(answer)
            if answer.startswith("-ERR [LOGIN-DELAY]"):
                raise CheckError(f"the handler wants time between sign-ins, which must be off for the check: {answer}")
            if not answer.startswith("+OK"):
                raise StopError(f"the sign-in was answered {answer}")
            yield visitor

    def look_into(self, most: int) -> Snapshot:
        """List the maildrop in a session of its own, and read the first *most* messages."""
        with self.session() as visitor:
            found = visitor.look_into(most)
            visitor.part()
        return found

    def run(self, what: str, check: Callable[[Bench], None]) -> None:
        """Run one of the checks, unless no session can begin any more."""
        if self.stopped:
            return
        events = self.report.events
        self._deadline = time.monotonic() + STEP_SECONDS
        try:
            check(self)
        except BlockedError as stop:
            self.explain_block(stop)
            self.stopped = True
        except LockedError:
            self.stopped = True
        except LateError as stop:
            self.report.note(
                f"While {what}, {stop} within {longest_wait(self.options.patience):g} seconds, though no call of the "
                "handler took too long: the rest of that has not been checked."
            )
        except StopError as stop:
            if self.report.events == events:
                self.report.add(
                    f"While {what}, {stop}",
                    "a client does not get what the protocol promises",
                    "Look at what the handler does then",
                    kind=what,
                )
        if self.stopped:
            self.report.note(f"The check ended early, while {what}: the rest has not been checked.")

    @property
    def is_late(self) -> bool:
        """True once the running check has taken so long that it should read no further."""
        return time.monotonic() > self._deadline

    def explain_block(self, stop: BlockedError) -> None:
        """Report what blocks, unless it has been reported."""
        if stop.explained:
            return
        stop.explained = True
        blocked = self.recorder.slow(self.options.patience)
        for method in blocked:
            explain_block(self.report, method, self.options.patience)
        if not blocked:
            self.report.add(f"{stop}", "a client gives up", "Find what is slow, or has no end")


def digest(message: bytes) -> bytes:
    """Return a message's SHA-256 digest."""
    return hashlib.sha256(message).digest()
