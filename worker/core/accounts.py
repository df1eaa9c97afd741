"""Sums over the ledgers of all consumers, and the events that no account explains."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from worker.core.counters import OUTCOMES, Ledger, Slot, Stats
from worker.core.records import Key

ACCOUNTS = ("consumed", *OUTCOMES)
_READ = (*ACCOUNTS, "bytes")
_REREADS = 5
_PERSISTENT_S = 1.0


@dataclass(slots=True)
class Sums:
    """One read of all ledgers. The partitions are those that a running consumer owns or that do not add up."""

    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_READ, 0))
    in_flight: dict[Key, int] = field(default_factory=dict)
    unaccounted: dict[Key, int] = field(default_factory=dict)
    owner: dict[Key, int] = field(default_factory=dict)  # the slot

    @property
    def accounted(self) -> int:
        """Events that need no more work."""
        return self.total["written"] + self.total["dead_lettered"] + self.total["skipped"]


class Accounts:
    """Reads the ledgers.

    A reader in another process may see a batch that is half recorded. Such a difference disappears; a defect stays. So
    a difference is reported after it has been unchanged for a second.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._since: dict[tuple[int, int], tuple[int, float]] = {}  # (slot, index of ledger) → difference, its time

    def read(self) -> Sums:
        """Add up all ledgers in one pass."""
        sums = Sums()
        totals = [0] * len(_READ)
        for slot in self._stats.used():
            running = slot.get("pid") != 0
            for i, ledger in enumerate(slot.ledgers()):
                values = list(map(ledger.get, _READ))
                totals = list(map(int.__add__, totals, values))
                missing = values[0] - sum(values[1:6])
                if missing or (slot.index, i) in self._since:
                    missing = self._persistent((slot.index, i), ledger, missing)
                owned = running and ledger.get("assigned")
                if owned or missing:
                    partition = (ledger.topic, ledger.partition)
                    sums.unaccounted[partition] = sums.unaccounted.get(partition, 0) + missing
                    if owned:
                        sums.in_flight[partition] = sums.in_flight.get(partition, 0) + values[5]
                        sums.owner[partition] = slot.index
        sums.total = dict(zip(_READ, totals, strict=True))
        return sums

    def _persistent(self, key: tuple[int, int], ledger: Ledger, missing: int) -> int:
        """Return the difference if it has persisted, else 0: a batch may be half recorded."""
        for _ in range(_REREADS):
            if not missing:
                self._since.pop(key, None)
                return 0
            missing = ledger.unaccounted
        now = time.monotonic()
        previous, since = self._since.get(key, (0, now))
        if previous != missing:
            since = now
        self._since[key] = missing, since
        return missing if now - since >= _PERSISTENT_S else 0


def by_partition(stats: Stats) -> dict[Key, Counter[str]]:
    """Return each partition's ACCOUNTS over all slots. Topics of the same name are added up."""
    accounts: dict[Key, Counter[str]] = {}
    for slot in stats.used():
        for ledger in slot.ledgers():
            counts = accounts.setdefault((ledger.topic, ledger.partition), Counter())
            counts.update({account: ledger.get(account) for account in ACCOUNTS})
    return accounts


def running_slots(stats: Stats) -> list[Slot]:
    return [slot for slot in stats.used() if slot.get("pid")]
