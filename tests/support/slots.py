"""Slots of running consumers, for tests of what reads the shared counters."""

from __future__ import annotations

import time

from worker.core.counters import Slot, Stats


def start_slot(stats: Stats, index: int = 0, **cells: int) -> Slot:
    """Return a slot with a running consumer, filled as the supervisor and the consumer fill it; `cells` override."""
    slot = stats.slot(index)
    for cell, value in {"started_ns": time.monotonic_ns(), "pid": 1000 + index, "sink_up": 1, **cells}.items():
        slot.set(cell, value)
    slot.beat()
    return slot


def own_partition(slot: Slot, partition: int, **cells: int) -> None:
    """Assign a partition of the topic `events` to the slot, and add to its ledger's cells."""
    ledger = slot.ledger("events", "id", partition)
    ledger.set("assigned", 1)
    for cell, value in cells.items():
        ledger.add(cell, value)
