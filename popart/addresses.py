"""Socket addresses: which clients are one peer, and which proxies may name other clients."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def peer_of(client_address: Any) -> str | None:
    """Return what counts as one peer: an IPv4 address or an IPv6 /64.  Clients of a UNIX socket have no peer."""
    if not isinstance(client_address, tuple):
        return None
    if ":" not in client_address[0]:
        return str(client_address[0])
    address = ip_address(client_address)
    return str(address) if address.version == 4 else str(int(address) >> 64)


def ip_address(client_address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address of a socket address.  An IPv4 address mapped into IPv6 becomes IPv4."""
    address = ipaddress.ip_address(client_address[0])
    return (address.version == 6 and address.ipv4_mapped) or address


def is_trusted(client_address: Any, proxies: Iterable[IPNetwork]) -> bool:
    """Return whether to believe a PROXY header from this socket address: always on a UNIX socket."""
    if not isinstance(client_address, tuple):
        return True
    address = ip_address(client_address)
    return any(address in network for network in proxies)
