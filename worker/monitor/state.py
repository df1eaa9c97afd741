"""What the monitor knows besides the shared counters, and whether the worker is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.config.settings import Settings
from worker.core.accounts import running_slots
from worker.core.counters import STORES, Slot, Stats
from worker.core.records import Key
from worker.kafka.group_lag import PartitionLag

_LAG_VALID_S = 15.0  # without an answer from Kafka; after that the lag is unknown and not shown
_HEARTBEAT_S = 30.0
_PROGRESS_S = 60.0


def is_store_up(slot: Slot, store: str) -> bool:
    """Whether the consumer can reach the store. If it knows no store that fails, it can reach all of them or none."""
    down = [name for name in STORES if slot.get(f"{name}_down")]
    return bool(slot.get("sink_up")) or bool(down and store not in down)


@dataclass(slots=True)
class MonitorState:
    """Written by the monitor's loop, read by its pages. Times are of time.monotonic()."""

    settings: Settings
    now: Callable[[], float] = time.monotonic
    kafka_up: bool | None = None  # None: no answer yet, and none is overdue
    was_lag_known: bool = False
    topics: dict[str, int] = field(default_factory=dict)  # topic → number of partitions
    devices: int | None = None  # distinct over all topics
    devices_by_topic: dict[str, int] = field(default_factory=dict)
    devices_by_window: dict[tuple[str, str], int] = field(default_factory=dict)  # (topic, window) → last closed slice
    devices_at: float = 0.0
    store_up: bool | None = None  # whether the last count succeeded
    error: str = "starting: waiting for Kafka"  # of the monitor itself; empty if there is none
    progress_at: float | None = None  # when the ledger or the group's commits last advanced
    _progress: tuple[int, int] = (0, 0)
    _lags: dict[Key, tuple[float, PartitionLag]] = field(default_factory=dict)

    @property
    def partitions(self) -> int:
        """The number of partitions of all topics."""
        return sum(self.topics.values())

    @property
    def is_starting(self) -> bool:
        """Whether the first answers are still outstanding, and none is overdue."""
        return not self.was_lag_known and self.kafka_up is not False

    @property
    def lags(self) -> list[PartitionLag]:
        """The lag of each partition for which it is known, in order of topic and partition."""
        since = self.now() - _LAG_VALID_S
        return [lag for _, (measured_at, lag) in sorted(self._lags.items()) if measured_at > since]

    def record_lags(self, lags: list[PartitionLag], topics: dict[str, int]) -> None:
        """Record the lag of the group; `topics` has the number of partitions of each existing topic."""
        self.kafka_up, self.topics = True, topics
        now = self.now()
        self._lags.update({lag.key: (now, lag) for lag in lags})
        self._lags = {key: measured for key, measured in self._lags.items() if key[0] in topics}
        self.was_lag_known = self.was_lag_known or bool(lags)

    def record_devices(
        self, by_topic: dict[str, int], total: int | None = None, by_window: dict[tuple[str, str], int] | None = None
    ) -> None:
        """Record a count of each topic, of all topics together, and of each topic's windows."""
        self.devices = sum(by_topic.values()) if total is None else total
        self.devices_by_topic, self.devices_by_window = by_topic, by_window or {}
        self.devices_at, self.store_up = self.now(), True

    def record_progress(self, stats: Stats, accounted: int) -> None:
        """Record whether anything advanced since the last call; `accounted` is Sums.accounted."""
        progress = (accounted, sum(lag.position for lag in self.lags))
        own, group = progress[0] > self._progress[0], progress[1] > self._progress[1] > 0
        standing_by = not any(slot.get("assigned") for slot in running_slots(stats))
        if own or (group and standing_by):
            self.progress_at = self.now()
        self._progress = progress

    def unready_reason(self, stats: Stats) -> str:
        """Return why there is no progress; empty if there is progress or nothing to do."""
        now = self.now()
        if not any(now - slot.get("heartbeat_ns") / 1e9 < _HEARTBEAT_S for slot in running_slots(stats)):
            return self.error or (
                "starting" if self.is_starting else f"no consumer has sent a heartbeat for {_HEARTBEAT_S:g} s"
            )
        if not self.partitions:
            return self.error or "the topic was deleted"
        if not self.lags:
            if self.kafka_up is False:
                return "Kafka does not answer, so the lag is unknown"
            return "starting: the lag is unknown" if self.is_starting else "the lag is unknown"
        behind = sum(lag.messages for lag in self.lags)
        if not behind:
            return ""
        # A consumer without an error has only not opened the store yet.
        failed = [slot for slot in running_slots(stats) if slot.get("error_ns")]
        down = [name for name in self.settings.backends if not all(is_store_up(slot, name) for slot in failed)]
        cause = f": {' and '.join(down)} {'do' if len(down) > 1 else 'does'} not answer" if down else ""
        if self.progress_at is None:
            return f"{behind} events unread, and nothing written yet{cause}"
        if now - self.progress_at > _PROGRESS_S:
            return f"{behind} events unread, and nothing written for {now - self.progress_at:.0f} s{cause}"
        return ""
