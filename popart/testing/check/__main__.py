"""Check a handler: ``python3 -m popart.testing.check module:factory --user NAME --password PASSWORD``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

from popart.testing.check.checker import check_handler
from popart.testing.check.report import CheckError

_EPILOG = """\
The exit status is 0 if nothing was found, 1 if something was, and 2 if the handler could not be checked.
Nothing is changed in the maildrop without --delete.  What the handler prints goes to the standard error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names, print what was found, and return the exit status."""
    parser = _make_parser()
    chosen = vars(parser.parse_args(arguments))
    if chosen["break_backend"] and not chosen["delete"]:
        parser.error("--break-backend needs --delete")
    factory = chosen.pop("factory")
    try:
        report = check_handler(factory, **chosen)
    except ValueError as error:
        parser.error(f"{error}")
    except CheckError as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    print(report)
    return 1 if report.findings else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m popart.testing.check",
        description="Serve a handler on loopback, ask it everything a client can ask, and say what is wrong with it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("factory", metavar="MODULE:FACTORY", type=_find, help="the function that popart.Server would be given")
    add("--user", required=True, metavar="NAME", help="a user, best with three messages or more")
    add("--password", metavar="P", help="that user's password; without it and --token anybody must get in")
    add("--token", metavar="T", help="that user's OAuth 2.0 token, to sign in by in place of the password")
    add("--apop", action="store_true", help="offer APOP, and sign in by it")
    add("--other", metavar="NAME:SECRET", type=_split, help="a second user, and its password or token")
    add("--delete", action="store_true", help="delete all messages, to see that it is done right")
    add(
        "--break-backend",
        metavar="MODULE:FUNCTION",
        type=_find,
        help="with --delete: returns a context manager in which the back end fails during a deletion",
    )
    add("--patience", metavar="SECONDS", type=float, default=10.0, help="the most that one call may take (10)")
    return parser


def _find(name: str) -> Callable[..., Any]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise argparse.ArgumentTypeError(f"not MODULE:NAME: {name}")
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be found: {error}") from None
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{name} cannot be called: it is a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _split(text: str) -> tuple[str, str]:
    name, colon, secret = text.partition(":")
    if not (name and colon and secret):
        raise argparse.ArgumentTypeError("not NAME:SECRET")
    return name, secret


if __name__ == "__main__":
    sys.exit(main())
