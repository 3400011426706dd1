"""The options of a server: the limits and the keyword arguments of `popart.Server`, and which values
they take."""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import ssl
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from popart import system
from popart.addresses import IPNetwork

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

COUNTS = ("max_connections", "max_connections_per_peer", "max_bad_commands", "max_failed_logins", "max_messages")
"""The limits that are whole numbers, 0 or more."""

TIMES = ("handshake_timeout", "login_timeout", "shutdown_grace")
"""The limits in seconds, 0 or more."""

MAX_TIMEOUT = 86_400.0
"""Seconds, a day.  The most that *timeout* may be: more is an oversight, such as milliseconds."""

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""The networks of this machine alone."""

_HOSTNAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TEXTS = {
    "hostname": (_HOSTNAME, 255, "words of ASCII letters, digits, hyphens and underscores, with dots between them"),
    # APOP's timestamp takes up to 299 of the 512 octets of a reply's first line, and clients look for it by its signs.
    # A leading bracket would begin a response code (RFC 2449 section 8).
    "greeting": (
        re.compile(r"(?!\[)[!-;=?A-~]+( [!-;=?A-~]+)*"),
        206,
        "words of ASCII with single spaces between them, without <, > and @, and no [ at the beginning",
    ),
    "implementation": (
        re.compile(r"[!-~]+( [!-~]+)*"),
        400,  # a capability line has 512 octets, RFC 2449 section 5
        "words of ASCII with single spaces between them",
    ),
    "expire": (re.compile(r"(NEVER|[0-9]{1,9})( USER)?"), len("999999999 USER"), "NEVER or days, optionally USER"),
}
"""For each text: its pattern on the wire, its most octets, and the pattern in words."""


class LimitOptions(TypedDict, total=False):
    """The limits that `popart.testing.MailServer` takes as keyword arguments."""

    minimum_timeout: float
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
    """Connections at a time.  When all places are taken, popart cuts the oldest connection that has not signed in and
    whose handler is not at work, to make room for a new one.  If there is none, popart refuses the newcomer with
    ``-ERR [SYS/TEMP]``, or closes its connection before a TLS handshake."""

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
    """Seconds for the whole AUTHORIZATION state (RFC 1939 section 4)."""

    max_messages: int | None = 10_000_000
    """Messages in a maildrop; more are a `HandlerError`.  So a handler that counts wrongly cannot keep popart in a
    loop."""

    shutdown_grace: float | None = 5
    """Seconds that `server_close` gives to running commands, and to clients that have yet to read replies, before it
    cuts their connections."""

    def __init_subclass__(cls, **options: Any) -> None:
        """If a subclass or one of its bases sets ``max_connections`` alone, make the limit per peer half of it."""
        super().__init_subclass__(**options)
        limits = ("max_connections", "max_connections_per_peer")
        nearest = next(names for base in cls.__mro__ if (names := [name for name in limits if name in vars(base)]))
        if nearest == ["max_connections"]:
            most = cls.max_connections
            cls.max_connections_per_peer = max(1, most // 2) if isinstance(most, int) else most

    def _check_limits(self) -> None:
        """Check what a subclass has made of the limits.

        :raises ValueError: a count is negative or not a whole number, or a time is negative or not a number.
        """
        for name in COUNTS:
            most = getattr(self, name)
            if most is not None and not (isinstance(most, int) and most >= 0):
                raise ValueError(f"{name} must be a number or None, a whole one and at least 0, not {most!r}")
        for name in TIMES:
            seconds = getattr(self, name)
            if seconds is not None and not is_time(seconds):
                raise ValueError(f"{name} must be a number or None, and at least 0 seconds, not {seconds!r}")
        if not is_time(self.minimum_timeout):
            raise ValueError(f"minimum_timeout must be a number, and at least 0 seconds, not {self.minimum_timeout!r}")


def is_time(value: object) -> bool:
    """Return whether a value is a number of seconds; NaN is not one."""
    return isinstance(value, (int, float)) and 0 <= value <= math.inf


class SocketOptions(TypedDict, total=False):
    """The options of `popart.Server.from_socket`.  `popart.Server` says what they mean."""

    hostname: str | None
    timeout: float
    greeting: str
    implementation: str
    expire: str
    apop: bool
    ssl_context: ssl.SSLContext | None
    require_tls: bool
    allow_cleartext: bool
    scram_decoy_key: bytes | None
    processor: int | Literal["current"] | None
    proxy_protocol: bool
    trusted_proxies: Iterable[str]


def is_ipv6(server_address: tuple[str, int]) -> bool:
    if not isinstance(server_address, tuple):
        raise ValueError(f"server_address must be a host and a port, not {server_address!r}")
    return ":" in server_address[0]


def check_factory(on_new_connection: object) -> None:
    if not callable(on_new_connection):
        raise ValueError(f"on_new_connection must be callable, not {on_new_connection!r}")


def choose_hostname(hostname: str | None) -> str:
    """Return a valid name for APOP's timestamp; the default is this machine's name, if it is valid."""
    if hostname is None:
        hostname = socket.gethostname()
        if not _HOSTNAME.fullmatch(hostname):
            hostname = "localhost"
    return check_text("hostname", hostname)


def check_timeout(timeout: float, minimum: float) -> float:
    if not (is_time(timeout) and minimum <= timeout <= MAX_TIMEOUT):
        raise ValueError(f"timeout must be {minimum} seconds, the minimum_timeout, to {MAX_TIMEOUT}, not {timeout!r}")
    return float(timeout)


def check_text(name: str, value: str) -> str:
    pattern, longest, rule = _TEXTS[name]
    if not (isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value)):
        raise ValueError(f"{name} cannot be {value!r}: it is at most {longest} characters, {rule}")
    return value


def check_context(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise ValueError(f"ssl_context must be an SSLContext, not {context!r}")
    if context is not None and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("ssl_context is one for clients; a server's is made with ssl.Purpose.CLIENT_AUTH")
    return context


def choose_processor(processor: int | str | None) -> int | None:
    """Return the number of a processor on which this process may run, or None where the system does not offer that."""
    if processor is None:
        return None
    if processor != "current" and (not isinstance(processor, int) or isinstance(processor, bool)):
        raise ValueError(f'processor must be a number, "current" or None, not {processor!r}')
    allowed = system.processors()
    if not allowed:
        return None
    if processor == "current":
        with suppress(OSError):  # no /proc, as in a bare chroot
            return system.current_processor()
        return None
    if processor not in allowed:
        raise ValueError(f"processor must be one of {allowed}, on which this process may run, not {processor}")
    return processor


def check_decoy_key(key: bytes | None) -> bytes | None:
    if key is not None and not (isinstance(key, bytes) and key):
        raise ValueError("scram_decoy_key must be bytes, and not empty")  # not shown, as it is a secret
    return key


def check_proxies(proxies: Iterable[str]) -> list[IPNetwork]:
    if isinstance(proxies, str):
        raise ValueError(f"trusted_proxies must be a list: [{proxies!r}]")
    return [ipaddress.ip_network(network) for network in proxies]


def check_reuse_port(reuse_port: bool) -> bool:
    if reuse_port and not system.can_share_ports():
        raise ValueError("reuse_port needs SO_REUSEPORT, which this system does not have")
    return reuse_port
