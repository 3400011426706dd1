"""The UPDATE state, and the other ends of a session."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from popart.testing.wire.client import WireClient, is_bare_end

optional: pytest.MarkDecorator = pytest.mark.optional
deletes: pytest.MarkDecorator = pytest.mark.deletes

SignIn = Callable[[], WireClient]


def end(client: WireClient) -> None:
    """Sign out and wait until the server has closed the connection."""
    client.ok(b"QUIT")
    see_the_end(client)


def see_the_end(client: WireClient) -> None:
    """Check that nothing more comes, with close_notify or, from servers that have none, without."""
    try:
        assert client.rest() == b""
    except ssl.SSLError as error:
        if not is_bare_end(error):
            raise
    client.drop()


def sizes(client: WireClient) -> list[bytes]:
    """Return the sizes of all messages."""
    return list(client.listing(b"LIST").values())


@pytest.fixture
def count(client: WireClient) -> int:
    """How many messages there are: enough to delete some.  The client that counted them has left."""
    count, _ = client.stat()
    end(client)
    if count < 4:
        pytest.skip(f"the maildrop has {count} messages, four are needed")
    return count


def test_quit_is_the_end(client: WireClient) -> None:
    """QUIT is answered, and the connection closed (RFC 1939 section 6)."""
    end(client)


@optional("close-notify")
def test_tls_ends_with_close_notify(client: WireClient) -> None:
    """Over TLS the end is announced, so a client can recognise a connection that was cut (RFC 8446 section 6.1)."""
    if client.target.context is None:
        pytest.skip("not over TLS")
    client.ok(b"QUIT")
    assert client.rest() == b""


@pytest.mark.parametrize("farewell", [b"", b"QUIT", b"NOOP\r\n"], ids=repr)
def test_nothing_is_deleted_without_quit(sign_in: SignIn, count: int, farewell: bytes) -> None:
    """A session that ends without QUIT and its line end deletes nothing (RFC 1939 section 6)."""
    client = sign_in()
    before = sizes(client)
    client.ok(b"DELE %d" % count)
    client.send(farewell)
    client.drop()
    assert sizes(sign_in()) == before


def test_nothing_is_deleted_after_rset(sign_in: SignIn, count: int) -> None:
    """QUIT does not delete a message after RSET has removed its mark (RFC 1939 section 5)."""
    client = sign_in()
    before = sizes(client)
    client.ok(b"DELE %d" % count)
    client.ok(b"RSET")
    end(client)
    assert sizes(sign_in()) == before


@optional("pipelining")
def test_nothing_runs_after_quit(sign_in: SignIn, count: int) -> None:
    """Commands sent after QUIT are neither answered nor run (RFC 1939 section 6)."""
    client = sign_in()
    before = sizes(client)
    client.send(b"RSET\r\nQUIT\r\nDELE %d\r\nQUIT\r\n" % count)
    assert client.status().startswith(b"+OK")
    assert client.status().startswith(b"+OK")
    see_the_end(client)
    assert sizes(sign_in()) == before


@deletes
def test_quit_deletes(sign_in: SignIn, count: int) -> None:
    """QUIT deletes the marked messages for good, and no others; those get new numbers (RFC 1939 section 6)."""
    client = sign_in()
    left = sizes(client)
    kept = [client.data(b"RETR %d" % number) for number in (count - 3, count - 1)]
    for number in (count, count - 2):
        client.ok(b"DELE %d" % number)
        del left[number - 1]
    end(client)
    client = sign_in()
    assert sizes(client) == left
    assert [client.data(b"RETR %d" % number) for number in (count - 3, count - 2)] == kept


@deletes
@optional("uidl")
def test_unique_ids_stay_with_their_messages(sign_in: SignIn, count: int) -> None:
    """The messages left after a deletion keep their unique-ids, whatever their numbers are now (RFC 1939 section 7)."""
    client = sign_in()
    left = list(client.listing(b"UIDL").values())
    client.ok(b"DELE %d" % (count - 1))
    del left[count - 2]
    end(client)
    assert list(sign_in().listing(b"UIDL").values()) == left


@optional("lock")
def test_one_session_at_a_time(sign_in: SignIn, guest: WireClient) -> None:
    """While a session has the maildrop, another is refused.  If the refusal has a code, it is [IN-USE] (RFC 1939
    section 4, RFC 2449 section 8.1.1)."""
    first = sign_in()
    guest.ok(b"USER " + guest.target.user)
    refusal = guest.refused(b"PASS " + guest.target.password)
    assert not refusal.startswith(b"[") or refusal.upper().startswith(b"[IN-USE] ")
    end(first)
    end(sign_in())
