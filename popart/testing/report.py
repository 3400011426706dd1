"""What the report of a failed test shows of the servers that it used."""

from __future__ import annotations

from popart.testing.server import started


def sections(since: int) -> list[tuple[str, str]]:
    """Return a title and the conversations for each server that was started, or had a session, after a moment."""
    # A list at once: other threads may start servers meanwhile.
    servers = [server for reference in started.keyrefs() if (server := reference()) is not None]
    found = []
    for server in sorted(servers, key=lambda server: started[server]):
        text = server._transcript(since)
        if started[server] > since or text:
            found.append((f"POP3 conversation with {server.url}", text or "no client has come"))
    return found
