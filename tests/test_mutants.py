"""The command that looks for rules which no test holds: python3 -m tests.mutants."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutants

TOY = """
LIMIT = 3


def too_long(text):
    return len(text) > LIMIT


def in_a_thread(answers):
    answers.append("done")


def in_a_process():
    return True


def never_tested():
    return True


WIDTH = 5
"""

LOOP = """
def empty(items):
    while items:
        items.pop()
"""

TESTS = """
import subprocess
import sys
import threading

import popart
from popart import loop


def test_too_long():
    assert popart.too_long("long")
    assert not popart.too_long("")


def test_in_a_thread():
    answers = []
    thread = threading.Thread(target=popart.in_a_thread, args=[answers])
    thread.start()
    thread.join()
    assert answers == ["done"]


def test_in_a_process():
    subprocess.run([sys.executable, "-c", "import popart; assert popart.in_a_process()"], check=True)


def test_empty():
    items = [1]
    loop.empty(items)
    assert not items


def test_width():
    assert popart.WIDTH == 5


def test_that_fails():
    raise AssertionError
"""

OUTPUT = """\
fails without a fault, and is left out: tests/test_toy.py::test_that_fails
popart/__init__.py:2: constant: 3 -> 2 (tests: 1)
    LIMIT = 3
popart/__init__.py:6: comparison: len(text) > LIMIT -> len(text) >= LIMIT (tests: 1)
    return len(text) > LIMIT
popart/__init__.py:18: return value: return True -> return None (tests: 1)
    return True
popart/__init__.py:18: constant: True -> False (tests: 1)
    return True

                      mutants   caught  survived  of these new
__init__                   13        9         4             4  69.2%
loop                        2        2         0             0  100.0%
all                        15       11         4             4  73.3%
"""

ACCEPTED = """\
# The survivors that are no fault.

__init__: return len(text) > LIMIT
    len(text) > LIMIT -> len(text) >= LIMIT
    len(text) > LIMIT -> len(text) <= LIMIT
No test is about three characters,
and none will be.

loop: items.pop()
    items.pop() -> pass
Another module, which is not tried now.
"""


def run(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "tests.mutants", "-j", "2", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, timeout=600)
    assert done.returncode == 1, done.stderr.decode()
    return done.stdout.decode()


def test_survivors_are_told(tmp_path: Path) -> None:
    """A fault that no test finds is printed, whatever thread or process runs it; one that makes a test hang is found.

    A survivor that tests/mutants.txt has is not printed again; what it has in vain is.
    """
    files = [("popart/__init__.py", TOY), ("popart/loop.py", LOOP)]
    files += [("tests/__init__.py", ""), ("tests/test_toy.py", TESTS), ("tests/mutants.txt", "")]
    for file, text in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    shutil.copy(mutants.__file__, tmp_path / "tests")
    assert run(tmp_path) == OUTPUT
    (tmp_path / "tests" / "mutants.txt").write_text(ACCEPTED)
    output = run(tmp_path, "__init__")
    assert "LIMIT = 3" in output and "len(text) >= LIMIT" not in output
    assert output.endswith("""\
__init__                   13        9         4             3  69.2%
all                        13        9         4             3  69.2%
tests/mutants.txt: caught, or no longer there: __init__: return len(text) > LIMIT
    len(text) > LIMIT -> len(text) <= LIMIT
""")


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("x = a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("x = a is not b", ["a is not b -> a is b"]),
        ("x = a + b", ["a + b -> a - b"]),
        ("x = a and b", ["a and b -> a or b"]),
        ("x = not a", ["not a -> a"]),
        ("x = 7", ["7 -> 8", "7 -> 6"]),
        ("x = True", ["True -> False"]),
        ("x = 'a'", ["'a' -> 'XXaXX'"]),
        ("x = f'{a}b'", ["'b' -> 'XXbXX'"]),
        ("def f(a=0): pass", ["0 -> 1", "0 -> -1"]),
        ("def f(): return a", ["return a -> return None"]),
        ("def f(): return False", ["False -> True"]),
        ("def f():\n    if a: return", ["a -> not a", "return -> pass"]),
        ("def f(): a()", ["a() -> pass"]),
        ("def f(): raise a", ["raise a -> pass"]),
        ("def f(): a += b", ["a += b -> a -= b", "a += b -> pass"]),
        ("for a in b: break", ["break -> continue"]),
        ("try: pass\nexcept (A, B): pass", ["(A, B) -> (B,)", "(A, B) -> (A,)"]),
        ("try: pass\nexcept A: pass", ["A -> ()"]),
        ("def f(a: 'x' = b) -> 'y':\n    'docstring'\n    assert a\n    c: 'z'", []),
        ("if TYPE_CHECKING:\n    x = 7", []),
        ("__all__ = ['a']", []),
        ("Pair = tuple['int', 'int'] | None", []),
    ],
)
def test_operators(tmp_path: Path, source: str, changes: list[str]) -> None:
    """What is changed, and what is left alone: types, docstrings, assertions and the list of public names."""
    file = tmp_path / "popart" / "toy.py"
    file.parent.mkdir()
    file.write_text(source)
    found = list(mutants.Mutator(tmp_path, file).mutants())
    assert [mutant.change for mutant in found] == changes
    for mutant in found:
        compile(mutant.source, "toy.py", "exec")
        assert mutant.source != source.encode()
