"""The `verify` command: does the store have every event of the topic once? Reads only; safe beside a running worker.

It looks at what the group has committed first, then at the store, then at the log: whatever is written meanwhile can
neither be missed nor be taken for too much.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import TextIO, cast

from confluent_kafka import Message

from worker.commands.dlq.dead_letters import read_dead_letters
from worker.commands.verify.comparison import PROBLEMS, Account, Ranges
from worker.commands.verify.recount import notes, recount
from worker.commands.verify.rows import Rows
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.kafka.log_reader import LogReader

SLICE = 1_000_000  # offsets that are compared at a time: about 200 MB


def verify(settings: Settings, *, limit: int, allow_merged: bool, out: TextIO) -> int:
    """Print an account of each partition and a total; return OK where every event is there once, else FAILED.

    FAILED also where that cannot be told: a table that merges rows of several events may have merged an event or lost
    it; with `allow_merged`, what may have been merged is taken for that. `limit` is how many ranges of each problem are
    shown. Raises Fatal where the store cannot be compared.
    """
    with closing(LogReader(settings, settings.topic)) as log_reader:
        count = log_reader.partitions()
        if not count:
            raise Fatal(f"topic {settings.topic} does not exist on {settings.bootstrap_servers}")
        accounted = log_reader.accounted(count)
        dead_letters = _dead_letters(settings)
        if settings.backend == "redis":
            return recount(settings, log_reader, accounted, dead_letters, limit, out)
        with closing(Rows(settings)) as rows:
            return _verify(log_reader, accounted, dead_letters, rows, limit, allow_merged, out)


def _dead_letters(settings: Settings) -> dict[int, array[int]]:
    """Return the offsets that have dead letters by partition, ascending, each once."""
    found: dict[int, array[int]] = {}
    for dead_letter in read_dead_letters(settings):
        if dead_letter.concerns(settings):
            found.setdefault(dead_letter.partition, array("q")).append(dead_letter.offset)
    return {partition: array("q", sorted(set(offsets))) for partition, offsets in found.items()}


def _verify(
    log_reader: LogReader,
    accounted: Mapping[int, int | None],
    dead_letters: Mapping[int, array[int]],
    rows: Rows,
    limit: int,
    allow_merged: bool,
    out: TextIO,
) -> int:
    total: Counter[str] = Counter()
    good = True
    for partition, committed in sorted(accounted.items()):
        stored = rows.bounds(partition)
        low, high = log_reader.bounds(partition)
        account = Account(limit)
        _compare(
            account,
            log_reader,
            rows,
            partition,
            dead_letters.get(partition, array("q")),
            stored,
            (low, high),
            committed or 0,
        )
        good = (
            good
            and account.good(merged=allow_merged and bool(rows.merging))
            and (committed is None or committed >= low)
        )
        total.update(account.counts())
        summary = _summary(account.counts(), rows.merging)
        for line in [summary, *_problems(account, rows.merging), *_notes(account, committed, low, high)]:
            print(f"{log_reader.topic}[{partition}]: {line}", file=out, flush=True)
    if rows.merging and total["missing"]:
        due = total["events"] - total["skipped"] - total["letters"]
        print(
            f"total: rows may have been merged: {total['missing']} of {due} offsets have no row of their own. Whether "
            f"their events were merged or lost cannot be told, nor whether one was written twice. {rows.merging}",
            file=out,
        )
    print(f"total: {_summary(total, rows.merging)}", file=out)
    return ExitCode.OK if good else ExitCode.FAILED


def _compare(
    account: Account,
    log_reader: LogReader,
    rows: Rows,
    partition: int,
    dead_letters: array[int],
    stored: tuple[int, int],
    log: tuple[int, int],
    committed: int,
) -> None:
    """Compare all of a partition, slice by slice, from the log's start or the first row to the last commit or row."""
    (first, end), (low, high) = stored, log
    begin, last = min(low, first) if end else low, max(committed, min(end, high))
    for start in range(begin, last, SLICE):
        stop = min(start + SLICE, last)
        there, tombstones = _log(log_reader, partition, max(start, low), min(stop, high))
        account.compare(
            there,
            tombstones,
            dead_letters[bisect_left(dead_letters, start) : bisect_left(dead_letters, stop)],
            rows.offsets(partition, start, stop),
            committed=committed,
            log_start=max(low, log_reader.bounds(partition)[0]),  # retention goes on while we read
        )
    while len(beyond := rows.offsets(partition, last, end, SLICE)):
        account.compare((), (), (), beyond, committed=committed, log_start=low)
        last = beyond[-1] + 1


def _log(log_reader: LogReader, partition: int, start: int, end: int) -> tuple[array[int], list[int]]:
    """Return the offsets in [start, end) that have a message, and those of them without a payload."""
    offsets = array("q")
    tombstones: list[int] = []
    for messages in log_reader.read(partition, start, end):
        offsets.extend(cast("list[int]", list(map(Message.offset, messages))))
        if not all(map(len, messages)):  # len() is the payload's, and copies nothing
            tombstones += [cast(int, message.offset()) for message in messages if message.value() is None]
    return offsets, tombstones


def _summary(counts: Mapping[str, int], merging: str) -> str:
    text = "{events} events, {rows} rows, {letters} dead letters, {skipped} skipped, ".format_map(counts)
    text += ", ".join(f"{_named(problem, merging)} {counts[problem]}" for problem in PROBLEMS)
    return text + (f"; {counts['ahead']} rows ahead of the commit" if counts["ahead"] else "")


def _problems(account: Account, merging: str) -> list[str]:
    found: list[tuple[str, Ranges]] = [(_named(problem, merging), getattr(account, problem)) for problem in PROBLEMS]
    return [f"{problem} {ranges}" for problem, ranges in found if ranges.count]


def _named(problem: str, merging: str) -> str:
    return "without a row of their own" if merging and problem == "missing" else problem


def _notes(account: Account, committed: int | None, low: int, high: int) -> list[str]:
    """Return what the numbers do not cover."""
    found = notes(committed, low, high)
    if account.removed:
        found.append(f"{account.removed} rows are older than the log: only doubles are seen among them")
    if account.both:
        found.append(f"{account.both} events have a row and a dead letter: another group's, or the table was altered")
    return found
