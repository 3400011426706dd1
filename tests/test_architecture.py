"""The rules on which the rooms rest, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import popart
from popart.session import COMMANDS, Session, State

ROOT = Path(popart.__file__).parent
SOURCES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.py")}

FLOORS = [
    {"addresses", "errors", "fairness", "message_framing", "session_settings", "signal_handlers", "system",
     "tls_records"},
    {"command_deadlines", "command_lines", "handler", "options", "processor", "proxy_header", "replies",
     "tls_handshake"},
    {"client_socket", "connection_limits", "handler_calls", "workers"},
    {"accepting", "capabilities", "error_replies", "languages", "maildrop_lock", "monitor", "reply_sending", "sasl",
     "unique_ids"},
    {"maildrop", "message_reading", "own_mechanisms", "server_closing"},
    {"sign_in"},
    {"session"},
    {"connection"},
    {"server"},
    {"testing"},
    {"__init__"},
]  # fmt: skip
"""The rooms.  Each stands on the lowest floor that is above all that it imports."""

LONG = {
    "handler.py": "it is the manual",
    "server.py __init__": "its options, two lines each",
    "session.py Session": "the states and the commands of RFC 1939 and its extensions, in one place",
}
"""What may be longer than the rest, and why."""

EXTRAS = {
    "testing": {"pytest", "scramp", "trustme"},
    "sasl": {"scramp"},
    "options": {"typing_extensions"},
}
"""What a module may use where it is installed, or for types alone."""


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
    """A room imports the standard library, its own package and rooms on lower floors, one of them on the next."""
    package, _, inner = module.partition("/")
    (floor,) = (number for number, names in enumerate(FLOORS) if package in names)
    rooms = set()
    for name in imports(module):
        top, _, rest = name.partition(".")
        if top == "popart":
            rooms.add(rest.partition(".")[0])
        else:
            assert top in EXTRAS.get(package, set()) | sys.stdlib_module_names
    assert rooms <= set().union(*FLOORS[:floor], {package} if inner else ())
    assert floor == 0 or package in ("testing", "__init__") or rooms & FLOORS[floor - 1]


PURE = """capabilities command_lines error_replies errors handler handler_calls languages maildrop maildrop_lock
message_framing message_reading own_mechanisms replies sasl session session_settings sign_in unique_ids""".split()


@pytest.mark.parametrize("module", PURE)
def test_no_sockets_threads_or_clocks(module: str) -> None:
    """The protocol can be tested without a port, a thread or a timeout, and it imports no room that needs one."""
    forbidden = {"asyncio", "logging", "select", "selectors", "socket", "socketserver", "ssl", "threading", "time"}
    found = imports(module)
    assert not found & forbidden
    assert {name.partition(".")[2] for name in found if name.startswith("popart.")} <= set(PURE)


def test_no_room_grows_too_large() -> None:
    """A file has 450 lines at most, a class 250 and a function 40, docstrings included."""
    found = set()
    for module, path in SOURCES.items():
        source = path.read_text("utf-8")
        if len(source.splitlines()) > 450:
            found.add(f"{module}.py")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                limit = 250 if isinstance(node, ast.ClassDef) else 40
                if (node.end_lineno or 0) - node.lineno >= limit:
                    found.add(f"{module}.py {node.name}")
    assert found == LONG.keys()


@pytest.mark.parametrize("module", ["command_lines", "message_framing", "proxy_header"])
def test_octets_only(module: str) -> None:
    """What goes over the wire is read and written without a word to another room, but for its errors."""
    assert {name for name in imports(module) if name.startswith("popart")} <= {"popart.errors"}


@pytest.mark.parametrize("module", [module for module in SOURCES if not module.startswith("testing/")])
def test_silent(module: str) -> None:
    """A server prints nothing and logs nothing (promise 6); the test kit's command line is no part of it."""
    assert not imports(module) & {"logging", "traceback", "warnings"}
    tree = ast.parse(SOURCES[module].read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]


def test_each_room_is_in_the_list_for_contributors() -> None:
    """CONTRIBUTING.rst: each room that it names exists, and it names each."""
    text = (ROOT.parent / "CONTRIBUTING.rst").read_text("utf-8")
    rooms = text.partition("\nThe rooms\n")[2].partition("\nTheir rules")[0]
    assert set(re.findall(r"``(\w+)``", rooms)) == {name.partition("/")[0] for name in SOURCES} - {"__init__"}


def test_commands_are_those_declared() -> None:
    """Each command of RFC 1939, 2449, 5034 and 6856 is in the table, in its states, and no other is."""
    anywhere = {b"CAPA", b"LANG", b"QUIT"}
    assert {state: set(commands) for state, commands in COMMANDS.items()} == {
        State.AUTHORIZATION: anywhere | {b"USER", b"PASS", b"APOP", b"AUTH", b"UTF8"},
        State.TRANSACTION: anywhere | {b"STAT", b"LIST", b"RETR", b"DELE", b"NOOP", b"RSET", b"TOP", b"UIDL"},
    }


def test_a_command_stays_a_method() -> None:
    """A declared command is still the method of its name, so a subclass can extend it."""
    for commands in COMMANDS.values():
        for keyword, command in commands.items():
            assert getattr(Session, f"do_{keyword.decode()}") is command.run


def test_public_names() -> None:
    """What the package promises to export is there, and its version is a string."""
    assert all(hasattr(popart, name) for name in popart.__all__)
    assert sorted(set(popart.__all__)) == popart.__all__
    assert isinstance(popart.__version__, str)


@pytest.mark.parametrize("module", SOURCES)
def test_locks_are_taken_by_the_interpreter(module: str) -> None:
    """``with condition`` runs Python code with the lock taken: what a signal handler raises there leaves it taken."""
    assert "with self._changed" not in SOURCES[module].read_text("utf-8")
