"""Sessions that are recorded, and fail on demand."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from popart.replies import Reply
from popart.session import Session, State
from popart.session_settings import SessionSettings
from popart.testing.command_words import KEYWORDS, split_command
from popart.testing.fault_list import Action, Fault, Run, UnchangedError
from popart.testing.handler import StoredMailHandler

_SECRET = re.compile(r"\A(\s*(?:PASS|(?:APOP|AUTH)\s\S*)\s).+", re.IGNORECASE | re.DOTALL)


class RecordingSession(Session):
    """Records each command line, and asks for faults before it is run."""

    def __init__(self, handler: StoredMailHandler, settings: SessionSettings) -> None:
        super().__init__(handler, settings)
        self.client: StoredMailHandler = handler
        self._lasting: dict[str, tuple[Fault, Action]] = {}
        """The faults that go on until the end of the session, one of each method."""
        self._hides_unknown = False

    def greet(self) -> Reply:
        try:
            reply: Reply = self.client.run_or_fail(["greeting"], super().greet)
            return reply
        except BaseException as error:
            self.over = True
            return self._explain(error)

    def respond(self, line: bytes) -> Reply:
        words = self._words(line)
        try:
            return self._record_and_run(line, words)
        except BaseException as error:
            self._do_not_run(words)
            return self._explain(error)

    def _words(self, line: bytes) -> list[str]:
        """Split a line, without its secrets."""
        if self.in_exchange:
            return ["***"]
        text = _SECRET.sub(r"\1***", line.decode("utf-8", "backslashreplace"))
        words = split_command(self.client.mail._hide_secrets(text))
        if words[0] in KEYWORDS:
            self._hides_unknown = words[0] == "AUTH" and len(words) > 1 and self.state is State.AUTHORIZATION
        elif self._hides_unknown and self.state is State.AUTHORIZATION:
            # After a refused AUTH some clients send the response anyway.
            return ["***"]
        return words

    def _record_and_run(self, line: bytes, words: list[str]) -> Reply:
        client, record = self.client, self.client.record
        username = record.username
        run = partial(self._run_spoilt, words, partial(super().respond, line))
        record.add_command(words)
        recorded = client.mail._record(record, (username, *words))
        if isinstance(recorded, Coroutine):
            recorded.close()
            raise TypeError("record_command must not be a coroutine function: its body would never run")
        if self.in_exchange:
            return super().respond(line)
        if self.state is State.AUTHORIZATION and words[0] in ("USER", "APOP"):
            record.username = " ".join(words[1:] if words[0] == "USER" else words[1:2])
        reply: Reply = client.run_or_fail(words, run)
        return reply

    def _run_spoilt(self, words: Sequence[str], run: Run) -> Any:
        """Run a command as the lasting faults change it, including those that begin now."""
        begun = set()
        while (fault := self.client.take_fault(words, besides=self._lasting)) is not None:
            self._lasting[fault.call[0]] = fault, fault.begin()
            begun.add(fault)
        for fault, action in self._lasting.values():
            if fault.is_at(words):
                run = partial(self._spoil, fault, partial(action, words, run), begins=fault in begun)
        return run()

    def _spoil(self, fault: Fault, run: Run, *, begins: bool) -> Any:
        """Run what a lasting fault has changed.  The fault begins with the first answer that it changes."""
        try:
            return run()
        except UnchangedError as unchanged:
            if begins:
                del self._lasting[fault.call[0]]
                self.client.give_back(fault)
            return unchanged.reply

    def _do_not_run(self, words: list[str]) -> None:
        """See that the session is where the client takes it to be when it reads of a failure."""
        run = super().respond
        if self.in_exchange:
            run(b"*")
        elif words[0] == "QUIT":
            # Leave without deleting anything, so that the lock is free before the client reads of it.
            if self.state is State.TRANSACTION:
                run(b"RSET")
            run(b"QUIT")
