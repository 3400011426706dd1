"""Who the client is: USER, PASS, APOP and AUTH, which of these are taken, refusals and their delays.

(RFC 1939 section 7, RFC 5034 section 4, RFC 3206.)
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable

from popart.command_lines import MAX_AUTH_LINE
from popart.errors import BadCommandError, ReportableError
from popart.handler import Handler, SupportsMechanisms
from popart.handler_calls import ability, expect_none
from popart.own_mechanisms import check_mechanisms
from popart.replies import Reply, err
from popart.sasl import Exchange, StoppedError, mechanisms, read_base64
from popart.session_settings import SessionSettings

FIRST_LOGIN_DELAY = 0.25
"""Seconds to hold back the answer to the first failed login.  Each further answer waits twice as long."""

LOGIN_DELAY_DOUBLINGS = 6
"""After this many doublings the delay stays at 16 seconds."""

# The commands and the mechanisms that end in `Handler.authenticate_pass`, and those in which a client shows a secret.
_PASSWORD_WAYS = {"USER", "PASS", "PLAIN", "LOGIN"}
_CLEARTEXT_WAYS = _PASSWORD_WAYS | {"OAUTHBEARER", "XOAUTH2"}
_BACKEND_FAILED = re.compile(r"SYS/(TEMP|PERM)(/.*)?", re.IGNORECASE)  # RFC 3206: the user is not to blame
_HEX_DIGEST = re.compile(r"[0-9A-Fa-f]{32}")


class SignIn:
    """How one client signs in.

    A method that takes a secret returns None once the handler has accepted, or the next challenge of AUTH.  It raises a
    refusal of the handler as it is, and `refuse` answers it.
    """

    def __init__(self, handler: Handler, settings: SessionSettings) -> None:
        self._handler = handler
        self._settings = settings
        self._allow_passwords = getattr(handler, "allow_passwords", True)
        self._mechanisms = mechanisms(handler, settings.certificate, settings.scram_decoy_key)
        self._get_mechanisms = ability(handler, SupportsMechanisms, "get_mechanisms")
        self.username: str | None = None
        """USER's name, until PASS."""

        self.exchange: Exchange | None = None
        """The exchange of AUTH that waits for the client's response.  The next line is that response, whatever it
        says."""

        self.failures: int = 0
        """Refusals, except those that say that the backend has failed."""

    def why_not(self, way: str, *, own: bool = False) -> str | None:
        """Return why this connection does not take a command or a mechanism to sign in, or None if it does.

        *own* is a mechanism of the handler's: it may show a secret.
        """
        if not own and way in _PASSWORD_WAYS and not self._allow_passwords:
            return "passwords are not taken here"
        if (own or way in _CLEARTEXT_WAYS) and not self._settings.allow_cleartext:
            return "this needs TLS, from the beginning of the connection"
        return None

    def offered(self) -> list[str]:
        """Return the names of AUTH's mechanisms, in CAPA's order: those that are known to show a secret come last.

        :raises HandlerError: the handler's own mechanisms are not as they must be.
        """
        names = [name for name in self._mechanisms if not self.why_not(name)]
        proofs = [name for name in names if name not in _CLEARTEXT_WAYS]
        own = [name for name in self._own_mechanisms() if not self.why_not(name, own=True)]
        return [*proofs, *own, *names[len(proofs) :]]

    def _own_mechanisms(self) -> dict[str, Callable[[], Exchange]]:
        return {} if self._get_mechanisms is None else check_mechanisms(self._get_mechanisms())

    def take_password(self, password: str) -> None:
        username, self.username = self.username, None
        if username is None:
            raise BadCommandError("USER comes before PASS")
        expect_none("authenticate_pass", self._handler.authenticate_pass(username, password))

    def take_digest(self, name: str, digest: str) -> None:
        if self._settings.banner is None:
            raise BadCommandError("APOP is not offered here")
        if not name or not _HEX_DIGEST.fullmatch(digest):
            raise BadCommandError("APOP takes a name and an MD5 digest")
        expect_none("authenticate_apop", self._handler.authenticate_apop(name, digest.lower()))

    def begin_exchange(self, mechanism: str, response: str) -> Reply | None:
        """Begin AUTH; a *response* that is not empty is the initial one."""
        name = mechanism.upper() if mechanism.isascii() else ""
        own = name not in self._mechanisms
        begin = (self._own_mechanisms() if own else self._mechanisms).get(name)
        if begin is None:
            raise BadCommandError("unknown mechanism")
        if why := self.why_not(name, own=own):
            raise BadCommandError(why)
        self.username = None
        exchange = begin()
        try:
            challenge = next(exchange)
        except StopIteration:  # one of the handler's own may need no response
            return None
        self.exchange = exchange
        if not response:
            return _make_challenge(challenge)
        if challenge and name != "LOGIN":  # LOGIN is in no RFC, and its clients send the name at once
            self.abandon()
            raise BadCommandError("in this mechanism the server speaks first: it takes no initial response")
        return self.take_response(response.encode())

    def take_response(self, line: bytes) -> Reply | None:
        """Go on with the exchange that waits."""
        assert self.exchange is not None
        exchange, self.exchange = self.exchange, None
        response = _read_response(line)
        try:
            if isinstance(response, BadCommandError):
                challenge = exchange.throw(response)
            else:
                challenge = exchange.send(response)
        except StopIteration:
            return None
        except StoppedError as stopped:
            error = stopped.error  # raised below: a handler's own exception must not get this one as its context
        else:
            self.exchange = exchange
            return _make_challenge(challenge)
        raise error

    def abandon(self) -> None:
        """Give up the exchange that waits, if there is one."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close()

    def refuse(self, refusal: ReportableError, *, utf8: bool) -> Reply:
        """Count a refusal and return the answer.  Each is held back longer, so that guessing takes time."""
        if _BACKEND_FAILED.fullmatch(str(refusal.code)):
            return err(refusal.text, refusal.code, utf8=utf8)
        delay = FIRST_LOGIN_DELAY * 2 ** min(self.failures, LOGIN_DELAY_DOUBLINGS)
        self.failures += 1
        return err(refusal.text, refusal.code or "AUTH", utf8=utf8)._replace(delay=delay)


def _make_challenge(octets: bytes) -> Reply:
    return Reply(b"+ %b\r\n" % b64encode(octets))


def _read_response(line: bytes) -> bytes | BadCommandError:
    """Return the octets of a line that answers a challenge, or the error to throw into the mechanism if it does not."""
    if line == b"*":
        return BadCommandError("authentication cancelled")
    if line == b"=":
        return b""  # for initial responses, but curl sends it after a challenge too
    if len(line) > MAX_AUTH_LINE:
        return BadCommandError("line too long")
    octets = read_base64(line)
    return BadCommandError("a response is base64") if octets is None else octets
