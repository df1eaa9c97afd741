"""`verify` for ClickHouse: the offsets of the topic compared with the origin columns of the table's rows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO, cast

from confluent_kafka import Message

from worker.commands.progress import ProgressBar
from worker.commands.verify.comparison import PROBLEMS, Account, Ranges, Scope
from worker.commands.verify.rows import Rows
from worker.commands.verify.skipped import FindSkipped
from worker.core.errors import ExitCode
from worker.kafka.log_reader import LogReader

SLICE = 1_000_000  # offsets that are compared at a time: about 200 MB


@dataclass(frozen=True)
class ClickHouseComparison:
    """Compares the rows of a table with the events below the committed offsets."""

    log_reader: LogReader
    rows: Rows
    find_skipped: FindSkipped
    limit: int  # how many ranges of each problem are shown
    allow_merged: bool
    out: TextIO
    bar: ProgressBar

    def run(self, scopes: Sequence[Scope]) -> int:
        """Print an account of each partition and a total; return OK if every event is stored once, else FAILED."""
        absence = self.rows.absence
        total: Counter[str] = Counter()
        is_good = True
        for scope in scopes:
            account, is_partition_good = self._verify(scope)
            is_good = is_good and is_partition_good
            total.update(account.counts())
        if absence and total["missing"]:
            due = total["events"] - total["skipped"] - total["dead_letters"]
            print(
                f"total: {total['missing']} of {due} offsets have no row of their own. Whether their events were "
                f"stored or lost cannot be decided: {absence}",
                file=self.out,
            )
        print(f"total: {_summary(total, absence)}", file=self.out)
        return ExitCode.OK if is_good else ExitCode.FAILED

    def _verify(self, scope: Scope) -> tuple[Account, bool]:
        """Compare and print a partition; return its account, and whether every event is stored once."""
        absence, committed = self.rows.absence, scope.committed
        row_bounds = self.rows.bounds(scope.partition)
        low, high = self.log_reader.bounds(scope.partition)
        begin = scope.begin
        if begin is None:
            begin = min([*(row_bounds[:1] if row_bounds[1] else ()), *scope.dead_letters[:1], committed or 0])
        begin = max(low, begin)
        account = Account(self.limit)
        self._compare(account, scope, row_bounds, (begin, high))
        self.bar.clear()
        lines = [_summary(account.counts(), absence), *_problems(account, absence), *scope.notes(low, high)]
        if account.removed:
            lines.append(f"{account.removed} rows are older than the log: only duplicates are detected among them")
        if account.both:
            lines.append(
                f"{account.both} events have a row and a dead letter: another group's, or the table was altered"
            )
        if begin > low:
            lines.append(f"the events before {begin} are not compared: --start")
        for line in lines:
            print(f"{self.log_reader.topic}[{scope.partition}]: {line}", file=self.out, flush=True)
        is_good = account.is_good(merged=self.allow_merged and bool(absence))
        return account, is_good and (committed is None or committed >= low)

    def _compare(
        self, account: Account, scope: Scope, row_bounds: tuple[int, int], log_bounds: tuple[int, int]
    ) -> None:
        """Compare slice by slice, from the log's start or the first row to the commit or the last row."""
        partition, committed, dead_letters = scope.partition, scope.committed or 0, scope.dead_letters
        (first, end), (low, high) = row_bounds, log_bounds
        begin, last = min(low, first) if end else low, max(committed, min(end, high))
        for start in range(begin, last, SLICE):
            stop = min(start + SLICE, last)
            offsets, skipped = self._read_log(partition, max(start, low), min(stop, high))
            account.compare(
                offsets,
                skipped,
                dead_letters[bisect_left(dead_letters, start) : bisect_left(dead_letters, stop)],
                self.rows.offsets(partition, start, stop),
                committed=committed,
                log_start=max(low, self.log_reader.bounds(partition)[0]),  # retention continues while we read
            )
        while len(beyond := self.rows.offsets(partition, last, end, SLICE)):
            account.compare((), (), (), beyond, committed=committed, log_start=low)
            last = beyond[-1] + 1

    def _read_log(self, partition: int, start: int, end: int) -> tuple[array[int], list[int]]:
        """Return the offsets in [start, end) that have a message, and those of them that are skipped."""
        offsets = array("q")
        skipped: list[int] = []
        for messages in self.log_reader.read(partition, start, end):
            self.bar.advance(len(messages))
            offsets.extend(cast("list[int]", list(map(Message.offset, messages))))
            skipped += self.find_skipped(messages)
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
