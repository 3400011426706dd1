"""Serve messages from memory, to a mail program that is tried by hand, or to the tests of one in any language:
``python3 -m popart.testing [--control] [MESSAGE.eml ...]``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from popart.options import COUNTS, TIMES
from popart.testing.control import ControlServer
from popart.testing.output import Output
from popart.testing.server import MailServer
from popart.testing.session_record import Entry, SessionRecord

LOOK_SECONDS = 0.5
"""Seconds between two checks whether the parent is still there.  A signal just before a wait is handled after it."""

MOST_WORDS = 8
"""Words of a command that are kept..."""

MOST_CHARACTERS = 200
"""... and characters of each: no command that does anything has more, except for long names."""


class CommandLineServer(MailServer):
    """Keeps only the last records, because it may run for days, and prints what happens."""

    _most_records: int | None = 10_000
    _most_sessions: int | None = 100

    def __init__(self, options: argparse.Namespace, limits: dict[str, Any], output: Output) -> None:
        tokens = dict(options.user_token) if options.oauth or options.user_token else None
        super().__init__(
            dict(options.user or [("alice", "secret")]),
            tokens=tokens,
            scram=options.scram,
            login=options.login,
            tls=options.tls,
            port=options.port,
            apop=options.apop,
            **limits,
        )
        if options.host is not None:
            self.host: str = options.host
            self._addresses = [options.host]
        self._names = list(dict.fromkeys([*self._names, self.host, *options.allow_host]))
        self._tells_all = options.verbose
        self._tells_commands = not (options.control or options.verbose)
        self._output = output

    def record_command(self, command: tuple[str, ...]) -> None:
        super().record_command(command)
        if self._tells_commands:
            # Escaped, so that a client cannot control the terminal.
            self._output.print(" ".join(command).encode("unicode_escape").decode())

    def _record(self, session: SessionRecord, command: tuple[str, ...]) -> object:
        return super()._record(session, tuple([word[:MOST_CHARACTERS] for word in command[:MOST_WORDS]]))

    def _record_error(self, record: SessionRecord, error: BaseException) -> None:
        super()._record_error(record, error)
        error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold its session

    def _tell(self, record: SessionRecord, entry: Entry) -> None:
        if self._tells_all:
            self._output.print(f"{record.serial_number} {entry}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    check_options(parser, options)
    limits = {name: value for name, value in vars(options).items() if name in ("timeout", *COUNTS, *TIMES)}
    parent = os.getppid() if options.exit_with_parent else None
    ending = False

    def end(number: int, frame: object) -> None:
        nonlocal ending
        if not ending:  # a second signal must not cut the end short: threads left over would keep the process alive
            ending = True
            raise KeyboardInterrupt

    signals = signals_that_end()
    for number in signals:
        signal.signal(number, end)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as block:
        stdout = block.enter_context(Output(sys.stdout))
        told = block.enter_context(Output(sys.stderr)) if options.verbose else stdout
        stop = threading.Event()
        try:
            server = CommandLineServer(options, limits, told)
            for path in options.messages:
                server.deliver(next(iter(server.users)), path.read_bytes())
            with naming("--port", options.port):
                block.enter_context(server)
            stdout.print(begin_control(server, options, stop, block) if options.control else describe(server))
        except (OSError, OverflowError, ImportError, ValueError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        while not stop.wait(LOOK_SECONDS):
            if options.exit_with_parent and os.getppid() != parent:
                break
        ending = True
    # The interpreter ends now, and takes handlers away: a signal that comes later would kill it.
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def signals_that_end() -> list[int]:
    """Return SIGINT, SIGTERM and SIGHUP.  A script that starts this in the background has set SIGINT to be ignored.
    SIGHUP is for a closed terminal, and is left out under nohup."""
    signals: list[int] = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


@contextlib.contextmanager
def naming(option: str, port: int) -> Iterator[None]:
    """Say in an error which of the ports cannot be had."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{option} {port}: {error}") from None


def describe(server: MailServer) -> str:
    name, password = next(iter(server.users.items()))
    trust = f", trust {server.ca_file}" if server.ca_file else ""
    return f"{server.url} user {name}, password {password}{trust}"


