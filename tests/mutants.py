"""Puts small faults into popart, one at a time, and tells which of them no test finds.

    python3 -m tests.mutants [-j PROCESSES] [--seconds SECONDS] [MODULE ...] > mutants.log &

MODULE is a name such as sasl or testing.faults.  Without one, all are taken, which needs a night on two cores.

First all tests run once, to see which test runs which line; build/mutants.json keeps that until a file changes.  Then
the tests that run a fault's line are run on it, until one fails or hangs: first those that found the module's last
faults, then quick ones that run little else.  A constant or a default is tried with the tests that name it, or run a
line which names it, and a line that no test runs in its own process with the tests that start others.  Where such tests
need more than SECONDS (20) together, only the first are run: the survivor's line says so.  Tests that fail without a
fault are named and left out.

tests/mutants.txt lists the survivors that are no fault of the tests, with the reasons.  The exit status is 1 if a
survivor is not in that list, or an entry of it has become wrong.

Of the tools that exist, cosmic-ray 8.7 runs one command for all faults, and cannot choose tests; mutmut 3.8 changes the
source so that tests/test_architecture.py fails, and leaves decorated methods alone, which all commands are.
"""

from __future__ import annotations

import argparse
import ast
import faulthandler
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parent.parent
MAP = ROOT / "build" / "mutants.json"
ACCEPTED = ROOT / "tests" / "mutants.txt"
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", ".coverage*", "build", "dist", "*.egg-info", "__pycache__"
)

PRELOADED = ["freezegun", "hypothesis.strategies", "hypothesis.stateful", "scramp", "trustme"]
"""What many tests import: loaded once, before a process forks for each fault."""

PYTEST = ["-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0", "--hypothesis-seed=0"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is preloaded

HANG = 5.0
"""Seconds, beside five times their own, after which a test or those that run together count as hanging."""

LONGEST = 60.0
"""Seconds after which a test without a fault counts as hanging, or the import of the tests with one."""

MOST_MEMORY = 16 << 30
"""Octets of address space: a fault in a loop may ask for all there is."""

MOST_FINDERS = 50
"""How many of the last tests that found a fault are tried first."""

BATCHES = [(0, 10), (10, 100), (100, None)]
"""Which tests run together: most faults need the first few, and to collect all tests takes seconds."""


def sources(tree: Path) -> list[Path]:
    return sorted((tree / "popart").rglob("*.py"))


def module_name(file: Path, tree: Path) -> str:
    return ".".join(file.relative_to(tree / "popart").with_suffix("").parts).removesuffix(".__init__")


# The faults.

_SWAPS = """
    Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, In NotIn, NotIn In, Is IsNot, IsNot Is,
    Add Sub, Sub Add, Mult FloorDiv, FloorDiv Mult, Div Mult, Mod Mult, Pow Mult, LShift RShift, RShift LShift,
    BitAnd BitOr, BitOr BitAnd, BitXor BitAnd, And Or, Or And
"""
SWAPS: dict[type[ast.AST], list[Any]] = {
    getattr(ast, operator): [getattr(ast, other) for other in others]
    for operator, *others in map(str.split, _SWAPS.split(","))
}
"""What stands in place of an operator."""

REMOVED = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete, ast.Raise)
CONDITIONS = {(ast.If, "test"), (ast.While, "test"), (ast.IfExp, "test"), (ast.comprehension, "ifs")}
TYPE_ALIAS = re.compile(r"_?[A-Z][A-Za-z]*[a-z]")


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    module: str
    file: str
    line: int
    text: str
    """The source line, without its indentation."""

    operator: str
    before: str
    after: str
    source: bytes
    """The whole module, with the fault."""

    lines: range
    """Those of the statement that has the fault; of an ``if`` and its like, only the head's."""

    names: frozenset[str]
    """What that statement defines when the module is imported."""

    @property
    def change(self) -> str:
        return f"{self.before} -> {self.after}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it in the list of those accepted, whatever lines come and go above it."""
        return self.module, self.text, self.change


