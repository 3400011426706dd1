"""The commands of clients as words: how a line is split, and which commands a fault can name."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Collection

from popart.sasl import BUILT_IN
from popart.session import COMMANDS

KEYWORDS = {keyword.decode() for commands in COMMANDS.values() for keyword in commands} | {
    "LAST",  # RFC 1460
    "RPOP",  # RFC 1081
    "STLS",  # RFC 2595
    "HELP",
}
"""The keywords of POP3, and those that only other servers know, which clients try anyway."""

_MECHANISMS = {*BUILT_IN, "ANONYMOUS", "CRAM-MD5", "DIGEST-MD5", "GSSAPI", "GSS-SPNEGO", "KERBEROS_V4", "KERBEROS_V5",
               "NTLM", "OTP", "SKEY", "SECURID", "SAML20", "OPENID20", "OAUTH10A"}  # fmt: skip
"""The mechanisms of AUTH that clients try."""

_EXTENSION = re.compile(r"X[A-Z]+")  # XTND, XSENDER and the like
_MORE_MECHANISMS = re.compile(r"(SCRAM|GS2|ECDSA|EAP|9798|NMAS|X)[-_A-Z0-9]+")
_FIRST_HIDDEN = {"PASS": 0, "APOP": 1, "AUTH": 1}  # the argument from which on `MailStore.commands` shows ***
_NUMBERS = {"LIST": 1, "UIDL": 1, "RETR": 1, "DELE": 1, "TOP": 2,
            **dict.fromkeys(["STAT", "NOOP", "RSET", "QUIT", "CAPA", "UTF8", "LAST", "STLS"], 0)}  # fmt: skip
"""How many numbers a command may have, and nothing else."""


def split_command(line: str) -> list[str]:
    """Split a command at its spaces; the keyword, and AUTH's mechanism, are made upper case."""
    keyword, *arguments = line.split(" ")
    if keyword.upper() == "AUTH":
        arguments[:1] = [mechanism.upper() for mechanism in arguments[:1]]
    return [keyword.upper(), *arguments]


def hide_secrets(line: str, secrets: Collection[str]) -> str:
    """Mask secrets in a line where no secret belongs.

    A number that a command takes is not masked.  In a line of no known command, such as ``PASSsecret``, a secret is
    found within a word, and in base64.
    """
    keyword, *arguments = line.split(" ")
    known = keyword.upper() in KEYWORDS
    most = _NUMBERS.get(keyword.upper(), 0)
    if not secrets or (known and len(arguments) <= most and all(map(str.isdigit, arguments))):
        return line
    pattern = "|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))
    if known:
        return re.sub(rf"(?<!\S)({pattern})(?!\S)", "***", line)
    words = ["***" if _is_base64_of(secrets, word) else word for word in line.split(" ")]
    return re.sub(pattern, "***", " ".join(words), flags=re.IGNORECASE)  # the keyword is shown in upper case


def _is_base64_of(secrets: Collection[str], word: str) -> bool:
    """Return whether a word is the base64 of something with a secret in it."""
    try:
        octets = base64.b64decode(word)
    except ValueError:
        return False
    return any(secret.encode("utf-8", "replace") in octets for secret in secrets)


def read_command(command: str) -> list[str]:
    """Split the command that a fault names.

    :raises ValueError: no client's command can be that one.
    """
    if not isinstance(command, str):
        raise ValueError(f"a command must be a str, not {command!r}")
    keyword, *arguments = words = split_command(command)
    if keyword not in KEYWORDS and not _EXTENSION.fullmatch(keyword):
        raise ValueError(f"{command!r} begins with no keyword of POP3{_is_it(keyword, KEYWORDS)}")
    if "" in arguments:
        raise ValueError(f"{command!r} has a space too many")
    first = _FIRST_HIDDEN.get(keyword)
    if first is not None and any(argument != "***" for argument in arguments[first:]):
        raise ValueError(f"{keyword} has a secret in it, which is hidden from faults too: leave it out")
    if (
        keyword == "AUTH"
        and arguments
        and not (arguments[0] in _MECHANISMS or _MORE_MECHANISMS.fullmatch(arguments[0]))
    ):
        raise ValueError(f"{command!r} names no mechanism of SASL{_is_it(arguments[0], _MECHANISMS)}")
    most = _NUMBERS.get(keyword)
    if most is not None and len(arguments) > most:
        raise ValueError(f"{command!r} has more than {keyword} takes: {most or 'no'} argument{'s' * (most != 1)}")
    if most and not all(argument.isascii() and argument.isdigit() for argument in arguments):
        raise ValueError(f"{command!r} has an argument that is no number")
    return words


def _is_it(word: str, known: Collection[str]) -> str:
    similar = "".join(difflib.get_close_matches(word, known, 1))
    return f": is it {similar}?" if similar else ""
