"""What was measured of each contender, as it is kept in bench/results."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Sample:
    """One contender in one round.

    Figures per message are of the events that the topic has more than the small one, whose run is subtracted.
    """

    round: int
    reader_us: float  # CPU µs per message of the reader's processes
    reader_s: float  # CPU time of the reader's processes for the whole topic
    startup_s: float  # the same for the small topic: start-up, joining and leaving the group
    store_us: float  # … of the server
    broker_us: float
    rate: float  # messages/s, likewise; 0 if the run was as short as that of the small topic
    steal: float
    wall: float  # of the whole run, s
    rss: int
    rss_sum: int
    stages: dict[str, float]  # µs per message in each stage
    split_us: list[float]  # µs per message of the program itself and of each child
    busiest: float = 1.0  # share of the consumers' CPU time that one consumer used


@dataclass
class Result:
    """All rounds of one contender."""

    name: str
    store: str
    events: int
    ours: bool = False
    in_store: bool = False
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    repeated: int = 0  # runs discarded because the host took too much CPU time, or one consumer did the work

    @property
    def key(self) -> str:
        return f"{self.name} → {self.store}"

    def median(self, figure: str) -> float:
        return float(median([getattr(sample, figure) for sample in self.samples]))

    def totals(self, events: int) -> list[float]:
        """Return the µs per message of reader, store and broker, with one start-up for so many events."""
        return [
            sample.reader_us + self._startup_us(sample, events) + sample.store_us + sample.broker_us
            for sample in self.samples
        ]

    def startup_us(self, events: int) -> float:
        """Return the start-up's median in µs per message of so many events."""
        return float(median([self._startup_us(sample, events) for sample in self.samples]))

    def ratios(self, other: Result, *parts: str) -> list[float]:
        """Return the sum of these figures divided by that of the other contender, for each round that has both."""
        theirs = {sample.round: _sum(sample, parts) for sample in other.samples}
        return [
            _sum(sample, parts) / theirs[sample.round] for sample in self.samples if theirs.get(sample.round, 0.0) > 0
        ]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Result:
        return cls(**{**fields, "samples": [Sample(**sample) for sample in fields["samples"]]})

    def _startup_us(self, sample: Sample, events: int) -> float:
        return 0.0 if self.in_store else sample.startup_s * 1e6 / events


def _sum(sample: Sample, parts: tuple[str, ...]) -> float:
    return float(sum(getattr(sample, part) for part in parts))
