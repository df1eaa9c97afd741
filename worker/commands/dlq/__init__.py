"""The `dlq` command: list, count and replay dead letters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.commands.dlq.sender import replay
from worker.config.settings import Settings
from worker.core.errors import ExitCode

__all__ = ["count_dead_letters", "list_dead_letters", "replay"]


def list_dead_letters(settings: Settings, *, reason: str | None, limit: int, payload: bool, out: TextIO) -> int:
    """Print one line per dead letter, oldest first, and how many more there are; payloads only if `payload`."""
    others: Counter[str] = Counter()
    more = 0
    for number, dead_letter in enumerate(_of_group(settings, reason, others)):
        if number < limit:
            print(_line(dead_letter, payload), file=out)
        else:
            more += 1
    if more:
        print(f"and {more} more (--limit {limit + more})", file=out)
    _print_others(others, out)
    return ExitCode.OK


def count_dead_letters(settings: Settings, *, out: TextIO) -> int:
    """Print the number of dead letters by reason and field, by origin partition, and in total."""
    reasons: Counter[str] = Counter()
    partitions: Counter[int] = Counter()
    origins: set[tuple[int, int]] = set()
    size, first, last = 0, 0, 0
    others: Counter[str] = Counter()
    for dead_letter in _of_group(settings, None, others):
        reasons[dead_letter.reason + (f" {dead_letter.field}" if dead_letter.field else "")] += 1
        partitions[dead_letter.partition] += 1
        origins.add((dead_letter.partition, dead_letter.offset))
        size += len(dead_letter.payload)
        first, last = min(first or dead_letter.time_ms, dead_letter.time_ms), max(last, dead_letter.time_ms)
    for name, count in reasons.most_common():
        print(f"{name}: {count}", file=out)
    for partition, count in sorted(partitions.items()):
        print(f"{settings.topic}[{partition}]: {count}", file=out)
    span = f", from {_time(first)} to {_time(last)}" if partitions else ""
    total = partitions.total()
    print(f"total: {total} dead letters of {len(origins)} events, {size} bytes{span}", file=out)
    _print_others(others, out)
    return ExitCode.OK


def _of_group(settings: Settings, reason: str | None, others: Counter[str]) -> Iterator[StoredDeadLetter]:
    """Yield the dead letters of this topic and group; count those of the topic by other groups in `others`."""
    for dead_letter in read_dead_letters(settings):
        if reason not in (None, dead_letter.reason):
            continue
        if dead_letter.concerns(settings):
            yield dead_letter
        elif dead_letter.topic == settings.topic:
            others[dead_letter.group] += 1


def _print_others(others: Counter[str], out: TextIO) -> None:
    for group, count in sorted(others.items()):
        print(f"left out: {count} dead letters of another group (--group-id {group})", file=out)


def _line(dead_letter: StoredDeadLetter, payload: bool) -> str:
    """Return a dead letter as one line. The payload is escaped, so that it cannot send control characters."""
    words = [
        f"{dead_letter.topic}[{dead_letter.partition}]@{dead_letter.offset}",
        dead_letter.reason,
        dead_letter.field or "-",
        _time(dead_letter.time_ms),
        f"{len(dead_letter.payload)} bytes",
    ]
    return "  ".join(words + ([repr(dead_letter.payload)[2:-1]] if payload else []))


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"
