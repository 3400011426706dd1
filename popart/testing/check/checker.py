"""The check: all that can be asked of a handler, one question after another."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from popart.handler import Handler
from popart.testing.check.abilities import check_abilities, check_errors
from popart.testing.check.bench import Bench, Options
from popart.testing.check.client import Credentials
from popart.testing.check.deleting import check_deletion, check_failing_deletion
from popart.testing.check.locking import check_ends, check_lock
from popart.testing.check.output import Output
from popart.testing.check.reading import check_again, check_pieces, check_reading
from popart.testing.check.recorder import Recorder
from popart.testing.check.report import Report
from popart.testing.check.second_user import check_second_maildrop
from popart.testing.check.signing_in import (
    check_other_ways,
    check_output,
    check_retry,
    check_sign_in,
    check_two_secrets,
)
from popart.testing.store import why_unusable

_DAY = 86_400


def check_handler(
    on_new_connection: Callable[[Any], Handler | None],
    *,
    user: str,
    password: str | None = None,
    token: str | None = None,
    apop: bool = False,
    other: tuple[str, str] | None = None,
    delete: bool = False,
    break_backend: Callable[[], AbstractContextManager[object]] | None = None,
    patience: float = 10.0,
) -> Report:
    """Serve a handler on loopback, ask it everything that a client can ask, and return what is wrong with it.

    *on_new_connection* is what `popart.Server` takes.  The check signs in as *user* with *password*: by USER and PASS,
    by SCRAM-SHA-256 if no passwords are taken, or with *apop* by APOP.  With *token* it signs in by XOAUTH2 or
    OAUTHBEARER.  Without either, the handler must let anybody in.  *other* is a second user's name and secret.

    Nothing is changed in the maildrop, and no client says DELE, unless *delete* is True.  Then the maildrop is emptied.
    *break_backend* returns a context manager in which the back end fails during a deletion.  The check enters it before
    a QUIT.  A call of the handler that takes more than *patience* seconds is a fault, and ends the check.

    :raises CheckError: the handler cannot be checked, for example because the sign-in is refused.
    :raises ValueError: an option can do nothing, such as a secret that is empty, or *break_backend* without *delete*.
    """
    _check_secrets([user, password, token, *(other or ())])
    marker = secrets.token_hex(8)
    secret = token or password
    options = Options(
        credentials=Credentials(user, secret or marker),
        any_secret=secret is None,
        is_token=token is not None,
        apop=apop,
        other=None if other is None else Credentials(*other),
        delete=delete,
        break_backend=break_backend,
        patience=patience,
    )
    _check_options(options)
    return _check(on_new_connection, options, marker)


def _check_secrets(given: Sequence[str | None]) -> None:
    for text in given:
        if text is not None and (why := why_unusable(text)):
            raise ValueError(f"nobody can sign in: a name or a secret must {why}")


def _check_options(options: Options) -> None:
    if options.break_backend is not None and not options.delete:
        raise ValueError("break_backend needs delete=True")
    if options.other is not None and options.other.user == options.credentials.user:
        raise ValueError(f"the second user must be someone other than {options.other.user}")
    if not 0 < options.patience <= _DAY:
        raise ValueError(f"patience must be more than 0 and at most {_DAY} seconds: {options.patience}")


def _check(on_new_connection: Callable[[Any], Handler | None], options: Options, marker: str) -> Report:
    """Ask all.  *marker* is a wrong secret."""
    recorder = Recorder(on_new_connection)
    bench = Bench(recorder, Output(recorder, marker, options.credentials), options)
    if not _takes_one(on_new_connection):
        bench.report.add(
            "on_new_connection cannot be called with one argument, the address of the client",
            "every client is turned away",
            "Give it one parameter, the peer; if it is a class without one, give a function that makes the object",
        )
        return bench.report
    with bench.output.replaced():
        bench.run("reading all messages", check_reading)
        bench.run("holding a second session", check_again)
        bench.run("reading in small pieces", check_pieces)
        bench.run("signing in again", check_retry)
        bench.run("trying the lock", check_lock)
        bench.run("ending sessions", check_ends)
        bench.run("printing", check_output)
        bench.run("asking for abilities", check_abilities)
        bench.run("telling of errors", check_errors)
        bench.run("deleting as the back end fails", check_failing_deletion)
        bench.run("deleting", check_deletion)
        bench.run("looking at the mail of the second user", check_second_maildrop)
        bench.run("signing in with wrong secrets", check_sign_in)
        bench.run("signing in by other ways", check_other_ways)
        bench.run("signing in with the secrets of two users", check_two_secrets)
    return bench.report


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # a function written in C may have no signature
        return True
    except TypeError:
        return False
    return True
