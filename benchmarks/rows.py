"""The work that is measured: the rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import client
import data
from client import Measurement, Target

# Greeting, USER and PASS come before the commands of a signed-in session.
SIGNED_IN = 3


@dataclass(frozen=True)
class Row:
    """One kind of work."""

    key: str
    title: str
    unit: str
    maildrop: str
    exchanges: Callable[[data.Maildrop], list[data.Exchange]]
    """The commands of a session between sign-in and QUIT."""

    measure: Callable[[Target, list[client.Step], float], Measurement]
    """Run it for about this many seconds."""

    units: float = 1
    """How many of *unit* there are in each thing that `measure` counts."""

    operations: int = 1
    """How many messages or commands there are in each; for the server's CPU."""

    tls: bool = False
    two_processes: bool = False
    """True if also measured with two processes of popart on one port."""

    handler: tuple[str, ...] = ()
    """How popart's handler differs: options of ``servers/popart_server.py``."""


def _one_mail(maildrop: data.Maildrop) -> list[data.Exchange]:
    return data.retrieve(maildrop, range(1, 2))


def typical(maildrop: data.Maildrop) -> list[data.Exchange]:
    return data.look(maildrop) + _one_mail(maildrop)


def fetching(maildrop: data.Maildrop) -> list[data.Exchange]:
    return data.look(maildrop) + _all_mails(maildrop)


def _sessions(at_once: int) -> Callable[[Target, list[client.Step], float], Measurement]:
    return lambda target, steps, seconds: client.converse(target, steps, at_once, seconds)


def _resumed(target: Target, steps: list[client.Step], seconds: float) -> Measurement:
    with_ticket = Target(target.port, target.context, client.get_tls_session(target, steps))
    return client.converse(with_ticket, steps, 16, seconds)


def _batch(count: int) -> Callable[[Target, list[client.Step], float], Measurement]:
    together = slice(SIGNED_IN, SIGNED_IN + count)
    return lambda target, steps, seconds: client.repeat(target, steps, together, seconds)


def _fetch(count: int) -> Callable[[Target, list[client.Step], float], Measurement]:
    loop = (SIGNED_IN, SIGNED_IN + count)
    return lambda target, steps, seconds: client.converse(target, steps, 2, seconds, loop)


def _pipelined(name: str) -> Callable[[data.Maildrop], list[data.Exchange]]:
    return lambda maildrop: data.batches(maildrop)[name]


def _all_mails(maildrop: data.Maildrop) -> list[data.Exchange]:
    return data.retrieve(maildrop, range(1, maildrop.count + 1))


LARGE = data.MAILDROPS["large-lf"][1] / 1e6
MAILS, MAIL, _ = data.MAILDROPS["medium"]
BATCH = data.BATCH

FILEIO = ("--mail", "fileio")
STORES = [("", "", ()), ("-fileio", ", from FileIO", FILEIO), ("-open", ", from open()", ("--mail", "open"))]
"""Ends of keys and titles, and the options, of the rows with mail in memory and in files."""

FIRST_HANDLER = ("--mail", "open", "--no-listing")
"""As a first handler is written: ``open(path, "rb")``, and each message asked about by itself."""

ROWS = [
    Row("sessions-1", "sessions, 1 at once", "/s", "small", typical, _sessions(1)),
    Row("sessions-16", "sessions, 16 at once", "/s", "small", typical, _sessions(16), two_processes=True),
    Row("sessions-64", "sessions, 64 at once", "/s", "small", typical, _sessions(64), two_processes=True),
    *(
        Row(
            f"fetch-{at_once}-open",
            f"sessions that fetch 10 files, {at_once} at once",
            "/s",
            "small",
            fetching,
            _sessions(at_once),
            two_processes=True,
            handler=FIRST_HANDLER,
        )
        for at_once in (16, 64)
    ),
    Row("large-lf", "RETR of 25 MB, stored with LF", "MB/s", "large-lf", _one_mail, _batch(1), LARGE),
    Row("large-crlf", "RETR of 25 MB, stored with CRLF", "MB/s", "large-crlf", _one_mail, _batch(1), LARGE),
    *(
        Row(f"{key}-fileio", f"{title}, from a file", "MB/s", key, _one_mail, _batch(1), LARGE, handler=FILEIO)
        for key, title in {"large-lf": "RETR of 25 MB with LF", "large-crlf": "RETR of 25 MB with CRLF"}.items()
    ),
    *(
        Row(
            f"medium{key}",
            f"RETR of 8 KB one by one, 2 clients{title}",
            "MB/s",
            "medium",
            _all_mails,
            _fetch(MAILS),
            units=MAILS * MAIL / 1e6,
            operations=MAILS,
            handler=handler,
        )
        for key, title, handler in STORES
    ),
    *(
        Row(
            f"pipelined-{name.lower()}",
            f"{title} in one write",
            "/s",
            "pipeline",
            _pipelined(name),
            _batch(BATCH),
            units=BATCH,
            operations=BATCH,
        )
        for name, title in {
            "NOOP": f"{BATCH} NOOP",
            "DELE": f"{BATCH - 1} DELE and RSET",
        }.items()
    ),
    *(
        Row(
            f"pipelined-retr{key}",
            f"{BATCH} RETR of 1 KB in one write{title}",
            "/s",
            "pipeline",
            _pipelined("RETR"),
            _batch(BATCH),
            units=BATCH,
            operations=BATCH,
            handler=handler,
        )
        for key, title, handler in STORES
    ),
    Row("listing-10000", "10,000 messages: PASS STAT LIST UIDL QUIT", "/s", "10000", data.look, client.one_by_one),
    Row(
        "asked-10000",
        "10,000 messages, asked about one by one",
        "/s",
        "10000",
        data.look,
        client.one_by_one,
        handler=("--no-listing",),
    ),
    Row("listing-100000", "100,000 messages: PASS STAT LIST UIDL QUIT", "/s", "100000", data.look, client.one_by_one),
    Row(
        "tls-sessions", "TLS sessions, 16 at once", "/s", "small", typical, _sessions(16), tls=True, two_processes=True
    ),
    Row("tls-resumed", "TLS sessions resumed, 16 at once", "/s", "small", typical, _resumed, tls=True),
    Row(
        "tls-large", "RETR of 25 MB over TLS, stored with LF", "MB/s", "large-lf", _one_mail, _batch(1), LARGE, tls=True
    ),
]

# The cost of idle sessions is measured in another way.
IDLE = {"idle": "idle signed-in session", "tls-idle": "idle signed-in session over TLS"}
