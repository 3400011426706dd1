"""What a check has found."""

from __future__ import annotations

import threading


class CheckError(Exception):
    """The handler cannot be checked, for example because the sign-in fails.  The text says why."""


class Report:
    """What a check has found.  Any thread may add to it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """What could not be checked, and what is unusual but no fault."""

        self.events: int = 0
        """How often something was found, repetitions included."""
        self._guard = threading.Lock()
        self._found: dict[object, tuple[str, int]] = {}

    @property
    def findings(self) -> list[str]:
        """The faults, each once: what is wrong, what a client suffers, and what to change.  Empty if the handler is
        right."""
        more = " (And {} more of this kind.)"
        with self._guard:
            found = [*self._found.values()]
        return [text if times == 1 else text + more.format(times - 1) for text, times in found]

    def add(self, what: str, suffers: str, change: str, *, kind: object = None) -> None:
        """Add a fault: what is wrong, *so* what a client suffers, and what to change.

        Faults are alike if they differ only in *what*.  Only the first of these is kept, and how many there were.
        """
        fault = suffers, change, kind
        with self._guard:
            self.events += 1
            first, times = self._found.get(fault, (f"{what}, so {suffers}. {change}.", 0))
            self._found[fault] = first, times + 1

    def note(self, text: str) -> None:
        """Add a note, once."""
        with self._guard:
            if text not in self.notes:
                self.notes.append(text)

    def __str__(self) -> str:
        """Return all of it, a line each."""
        lines = [f"finding: {text}" for text in self.findings] + [f"note: {text}" for text in self.notes]
        found, noted = count(len(self.findings), "finding", "no"), count(len(self.notes), "note", "no")
        return "\n".join([*lines, f"{found}, {noted}"])


def in_brackets(failures: list[str]) -> str:
    """Return the first failure in brackets, to follow what is reported; ``""`` if there is none."""
    return f" ({failures[0]})" if failures else ""


def count(number: int, what: str, none: str = "0") -> str:
    """Return a number of things in words."""
    return f"{number or none} {what}{'' if number == 1 else 's'}"
