"""Fairness between sessions: clients that pipeline at the same time are paced, so that other clients need not wait.

Every thread that has work waits for the interpreter.  A thousand clients that never stop sending are a thousand such
threads.  So if n sessions are busy, each pauses for twice the time that the other n - 1 need for as much work.  Half of
the time is then free for other clients.  A client that pipelines alone never pauses.
"""

from __future__ import annotations

import threading
import time

STEPS = 25
"""Pipelined commands between two looks at the processor's clock, unless their replies are large.  With ten, a pipelined
NOOP would be 4 % slower."""

MESSAGE_STEPS = 6
"""What a message or a listing counts as: to read one from a file lets go of the interpreter as often."""

ALLOWANCE = 0.001
"""Seconds of processor time that a session may use for pipelined commands before it counts as busy, once."""

LONGEST_PAUSE = 5.0
"""Seconds that a session pauses at a time."""


class Pacer:
    """How many sessions of a server are busy."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.busy: int = 0

    def add(self, number: int) -> None:
        with self._guard:
            self.busy += number


class Pace:
    """The processor time that one session has used while it was busy."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._allowance = ALLOWANCE
        self._since: float | None = None
        self.busy: bool = False

    @property
    def counts(self) -> bool:
        """True from `begin` to `rest`."""
        return self._since is not None

    def begin(self) -> None:
        """Start counting, unless that is done already: the client has sent more than one command at once, or junk."""
        if self._since is None:
            self._since = time.thread_time()

    def pause(self) -> float:
        """Return how many seconds the session should pause now."""
        assert self._since is not None
        now = time.thread_time()
        used, self._since = now - self._since, now
        if not self.busy:
            self._allowance -= used
            if self._allowance > 0:
                return 0.0
            self.busy = True
            self._pacer.add(1)
        return min(LONGEST_PAUSE, 2 * (self._pacer.busy - 1) * used)

    def rest(self) -> None:
        """Stop counting: the client has made the session wait for it, or has gone."""
        self._since = None
        if self.busy:
            self.busy = False
            self._pacer.add(-1)
