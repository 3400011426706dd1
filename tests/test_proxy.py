"""The PROXY protocol's header, octets in and facts out (HAProxy's proxy-protocol.txt)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popart.proxy_header import Address, Header, ProxyError, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BEHIND = b"\x16\x03\x01 or USER alice\r\n"


def v2(command: int, family: int, rest: bytes = b"", length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def inet(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return socket.inet_pton(family, source) + socket.inet_pton(family, destination) + struct.pack("!HH", *ports)


def unix(source: bytes, destination: bytes = b"/run/popart") -> bytes:
    return struct.pack("108s108s", source, destination)


IPV4 = inet("192.0.2.1", "198.51.100.2", (56324, 110))
IPV6 = inet("2001:db8::1", "2001:db8::2", (56324, 995))
NOOP = b"\x04\0\x03abc"
LONGEST_IPV6 = "1111:2222:3333:4444:5555:6666:7777:8888"

HEADERS: dict[str, tuple[bytes, Address | None]] = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 110\r\n", ("192.0.2.1", 56324)),
    "v1 TCP4, shortest": (b"PROXY TCP4 0.0.0.0 1.1.1.1 0 0\r\n", ("0.0.0.0", 0)),
    "v1 TCP4, longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ("255.255.255.255", 65535),
    ),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:DB8::2 56324 995\r\n", ("2001:db8::1", 56324, 0, 0)),
    "v1 TCP6, shortest": (b"PROXY TCP6 :: :: 1 1\r\n", ("::", 1, 0, 0)),
    "v1 TCP6, longest": (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % ((LONGEST_IPV6.encode(),) * 2),
        (LONGEST_IPV6, 65535, 0, 0),
    ),
    "v1 TCP6, not canonical": (b"PROXY TCP6 2001:0DB8:0:0::1 ::1 1 1\r\n", ("2001:db8::1", 1, 0, 0)),
    "v1 TCP6, an IPv4 address": (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 1\r\n", ("::ffff:192.0.2.1", 1, 0, 0)),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN, with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    "v1 UNKNOWN, with junk": (b"PROXY UNKNOWN \0\xff\r\r \n x\r\n", None),
    "v1 UNKNOWN, longest": (b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", None),
    "v2 TCP over IPv4": (v2(0x21, 0x11, IPV4), ("192.0.2.1", 56324)),
    "v2 UDP over IPv4": (v2(0x21, 0x12, IPV4), ("192.0.2.1", 56324)),
    "v2 TCP over IPv6": (v2(0x21, 0x21, IPV6), ("2001:db8::1", 56324, 0, 0)),
    "v2 an IPv4 address in IPv6": (
        v2(0x21, 0x21, inet("::ffff:192.0.2.1", "::1", (1, 1))),
        ("::ffff:192.0.2.1", 1, 0, 0),
    ),
    "v2 UNIX, a path": (v2(0x21, 0x31, unix(b"/run/client")), "/run/client"),
    "v2 UNIX, any last letter": (v2(0x21, 0x31, unix(b"\0X")), b"\0X"),
    "v2 UNIX, the longest path": (v2(0x21, 0x31, unix(b"/" * 108)), "/" * 108),
    "v2 UNIX, no UTF-8": (v2(0x21, 0x31, unix(b"/\xff")), "/\udcff"),
    "v2 UNIX, junk behind the path": (v2(0x21, 0x31, unix(b"/run/client\0junk")), "/run/client"),
    "v2 UNIX, without a name": (v2(0x21, 0x31, unix(b"")), ""),
    "v2 UNIX, abstract": (v2(0x21, 0x31, unix(b"\0client\0x")), b"\0client\0x"),
    "v2 TLVs behind IPv4": (v2(0x21, 0x11, IPV4 + NOOP), ("192.0.2.1", 56324)),
    "v2 TLVs behind IPv6": (v2(0x21, 0x21, IPV6 + NOOP), ("2001:db8::1", 56324, 0, 0)),
    "v2 TLVs behind UNIX": (v2(0x21, 0x31, unix(b"/run/client") + NOOP), "/run/client"),
    "v2 broken TLVs": (v2(0x21, 0x11, IPV4 + b"\x04\xff"), ("192.0.2.1", 56324)),
    "v2 CRLF in it": (v2(0x21, 0x11, inet("13.10.13.10", "1.1.1.1", (0x0D0A, 1))), ("13.10.13.10", 0x0D0A)),
    "v2 longest": (v2(0x21, 0x11, IPV4.ljust(4080)), ("192.0.2.1", 56324)),
    "v2 AF_UNSPEC": (v2(0x21, 0x00), None),
    "v2 AF_UNSPEC, with octets": (v2(0x21, 0x01, IPV4), None),
    "v2 protocol unspecified": (v2(0x21, 0x10, IPV4), None),
    "v2 LOCAL": (v2(0x20, 0x00), None),
    "v2 LOCAL, with addresses": (v2(0x20, 0x11, IPV4 + NOOP), None),
    "v2 LOCAL, whatever its family": (v2(0x20, 0xFF, b"x"), None),
}

MALFORMED: dict[str, bytes] = {
    "POP3": b"CAPA\r\nCAPA\r\nCAPA\r\n",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".ljust(60, b"x"),
    "v1 lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 1\r\n",
    "v1 lower case family": b"PROXY tcp4 192.0.2.1 192.0.2.2 1 1\r\n",
    "v1 unknown family": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 1\r\n",
    "v1 UNKNOWN and more": b"PROXY UNKNOWNS\r\n",
    "v1 a tab": b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 1\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 1\r\n",
    "v1 two spaces further on": b"PROXY TCP4 192.0.2.1 192.0.2.2  1 1\r\n",
    "v1 a space at the end": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1 \r\n",
    "v1 a port too few": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    "v1 a port too many": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1 1\r\n",
    "v1 no addresses": b"PROXY TCP4    \r\n",
    "v1 LF alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\n".ljust(200),
    "v1 CR alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\r".ljust(200),
    "v1 CR within": b"PROXY TCP4 192.0.2.1\r 192.0.2.2 1 1\r\n",
    "v1 LF within": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\n\r\n",
    "v1 a NUL": b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 1\r\n",
    "v1 8-bit": b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 1\r\n",
    "v1 a leading zero": b"PROXY TCP4 192.0.02.1 192.0.2.2 1 1\r\n",
    "v1 an octet too many": b"PROXY TCP4 192.0.2.1.1 192.0.2.2 1 1\r\n",
    "v1 an octet too few": b"PROXY TCP4 192.0.2 192.0.2.2 1 1\r\n",
    "v1 an octet too large": b"PROXY TCP4 192.0.2.256 192.0.2.2 1 1\r\n",
    "v1 hexadecimal": b"PROXY TCP4 0xC0.0.2.1 192.0.2.2 1 1\r\n",
    "v1 a name": b"PROXY TCP4 localhost 192.0.2.2 1 1\r\n",
    "v1 IPv6 in TCP4": b"PROXY TCP4 2001:db8::1 192.0.2.2 1 1\r\n",
    "v1 IPv4 in TCP6": b"PROXY TCP6 192.0.2.1 2001:db8::1 1 1\r\n",
    "v1 a bad destination": b"PROXY TCP4 192.0.2.1 nowhere 1 1\r\n",
    "v1 a scope": b"PROXY TCP6 fe80::1%1 fe80::2 1 1\r\n",
    "v1 two gaps": b"PROXY TCP6 fe80::1::1 fe80::2 1 1\r\n",
    "v1 five digits": b"PROXY TCP6 fe80::12345 fe80::2 1 1\r\n",
    "v1 port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 1\r\n",
    "v1 destination port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
    "v1 port of six digits": b"PROXY TCP4 192.0.2.1 192.0.2.2 100000 1\r\n",
    "v1 port with a zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 1\r\n",
    "v1 port with a sign": b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 1\r\n",
    "v1 port with an underscore": b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 1\r\n",
    "v1 port of other digits": "PROXY TCP4 192.0.2.1 192.0.2.2 ١ 1\r\n".encode(),
    "v1 no port": b"PROXY TCP4 192.0.2.1 192.0.2.2 x 1\r\n",
    "v1 an octet too long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    "v1 endless": b"PROXY UNKNOWN ".ljust(300, b"x"),
    "v1 endless CRs": b"PROXY UNKNOWN ".ljust(300, b"\r"),
    "v2 version 1": v2(0x11, 0x11, IPV4),
    "v2 version 3": v2(0x31, 0x11, IPV4),
    "v2 LOCAL of version 1": v2(0x10, 0x11, IPV4),
    "v2 unknown command": v2(0x22, 0x11, IPV4),
    "v2 unknown family": v2(0x21, 0x41, IPV4),
    "v2 unknown protocol": v2(0x21, 0x13, IPV4),
    "v2 unknown protocol of no family": v2(0x21, 0x03, IPV4),
    "v2 IPv4 too short": v2(0x21, 0x11, IPV4[:-1]),
    "v2 IPv6 too short": v2(0x21, 0x21, IPV6[:-1]),
    "v2 IPv4's octets as IPv6": v2(0x21, 0x21, IPV4),
    "v2 UNIX too short": v2(0x21, 0x31, unix(b"/run/client")[:-1]),
    "v2 nothing": v2(0x21, 0x11),
    "v2 an octet too long": v2(0x21, 0x11, IPV4.ljust(4081)),
    "v2 longest length": v2(0x20, 0x00, length=0xFFFF),
    "v2 a wrong signature": v2(0x21, 0x11, IPV4).replace(b"QUIT", b"QUIZ"),
}

headers = pytest.mark.parametrize(("octets", "address"), HEADERS.values(), ids=HEADERS.keys())


class Stream:
    """Octets that arrive in pieces.  Like a socket, it returns no more than was asked, and nothing at its end."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.received = 0
        self.farthest = 0
        """How many octets from the start were ever asked for."""

    def recv(self, size: int) -> bytes:
        assert size > 0
        self.farthest = max(self.farthest, self.received + size)
        if not self.pieces:
            return b""
        piece, rest = self.pieces[0][:size], self.pieces[0][size:]
        self.pieces[:1] = [rest] if rest else []
        self.received += len(piece)
        return piece

    def rest(self) -> bytes:
        return b"".join(self.pieces)


