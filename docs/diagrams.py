"""Draw the pictures in docs/pictures from their texts: ``python3 docs/diagrams.py``.

Graphviz draws the states (on Debian: ``apt-get install graphviz fonts-dejavu-core``), and this file draws the session.
Each picture ends with the SHA-256 of its text.  So a test can tell without Graphviz whether the picture is current.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"

SANS = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
COLOURS = {"AUTHORIZATION": "#dbeafe", "TRANSACTION": "#dcfce7", "UPDATE": "#fef3c7"}
"""As in states.dot."""

MARGIN = 12
FIRST_COLUMN = 170
COLUMN = 330
LAST_COLUMN = 90
HEAD = 60
ROW = 34
STATE_ROW = 22


@dataclass(frozen=True)
class Arrow:
    """A line on the wire, or a call."""

    sender: str
    receiver: str
    text: str
    remark: str


def read_sequence(source: str) -> tuple[list[str], list[Arrow | str]]:
    """Return the participants, and the arrows and states from top to bottom."""
    lines = [line for line in source.splitlines() if line and not line.startswith("#")]
    steps: list[Arrow | str] = []
    for line in lines[1:]:
        if line.startswith("== "):
            steps.append(line[3:])
        else:
            sender, _, rest = line.partition(" -> ")
            receiver, _, rest = rest.partition(": ")
            text, _, remark = rest.partition("| ")
            steps.append(Arrow(sender, receiver, text.rstrip(), remark))
    return lines[0].split("; "), steps


def draw_sequence(source: str) -> str:
    """Return the SVG picture of a sequence of arrows."""
    participants, steps = read_sequence(source)
    columns = {name: FIRST_COLUMN + COLUMN * number for number, name in enumerate(participants)}
    width = max(columns.values()) + LAST_COLUMN
    y = HEAD
    arrows: list[str] = []
    bands: list[tuple[str, int]] = []
    for step in steps:
        if isinstance(step, Arrow):
            arrows += _draw_arrow(step, columns[step.sender], columns[step.receiver], y)
            y += ROW
        else:
            bands.append((step, y))
            y += STATE_ROW
    height = y + MARGIN
    picture = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" fill="#1e293b">',
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
    ]
    for (state, top), (_, end) in zip(bands, [*bands[1:], ("", y)], strict=True):
        picture += [
            f'<rect x="{MARGIN}" y="{top}" width="{width - 2 * MARGIN}" height="{end - top - 6}" rx="8"'
            f' fill="{COLOURS[state]}"/>',
            f'<text x="{2 * MARGIN}" y="{top + 22}" font-family="{SANS}" font-weight="bold" font-size="11"'
            f' letter-spacing="1">{escape(state)}</text>',
        ]
    for name, x in columns.items():
        picture += [
            f'<line x1="{x}" y1="46" x2="{x}" y2="{height - MARGIN}" stroke="#94a3b8" stroke-width="1.5"/>',
            f'<rect x="{x - 70}" y="14" width="140" height="32" rx="8" fill="#334155"/>',
            f'<text x="{x}" y="35" text-anchor="middle" font-family="{SANS}" font-weight="bold" font-size="14"'
            f' fill="#ffffff">{escape(name)}</text>',
        ]
    return "\n".join([*picture, *arrows, "</svg>", ""])


def _draw_arrow(arrow: Arrow, start: int, end: int, top: int) -> list[str]:
    y = top + 20
    colour = "#15803d" if "handler" in arrow.receiver else "#1d4ed8" if start < end else "#475569"
    forward = 1 if start < end else -1
    text = escape(arrow.text)
    if arrow.remark:
        separator = "\u2009\u2192 " if "handler" in arrow.receiver else "  " if text else ""
        text += f'<tspan font-family="{SANS}" font-size="11" fill="#64748b">{separator}{escape(arrow.remark)}</tspan>'
    return [
        f'<line x1="{start}" y1="{y}" x2="{end - 8 * forward}" y2="{y}" stroke="{colour}" stroke-width="1.6"/>',
        f'<path d="M{end} {y} l{-10 * forward} -5 v10 z" fill="{colour}"/>',
        f'<text x="{(start + end) // 2}" y="{y - 6}" text-anchor="middle" font-family="{MONO}" font-size="12"'
        f' xml:space="preserve">{text}</text>',
    ]


def draw_states(source: str) -> str:
    """Return Graphviz's SVG picture of a graph."""
    done = subprocess.run(["dot", "-Tsvg"], input=source, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.replace('font-family="DejaVu Sans"', f'font-family="{SANS}"')


def stamp(source: str) -> str:
    """Return the last line of the picture that is made from a text."""
    return f"<!-- SHA-256 of the text: {hashlib.sha256(source.encode()).hexdigest()} -->\n"


def main() -> None:
    for name, draw in (("session.txt", draw_sequence), ("states.dot", draw_states)):
        source = (PICTURES / name).read_text("utf-8")
        picture = (PICTURES / name).with_suffix(".svg")
        picture.write_text(draw(source) + stamp(source), "utf-8")
        print("drawn:", picture)


if __name__ == "__main__":
    main()
