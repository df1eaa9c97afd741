"""Pictures as SVG, without a library: bars of three parts, and lines over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#24292f}.dim{fill:#6e7781}.axis{stroke:#d0d7de}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#8b949e}.axis{stroke:#30363d}}</style>"
)
_OURS, _THEIRS, _STORE, _BROKER = "#2da44e", "#8c959f", "#bf8700", "#8250df"
_COLOURS = ("#2da44e", "#0969da", "#bf8700", "#cf222e")


class Bar(NamedTuple):
    name: str
    parts: tuple[float, float, float]  # reader, store, broker
    total: float  # what the table has: the median of totals, not the sum of medians
    ours: bool


def bars(rows: Sequence[Bar], title: str) -> str:
    """Return a bar per row, the smallest sum first. Bars far longer than the others are cut."""
    rows = sorted(rows, key=lambda row: row.total)
    left, width, step, top = 290, 460, 26, 56
    totals = [row.total for row in rows]
    limit = max([total for total in totals if total <= 12 * totals[len(totals) // 2]], default=1.0) if totals else 1.0
    parts = [f'<text x="16" y="24" font-weight="600">{escape(title)}</text>']
    for i, (colour, text) in enumerate(
        (
            (_OURS, "reader, ours"),
            (_THEIRS, "reader"),
            (_STORE, "store"),
            (_BROKER, "broker"),
        )
    ):
        at = left + 110 * i
        parts.append(f'<rect x="{at}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text class="dim" x="{at + 15}" y="44">{text}</text>')
    for i, row in enumerate(rows):
        y, x = top + step * i, float(left)
        parts.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(row.name)}</text>')
        for value, colour in zip(row.parts, (_OURS if row.ours else _THEIRS, _STORE, _BROKER), strict=True):
            length = max(0.0, min(value / limit * width, left + width - x))
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="18" fill="{colour}"/>')
            x += length
        cut = "… " if totals[i] > limit else ""
        parts.append(f'<text class="dim" x="{x + 6:.1f}" y="{y + 14}">{cut}{totals[i]:.2f}</text>')
    return _svg(left + width + 80, top + step * len(rows) + 12, parts)


def lines(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Return a panel per title with its named lines of (x, y); x is logarithmic, y begins at 0."""
    width, height, gap = 360, 200, 70
    parts = []
    for i, (title, curves) in enumerate(panels.items()):
        left, top = 60 + (i % 2) * (width + gap), 50 + (i // 2) * (height + gap)
        points = [point for curve in curves.values() for point in curve]
        if not points:
            continue
        low, high = (math.log10(pick(x for x, _ in points)) for pick in (min, max))
        highest = max(y for _, y in points) * 1.1 or 1.0

        def position(x: float, y: float, box: tuple[int, int, float, float, float]) -> tuple[float, float]:
            at_left, at_top, least, span, limit = box
            return at_left + (math.log10(x) - least) / span * width, at_top + height - y / limit * height

        box = (left, top, low, (high - low) or 1.0, highest)
        parts.append(f'<text x="{left}" y="{top - 24}" font-weight="600">{escape(title)}</text>')
        parts.append(f'<path class="axis" fill="none" d="M{left} {top}v{height}h{width}"/>')
        for share in (0.5, 1.0):
            y = top + height - height * share / 1.1
            parts.append(
                f'<text class="dim" x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{highest * share / 1.1:.2g}</text>'
            )
        for x in sorted({x for x, _ in points}):
            at, _ = position(x, 0, box)
            parts.append(
                f'<text class="dim" x="{at:.0f}" y="{top + height + 18}" text-anchor="middle">{_short(x)}</text>'
            )
        for number, (name, curve) in enumerate(curves.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(*point, box) for point in curve))
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
            parts.append(f'<text x="{left + 110 * number}" y="{top - 6}" style="fill:{colour}">{escape(name)}</text>')
    rows = (len(panels) + 1) // 2
    return _svg(2 * (width + gap) + 40, rows * (height + gap) + 50, parts)


def _short(value: float) -> str:
    for unit, size in (("M", 10**6), ("k", 1000)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, _STYLE, *parts, "</svg>", ""])