def read_all(stream: Stream) -> Header:
    """Read a header as a server does."""
    reading = read_header()
    wanted = next(reading)
    while True:
        try:
            wanted = reading.send(stream.recv(wanted))
        except StopIteration as end:
            header: Header = end.value
            return header


def read(stream: Stream) -> Address | None:
    """Read a header; return the address alone."""
    return read_all(stream).address


def cuttings(octets: bytes) -> Iterator[list[bytes]]:
    """Octets whole, one by one, and cut into two at every place."""
    yield [octets]
    yield [octets[i : i + 1] for i in range(len(octets))]
    for i in range(1, len(octets)):
        yield [octets[:i], octets[i:]]


@headers
def test_header(octets: bytes, address: Address | None) -> None:
    """A header tells the client's address, wherever the network cuts it, and what follows is not touched."""
    for pieces in cuttings(octets + BEHIND):
        stream = Stream(pieces)
        assert read(stream) == address
        assert stream.rest() == BEHIND


@headers
def test_nothing_behind(octets: bytes, address: Address | None) -> None:
    """A header is complete with its last octet: the client may wait for the greeting before it says a word."""
    stream = Stream([octets])
    assert read(stream) == address
    assert stream.farthest == len(octets)


@headers
def test_cut_short(octets: bytes, address: Address | None) -> None:
    """A connection that ends within the header, or before it, has none (section 2.2: partial headers are rejected)."""
    for end in range(len(octets)):
        with pytest.raises(ProxyError, match="ended within"):
            read(Stream([octets[:end]]))


