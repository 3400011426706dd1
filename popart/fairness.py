"""Fairness between sessions: clients that keep the server busy are paced, so that other clients need not wait.

Every thread that has work waits for the interpreter.  A thousand clients that never stop sending are a thousand such
threads.  So if n sessions are busy, each pauses for twice the time that the other n - 1 need for as much work.  Half of
the time is then free for other clients.  A client that pipelines alone never pauses, and one that waits for each answer
pauses only in a crowd.
"""

from __future__ import annotations

import math
import threading
import time

STEPS = 25
"""Pipelined commands between two looks at the processor's clock, unless their replies are large.  With ten, a pipelined
NOOP would be 4 % slower."""

MESSAGE_STEPS = 6
"""Pipelined commands that one message or listing counts as.  A small message takes several times as long as most
commands, and to read it from a file lets other threads run."""

ALLOWANCE = 0.001
"""Seconds of processor time, in all, that a session may use for pipelined commands before it counts as busy."""

TURN_ALLOWANCE = 0.0015
"""The same for commands that come one by one.  A client needs less to fetch its new mail.  What it needs to connect and
to sign in is not counted: see `Pace.skip`."""

REFUSED_TURN = 0.001
"""Seconds that count for an answer ``-ERR``, besides the time that it took."""

CROWD = 32
"""Sessions that may be busy with commands that come one by one before these are paced.  This many take turns fast."""

TURN_SECONDS = 0.5
"""Seconds after its last command for which such a session counts as busy."""

LONGEST_PAUSE = 5.0
"""Seconds that a session pauses at a time, at most."""

FIRST_TURN_PAUSE = 0.1
"""Seconds that a session whose commands come one by one pauses at first, at most.  Each further pause may be twice as
long.  A good client must not pay much: its thread uses processor time too while it waits for the interpreter."""


class Pacer:
    """How many sessions of a server are busy."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.busy: int = 0
        """How many of them pipeline."""

        self._crowd: dict[Pace, float] = {}
        """Those whose commands come one by one, and until when each counts."""

        self._next_look = -math.inf

    def add(self, number: int) -> None:
        with self._guard:
            self.busy += number

    def crowd(self, pace: Pace) -> int:
        """Count a session among those whose commands come one by one, and return how many are busy in all."""
        now = time.monotonic()
        with self._guard:
            self._crowd[pace] = now + TURN_SECONDS
            if now >= self._next_look:
                self._next_look = now + TURN_SECONDS / 4
                self._crowd = {other: until for other, until in self._crowd.items() if until > now}
            return self.busy + len(self._crowd)

    def forget(self, pace: Pace) -> None:
        with self._guard:
            self._crowd.pop(pace, None)


class Pace:
    """The processor time that one session has used while it was busy."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._allowance = ALLOWANCE
        self._since: float | None = None
        self.busy: bool = False
        self._turn_allowance = TURN_ALLOWANCE
        self._longest_turn_pause = FIRST_TURN_PAUSE
        self._turn = time.thread_time()

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

    def turn(self) -> float:
        """Return how many seconds the session should pause before a command that came alone.

        All time since the last such command counts, also that of pipelined ones, which `pause` has counted already.
        Otherwise 900 sessions that alternate between the two get twice as much done, and a good one beside them takes
        70 to 170 ms instead of 3.
        """
        now = time.thread_time()
        used, self._turn = now - self._turn, now
        self._turn_allowance -= used
        if self._turn_allowance > 0:
            return 0.0
        beyond = min(used, -self._turn_allowance)
        crowd = self._pacer.crowd(self)
        if crowd <= CROWD:
            return 0.0
        longest = self._longest_turn_pause
        self._longest_turn_pause = min(LONGEST_PAUSE, 2 * longest)
        return min(longest, 2 * (crowd - 1) * beyond)

    def skip(self) -> None:
        """Do not count what the session has used since it was counted last: a client causes this once."""
        self._turn = time.thread_time()
        if self._since is not None:
            self._since = self._turn

    def refused(self) -> None:
        """Count a command that was answered with ``-ERR``."""
        self._turn_allowance -= REFUSED_TURN

    def end(self) -> None:
        """The session is over."""
        self.rest()
        self._pacer.forget(self)
