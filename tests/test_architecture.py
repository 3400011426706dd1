"""The rules on which the layers rest, read from the source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import popart
from popart.session import COMMANDS, State

SOURCES = {path.stem: path for path in Path(popart.__file__).parent.glob("*.py")}

LAYERS = [{"errors"}, {"handler", "wire"}, {"sasl"}, {"session"}, {"server"}, {"testing"}, {"__init__"}]


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
    """A module imports the standard library and the layers below its own, nothing else."""
    lower: set[str] = set()
    for layer in LAYERS:
        if module in layer:
            break
        lower |= {f"popart.{name}" for name in layer}
    else:
        pytest.fail(f"{module} stands in no layer")
    for name in imports(module):
        assert name in lower or name.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("module", ["errors", "handler", "wire", "session"])
def test_no_sockets_threads_or_clocks(module: str) -> None:
    """The protocol can be tested without a port, a thread or a timeout."""
    forbidden = {"asyncio", "logging", "select", "selectors", "socket", "socketserver", "ssl", "threading", "time"}
    assert not imports(module) & forbidden


def test_wire_knows_octets_only() -> None:
    """The wire layer imports no sibling but errors."""
    assert {name for name in imports("wire") if name.startswith("popart")} <= {"popart.errors"}


@pytest.mark.parametrize("module", SOURCES)
def test_silent(module: str) -> None:
    """popart prints nothing and logs nothing (promise 6)."""
    assert not imports(module) & {"logging", "traceback", "warnings"}
    tree = ast.parse(SOURCES[module].read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]


def test_commands_are_those_declared() -> None:
    """Each command of RFC 1939 and CAPA is in the table, in the states in which it may be given, and no other is."""
    anywhere = {b"CAPA", b"NOOP", b"QUIT"}
    assert {state: set(commands) for state, commands in COMMANDS.items()} == {
        State.AUTHORIZATION: anywhere | {b"USER", b"PASS", b"APOP"},
        State.TRANSACTION: anywhere | {b"STAT", b"LIST", b"RETR", b"DELE", b"RSET", b"TOP", b"UIDL"},
    }


def test_public_names() -> None:
    """What the package promises to export is there, and its version is a string."""
    assert all(hasattr(popart, name) for name in popart.__all__)
    assert sorted(set(popart.__all__)) == popart.__all__
    assert isinstance(popart.__version__, str)
