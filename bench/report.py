"""`python -m bench.report bench/results/run-….json`: print a saved run; `--write` puts it into the README files.

`--write` replaces the picture docs/bench.svg and the blocks between `<!-- bench NAME -->` and `<!-- /bench -->` in
README.md and bench/README.md. So every figure there comes from one run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from bench import machine, markdown, picture
from bench.contenders import C_FLOOR, FLOOR
from bench.figures import Result

RESULTS = Path(__file__).parent / "results"
STAGES = ("poll", "decode", "write", "commit", "paused")  # idle is the wait where there is nothing to read

_MIN_S = 3.0  # a shorter run gives no useful rate: the worker notices the end of a topic every half second

LIMITS = {  # reader ÷ floor in Python, one process: a quarter above the medians of a quiet run
    ("native", "redis"): 0.85,
    ("native", "clickhouse"): 1.0,
    ("python", "redis"): 2.5,
    ("python", "clickhouse"): 3.0,
}


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the median, and the range if there are several."""
    text = form(median(values))
    return f"{text} ({form(min(values))}–{form(max(values))})" if len(values) > 1 else text


def find(results: Sequence[Result], *keys: str) -> Result | None:
    """Return the first of these contenders that was measured without a failure."""
    by_key = {result.key: result for result in results if result.samples and not result.failures}
    return next((by_key[key] for key in keys if key in by_key), None)


def table(results: Sequence[Result]) -> str:
    """Return the table for a terminal."""
    rows = cells(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(_aligned, row, widths, range(len(row)))).rstrip() for row in rows)


def cells(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the head and a row for each contender: medians, the reader's with their range."""
    floor = find(results, C_FLOOR, FLOOR)
    of_floor = "× C floor" if floor and floor.key == C_FLOOR else "× floor"
    events = max(result.events for result in results)
    head = ("reads Kafka, writes", "msg/s", "reader µs", of_floor, "store µs", "broker µs", "total µs", "RSS MB", "")
    return [head, *(_row(result, floor, events) for result in results)]


def _row(result: Result, floor: Result | None, events: int) -> tuple[str, ...]:
    mark = "FAILED" if result.failures else ""
    if not result.samples:
        return (result.key, *["–"] * 7, mark)
    rates = [sample.rate / 1000 for sample in result.samples if 0 < sample.rate <= result.events / _MIN_S]
    shares = result.ratios(floor, "reader_us") if floor and not result.in_store else []
    return (
        result.key,
        f"{median(rates):.0f}k" if rates else "–",
        "–" if result.in_store else spread([sample.reader_us for sample in result.samples], "{:.2f}".format),
        f"{median(shares):.2f}" if shares else "–",
        "–" if result.store == "nothing" else f"{result.median('store_us'):.2f}",
        f"{result.median('broker_us'):.2f}",
        f"{median(result.totals(events)):.2f}",
        f"{result.median('rss') / 2**20:.0f}",
        mark,
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def notes(results: Sequence[Result]) -> str:
    """Return what the table does not show: steal, repeated runs, and where the worker spends its time."""
    steal = max((sample.steal for result in results for sample in result.samples), default=0.0)
    lines = [f"steal at most {steal:.0%}, {sum(result.repeated for result in results)} runs repeated"]
    events = max(result.events for result in results)
    for result in results:
        if result.samples and result.events < events:
            lines.append(f"{result.key} read {result.events} events, not {events}")
    ours = [result for result in results if result.ours and result.samples]
    if ours:
        lines += ["", "µs per message in each stage (wall; writes overlap with the rest), last round:"]
    return "\n".join([*lines, *map(_stages, ours)])


def _stages(result: Result) -> str:
    sample = result.samples[-1]
    parts = [f"{stage} {sample.stages.get(stage, 0):.2f}" for stage in STAGES]
    split = sample.split_us
    if len(split) > 2:
        parts.append(f"CPU: supervisor {split[0]:.3f}, monitor {split[1]:.3f}, consumers {sum(split[2:]):.2f}")
    if len(split) > 3:
        parts.append(f"busiest consumer {max(sample.busiest for sample in result.samples):.0%}")
    return f"{result.key}: {' · '.join(parts)}"


def verdicts(results: Sequence[Result], reader: str) -> list[str]:
    """Compare the worker with the floor in Python; `reader` is what it uses by default."""
    if (floor := find(results, FLOOR)) is None:
        return []
    readers = {"worker, 1 process": reader, "worker, 1 process [python]": "python"}
    lines = []
    for result in results:
        if result.name in readers and (shares := result.ratios(floor, "reader_us")):
            limit = LIMITS[readers[result.name], result.store]
            verdict = "ok  " if median(shares) <= limit else "SLOW"
            lines.append(f"{verdict} {result.key}: reader {median(shares):.2f} × the floor in Python, limit {limit}")
    return lines


def failures(results: Sequence[Result]) -> str:
    return "\n".join(f"FAILED {result.key}: {text}" for result in results for text in result.failures)


def save(results: Sequence[Result], about: dict[str, Any]) -> Path:
    """Write bench/results/run-….json; return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"run-{time.strftime('%Y%m%d-%H%M%S')}.json"
    document = {"machine": machine.describe(), **about, "results": [result.__dict__ for result in results]}
    path.write_text(json.dumps(document, indent=1, default=vars) + "\n")
    return path


def load(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """Return the results of a saved run, and what else is in the file."""
    document = json.loads(path.read_text())
    return [Result.from_json(fields) for fields in document.pop("results")], document


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="a run of bench.run")
    parser.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    parser.add_argument("--write", action="store_true", help="replace the figures of the README files and the picture")
    options = parser.parse_args(argv)
    results, about = load(options.file)
    print(markdown.table(cells(results)) if options.markdown else table(results))
    if not options.markdown:
        print("", notes(results), "", *verdicts(results, about["reader"]), sep="\n")
    if options.write:
        _write(results, about, options.file)
    return 0


def _write(results: Sequence[Result], about: dict[str, Any], file: Path) -> None:
    """Replace the figures of the README files and the picture by those of a complete run without failures."""
    missing = [key for key in markdown.REQUIRED if find(results, key) is None]
    if missing or failures(results):
        raise SystemExit(f"{failures(results)}\nnothing was written; not measured: {', '.join(missing) or 'nothing'}")
    events = max(result.events for result in results)
    chosen = [result for result in results if markdown.is_in_short_table(result)]
    bars = [
        picture.Bar(
            markdown.name(result.key),
            (
                0.0 if result.in_store else result.median("reader_us") + result.startup_us(events),
                result.median("store_us"),
                result.median("broker_us"),
            ),
            median(result.totals(events)),
            result.ours,
        )
        for result in chosen
    ]
    title = "CPU µs per message: reader with start-up, store and broker"
    root = Path(__file__).parents[1]
    (root / "docs/bench.svg").write_text(picture.bars(bars, title))
    blocks = {
        "short": markdown.table(cells(chosen), columns=(0, 2, 4, 6)),
        "full": markdown.table(cells(results), columns=(0, 2, 3, 4, 5, 6, 7)),
        "bars": markdown.aims(results),
        "run": markdown.describe(results, about, file.name),
        **markdown.shares(results),
    }
    for name in ("README.md", "bench/README.md"):
        markdown.replace(root / name, blocks)
        print(f"written: {name}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
