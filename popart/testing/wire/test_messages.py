"""The TRANSACTION state: listings, messages and marks of deletion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from popart.testing.wire.client import WireClient
from popart.testing.wire.messages import HARD, message_id, on_the_wire

optional: pytest.MarkDecorator = pytest.mark.optional

MOST = 100
"""How many messages of a foreign maildrop the tests read."""

BAD_NUMBERS = [b"0", b"-1", b"x", b"1x", b"99999999", b"4294967297", b"18446744073709551617", b"9" * 100]
"""Numbers that no message has, among them 1 + 2**32 and 1 + 2**64, which could wrap around."""

UNKNOWN = [b"XYZZY", b"", b" ", b"RETRIEVE 1", b"\xff\xfe", pytest.param(b"STAT\0", marks=optional("strict"))]

BY_NUMBER = [
    b"LIST %b",
    b"RETR %b",
    b"DELE %b",
    pytest.param(b"TOP %b 0", marks=optional("top")),
    pytest.param(b"UIDL %b", marks=optional("uidl")),
]


def read_all(client: WireClient) -> Iterator[tuple[int, bytes]]:
    """Yield the messages with their numbers."""
    for number in list(client.listing(b"LIST"))[:MOST]:
        yield number, client.data(b"RETR %d" % number)


def top(message: bytes, count: int) -> bytes:
    """Return a message's header, the blank line and the first *count* lines of its body."""
    # The line end in front ends the header where the header is empty.
    header, blank, body = (b"\r\n" + message).partition(b"\r\n\r\n")
    return (header + blank + b"".join(re.findall(rb"(?s).*?\r\n", body)[:count]))[2:]


# Listings.


def test_stat_counts_what_list_lists(client: WireClient) -> None:
    """STAT is the count and the sum of LIST's sizes (RFC 1939 section 5)."""
    sizes = client.listing(b"LIST")
    assert client.stat() == (len(sizes), sum(map(int, sizes.values())))


@pytest.mark.parametrize("command", [b"LIST", pytest.param(b"UIDL", marks=optional("uidl"))])
def test_messages_are_numbered_from_1(client: WireClient, command: bytes) -> None:
    """Messages are numbered from 1, without a gap (RFC 1939 section 5)."""
    numbers = list(client.listing(command))
    assert numbers == list(range(1, client.stat()[0] + 1))


@pytest.mark.parametrize("command", [b"LIST", pytest.param(b"UIDL", marks=optional("uidl"))])
def test_one_line_of_a_listing(client: WireClient, command: bytes) -> None:
    """With a number, LIST and UIDL answer with that message's line alone (RFC 1939 sections 5 and 7)."""
    for number, value in list(client.listing(command).items())[:MOST]:
        assert client.ok(command + b" %d" % number).split(b" ")[:2] == [b"%d" % number, value]


@optional("uidl")
def test_unique_ids(client: WireClient) -> None:
    """A unique-id has 1 to 70 characters of 0x21 to 0x7E, and no two are alike (RFC 1939 section 7)."""
    ids = client.listing(b"UIDL").values()
    assert all(re.fullmatch(rb"[!-~]{1,70}", unique_id) for unique_id in ids)
    assert len(set(ids)) == len(ids)


@optional("uidl")
def test_unique_ids_persist(sign_in: Callable[[], WireClient]) -> None:
    """A message has the same unique-id in the next session (RFC 1939 section 7)."""
    first = sign_in()
    before = first.listing(b"UIDL")
    first.close()
    assert sign_in().listing(b"UIDL") == before


# RETR and TOP.


def test_sizes_are_octets_on_the_wire(client: WireClient) -> None:
    """LIST's size is what RETR sends: a line end counts as two, a stuffed dot not at all (RFC 1939 section 11)."""
    sizes = client.listing(b"LIST")
    for number, message in read_all(client):
        assert int(sizes[number]) == len(message), f"message {number}"


def test_a_message_is_the_same_each_time(client: WireClient, two_messages: int) -> None:
    """RETR changes nothing (RFC 1939 section 5)."""
    stat = client.stat()
    assert client.raw(b"RETR 1") == client.raw(b"RETR 1")
    assert client.stat() == stat


@pytest.mark.parametrize("name", [pytest.param(name, marks=[optional(name)] * (name == "nul")) for name in HARD])
def test_octets_survive(client: WireClient, name: str) -> None:
    """A message arrives as it was stored, except that its line ends become CRLF (RFC 1939 section 3)."""
    for _, message in read_all(client):
        if message_id(name) in message:
            assert message == on_the_wire(HARD[name])
            return
    pytest.skip("the message is not in the maildrop")


@optional("top")
@pytest.mark.parametrize("count", [0, 1, 2, 99_999_999])
def test_top(client: WireClient, count: int) -> None:
    """TOP sends the header, the blank line and the wanted lines of the body, or all of it (RFC 1939 section 7)."""
    for number, message in read_all(client):
        assert client.data(b"TOP %d %d" % (number, count)) == top(message, count), f"message {number}"