def changed(node: Any, role: tuple[type[ast.AST], str], in_function: bool) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in place of *node*, each with the operator's name."""
    match node:
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                for other in SWAPS[type(operator)]:
                    operators = [*node.ops[:number], other(), *node.ops[number + 1 :]]
                    yield "comparison", ast.Compare(node.left, operators, node.comparators)
        case ast.BinOp():
            for other in SWAPS[type(node.op)]:
                yield "operator", ast.BinOp(node.left, other(), node.right)
        case ast.BoolOp():
            for other in SWAPS[type(node.op)]:
                yield "operator", ast.BoolOp(other(), node.values)
        case ast.AugAssign() if type(node.op) in SWAPS:
            for other in SWAPS[type(node.op)]:
                yield "operator", ast.AugAssign(node.target, other(), node.value)
        case ast.UnaryOp():
            yield "operator removed", node.operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.Constant(value=str(value)):
            yield "constant", ast.Constant(f"XX{value}XX")
        case ast.Constant(value=bytes(octets)):
            yield "constant", ast.Constant(b"XX" + octets + b"XX")
        case ast.Return(value=None):
            yield "statement removed", ast.Pass()
        case ast.Return(value=ast.Constant(value=None | False)):
            pass  # None is as false as False, for which True is tried
        case ast.Return():
            yield "return value", ast.Return(ast.Constant(None))
        case ast.Break():
            yield "break", ast.Continue()
        case ast.Continue():
            yield "continue", ast.Break()
    if isinstance(node, REMOVED) and in_function and getattr(node, "value", node) is not None:
        yield "statement removed", ast.Pass()
    if role in CONDITIONS and not isinstance(node, (ast.Compare, ast.Constant, ast.UnaryOp)):
        yield "condition", ast.UnaryOp(ast.Not(), node)
    if role == (ast.ExceptHandler, "type"):
        if isinstance(node, ast.Tuple):
            for number in range(len(node.elts)):
                yield "exception", ast.Tuple([*node.elts[:number], *node.elts[number + 1 :]], ast.Load())
        else:
            yield "exception", ast.Tuple([], ast.Load())


def is_left_alone(node: ast.AST) -> bool:
    """Docstrings, assertions, types, and the names that are exported."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Assert():
            return True
        case ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec" | "NewType" | "cast")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name() | ast.Subscript() | ast.BinOp()):
            return bool(TYPE_ALIAS.fullmatch(name))
    return False


def children(node: ast.AST) -> Iterator[tuple[ast.AST, str, Callable[[ast.AST], None]]]:
    """Yield each child that may have a fault, its field, and how to put another in its place."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "bases"}:
            continue
        if field in {"body", "test"} and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(value, ast.AST):
            yield value, field, lambda other, field=field: setattr(node, field, other)  # type: ignore[misc]
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield item, field, lambda other, value=value, number=number: value.__setitem__(number, other)  # type: ignore[misc]


@dataclass(frozen=True)
class Context:
    """Where a node stands."""

    lines: range
    names: frozenset[str] = frozenset()
    in_function: bool = False
    string: ast.JoinedStr | None = None
    """The f-string around it: what is within has no reliable position before Python 3.12."""

    def of(self, node: ast.AST, field: str, parent: ast.AST) -> Context:
        """Return the context of a child."""
        lines, names, in_function, string = self.lines, self.names, self.in_function, self.string
        if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)) and field == "body" and not in_function:
            names, in_function = frozenset(), True
        if isinstance(node, (ast.stmt, ast.ExceptHandler)):
            assert node.end_lineno is not None
            body = getattr(node, "body", None)
            if body and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = range(node.lineno, max(node.lineno + 1, body[0].lineno))
            else:
                lines = range(node.lineno, node.end_lineno + 1)
            if not in_function:
                names = frozenset(defined(node))
        if isinstance(node, ast.JoinedStr) and string is None:
            string = node
        return Context(lines, names, in_function, string)


