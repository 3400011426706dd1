"""The limits of a server: what they are, their defaults, and which values they take."""

from __future__ import annotations

import math
from typing import Any, TypedDict

COUNTS = (
    "max_connections",
    "max_connections_per_peer",
    "max_bad_commands",
    "max_failed_logins",
    "max_messages",
)
"""The limits that are whole numbers from 0 on."""

TIMES = ("handshake_timeout", "login_timeout", "shutdown_grace")
"""The limits in seconds, from 0 on."""


class LimitOptions(TypedDict, total=False):
    """All of them, for code that takes them as keyword arguments."""

    max_connections: int | None
    max_connections_per_peer: int | None
    max_bad_commands: int | None
    max_failed_logins: int | None
    max_messages: int | None
    handshake_timeout: float | None
    login_timeout: float | None
    shutdown_grace: float | None


class Limits:
    """The limits of `popart.Server`.  Set others in a subclass; None switches a limit off."""

    minimum_timeout: float = 600
    """Seconds: an autologout timer must last at least ten minutes (RFC 1939 section 3)."""

    max_connections: int | None = 2000
    """Connections at a time.  When all places are taken, the oldest connection that has not signed in and whose handler
    is not at work is cut, to make room for a new one.  If there is none, the newcomer is refused with
    ``-ERR [SYS/TEMP]``, or closed before a TLS handshake."""

    max_connections_per_peer: int | None = 1000
    """Connections of one IPv4 address or one IPv6 /64; one more is refused.  The default is half of `max_connections`,
    so that no peer can take every place.  A subclass that sets `max_connections` alone gets half of that.  Clients of a
    UNIX socket are no peer, unless a PROXY header names one."""

    max_bad_commands: int | None = 50
    """Unknown, malformed or misplaced commands in a row; the session ends with the answer to the last of them."""

    max_failed_logins: int | None = 5
    """Refused sign-ins of a connection, except refusals with the code SYS/TEMP or SYS/PERM.  The session ends with the
    answer to the last of them."""

    handshake_timeout: float | None = 30
    """Seconds for the whole TLS handshake, and for the PROXY header before it, if there is one."""

    login_timeout: float | None = 180
    """Seconds for the whole AUTHORIZATION state."""

    max_messages: int | None = 10_000_000
    """Messages in a maildrop.  It ends the loop over a handler that counts wrongly: more messages are a
    `HandlerError`."""

    shutdown_grace: float | None = 5
    """Seconds that `server_close` gives to running commands, and to clients that have yet to read replies, before it
    cuts their connections."""

    def __init_subclass__(cls, **options: Any) -> None:
        """If a subclass sets ``max_connections`` alone, make the limit per peer half of it."""
        super().__init_subclass__(**options)
        if "max_connections" in vars(cls) and "max_connections_per_peer" not in vars(cls):
            most = cls.max_connections
            cls.max_connections_per_peer = max(1, most // 2) if isinstance(most, int) else most

    def _check_limits(self) -> None:
        """Check what a subclass has made of the limits.

        :raises ValueError: a count is no whole number from 0 on, or a time no number from 0 on.
        """
        for name in COUNTS:
            most = getattr(self, name)
            if most is not None and not (isinstance(most, int) and most >= 0):
                raise ValueError(f"{name} must be a number or None, and a whole one from 0 on: {most!r}")
        for name in TIMES:
            seconds = getattr(self, name)
            if seconds is not None and not is_time(seconds):
                raise ValueError(f"{name} must be a number or None, and of seconds from 0 on: {seconds!r}")
        if not is_time(self.minimum_timeout):
            raise ValueError(f"minimum_timeout must be a number of seconds from 0 on: {self.minimum_timeout!r}")


def is_time(value: object) -> bool:
    """Return whether a value is a number of seconds; NaN is not one."""
    return isinstance(value, (int, float)) and 0 <= value <= math.inf
