"""Invalid events of the last minute and in total, by reason and field, for the pages and the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from worker.config.settings import Settings
from worker.core.counters import Stats
from worker.core.log import each_time

log = logging.getLogger(__name__)

_WINDOW_S = 60.0
_LOG_EVERY_S = 60.0
_CAUSES_IN_TEXT = 3

Cause = tuple[str, str]  # reason, field; no field if the whole event is invalid


@dataclass(slots=True)
class _Total:
    """All invalid events of one cause, and where the last of them was read."""

    count: int = 0
    last_ns: int = 0
    topic: str = ""
    partition: int = 0
    offset: int = 0


class InvalidEvents:
    """Adds up the tables of all slots. `sample` is to be called about once a second."""

    def __init__(self, settings: Settings, stats: Stats) -> None:
        self._settings = settings
        self._stats = stats
        self._totals = self._read()
        self._recent = deque([(time.monotonic(), self._counts())])
        self._logged = self._counts()  # by an earlier monitor
        self._logged_at: dict[Cause, float] = {}

    def sample(self) -> None:
        """Read the counters."""
        now = time.monotonic()
        self._totals = self._read()
        self._recent.append((now, self._counts()))
        while len(self._recent) > 2 and now - self._recent[1][0] >= _WINDOW_S:
            self._recent.popleft()

    def rows(self) -> list[dict[str, Any]]:
        """Return the causes as plain data, those with most events in the last minute first."""
        before, now_ns = self._recent[0][1], time.monotonic_ns()
        rows = [
            {
                "reason": reason,
                "field": field,
                "count": total.count,
                "last_minute": total.count - before.get((reason, field), 0),
                "topic": total.topic,
                "partition": total.partition,
                "offset": total.offset,
                "age_s": max(0, now_ns - total.last_ns) / 1e9,
            }
            for (reason, field), total in self._totals.items()
        ]
        return sorted(rows, key=lambda row: (-row["last_minute"], -row["count"], row["reason"], row["field"]))

    def describe(self, per_s: float) -> str:
        """Return a text on the last minute, empty if it had no invalid events. `per_s` is their rate now."""
        rows = [row for row in self.rows() if row["last_minute"]]
        if not rows:
            return ""
        causes = [f"{_cause(row['reason'], row['field'])} {row['last_minute']}" for row in rows[:_CAUSES_IN_TEXT]]
        causes += ["…"] if len(rows) > _CAUSES_IN_TEXT else []
        rate = f"{per_s:.1f} invalid events/s" if per_s else "invalid events"
        return f"{rate} (last minute: {', '.join(causes)})"

    def log(self, *, at_end: bool = False) -> None:
        """Log each cause with new events, once a minute; with `at_end` all that is not logged yet."""
        now = time.monotonic()
        for cause, total in self._totals.items():
            count = total.count - self._logged.get(cause, 0)
            if count and (at_end or now - self._logged_at.get(cause, -_LOG_EVERY_S) >= _LOG_EVERY_S):
                self._logged[cause], self._logged_at[cause] = total.count, now
                self._log(cause, count, total)

    def _log(self, cause: Cause, count: int, last: _Total) -> None:
        log.warning(
            "%d invalid event%s (%s) went to %s; the last was %s[%d]@%d",
            count,
            "" if count == 1 else "s",
            _cause(*cause),
            self._settings.for_topic(last.topic).dead_letter_topic_name,
            last.topic,
            last.partition,
            last.offset,
            extra=each_time(reason=cause[0], field=cause[1], events=count, events_total=last.count),
        )

    def _read(self) -> dict[Cause, _Total]:
        totals: dict[Cause, _Total] = {}
        for slot in self._stats.used():
            for reject in slot.rejects.read():
                total = totals.setdefault((reject.reason, reject.field), _Total())
                total.count += reject.events
                if reject.last_ns > total.last_ns:
                    ledger = slot.ledger_at(reject.ledger)
                    total.last_ns, total.offset = reject.last_ns, reject.offset
                    total.topic, total.partition = ledger.topic, ledger.partition
        return {cause: total for cause, total in totals.items() if total.count}

    def _counts(self) -> dict[Cause, int]:
        return {cause: total.count for cause, total in self._totals.items()}


def _cause(reason: str, field: str) -> str:
    return f"{reason} in {field}" if field else reason
