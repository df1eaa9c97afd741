"""Invalid events by reason and field: the sums over slots, the last minute, and the lines in the log."""

from __future__ import annotations

import logging

import pytest

from tests.support.clocks import Clock
from tests.support.slots import start_slot
from worker.config.settings import Settings
from worker.core.counters import Slot, Stats
from worker.monitor.invalid_events import InvalidEvents

SETTINGS = Settings(topic="events")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("worker.monitor.invalid_events.time.monotonic", clock)
    return clock


@pytest.fixture
def stats() -> Stats:
    return Stats()


def reject(slot: Slot, count: int, offset: int, reason: str = "wrong_type", field: str = "error_code") -> None:
    slot.add_rejects(slot.ledger("events", "id", slot.index), reason, field, count, offset)


def test_slots_are_added_up_and_the_last_origin_is_that_of_all(stats: Stats) -> None:
    invalid = InvalidEvents(SETTINGS, stats)
    for index, offset in ((1, 70), (0, 50)):
        reject(start_slot(stats, index), 10, offset)
    reject(stats.slot(1), 1, 99, "not_json", "")
    invalid.sample()
    shown = [(row["reason"], row["field"], row["count"], row["partition"], row["offset"]) for row in invalid.rows()]
    assert shown == [("wrong_type", "error_code", 20, 0, 50), ("not_json", "", 1, 1, 99)]
    assert all(0 <= row["age_s"] < 60 for row in invalid.rows())


def test_the_text_is_of_the_last_minute(stats: Stats, clock: Clock) -> None:
    invalid = InvalidEvents(SETTINGS, stats)
    assert invalid.describe(0.0) == ""
    slot = start_slot(stats)
    for second in range(90):
        clock.now += 1
        if second < 30:
            reject(slot, 25, second)
        invalid.sample()
        if second == 29:
            assert invalid.describe(25.0) == "25.0 invalid events/s (last minute: wrong_type in error_code 750)"
    assert invalid.describe(0.0) == ""
    assert [(row["count"], row["last_minute"]) for row in invalid.rows()] == [(750, 0)]
    for field in "abcd":
        reject(slot, ord(field), 1, "missing_field", field)
    invalid.sample()
    causes = "missing_field in d 100, missing_field in c 99, missing_field in b 98, …"
    assert invalid.describe(0.0) == f"invalid events (last minute: {causes})"


def test_each_cause_is_logged_once_a_minute_and_all_at_the_end(
    stats: Stats, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    invalid = InvalidEvents(SETTINGS, stats)
    slot = start_slot(stats)
    with caplog.at_level(logging.WARNING):
        for second in range(100):
            clock.now += 1
            reject(slot, 25, second)
            if second == 10:
                reject(slot, 1, 3, "not_json", "")
            invalid.sample()
            invalid.log()
        invalid.sample()
        invalid.log(at_end=True)
        invalid.log(at_end=True)
    assert [record.getMessage() for record in caplog.records] == [
        "25 invalid events (wrong_type in error_code) went to events.dlq; the last was events[0]@0",
        "1 invalid event (not_json) went to events.dlq; the last was events[0]@3",
        "1500 invalid events (wrong_type in error_code) went to events.dlq; the last was events[0]@60",
        "975 invalid events (wrong_type in error_code) went to events.dlq; the last was events[0]@99",
    ]
    assert sum(getattr(record, "fields")["events"] for record in caplog.records) == 2501  # noqa: B009
    assert all(getattr(record, "each_time") for record in caplog.records)  # noqa: B009


def test_a_restarted_monitor_does_not_log_again(stats: Stats, caplog: pytest.LogCaptureFixture) -> None:
    reject(start_slot(stats), 25, 1)
    invalid = InvalidEvents(SETTINGS, stats)
    with caplog.at_level(logging.WARNING):
        invalid.sample()
        invalid.log(at_end=True)
        assert caplog.records == []
        reject(stats.slot(0), 1, 2)
        invalid.sample()
        invalid.log()
    (record,) = caplog.records
    assert record.getMessage().startswith("1 invalid event (")