def begin_control(
    server: MailServer, options: argparse.Namespace, stop: threading.Event, block: contextlib.ExitStack
) -> str:
    """Open the control interface, and return the line that says where everything is."""
    facts: dict[str, Any] = {
        "version": import_module("popart").__version__,
        "url": server.url,
        "host": server.host,
        "port": server.port,
        "tls": options.tls,
        "ca_file": server.ca_file,
        "users": [*server.users],
    }
    host = options.host or "127.0.0.1"
    with naming("--control-port", options.control_port):
        control = ControlServer(
            (host, options.control_port),
            server,
            facts,
            token=options.token,
            hosts=[host, *options.allow_host],
            stop=stop.set,
        )
    block.enter_context(contextlib.closing(control))
    url = f"http://{f'[{host}]' if ':' in host else host}:{control.port}"
    facts["control"] = url
    secrets = {"users": dict(server.users), "token": control.token, "page": f"{url}/#{control.token}"}
    return json.dumps({**facts, **secrets})


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """See that no option is without effect."""
    for option, pairs in (("--user", options.user or []), ("--user-token", options.user_token)):
        if len(dict(pairs)) < len(pairs):
            parser.error(f"{option} gives one name twice")
    needless = {
        "--token": options.token is not None,
        "--control-port": options.control_port != 0,
        "--allow-host": options.allow_host and not options.tls,  # its certificate has the names too
    }
    for option, given in needless.items():
        if given and not options.control:
            parser.error(f"{option} needs --control")
    if options.exit_with_parent and sys.platform == "win32":
        print(
            f"{parser.prog}: --exit-with-parent does nothing on Windows: end the server by POST /stop", file=sys.stderr
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m popart.testing",
        description="Serve messages from memory to POP3 clients on this machine, and print each command. "
        "Nothing is changed but memory.  Ends with Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="TCP port (default: any free one)")
    parser.add_argument("--tls", action="store_true", help="TLS from the first octet, with a certificate of its own")
    parser.add_argument(
        "--user",
        action="append",
        type=pair,
        metavar="NAME:PASSWORD",
        help="a user; may be repeated (default: alice:secret)",
    )
    parser.add_argument("messages", nargs="*", metavar="MESSAGE.eml", type=Path, help="a message for the first user")
    signing_in = parser.add_argument_group("more ways to sign in")
    for option, what in (("apop", "APOP"), ("scram", "AUTH SCRAM-SHA-256"), ("login", "AUTH LOGIN"),
                         ("oauth", "AUTH XOAUTH2 and OAUTHBEARER")):  # fmt: skip
        signing_in.add_argument(f"--{option}", action="store_true", help=f"offer {what}")
    signing_in.add_argument("--user-token", action="append", type=pair, default=[], metavar="NAME:TOKEN",
                            help="a user's OAuth 2.0 token; may be repeated, and means --oauth")  # fmt: skip
    add_control(parser.add_argument_group("for tests in any language"))
    limits = parser.add_argument_group(
        "limits", "as in popart's manual; none switches one off, except --timeout", argument_default=argparse.SUPPRESS
    )
    limits.add_argument("--timeout", type=float, metavar="SECONDS", help="for a command (default: 600)")
    for name in COUNTS:
        limits.add_argument(f"--{name.replace('_', '-')}", type=count, metavar="N")
    for name in TIMES:
        limits.add_argument(f"--{name.replace('_', '-')}", type=seconds, metavar="SECONDS")
    return parser


def add_control(group: Any) -> None:
    add = group.add_argument
    add("--control", action="store_true", help="an HTTP interface; the first line of the output is JSON")
    add("--control-port", type=int, default=0, metavar="N", help="its TCP port (default: any free one)")
    add("--token", type=bearer_token,
        help="what each request that changes something must carry (default: a random one)")  # fmt: skip
    add("--host", type=not_empty,
        help="the address to listen on (default: this machine alone); elsewhere all must give the token")  # fmt: skip
    add("--allow-host", action="append", type=not_empty, default=[], metavar="NAME",
        help="a name by which HTTP clients may call this host; may be repeated")  # fmt: skip
    add("--exit-with-parent", action="store_true", help="end when the process that has started this one is gone")
    add("--verbose", action="store_true", help="write what is said in each session to stderr")


def pair(text: str) -> tuple[str, str]:
    name, colon, secret = text.partition(":")
    if not (name and colon and secret):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name and a secret with a colon between them")
    return name, secret


def not_empty(text: str) -> str:
    """Take a host: an empty one, as from an unset variable, would mean all addresses."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def bearer_token(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):  # RFC 6750 section 2.1
        raise argparse.ArgumentTypeError("a token is letters, digits and ._~+/-, with = at its end alone")
    return text


def count(text: str) -> int | None:
    return None if text == "none" else int(text)


def seconds(text: str) -> float | None:
    return None if text == "none" else float(text)


if __name__ == "__main__":
    main()
