"""What a mail server for tests keeps from one reset to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from popart.testing.fault_list import Fault
from popart.testing.maildrop import Maildrop
from popart.testing.session_record import SessionRecord


@dataclass
class Epoch:
    """The faults, the mail and the records of one test.  A session stays with those that it began with, so that
    nothing of it reaches the next test."""

    faults: list[Fault]
    maildrops: dict[str, Maildrop] = field(default_factory=dict)
    commands: list[tuple[str, ...]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    sessions: list[SessionRecord] = field(default_factory=list)
    open_sessions: int = 0
    ended_sessions: int = 0
    awaited_sessions: int = 0

    def maildrop(self, username: str) -> Maildrop:
        """Return a user's mail."""
        return self.maildrops.setdefault(username, Maildrop())
