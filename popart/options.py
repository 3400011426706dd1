"""The options of a server: the keyword arguments of `popart.Server`, and which values they take."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from typing import TypedDict

from popart.addresses import IPNetwork
from popart.limits import is_time

MAX_TIMEOUT = 86_400.0
"""Seconds.  The most that *timeout* may be; sockets cannot count much further than 24 days."""

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""The networks of this machine alone."""

_HOSTNAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAX_HOSTNAME = 255
_IMPLEMENTATION = re.compile(r"[!-~]+( [!-~]+)*")
_MAX_IMPLEMENTATION = 400  # a capability line has 512 octets, RFC 2449 section 5
_EXPIRE = re.compile(r"(NEVER|[0-9]{1,9})( USER)?")


class SocketOptions(TypedDict, total=False):
    """The options of `popart.Server.from_socket`.  `popart.Server` says what they mean."""

    hostname: str | None
    timeout: float
    implementation: str
    expire: str
    apop: bool
    ssl_context: ssl.SSLContext | None
    require_tls: bool
    allow_cleartext: bool
    scram_decoy_key: bytes | None
    proxy_protocol: bool
    trusted_proxies: Iterable[str]


def check_server_address(address: object) -> None:
    if not isinstance(address, tuple):
        raise ValueError(f"server_address must be a host and a port, not {address!r}")


def check_factory(on_new_connection: object) -> None:
    if not callable(on_new_connection):
        raise ValueError(f"on_new_connection must be callable, not {on_new_connection!r}")


def choose_hostname(hostname: str | None) -> str:
    """Return a valid name for APOP's timestamp; the default is this machine's name, if it is valid."""
    if hostname is None:
        hostname = socket.gethostname()
        if not _HOSTNAME.fullmatch(hostname):
            hostname = "localhost"
    return _check_text("hostname", hostname, _HOSTNAME, _MAX_HOSTNAME)


def check_timeout(timeout: float, minimum: float) -> float:
    if not (is_time(timeout) and minimum <= timeout <= MAX_TIMEOUT):
        raise ValueError(f"timeout must be {minimum} to {MAX_TIMEOUT} seconds, not {timeout!r}")
    return float(timeout)


def check_implementation(implementation: str) -> str:
    return _check_text("implementation", implementation, _IMPLEMENTATION, _MAX_IMPLEMENTATION)


def check_expire(expire: str) -> str:
    return _check_text("expire", expire, _EXPIRE, len("999999999 USER"))


def check_context(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise ValueError(f"ssl_context must be an SSLContext, not {context!r}")
    if context is not None and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("ssl_context is one for clients; a server's is made with ssl.Purpose.CLIENT_AUTH")
    return context


def check_decoy_key(key: bytes | None) -> bytes | None:
    if key is not None and not (isinstance(key, bytes) and key):
        raise ValueError("scram_decoy_key must be bytes, and not empty")  # not shown, as it is a secret
    return key


def check_proxies(proxies: Iterable[str]) -> list[IPNetwork]:
    if isinstance(proxies, str):
        raise ValueError(f"trusted_proxies must be several: [{proxies!r}]")
    return [ipaddress.ip_network(network) for network in proxies]


def check_reuse_port(reuse_port: bool) -> bool:
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port needs SO_REUSEPORT, which this system does not have")
    return reuse_port


def _check_text(name: str, value: object, pattern: re.Pattern[str], longest: int) -> str:
    if not (isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value)):
        raise ValueError(f"{name} cannot be {value!r}")
    return value
