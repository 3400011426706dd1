"""The mechanisms of AUTH (RFC 5034, RFC 4422): the dialogue of client and server in each of them.

A mechanism is a generator.  It yields challenges, and is sent the client's responses, both as octets without their
base64.  It returns the user's name once the handler has accepted.  Its first challenge is for a client that sent no
initial response; other clients never see it.  A refusal is a `ReportableError`, and a response outside the mechanism's
grammar is a `BadCommandError`.  If a client's line is not a response, but a cancellation or bad base64, the session
throws a `BadCommandError` into the generator.  The exception that comes out of the generator is the answer.  If the
handler raises StopIteration, it comes out as a `StoppedError`.  A handler's own mechanisms are in `own_mechanisms`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stringprep
from base64 import b64decode
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from popart.command_lines import FORBIDDEN, MAX_LINE, read_text
from popart.errors import BadCommandError, ReportableError
from popart.handler import (
    Handler,
    ScramCredentials,
    SupportsAuthorization,
    SupportsCertificates,
    SupportsScram,
    SupportsTokens,
)
from popart.handler_calls import ability, bad_type, expect_none

Exchange = Generator[bytes, bytes, str]
Authenticate = Callable[[str, str], object]
Authorize = Callable[[str, str], object]

SCRAM_ITERATIONS = 50_000
"""Rounds of hashing that a client does for its password.  Clients built on Cyrus SASL refuse more than 65,536."""

SCRAM_SALT_SIZE = 16
"""Octets."""

OAUTHBEARER_ERROR = b'{"status":"invalid_token"}'
"""RFC 7628 section 3.2.2."""

XOAUTH2_ERROR = b'{"status":"401","schemes":"bearer","scope":""}'
"""Google's form has these three keys.  Only the application knows which scope would be right."""

_DECOY_KEY = secrets.token_bytes()  # for this process

_SCRAM = "SCRAM-SHA-256"

BUILT_IN = ("EXTERNAL", _SCRAM, "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN")
"""The names of all mechanisms below.  A handler's own have other names, whether a session offers these or not."""

_OTHER_USER = "nobody may act for another user"

# RFC 5801 section 4; SASLprep (RFC 4013) forbids control characters in a name.
_GS2_HEADER = re.compile(rb"(?:[ny]|(p=)[A-Za-z0-9.-]+),(?:a=((?:[^\x00-\x1f,=]|=2C|=3D)+))?,")
_PAIR = re.compile(rb"([A-Za-z]+)=([^\x01]*)\x01")
_PAIRS = re.compile(rb"\x01(?:%b)*\x01" % _PAIR.pattern)  # RFC 7628 section 3.1
_BEARER = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)  # RFC 6750 section 2.1
# RFC 5034 section 5, where the length is a multiple of four.  Surplus bits in the last character are ignored: the
# grammar allows them, and every Python accepts them.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


class StoppedError(Exception):
    """Carries a handler's StopIteration out of a generator, where Python would turn it into a RuntimeError (PEP
    479)."""

    def __init__(self, error: StopIteration) -> None:
        self.error = error


def mechanisms(
    handler: Handler, certificate: Mapping[str, Any] | None, decoy_key: bytes | None = None
) -> dict[str, Callable[[], Exchange]]:
    """Return the mechanisms of this handler on this connection: for each a function that begins an exchange.

    The order is CAPA's: the mechanisms that give away least come first.  *certificate* is the result of ``getpeercert``
    for a TLS client's verified certificate; if it is None or empty, there is none.  SCRAM makes salts for users who do
    not exist from the secret *decoy_key*, because those salts must not change from one attempt to the next.  Without
    *decoy_key*, popart takes a key made at random for this process.
    """
    found: dict[str, Callable[[], Exchange]] = {}
    authorize = ability(handler, SupportsAuthorization, "authorize")
    authenticate_certificate = ability(handler, SupportsCertificates, "authenticate_certificate")
    if certificate and authenticate_certificate is not None:
        found["EXTERNAL"] = partial(_external, authenticate_certificate, certificate)
    get_credentials = ability(handler, SupportsScram, "get_scram_credentials")
    if get_credentials is not None and _has_scramp():
        found[_SCRAM] = partial(_scram, get_credentials, authorize, decoy_key or _DECOY_KEY)
    authenticate_token = ability(handler, SupportsTokens, "authenticate_token")
    if authenticate_token is not None:
        found["OAUTHBEARER"] = partial(_oauthbearer, authenticate_token)
        found["XOAUTH2"] = partial(_xoauth2, authenticate_token)
    found["PLAIN"] = partial(_plain, handler.authenticate_pass, authorize)
    if getattr(handler, "allow_sasl_login", False):
        found["LOGIN"] = partial(_login, handler.authenticate_pass)
    return found


