"""The rules on which the layers rest, read from the source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import popart
from popart.session import COMMANDS, State

ROOT = Path(popart.__file__).parent
SOURCES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.py")}

LAYERS = [
    {"errors"},
    {"handler", "pacing", "proxy", "system", "tls", "wire"},
    {"maildrop", "places", "sasl"},
    {"session", "workers"},
    {"monitor"},
    {"connection"},
    {"server"},
    {"testing"},
    {"__init__"},
]

EXTRAS = {"testing": {"pytest", "scramp", "trustme"}, "sasl": {"scramp"}}
"""What a module may use where it is installed."""


def imports(module: str) -> set[str]:
    """Return the full names of the modules that one of popart's modules imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to the package hides what is imported"
            names |= {f"popart.{alias.name}" for alias in node.names} if node.module == "popart" else {str(node.module)}
    return names


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downward(module: str) -> None:
    """A module imports the standard library, its own package and the layers below it, nothing else."""
    package, _, inner = module.partition("/")
    (layer,) = (number for number, names in enumerate(LAYERS) if package in names)
    allowed = set().union(*LAYERS[:layer], {package} if inner else ())
    outside = EXTRAS.get(package, set())
    for name in imports(module):
        top, _, rest = name.partition(".")
        assert rest.partition(".")[0] in allowed if top == "popart" else top in outside | sys.stdlib_module_names


@pytest.mark.parametrize("module", ["errors", "handler", "wire", "maildrop", "sasl", "session"])
def test_no_sockets_threads_or_clocks(module: str) -> None:
    """The protocol can be tested without a port, a thread or a timeout."""
    forbidden = {"asyncio", "logging", "select", "selectors", "socket", "socketserver", "ssl", "threading", "time"}
    assert not imports(module) & forbidden


def test_wire_knows_octets_only() -> None:
    """The wire layer imports no sibling but errors."""
    assert {name for name in imports("wire") if name.startswith("popart")} <= {"popart.errors"}


@pytest.mark.parametrize("module", [module for module in SOURCES if not module.startswith("testing/")])
def test_silent(module: str) -> None:
    """A server prints nothing and logs nothing (promise 6); the test kit's command line is no part of it."""
    assert not imports(module) & {"logging", "traceback", "warnings"}
    tree = ast.parse(SOURCES[module].read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]


def test_commands_are_those_declared() -> None:
    """Each command of RFC 1939, 2449, 5034 and 6856 is in the table, in its states, and no other is."""
    anywhere = {b"CAPA", b"LANG", b"QUIT"}
    assert {state: set(commands) for state, commands in COMMANDS.items()} == {
        State.AUTHORIZATION: anywhere | {b"USER", b"PASS", b"APOP", b"AUTH", b"UTF8"},
        State.TRANSACTION: anywhere | {b"STAT", b"LIST", b"RETR", b"DELE", b"NOOP", b"RSET", b"TOP", b"UIDL"},
    }


def test_public_names() -> None:
    """What the package promises to export is there, and its version is a string."""
    assert all(hasattr(popart, name) for name in popart.__all__)
    assert sorted(set(popart.__all__)) == popart.__all__
    assert isinstance(popart.__version__, str)
