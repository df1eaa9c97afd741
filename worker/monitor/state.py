"""What the monitor knows beside the shared counters, and what it concludes: is the worker ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.config.settings import Settings
from worker.core.accounts import running_slots
from worker.core.batch import Key
from worker.core.counters import Stats
from worker.kafka.group_lag import PartitionLag

_LAG_KEPT_S = 15.0  # without an answer of Kafka's; then lag is unknown, and says so by not being there
_BEAT_S = 30.0
_PROGRESS_S = 60.0


@dataclass(slots=True)
class MonitorState:
    """Seen by the monitor's loop, read by its pages. Instants are time.monotonic()."""

    settings: Settings
    now: Callable[[], float] = time.monotonic
    kafka_up: bool | None = None  # None: it has not answered, and need not have yet
    begun: bool = False  # whether the group's lag was ever known
    topics: dict[str, int] = field(default_factory=dict)  # how many partitions each has
    devices: int | None = None  # of all topics
    devices_by_topic: dict[str, int] = field(default_factory=dict)
    devices_at: float = 0.0
    store_up: bool | None = None  # whether the last count was answered
    error: str = "starting: waiting for Kafka"  # the monitor's own, empty without any
    progress_at: float | None = None  # when events were last accounted for, or the group's commits last moved
    _progress: tuple[int, int] = (0, 0)
    _lags: dict[Key, tuple[float, PartitionLag]] = field(default_factory=dict)

    @property
    def partitions(self) -> int:
        """The partitions of all topics."""
        return sum(self.topics.values())

    @property
    def starting(self) -> bool:
        """Whether the first answers are still to come, and nobody need worry yet."""
        return not self.begun and self.kafka_up is not False

    @property
    def lags(self) -> list[PartitionLag]:
        """The lag of each partition where it is known, ascending."""
        oldest = self.now() - _LAG_KEPT_S
        return [lag for _, (taken, lag) in sorted(self._lags.items()) if taken > oldest]

    def see_lags(self, lags: list[PartitionLag], topics: dict[str, int]) -> None:
        """Take a fresh look at the group; `topics` are the partitions of those that are there."""
        self.kafka_up, self.topics = True, topics
        now = self.now()
        self._lags.update({lag.key: (now, lag) for lag in lags})
        self._lags = {key: seen for key, seen in self._lags.items() if key[0] in topics}
        self.begun = self.begun or bool(lags)

    def see_devices(self, by_topic: dict[str, int], together: int | None = None) -> None:
        """Take a fresh count, of each topic and of all."""
        self.devices = sum(by_topic.values()) if together is None else together
        self.devices_by_topic, self.devices_at, self.store_up = by_topic, self.now(), True

    def see_progress(self, stats: Stats, accounted: int) -> None:
        """Notice whether anything moved since the last call; `accounted` is Sums.accounted."""
        seen = (accounted, sum(lag.position for lag in self.lags))
        own, group = seen[0] > self._progress[0], seen[1] > self._progress[1] > 0
        standing_by = not any(slot.get("assigned") for slot in running_slots(stats))
        if own or (group and standing_by):
            self.progress_at = self.now()
        self._progress = seen

    def unready(self, stats: Stats) -> str:
        """Return why no progress is being made, or nothing where there is some, or nothing left to do."""
        now = self.now()
        if not any(now - slot.get("heartbeat_ns") / 1e9 < _BEAT_S for slot in running_slots(stats)):
            return self.error or ("starting" if self.starting else f"no consumer has shown life for {_BEAT_S:g} s")
        if not self.partitions:
            return self.error or "the topic is gone"
        if not self.lags:
            if self.kafka_up is False:
                return "Kafka does not answer, so the lag is not known"
            return "starting: the lag is not known yet" if self.starting else "the lag is not known yet"
        behind = sum(lag.messages for lag in self.lags)
        if not behind:
            return ""
        # Who has told no trouble has only not opened the store yet.
        away = any(slot.get("error_ns") and not slot.get("sink_up") for slot in running_slots(stats))
        why = f": {self.settings.backend} does not answer" if away else ""
        if self.progress_at is None:
            return f"{behind} events unread, and nothing written yet{why}"
        if now - self.progress_at > _PROGRESS_S:
            return f"{behind} events unread, and nothing written for {now - self.progress_at:.0f} s{why}"
        return ""
