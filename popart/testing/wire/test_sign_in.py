"""The AUTHORIZATION state."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable

import pytest

from popart.testing.wire.client import Target, WireClient

Connect = Callable[[], WireClient]

optional: pytest.MarkDecorator = pytest.mark.optional

IN_TRANSACTION_ONLY = [
    b"STAT",
    b"LIST",
    b"LIST 1",
    b"RETR 1",
    b"DELE 1",
    b"RSET",
    pytest.param(b"TOP 1 0", marks=optional("top")),
    pytest.param(b"UIDL", marks=optional("uidl")),
]


def test_the_greeting_says_ok(guest: WireClient) -> None:
    """The server speaks first, with a positive response (RFC 1939 section 4)."""
    assert guest.greeting.startswith(b"+OK")


def test_user_and_pass(guest: WireClient) -> None:
    """USER and PASS lead to the TRANSACTION state (RFC 1939 section 7)."""
    assert guest.signs_in()
    guest.ok(b"STAT")


def test_keywords_are_case_insensitive(guest: WireClient, target: Target) -> None:
    """Keywords may be sent in any case (RFC 1939 section 3)."""
    guest.ok(b"uSeR " + target.user)
    guest.ok(b"pass " + target.password)
    guest.ok(b"Stat")
    guest.ok(b"nOOp")


@pytest.mark.parametrize("command", IN_TRANSACTION_ONLY)
def test_transaction_commands_need_a_sign_in(guest: WireClient, command: bytes) -> None:
    """Commands of the TRANSACTION state are refused before it, and do no harm (RFC 1939 section 3)."""
    guest.refused(command)
    assert guest.signs_in()


@pytest.mark.parametrize("command", [b"USER alice", b"PASS secret", b"APOP alice " + b"0" * 32, b"AUTH PLAIN"])
def test_nobody_signs_in_twice(client: WireClient, command: bytes) -> None:
    """Commands of the AUTHORIZATION state are refused after it, and the session goes on (RFC 1939 section 3)."""
    client.refused(command)
    client.ok(b"STAT")


def test_pass_needs_a_user(guest: WireClient, target: Target) -> None:
    """PASS is valid only right after a successful USER (RFC 1939 section 7)."""
    guest.refused(b"PASS " + target.password)
    guest.refused(b"STAT")


@pytest.mark.parametrize("command", [pytest.param(b"USER", marks=optional("strict")), b"PASS", b"APOP", b"APOP alice"])
def test_arguments_that_are_missing(guest: WireClient, target: Target, command: bytes) -> None:
    """USER, PASS and APOP are refused without their arguments (RFC 1939 section 7)."""
    if command == b"PASS":
        guest.ok(b"USER " + target.user)
    guest.refused(command)
    guest.refused(b"STAT")


@optional("retry")
def test_a_wrong_password(guest: WireClient, target: Target) -> None:
    """A wrong password lets nobody in; the client may try again (RFC 1939 section 4)."""
    guest.ok(b"USER " + target.user)
    guest.refused(b"PASS " + target.password + b"x")
    guest.refused(b"STAT")
    assert guest.signs_in()


def test_a_password_is_the_rest_of_the_line(guest: WireClient, target: Target) -> None:
    """Spaces, and what follows them, are part of the password (RFC 1939 section 7)."""
    guest.ok(b"USER " + target.user)
    guest.refused(b"PASS " + target.password + b" x")


@optional("one-refusal")
def test_users_cannot_be_guessed(connect: Connect, target: Target) -> None:
    """An unknown user gets the same answer as a wrong password (RFC 1939 section 13)."""
    answers = []
    for user in (target.user, b"no-such-user"):
        client = connect()
        lines = [client.ask(b"USER " + user), client.ask(b"PASS wrong-" + target.password)]
        # An answer may repeat the name.
        answers.append([line.replace(b"no-such-user", target.user) for line in lines])
    assert answers[0] == answers[1]
    assert answers[0][1].startswith(b"-ERR")


def test_quit_before_sign_in(guest: WireClient) -> None:
    """QUIT is answered, and the connection closed, in the AUTHORIZATION state too (RFC 1939 section 4)."""
    guest.ok(b"QUIT")
    assert guest.line() == b""


@pytest.fixture
def timestamp(guest: WireClient) -> bytes:
    """The timestamp of the greeting: a server with one offers APOP."""
    found = re.search(rb"<.*>", guest.greeting)
    if not found:
        pytest.skip("the greeting offers no APOP")
    return found[0]


def test_apop(guest: WireClient, target: Target, timestamp: bytes) -> None:
    """The MD5 digest of timestamp and password signs in (RFC 1939 section 7)."""
    digest = hashlib.md5(timestamp + target.password).hexdigest().encode()
    guest.ok(b"APOP " + target.user + b" " + digest)
    guest.ok(b"STAT")


def test_apop_with_a_wrong_digest(guest: WireClient, target: Target, timestamp: bytes) -> None:
    """The digest of another password signs nobody in (RFC 1939 section 7)."""
    digest = hashlib.md5(timestamp + target.password + b"x").hexdigest().encode()
    guest.refused(b"APOP " + target.user + b" " + digest)
    guest.refused(b"STAT")


def test_apop_timestamps_differ(connect: Connect, timestamp: bytes) -> None:
    """A timestamp is a Message-ID of RFC 822, and each greeting has a different one (RFC 1939 section 7)."""
    assert re.fullmatch(rb"<[!-;=?A-~]+@[!-;=?A-~]+>", timestamp)
    assert timestamp not in connect().greeting


def test_apop_where_it_is_not_offered(guest: WireClient) -> None:
    """A server without a timestamp in its greeting has no APOP (RFC 1939 section 7)."""
    if b"<" in guest.greeting:
        pytest.skip("the greeting offers APOP")
    guest.refused(b"APOP alice " + b"0" * 32)


@pytest.fixture
def mechanisms(guest: WireClient) -> list[bytes]:
    """The mechanisms that CAPA announces for AUTH."""
    guest.send(b"CAPA\r\n")
    found = guest.status().startswith(b"+OK") and re.search(rb"(?m)^SASL (.*)\r$", guest.lines())
    return found[1].split(b" ") if found else []


@pytest.fixture
def sasl_plain(mechanisms: list[bytes]) -> None:
    """CAPA announces the mechanism PLAIN."""
    if b"PLAIN" not in mechanisms:
        pytest.skip("CAPA announces no SASL PLAIN")


def plain(user: bytes, password: bytes, identity: bytes = b"") -> bytes:
    return base64.b64encode(b"%b\0%b\0%b" % (identity, user, password))


@pytest.mark.usefixtures("sasl_plain")
def test_auth_with_an_initial_response(guest: WireClient, target: Target) -> None:
    """AUTH takes an initial response in base64 (RFC 5034 section 4, RFC 4616)."""
    guest.ok(b"AUTH PLAIN " + plain(target.user, target.password))
    guest.ok(b"STAT")


@pytest.mark.usefixtures("sasl_plain")
def test_auth_with_a_challenge(guest: WireClient, target: Target) -> None:
    """Without an initial response the challenge is empty; a name may have any case (RFC 5034 sections 4 and 5)."""
    guest.send(b"aUtH pLaIn\r\n")
    assert guest.line() == b"+ \r\n"
    guest.ok(plain(target.user, target.password))
    guest.ok(b"STAT")


@pytest.mark.usefixtures("sasl_plain")
def test_auth_for_oneself(guest: WireClient, target: Target) -> None:
    """A user may also be named as the authorization identity, as several clients do (RFC 4616 section 2)."""
    guest.ok(b"AUTH PLAIN " + plain(target.user, target.password, target.user))
    guest.ok(b"STAT")


@pytest.mark.usefixtures("sasl_plain")
@pytest.mark.parametrize("response", [b"*", b"", b"=AAA", b"AAA=BBB", plain(b"", b""), b"YWxpY2U="])
def test_auth_that_is_cancelled_or_broken(guest: WireClient, response: bytes) -> None:
    """``*`` cancels; bad base64 and bad answers are refused (RFC 5034 section 4).  USER still works after that."""
    guest.send(b"AUTH PLAIN\r\n")
    assert guest.line() == b"+ \r\n"
    guest.refused(response)
    assert guest.signs_in()


@pytest.mark.usefixtures("sasl_plain")
def test_auth_with_a_stray_octet(guest: WireClient, target: Target) -> None:
    """An octet outside base64's alphabet spoils a right answer: the server must not skip it (RFC 5034 section 4)."""
    response = plain(target.user, target.password)
    guest.refused(b"AUTH PLAIN %b!%b" % (response[:4], response[4:]))
    guest.refused(b"STAT")


