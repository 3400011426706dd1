"""What a server has decided for one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class SessionSettings(NamedTuple):
    """The settings of a server for its sessions.  See `popart.Server` for their meaning; None means no limit."""

    greeting: str
    implementation: str
    expire: str
    banner: str | None = None
    """The timestamp of APOP.  Without it there is no APOP."""

    certificate: Mapping[str, Any] | None = None
    """The verified certificate of the TLS client."""

    allow_cleartext: bool = True
    scram_decoy_key: bytes | None = None
    max_bad_commands: int | None = None
    max_failed_logins: int | None = None
    max_messages: int | None = None