def scram_credentials(
    password: str, *, iterations: int = SCRAM_ITERATIONS, salt: bytes | None = None
) -> ScramCredentials:
    """Make the credentials of a password for SCRAM-SHA-256 (RFC 5802 section 3).  Without *salt*, the salt is random.

    It needs the library scramp: popart's extra ``scram``, or ``pip install scramp``.

    :raises ValueError: *password* is empty or holds characters that SASLprep (RFC 4013) forbids, *iterations* is less
        than 4096, or *salt* has fewer than 12 octets.
    :raises ImportError: scramp is not installed.
    """
    from scramp import ScramException, ScramMechanism

    if not password:
        raise ValueError("a password is not empty")
    if salt is None:
        salt = secrets.token_bytes(SCRAM_SALT_SIZE)
    try:
        salt, stored_key, server_key, iterations = ScramMechanism(_SCRAM).make_auth_info(password, iterations, salt)
    except ScramException as error:
        raise ValueError(error.args[0]) from None
    return ScramCredentials(salt, iterations, stored_key, server_key)


def apop_digest(banner: str, secret: str) -> str:
    """Return the hexdigest that a client with *secret* sends with APOP (RFC 1939 section 7).

    *banner* is the argument of `Handler.set_banner`.  Compare in constant time:
    ``hmac.compare_digest(apop_digest(banner, secret), hexdigest)``.
    """
    return hashlib.md5(f"{banner}{secret}".encode(), usedforsecurity=False).hexdigest()


def read_base64(octets: bytes) -> bytes | None:
    """Decode base64, or return None if it is malformed (RFC 5034 section 5).

    How strict `base64.b64decode` is by itself depends on Python's version.
    """
    return b64decode(octets) if len(octets) % 4 == 0 and _BASE64.fullmatch(octets) else None


def _call(method: Callable[..., object], *arguments: object) -> object:
    """Call a method of the handler from within a mechanism."""
    try:
        return method(*arguments)
    except StopIteration as error:
        raise StoppedError(error) from None


# Passwords.


def _plain(authenticate: Authenticate, authorize: Authorize | None) -> Exchange:
    """RFC 4616."""
    response = yield b""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise BadCommandError("PLAIN takes two identities and a password")
    authzid, username, password = parts
    if authzid in (b"", username):
        return _authenticate_pass(authenticate, username, password)
    if authorize is None:
        raise ReportableError(_OTHER_USER)
    identity = _text(authzid)
    return _act_as(authorize, _authenticate_pass(authenticate, username, password), identity)


def _login(authenticate: Authenticate) -> Exchange:
    """Never standardised.  The challenges are those that old versions of Outlook know."""
    username = yield b"Username:"
    password = yield b"Password:"
    return _authenticate_pass(authenticate, username, password)


def _authenticate_pass(authenticate: Authenticate, username: bytes, password: bytes) -> str:
    name = _text(username)
    expect_none("authenticate_pass", _call(authenticate, name, _text(password)))
    return name


# Authorization identities (RFC 4422 section 3.4.1).


def _act_as(authorize: Authorize, username: str, identity: str) -> str:
    """Return the identity, if the handler lets this user act as it.  The user is authenticated already."""
    expect_none("authorize", _call(authorize, username, identity))
    return identity


# Tokens.


def _oauthbearer(authenticate: Authenticate) -> Exchange:
    """RFC 7628."""
    _, authzid, rest = _split_gs2((yield b""))
    return (yield from _authenticate_token(authenticate, _unescape(authzid), _pairs(rest), OAUTHBEARER_ERROR))


def _xoauth2(authenticate: Authenticate) -> Exchange:
    """As Google and Microsoft define it: the same pairs, and the user's name among them."""
    pairs = _pairs(b"\x01" + (yield b""))
    return (yield from _authenticate_token(authenticate, pairs.get(b"user", b""), pairs, XOAUTH2_ERROR))


def _authenticate_token(
    authenticate: Authenticate, username: bytes, pairs: Mapping[bytes, bytes], challenge: bytes
) -> Exchange:
    name = _text(username)
    bearer = _BEARER.fullmatch(pairs.get(b"auth", b""))
    try:
        if bearer is None:
            raise ReportableError("a bearer token is needed")
        expect_none("authenticate_token", _call(authenticate, name, bearer[1].decode()))
        return name
    except ReportableError as error:
        refusal = error
    # RFC 7628 section 3.2.3: whatever the client says next, even a cancellation, the refusal is the answer.
    with suppress(BadCommandError):
        yield challenge
    raise refusal


# Certificates.


def _external(authenticate: Callable[[str, Mapping[str, Any]], object], certificate: Mapping[str, Any]) -> Exchange:
    """RFC 4422 appendix A."""
    response = yield b""
    identity = _text(response) if response else ""
    expect_none("authenticate_certificate", _call(authenticate, identity, certificate))
    return identity


# SCRAM.


