"""The exceptions that a handler raises, and those that ``handle_session_error`` gets.

When something fails, popart gives the handler an exception.  It is either the very object that one of the handler's own
methods raised, or one of the `SessionError` classes below, which popart makes.  No exception made here holds a
password, a digest or any other octet that the client sent.
"""

from __future__ import annotations

import re

_RESPONSE_CODE = re.compile(r"[!-.0-\\^-~]+(/[!-.0-\\^-~]+)*")
_MAX_RESPONSE_CODE = 64


class ReportableError(Exception):
    """A refusal that the client may read: ``-ERR [code] text``.

    Raise it from any method of a handler.  Every other exception stays hidden behind a fixed text.

    *text* is sent as one line of ASCII.  Line ends and other control octets become spaces, and characters outside ASCII
    become ``?``.  A text that does not fit into the 512 octets of a reply (RFC 1939 section 3) is cut off.  A client
    that said UTF8 or LANG gets it in UTF-8 (RFC 6856).

    *code* is a response code without its brackets (RFC 2449 section 8): ``IN-USE``, ``LOGIN-DELAY``, ``AUTH``,
    ``UTF8``, ``SYS/TEMP`` for a failure that will pass and ``SYS/PERM`` for one that needs a human (RFC 3206).

    :raises ValueError: *code* is not a response code in RFC 2449's grammar, or is longer than 64 characters.
    """

    text: str = "refused"
    code: str | None = None

    def __init__(self, text: str, *, code: str | None = None) -> None:
        if code is not None and not (len(code) <= _MAX_RESPONSE_CODE and _RESPONSE_CODE.fullmatch(code)):
            raise ValueError(f"not a POP3 response code: {code!r}")
        super().__init__(text)
        self.text = str(text)
        self.code = code


class BadCommandError(ReportableError):
    """A command that is unknown, malformed or sent in the wrong state.  It counts towards ``max_bad_commands``."""


class SessionError(Exception):
    """Base of popart's own errors.  ``handle_session_error`` is given those that this package exports."""


class HandlerError(SessionError):
    """The handler broke its contract: a bad id, a negative size, a message with fewer octets than its size.

    The text names the message, the value and the rule.
    """


class ClientGoneError(SessionError):
    """The client's connection ended, closed or reset, before QUIT was answered.

    Nothing was deleted, unless the answer to QUIT itself could not be sent.
    """


class ClientTimeoutError(SessionError):
    """The client let a deadline pass: it sent no command in time, or stopped reading.

    Or it had not signed in when all places were taken and another client needed one.  Nothing was deleted, unless the
    client stopped reading before the answer to QUIT.
    """


class LimitError(SessionError):
    """The client reached ``max_bad_commands`` or ``max_failed_logins``."""


class BrokenMessageError(SessionError):
    """A message turned out to be broken after ``+OK`` was promised.

    Another exception tells the handler why.  This one only tells the connection what to do.  If *answer* is given and
    no octet of the reply has left yet, the connection sends *answer* in place of the whole reply.  Otherwise it ends
    without the final dot: by a reset or, if *reset* is False, like any other connection.
    """

    def __init__(self, *, answer: bytes | None = None, reset: bool = True) -> None:
        self.answer = answer
        self.reset = reset
