"""Finds partitions that the group has assigned to nobody. No I/O.

The leader of a classic group assigns the partitions that its metadata shows at that moment. While a topic is being
recreated, or a broker is starting, the metadata shows none. Then every member gets an empty assignment, and librdkafka,
to which the topic looks the same before and after, does not rejoin. Seen with Kafka 4.3.1 and librdkafka 2.16: for
ever. Only a leader that rejoins triggers a new assignment, so each host of the group checks on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from worker.core.records import Key
from worker.kafka.group_lag import PartitionLag

_STALLED_S = 30.0  # longer than a session timeout: a killed member holds its partitions that long
_MAX_PAUSE_S = 600.0


class UnownedPartitions:
    """Finds partitions with unread events that no consumer here owns, and whose commit does not advance."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since: dict[Key, tuple[int, float]] = {}  # unread and not owned → (committed offset, since when)
        self._pause = _STALLED_S
        self._due = 0.0

    def find(self, lags: Sequence[PartitionLag], owned: Collection[Key]) -> list[Key]:
        """Return the partitions that need a new assignment now; empty while the pause after the last request lasts.

        Another host may own them and be slow, so the pause doubles with each request, up to ten minutes.
        """
        now = self._now()
        waiting = {lag.key: lag.position for lag in lags if lag.messages and lag.key not in owned}
        self._since = {
            key: before if (before := self._since.get(key)) and before[0] == position else (position, now)
            for key, position in waiting.items()
        }
        unowned = [key for key, (_, since) in self._since.items() if now - since >= _STALLED_S]
        if not unowned:
            self._pause = _STALLED_S
        if not unowned or now < self._due:
            return []
        self._due = now + self._pause
        self._pause = min(2 * self._pause, _MAX_PAUSE_S)
        return sorted(unowned)
