"""Results as a table for the terminal, as JSON with the machine and the versions, and as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, picture
from bench.contenders import FLOOR
from bench.rounds import Result

RESULTS = Path(__file__).parent / "results"
_HEADS = (
    "reads Kafka, writes",
    "events",
    "msg/s",
    "reader µs",
    "× floor",
    "store µs",
    "broker µs",
    "RSS MB",
    "steal",
    "",
)
STAGES = ("poll", "decode", "write", "commit", "paused")  # idle is the wait for an empty topic


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the median, and the range if there are several."""
    text = form(median(values))
    return f"{text} ({form(min(values))}–{form(max(values))})" if len(values) > 1 else text


def ratios(result: Result, floor: Result) -> list[float]:
    """Return reader/floor of each round that has both."""
    return [
        mine.reader_us / other.reader_us
        for mine, other in zip(result.samples, floor.samples, strict=False)
        if other.reader_us > 0
    ]


def table(results: Sequence[Result]) -> str:
    """Return the table: medians, with the range in brackets."""
    floor = next((result for result in results if result.contender.name == FLOOR and result.samples), None)
    rows: list[tuple[str, ...]] = [_HEADS]
    for result in results:
        name, mark = result.contender.key, "FAILED" if result.failures else ""
        samples = result.samples
        if not samples:
            rows.append((name, str(result.data.events), *["–"] * 7, mark))
            continue
        reader = "–" if result.contender.in_store else spread([sample.reader_us for sample in samples], "{:.2f}".format)
        shares = ratios(result, floor) if floor and not result.contender.in_store else []
        rates = [sample.rate / 1000 for sample in samples if sample.rate]
        row = (
            name,
            str(result.data.events),
            spread(rates, "{:.0f}k".format) if rates else "–",
            reader,
            spread(shares, "{:.2f}".format) if shares else "–",
            "–"
            if result.contender.store == "nothing"
            else spread([sample.store_us for sample in samples], "{:.2f}".format),
            f"{result.median('broker_us'):.2f}",
            f"{result.median('rss') / 2**20:.0f}",
            f"{max(sample.steal for sample in samples):.0%}",
            mark,
        )
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    return "\n".join("  ".join(map(_aligned, row, widths, range(len(row)))) for row in rows)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def stages(results: Sequence[Result]) -> str:
    """Return where the worker spends its time: µs of a consumer per message in each stage, and CPU time by process."""
    lines = []
    for result in results:
        if result.contender.ours and result.samples:
            sample = result.samples[-1]
            parts = [f"{stage} {sample.stages.get(stage, 0):.2f}" for stage in STAGES]
            split = sample.split_us
            if len(split) > 2:
                parts.append(f"CPU: supervisor {split[0]:.3f}, monitor {split[1]:.3f}, consumers {sum(split[2:]):.2f}")
            lines.append(f"{result.contender.key}: {' · '.join(parts)}")
    return "\n".join(["µs per message in each stage (wall; writes overlap with the rest):", *lines]) if lines else ""


def failures(results: Sequence[Result]) -> str:
    return "\n".join(f"FAILED {result.contender.key}: {text}" for result in results for text in result.failures)


def save(results: Sequence[Result], about: dict[str, Any]) -> Path:
    """Write JSON and picture to bench/results; return the path of the JSON."""
    RESULTS.mkdir(exist_ok=True)
    stem = f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    document = {"machine": machine.describe(), **about, "results": [result.to_json() for result in results]}
    path = RESULTS / f"{stem}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    bars = [
        picture.Bar(
            result.contender.key,
            0.0 if result.contender.in_store else result.median("reader_us"),
            result.median("store_us"),
            result.contender.ours,
        )
        for result in results
        if result.samples and not result.failures
    ]
    (RESULTS / f"{stem}.svg").write_text(picture.bars(bars, "CPU µs per message: reader and store"))
    return path