def used(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


class Mutator:
    """Makes the mutants of one module."""

    def __init__(self, tree: Path, file: Path) -> None:
        self._module = module_name(file, tree)
        self._file = file.relative_to(tree).as_posix()
        self._source = source = file.read_bytes()
        self._lines = source.splitlines(keepends=True)

    def mutants(self) -> Iterator[Mutant]:
        return self._below(ast.parse(self._source), Context(range(0)))

    def _below(self, parent: ast.AST, outer: Context) -> Iterator[Mutant]:
        for node, field, put in children(parent):
            if is_left_alone(node):
                continue
            context = outer.of(node, field, parent)
            for operator, other in changed(node, (type(parent), field), context.in_function):
                yield self._mutant(node, operator, ast.fix_missing_locations(other), put, context)
            yield from self._below(node, context)

    def _mutant(
        self, node: Any, operator: str, other: ast.AST, put: Callable[[ast.AST], None], context: Context
    ) -> Mutant:
        place: Any = context.string or node
        start, end = (
            sum(map(len, self._lines[: line - 1])) + column
            for line, column in [(place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)]
        )
        after = ast.unparse(other)
        if place is node:
            before = " ".join(self._source[start:end].decode().split())
            new = f"({after})" if isinstance(other, ast.expr) and not isinstance(other, ast.Constant) else after
        else:
            before = ast.unparse(node)
            put(other)
            new = ast.unparse(place)
            put(node)
        source = self._source[:start] + new.encode() + self._source[end:]
        text = self._lines[place.lineno - 1].decode().strip()
        where = (self._module, self._file, place.lineno, text)
        return Mutant(*where, operator, before, after, source, context.lines, context.names)


# The tests, and what each runs.


class Map:
    """Which test runs what, as recorded in a *file*."""

    def __init__(self, file: Path, tree: Path) -> None:
        record = json.loads(file.read_text("utf-8"))
        self.seconds: dict[str, float] = record["seconds"]
        """The time of each test that passes, by its node id."""

        self.failed: list[str] = record["failed"]
        self._starters = [test for test in record["starters"] if test in self.seconds]
        self._ran: dict[str, dict[str, list[str]]] = record["ran"]
        """The tests that run a line, by module and line.  "" stands for the import."""

        self._uses: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """The lines that use a name."""

        self._makes: dict[str, set[str]] = defaultdict(set)
        """The constants that are made of a name."""

        for path in sources(tree):
            for node in ast.walk(ast.parse(path.read_bytes())):
                for name, line in used([node]):
                    self._uses[name].add((module_name(path, tree), line))
                for statement in node.body if isinstance(node, (ast.Module, ast.ClassDef)) else ():
                    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
                        for name, _ in used(ast.walk(statement)):
                            self._makes[name].update(defined(statement))
        self._named_by: dict[str, set[str]] = defaultdict(set)
        """The tests that name something in their own code, as file and function."""

        for path in tree.glob("tests/test_*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef):
                    for name, _ in used(ast.walk(node)):
                        self._named_by[name].add(f"{path.name}::{node.name}")
        everywhere = (tests for lines in self._ran.values() for tests in lines.values())
        self._breadth = Counter(test for tests in everywhere for test in tests)

    def _run(self, module: str, line: int) -> list[str]:
        return self._ran.get(module, {}).get(str(line), [])

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that may find a fault: the quick ones that run little else first."""
        tests = {test for line in mutant.lines for test in self._run(mutant.module, line)}
        if "" in tests:
            names = [*mutant.names]
            for name in names:
                names += self._makes[name].difference(names)
            tests |= {test for name in names for use in self._uses[name] for test in self._run(*use)}
            named_by = {function for name in names for function in self._named_by[name]}
            tests |= {test for test in self.seconds if short_name(test) in named_by}
            if not tests & self.seconds.keys():
                tests = {test for ran in self._ran[mutant.module].values() for test in ran}
        return self._ordered(tests & self.seconds.keys()) or self._starters

    def _ordered(self, tests: Iterable[str]) -> list[str]:
        costs = {test: self._breadth[test] * max(self.seconds[test], 0.01) for test in tests}
        cases: Counter[str] = Counter()
        for test in sorted(costs, key=lambda test: (costs[test], test)):
            # A function's second case seldom finds what its first did not.
            function = test.partition("[")[0]
            cases[function] += 1
            costs[test] *= cases[function]
        return sorted(costs, key=lambda test: (costs[test], test))

    def hopeful_first(self, tests: list[str], finders: list[str]) -> list[str]:
        """Return *tests*, beginning with those of the last *finders*."""
        there = set(tests)
        last = [test for test in reversed(finders[-MOST_FINDERS:]) if test in there]
        return list(dict.fromkeys([*last, *tests]))

    def affordable(self, tests: list[str], seconds: float) -> list[str]:
        """Return those of *tests* that *seconds* are enough for, and the first one in any case."""
        spent = list(accumulate(self.seconds[test] for test in tests))
        return tests[: max(1, bisect_right(spent, seconds))]


def short_name(test: str) -> str:
    """Return the file and the function of a test's node id."""
    file, _, rest = test.partition("[")[0].partition("::")
    return f"{Path(file).name}::{rest.rpartition('::')[2]}"


class Recorder:
    """Measures every *step*-th test, from *first* on.  A pytest plugin."""

    def __init__(self, tree: Path, target: Path, first: int, step: int) -> None:
        self._tree = tree
        self._target = target
        self._slice = slice(first, None, step)
        self._test = ""
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._starters: set[str] = set()
        self._coverage = coverage.Coverage(data_file=None, include=[f"{tree}/popart/*"], config_file=False)
        self._coverage.start()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: object) -> None:
        if event in {"os.fork", "subprocess.Popen"}:
            self._starters.add(self._test)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = items[self._slice]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        self._test = item.nodeid
        # Of the whole process: the threads of servers run most lines.
        self._coverage.switch_context(item.nodeid)
        begun = time.perf_counter()
        result = yield
        self._seconds[item.nodeid] = time.perf_counter() - begun
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._coverage.stop()
        data = self._coverage.get_data()
        ran = {module_name(Path(file), self._tree): data.contexts_by_lineno(file) for file in data.measured_files()}
        seconds = {test: cost for test, cost in self._seconds.items() if test not in self._failed}
        result = {"seconds": seconds, "failed": sorted(self._failed), "starters": sorted(self._starters), "ran": ran}
        self._target.write_text(json.dumps(result), "utf-8")


class Chooser:
    """Runs *tests* in their order, and ends the process when one hangs.  A pytest plugin.

    It writes the name of each test to the file *running* when the test begins.
    """

    def __init__(self, tests: list[str], known: Map, running: Path) -> None:
        self._running = running
        self._order = {test: number for number, test in enumerate(tests)}
        self._known = known.seconds.keys() | set(known.failed)
        self._seconds = known.seconds
        self._nowhere = open(os.devnull, "w")
        self._end = time.monotonic() + LONGEST
        self._wait(LONGEST)

    def _patience(self, tests: Iterable[str]) -> float:
        return HANG + 5 * sum(self._seconds.get(test, 1.0) for test in tests)

    def _wait(self, seconds: float) -> None:
        seconds = max(0.001, min(seconds, self._end - time.monotonic()))
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._nowhere)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._end = time.monotonic() + self._patience(item.nodeid for item in session.items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # A test that was not there without the fault has its name from what the fault changes.
        chosen = [item for item in items if item.nodeid in self._order or item.nodeid not in self._known]
        items[:] = sorted(chosen, key=lambda item: self._order.get(item.nodeid, -1))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.write_text(nodeid, "utf-8")
        self._wait(self._patience([nodeid]))


# Processes: each worker has a copy of the project, and forks for each run of pytest.


class Worker:
    """What a process of the pool has for itself."""

    original: Path
    tree: Path


def settle(original: Path) -> None:
    """Make the copy of this worker.  The tests are compiled once; runs with a fault write nothing beside them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    Worker.original = original
    Worker.tree = original.with_name(str(os.getpid()))
    shutil.copytree(original, Worker.tree)
    os.environ["PYTHONPATH"] = str(Worker.tree)
    gc.freeze()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    run_pytest(["--collect-only"], object)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def run_pytest(arguments: Iterable[str], make_plugin: Callable[[], object], output: str = os.devnull) -> int:
    """Run pytest in a child that sees the package and the tests of the copy alone, and return its exit status."""
    child = os.fork()
    if not child:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
            for descriptor, path in enumerate([os.devnull, output, output]):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                os.dup2(file, descriptor)
                os.close(file)
            os.chdir(Worker.tree)
            sys.path[0] = str(Worker.tree)
            sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]
            os._exit(pytest.main([*PYTEST, *arguments], [make_plugin()]))
        finally:
            os._exit(1)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def record(part: tuple[int, int]) -> dict[str, Any]:
    """Run a part of the tests, and return the map of these."""
    target, output = Worker.tree.with_suffix(".json"), Worker.tree.with_suffix(".txt")
    run_pytest(["-v"], lambda: Recorder(Worker.tree, target, *part), str(output))
    if not target.exists():
        raise RuntimeError(f"pytest broke down, or a test hung:\n{output.read_text('utf-8')[-10_000:]}")
    result: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return result


@dataclass
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    caught: bool
    tests: int
    left_out: int
    """Tests that time was too short for."""

    def __str__(self) -> str:
        count = f"{self.tests} of {self.tests + self.left_out}" if self.left_out else f"{self.tests}"
        mutant = self.mutant
        return f"{mutant.file}:{mutant.line}: {mutant.operator}: {mutant.change} (tests: {count})\n    {mutant.text}"


def try_out(task: tuple[Mutant, float]) -> Outcome:
    """Run the tests of a mutant until one fails."""
    mutant, seconds = task
    source = Worker.tree / mutant.file
    known = the_map()
    finders = Worker.original.with_name(f"{mutant.module}.finders")
    found = finders.read_text("utf-8").splitlines() if finders.exists() else []
    tests = known.tests_of(mutant)
    chosen = known.hopeful_first(known.affordable(tests, seconds), found)
    source.write_bytes(mutant.source)
    # What was compiled of the original in this second, if its size is the same, must not count.
    os.utime(source, (0, 0))
    running = Worker.tree.with_suffix(".running")
    running.unlink(missing_ok=True)
    try:
        batches = [chosen[first:end] for first, end in BATCHES]
        caught = any(not passes(batch, known, running) for batch in batches if batch)
        if caught and running.exists():
            with finders.open("a", encoding="utf-8") as file:
                file.write(f"{running.read_text('utf-8')}\n")
    finally:
        shutil.copy2(Worker.original / mutant.file, source)
    return Outcome(mutant, caught, len(chosen), len(tests) - len(chosen))


@cache
def the_map() -> Map:
    return Map(Worker.original.with_name("map.json"), Worker.original)


def passes(tests: list[str], known: Map, running: Path) -> bool:
    functions = dict.fromkeys(test.partition("[")[0] for test in tests)
    status = run_pytest(["-x", *functions], lambda: Chooser(tests, known, running))
    return status in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}


# The command.


def copy_project(target: Path) -> str:
    """Copy the project, and return a digest of what its tests depend on."""
    shutil.copytree(ROOT, target, ignore=NOT_COPIED)
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(path for path in target.rglob("*") if path.suffix in {".py", ".cfg"}):
        digest.update(f"{file.relative_to(target)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def make_map(pool: Any, processes: int) -> dict[str, Any]:
    """Run all tests once."""
    whole: dict[str, Any] = {"seconds": {}, "failed": [], "starters": [], "ran": {}}
    for part in pool.map(record, [(first, processes) for first in range(processes)], 1):
        whole["seconds"] |= part["seconds"]
        whole["failed"] += part["failed"]
        whole["starters"] += part["starters"]
        for module, lines in part["ran"].items():
            there = whole["ran"].setdefault(module, {})
            for line, tests in lines.items():
                there[line] = sorted({*there.get(line, ()), *tests})
    return whole


def read_accepted(text: str) -> dict[tuple[str, str, str], str]:
    """Return the reasons by module, source line and change.

    A paragraph has the module and the line, then the changes, each with a blank before it, then the reason.
    """
    reasons = {}
    for paragraph in text.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        if lines:
            module, _, line = lines[0].partition(": ")
            changes = [line.strip() for line in lines[1:] if line.startswith(" ")]
            reason = " ".join(line for line in lines[1:] if not line.startswith(" "))
            if not (line and changes and reason):
                raise SystemExit(f"tests/mutants.txt: not a line, its changes and a reason: {lines[0]}")
            reasons.update({(module, line, change): reason for change in changes})
    return reasons


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as sasl or testing.faults; default: all")
    parser.add_argument("-j", dest="processes", type=int, default=os.cpu_count(), help="default: one per processor")
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests for one mutant; default: 20")
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        original = Path(scratch, "original")
        digest = copy_project(original)
        files = {module_name(file, original): file for file in sources(original)}
        if unknown := set(options.modules) - set(files):
            parser.error(f"no such module: {', '.join(sorted(unknown))}")
        modules = options.modules or list(files)
        mutants = [mutant for module in modules for mutant in Mutator(original, files[module]).mutants()]
        with multiprocessing.get_context("fork").Pool(options.processes, settle, [original]) as pool:
            if not MAP.exists() or json.loads(MAP.read_text("utf-8"))["digest"] != digest:
                print("Running all tests once ...", file=sys.stderr)
                MAP.parent.mkdir(exist_ok=True)
                MAP.write_text(json.dumps({"digest": digest, **make_map(pool, options.processes)}), "utf-8")
            shutil.copy(MAP, original.with_name("map.json"))
            for test in json.loads(MAP.read_text("utf-8"))["failed"]:
                print(f"fails without a fault, and is left out: {test}")
            outcomes = pool.imap(try_out, [(mutant, options.seconds) for mutant in mutants])
            status = report(outcomes, len(mutants), modules)
            # The end of the block sends SIGTERM, which a process does not hear in the moment before it waits.
            pool.close()
            pool.join()
            return status


def report(outcomes: Iterable[Outcome], total: int, modules: list[str]) -> int:
    """Print the survivors that are new, as they come, then the table and the wrong entries of the list."""
    accepted = read_accepted(ACCEPTED.read_text("utf-8"))
    counts: dict[str, Counter[str]] = {module: Counter() for module in modules}
    survivors = set()
    new = 0
    begun = time.monotonic()
    for number, outcome in enumerate(outcomes, 1):
        kind = "caught"
        if not outcome.caught:
            survivors.add(outcome.mutant.key)
            kind = "accepted" if outcome.mutant.key in accepted else "new"
        if kind == "new":
            new += 1
            print(outcome, flush=True)
        counts[outcome.mutant.module][kind] += 1
        minutes = (time.monotonic() - begun) / 60
        print(f"{number} of {total} in {minutes:.1f} min, {new} new survivors ", end="\r", file=sys.stderr, flush=True)
    print(f"\n{'':20}  mutants   caught  survived  of these new")
    counts["all"] = sum(counts.values(), Counter())
    for module, count in counts.items():
        mutants, survived = count.total(), count["accepted"] + count["new"]
        share = f"{count['caught'] / mutants:.1%}" if mutants else ""
        print(f"{module:20} {mutants:8} {count['caught']:8} {survived:9} {count['new']:13}  {share}")
    stale = [key for key in accepted if key[0] in modules and key not in survivors]
    for module, line, change in stale:
        print(f"tests/mutants.txt: caught, or no longer there: {module}: {line}\n    {change}")
    return 1 if new or stale else 0


if __name__ == "__main__":
    sys.exit(main())
