"""What CAPA lists (RFC 2449 sections 5 and 6, RFC 3206, RFC 6856)."""

from __future__ import annotations

from collections.abc import Sequence

from popart.handler import Handler, SupportsExpire, SupportsLoginDelay
from popart.handler_calls import ability, expect_number
from popart.session_settings import SessionSettings


def capabilities(
    handler: Handler,
    settings: SessionSettings,
    *,
    signed_in: bool,
    takes_user: bool,
    mechanisms: Sequence[str],
    utf8: bool,
    languages: bool,
) -> list[str]:
    """Return CAPA's lines.  Before and after sign-in they differ only in what depends on the user.

    :raises HandlerError: the handler's days or seconds are not numbers.
    """
    found = ["TOP", "UIDL"]
    if takes_user:
        found.append("USER")
    found += ["PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"]
    if mechanisms:
        found.append(f"SASL {' '.join(mechanisms)}")
    if utf8:
        found.append("UTF8 USER")
    if languages:
        found.append("LANG")
    # A value that differs from user to user has this mark until a user has signed in.
    mark = "" if signed_in else " USER"
    get_login_delay = ability(handler, SupportsLoginDelay, "get_login_delay")
    if get_login_delay is not None:
        found.append(f"LOGIN-DELAY {expect_number('the login delay', get_login_delay())}{mark}")
    get_expire = ability(handler, SupportsExpire, "get_expire")
    expire = settings.expire
    if signed_in and get_expire is not None:
        days: object = get_expire()
        expire = "NEVER" if days is None else str(expect_number("the days to keep mail", days))
    elif signed_in or get_expire is not None:
        expire = expire.removesuffix(" USER") + mark
    return [*found, f"EXPIRE {expire}", f"IMPLEMENTATION {settings.implementation}"]
