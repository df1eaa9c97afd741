"""Draws the dashboard's panels from the responses of Prometheus, with roughly the layout and content of Grafana.

Grafana itself cannot be installed everywhere. The picture shows whether each panel is useful.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_COLUMN, _ROW = 62, 34  # px of the 24-column grid
_PALETTE = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff9830",
    "#b877d9",
    "#f2495c",
    "#8ab8ff",
    "#ffcb7d",
    "#96d98d",
    "#ca95e5",
)
_COLORS = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830", "purple": "#b877d9", "blue": "#5794f2"}
_COLORS |= {"semi-dark-blue": "#3274d9", "text": "#8e8e8e", "transparent": "#73bf69"}
_STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px Inter, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 16px; font-weight: 500; padding: 12px 14px 4px; margin: 0; }
main { position: relative; margin: 6px 8px; }
section { position: absolute; box-sizing: border-box; background: #181b1f; border: 1px solid #23262b;
  border-radius: 3px; padding: 6px 8px; overflow: hidden; }
section.row { background: none; border: none; font-size: 15px; padding: 8px 2px; }
h2 { font-size: 12.5px; font-weight: 500; margin: 0 0 4px; white-space: nowrap; }
.value { font-size: 34px; font-weight: 600; text-align: center; padding-top: 14px; white-space: nowrap; }
.value small { font-size: 18px; }
.key { display: inline-block; margin-right: 12px; white-space: nowrap; }
.key i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
.legend { height: 30px; overflow: hidden; line-height: 15px; font-size: 11px; color: #a9acb6; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: 3px 12px 3px 0; font-weight: 400; }
th { color: #6e9fff; }
text { fill: #8e9099; font: 10.5px Arial; }
"""


class Line(NamedTuple):
    """A series of a response: its legend, labels and points (s since the epoch, value)."""

    legend: str
    labels: dict[str, str]
    points: Sequence[tuple[float, float]]


def page(dashboard: dict[str, Any], answers: dict[int, list[Line]]) -> tuple[str, tuple[int, int]]:
    """Return the dashboard as an HTML page, and the page's size; `answers` has the lines of each panel's id."""
    sections, bottom = [], 0
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        width, height = grid["w"] * _COLUMN - 6, grid["h"] * _ROW - 6
        bottom = max(bottom, (grid["y"] + grid["h"]) * _ROW)
        box = f"left: {grid['x'] * _COLUMN}px; top: {grid['y'] * _ROW}px; width: {width}px; height: {height}px"
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            sections.append(f'<section class="row" style="{box}">⌄ {title}</section>')
            continue
        draw = {"stat": _stat, "timeseries": _graph, "state-timeline": _states, "table": _table}[panel["type"]]
        inside = draw(panel, answers[panel["id"]], width - 18, height - 36)
        sections.append(f'<section style="{box}"><h2>{title}</h2>{inside}</section>')
    body = f'<h1>{html.escape(dashboard["title"])}</h1><main style="height: {bottom}px">{"".join(sections)}</main>'
    head = f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style>'
    return head + body, (24 * _COLUMN + 16, bottom + 60)


def shown(value: float, unit: str) -> str:
    """Return a value approximately as Grafana formats it."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (0.001, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0 s"
    suffix = {"bytes": "B", "Bps": "B/s", "eps": " /s", "ops": "/s"}.get(unit, "")
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}{suffix}"
    return f"{value:.3g}{' ' if suffix == 'B' else ''}{suffix}"


def _stat(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> str:
    points = [point for line in lines for point in line.points if not math.isnan(point[1])]
    if not points:
        return '<div class="value">–</div>'
    defaults = panel["fieldConfig"]["defaults"]
    value = points[-1][1]
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    color = _COLORS[steps[-1]["color"]]
    return f'<div class="value" style="color: {color}">{html.escape(shown(value, defaults["unit"]))}</div>'


def _graph(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    fixed = {
        override["matcher"]["options"]: _COLORS.get(item["value"]["fixedColor"], "#606060")
        for override in panel["fieldConfig"]["overrides"]
        for item in override["properties"]
        if item["id"] == "color"
    }
    height -= 32
    left, base = 62, height - 16
    times = sorted({time for line in lines for time, _ in line.points})
    floor: dict[float, float] = {}
    shapes: list[tuple[str, list[tuple[float, float, float]]]] = []  # color, (time, from, to)
    for i, line in enumerate(lines):
        run = []
        for time, value in line.points:
            if not math.isnan(value):
                bottom = floor.get(time, 0.0) if stacked else 0.0
                run.append((time, bottom, bottom + value))
                if stacked:
                    floor[time] = bottom + value
        shapes.append((fixed.get(line.legend, _PALETTE[i % len(_PALETTE)]), run))
    values = [top for _, run in shapes for _, _, top in run]
    low = min([0.0, *values]) if defaults.get("min") == 0 or not values else min(values)
    high = max(values, default=1.0)
    high, low = (high + 1, max(0.0, low - 1)) if high == low else (high * 1.05, low)

    def at(time: float, value: float) -> str:
        x = left + (time - times[0]) / max(1.0, times[-1] - times[0]) * (width - left - 4)
        return f"{x:.1f} {base - (value - low) / (high - low) * (base - 6):.1f}"

    drawn = []
    for i in range(4):
        value = low + (high - low) * i / 3
        y = base - (base - 6) * i / 3
        drawn.append(f'<path d="M{left} {y:.1f}H{width}" stroke="#2c3036"/>')
        label = html.escape(shown(value, defaults["unit"]))
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for color, run in shapes:
        if not run:
            continue
        line_path = "M" + "L".join(at(time, top) for time, _, top in run)
        back = "L" + "L".join(at(time, bottom if stacked else low) for time, bottom, _ in reversed(run)) + "Z"
        opacity = defaults["custom"]["fillOpacity"] / 100
        drawn.append(f'<path d="{line_path}{back}" fill="{color}" opacity="{opacity}"/>')
        drawn.append(f'<path d="{line_path}" fill="none" stroke="{color}" stroke-width="1.3"/>')
    keys = "".join(
        f'<span class="key"><i style="background: {color}"></i>{html.escape(line.legend)}</span>'
        for (color, _), line in zip(shapes, lines, strict=True)
    )
    return f'<svg width="{width}" height="{height}">{"".join(drawn)}</svg><div class="legend">{keys}</div>'


def _states(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> str:
    drawn = []
    step = height / max(1, len(lines))
    for i, line in enumerate(lines):
        drawn.append(f'<text x="0" y="{(i + 0.6) * step:.1f}">{html.escape(line.legend)}</text>')
        if not line.points:
            continue
        first, last = line.points[0][0], line.points[-1][0]
        part = (width - 190) / max(1.0, last - first)
        for (time, value), (until, _) in zip(line.points, [*line.points[1:], (last, 0.0)], strict=True):
            color = _COLORS["green"] if value >= 1 else _COLORS["red"]
            x, y, length = 190 + (time - first) * part, i * step + 4, (until - time) * part + 0.6
            size = f'width="{length:.1f}" height="{step - 8:.1f}"'
            drawn.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{color}" opacity="0.7"/>')
    return f'<svg width="{width}" height="{height}">{"".join(drawn)}</svg>'


def _table(panel: dict[str, Any], lines: list[Line], width: int, height: int) -> str:
    order = panel["transformations"][1]["options"]["indexByName"]
    names = [name for name in order if any(name in line.labels for line in lines)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(line.labels.get(name, ''))}</td>" for name in names) + "</tr>"
        for line in lines
        if "version" in line.labels
    )
    return f"<table><tr>{head}</tr>{rows}</table>"
