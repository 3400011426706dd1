"""The mechanisms of AUTH, without a session: octets in, challenges and a name out."""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import scramp
from hypothesis import given
from hypothesis import strategies as st

import popart
from popart import sasl
from popart.errors import BadCommandError, HandlerError, ReportableError
from popart.handler import ScramCredentials, SupportsCertificates, SupportsScram, SupportsTokens
from popart.sasl import Exchange, expect_none, mechanisms, scram_credentials

from .conftest import Mail, MemoryHandler

CERTIFICATE = {"subject": ((("commonName", "alice"),),)}
ALL = ["EXTERNAL", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"]

CREDENTIALS = scram_credentials("pencil", iterations=4096, salt=b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))  # RFC 7677's

INVALID_TOKEN = b'{"status":"invalid_token"}'
UNAUTHORIZED = b'{"status":"401","schemes":"bearer","scope":""}'

SECRET = "7f3ab2e4c6d8"
"""Part of each password and token in the tables, and of what else clients send."""


class AbleHandler(MemoryHandler):
    """Takes every mechanism, and whoever comes, but for mallory; records what it is asked."""

    allow_sasl_login = True

    def decide(self, *call: Any) -> None:
        self.mail.calls.append(call)
        if call[1] == "mallory":
            raise ReportableError("not you")

    def authenticate_pass(self, username: str, password: str) -> None:
        self.decide("authenticate_pass", username, password)

    def authenticate_token(self, username: str, token: str) -> None:
        self.decide("authenticate_token", username, token)

    def authenticate_certificate(self, identity: str, certificate: Mapping[str, Any]) -> None:
        self.decide("authenticate_certificate", identity, certificate)

    def get_scram_credentials(self, username: str) -> ScramCredentials:
        self.decide("get_scram_credentials", username)
        return CREDENTIALS


def name_of(value: object) -> str:
    return getattr(value, "__name__", ascii(value)[:40])


each = functools.partial(pytest.mark.parametrize, ids=name_of)


def make_handler(**changes: Any) -> AbleHandler:
    """Make a handler that takes everything, with other methods or attributes in its class."""
    return type("Changed", (AbleHandler,), changes)(Mail())  # type: ignore[no-any-return]


def begin(mechanism: str, handler: popart.Handler) -> tuple[Exchange, bytes]:
    """Begin an exchange; return it and its first challenge."""
    exchange = mechanisms(handler, CERTIFICATE)[mechanism]()
    return exchange, next(exchange)


def finish(exchange: Exchange, response: bytes) -> str:
    """Send the last response; return the user's name."""
    with pytest.raises(StopIteration) as end:
        exchange.send(response)
    return str(end.value.value)


def converse(mechanism: str, handler: popart.Handler, *responses: bytes) -> tuple[list[bytes], str]:
    """Hold a whole exchange; return all its challenges and the user's name."""
    exchange, challenge = begin(mechanism, handler)
    challenges = [challenge, *(exchange.send(response) for response in responses[:-1])]
    return challenges, finish(exchange, responses[-1])


def refuse(mechanism: str, handler: popart.Handler, *responses: bytes) -> tuple[list[bytes], ReportableError]:
    """Hold an exchange that fails at its last response; return all its challenges and the refusal."""
    exchange, challenge = begin(mechanism, handler)
    challenges = [challenge, *(exchange.send(response) for response in responses[:-1])]
    with pytest.raises(ReportableError) as failure:
        exchange.send(responses[-1])
    return challenges, failure.value


def everything_in(error: BaseException | None) -> str:
    """Return what an exception and those behind it would print, and all that they hold."""
    if error is None:
        return ""
    own = f"{error} {error!r} {vars(error)}"
    return own + everything_in(error.__context__) + everything_in(error.__cause__)