@pytest.mark.usefixtures("sasl_plain")
def test_auth_with_an_empty_response(guest: WireClient) -> None:
    """``=`` is an empty initial response: the server does not ask again (RFC 5034 section 4)."""
    guest.refused(b"AUTH PLAIN =")
    assert guest.signs_in()


@pytest.mark.usefixtures("sasl_plain")
@optional("retry")
def test_auth_with_a_wrong_password(guest: WireClient, target: Target) -> None:
    """AUTH refuses a wrong password like PASS, and the client may try again (RFC 5034 section 4)."""
    guest.refused(b"AUTH PLAIN " + plain(target.user, target.password + b"x"))
    guest.refused(b"STAT")
    assert guest.signs_in()


@pytest.mark.usefixtures("sasl_plain")
def test_auth_with_an_unknown_mechanism(guest: WireClient) -> None:
    """An unknown mechanism is refused at once (RFC 5034 section 4)."""
    guest.refused(b"AUTH XYZZY")
    assert guest.signs_in()


@pytest.mark.parametrize("wrong", [b"", b"x"])
def test_scram(guest: WireClient, target: Target, mechanisms: list[bytes], wrong: bytes) -> None:
    """SCRAM-SHA-256 proves to each side that the other knows the password, or is refused (RFC 5802, RFC 7677)."""
    if b"SCRAM-SHA-256" not in mechanisms:
        pytest.skip("CAPA announces no SASL SCRAM-SHA-256")
    first = b"n=%b,r=rOprNGfwEbeRWgbNEkqO" % target.user
    guest.send(b"AUTH SCRAM-SHA-256 %b\r\n" % base64.b64encode(b"n,," + first))
    challenge = read_challenge(guest)
    found = re.fullmatch(rb"(r=rOprNGfwEbeRWgbNEkqO[!-+\x2d-~]+),s=([A-Za-z0-9+/=]+),i=([1-9][0-9]*)", challenge)
    assert found, challenge
    final = b"c=biws," + found[1]
    key = hashlib.pbkdf2_hmac("sha256", target.password + wrong, base64.b64decode(found[2]), int(found[3]))
    client_key = hmac.digest(key, b"Client Key", "sha256")
    message = b",".join([first, challenge, final])
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    guest.send(base64.b64encode(final + b",p=" + base64.b64encode(proof)) + b"\r\n")
    if wrong:
        assert guest.status().startswith(b"-ERR")
        guest.refused(b"STAT")
    else:
        server_signature = hmac.digest(hmac.digest(key, b"Server Key", "sha256"), message, "sha256")
        assert read_challenge(guest) == b"v=" + base64.b64encode(server_signature)
        guest.ok(b"")
        guest.ok(b"STAT")


def read_challenge(client: WireClient) -> bytes:
    line = client.line()
    assert line.startswith(b"+ ") and line.endswith(b"\r\n"), line
    return base64.b64decode(line[2:-2], validate=True)
