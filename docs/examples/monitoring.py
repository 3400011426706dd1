"""Two ways to see what a server does.  Derive your handler from one of them."""

import logging

from prometheus_client import Counter, Histogram

import popart

log = logging.getLogger("pop3")

COMMANDS = Counter("pop3_commands", "Commands that were answered", ["verb", "outcome"])
OCTETS = Counter("pop3_sent_octets", "Octets of all answers")
SECONDS = Histogram("pop3_command_seconds", "From a command to its answer", ["verb"])
SESSIONS = Counter("pop3_sessions", "Sessions that are over")


class Counted(popart.SupportsMonitoring):
    """For prometheus_client: its start_http_server(9100) shows the figures."""

    def command_finished(
        self, verb: str, outcome: str, octets: int, seconds: float
    ) -> None:
        COMMANDS.labels(verb, outcome).inc()
        SECONDS.labels(verb).observe(seconds)

    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        SESSIONS.inc()
        OCTETS.inc(octets)


class Logged(popart.SupportsMonitoring):
    """For logging."""

    peer: object = None
    """The client's address.  Set it in on_new_connection, which knows it."""

    def command_finished(
        self, verb: str, outcome: str, octets: int, seconds: float
    ) -> None:
        text = "%s: %s %s, %d octets in %.3f s"
        log.debug(text, self.peer, verb, outcome, octets, seconds)

    def session_finished(self, commands: int, octets: int, seconds: float) -> None:
        text = "%s: session of %d commands, %d octets, %.1f s"
        log.info(text, self.peer, commands, octets, seconds)

    def handle_session_error(self, error: BaseException) -> None:
        log.warning("%s: %r", self.peer, error)