# Bad numbers.


@pytest.mark.parametrize("command", BY_NUMBER)
def test_numbers_of_no_message(client: WireClient, two_messages: int, command: bytes) -> None:
    """A number that no message has is refused, and the session goes on (RFC 1939 section 5)."""
    stat = client.stat()
    for number in [*BAD_NUMBERS, b"%d" % (two_messages + 1)]:
        client.refused(command % number)
    assert client.stat() == stat


@optional("strict")
@pytest.mark.parametrize("argument", [b"+1", b"1.0", b"0x1", b"1 1", b" 1", "１".encode(), "١".encode(), b"1\0"])
def test_what_only_looks_like_a_number(client: WireClient, two_messages: int, argument: bytes) -> None:
    """A message number is ASCII digits, after one space (RFC 1939 section 3)."""
    client.refused(b"RETR " + argument)
    client.refused(b"DELE " + argument)
    assert client.stat()[0] == two_messages


@pytest.mark.parametrize("command", [b"RETR", b"DELE", pytest.param(b"TOP", marks=optional("top"))])
def test_numbers_that_are_missing(client: WireClient, two_messages: int, command: bytes) -> None:
    """RETR, DELE and TOP want a message's number (RFC 1939 sections 5 and 7)."""
    client.refused(command)
    assert client.stat()[0] == two_messages


@optional("top")
@pytest.mark.parametrize("lines", [b"", b" -1", b" x"])
def test_top_wants_a_number_of_lines(client: WireClient, two_messages: int, lines: bytes) -> None:
    """TOP's second argument is required, and not negative (RFC 1939 section 7)."""
    client.refused(b"TOP 1" + lines)
    client.ok(b"NOOP")


# DELE and RSET.


def test_a_marked_message_is_out_of_reach(client: WireClient, two_messages: int) -> None:
    """Nobody can read or mark a message marked as deleted, and STAT and LIST leave it out (RFC 1939 section 5)."""
    sizes = client.listing(b"LIST")
    client.ok(b"DELE 1")
    for command in (b"RETR 1", b"LIST 1", b"DELE 1"):
        client.refused(command)
    size = int(sizes.pop(1))
    assert client.listing(b"LIST") == sizes
    client.ok(b"RSET")
    count, octets = client.stat()
    client.ok(b"DELE 1")
    assert client.stat() == (count - 1, octets - size)


@optional("top")
def test_top_of_a_marked_message(client: WireClient, two_messages: int) -> None:
    """TOP refuses a message that is marked as deleted (RFC 1939 section 7)."""
    client.ok(b"DELE 1")
    client.refused(b"TOP 1 0")


@optional("uidl")
def test_unique_ids_of_marked_messages(client: WireClient, two_messages: int) -> None:
    """UIDL leaves out messages marked as deleted, and refuses their numbers (RFC 1939 section 7)."""
    ids = client.listing(b"UIDL")
    client.ok(b"DELE 1")
    client.refused(b"UIDL 1")
    del ids[1]
    assert client.listing(b"UIDL") == ids


def test_numbers_never_move(client: WireClient, two_messages: int) -> None:
    """The other messages keep their numbers within the session (RFC 1939 section 5)."""
    second = client.raw(b"RETR 2")
    client.ok(b"DELE 1")
    assert client.raw(b"RETR 2") == second


def test_rset(client: WireClient, two_messages: int) -> None:
    """RSET removes all marks (RFC 1939 section 5)."""
    stat, sizes = client.stat(), client.listing(b"LIST")
    client.ok(b"DELE 1")
    client.ok(b"DELE 2")
    client.ok(b"RSET")
    assert (client.stat(), client.listing(b"LIST")) == (stat, sizes)
    client.raw(b"RETR 1")


def test_an_empty_listing(client: WireClient, two_messages: int) -> None:
    """If every message is marked, LIST lists nothing, and STAT says 0 0 (RFC 1939 section 5)."""
    if two_messages > 1000:
        pytest.skip(f"{two_messages} messages are too many to mark")
    for number in range(1, two_messages + 1):
        client.ok(b"DELE %d" % number)
    assert client.raw(b"LIST") == b".\r\n"
    assert client.stat() == (0, 0)


# Lines that are not commands.


@pytest.mark.parametrize("command", UNKNOWN)
def test_unknown_commands(client: WireClient, command: bytes) -> None:
    """A line that is not a command is refused in one line, and the session goes on (RFC 1939 section 3)."""
    client.refused(command)
    client.ok(b"NOOP")


@pytest.mark.parametrize("command", [b"\xff\xfe", b"RETR \xff\xfe", b"XYZZY\rNOOP", b"XYZZY\0", b"RETR \x1b[A"])
def test_answers_are_printable(client: WireClient, command: bytes) -> None:
    """A status line is printable ASCII, whatever was sent (RFC 2449 section 3)."""
    assert re.fullmatch(rb"[ -~]*", client.refused(command))
