"""The checks of optional abilities, and of what the handler is told when something goes wrong."""

from __future__ import annotations

from contextlib import suppress

from popart.testing.check.bench import Bench, Visitor
from popart.testing.check.client import StopError

_ASKED = 10
"""Languages that are chosen, and messages that are read in UTF-8."""

_MOST_BAD_COMMANDS = 1000
"""A session ends long before that."""


def check_abilities(bench: Bench) -> None:
    """Ask CAPA in both states, and use LANG and UTF8 if they are offered.  A handler may refuse both in words."""
    with bench.serving():
        with bench.visitor() as visitor:
            offered = {line.split(" ")[0] for line in visitor.data("CAPA").decode().splitlines()}
            _choose_languages(visitor, offered)
            visitor.part()
        with bench.session() as visitor:
            visitor.data("CAPA")
            _choose_languages(visitor, offered)
            visitor.part()
        if "UTF8" in offered:
            _use_utf8(bench)


def _choose_languages(visitor: Visitor, offered: set[str]) -> None:
    if "LANG" in offered:
        for line in visitor.data("LANG").decode().splitlines()[:_ASKED]:
            visitor.ask(f"LANG {line.split(' ')[0]}")


def _use_utf8(bench: Bench) -> None:
    with bench.visitor() as visitor:
        for _ in range(2):  # some clients say so twice
            visitor.ask("UTF8")
        if visitor.sign_in(bench.credentials).startswith("+OK"):
            visitor.look_into(_ASKED)
        visitor.part()


def check_errors(bench: Bench) -> None:
    """End sessions by bad commands and by a broken reader, so that the handler is told of an error."""
    with bench.serving():
        with bench.session() as visitor:
            with suppress(StopError):
                for _ in range(_MOST_BAD_COMMANDS):
                    visitor.ask("BAD")
            visitor.leave()
        if bench.first.sizes:
            with bench.recorder.spoiling(), bench.session() as visitor:
                with suppress(StopError):
                    visitor.data("RETR 1")
                visitor.leave()
