"""The results of the runs: medians, ratios, tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from client import Measurement, WrongAnswerError

FLOOR = "canned floor"
OURS = ("popart", "popart pinned", "popart one", "popart x2", "baseline", FLOOR, "client ceiling")
"""Columns whose wrong answers are the fault of popart or of these scripts; those of a peer are only reported."""


NOTHING = "--"
"""A cell without a figure.  In reStructuredText a single hyphen would begin a list."""


@dataclass
class Cell:
    """One server's runs of one row."""

    values: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    """Microseconds of CPU for a session, a message or a command."""

    client_busy: list[float] = field(default_factory=list)
    """The share of a core that the client used."""

    others_busy: list[float] = field(default_factory=list)
    """The share of a core that went to neither client nor server."""

    details: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    """What went wrong.  With an error there is no figure, even if other rounds went well."""

    verdict: str = ""
    """The error in a word."""

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values and self.error is None else None


@dataclass
class Line:
    title: str
    unit: str
    less_is_better: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)

    def ratio(self, name: str, other: str) -> float | None:
        """Return the median of *name* / *other* in each round: other work on the machine affected both."""
        one, two = self.cells.get(name), self.cells.get(other)
        if one is None or two is None or one.value is None or two.value is None:
            return None
        ratios = [a / b for a, b in zip(one.values, two.values, strict=False) if b > 0]
        return statistics.median(ratios) if ratios else None


class Results:
    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}

    def _cell(self, key: str, title: str, unit: str, name: str) -> Cell:
        line = self.lines.setdefault(key, Line(title, unit))
        return line.cells.setdefault(name, Cell())

    def add(
        self, key: str, title: str, unit: str, name: str, found: Measurement, units: float, operations: int
    ) -> None:
        cell = self._cell(key, title, unit, name)
        cell.values.append(found.amount * units / found.seconds)
        cell.server_cpu.append(found.server_cpu / (found.amount * operations) * 1e6)
        cell.client_busy.append(found.client_cpu / found.seconds)
        cell.others_busy.append(found.others_cpu / found.seconds)
        cell.details.update(found.details)

    def add_idle(self, key: str, title: str, name: str, details: dict[str, float]) -> None:
        cell = self._cell(key, title, "KB", name)
        self.lines[key].less_is_better = True
        cell.values.append(details["KB"])
        cell.details.update(details)

    def fail(self, key: str, title: str, unit: str, name: str, error: Exception) -> None:
        cell = self._cell(key, title, unit, name)
        cell.error = str(error)
        cell.verdict = "wrong octets" if isinstance(error, WrongAnswerError) else "failed"

    @property
    def names(self) -> list[str]:
        """The columns, in the order in which they first appeared."""
        names: dict[str, None] = {}
        for line in self.lines.values():
            names.update(dict.fromkeys(line.cells))
        return sorted(names, key=lambda name: OURS.index(name) if name in OURS[:-1] else len(OURS) + (name in OURS))

    def print_row(self, key: str) -> None:
        """Print the results of a finished row."""
        line = self.lines.get(key)
        if line is None:
            return
        print(f"\n{key}: {line.title}, {line.unit}")
        rows = [["", line.unit, "of floor", "popart is", "server CPU", "client busy", "others", ""]]
        for name in filter(line.cells.__contains__, self.names):
            cell = line.cells[name]
            if cell.error is not None:
                rows.append([name, cell.verdict, "", "", "", "", "", cell.error[:100]])
                continue
            others = {key: value for key, value in cell.details.items() if key != "KB"}
            rows.append(
                [
                    name,
                    number(cell.value),
                    _times(line.ratio(name, FLOOR)),
                    _times(line.ratio("popart", name)),
                    f"{_cpu(cell)} us" if cell.server_cpu else "",
                    _percent(cell.client_busy),
                    _percent(cell.others_busy),
                    ", ".join(f"{key} {value:,.4g}" for key, value in others.items()),
                ]
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
            print("  " + "  ".join(cells).rstrip(), flush=True)

    def print_summary(self) -> None:
        """Print two tables of all rows, as reStructuredText: the figures, and the CPU that the servers used."""
        print("\nIn brackets: popart's figure, divided by this one.\n")
        self._print_table(lambda line: f"{line.title}, {line.unit}", self._show_value)
        print("\nMicroseconds of the server's CPU for one session, message or command.\n")
        self._print_table(lambda line: line.title, lambda line, name: _cpu(line.cells[name]))

    def _show_value(self, line: Line, name: str) -> str:
        ratio = None if name == "popart" else line.ratio("popart", name)
        return number(line.cells[name].value) + (f" ({ratio:.2f})" if ratio is not None else "")

    def _print_table(self, title: Callable[[Line], str], show: Callable[[Line, str], str]) -> None:
        names = self.names
        rows = [["work", *names]]
        for line in self.lines.values():
            row = [title(line)]
            for name in names:
                cell = line.cells.get(name)
                if cell is None:
                    row.append(NOTHING)
                else:
                    row.append(cell.verdict or show(line, name))
            if set(row[1:]) != {NOTHING}:
                rows.append(row)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rule = "  ".join("=" * width for width in widths)
        for i, row in enumerate(rows):
            if i < 2:
                print(rule)
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        print(rule)

    def print_failures(self) -> bool:
        """Print the errors.  Return True if not all are a peer's fault."""
        ours = False
        for key, line in self.lines.items():
            for name, cell in line.cells.items():
                if cell.error is not None:
                    print(f"{cell.verdict}: {key}: {name}: {cell.error}")
                    ours = ours or name in OURS
        return ours

    def to_json(self, machine: str) -> dict[str, Any]:
        return {
            "machine": machine,
            "rows": {
                key: {
                    "title": line.title,
                    "unit": line.unit,
                    "servers": {
                        name: {
                            "values": cell.values,
                            "median": cell.value,
                            "of floor": line.ratio(name, FLOOR),
                            "popart is": line.ratio("popart", name),
                            "server CPU us": cell.server_cpu,
                            "client busy": cell.client_busy,
                            "others busy": cell.others_busy,
                            "details": cell.details,
                            "error": cell.error,
                        }
                        for name, cell in line.cells.items()
                    },
                }
                for key, line in self.lines.items()
            },
        }


def number(value: float | None) -> str:
    """Return a figure with its meaningful digits only."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _cpu(cell: Cell) -> str:
    return number(statistics.median(cell.server_cpu)) if cell.server_cpu else NOTHING


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def _percent(shares: list[float]) -> str:
    return f"{statistics.median(shares) * 100:.0f} %" if shares else ""
