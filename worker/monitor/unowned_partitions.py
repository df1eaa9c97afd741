"""Partitions that wait for a reader, of which the group does not know. No I/O.

The leader of a classic group shares out what its metadata shows at that moment. A topic that is just being made
again, or a broker that is just coming up, shows none: every member is then given nothing, and librdkafka, to which the
topic looks the same before and after, does not ask again. Seen on Kafka 4.3.1 with librdkafka 2.16: for ever. A leader
that joins again has everything shared out anew (others change nothing), so each host of the group looks for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from worker.core.records import Key
from worker.kafka.group_lag import PartitionLag

_STILL_S = 30.0  # longer than a session: who was killed holds its partitions so long
_CAP_S = 600.0


class UnownedPartitions:
    """Finds partitions with unread events that no consumer of this supervisor owns, and whose commit stands still."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since: dict[Key, tuple[int, float]] = {}  # the commit of those that wait, and when it was first seen
        self._pause = _STILL_S
        self._due = 0.0

    def look(self, lags: Sequence[PartitionLag], owned: Collection[Key]) -> list[Key]:
        """Return those for which the group is to share its partitions out anew, now; nothing where it is not time.

        Another host may own them and be slow: the pauses between two times double, up to ten minutes.
        """
        now = self._now()
        waiting = {lag.key: lag.position for lag in lags if lag.messages and lag.key not in owned}
        self._since = {
            key: known if (known := self._since.get(key)) and known[0] == position else (position, now)
            for key, position in waiting.items()
        }
        unowned = [key for key, (_, since) in self._since.items() if now - since >= _STILL_S]
        if not unowned:
            self._pause = _STILL_S
        if not unowned or now < self._due:
            return []
        self._due = now + self._pause
        self._pause = min(2 * self._pause, _CAP_S)
        return sorted(unowned)