class ScramClient:
    """SCRAM-SHA-256 from the client's side, written from RFC 5802 section 3."""

    def __init__(self, name: bytes, password: bytes, header: bytes = b"n,,", extension: bytes = b"") -> None:
        self.header = header
        self.password = password
        self.extension = extension
        self.bare = b"n=%b,r=client-nonce%b" % (name, extension)
        self.first = header + self.bare

    def final(self, challenge: bytes, **changes: bytes) -> bytes:
        """Answer the server's first message; *changes* replace attributes of the answer."""
        found = re.fullmatch(rb"r=(client-nonce[!-+\--~]+),s=([A-Za-z0-9+/=]+),i=([1-9][0-9]*)", challenge)
        assert found is not None
        attributes = {"c": b64encode(self.header), "r": found[1], **changes}
        salted = hashlib.pbkdf2_hmac("sha256", self.password, b64decode(found[2]), int(found[3]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        unproved = b"c=%b,r=%b" % (attributes["c"], attributes["r"]) + self.extension
        message = b",".join([self.bare, challenge, unproved])
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self.verifier = b"v=" + b64encode(hmac.digest(server_key, message, "sha256"))
        return unproved + b",p=" + attributes.get("p", b64encode(proof))


class TestList:
    """What is offered is what the handler and the connection can do, strongest first."""

    def test_every_handler_has_plain(self) -> None:
        """PLAIN, which RFC 5034 section 4 demands, and nothing else unless the handler can do more."""
        assert list(mechanisms(MemoryHandler(Mail()), CERTIFICATE)) == ["PLAIN"]

    def test_all(self) -> None:
        """A handler that can do everything is offered with everything."""
        assert list(mechanisms(make_handler(), CERTIFICATE)) == ALL

    @each(("method", "names"), [
        ("authenticate_certificate", ["EXTERNAL"]),
        ("get_scram_credentials", ["SCRAM-SHA-256"]),
        ("authenticate_token", ["OAUTHBEARER", "XOAUTH2"]),
    ])  # fmt: skip
    def test_abilities(self, method: str, names: list[str]) -> None:
        """Each method of a handler brings its own mechanisms."""
        handler = type("Able", (MemoryHandler,), {method: getattr(AbleHandler, method)})(Mail())
        assert list(mechanisms(handler, CERTIFICATE)) == [*names, "PLAIN"]

    @each("certificate", [None, {}])
    def test_no_certificate(self, certificate: Any) -> None:
        """EXTERNAL is not there without a verified certificate: getpeercert() returns None or nothing in it then."""
        assert list(mechanisms(make_handler(), certificate)) == ALL[1:]

    def test_no_scramp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SCRAM is not there without its library."""
        monkeypatch.setitem(sys.modules, "scramp", None)
        assert list(mechanisms(make_handler(), CERTIFICATE)) == ["EXTERNAL", *ALL[2:]]

    def test_login_is_opted_in(self) -> None:
        """LOGIN is there only for a class that says so."""
        assert list(mechanisms(make_handler(allow_sasl_login=False), CERTIFICATE)) == ALL[:-1]

    @each("protocol", [SupportsTokens, SupportsScram, SupportsCertificates])
    def test_forgotten_method(self, protocol: type) -> None:
        """A class that derives from an ability and forgets its method cannot be built: nobody is let in by a typo."""
        with pytest.raises(TypeError, match="abstract"):
            type("Forgetful", (MemoryHandler, protocol), {})(Mail())

    @each(("mechanism", "challenge"), [*[(name, b"") for name in ALL[:-1]], ("LOGIN", b"Username:")])
    def test_first_challenge(self, mechanism: str, challenge: bytes) -> None:
        """A mechanism in which the client speaks first begins with an empty challenge (RFC 5034 section 4)."""
        assert begin(mechanism, make_handler())[1] == challenge

    @each("mechanism", ALL)
    def test_cancelled(self, mechanism: str) -> None:
        """What the session throws into an exchange, as for a cancellation, comes out of it."""
        handler = make_handler()
        exchange, _ = begin(mechanism, handler)
        error = BadCommandError("cancelled")
        with pytest.raises(BadCommandError) as caught:
            exchange.throw(error)
        assert caught.value is error and not handler.mail.calls

    @each("mechanism", ALL)
    def test_abandoned(self, mechanism: str) -> None:
        """A client that vanishes midway leaves nothing behind: the generator is closed without a word."""
        begin(mechanism, make_handler())[0].close()


TOKEN = b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="  # RFC 7628's

ACCEPTED: list[tuple[str, list[bytes], tuple[Any, ...]]] = [
    # RFC 4616 section 4
    ("PLAIN", [b"\0tim\0tanstaaftanstaaf"], ("authenticate_pass", "tim", "tanstaaftanstaaf")),
    # RFC 5034 section 6
    ("PLAIN", [b64decode("dGVzdAB0ZXN0AHRlc3Q=")], ("authenticate_pass", "test", "test")),
    ("PLAIN", ["\0zoë\0пароль".encode()], ("authenticate_pass", "zoë", "пароль")),
    ("PLAIN", ["zoë\0zoë\0 p w ".encode()], ("authenticate_pass", "zoë", " p w ")),
    ("PLAIN", [b"\0alice\0\x01"], ("authenticate_pass", "alice", "\x01")),
    ("PLAIN", [b"\0alice\0" + b"x" * 100_000], ("authenticate_pass", "alice", "x" * 100_000)),
    ("LOGIN", [b"alice", b"secret"], ("authenticate_pass", "alice", "secret")),
    ("LOGIN", ["zoë".encode(), "пароль ".encode()], ("authenticate_pass", "zoë", "пароль ")),
    # RFC 7628 section 4.1, over IMAP and over SMTP
    (
        "OAUTHBEARER",
        [
            b64decode(
                "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyIHZGOWRmdDRx"
                "bVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
            )
        ],
        ("authenticate_token", "user@example.com", TOKEN.decode()),
    ),
    (
        "OAUTHBEARER",
        [b"n,a=user@example.com,\x01host=server.example.com\x01port=587\x01auth=Bearer " + TOKEN + b"\x01\x01"],
        ("authenticate_token", "user@example.com", TOKEN.decode()),
    ),
    ("OAUTHBEARER", [b"y,a=al=2Ci=3D2Cce,\x01auth=bEARER  t\x01\x01"], ("authenticate_token", "al,i=2Cce", "t")),
    ("OAUTHBEARER", [b"n,a=al\x20ice!,\x01auth=Bearer t\x01\x01"], ("authenticate_token", "al ice!", "t")),
    ("OAUTHBEARER", ["n,a=zoë,\x01auth=BEARER t|~\x01\x01".encode()], ("authenticate_token", "zoë", "t|~")),
    ("OAUTHBEARER", [b"n,a=a,\x01auth=Bearer t\x01x=\xff\r\n=\x01\x01"], ("authenticate_token", "a", "t")),
    # Google's page
    (
        "XOAUTH2",
        [
            b64decode(
                "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRH"
                "RXVZMjl0Q2cBAQ=="
            )
        ],
        ("authenticate_token", "someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"),
    ),
    ("XOAUTH2", ["user=zoë=2C,\x01auth=bearer t\x01\x01".encode()], ("authenticate_token", "zoë=2C,", "t")),
    ("XOAUTH2", [b"auth=Bearer t\x01user=alice\x01\x01"], ("authenticate_token", "alice", "t")),
    (
        "XOAUTH2",
        [b"user=alice\x01auth=Bearer " + b"t" * 100_000 + b"\x01\x01"],
        ("authenticate_token", "alice", "t" * 100_000),
    ),
    ("EXTERNAL", [b""], ("authenticate_certificate", "", CERTIFICATE)),
    ("EXTERNAL", ["zoë@example.com".encode()], ("authenticate_certificate", "zoë@example.com", CERTIFICATE)),
]

REFUSED: list[tuple[str, bytes]] = [
    ("PLAIN", b"Ursel\0Kurt\0xipj3plmq7f3ab2e4c6d8"),  # RFC 4616 section 4
    ("PLAIN", b"Alice\0alice\0-7f3ab2e4c6d8"),
    ("PLAIN", b"alice\0\0-7f3ab2e4c6d8"),
    ("PLAIN", b"\xff7f3ab2e4c6d8\0alice\0-7f3ab2e4c6d8"),
    ("OAUTHBEARER", b"p=tls-unique,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"),
    ("SCRAM-SHA-256", b"p=tls-unique,,n=alice,r=7f3ab2e4c6d8"),
    ("SCRAM-SHA-256", b"n,a=bob,n=alice,r=7f3ab2e4c6d8"),
    ("SCRAM-SHA-256", b"n,a=alice,n=alice7f3ab2e4c6d8,r=7f3ab2e4c6d8"),
    ("SCRAM-SHA-256", b"n,a=alice7f3ab2e4c6d8,n=alice,r=7f3ab2e4c6d8"),
    ("SCRAM-SHA-256", b"n,a=alice,m=7f3ab2e4c6d8,n=alice,r=7f3ab2e4c6d8"),
]
"""Responses that are well-formed, but cannot be accepted."""

MALFORMED: list[tuple[str, list[bytes]]] = [
    ("PLAIN", [b""]),
    ("PLAIN", [b"alice 7f3ab2e4c6d8"]),
    ("PLAIN", [b"alice\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\x007f3ab2e4c6d8\0"]),
    ("PLAIN", [b"\0alice\0\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"\0" * 100_000]),
    ("PLAIN", [b"7f3ab2e4c6d8" * 25_000]),
    ("PLAIN", [b"\0alice\0"]),
    ("PLAIN", [b"\0\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"\0\0"]),
    ("PLAIN", [b"\0al\xffice\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\0\xff7f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\0\xc0\x807f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\0\xed\xa0\x807f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\r\nDELE 1\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\0x\n7f3ab2e4c6d8"]),
    ("PLAIN", [b"\0alice\0x\r7f3ab2e4c6d8"]),
    ("LOGIN", [b"", b"7f3ab2e4c6d8"]),
    ("LOGIN", [b"alice", b""]),
    ("LOGIN", [b"al\0ice", b"7f3ab2e4c6d8"]),
    ("LOGIN", [b"alice", b"\x007f3ab2e4c6d8"]),
    ("LOGIN", [b"\xff", b"7f3ab2e4c6d8"]),
    ("LOGIN", [b"alice", b"\xff7f3ab2e4c6d8"]),
    ("LOGIN", [b"alice\n", b"7f3ab2e4c6d8"]),
    ("LOGIN", [b"\0" * 100_000, b"7f3ab2e4c6d8"]),
    ("OAUTHBEARER", [b""]),
    ("OAUTHBEARER", [b"\x01"]),
    ("OAUTHBEARER", [b"7f3ab2e4c6d8" * 25_000]),
    ("OAUTHBEARER", [b"\x01" * 100_000]),
    ("OAUTHBEARER", [b"n,a=" + b"=2C" * 33_333]),
    ("OAUTHBEARER", [b"n,a=alice,"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01x=y\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01host=a\x01host=b\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01auth\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01=7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=alice,\x01a1=x\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al\x1fice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al=ice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al=2cice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al,ice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al\0ice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al\nice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al\x01ice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"n,a=al\xffice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"N,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"p=,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"F,n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("OAUTHBEARER", [b"user=alice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    # RFC 7628 section 4.4: its header is no GS2 header, and fails here for that reason
    ("OAUTHBEARER", [b"n,user=someuser@example.com,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b""]),
    ("XOAUTH2", [b"\x01"]),
    ("XOAUTH2", [b"\x01\x01"]),
    ("XOAUTH2", [b"7f3ab2e4c6d8" * 25_000]),
    ("XOAUTH2", [b"\x01" * 100_000]),
    ("XOAUTH2", [b"u=\x01" * 33_333]),
    ("XOAUTH2", [b"user=alice\x01auth=Bearer 7f3ab2e4c6d8"]),
    ("XOAUTH2", [b"user=alice\x01auth=Bearer 7f3ab2e4c6d8\x01"]),
    ("XOAUTH2", [b"user=aliceauth=Bearer 7f3ab2e4c6d8\x01\x01\x01"]),
    ("XOAUTH2", [b"\x01user=alice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=alice\x01\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=alice\x01user=bob\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=alice\x01auth=Bearer 7f3ab2e4c6d8\x01auth=Bearer x\x01\x01"]),
    ("XOAUTH2", [b"user=al\xffice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=al\0ice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=al\nice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"n,a=alice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("EXTERNAL", [b"al\0ice7f3ab2e4c6d8"]),
    ("EXTERNAL", [b"al\nice7f3ab2e4c6d8"]),
    ("EXTERNAL", [b"al\rice7f3ab2e4c6d8"]),
    ("PLAIN", [b"\0al\rice\x007f3ab2e4c6d8"]),
    ("PLAIN", [b"al\rice\0al\rice\x007f3ab2e4c6d8"]),
    ("LOGIN", [b"al\rice", b"7f3ab2e4c6d8"]),
    ("LOGIN", [b"alice", b"7f3ab2e4c6d8\r"]),
    ("OAUTHBEARER", [b"n,a=al\rice,\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("XOAUTH2", [b"user=al\rice\x01auth=Bearer 7f3ab2e4c6d8\x01\x01"]),
    ("EXTERNAL", [b"\xff7f3ab2e4c6d8"]),
    ("EXTERNAL", [b"\0" * 100_000]),
    ("SCRAM-SHA-256", [b""]),
    ("SCRAM-SHA-256", [b"7f3ab2e4c6d8" * 25_000]),
    ("SCRAM-SHA-256", [b"," * 100_000]),
    ("SCRAM-SHA-256", [b"n,,n=" + b"," * 100_000]),
    ("SCRAM-SHA-256", [b"n"]),
    ("SCRAM-SHA-256", [b"n,,"]),
    ("SCRAM-SHA-256", [b"n,,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=alice"]),
    ("SCRAM-SHA-256", [b"n,,n=alice,r="]),
    ("SCRAM-SHA-256", [b"n,,n=,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", ["n,,n=\xad,r=7f3ab2e4c6d8".encode()]),  # nothing is left of it by SASLprep
    ("SCRAM-SHA-256", [b"n,,n=al=ice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=al=2cice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=al\0ice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=al\nice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=al\rice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=al\xffice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", ["n,,n=alice\ue000,r=7f3ab2e4c6d8".encode()]),  # private use, forbidden by SASLprep
    ("SCRAM-SHA-256", [b"n,,n=alice,r=7f 3a"]),
    ("SCRAM-SHA-256", ["n,,n=alice,r=7f3ab2e4c6d8é".encode()]),
    ("SCRAM-SHA-256", [b"n,,n=alice,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,m=x,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,alice,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,a=,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"x,,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"p,,n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n=alice,r=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"c=biws,r=7f3ab2e4c6d8,p=7f3ab2e4c6d8"]),
    ("SCRAM-SHA-256", [b"n,,n=" + b"x" * 1016 + b",r=7f3ab2e4c6d8"]),  # longer than a line with USER may be
    ("SCRAM-SHA-256", [b"n,,n=" + b"x" * 100_000 + b",r=7f3ab2e4c6d8"]),
]
"""Responses outside their mechanism's grammar, or that hold nothing where a name or a secret must be."""


class TestTables:
    """One response each, or LOGIN's two."""

    @each(("mechanism", "responses", "call"), ACCEPTED)
    def test_accepted(self, mechanism: str, responses: list[bytes], call: tuple[Any, ...]) -> None:
        """What the client says arrives at the handler in its parts, once, and the user's name is returned."""
        handler = make_handler()
        assert converse(mechanism, handler, *responses)[1] == call[1]
        assert handler.mail.calls == [call]

    @each(("mechanism", "response"), REFUSED)
    def test_refused(self, mechanism: str, response: bytes) -> None:
        """A user who would act for another, or a channel binding, is refused without asking the handler."""
        handler = make_handler()
        _, refusal = refuse(mechanism, handler, response)
        assert type(refusal) is ReportableError and not handler.mail.calls
        assert SECRET not in everything_in(refusal)

    @each(("mechanism", "responses"), MALFORMED)
    def test_malformed(self, mechanism: str, responses: list[bytes]) -> None:
        """A response outside the grammar never reaches the handler, and leaves no trace in the error."""
        handler = make_handler()
        _, refusal = refuse(mechanism, handler, *responses)
        assert type(refusal) is BadCommandError and not handler.mail.calls
        assert SECRET not in everything_in(refusal)
        assert refusal.__context__ is None and refusal.__cause__ is None


def last_words(mechanism: str, handler: popart.Handler, name: str = "alice") -> BaseException:
    """Sign in with a response that is well-formed; return the exception by which that ends."""
    exchange, _ = begin(mechanism, handler)
    responses = {
        "EXTERNAL": [name],
        "SCRAM-SHA-256": [f"n,,n={name},r=x"],
        "OAUTHBEARER": [f"n,a={name},\x01auth=Bearer {SECRET}\x01\x01", "\x01"],
        "XOAUTH2": [f"user={name}\x01auth=Bearer {SECRET}\x01\x01", ""],
        "PLAIN": [f"\0{name}\0{SECRET}"],
        "LOGIN": [name, SECRET],
    }
    with pytest.raises(BaseException) as failure:
        for response in responses[mechanism]:
            exchange.send(response.encode())
    return failure.value


METHODS = {
    "EXTERNAL": "authenticate_certificate",
    "SCRAM-SHA-256": "get_scram_credentials",
    "OAUTHBEARER": "authenticate_token",
    "XOAUTH2": "authenticate_token",
    "PLAIN": "authenticate_pass",
    "LOGIN": "authenticate_pass",
}


async def coroutine(*arguments: object) -> None: ...


class TestHandler:
    """What the handler says is what counts."""

    @each("mechanism", [name for name in ALL if name != "SCRAM-SHA-256"])
    def test_refusal_is_passed_on(self, mechanism: str) -> None:
        """The client reads the handler's own refusal."""
        handler = make_handler()
        refusal = last_words(mechanism, handler, "mallory")
        assert isinstance(refusal, ReportableError) and (refusal.text, refusal.code) == ("not you", None)
        assert len(handler.mail.calls) == 1

    @each("mechanism", ALL)
    @each("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(), HandlerError("x"), StopAsyncIteration()])
    def test_other_errors_are_untouched(self, mechanism: str, error: BaseException) -> None:
        """Whatever else a handler raises leaves the exchange as it is, at once."""

        def fail(*arguments: object) -> None:
            raise error

        assert last_words(mechanism, make_handler(**{METHODS[mechanism]: fail})) is error
        assert error.__context__ is None and error.__cause__ is None

    @each("mechanism", ALL)
    @each("result", [False, True, "alice", coroutine])
    def test_wrong_results(self, mechanism: str, result: Any) -> None:
        """Only None is success, so that neither ``return False`` nor a coroutine lets anybody in."""
        method = METHODS[mechanism]
        handler = make_handler(**{method: result if callable(result) else lambda *arguments: result})
        error = last_words(mechanism, handler)
        assert isinstance(error, HandlerError) and str(error).startswith(f"{method} returned ")
        assert SECRET not in everything_in(error)

    def test_none_is_no_credential(self) -> None:
        """For SCRAM it is None that is wrong."""
        error = last_words("SCRAM-SHA-256", make_handler(get_scram_credentials=lambda *arguments: None))
        assert str(error) == "get_scram_credentials returned NoneType, not ScramCredentials"

    @each("mechanism", ALL)
    def test_stop_iteration(self, mechanism: str) -> None:
        """A StopIteration leaves the exchange in a wrapper, as Python lets none out of a generator (PEP 479)."""
        error = StopIteration("alice")

        def fail(*arguments: object) -> None:
            raise error

        wrapper = last_words(mechanism, make_handler(**{METHODS[mechanism]: fail}))
        assert isinstance(wrapper, sasl.StoppedError) and wrapper.error is error
        assert error.__context__ is None and error.__cause__ is None

    def test_expect_none(self) -> None:
        """None passes; the error says which method returned what."""
        expect_none("lock_maildrop", None)
        with pytest.raises(HandlerError, match="^lock_maildrop returned bool, not None$"):
            expect_none("lock_maildrop", False)


TOKENS = {
    "OAUTHBEARER": (b"n,a=%b,\x01auth=%b\x01\x01", INVALID_TOKEN, b"\x01"),
    "XOAUTH2": (b"user=%b\x01auth=%b\x01\x01", UNAUTHORIZED, b""),
}


@each("mechanism", ["OAUTHBEARER", "XOAUTH2"])
class TestTokens:
    """The refusal of a token takes one challenge more (RFC 7628 section 3.2.3 and Google's page)."""

    @each("name", [b"mallory", b"alice"])
    @each("answer", [None, b"", b"\x01", b"\xff" * 100_000, b"user=alice\x01auth=Bearer good\x01\x01"])
    def test_error_challenge(self, mechanism: str, name: bytes, answer: bytes | None) -> None:
        """The client is sent JSON, answers whatever it likes, and then reads the refusal."""
        handler = make_handler()
        response, challenge, dummy = TOKENS[mechanism]
        # mallory is refused by the handler; alice sends no token, as to ask for the scope (RFC 7628 section 4.3).
        auth, text = (b"Bearer 7f3ab2e4c6d8", "not you") if name == b"mallory" else (b"", "a bearer token is needed")
        challenges, refusal = refuse(mechanism, handler, response % (name, auth), dummy if answer is None else answer)
        assert challenges == [b"", challenge]
        assert type(refusal) is ReportableError and refusal.text == text
        assert len(handler.mail.calls) == (name == b"mallory")
        assert SECRET not in everything_in(refusal)

    def test_cancelled_after_the_error(self, mechanism: str) -> None:
        """A client may cancel in place of the dummy answer; its login has failed all the same."""
        exchange, _ = begin(mechanism, make_handler())
        exchange.send(TOKENS[mechanism][0] % (b"mallory", b"Bearer 7f3ab2e4c6d8"))
        with pytest.raises(ReportableError, match="^not you$") as failure:
            exchange.throw(BadCommandError("cancelled"))
        assert failure.value.__context__ is None

    @each("auth", [
        b"", b"Bearer", b"Bearer ", b"Bearer  ", b" Bearer 7f3ab2e4c6d8", b"Bearer 7f3ab2e4c6d8 ", b"Bearer 7f 3a",
        b"Bearer\t7f3ab2e4c6d8", b"Bearer 7f3ab2e4c6d8\r\nX: y", b"Bearer 7f3ab2e4c6d8\n", b"Bearer 7f3ab2e4c6d8\0",
        b"Bearer 7f3ab2e4c6d8\xc3\xa9", b"Bearer7f3ab2e4c6d8", b"7f3ab2e4c6d8",
        b"Basic 7f3ab2e4c6d8", b"OAuth realm=7f3ab2e4c6d8", b"Bearer Bearer 7f3ab2e4c6d8",
    ])  # fmt: skip
    def test_no_bearer_token(self, mechanism: str, auth: bytes) -> None:
        """Only a bearer token of visible ASCII (RFC 6750 section 2.1) reaches the handler."""
        handler = make_handler()
        response, challenge, dummy = TOKENS[mechanism]
        challenges, refusal = refuse(mechanism, handler, response % (b"alice", auth), dummy)
        assert challenges[1] == challenge and refusal.text == "a bearer token is needed"
        assert not handler.mail.calls and SECRET not in everything_in(refusal)

    def test_no_auth_at_all(self, mechanism: str) -> None:
        """A response without the auth key is as one whose auth is empty."""
        response = (TOKENS[mechanism][0] % (b"alice", b"")).replace(b"auth=", b"host=")
        assert refuse(mechanism, make_handler(), response, b"")[1].text == "a bearer token is needed"

    def test_code_is_kept(self, mechanism: str) -> None:
        """A backend that is down is told as such."""

        def busy(*arguments: object) -> None:
            raise ReportableError("try later", code="SYS/TEMP")

        error = last_words(mechanism, make_handler(authenticate_token=busy))
        assert isinstance(error, ReportableError) and error.code == "SYS/TEMP"


def test_rfc_7628_failed_exchange() -> None:
    """The example of RFC 7628 section 4.3."""
    first = b64decode("bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9AQE=")
    challenges, refusal = refuse("OAUTHBEARER", make_handler(), first, b64decode("AQ=="))
    assert challenges == [b"", INVALID_TOKEN] and not isinstance(refusal, BadCommandError)


@each(("mechanism", "name"), [("PLAIN", b"bob"), ("SCRAM-SHA-256", b"bob"), ("PLAIN", b"alice")])
def test_acting_as_another(mechanism: str, name: bytes) -> None:
    """Where the handler lets alice act as bob, the name that the exchange returns is bob."""
    handler = make_handler(authorize=lambda *names: None)
    if mechanism == "PLAIN":
        assert converse(mechanism, handler, name + b"\0alice\0" + SECRET.encode())[1] == name.decode()
    else:
        assert sign_in_by_scram(ScramClient(b"alice", b"pencil", b"n,a=" + name + b","), handler) == name.decode()


def sign_in_by_scram(client: ScramClient, handler: popart.Handler) -> str:
    """Hold a whole SCRAM exchange as a client that checks the server's signature; return the user's name."""
    exchange, _ = begin("SCRAM-SHA-256", handler)
    assert exchange.send(client.final(exchange.send(client.first))) == client.verifier
    return finish(exchange, b"")


def fail_at_scram(client: ScramClient, handler: popart.Handler, **changes: bytes) -> tuple[bytes, ReportableError]:
    """Hold a SCRAM exchange that fails at the client's last message; return the server's message and the refusal."""
    exchange, _ = begin("SCRAM-SHA-256", handler)
    challenge = exchange.send(client.first)
    with pytest.raises(ReportableError) as failure:
        exchange.send(client.final(challenge, **changes))
    return challenge, failure.value


ALICE = functools.partial(ScramClient, b"alice", b"pencil")


class TestScram:
    """SCRAM-SHA-256 (RFC 5802, RFC 7677)."""

    def test_rfc_7677_example(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The example of RFC 7677 section 3."""
        make_server = functools.partialmethod(
            scramp.ScramMechanism.make_server, s_nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        )
        monkeypatch.setattr(scramp.ScramMechanism, "make_server", make_server)
        challenges, name = converse(
            "SCRAM-SHA-256",
            make_handler(),
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            b"",
        )
        assert name == "user"
        assert challenges == [
            b"",
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ]

    @each(("sent", "header", "extension", "name"), [
        ("alice", "n,,", "", "alice"),
        ("alice", "y,,", "", "alice"),
        ("alice", "n,a=alice,", "", "alice"),
        ("alice", "y,a=alice,", "", "alice"),
        ("a=2Cb=3D2C", "n,a=a=2Cb=3D2C,", "", "a,b=2C"),
        ("zoë", "n,a=zoë,", "", "zoë"),
        ("zoe\u0308\u2168", "n,,", "", "zoëIX"),
        ("x" * 1000, "n,a=" + "x" * 1000 + ",", "", "x" * 1000),
    ])  # fmt: skip
    def test_accepted(self, sent: str, header: str, extension: str, name: str) -> None:
        """Either flag without channel binding, the user's own name as authorization identity, extensions, escapes.

        The handler is given the name as SASLprep prepares it (RFC 5802 section 5.1), once.
        """
        handler = make_handler()
        client = ScramClient(sent.encode(), b"pencil", header.encode(), extension.encode())
        assert sign_in_by_scram(client, handler) == name
        assert handler.mail.calls == [("get_scram_credentials", name)]

    @each("header", ["n,,", "n,a={},"])
    def test_longest(self, header: str) -> None:
        """A client's first message may have 1,024 octets behind its GS2 header, and not one more."""
        name = "x" * (1024 - len("n=,r=client-nonce"))
        client = ScramClient(name.encode(), b"pencil", header.format(name).encode())
        assert len(client.bare) == 1024 and sign_in_by_scram(client, make_handler()) == name
        handler = make_handler()
        refusal = refuse("SCRAM-SHA-256", handler, f"{header.format(name + 'x')}n={name}x,r=client-nonce".encode())[1]
        assert type(refusal) is BadCommandError and not handler.mail.calls

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="the last scramp for Python 3.10 does not know better")
    def test_order_and_extensions(self) -> None:
        """Attributes have their order; unknown ones after them are ignored (RFC 5802 section 5.1)."""
        assert sign_in_by_scram(ALICE(extension=b",x=y,Z=1=2"), make_handler()) == "alice"
        handler = make_handler()
        assert type(refuse("SCRAM-SHA-256", handler, b"n,,r=7f3ab2e4c6d8,n=alice")[1]) is BadCommandError
        assert not handler.mail.calls

    @each("changes", [
        {"p": b64encode(bytes(32))},
        {"p": b64encode(bytes(31))},
        {"p": b"7f3ab2e4c6d8"},
        {"p": b"*7f3ab2e4c6d8"},
        {"p": b""},
        {"p": b"7f3ab2e4c6d8,x=y"},
        {"r": b"client-nonce"},
        {"r": b"client-nonce7f3ab2e4c6d8"},
        {"r": b"7f3ab2e4c6d8"},
        {"r": b""},
        {"c": b"eSws"},
        {"c": b64encode(b"n,a=alice,")},
        {"c": b64encode(b"n,,7f3ab2e4c6d8")},
        {"c": b"*"},
        {"c": b"biws,c=biws"},
        {"c": b"biws="},
        {"c": b"biws===="},
        {"c": b"biw"},
    ])  # fmt: skip
    def test_wrong_last_message(self, changes: dict[str, bytes]) -> None:
        """Proof, nonce and GS2 header must be those that were agreed on; which one was wrong is not told."""
        _, refusal = fail_at_scram(ALICE(), make_handler(), **changes)
        assert type(refusal) is ReportableError and refusal.text == "wrong name or password"
        assert refusal.__context__ is None and refusal.__cause__ is None

    @each("surplus", [b"=", b"==", b"====", b"AAAA"])
    def test_padding_of_the_proof(self, surplus: bytes) -> None:
        """The right proof with one ``=`` too many is wrong, whatever a Python's base64 makes of it."""
        client, handler = ALICE(), make_handler()
        exchange, _ = begin("SCRAM-SHA-256", handler)
        final = client.final(exchange.send(client.first))
        with pytest.raises(ReportableError, match="^wrong name or password$"):
            exchange.send(final + surplus)

    @each(
        "message",
        [b"", b"7f3ab2e4c6d8", b"," * 100_000, b"p=7f3ab2e4c6d8", b"n,,n=alice,r=7f3ab2e4c6d8", b"\xff7f3ab2e4c6d8"],
    )
    def test_no_last_message(self, message: bytes) -> None:
        """Anything else in its place is refused too."""
        refusal = refuse("SCRAM-SHA-256", make_handler(), b"n,,n=alice,r=x", message)[1]
        assert SECRET not in everything_in(refusal) and refusal.__context__ is None

    def test_wrong_password(self) -> None:
        """A proof made with another password is refused."""
        _, refusal = fail_at_scram(ScramClient(b"alice", b"pencil7f3ab2e4c6d8"), make_handler())
        assert type(refusal) is ReportableError and refusal.text == "wrong name or password"

    def test_replayed(self) -> None:
        """What one exchange accepted is of no use in the next: the server's nonce is new each time."""
        client, handler = ALICE(), make_handler()
        exchange, _ = begin("SCRAM-SHA-256", handler)
        final = client.final(exchange.send(client.first))
        assert exchange.send(final) == client.verifier
        assert type(refuse("SCRAM-SHA-256", handler, client.first, final)[1]) is ReportableError

    @each("answer", [b"7f3ab2e4c6d8", b"\xff", BadCommandError("cancelled")])
    def test_last_response(self, answer: Any) -> None:
        """A client that does not confirm the server's signature by an empty response is not signed in."""
        client = ALICE()
        exchange, _ = begin("SCRAM-SHA-256", make_handler())
        exchange.send(client.final(exchange.send(client.first)))
        with pytest.raises(BadCommandError):
            exchange.throw(answer) if isinstance(answer, Exception) else exchange.send(answer)

    @each("code", [None, "AUTH"])
    def test_unknown_user(self, code: str | None) -> None:
        """For a user who does not exist the exchange takes its course, and ends as with a wrong password."""

        def unknown(handler: AbleHandler, username: str) -> ScramCredentials:
            if username == "nobody":
                raise ReportableError("no such user", code=code)
            return scram_credentials("pencil")

        handler = make_handler(get_scram_credentials=unknown)
        known = fail_at_scram(ScramClient(b"alice", b"wrong"), handler)
        nobody = fail_at_scram(ScramClient(b"nobody", b"wrong"), handler)
        shape = re.compile(rb"r=client-nonce[!-+\--~]+,s=[A-Za-z0-9+/]{22}==,i=50000")
        assert shape.fullmatch(known[0]) and shape.fullmatch(nobody[0]) and len(known[0]) == len(nobody[0])
        assert [vars(known[1]), known[1].args] == [vars(nobody[1]), nobody[1].args]
        assert type(known[1]) is type(nobody[1]) and nobody[1].__context__ is None

    def test_made_up_salt(self) -> None:
        """The salt of a user who does not exist is the same each time, and not another's."""

        def unknown(*arguments: object) -> ScramCredentials:
            raise ReportableError("no such user")

        def salt(name: bytes) -> bytes:
            exchange, _ = begin("SCRAM-SHA-256", make_handler(get_scram_credentials=unknown))
            return exchange.send(b"n,,n=%b,r=x" % name).split(b",")[1]

        assert salt(b"nobody") == salt(b"nobody") != salt(b"nobody2")

    def test_decoy_key(self) -> None:
        """That salt depends on the key that it is made with, and on nothing else that a process has of its own."""

        def unknown(*arguments: object) -> ScramCredentials:
            raise ReportableError("no such user")

        def salt(*key: bytes) -> bytes:
            exchange = mechanisms(make_handler(get_scram_credentials=unknown), None, *key)["SCRAM-SHA-256"]()
            next(exchange)
            return exchange.send(b"n,,n=nobody,r=x").split(b",")[1]

        expected = b64encode(hmac.digest(b"key", b"nobody", "sha256")[:16])
        assert salt(b"key") == b"s=" + expected and salt(b"KEY") != b"s=" + expected
        assert salt() == salt() != salt(b"key")

    @each(
        "name",
        [
            "GRO\u1e9e",
            "\U0001f600",
            "al\U0001f600ice",
            "\u1e9e",
            "a=2Cb\U0001f600=3D",
            "\u05d0\U0001f600\u05d1",
            "\U0001e900",
            "zoe\u0308 \U0001f600",
            "\U0001f600" * 200,
        ],
    )
    @each("header", ["n,,", "y,,", "n,a={},"])
    def test_name_newer_than_unicode_3_2(self, header: str, name: str) -> None:
        """A name with characters that SASLprep's Unicode does not know is nobody's, and not malformed.

        It is a query string (RFC 5802 section 5.1).  The exchange is an unknown user's: its shape, its end, a salt
        that is the same each time and another's for another name.  The handler is not asked.
        """

        def unknown(*arguments: object) -> ScramCredentials:
            raise ReportableError("no such user")

        handler = make_handler()
        sent, its_header = name.encode(), header.format(name).encode()
        new = fail_at_scram(ScramClient(sent, b"pencil", its_header), handler)
        again = fail_at_scram(ScramClient(sent, b"pencil", its_header), handler)
        other = fail_at_scram(ScramClient("\u05d0\U0001f601\u05d0".encode(), b"pencil"), handler)
        assert not handler.mail.calls
        nobody = fail_at_scram(ScramClient(b"nobody", b"pencil"), make_handler(get_scram_credentials=unknown))
        shape = re.compile(rb"r=client-nonce[!-+\--~]+,(s=[A-Za-z0-9+/]{22}==),i=50000")
        salts = []
        for challenge, refusal in (new, again, other, nobody):
            found = shape.fullmatch(challenge)
            assert found and len(challenge) == len(nobody[0])
            salts.append(found[1])
            assert type(refusal) is ReportableError and refusal.__context__ is None
            assert [vars(refusal), refusal.args] == [vars(nobody[1]), nobody[1].args]
        assert salts[0] == salts[1] and len(set(salts)) == 3

    @each(
        "message",
        [
            "n,,n=\U0001f600",
            "n,,n=\U0001f600,",
            "n,,n=\U0001f600,r=",
            "n,,n=\U0001f600,r=\U0001f600",
            "n,,n=\U0001f600\r,r=x",
            "n,,n=\U0001f600\0,r=x",
            "n,,n=\U0001f600\n,r=x",
            "n,,n=\U0001f600=x,r=x",
            "n,,n=\U0001f600\ue000,r=x",
            "n,,r=x,n=\U0001f600",
            "n,,m=x,n=\U0001f600,r=x",
            "n,,n=alice,r=\U0001f600",
            "n,,n=\ufdd0,r=x",
            "n,,n=\uffff,r=x",
            "n,,n=\U0001f600,r=x y",
            "n,,n=\u05d0\U0001f600,r=x",
            "n,,n=\U0001f600,n=alice,r=x",
            "n,,\U0001f600=alice,r=x",
        ],
    )
    def test_malformed_stays_malformed(self, message: str) -> None:
        """Nothing but such a name passes: not beside what SASLprep forbids, nor where no name stands."""
        handler = make_handler()
        _, refusal = refuse("SCRAM-SHA-256", handler, message.encode())
        assert type(refusal) is BadCommandError and not handler.mail.calls

    def test_other_refusals_are_told(self) -> None:
        """A backend that is down is no wrong password: a refusal with a code of its own is the answer, at once."""

        def busy(*arguments: object) -> ScramCredentials:
            raise ReportableError("try later", code="SYS/TEMP")

        error = last_words("SCRAM-SHA-256", make_handler(get_scram_credentials=busy))
        assert isinstance(error, ReportableError) and (error.text, error.code) == ("try later", "SYS/TEMP")


class TestCredentials:
    """What is kept of a password."""

    def test_rfc_7677_example(self) -> None:
        """The keys are those of RFC 5802 section 3."""
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", CREDENTIALS.salt, 4096)
        stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        assert ScramCredentials(
            CREDENTIALS.salt, 4096, stored_key, hmac.digest(salted, b"Server Key", "sha256")
        ) == CREDENTIALS  # fmt: skip

    def test_salts_are_random(self) -> None:
        """Two users with the same password have nothing in common."""
        one, two = scram_credentials("pencil"), scram_credentials("pencil")
        assert len({one.salt, two.salt, one.stored_key, two.stored_key, one.server_key, two.server_key}) == 6

    def test_password_is_prepared(self) -> None:
        """However a client's keyboard composes a password, SASLprep makes it the same (RFC 4013)."""
        ways = [scram_credentials(password, salt=bytes(16)) for password in ("p\xe9\xa0I\xadX", "pe\u0301 \u2168")]
        assert ways[0] == ways[1]

    @each(("password", "options"), [
        ("", {}),
        ("7f3ab2e4c6d8\0", {}),
        ("7f3ab2e4c6d8\ue000", {}),
        ("7f3ab2e4c6d8", {"iterations": 4095}),
        ("7f3ab2e4c6d8", {"salt": b""}),
        ("7f3ab2e4c6d8", {"salt": bytes(11)}),
    ])  # fmt: skip
    def test_refused(self, password: str, options: dict[str, Any]) -> None:
        """What SASLprep forbids, or makes SCRAM weak, is a ValueError, which does not show the password."""
        with pytest.raises(ValueError) as failure:
            scram_credentials(password, **options)
        assert SECRET not in everything_in(failure.value)

    @each("changes", [
        {"salt": bytes(11)},
        {"iterations": 4095},
        {"stored_key": b64encode(bytes(32))},
        {"server_key": bytes(20)},
        {"stored_key": bytes(20), "server_key": bytes(20)},
    ])  # fmt: skip
    def test_what_cannot_be_credentials(self, changes: dict[str, Any]) -> None:
        """Credentials of another mechanism, or in base64, fail where they are made, not as wrong passwords."""
        values = {"salt": bytes(16), "iterations": 4096, "stored_key": bytes(32), "server_key": bytes(32), **changes}
        with pytest.raises(ValueError):
            ScramCredentials(**values)

    def test_many_of_them(self) -> None:
        """Those of a hundred thousand users fit into memory: they have no dictionary each."""
        assert not hasattr(CREDENTIALS, "__dict__")

    def test_not_shown(self) -> None:
        """Credentials that end in a log show nothing."""
        assert repr(CREDENTIALS.stored_key) not in repr(CREDENTIALS) and "salt" not in repr(CREDENTIALS)

    def test_default_fits_clients(self) -> None:
        """Clients built on Cyrus SASL refuse more than 65,536 iterations; RFC 7677 section 4 wants 4,096 at least."""
        assert 4096 <= sasl.SCRAM_ITERATIONS <= 65_536


# Arbitrary responses: junk, and junk put together from what is almost right.

PIECES = st.sampled_from(
    [
        b"\0",
        b"\x01",
        b",",
        b"=",
        b"n,",
        b"y,,",
        b"n,,",
        b"n,a=",
        b"a=",
        b"n=",
        b"r=",
        b"c=biws",
        b"p=",
        b"p=x,,",
        b"user=",
    ]
    + [
        b"auth=",
        b"Bearer ",
        b"host=x\x01",
        b"\x01\x01",
        b"=2C",
        b"=3D",
        b"alice",
        b"mallory",
        b"x",
        "é".encode(),
        b"\xff",
    ]
)
RESPONSES = st.one_of(
    st.binary(max_size=40),
    st.lists(PIECES | st.binary(max_size=3), max_size=12).map(b"".join),
    st.tuples(st.sampled_from([b"", b"alice", b"a"]), st.binary(max_size=3), st.binary(max_size=3)).map(b"\0".join),
    st.builds(lambda name, pair: b"user=%b\x01auth=Bearer x%b\x01\x01" % (name, pair), st.binary(max_size=3), PIECES),
    st.builds(lambda name, pair: b"n,a=%b,\x01auth=Bearer x%b\x01\x01" % (name, pair), st.binary(max_size=3), PIECES),
    st.builds(lambda name, nonce: b"n,,n=%b,r=x%b" % (name, nonce), st.binary(max_size=3), PIECES),
)


def well_formed_plain(responses: list[bytes], name: bytes, password: bytes) -> bool:
    return responses[0] in (b"\0%b\0%b" % (name, password), b"%b\0%b\0%b" % (name, name, password))


def well_formed_login(responses: list[bytes], name: bytes, password: bytes) -> bool:
    return responses[:2] == [name, password]


def well_formed_oauthbearer(responses: list[bytes], name: bytes, token: bytes) -> bool:
    name = name.replace(b"=", b"=3D").replace(b",", b"=2C")
    pattern = rb"[ny],a=%b,\x01([A-Za-z]+=[^\x01]*\x01)*auth=(?i:bearer) +%b\x01([A-Za-z]+=[^\x01]*\x01)*\x01"
    return bool(re.fullmatch(pattern % (re.escape(name), re.escape(token)), responses[0]))


def well_formed_xoauth2(responses: list[bytes], name: bytes, token: bytes) -> bool:
    pairs = dict(pair.split(b"=", 1) for pair in responses[0].removesuffix(b"\x01\x01").split(b"\x01"))
    return responses[0].endswith(b"\x01\x01") and pairs[b"user"] == name and pairs[b"auth"].endswith(b" " + token)


def well_formed_scram(responses: list[bytes], name: bytes) -> bool:
    found = re.fullmatch(rb"[ny],(a=[^,]+)?((,[A-Za-z]=[^,]+)+)", responses[0])
    attributes = dict(pair.split(b"=", 1) for pair in found[2].split(b",")[1:]) if found else {}
    sent = attributes.get(b"n", b"").replace(b"=2C", b",").replace(b"=3D", b"=")
    return b"r" in attributes and (sent == name or not sent.isascii())


WELL_FORMED: dict[str, Callable[..., bool]] = {
    "EXTERNAL": lambda responses, name: responses[0] == name,
    "SCRAM-SHA-256": well_formed_scram,
    "OAUTHBEARER": well_formed_oauthbearer,
    "XOAUTH2": well_formed_xoauth2,
    "PLAIN": well_formed_plain,
    "LOGIN": well_formed_login,
}


@each("mechanism", ALL)
@given(responses=st.lists(RESPONSES, min_size=4, max_size=4))
def test_arbitrary_responses(mechanism: str, responses: list[bytes]) -> None:
    """Whatever a client sends is accepted or refused, and only what is well-formed reaches the handler, unchanged."""
    handler = make_handler()
    exchange, _ = begin(mechanism, handler)
    with suppress(ReportableError, StopIteration):
        for response in responses:
            exchange.send(response)
        raise AssertionError("four responses and no end")
    for call in handler.mail.calls:
        strings = [argument.encode() for argument in call[1:] if isinstance(argument, str)]
        assert mechanism == "EXTERNAL" or all(strings)
        assert not any(forbidden in string for string in strings for forbidden in (b"\0", b"\r", b"\n"))
        assert WELL_FORMED[mechanism](responses, *strings)
    assert len(handler.mail.calls) <= 1


@given(cut=st.integers(0, 120), junk=RESPONSES.filter(lambda junk: junk.strip(b"=")))
def test_tampered_last_message(cut: int, junk: bytes) -> None:
    """Nothing can be put into a client's last message, which is proved by what is in it (RFC 5802 section 3)."""
    client = ALICE()
    exchange, _ = begin("SCRAM-SHA-256", make_handler())
    final = client.final(exchange.send(client.first))
    with pytest.raises(ReportableError):
        exchange.send(final[:cut] + junk + final[cut:])
