"""The recipes for signing in and for monitoring that the documentation shows."""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scramp import ScramClient

import popart
from popart.session import Session, State
from tests.conftest import Mail, MemoryHandler, QuickServer, make_session, running, signed_in, wait_until

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIGN_IN = load("sign_in")

Begin = Callable[..., Session]


@pytest.fixture
def begin() -> Begin:
    """Begins a session with a handler that signs in by one of the recipe's classes."""

    def begin(recipe: str, banner: str | None = None, **certificate: Any) -> Session:
        handler = type("Handler", (getattr(SIGN_IN, recipe), MemoryHandler), {})(Mail())
        session = make_session(handler, banner=banner, certificate=certificate)
        session.greet()
        return session

    return begin


def ask(session: Session, *words: str) -> bytes:
    return session.respond(" ".join(words).encode()).status


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(("secret", "signed_in"), [("secret", True), ("wrong", False)])
def test_apop(begin: Begin, secret: str, signed_in: bool) -> None:
    """The recipe signs in who knows the secret (RFC 1939 section 7)."""
    session = begin("ApopSignIn", banner="<1.2@popart.example>")
    ask(session, "APOP", "alice", popart.apop_digest("<1.2@popart.example>", secret))
    assert (session.state is State.TRANSACTION) == signed_in


def test_apop_of_nobody(begin: Begin) -> None:
    """Somebody unknown does not sign in with an empty secret."""
    session = begin("ApopSignIn", banner="<1.2@popart.example>")
    assert ask(session, "APOP", "bob", popart.apop_digest("<1.2@popart.example>", "")).startswith(b"-ERR [AUTH]")


@pytest.mark.parametrize(
    ("user", "token", "signed_in"),
    [("alice", "ya29.token", True), ("alice", "ya29.other", False), ("bob", "ya29.token", False)],
)
def test_tokens(begin: Begin, user: str, token: str, signed_in: bool) -> None:
    """The recipe signs in whom the token was issued for (RFC 7628)."""
    session = begin("TokenSignIn")
    ask(session, "AUTH", "XOAUTH2", encode(f"user={user}\1auth=Bearer {token}\1\1"))
    assert (session.state is State.TRANSACTION) == signed_in


@pytest.mark.parametrize(
    ("user", "password", "signed_in"),
    [("alice", "secret", True), ("alice", "wrong", False), ("bob", "secret", False)],
)
def test_scram(begin: Begin, user: str, password: str, signed_in: bool) -> None:
    """The recipe signs in who knows the password, and nobody else (RFC 5802, RFC 7677)."""
    session = begin("ScramSignIn")
    client = ScramClient(["SCRAM-SHA-256"], user, password)
    challenge = ask(session, "AUTH", "SCRAM-SHA-256", encode(client.get_client_first()))
    client.set_server_first(base64.b64decode(challenge[2:]).decode())
    if ask(session, encode(client.get_client_final())).startswith(b"+ "):
        ask(session, "")
    assert (session.state is State.TRANSACTION) == signed_in


@pytest.mark.parametrize(
    ("identity", "signed_in"), [("=", True), (encode("alice"), True), (encode("bob"), False)], ids=repr
)
def test_certificates(begin: Begin, identity: str, signed_in: bool) -> None:
    """The recipe takes the common name for the user's (RFC 4422 appendix A)."""
    session = begin("CertificateSignIn", subject=((("countryName", "CH"),), (("commonName", "alice"),)))
    ask(session, "AUTH", "EXTERNAL", identity)
    assert (session.state is State.TRANSACTION) == signed_in


def test_monitoring(caplog: pytest.LogCaptureFixture) -> None:
    """The recipes count and log commands, sessions and failures, and no password."""
    if importlib.util.find_spec("prometheus_client") is None:
        (pytest.fail if os.environ.get("DOCS") == "complete" else pytest.skip)("prometheus_client is not installed")
    recipe = load("monitoring")

    class Counted(recipe.Counted, MemoryHandler): ...  # type: ignore[misc, name-defined]

    class Logged(recipe.Logged, MemoryHandler): ...  # type: ignore[misc, name-defined]

    caplog.set_level(logging.DEBUG, "pop3")
    for kind in (Counted, Logged):
        mail = Mail(b"a\n")
        with running(QuickServer(("127.0.0.1", 0), lambda peer, kind=kind, mail=mail: kind(mail))) as server:
            with signed_in(server) as client:
                assert client.ask(b"RETR 1").startswith(b"+OK")
                client.lines()
                assert client.ask(b"QUIT").startswith(b"+OK")
            with signed_in(server):
                pass
            wait_until(lambda mail=mail: mail.errors or "ClientGoneError" in caplog.text)
    assert recipe.COMMANDS.labels("RETR", "+OK")._value.get() == 1
    assert recipe.SESSIONS._value.get() == 2
    assert recipe.OCTETS._value.get() > 100
    text = caplog.text
    assert "RETR +OK" in text and "session of 4 commands" in text and "ClientGoneError" in text
    assert "secret" not in text
