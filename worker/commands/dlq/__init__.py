"""The `dlq` command: list, count and replay dead letters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.commands.dlq.position import Replayed, read_replayed
from worker.commands.dlq.sender import replay
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.kafka.log_reader import require_topic

__all__ = ["count_dead_letters", "list_dead_letters", "replay"]


def list_dead_letters(settings: Settings, *, reason: str | None, limit: int, payload: bool, out: TextIO) -> int:
    """Print one line per dead letter, oldest first, and how many more there are; payloads only if `payload`.

    Raises Fatal if there are none because the topic does not exist.
    """
    others: Counter[str] = Counter()
    count = 0
    replayed, note = _read_replayed(settings)
    for dead_letter in _of_group(settings, reason, others):
        count += 1
        if count <= limit:
            print(_line(dead_letter, payload, is_replayed=replayed.has_event(dead_letter)), file=out)
    if count > limit:
        print(f"and {count - limit} more (--limit {count})", file=out)
    _print_rest(settings, count, others, note, out)
    return ExitCode.OK


def count_dead_letters(settings: Settings, *, out: TextIO) -> int:
    """Print the number of dead letters by reason and field, by origin partition, and in total, and of those replayed.

    Raises Fatal if there are none because the topic does not exist.
    """
    reasons: Counter[str] = Counter()
    partitions: Counter[int] = Counter()
    origins: set[tuple[int, int]] = set()
    size, first, last, again = 0, 0, 0, 0
    others: Counter[str] = Counter()
    replayed, note = _read_replayed(settings)
    for dead_letter in _of_group(settings, None, others):
        reasons[dead_letter.reason + (f" {dead_letter.field}" if dead_letter.field else "")] += 1
        partitions[dead_letter.partition] += 1
        origins.add((dead_letter.partition, dead_letter.offset))
        size += len(dead_letter.payload)
        first, last = min(first or dead_letter.time_ms, dead_letter.time_ms), max(last, dead_letter.time_ms)
        again += replayed.has_event(dead_letter)
    for name, count in reasons.most_common():
        print(f"{name}: {count}", file=out)
    for partition, count in sorted(partitions.items()):
        print(f"{settings.topic}[{partition}]: {count}", file=out)
    span = f", from {_time(first)} to {_time(last)}" if partitions else ""
    total = partitions.total()
    text = f"total: {total} dead letters of {len(origins)} events, {size} bytes{span}; {again} of them replayed"
    print(text, file=out)
    _print_rest(settings, total, others, note, out)
    return ExitCode.OK


def _read_replayed(settings: Settings) -> tuple[Replayed, str]:
    """Return what was replayed, and a note if this client may not read that."""
    try:
        return read_replayed(settings), ""
    except Fatal as error:
        return Replayed(settings, {}), f"which of them were replayed is unknown: {error}"


def _of_group(settings: Settings, reason: str | None, others: Counter[str]) -> Iterator[StoredDeadLetter]:
    """Yield the dead letters of this topic and group; count those of the topic by other groups in `others`."""
    for dead_letter in read_dead_letters(settings):
        if reason not in (None, dead_letter.reason):
            continue
        if dead_letter.concerns(settings):
            yield dead_letter
        elif dead_letter.topic == settings.topic:
            others[dead_letter.group] += 1


def _print_rest(settings: Settings, count: int, others: Counter[str], note: str, out: TextIO) -> None:
    """Print what the lines do not have. Raise Fatal if there are no dead letters at all, and no topic either."""
    for group, left_out in sorted(others.items()):
        print(f"left out: {left_out} dead letters of another group (--group-id {group})", file=out)
    if count and note:
        print(note, file=out)
    if not count + others.total():
        require_topic(settings)


def _line(dead_letter: StoredDeadLetter, payload: bool, *, is_replayed: bool) -> str:
    """Return a dead letter as one line. The payload is escaped, so that it cannot send control characters."""
    words = [
        f"{dead_letter.topic}[{dead_letter.partition}]@{dead_letter.offset}",
        dead_letter.reason,
        dead_letter.field or "-",
        _time(dead_letter.time_ms),
        f"{len(dead_letter.payload)} bytes",
        "replayed" if is_replayed else "-",
    ]
    return "  ".join(words + ([repr(dead_letter.payload)[2:-1]] if payload else []))


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"
