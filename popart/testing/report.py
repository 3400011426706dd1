"""What the report of a failed test shows of the servers that it used."""

from __future__ import annotations

from popart.testing.server import started
from popart.testing.session_record import moments


def now() -> int:
    """Return a moment, for `sections`."""
    return next(moments)


def sections(since: int) -> list[tuple[str, str]]:
    """Return a title and the conversations for each server that was started, or had a session, after a moment."""
    found = []
    for server in sorted(started, key=lambda server: server._started):
        text = server._transcript(since)
        if server._started > since or text:
            found.append((f"POP3 conversation with {server.url}", text or "no client has come"))
    return found
