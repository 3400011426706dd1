"""What a mail server for tests keeps: users, their mail, and the records of sessions."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from email.message import Message

from popart.testing.faults import Faults
from popart.testing.maildrop import Maildrop


class MailStore(Faults):
    """Users, mail and records.  Any thread may use it."""

    users: dict[str, str]
    """Names and passwords.  May be changed at any time."""

    tokens: dict[str, str]
    """Names and OAuth 2.0 access tokens.  May be changed at any time, as when a token expires."""

    commands: list[tuple[str, ...]]
    """What clients sent, in order: ``("alice", "RETR", "1")``.  First the name that the connection had given before,
    or ``""``, then the words of the line: the keyword and AUTH's mechanism in upper case, ``***`` for a password, a
    digest, or a response of AUTH.  A response on a line of its own is ``("", "***")``."""

    errors: list[BaseException]
    """What popart reported of sessions, such as `popart.ClientGoneError` for a client that left without QUIT, and what
    `record_command` raised."""

    def __init__(self, users: Mapping[str, str], tokens: Mapping[str, str], offers: Collection[str]) -> None:
        super().__init__()
        self.users = dict(users)
        self.tokens = dict(tokens)
        self.commands = []
        self.errors = []
        self._offers = offers
        """The ways to sign in beside passwords: of "tokens", "scram", "login" and "certificates"."""
        self._maildrops: dict[str, Maildrop] = {}
        self._sessions_changed = threading.Condition()
        self._open_sessions = 0
        self._ended_sessions = 0

    def maildrop(self, username: str) -> Maildrop:
        """Return a user's mail.

        :raises KeyError: there is no such user.
        """
        if username not in self.users:
            raise KeyError(username)
        return self._maildrops.setdefault(username, Maildrop())

    def deliver(self, username: str, message: bytes | str | Message) -> str:
        """Add a message to a user's mail and return its unique-id.  Sessions that have signed in do not see it.

        A str is encoded as UTF-8.  Line ends become CRLF, with one at the very end.

        :raises KeyError: there is no such user.
        :raises TypeError: *message* is something else.
        """
        return self.maildrop(username).deliver(message)

    def messages(self, username: str) -> list[bytes]:
        """Return the messages that are left, oldest first, with CRLF line ends.

        :raises KeyError: there is no such user.
        """
        return [octets for _, octets in self.maildrop(username).snapshot()]

    def record_command(self, command: tuple[str, ...]) -> None:
        """Add to `commands`.  Override it to learn of each command at once, in its connection's thread.

        If it raises, such as by an assert, the command is not run and the client reads ``-ERR``, after QUIT as the last
        answer.  The exception is in `errors`, but for a `popart.ReportableError`, whose text is what the client reads.
        """
        self.commands.append(command)

    def wait_for_session_end(self, timeout: float = 10.0, *, sessions: int = 1) -> None:
        """Wait until no session is open and at least *sessions* have ended since the server was made.

        A session begins before its greeting.  When it has ended it holds no lock, and has nothing more to record.
        The answer to QUIT comes after the deletions, so wait where a client leaves without it, or for `errors`.

        :raises TimeoutError: that is not so within *timeout* seconds.
        """
        with self._sessions_changed:
            if not self._sessions_changed.wait_for(
                lambda: not self._open_sessions and self._ended_sessions >= sessions, timeout
            ):
                counts = f"{self._open_sessions} sessions open, {self._ended_sessions} ended"
                raise TimeoutError(f"{counts}, after {timeout} seconds")

    def _begin_session(self) -> None:
        with self._sessions_changed:
            self._open_sessions += 1

    def _end_session(self) -> None:
        with self._sessions_changed:
            self._open_sessions -= 1
            self._ended_sessions += 1
            self._sessions_changed.notify_all()
