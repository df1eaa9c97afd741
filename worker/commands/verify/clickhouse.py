"""`verify` for ClickHouse: the offsets of the topic compared with the origin columns of the table's rows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import TextIO, cast

from confluent_kafka import Message

from worker.commands.progress import ProgressBar
from worker.commands.verify.comparison import PROBLEMS, Account, Ranges, notes
from worker.commands.verify.rows import Rows
from worker.commands.verify.skipped import FindSkipped
from worker.core.errors import ExitCode
from worker.kafka.log_reader import LogReader

SLICE = 1_000_000  # offsets that are compared at a time: about 200 MB


def verify_clickhouse(
    log_reader: LogReader,
    begins: Mapping[int, int] | None,
    ends: Mapping[int, int],
    accounted: Mapping[int, int | None],
    dead_letters: Mapping[int, array[int]],
    rows: Rows,
    find_skipped: FindSkipped,
    limit: int,
    allow_merged: bool,
    out: TextIO,
    bar: ProgressBar,
) -> int:
    """Compare the rows with the events below the committed offsets; print the result, return OK or FAILED.

    `begins` has the offset where the group began, of each partition where it is not the log's start. None: it is the
    first offset that has a row or a dead letter. `ends` has the offset where `--until` ends it. `accounted` has the
    committed offset of each partition, `dead_letters` the offsets that have dead letters. `limit` is how many ranges of
    each problem are shown.
    """
    total: Counter[str] = Counter()
    is_good = True
    for partition, committed in sorted(accounted.items()):
        row_bounds = rows.bounds(partition)
        low, high = log_reader.bounds(partition)
        account = Account(limit)
        own_dead_letters = dead_letters.get(partition, array("q"))
        if begins is None:
            firsts = [*(row_bounds[:1] if row_bounds[1] else ()), *own_dead_letters[:1], committed or 0]
            begin = max(low, min(firsts))
        else:
            begin = max(low, begins.get(partition, 0))
        _compare(
            account,
            log_reader,
            rows,
            find_skipped,
            partition,
            own_dead_letters,
            row_bounds,
            (begin, high),
            committed or 0,
            bar,
        )
        is_good = (
            is_good
            and account.is_good(merged=allow_merged and bool(rows.absence))
            and (committed is None or committed >= low)
        )
        total.update(account.counts())
        bar.clear()
        summary = _summary(account.counts(), rows.absence)
        lines = [
            summary,
            *_problems(account, rows.absence),
            *_notes(account, committed, low, high, ends.get(partition)),
        ]
        lines += [f"the events before {begin} are not compared: --start"] if begin > low else []
        for line in lines:
            print(f"{log_reader.topic}[{partition}]: {line}", file=out, flush=True)
    if rows.absence and total["missing"]:
        due = total["events"] - total["skipped"] - total["dead_letters"]
        print(
            f"total: {total['missing']} of {due} offsets have no row of their own. Whether their events were stored or "
            f"lost cannot be decided: {rows.absence}",
            file=out,
        )
    print(f"total: {_summary(total, rows.absence)}", file=out)
    return ExitCode.OK if is_good else ExitCode.FAILED


def _compare(
    account: Account,
    log_reader: LogReader,
    rows: Rows,
    find_skipped: FindSkipped,
    partition: int,
    dead_letters: array[int],
    row_bounds: tuple[int, int],
    log_bounds: tuple[int, int],
    committed: int,
    bar: ProgressBar,
) -> None:
    """Compare a partition, slice by slice, from the log's start or the first row to the commit or the last row."""
    (first, end), (low, high) = row_bounds, log_bounds
    begin, last = min(low, first) if end else low, max(committed, min(end, high))
    for start in range(begin, last, SLICE):
        stop = min(start + SLICE, last)
        offsets, skipped = _read_log(log_reader, find_skipped, partition, max(start, low), min(stop, high), bar)
        account.compare(
            offsets,
            skipped,
            dead_letters[bisect_left(dead_letters, start) : bisect_left(dead_letters, stop)],
            rows.offsets(partition, start, stop),
            committed=committed,
            log_start=max(low, log_reader.bounds(partition)[0]),  # retention continues while we read
        )
    while len(beyond := rows.offsets(partition, last, end, SLICE)):
        account.compare((), (), (), beyond, committed=committed, log_start=low)
        last = beyond[-1] + 1


def _read_log(
    log_reader: LogReader, find_skipped: FindSkipped, partition: int, start: int, end: int, bar: ProgressBar
) -> tuple[array[int], list[int]]:
    """Return the offsets in [start, end) that have a message, and those of them that are skipped."""
    offsets = array("q")
    skipped: list[int] = []
    for messages in log_reader.read(partition, start, end):
        bar.advance(len(messages))
        offsets.extend(cast("list[int]", list(map(Message.offset, messages))))
        skipped += find_skipped(messages)
    return offsets, skipped


def _summary(counts: Mapping[str, int], absence: str) -> str:
    text = "{events} events, {rows} rows, {dead_letters} dead letters, {skipped} skipped, ".format_map(counts)
    text += ", ".join(f"{_label(problem, absence)} {counts[problem]}" for problem in PROBLEMS)
    return text + (f"; {counts['ahead']} rows ahead of the commit" if counts["ahead"] else "")


def _problems(account: Account, absence: str) -> list[str]:
    problems: list[tuple[str, Ranges]] = [(_label(problem, absence), getattr(account, problem)) for problem in PROBLEMS]
    return [f"{label} {ranges}" for label, ranges in problems if ranges.count]


def _label(problem: str, absence: str) -> str:
    return "without a row of their own" if absence and problem == "missing" else problem


def _notes(account: Account, committed: int | None, low: int, high: int, end: int | None) -> list[str]:
    """Return what the numbers do not cover."""
    lines = notes(committed, low, high, end)
    if account.removed:
        lines.append(f"{account.removed} rows are older than the log: only duplicates are detected among them")
    if account.both:
        lines.append(f"{account.both} events have a row and a dead letter: another group's, or the table was altered")
    return lines
