"""Compare Kafka's offsets with the store's rows and the dead letters: missing, doubled, extra. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

PROBLEMS = ("missing", "doubled", "extra")


class Ranges:
    """How many offsets were added, and the first `keep` ranges of them. Offsets are added in ascending order."""

    def __init__(self, keep: int) -> None:
        self.count = 0
        self.more = 0  # ranges that were not kept
        self._keep = keep
        self._kept: list[tuple[int, int]] = []  # first and last offset
        self._last = -2

    def add(self, offsets: Iterable[int]) -> None:
        """Add offsets; one that is doubled several times is added as often."""
        for offset in offsets:
            self.count += 1
            if offset - self._last in (0, 1):
                if not self.more and self._kept:
                    self._kept[-1] = self._kept[-1][0], offset
            elif len(self._kept) < self._keep:
                self._kept.append((offset, offset))
            else:
                self.more += 1
            self._last = offset

    def __str__(self) -> str:
        texts = [str(first) if first == last else f"{first}-{last}" for first, last in self._kept]
        return ", ".join(texts + ([f"and {self.more} more ranges"] if self.more else []))


@dataclass
class Account:
    """One partition's result. `events`, `rows`, `dead_letters` and `skipped` count offsets below the committed one."""

    keep: int
    events: int = 0
    rows: int = 0
    dead_letters: int = 0
    skipped: int = 0
    ahead: int = 0  # rows that the group has not committed yet
    both: int = 0  # rows whose events have a dead letter, too
    removed: int = 0  # rows whose events retention has removed: only duplicates can be detected
    missing: Ranges = field(init=False)
    doubled: Ranges = field(init=False)
    extra: Ranges = field(init=False)

    def __post_init__(self) -> None:
        self.missing, self.doubled, self.extra = Ranges(self.keep), Ranges(self.keep), Ranges(self.keep)

    def compare(
        self,
        log: Sequence[int],
        tombstones: Collection[int],
        dead_letters: Collection[int],
        rows: Sequence[int],
        *,
        committed: int,
        log_start: int,
    ) -> None:
        """Compare one slice of the partition's offsets; slices are ascending.

        `log` are the offsets that have a message (ascending), `tombstones` those of them without a payload,
        `dead_letters` those that have dead letters, `rows` the offsets of the rows (ascending, duplicates included).
        Each offset below `committed` must be accounted for once, higher ones may be. `log` is unknown below
        `log_start`.
        """
        self.removed += bisect_left(rows, log_start)
        self.rows += bisect_left(rows, committed) - bisect_left(rows, min(log_start, committed))
        self.ahead += len(rows) - bisect_left(rows, max(committed, log_start))
        self.events += bisect_left(log, committed)
        self.dead_letters += sum(log_start <= offset < committed for offset in dead_letters)
        self.skipped += sum(offset < committed for offset in tombstones)
        if not tombstones and not dead_letters and len(log) == len(rows) and list(log) == list(rows):
            return
        stored = set(rows)
        due = set(log).difference(tombstones)
        self.missing.add(sorted(o for o in due.difference(stored, dead_letters) if log_start <= o < committed))
        self.doubled.add(second for first, second in pairwise(rows) if first == second)
        self.both += len(stored.intersection(dead_letters))
        self.extra.add(sorted(offset for offset in stored - due if offset >= log_start))

    def counts(self) -> dict[str, int]:
        """Return all numbers by name."""
        numbers = {name: getattr(self, name) for name in ("events", "rows", "dead_letters", "skipped", "ahead")}
        return numbers | {problem: getattr(self, problem).count for problem in PROBLEMS}

    def is_good(self, *, merged: bool = False) -> bool:
        """Whether every event is accounted for once. Missing rows are accepted if rows were `merged`."""
        return not any(getattr(self, problem).count for problem in PROBLEMS if not (merged and problem == "missing"))


def notes(committed: int | None, low: int, high: int, end: int | None) -> list[str]:
    """Return what a comparison up to the committed offset does not cover.

    The log is [low, high); `end` is where `--until` ends it.
    """
    lines = []
    if committed is None:
        lines.append("the group has not committed anything here")
    elif committed < low:
        lines.append(f"lost: retention removed {committed}-{low - 1} before the group read them")
    elif end is not None and end <= committed < high:
        lines.append(f"the events from {committed} on are not compared: --until")
    elif committed < high:
        last = (high if end is None else end) - 1
        lines.append(f"{committed}-{last} are not committed yet, and may be missing")
    elif committed > high:
        lines.append(f"the group has committed {committed}, but the log ends at {high}: was the topic created again?")
    if low:
        lines.append(f"retention removed the events before {low}")
    return lines
