"""CAPA (RFC 2449)."""

from __future__ import annotations

import re

import pytest

from popart.testing.wire.client import Target, WireClient

pytestmark: pytest.MarkDecorator = pytest.mark.optional("capa")

Capabilities = dict[bytes, list[bytes]]


def capabilities(client: WireClient) -> Capabilities:
    """Return the arguments of each capability, by its upper-case name."""
    lines = client.data(b"CAPA").split(b"\r\n")[:-1]
    entries = [(words[0].upper(), words[1:]) for words in (line.split(b" ") for line in lines)]
    assert len(dict(entries)) == len(entries), "a capability is announced twice"
    return dict(entries)


def announced(client: WireClient, name: bytes) -> list[bytes]:
    """Return the arguments of a capability; skip the test if the server does not announce it."""
    found = capabilities(client).get(name)
    if found is None:
        pytest.skip(f"CAPA does not announce {name.decode()}")
    return found


@pytest.mark.parametrize("signed_in", [False, True])
def test_grammar(guest: WireClient, signed_in: bool) -> None:
    """CAPA works in both states.  It has printable words with one space between them, on lines of at most 512 octets
    (RFC 2449 sections 3 to 5)."""
    if signed_in:
        assert guest.signs_in()
    lines = guest.data(b"capa").split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert re.fullmatch(rb"[!-,/-~][!-~]*( [!-~]+)*", line) and len(line) <= 510


def test_the_same_list_in_both_states(guest: WireClient) -> None:
    """A capability that is announced before sign-in is announced after it, too, even if it has become useless.  Only
    some arguments may change (RFC 2449 sections 5 and 6, RFC 5034 section 3)."""
    before = capabilities(guest)
    assert guest.signs_in()
    after = capabilities(guest)
    assert before.keys() <= after.keys()
    settled = before.keys() - {b"LOGIN-DELAY", b"EXPIRE"}
    assert {name: before[name] for name in settled} == {name: after[name] for name in settled}


@pytest.mark.parametrize("name", [b"TOP", b"UIDL"])
def test_an_announced_command_is_there(client: WireClient, two_messages: int, name: bytes) -> None:
    """If a capability is announced, its command exists (RFC 2449 sections 6.1 and 6.8)."""
    announced(client, name)
    client.raw(name + b" 1 0" if name == b"TOP" else name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.optional(name.lower())) for name in ["TOP", "UIDL"]]
)
def test_an_existing_command_is_announced(guest: WireClient, name: str) -> None:
    """Clients look for TOP and UIDL before they sign in (RFC 2449 sections 6.1 and 6.8)."""
    assert name.encode() in capabilities(guest)


@pytest.mark.parametrize(
    "name, pattern",
    [
        (b"EXPIRE", rb"(NEVER|[0-9]+)( USER)?"),
        (b"LOGIN-DELAY", rb"[0-9]+( USER)?"),
        (b"SASL", rb"[A-Z0-9_-]{1,20}( [A-Z0-9_-]{1,20})*"),
        (b"IMPLEMENTATION", rb".+"),
        (b"TOP", rb""),
        (b"UIDL", rb""),
        (b"USER", rb""),
        (b"PIPELINING", rb""),
        (b"RESP-CODES", rb""),
    ],
)
def test_arguments(guest: WireClient, name: bytes, pattern: bytes) -> None:
    """A capability has the arguments that the RFC defines (RFC 2449 section 6, RFC 5034 section 3)."""
    assert re.fullmatch(pattern, b" ".join(announced(guest, name)))


def test_the_response_code_of_a_wrong_password(guest: WireClient, target: Target) -> None:
    """A server with AUTH-RESP-CODE distinguishes bad credentials from its own failures (RFC 3206 section 6)."""
    announced(guest, b"AUTH-RESP-CODE")
    guest.ok(b"USER " + target.user)
    assert guest.refused(b"PASS wrong-" + target.password).upper().startswith(b"[AUTH] ")


def test_a_bracket_begins_a_response_code(client: WireClient) -> None:
    """With RESP-CODES, a text that begins with a bracket is a response code (RFC 2449 section 8)."""
    announced(client, b"RESP-CODES")
    for command in (b"XYZZY", b"RETR 0", b"DELE 99999999", b"USER alice"):
        assert re.match(rb"[^\[]|$|\[[!-.0-\\^-~]+(/[!-.0-\\^-~]+)*\]", client.refused(command))
