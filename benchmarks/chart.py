"""The chart: a panel for each row, a bar for each server.  The floor's bar may run off the scale."""

from __future__ import annotations

from html import escape

from report import FLOOR, Results, number

WIDTH = 760
LABEL = 120
FIGURE = 90
BAR = 16
GAP = 4
TITLE = 26
PANEL_GAP = 14

MOST_FLOOR = 1.5
"""The floor's bar may be this many times as long as the longest other bar."""

_COLOURS = {
    "popart": "#c0392b",
    "popart pinned": "#cc5a4d",
    "popart one": "#d67a70",
    "popart x2": "#e29b93",
    FLOOR: "#b8bcc2",
}
_OTHER = "#5b7ea6"


def draw(results: Results) -> str:
    """Return the results as SVG, each panel on its own scale; dots mark a bar that runs off it."""
    parts: list[str] = []
    y = PANEL_GAP
    for line in results.lines.values():
        shown = {name: cell for name, cell in line.cells.items() if name != "client ceiling"}
        longest = max((cell.value or 0.0 for name, cell in shown.items() if name != FLOOR), default=0.0)
        longest = min(max(cell.value or 0.0 for cell in shown.values()), MOST_FLOOR * longest)
        note = " (less is better)" if line.less_is_better else ""
        parts.append(_text(0, y + 14, f"{line.title}, {line.unit}{note}", bold=True))
        y += TITLE
        for name in results.names:
            if name not in shown:
                continue
            cell = shown[name]
            value = cell.value
            parts.append(_text(LABEL - 8, y + 12, name, anchor="end"))
            length = 0.0
            if value is not None and longest > 0:
                length = (WIDTH - LABEL - FIGURE) * min(1.0, max(0.005, value / longest))
                colour = _COLOURS.get(name, _OTHER)
                parts.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(
                _text(
                    LABEL + length + 6,
                    y + 12,
                    cell.verdict or number(value) + (" ..." if value and value > longest else ""),
                )
            )
            y += BAR + GAP
        y += PANEL_GAP
    style = "font-family: sans-serif; font-size: 12px; fill: #222"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {WIDTH + 20} {y}" role="img" style="{style}">',
            "<title>popart beside its peers</title>",
            f'<rect x="-10" width="{WIDTH + 20}" height="{y}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
