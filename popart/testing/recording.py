"""Sessions that are recorded, and fail on demand."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine

from popart.policy import Policy
from popart.replies import Reply
from popart.session import Session, State
from popart.testing.faults import split_command
from popart.testing.handler import StoredMailHandler

_SECRET = re.compile(r"\A(\s*(?:PASS|(?:APOP|AUTH)\s\S*)\s).+", re.IGNORECASE | re.DOTALL)


class RecordingSession(Session):
    """Records each command line, and asks for faults before it is run."""

    def __init__(self, handler: StoredMailHandler, policy: Policy) -> None:
        super().__init__(handler, policy)
        self._client = handler

    def respond(self, line: bytes) -> Reply:
        if self.in_exchange:
            words = ["***"]
        else:
            words = split_command(_SECRET.sub(r"\1***", line.decode("utf-8", "backslashreplace")))
        try:
            return self._record_and_run(line, words)
        except BaseException as error:
            self._do_not_run(words)
            return self._explain(error)

    def _record_and_run(self, line: bytes, words: list[str]) -> Reply:
        client = self._client
        username = client.username
        run = super().respond
        record: Callable[..., object] = client.mail.record_command
        recorded = record((username, *words))
        if isinstance(recorded, Coroutine):
            recorded.close()
            raise TypeError("record_command must not be a coroutine function: its body would never run")
        if self.in_exchange:
            return run(line)
        if words[0] == "USER" and self.state is State.AUTHORIZATION:
            client.username = " ".join(words[1:])
        reply: Reply = client.mail._run_or_fail(words, username, lambda: run(line))
        return reply

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
