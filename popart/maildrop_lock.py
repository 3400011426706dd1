"""The exclusive-access lock on a maildrop (RFC 1939 section 4): released once for each time that it was taken."""

from __future__ import annotations

from popart.errors import ReportableError
from popart.handler import Handler
from popart.handler_calls import expect_none


class MaildropLock:
    """A session's lock on its user's maildrop."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._is_held = False

    def take(self) -> None:
        """Take the lock.

        :raises ReportableError: the handler refuses it; if it gives no code, the code is ``IN-USE``.
        """
        try:
            result: object = self._handler.lock_maildrop()
        except ReportableError as refusal:
            raise ReportableError(refusal.text, code=refusal.code or "IN-USE") from None
        self._is_held = True
        expect_none("lock_maildrop", result)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._is_held:
            self._is_held = False
            expect_none("unlock_maildrop", self._handler.unlock_maildrop())
