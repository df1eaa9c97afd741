"""`python -m bench.growth`: the cost of a message as one dimension grows: batches, devices, events, partitions, …"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from bench import contenders, machine, picture, report, rounds, services
from bench.contenders import Contender
from bench.figures import Result
from bench.services import Dataset, Services
from worker.core.errors import Fatal

_MAX_BYTES = 400 << 20  # of one topic
_SMALL = 80  # bytes of an event of the fleet

DIMENSIONS: dict[str, tuple[int, ...]] = {
    "batch rows": (100, 1000, 10_000, 50_000, 100_000, 200_000),
    "devices": (100, 1000, 10_000, 100_000, 1_000_000, 10_000_000),
    "event bytes": (_SMALL, 200, 500, 1000, 3000, 10_000),
    "partitions": (1, 4, 16, 64),
    "processes": (1, 2, 4, 8),
    "table rows": (100_000, 1_000_000, 10_000_000, 100_000_000),
}


class Point(NamedTuple):
    dimension: str
    value: int
    contender: Contender
    data: Dataset
    small: Dataset


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="of each point, fewer of large ones [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--of", action="append", choices=list(DIMENSIONS), help="only this")
    parser.add_argument("--store", action="append", choices=("redis", "clickhouse"), help="only this")
    options = parser.parse_args(argv)
    stores = options.store or ["redis", "clickhouse"]
    try:
        with services.running() as running:
            points = list(_points(running, options.of or list(DIMENSIONS), stores, options.events))
            results = rounds.play(running, [point[2:] for point in points], options.rounds, rounds.progress)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code
    rounds.progress("")
    print(_table(points, results))
    _save(points, results)
    if texts := report.failures(results):
        print(texts)
    return int(any(result.failures for result in results))


def _points(running: Services, dimensions: list[str], stores: list[str], events: int) -> Iterator[Point]:
    for dimension in dimensions:
        for value in DIMENSIONS[dimension]:
            rounds.progress(f"writing: {dimension} {value}")
            devices = value if dimension == "devices" else 10_000
            partitions = {"partitions": value, "processes": 8}.get(dimension, 4)
            size = value if dimension == "event bytes" and value > _SMALL else 0
            count = min(events, _MAX_BYTES // max(size, _SMALL))
            if dimension == "batch rows":
                count = min(count, value * 500)  # each small batch costs an insert and a commit
            data = running.dataset(count, devices, partitions, size=size)
            small = running.dataset(partitions * services.SMALL, devices, partitions, size=size)
            processes = value if dimension == "processes" else 1
            extra = ("--batch-rows", str(value)) if dimension == "batch rows" else ()
            for store in stores:
                if dimension != "table rows":
                    yield Point(dimension, value, contenders.ours(processes, store, extra), data, small)
                elif store == "clickhouse":
                    yield Point(dimension, value, contenders.ours(processes, store, earlier=value), data, small)


def _table(points: list[Point], results: list[Result]) -> str:
    lines = [
        f"{'':24} {'store':10} {'events':>8} {'reader µs':>18} {'store µs':>9} {'msg/s':>7} {'RSS MB':>7} {'steal':>6}"
    ]
    for point, result in zip(points, results, strict=True):
        head = f"{point.dimension + ' ' + str(point.value):24} {point.contender.store:10} {point.data.events:8}"
        if not result.samples:
            lines.append(f"{head} FAILED")
            continue
        reader = report.spread([sample.reader_us for sample in result.samples], "{:.2f}".format)
        figures = f"{reader:>18} {result.median('store_us'):9.2f} {result.median('rate') / 1000:6.0f}k"
        steal = max(sample.steal for sample in result.samples)
        failed = " FAILED" if result.failures else ""
        lines.append(f"{head} {figures} {result.median('rss') / 2**20:7.0f} {steal:6.0%}{failed}")
    return "\n".join(lines)


def _save(points: list[Point], results: list[Result]) -> None:
    stem = report.RESULTS / f"growth-{time.strftime('%Y%m%d-%H%M%S')}"
    rows = [
        {"dimension": point.dimension, "value": point.value, **result.__dict__}
        for point, result in zip(points, results, strict=True)
    ]
    report.RESULTS.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(
        json.dumps({"machine": machine.describe(), "points": rows}, indent=1, default=vars) + "\n"
    )
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point, result in zip(points, results, strict=True):
        if result.samples:
            curves = panels.setdefault(f"CPU µs per message by {point.dimension}", {})
            curve = curves.setdefault(f"reader, {point.contender.store}", [])
            curve.append((point.value, result.median("reader_us")))
    stem.with_suffix(".svg").write_text(picture.lines(panels))
    print(f"\nwritten: {stem}.json, .svg")


if __name__ == "__main__":
    sys.exit(main())