def _scram(get_credentials: Callable[[str], object], authorize: Authorize | None, decoy_key: bytes) -> Exchange:
    """RFC 5802 and RFC 7677.  ``-ERR`` alone reports a failure, as RFC 5802 section 5.1 allows."""
    from scramp import ScramMechanism

    mechanism = ScramMechanism(_SCRAM)
    header, authzid, rest = _split_gs2((yield b""))
    identity = ""
    if authzid and not rest.startswith(b"n=%b," % authzid):
        if authorize is None:
            raise ReportableError(_OTHER_USER)
        identity = _text(_unescape(authzid))
    if len(rest) > MAX_LINE:
        # A name this long fits into no USER, either.  SASLprep takes microseconds for each character, before sign-in.
        raise BadCommandError("SCRAM message too long")
    message = "n,," + read_text(rest, "responses")  # scramp takes no authorization identity, not even the right one
    username = _read_name(mechanism, message)
    if username:
        credentials = _ask_credentials(get_credentials, username, decoy_key)
    else:
        # scramp refuses names with characters that are newer than its Unicode, but RFC 5802 section 5.1 lets them pass.
        # Such a name is nobody's here.  The exchange goes on like any unknown user's, under a name that scramp takes.
        name, _, others = message.removeprefix("n,,").partition(",")
        credentials = _make_decoy(name, decoy_key)
        message = f"n,,{_replace_unassigned(name)},{others}"
        if not _read_name(mechanism, message):
            raise BadCommandError("malformed SCRAM message")
    keys = credentials.salt, credentials.stored_key, credentials.server_key, credentials.iterations
    server = mechanism.make_server(lambda name: keys)
    server.set_client_first(message)
    server.gs2_header = _Gs2Header(header)
    answer = _check_proof(server, (yield server.get_server_first().encode()))
    if answer is None:
        raise ReportableError("wrong name or password")
    if authorize is not None and identity not in ("", username):
        username = _act_as(authorize, username, identity)
    if (yield answer.encode()):
        raise BadCommandError("the last response of SCRAM is empty")
    return username


def _read_name(mechanism: Any, message: str) -> str:
    """Return the name in a client's first message, as SASLprep prepares it; ``""`` if the message is malformed.

    scramp hides what is raised by the function that it asks for credentials.  So that function never asks the handler:
    at this first reading it learns the name and ends the reading, at a second it has the answer.
    """
    from scramp import ScramException

    names = [""]

    def note_name(name: str) -> NoReturn:
        names.append(name)
        raise ScramException("")  # the rest of what scramp does with a first message comes at the second reading

    with suppress(ScramException):
        mechanism.make_server(note_name).set_client_first(message)
    return names[-1]


def _check_proof(server: Any, response: bytes) -> str | None:
    """Return the server's last message if the client's is right, otherwise None."""
    from scramp import ScramException

    final = read_text(response, "responses")
    if all(read_base64(part[2:]) is not None for part in response.split(b",") if part[:2] in (b"c=", b"p=")):
        with suppress(ScramException):
            server.set_client_final(final)
            return str(server.get_server_final())
    return None


def _replace_unassigned(name: str) -> str:
    """Put a digit for each character that Unicode 3.2 does not know: SASLprep takes a digit anywhere."""
    return "".join(["0" if stringprep.in_table_a1(character) else character for character in name])


class _Gs2Header(bytes):
    """The GS2 header that the client's last message must repeat.  scramp's own has no authorization identity."""

    gs2_char = "n"  # scramp before 1.4.18 looks at this, and then takes the octets

    def make_cbind_input(self, channel_binding: object) -> bytes:
        return self


def _ask_credentials(get_credentials: Callable[[str], object], username: str, decoy_key: bytes) -> ScramCredentials:
    """Return the user's credentials, or others that look like them: a user who does not exist fails at the end."""
    decoy = _make_decoy(username, decoy_key)
    try:
        found = _call(get_credentials, username)
    except ReportableError as refusal:
        if refusal.code not in (None, "AUTH"):
            raise
        return decoy
    if not isinstance(found, ScramCredentials):
        raise bad_type("get_scram_credentials", found, "ScramCredentials")
    return found


def _make_decoy(username: str, key: bytes) -> ScramCredentials:
    salt = hmac.digest(key, username.encode(), "sha256")[:SCRAM_SALT_SIZE]
    return ScramCredentials(salt, SCRAM_ITERATIONS, secrets.token_bytes(32), secrets.token_bytes(32))


def _has_scramp() -> bool:
    try:
        import scramp  # noqa: F401
    except ImportError:
        return False
    return True


# Parts of responses.


def _split_gs2(octets: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the GS2 header at the start of a response, the authorization identity in it, and the rest."""
    found = _GS2_HEADER.match(octets)
    if found is None:
        raise BadCommandError("malformed GS2 header")
    if found[1]:
        raise ReportableError("channel binding is not offered")
    return found[0], found[2] or b"", octets[found.end() :]


def _unescape(saslname: bytes) -> bytes:
    """RFC 5801 section 4."""
    return saslname.replace(b"=2C", b",").replace(b"=3D", b"=")


def _pairs(octets: bytes) -> dict[bytes, bytes]:
    if not _PAIRS.fullmatch(octets):
        raise BadCommandError("malformed key and value pairs")
    pairs = _PAIR.findall(octets)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadCommandError("a key must not come twice")
    return found


def _text(octets: bytes) -> str:
    """Read a name or a password."""
    text = read_text(octets, "responses")
    if not text:
        raise BadCommandError("a name or a password is missing")
    if FORBIDDEN.search(text):
        raise BadCommandError("names and passwords hold neither NUL nor line ends")
    return text
