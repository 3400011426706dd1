"""What a mail server for tests keeps: users, their mail, and the records of sessions."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from email.message import Message
from typing import Any

from popart.command_lines import FORBIDDEN
from popart.testing.command_words import hide_secrets
from popart.testing.epoch import Epoch
from popart.testing.faults import Faults
from popart.testing.maildrop import Maildrop
from popart.testing.session_record import Entry, SessionRecord

MOST_TRANSCRIPTS = 100
"""Sessions whose conversations are kept, the last ones."""


class MailStore(Faults):
    """Users, mail and records.  Any thread may use it."""

    users: dict[str, str]
    """Names and passwords.  May be changed at any time."""

    tokens: dict[str, str]
    """Names and OAuth 2.0 access tokens.  May be changed at any time, as when a token expires."""

    _most_records: int | None = None
    """How many of the last commands and errors to keep.  None means all, as a test wants."""

    _most_sessions: int | None = None
    """How many of the last sessions to keep, or None."""

    def __init__(self, users: Mapping[str, str], tokens: Mapping[str, str], offers: Collection[str]) -> None:
        super().__init__()
        for name, password in users.items():
            if why := why_unusable(name) or why_unusable(password):
                raise ValueError(f"user {name!r} could never sign in: names and passwords must {why}")
        for name, token in tokens.items():
            if name not in users or not token:
                raise ValueError(f"the token of {name!r} could never sign in: it must be a user's, and not empty")
            if why := why_unusable(token):
                raise ValueError(f"the token of {name!r} could never sign in: it must {why}")
        self.users = dict(users)
        self.tokens = dict(tokens)
        self._offers = offers
        """The ways to sign in beside passwords: of "tokens", "scram", "login" and "certificates"."""
        self._sessions_changed = threading.Condition()
        self._serial_numbers = itertools.count(1)
        self._here = threading.local()
        """The epoch of the session whose command this thread records."""
        self._epoch = Epoch(self._faults)

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """What clients sent, in order: ``("alice", "RETR", "1")``.  First comes the name that the connection had given
        before, or ``""``, then the words of the line.  The keyword and AUTH's mechanism are in upper case.  A password,
        a digest and a response of AUTH are ``***``, and so is a user's password or token that a client sends by
        mistake.  A response on a line of its own is ``("", "***")``, even if AUTH was refused before."""
        return self._epoch.commands

    @property
    def errors(self) -> list[BaseException]:
        """What popart reported of sessions, such as `popart.ClientGoneError` for a client that left without QUIT, and
        what `record_command` raised."""
        return self._epoch.errors

    @property
    def sessions(self) -> list[SessionRecord]:
        """The sessions in the order in which they began, open ones included.  A session begins before its greeting."""
        return self._epoch.sessions

    def reset(self) -> None:
        """Forget the mail, the records and the faults, as for a new test.  Users and tokens stay.

        A session that is still open goes on, with the wrong sizes, unique-ids or capabilities that it has shown, but no
        more of it is recorded and no further fault happens to it.  It neither holds the lock on the new maildrop nor
        counts in `wait_for_session_end`.
        """
        with self._sessions_changed:
            self._epoch.maildrops.clear()
            self._epoch = Epoch(self._begin_faults())

    def maildrop(self, username: str) -> Maildrop:
        """Return a user's mail.

        :raises KeyError: there is no such user.
        """
        if username not in self.users:
            raise KeyError(username)
        return self._epoch.maildrop(username)

    def deliver(self, username: str, message: bytes | str | Message, *, unique_id: str | None = None) -> str:
        """Add a message to a user's mail and return its unique-id.  Sessions that have signed in do not see it.

        A str is encoded as UTF-8.  Line ends become CRLF, with one at the very end.  Without *unique_id* the message
        gets one that no other message ever had.

        :raises KeyError: there is no such user.
        :raises TypeError: *message* is not bytes, str or `email.message.Message`.
        :raises ValueError: *unique_id* is not 1 to 70 characters from ``!`` to ``~`` (RFC 1939 section 7), or another
            message in this maildrop has it.
        """
        return self.maildrop(username).deliver(message, unique_id=unique_id)

    def messages(self, username: str) -> list[bytes]:
        """Return the messages that are left, oldest first, with CRLF line ends.

        :raises KeyError: there is no such user.
        """
        return [octets for _, octets in self.maildrop(username).snapshot()]

    def record_command(self, command: tuple[str, ...]) -> None:
        """Add to `commands`.  Override it to learn of each command at once, in its connection's thread.

        If it raises, such as by an assert, the command is not run and the client reads ``-ERR``.  After QUIT that is
        the last answer.  The exception is in `errors`, unless it is a `popart.ReportableError`: then the client reads
        its text.
        """
        epoch: Epoch = getattr(self._here, "epoch", self._epoch)
        _append(epoch.commands, command, self._most_records)

    def transcript(self) -> str:
        """Return the conversations of the sessions: what clients said, what the server answered, when, and what faults
        happened.

        Secrets are ``***``, and long answers are abridged.  The last 100 sessions are in it.
        """
        return self._transcript()

    def _transcript(self, after: int = 0) -> str:
        """Return the conversations of those sessions that went on after a moment."""
        sessions = [session for session in self.sessions[-MOST_TRANSCRIPTS:] if session.last_moment > after]
        return "\n\n".join([session.transcript() for session in sessions])

    def wait_for_session_end(self, timeout: float = 10.0, *, sessions: int = 1, since_last_call: bool = False) -> None:
        """Wait until no session is open and at least *sessions* have ended since the server was made or `reset`.

        *since_last_call* counts only sessions that have ended since the last call returned.

        A session begins before its greeting.  When it has ended it holds no lock, and has nothing more to record.  The
        answer to QUIT comes after the deletions.  So you need to wait only if a client leaves without QUIT, or for
        `errors`.

        :raises TimeoutError: this has not happened within *timeout* seconds.
        """
        with self._sessions_changed:
            wanted = sessions + (self._epoch.awaited_sessions if since_last_call else 0)
            if not self._sessions_changed.wait_for(
                lambda: not self._epoch.open_sessions and self._epoch.ended_sessions >= wanted, timeout
            ):
                counts = f"{self._epoch.open_sessions} sessions open, {self._epoch.ended_sessions} ended"
                raise TimeoutError(f"{counts}, after {timeout} seconds")
            self._epoch.awaited_sessions = self._epoch.ended_sessions

    def _remove_user(self, username: str) -> None:
        """Remove a user, and all that was theirs: a later user of that name is another one."""
        del self.users[username]
        self.tokens.pop(username, None)
        self._epoch.maildrops.pop(username, None)

    # What the sessions call.

    def _hide_secrets(self, line: str) -> str:
        """Mask what a client has sent by mistake.  A user's name is no secret, even if it is a password too."""
        return hide_secrets(line, {*self.users.values(), *self.tokens.values()} - {*self.users, ""})

    def _begin_session(self) -> SessionRecord:
        with self._sessions_changed:
            epoch = self._epoch
            epoch.open_sessions += 1
            number = epoch.open_sessions + epoch.ended_sessions
            record = SessionRecord(number, next(self._serial_numbers), epoch, self._tell)
            _append(epoch.sessions, record, self._most_sessions)
            for old in epoch.sessions[-MOST_TRANSCRIPTS - 1 : -MOST_TRANSCRIPTS]:
                old.forget_conversation()
        return record

    def _end_session(self, record: SessionRecord) -> None:
        record.add_event("the session is over")
        with self._sessions_changed:
            record.is_open = False
            record.epoch.open_sessions -= 1
            record.epoch.ended_sessions += 1
            self._sessions_changed.notify_all()

    def _record(self, session: SessionRecord, command: tuple[str, ...]) -> object:
        """Return what `record_command` returned, which may have been overridden by anything."""
        record: Callable[..., object] = self.record_command
        _append(session.commands, command, self._most_records)
        self._here.epoch = session.epoch
        return record(command) if session.epoch is self._epoch else None

    def _record_error(self, record: SessionRecord, error: BaseException) -> None:
        record.add_event(f"{type(error).__name__}: {error}")
        _append(record.epoch.errors, error, self._most_records)

    def _tell(self, record: SessionRecord, entry: Entry) -> None:
        """Learn of each line of a conversation, in its connection's thread."""


def why_unusable(secret: object) -> str:
    """Return what a name, a password or a token must do that this one does not, or "" if a client can send it."""
    if not isinstance(secret, str):
        return "be str"
    if not secret:
        return "not be empty"
    if FORBIDDEN.search(secret):
        return "have no NUL, CR or LF"
    return "" if secret.encode("utf-8", "ignore").decode() == secret else "be text that UTF-8 can encode"


def _append(records: list[Any], record: object, most: int | None) -> None:
    records.append(record)
    if most is not None and len(records) > most:
        del records[0]
