"""What a handler that satisfies `SupportsMonitoring` is told of its session."""

from __future__ import annotations

import time
from typing import Any

from popart.handler_calls import expect_none, tell_error


class Monitor:
    """Measures one session."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._session_began = time.monotonic()
        self._commands = 0

    def begin_command(self, verb: str, octets: int) -> None:
        self._verb = verb
        self._octets_before = octets
        self._command_began = time.monotonic()

    def tell_command(self, outcome: str, octets: int) -> None:
        self._commands += 1
        seconds = time.monotonic() - self._command_began
        self._tell("command_finished", self._verb, outcome, octets - self._octets_before, seconds)

    def tell_session(self, octets: int) -> None:
        seconds = time.monotonic() - self._session_began
        self._tell("session_finished", self._commands, octets, seconds)

    def _tell(self, method: str, *facts: object) -> None:
        try:
            expect_none(method, getattr(self._handler, method)(*facts))
        except BaseException as error:
            tell_error(self._handler, error)
