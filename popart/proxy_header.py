"""The PROXY protocol, versions 1 and 2: a proxy says which client it brings (HAProxy's proxy-protocol.txt).

Everything here is pure: octets in, facts out.  It asks for no octet after the header, because TLS or POP3 may follow at
once.
"""

# Why not the package proxy-protocol (0.11.3)?  It needs typing_extensions, but popart needs only the standard library.
# Its reader is asyncio's.  For version 1 it wants "a line", which no bare socket reads exactly.  It takes lines of any
# length, ports such as "+1_0" and unknown families, and lets struct.error through.

from __future__ import annotations

import re
import socket
from collections.abc import Generator
from typing import NamedTuple

from popart.errors import SessionError

Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""A client's address as `socket.socket.accept` returns it, for IPv4, IPv6, a UNIX socket's path and an abstract one."""

MAX_V1 = 107
"""Octets of a version 1 header, its CRLF included: the longest line that section 2.1 knows."""

MAX_V2 = 4096
"""The most octets of a version 2 header to accept, as in nginx.  Its length field could ask for 65,551."""

_SHORTEST = len(b"PROXY UNKNOWN\r\n")  # and version 2 begins with 16
_V1 = b"PROXY "
_V1_LINE = re.compile(r"PROXY (TCP[46]) ([^ \0]+) ([^ \0]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNIX_PATH = 108
_SSL, _CLIENT_SSL = 0x20, 0x01  # section 2.2.6
_SSL_FIXED = 5  # its field "client" has one octet, "verify" four


class ProxyError(SessionError):
    """A PROXY header is malformed, or the connection ended within it.  No handler learns of it: there is none yet."""


class Header(NamedTuple):
    """What a header says."""

    address: Address | None = None
    """The client's address, or None if the connection's own address counts.  LOCAL and UNKNOWN have none: they are
    health checks, and clients that the proxy itself does not know."""

    tls: bool = False
    """True if the client came to the proxy by TLS.  Only version 2 can say so."""


def read_header() -> Generator[int, bytes, Header]:
    """Read a header of either version.

    Yield how many octets are wanted next, and be sent that many or fewer, or ``b""`` when the connection has ended.

    :raises ProxyError: it is malformed, too long, or cut short.
    """
    header = yield from _read(b"", _SHORTEST)
    if header.startswith(_V1):
        while not header.endswith(b"\r\n"):
            size = len(header) + (1 if header.endswith(b"\r") else 2)  # never beyond the CRLF
            if size > MAX_V1:
                raise ProxyError("the PROXY header is too long")
            header = yield from _read(header, size)
        return Header(_parse_v1(header))
    header = yield from _read(header, _V2_FIXED)
    size = _V2_FIXED + int.from_bytes(header[14:], "big")
    if size > MAX_V2:
        raise ProxyError("the PROXY header is too long")
    header = yield from _read(header, size)
    return _parse_v2(header[12], header[13], header[_V2_FIXED:])


def _read(header: bytes, size: int) -> Generator[int, bytes, bytes]:
    while len(header) < size:
        octets = yield size - len(header)
        header += octets
        if not octets:
            raise ProxyError("the connection ended within the PROXY header")
        if not (_V1.startswith(header[: len(_V1)]) or _V2.startswith(header[: len(_V2)])):
            raise ProxyError("this is no PROXY header")
    return header


def _parse_v1(line: bytes) -> Address | None:
    """Section 2.1.  After UNKNOWN the rest of the line means nothing."""
    if line.startswith((b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ")):
        return None
    found = _V1_LINE.fullmatch(line.decode("latin-1"))
    if found is None:
        raise ProxyError("the PROXY header is malformed")
    family = socket.AF_INET if found[1] == "TCP4" else socket.AF_INET6
    ports = int(found[4]), int(found[5])
    try:
        source, _ = socket.inet_pton(family, found[2]), socket.inet_pton(family, found[3])
    except (OSError, ValueError):
        raise ProxyError("the PROXY header holds no address") from None
    if max(ports) > 0xFFFF:
        raise ProxyError("the PROXY header holds no port")
    return _inet(family, source, ports[0])


def _parse_v2(version_and_command: int, family_and_protocol: int, rest: bytes) -> Header:
    """Section 2.2.  Without addresses, everything after the fixed part is ignored."""
    if version_and_command == _LOCAL:
        return Header()
    family, protocol = divmod(family_and_protocol, 16)
    if version_and_command != _PROXY or family > 3 or protocol > 2:
        raise ProxyError("the PROXY header has an unknown version, command, family or protocol")
    if not (family and protocol):
        return Header()
    size = (12, 36, 2 * _UNIX_PATH)[family - 1]
    if len(rest) < size:
        raise ProxyError("the PROXY header is shorter than its addresses")
    address: Address
    if family == 1:
        address = _inet(socket.AF_INET, rest[:4], int.from_bytes(rest[8:10], "big"))
    elif family == 2:
        address = _inet(socket.AF_INET6, rest[:16], int.from_bytes(rest[32:34], "big"))
    else:
        path = rest[:_UNIX_PATH].rstrip(b"\0")
        # As `os.fsdecode` reads a path where names are UTF-8: the system here may be another.
        address = path if path.startswith(b"\0") else path.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return Header(address, _says_tls(rest[size:]))


def _says_tls(vectors: bytes) -> bool:
    """Section 2.2.6: look for the vectors that tell of TLS, among type-length-value vectors.

    A vector that does not fit ends them, and is not an error: some proxies pad their headers.  If a vector cannot be
    read, it does not count as TLS, which is the safe side.
    """
    while vectors:
        end = 3 + int.from_bytes(vectors[1:3], "big")
        if vectors[0] == _SSL and 3 + _SSL_FIXED <= end <= len(vectors):
            return bool(vectors[3] & _CLIENT_SSL)
        vectors = vectors[end:]
    return False


def _inet(family: socket.AddressFamily, host: bytes, port: int) -> Address:
    text = socket.inet_ntop(family, host)
    return (text, port) if family == socket.AF_INET else (text, port, 0, 0)
