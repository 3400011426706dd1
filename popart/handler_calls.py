"""How popart calls a handler: finding its abilities, checking its answers, telling it of failures.

A handler is somebody else's code.  A wrong answer becomes a `HandlerError` here, so no other module needs to check it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import cache
from operator import index
from typing import Any, TypeVar

from popart.errors import HandlerError
from popart.handler import Handler

MAX_NUMBER = 2**63 - 1
"""The most that a signed 64-bit number holds: clients keep sizes in those."""

MAX_SHOWN = 128
"""The most characters, or bits, of a handler's wrong value that a report shows."""

Checked = TypeVar("Checked")


def ability(handler: object, protocol: type, method: str) -> Any:
    """Return one method of an optional protocol, or None if the handler lacks any of the protocol's methods."""
    # Not by isinstance(): since Python 3.12 it does not see what __getattr__ gives, and a handler that delegates would
    # lose its abilities.
    found = getattr(handler, method, None)
    if callable(found) and all(callable(getattr(handler, name, None)) for name in _methods(protocol) if name != method):
        return found
    return None


@cache  # without it, an ability that a handler has would take 2.6 µs instead of 0.6
def _methods(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def expect_handler(handler: Handler) -> Handler:
    """Check that a factory returned an object, not a class, that can be told of errors.  It may lack anything else."""
    if isinstance(handler, type) or not callable(getattr(handler, "handle_session_error", None)):
        raise bad_type("on_new_connection", handler, "a handler")
    return handler


def expect_none(method: str, result: object) -> None:
    """Check the result of a method that must return None: False, or a coroutine, must not pass for success."""
    if result is not None:
        raise bad_type(method, result, "None")


def expect_number(what: str, value: object) -> int:
    """Check an integer from 0 to `MAX_NUMBER`."""
    try:
        number = index(value)  # type: ignore[arg-type]  # it raises for others
    except TypeError:
        close_coroutines(value)
        raise HandlerError(f"{what} must be an integer: {type(value).__name__}") from None
    if not 0 <= number <= MAX_NUMBER:
        raise HandlerError(f"{what} must be 0 to {MAX_NUMBER}: {show(number)}")
    return number


def check_each(values: Sequence[Any], check: Callable[[int, Any], Checked]) -> list[Checked]:
    """Check one value after another, by its message's number.  If one is wrong, close those that are coroutines."""
    try:
        return [check(number, value) for number, value in enumerate(values, 1)]
    except HandlerError:
        close_coroutines(*values)
        raise


def show(value: object) -> str:
    """Return a value as a report shows it, with bounded length.  If it is neither text nor a number, return its
    type."""
    if isinstance(value, str):
        text = str.__str__(value)
        return repr(text) if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]!r} and {len(text) - MAX_SHOWN} more"
    if isinstance(value, int):
        bits = int.bit_length(value)  # Python refuses to write very large numbers
        return int.__repr__(value) if bits <= MAX_SHOWN else f"a number of {bits} bits"
    return type(value).__name__


def close_coroutines(*results: object) -> None:
    """Close those results of a handler that are coroutines; otherwise Python prints that they were never awaited."""
    for result in results:
        if isinstance(result, Coroutine):
            result.close()


def bad_type(method: str, result: object, wanted: str) -> HandlerError:
    """Return the error for a result of the wrong type.  If it is a coroutine, it is closed."""
    close_coroutines(result)
    return HandlerError(f"{method} returned {type(result).__name__}, not {wanted}")


def tell_error(handler: Handler, error: BaseException) -> None:
    """Tell a handler of a failure.  Ignore what it raises then."""
    with suppress(BaseException):
        close_coroutines(handler.handle_session_error(error))


def call_close(owner: object, what: str, handler: Any) -> None:
    """Call the ``close`` of a handler or of its reader, if it has one.  A failure is told to the handler."""
    try:
        close = getattr(owner, "close", None)
        # What it returns does not matter.  But a coroutine has not done anything yet.
        if callable(close) and isinstance(result := close(), Coroutine):
            raise bad_type(what, result, "None")
    except BaseException as error:
        tell_error(handler, error)
