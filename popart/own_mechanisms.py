"""The mechanisms of AUTH that a handler brings along: the check of their names, and of what their exchanges say."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from functools import partial

from popart.command_lines import FORBIDDEN, MAX_AUTH_LINE
from popart.errors import HandlerError
from popart.handler_calls import bad_type, close_coroutines, show
from popart.sasl import BUILT_IN, Exchange

MAX_NAMES = 400
"""Octets of all names, with a space before each: a capability line has 512 (RFC 2449 section 5)."""

MAX_CHALLENGE = MAX_AUTH_LINE // 4 * 3
"""Octets: in base64 as many as a client's response may have."""

_NAME = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422 section 3.1


def check_mechanisms(mechanisms: object) -> dict[str, Callable[[], Exchange]]:
    """Return what a handler's ``get_mechanisms`` gave: for each name a function that begins a checked exchange.

    :raises HandlerError: it is not a mapping, a name is malformed or belongs to a mechanism of popart's, a value cannot
        be called, or the names are too long for CAPA.
    """
    if not isinstance(mechanisms, Mapping):
        raise bad_type("get_mechanisms", mechanisms, "a mapping of names to functions")
    found: dict[str, Callable[[], Exchange]] = {}
    octets = 0
    for key, begin in mechanisms.items():
        if not (isinstance(key, str) and _NAME.fullmatch(key)):
            raise HandlerError(f"a mechanism's name has 1 to 20 of A to Z, 0 to 9, hyphen, underscore: {show(key)}")
        name = str.__str__(key)  # a subclass could look different on the wire
        if name in BUILT_IN:
            raise HandlerError(f"{name} is a mechanism of popart's own")
        if not callable(begin):
            raise bad_type(f"get_mechanisms, for {name},", begin, "a function")
        found[name] = partial(_begin, name, begin)
        octets += len(name) + 1
        if octets > MAX_NAMES:  # at once: a handler's mapping may have no end
            raise HandlerError(f"the mechanisms' names have more than {MAX_NAMES} octets in all")
    return found


def _begin(name: str, begin: Callable[[], object]) -> Exchange:
    exchange = begin()
    if not isinstance(exchange, Generator):
        raise bad_type(f"mechanism {name}", exchange, "a generator")
    return _check(name, exchange)


def _check(name: str, exchange: Generator[object, bytes | None, object]) -> Exchange:
    """Pass on an exchange's challenges and the client's responses.  Close it at its end, whatever that is."""
    response = None
    try:
        while True:
            try:
                challenge = exchange.send(response)
            except StopIteration as end:
                username = end.value
                break
            if not isinstance(challenge, bytes):
                close_coroutines(challenge)
                raise HandlerError(f"mechanism {name} yielded {type(challenge).__name__}, not bytes")
            if len(challenge) > MAX_CHALLENGE:
                raise HandlerError(
                    f"mechanism {name}: a challenge has {len(challenge)} octets, more than {MAX_CHALLENGE}"
                )
            response = yield challenge
    finally:
        exchange.close()
    if not isinstance(username, str):
        raise bad_type(f"mechanism {name}", username, "a user's name")
    if not username or FORBIDDEN.search(username):
        # The name itself is not shown, as it may be what the client sent.
        raise HandlerError(f"mechanism {name} returned a name that is empty, or holds NUL, CR or LF")
    return username
