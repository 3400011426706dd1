"""Fairness between sessions: clients that pipeline while others do too are paced, so that the rest need not wait.

Every thread that has work waits for the interpreter.  A thousand clients that never stop sending are a thousand such
threads.  So each of n busy sessions pauses for twice the time that the n - 1 others need for as much work: half of the
time is then free for the rest.  A client that pipelines alone never pauses.
"""

from __future__ import annotations

import threading
import time

STEPS = 25
"""Pipelined commands between two looks at the processor's clock, unless their replies are large: ten would make a
pipelined NOOP 4 % slower."""

MESSAGE_STEPS = 6
"""What a message counts as: to read one from a file lets go of the interpreter as often."""

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
        """Count from here, unless that is done already: the client has sent more than one command at once, or junk."""
        if self._since is None:
            self._since = time.thread_time()

    def pause(self) -> float:
        """Return for how many seconds the session should pause now."""
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
        """Stop counting: the client has let itself be waited for, or has gone."""
        self._since = None
        if self.busy:
            self.busy = False
            self._pacer.add(-1)
