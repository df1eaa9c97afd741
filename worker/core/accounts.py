"""The ledgers of all consumers added up, and whether they add up."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from worker.core.counters import Ledger, Slot, Stats

ACCOUNTS = ("consumed", "written", "dead_lettered", "skipped", "replayed", "in_flight")  # the first is all the others
_READ = (*ACCOUNTS, "bytes")
_REREADS = 5
_STANDS_S = 1.0

_Place = tuple[str, int]  # topic, partition


@dataclass(slots=True)
class Sums:
    """One look at all ledgers. Places are those that a running consumer owns, or that do not add up."""

    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_READ, 0))
    in_flight: dict[_Place, int] = field(default_factory=dict)
    unaccounted: dict[_Place, int] = field(default_factory=dict)
    owner: dict[_Place, int] = field(default_factory=dict)  # the slot

    @property
    def accounted(self) -> int:
        """Events that need no more work."""
        return self.total["written"] + self.total["dead_lettered"] + self.total["skipped"]


class Accounts:
    """Reads the ledgers.

    A reader in another process may find a batch half booked. That passes; a defect stays. So a difference counts once
    it has stood unchanged for a second.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._ledgers: dict[int, list[Ledger]] = {}  # by slot; ledgers are never taken away
        self._since: dict[tuple[int, int], tuple[int, float]] = {}  # (slot, its ledger) → a difference, seen since

    def read(self) -> Sums:
        """Add up all ledgers in one pass."""
        sums = Sums()
        written = [0] * len(_READ)
        for slot in self._stats.used():
            running = slot.get("pid") != 0
            for i, ledger in enumerate(self._of(slot)):
                values = list(map(ledger.get, _READ))
                written = list(map(int.__add__, written, values))
                missing = values[0] - sum(values[1:6])
                if missing or (slot.index, i) in self._since:
                    missing = self._standing((slot.index, i), ledger, missing)
                owned = running and ledger.get("assigned")
                if owned or missing:
                    place = (ledger.topic, ledger.partition)
                    sums.unaccounted[place] = sums.unaccounted.get(place, 0) + missing
                    if owned:
                        sums.in_flight[place] = sums.in_flight.get(place, 0) + values[5]
                        sums.owner[place] = slot.index
        sums.total = dict(zip(_READ, written, strict=True))
        return sums

    def _standing(self, key: tuple[int, int], ledger: Ledger, missing: int) -> int:
        """Return a difference if it is more than a batch that is being booked."""
        for _ in range(_REREADS):
            if not missing:
                self._since.pop(key, None)
                return 0
            missing = ledger.unaccounted
        now = time.monotonic()
        known, since = self._since.get(key, (0, now))
        if known != missing:
            since = now
        self._since[key] = missing, since
        return missing if now - since >= _STANDS_S else 0

    def _of(self, slot: Slot) -> list[Ledger]:
        known = self._ledgers.get(slot.index, [])
        if len(known) != slot.get("ledgers"):
            known = self._ledgers[slot.index] = slot.ledgers()
        return known


def by_partition(stats: Stats) -> dict[_Place, Counter[str]]:
    """Return each partition's ACCOUNTS over all slots, of all topics that had its name."""
    found: dict[_Place, Counter[str]] = {}
    for slot in stats.used():
        for ledger in slot.ledgers():
            counts = found.setdefault((ledger.topic, ledger.partition), Counter())
            counts.update({account: ledger.get(account) for account in ACCOUNTS})
    return found


def alive(stats: Stats) -> list[Slot]:
    """Return the slots whose consumer runs."""
    return [slot for slot in stats.used() if slot.get("pid")]
