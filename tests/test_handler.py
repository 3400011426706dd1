"""The interface that applications implement."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import popart
from popart import Handler, SupportsClose, SupportsListing, SupportsTop

from .conftest import Mail, MemoryHandler, make_session

METHODS = {
    "set_banner": ["banner"],
    "authenticate_pass": ["username", "password"],
    "authenticate_apop": ["username", "hexdigest"],
    "lock_maildrop": [],
    "get_message_count": [],
    "get_message_size": ["number"],
    "get_message_id": ["number"],
    "get_message_reader": ["number"],
    "delete_messages": ["numbers"],
    "unlock_maildrop": [],
    "handle_session_error": ["error"],
}


def nothing(self: object, *arguments: object) -> Any:
    return None


def test_methods_are_those_of_the_contract() -> None:
    """Applications are written against these names of methods and parameters, and no other method is asked for."""
    public = {name: value for name, value in vars(Handler).items() if inspect.isfunction(value) and name[0] != "_"}
    assert {name: list(inspect.signature(method).parameters)[1:] for name, method in public.items()} == METHODS


@pytest.mark.parametrize("forgotten", METHODS)
def test_forgotten_method(forgotten: str) -> None:
    """A subclass that forgets a method fails when it is built, not in the midst of a session."""
    methods = {name: nothing for name in METHODS if name != forgotten}
    with pytest.raises(TypeError, match=forgotten):
        type("Forgetful", (Handler,), methods)()


def test_complete_handler_is_built() -> None:
    """The contract's methods are all that a subclass must have."""
    type("Complete", (Handler,), dict.fromkeys(METHODS, nothing))()


@pytest.mark.parametrize(
    ("protocol", "method"),
    [(SupportsListing, "list_messages"), (SupportsTop, "get_top_reader"), (SupportsClose, "close")],
    ids=["SupportsListing", "SupportsTop", "SupportsClose"],
)
def test_abilities_are_found_by_their_method(protocol: type, method: str) -> None:
    """An ability is had by whoever has its method, derived from the protocol or not."""
    assert isinstance(type("Able", (MemoryHandler,), {method: nothing})(Mail()), protocol)
    assert not isinstance(MemoryHandler(Mail()), protocol)


def test_handler_need_not_derive() -> None:
    """Handler is an interface: any object with its methods will do."""

    class Duck:
        def __getattr__(self, name: str) -> Any:
            return getattr(handler, name) if name in METHODS else object.__getattribute__(self, name)

    handler = MemoryHandler(Mail(b"a\r\n"))
    duck: Any = Duck()
    session = make_session(duck)
    replies = [session.respond(line).status for line in (b"USER alice", b"PASS secret", b"STAT", b"QUIT")]
    session.close()
    assert replies[2] == b"+OK 1 3\r\n"
    assert not handler.mail.errors
    assert popart.Handler not in type(duck).__mro__