@pytest.mark.parametrize("octets", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(octets: bytes) -> None:
    """What is not exactly the protocol ends the connection (section 2.1), wherever the network cuts it."""
    for pieces in cuttings(octets):
        stream = Stream(pieces)
        with pytest.raises(ProxyError) as caught:
            read(stream)
        assert "ended within" not in str(caught.value)
        assert stream.farthest <= 4096


@pytest.mark.parametrize("octets", [b"U", b"\x16", b"PROXX", b"\r\n\r\n\r", b"PROXY\r"])
def test_refused_at_once(octets: bytes) -> None:
    """What cannot become a header is refused with the first wrong octet, without waiting for more."""
    for pieces in ([octets], [octets[i : i + 1] for i in range(len(octets))]):
        reading = read_header()
        next(reading)
        for piece in pieces[:-1]:
            reading.send(piece)
        with pytest.raises(ProxyError, match="no PROXY header"):
            reading.send(pieces[-1])


def test_too_long_is_refused_unread() -> None:
    """A length beyond the limit is refused before those octets are waited for."""
    stream = Stream([v2(0x20, 0x00, length=4081)])
    with pytest.raises(ProxyError, match="too long"):
        read(stream)
    assert stream.farthest == 16


def test_addresses_are_those_of_accept() -> None:
    """An address has the form that accept gives it, so that an application sees no difference."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as listening:
            with socket.create_connection(listening.getsockname()[:2]) as client:
                accepted, address = listening.accept()
                accepted.close()
                port = client.getsockname()[1]
        assert (
            read(Stream([v2(0x21, 0x11 if family == socket.AF_INET else 0x21, inet(host, host, (port, 1)))])) == address
        )


def ssl_vector(client: int, verify: int = 0, inner: bytes = b"") -> bytes:
    """Make the vector of section 2.2.6: PP2_TYPE_SSL, its bits, the result of verifying, vectors within it."""
    value = struct.pack("!BI", client, verify) + inner
    return struct.pack("!BH", 0x20, len(value)) + value


VERSION = b"\x21\0\x07TLSv1.3"  # PP2_SUBTYPE_SSL_VERSION
ADDRESSES = {"IPv4": (0x11, IPV4), "IPv6": (0x21, IPV6), "UNIX": (0x31, unix(b"/run/client"))}

SAYS_TLS = {
    "HAProxy's": ssl_vector(0x01, 0, VERSION),
    "with a certificate": ssl_vector(0x07, 0, VERSION),
    "with one that does not verify": ssl_vector(0x03, 10),
    "without more": ssl_vector(0x01),
    "with bits that nobody knows": ssl_vector(0xFF),
    "behind others": NOOP + b"\x02\0\0" + ssl_vector(0x01),
    "behind a long one": b"\x05" + struct.pack("!H", 300) + bytes(300) + ssl_vector(0x01),
    "before others": ssl_vector(0x01) + NOOP,
    "before broken ones": ssl_vector(0x01) + b"\x04\xff\xff",
}
SAYS_NO_TLS = {
    "nothing": b"",
    "others": NOOP + b"\xea\0\x01x",
    "an authority": b"\x02\0\x09a.example",
    "the bit is not set": ssl_vector(0x06, 0, VERSION),
    "within another vector": b"\x04" + struct.pack("!H", len(ssl_vector(1))) + ssl_vector(1),
    "too short for its fields": b"\x20\0\x04\x01\0\0\0",
    "without a value": b"\x20\0\0",
    "cut short": ssl_vector(0x01)[:-1],
    "longer than the header": b"\x20\xff\xff\x01\0\0\0\0",
    "behind a broken one": b"\x04\xff\xff" + ssl_vector(0x01),
    "half a vector": b"\x20\0",
    "padding": b" " * 100,
}


@pytest.mark.parametrize("vectors", SAYS_TLS.values(), ids=SAYS_TLS.keys())
@pytest.mark.parametrize(("family", "addresses"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_says_tls(family: int, addresses: bytes, vectors: bytes) -> None:
    """The field PP2_TYPE_SSL with the bit PP2_CLIENT_SSL says that the client came by TLS (section 2.2.6)."""
    header = read_all(Stream([v2(0x21, family, addresses + vectors)]))
    assert header == (read(Stream([v2(0x21, family, addresses)])), True)


@pytest.mark.parametrize("vectors", SAYS_NO_TLS.values(), ids=SAYS_NO_TLS.keys())
@pytest.mark.parametrize(("family", "addresses"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_says_no_tls(family: int, addresses: bytes, vectors: bytes) -> None:
    """Nothing else says so.  Vectors that cannot be read are no error, and say nothing."""
    header = read_all(Stream([v2(0x21, family, addresses + vectors)]))
    assert header == (read(Stream([v2(0x21, family, addresses)])), False)


@pytest.mark.parametrize(
    "octets",
    [
        v2(0x20, 0x11, IPV4 + ssl_vector(0x01)),
        v2(0x20, 0x00, ssl_vector(0x01)),
        v2(0x21, 0x00, ssl_vector(0x01)),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 995\r\n",
        b"PROXY UNKNOWN " + ssl_vector(0x01) + b"\r\n",
    ],
    ids=["LOCAL", "LOCAL without a family", "no family", "version 1", "UNKNOWN"],
)
def test_cannot_say_tls(octets: bytes) -> None:
    """A header that names no client, or is of version 1, says nothing of TLS."""
    assert not read_all(Stream([octets])).tls


@pytest.mark.parametrize("start", [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE])
@given(st.data())
@settings(max_examples=100, database=None)
def test_junk(start: bytes, data: st.DataObject) -> None:
    """Whatever comes is an address, None or a ProxyError, and no more than a header's octets are asked for."""
    text = st.text("0123456789abcdef.:% \r\n").map(str.encode)
    octets = start + data.draw(st.binary(max_size=64) | text | st.tuples(text, st.just(b"\r\n")).map(b"".join))
    stream = Stream([octets])
    try:
        address = read(stream)
    except ProxyError as error:
        assert error.__cause__ is None
    else:
        assert octets[: len(octets) - len(stream.rest())].startswith((b"PROXY ", SIGNATURE))
        assert address is None or isinstance(address, str | bytes) or 0 <= address[1] <= 65535
    assert stream.farthest <= 4096


@given(
    st.ip_addresses(v=4) | st.ip_addresses(v=6),
    st.integers(0, 65535),
    st.binary(max_size=300),
)
@settings(max_examples=100, database=None)
def test_any_address(source: object, port: int, tlvs: bytes) -> None:
    """Both versions tell the same of every address and port."""
    text = str(source)
    number = 6 if ":" in text else 4
    line = f"PROXY TCP{number} {text} {text} {port} 1\r\n".encode()
    binary = v2(0x21, 0x11 if number == 4 else 0x21, inet(text, text, (port, 1)) + tlvs)
    address = read(Stream([line]))
    assert address == read(Stream([binary]))
    assert isinstance(address, tuple) and address[1] == port
    family = socket.AF_INET6 if number == 6 else socket.AF_INET
    assert socket.inet_pton(family, address[0]) == socket.inet_pton(family, text)
