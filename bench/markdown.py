"""The figures of a run as blocks of Markdown for README.md and bench/README.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.contenders import C_FLOOR
from bench.figures import Result

_NAMES = {"→ clickhouse": "→ ClickHouse", "→ redis": "→ Redis", " → nothing": ""}
_CLICKHOUSE, _REDIS = "worker, 1 process → clickhouse", "worker, 1 process → redis"
_PYTHON_CLICKHOUSE = "worker, 1 process [python] → clickhouse"
_ENGINE = "ClickHouse Kafka engine → clickhouse"
_PASS_THROUGH = "JSONEachRow pass-through → clickhouse"
_SINKER = "clickhouse_sinker → clickhouse"


REQUIRED = (C_FLOOR, _CLICKHOUSE, _REDIS, _PYTHON_CLICKHOUSE, _PASS_THROUGH, _ENGINE)


class Aim(NamedTuple):
    """An upper limit for a ratio of two contenders, or for the memory of one where there is no other."""

    text: str
    limit: float
    ours: str
    other: str = ""
    parts: tuple[str, ...] = ("reader_us",)


_ALL = ("reader_us", "store_us", "broker_us")
_AIMS = (
    Aim("reader → ClickHouse ÷ C floor", 1.5, _CLICKHOUSE, C_FLOOR),
    Aim("reader → Redis ÷ C floor", 1.4, _REDIS, C_FLOOR),
    Aim("reader → ClickHouse, four processes ÷ one", 1.1, "worker, 4 processes → clickhouse", _CLICKHOUSE),
    Aim("reader + store ÷ JSONEachRow pass-through's", 0.9, _CLICKHOUSE, _PASS_THROUGH, _ALL[:2]),
    Aim("reader + store + broker ÷ clickhouse_sinker's", 0.5, _CLICKHOUSE, _SINKER, _ALL),
    Aim("peak RSS of a consumer → ClickHouse, MB", 120, _CLICKHOUSE),
)


def table(rows: Sequence[tuple[str, ...]], columns: Sequence[int] = range(8)) -> str:
    """Return the head and the rows as a table with these columns."""
    head, *body = ([row[i] for i in columns] for row in rows)
    lines = [head, ["---"] * len(head), *([_emphasized(cells[0]), *cells[1:]] for cells in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_in_short_table(result: Result) -> bool:
    """Whether README.md shows it: one process of the worker by either reader, the floor in C, and the peers."""
    return not result.ours or result.name in ("worker, 1 process", "worker, 1 process [python]")


def aims(results: Sequence[Result]) -> str:
    """Return the aims of issue 13 that a run of bench.run can show."""
    by_key = {result.key: result for result in results}
    lines = ["| figure | aim | found |", "| --- | --- | --- |"]
    for aim in _AIMS:
        ours, other = by_key.get(aim.ours), by_key.get(aim.other)
        if ours is None or (aim.other and other is None):
            found = "not in this run"
        elif other is None:
            found = f"{max(sample.rss for sample in ours.samples) / 2**20:.0f}"
        else:
            found = f"{median(ours.ratios(other, *aim.parts)):.2f}"
        lines.append(f"| {aim.text} | ≤ {aim.limit:g} | {found} |")
    return "\n".join(lines)


def shares(results: Sequence[Result]) -> dict[str, str]:
    """Return the CPU time of reader and store as a share of that of ClickHouse's Kafka engine, by either reader."""
    by_key = {result.key: result for result in results}
    engine = by_key[_ENGINE]
    return {
        name: f"{median(by_key[key].ratios(engine, *_ALL[:2])):.2f}"
        for name, key in (("native-share", _CLICKHOUSE), ("python-share", _PYTHON_CLICKHOUSE))
    }


def describe(results: Sequence[Result], about: Mapping[str, Any], file: str) -> str:
    """Return the command, the machine and the versions of the run, and what its start-ups cost."""
    machine, data = about["machine"], about["data"]
    rounds = max(len(result.samples) for result in results)
    steal = max(sample.steal for result in results for sample in result.samples)
    command = shlex.join(["python", "-m", "bench.run", *about["arguments"]])
    versions = {"Python": machine["python"], "confluent-kafka": machine["packages"]["confluent-kafka"]}
    shown = ", ".join(f"{program} {version}" for program, version in {**versions, **about["versions"]}.items())
    startups = [next(result for result in results if result.key == key) for key in (_REDIS, _CLICKHOUSE)]
    redis, clickhouse = (median([sample.startup_s for sample in result.samples]) for result in startups)
    return (
        f"`{command}` on {machine['cores']} cores ({machine['cpu']}), {shown}, {about['reader']} reader; "
        f"{data['events']} events, {data['partitions']} partitions, {rounds} rounds, "
        f"steal at most {steal:.0%} ([all figures](results/{file})). "
        f"One start-up of the worker takes {redis:.2f} s of CPU (Redis), {clickhouse:.2f} s (ClickHouse)."
    )


def replace(path: Path, blocks: Mapping[str, str]) -> None:
    """Replace what is between the two comments of each block that the file has."""
    text = path.read_text()
    for block_name, block in blocks.items():
        pattern = re.compile(rf"(<!-- bench {block_name} -->)(\n?).*?(<!-- /bench -->)", re.DOTALL)
        text = pattern.sub(r"\1\g<2>" + block.replace("\\", r"\\") + r"\2\3", text)
    path.write_text(text)


def name(key: str) -> str:
    """Return the name of a contender for a reader."""
    for plain, shown in _NAMES.items():
        key = key.replace(plain, shown)
    return key


def _emphasized(key: str) -> str:
    return f"**{name(key)}**" if key in (_REDIS, _CLICKHOUSE) else name(key)
