"""Faults on demand."""

from __future__ import annotations

from popart.testing.broken_answers import AnswerFaults, late, refusal
from popart.testing.fault_list import describe
from popart.testing.wrong_answers import SessionFaults


class Faults(AnswerFaults, SessionFaults):
    """The faults of a server.

    `fail`, `drop`, `hang_up`, `truncate`, `delay`, `stall`, `drip` and `split` name a command, which may have
    arguments: ``"RETR"`` means each RETR, ``"RETR 2"`` only that of message 2.  ``"AUTH"`` means its first line, before
    the user is known, and ``"AUTH PLAIN"`` that of one mechanism.  `refuse_connection`, `delay_greeting`,
    `refuse_sign_in`, `lock_maildrop` and `fail_commit` name a step of a session.  `spoil_sizes`, `spoil_ids` and `hide`
    last from the first command that shows them to the end of the session.

    Each method takes *times*, how often the fault happens (None: for good).  Where the user is known it also takes
    *username*, the only user for whom the fault happens (None: every user).  Faults for the same command happen one
    after another, in the order of the calls.

    A fault that cannot happen is a ValueError at once.  The *command* must begin with a keyword of POP3, have no extra
    space or argument, and name no secret.  After AUTH it must name a mechanism, if anything.  A *username* must be in
    ``users``, and AUTH takes none, because it comes before the user is known.  *times* must be a whole number, at least
    1.
    """

    def refuse_connection(
        self,
        text: str = "too many connections, please try again later",
        *,
        code: str | None = "SYS/TEMP",
        times: int | None = 1,
    ) -> None:
        """Greet a client with ``-ERR [code] text`` and close the connection.

        :raises ValueError: *code* is not a response code.
        """
        self._add(describe("refuse_connection", code=code), ["greeting"], refusal(text, code), times)

    def delay_greeting(self, seconds: float = float("inf"), *, times: int | None = 1) -> None:
        """Make a client wait for the greeting: for *seconds* or until it leaves, and at most for ``login_timeout``.

        :raises ValueError: *seconds* is negative or not a number.
        """
        self._add(describe("delay_greeting", seconds), ["greeting"], late(seconds), times)

    def refuse_sign_in(
        self,
        text: str = "wrong name or password",
        *,
        code: str = "AUTH",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Refuse a user as for a wrong password, whatever command they sign in with.  The first answer of a connection
        takes a quarter of a second, each further one twice as long as the one before, and the fifth is the last.
        SCRAM-SHA-256 ignores *text* and gives the one for a wrong password, unless *code* is another.

        :raises ValueError: *code* is not a response code.
        """
        self._add(describe("refuse_sign_in", code=code), ["sign in"], refusal(text, code), times, username)

    def lock_maildrop(
        self,
        text: str = "another session has the maildrop",
        *,
        code: str = "IN-USE",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Refuse even the right password, as if another client held the lock on the maildrop.

        :raises ValueError: *code* is not a response code.
        """
        self._add(describe("lock_maildrop", code=code), ["lock"], refusal(text, code), times, username)

    def fail_commit(
        self,
        text: str = "no message was deleted",
        *,
        code: str = "SYS/TEMP",
        times: int | None = 1,
        username: str | None = None,
    ) -> None:
        """Delete nothing at a QUIT that has messages to delete, and answer it with ``-ERR [code] text``.

        :raises ValueError: *code* is not a response code.
        """
        self._add(describe("fail_commit", code=code), ["commit"], refusal(text, code), times, username)
