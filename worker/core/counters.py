"""The shared counters: one anonymous mapping, created before the first fork, that outlives every child.

A slot is one consumer's entry in the process table. A ledger holds the accounts of one topic partition in one slot.
Every cell is 8 bytes with a single writer (the consumer in the slot, or the supervisor for `SUPERVISOR_CELLS`), so no
lock is needed. A `kill -9` leaves nothing stale: the next consumer in the slot continues the counters. Durations are in
nanoseconds, instants are `time.monotonic_ns()`, which all processes of a host share.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from worker.core.rejects import WORDS as REJECT_WORDS
from worker.core.rejects import RejectTable
from worker.core.topic_list import TopicList

MAX_SLOTS = 256
MAX_LEDGERS = 4096  # partitions that one slot can ever have owned
NAME_BYTES = 288  # "topic topic-id": at most 249 + 1 + 22
ERROR_BYTES = 512

SUPERVISOR_CELLS = ("pid", "restarts", "started_ns")
MONITOR_CELLS = ("columns_version", "evolved_columns", "evolve_errors")  # of `--evolve`; the first changes with tables
CONSUMER_CELLS = (
    "heartbeat_ns",
    "assigned",
    "rebalances",
    "sink_up",
    "paused",
    "cpu_ns",
    "rss_bytes",
    "error_ns",
    "dropped_log_lines",
)
STAGES = ("poll", "decode", "write", "commit", "idle", "paused")
REJECT_REASONS = (
    "not_json",
    "not_object",
    "schema_framing",
    "not_framed",
    "unknown_schema",
    "undecodable",
    "missing_field",
    "wrong_type",
    "out_of_range",
    "invalid_text",
    "bad_timestamp",
    "too_large",
    "transform_failed",
    "store_refused",
    "other",
)
STORES = ("redis", "clickhouse")
RETRY_REASONS = (
    "connection",
    "timeout",
    "overloaded",
    "too_many_parts",
    "read_only",
    "no_space",
    "memory",
    "table",
    "configuration",
    "view",
    "wrong_type",
    "credentials",
    "schema_registry",
    "other",
)
OUTCOMES = ("written", "dead_lettered", "skipped", "replayed", "in_flight")  # they explain what was consumed
LEDGER_CELLS = (
    "partition",
    "assigned",
    "consumed",
    "bytes",
    *OUTCOMES,
    "accounted_offset",
    "end",
)


LedgerKey = tuple[str, str, int]  # topic, topic id, partition


class Histogram(NamedTuple):
    """Upper bounds of the buckets, in the unit of the observed value. One more bucket holds larger values."""

    bounds: tuple[int, ...]
    unit: int = 1  # how many are 1 of the metric's base unit


_STAGE = Histogram(tuple(int(ms * 1e6) for ms in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)), 10**9)
HISTOGRAMS: dict[str, Histogram] = {
    "batch_rows": Histogram((1, 10, 100, 1000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000)),
    # In milliseconds: in nanoseconds the sum of a replayed month would not fit 8 bytes.
    "delivery": Histogram(
        (5, 10, 25, 50, 100, 250, 500, 1000, 1500, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 3_600_000),
        1000,
    ),
    **{f"stage_{stage}": _STAGE for stage in STAGES},
}
DELIVERY_CAP_MS = 86_400_000  # older events count as this old: a replay must not overflow the sum


def _cells() -> dict[str, int]:
    names = [*SUPERVISOR_CELLS, *MONITOR_CELLS, *CONSUMER_CELLS, "ledgers"]
    names += [f"rejected_{reason}" for reason in REJECT_REASONS]
    names += [f"retries_{backend}_{reason}" for backend in (*STORES, "kafka") for reason in RETRY_REASONS]
    names += [f"{store}_down" for store in STORES]
    index = {name: i for i, name in enumerate(names)}
    end = len(names)
    for name, histogram in HISTOGRAMS.items():
        index[name] = end
        end += len(histogram.bounds) + 2  # buckets, larger values, sum
    index[""] = end
    return index


_CELL = _cells()
_LEDGER = {name: i for i, name in enumerate(LEDGER_CELLS)}
_LEDGER_WORDS = len(LEDGER_CELLS) + NAME_BYTES // 8
_ERROR_AT = _CELL[""]
_REJECTS_AT = _ERROR_AT + ERROR_BYTES // 8
_LEDGERS_AT = _REJECTS_AT + REJECT_WORDS
_SLOT_WORDS = _LEDGERS_AT + MAX_LEDGERS * _LEDGER_WORDS


class Ledger:
    """The accounts of one partition in one slot: consumed = written + dead_lettered + skipped + replayed + in_flight.

    `replayed` are events that were read here but that another read accounts for: released at a rebalance or lost with a
    consumer before they were acknowledged, or already accounted for. `accounted_offset` is the offset up to which this
    slot has accounted for the partition, `end` the one from which on it reads nothing (0: none, see `--until`).
    """

    __slots__ = ("_words", "at", "topic", "topic_id")

    def __init__(self, words: memoryview, at: int, topic: str, topic_id: str) -> None:
        self._words = words
        self.at = at
        self.topic = topic
        self.topic_id = topic_id

    def get(self, cell: str) -> int:
        value: int = self._words[self.at + _LEDGER[cell]]
        return value

    def set(self, cell: str, value: int) -> None:
        self._words[self.at + _LEDGER[cell]] = value

    def add(self, cell: str, value: int) -> None:
        self._words[self.at + _LEDGER[cell]] += value

    @property
    def partition(self) -> int:
        return self.get("partition")

    @property
    def key(self) -> LedgerKey:
        return self.topic, self.topic_id, self.partition

    @property
    def unaccounted(self) -> int:
        """Consumed events that no account explains. Anything but 0 is a defect."""
        return self.get("consumed") - sum(map(self.get, OUTCOMES))

    def close_after_crash(self) -> None:
        """Close the accounts of a process that died, perhaps while it recorded a batch. Open events are read again."""
        self.set("in_flight", 0)
        self.add("replayed", self.unaccounted)
        self.set("assigned", 0)

    def replay(self, count: int) -> None:
        """Account for events that were read but not acknowledged as replayed: whoever reads them next counts them."""
        self.add("replayed", count)
        self.add("in_flight", -count)


class Slot:
    """One consumer's counters. Readers in other processes may see a half recorded batch, but never a torn cell."""

    __slots__ = ("_at", "_bytes", "_ledgers", "_words", "index", "rejects")

    def __init__(self, words: memoryview, raw: memoryview, index: int) -> None:
        self._ledgers: dict[LedgerKey, Ledger] = {}  # those that this process has read
        self._words = words
        self._bytes = raw
        self._at = index * _SLOT_WORDS
        self.index = index
        self.rejects = RejectTable(words, raw, self._at + _REJECTS_AT)

    def get(self, cell: str) -> int:
        value: int = self._words[self._at + _CELL[cell]]
        return value

    def set(self, cell: str, value: int) -> None:
        self._words[self._at + _CELL[cell]] = value

    def add(self, cell: str, value: int = 1) -> None:
        self._words[self._at + _CELL[cell]] += value

    def beat(self) -> None:
        self.set("heartbeat_ns", time.monotonic_ns())

    def observe(self, histogram: str, value: int, count: int = 1) -> None:
        """Add `count` observations of `value` (rows, or nanoseconds)."""
        bounds = HISTOGRAMS[histogram].bounds
        at = self._at + _CELL[histogram]
        self._words[at + bisect_left(bounds, value)] += count
        self._words[at + len(bounds) + 1] += value * count

    def histogram(self, name: str) -> tuple[list[int], int]:
        """Return the counts of each bucket (not cumulative, larger values last) and the sum of all values."""
        size = len(HISTOGRAMS[name].bounds) + 1
        at = self._at + _CELL[name]
        return list(self._words[at : at + size]), int(self._words[at + size])

    def set_error(self, text: str) -> None:
        """Keep the latest error's text for the status page (cut at 512 bytes)."""
        at = (self._at + _ERROR_AT) * 8
        self._bytes[at : at + ERROR_BYTES] = text.encode()[:ERROR_BYTES].ljust(ERROR_BYTES, b"\0")
        self.set("error_ns", time.monotonic_ns())

    def error(self) -> str:
        at = (self._at + _ERROR_AT) * 8
        return bytes(self._bytes[at : at + ERROR_BYTES]).rstrip(b"\0").decode(errors="replace")

    def add_rejects(self, ledger: Ledger, reason: str, field: str, count: int, offset: int) -> None:
        """Count invalid events of the ledger's partition, the last of them at `offset`."""
        self.add(f"rejected_{reason}", count)
        self.rejects.add(reason, field, count, (ledger.at - self._at - _LEDGERS_AT) // _LEDGER_WORDS, offset)

    def ledgers(self) -> list[Ledger]:
        """Every partition that this slot has ever owned."""
        count = self.get("ledgers")
        if len(self._ledgers) != count:
            self._ledgers = {ledger.key: ledger for ledger in map(self.ledger_at, range(count))}
        return list(self._ledgers.values())

    def ledger(self, topic: str, topic_id: str, partition: int) -> Ledger:
        """Return the ledger of a partition, and create it if it is missing.

        A recreated topic has another id, and so other ledgers.
        """
        count = len(self.ledgers())
        if ledger := self._ledgers.get((topic, topic_id, partition)):
            return ledger
        if count == MAX_LEDGERS:
            raise ValueError(f"one consumer has had {MAX_LEDGERS} partitions, which is the limit: start more processes")
        at = self._at + _LEDGERS_AT + count * _LEDGER_WORDS
        name = (at + len(LEDGER_CELLS)) * 8
        self._bytes[name : name + NAME_BYTES] = f"{topic} {topic_id}".encode().ljust(NAME_BYTES, b"\0")
        ledger = Ledger(self._words, at, topic, topic_id)
        ledger.set("partition", partition)
        self.set("ledgers", count + 1)  # last: readers see only complete ledgers
        self._ledgers[ledger.key] = ledger
        return ledger

    def ledger_at(self, i: int) -> Ledger:
        """Return the ledger with this index in the order of creation."""
        at = self._at + _LEDGERS_AT + i * _LEDGER_WORDS
        name = (at + len(LEDGER_CELLS)) * 8
        topic, _, topic_id = bytes(self._bytes[name : name + NAME_BYTES]).rstrip(b"\0").decode().partition(" ")
        return Ledger(self._words, at, topic, topic_id)


class Stats:
    """All slots: one for each consumer, and those of the supervisor and the monitor.

    Pages that nobody has written to take no memory.
    """

    def __init__(self) -> None:
        self.topic_list = TopicList()
        self._map = mmap.mmap(-1, (MAX_SLOTS + 2) * _SLOT_WORDS * 8)
        raw = memoryview(self._map)
        *self._slots, self.supervisor, self.monitor = [Slot(raw.cast("q"), raw, i) for i in range(MAX_SLOTS + 2)]

    def slot(self, index: int) -> Slot:
        return self._slots[index]

    def used(self) -> Iterator[Slot]:
        """Slots that have ever had a process."""
        return (slot for slot in self._slots if slot.get("started_ns"))

    def ends(self) -> dict[tuple[str, int], int]:
        """Return for each topic and partition with an end the highest offset up to which any slot reads it."""
        ends: dict[tuple[str, int], int] = {}
        for ledger in (ledger for slot in self.used() for ledger in slot.ledgers() if ledger.get("end")):
            key = ledger.topic, ledger.partition
            ends[key] = max(ends.get(key, 0), ledger.get("end"))
        return ends

    def accounted(self) -> dict[LedgerKey, int]:
        """Return for each partition the offset up to which any slot of this supervisor has accounted for it."""
        offsets: dict[LedgerKey, int] = {}
        for slot in self.used():
            for ledger in slot.ledgers():
                offsets[ledger.key] = max(offsets.get(ledger.key, 0), ledger.get("accounted_offset"))
        return offsets
