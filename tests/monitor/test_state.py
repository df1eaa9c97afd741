from __future__ import annotations

import time

import pytest

from tests.support.clocks import Clock
from tests.support.slots import start_slot
from worker.config.settings import Settings
from worker.core.counters import Stats
from worker.kafka.group_lag import PartitionLag
from worker.monitor.state import MonitorState

BEHIND = PartitionLag("events", 0, start=0, end=10, committed=4, seconds=2.5, headroom=None)
CAUGHT_UP = BEHIND._replace(committed=10)


@pytest.fixture
def clock() -> Clock:
    return Clock(time.monotonic())


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def seen(clock: Clock) -> MonitorState:
    return MonitorState(Settings(topic="events"), now=clock, error="")


def test_not_ready_before_kafka_answers(seen: MonitorState, stats: Stats) -> None:
    seen.error = "waiting for Kafka"
    assert seen.unready(stats) == "waiting for Kafka"


def test_it_is_starting_until_the_lag_was_known_or_kafka_is_away(seen: MonitorState, stats: Stats) -> None:
    assert seen.unready(stats) == "starting"
    start_slot(stats, assigned=1)
    seen.topics = {"events": 1}
    for kafka_up in (None, True):
        seen.kafka_up = kafka_up
        assert seen.unready(stats) == "starting: the lag is not known yet"
    seen.kafka_up = False
    assert "Kafka does not answer" in seen.unready(stats)


def test_ready_when_nothing_is_unread(seen: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    seen.see_lags([CAUGHT_UP], {"events": 1})
    assert seen.unready(stats) == ""


def test_alive_is_not_ready_before_the_first_progress(seen: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    seen.see_lags([BEHIND], {"events": 1})
    assert seen.unready(stats) == "6 events unread, and nothing written yet"
    seen.see_progress(stats, 5)
    assert seen.unready(stats) == ""


def test_not_ready_when_nothing_moves_any_more(seen: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    seen.see_progress(stats, 5)
    clock.now += 61
    slot.set("heartbeat_ns", int(clock.now * 1e9))
    seen.see_lags([BEHIND], {"events": 1})
    seen.see_progress(stats, 5)
    assert seen.unready(stats) == "6 events unread, and nothing written for 61 s"
    slot.set("sink_up", 0)
    assert seen.unready(stats) == "6 events unread, and nothing written for 61 s"
    slot.set_error("Connection refused")
    assert seen.unready(stats) == "6 events unread, and nothing written for 61 s: redis does not answer"


def test_not_ready_without_a_heartbeat(seen: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    seen.see_lags([CAUGHT_UP], {"events": 1})
    clock.now += 31
    assert "no consumer" in seen.unready(stats)
    slot.set("pid", 0)
    assert "no consumer" in seen.unready(stats)


def test_not_ready_when_the_lag_is_not_known(seen: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    seen.see_lags([CAUGHT_UP], {"events": 1})
    clock.now += 20
    slot.set("heartbeat_ns", int(clock.now * 1e9))
    assert seen.unready(stats) == "the lag is not known yet"
    seen.kafka_up = False
    assert "Kafka does not answer" in seen.unready(stats)
    seen.see_lags([], {})
    assert seen.unready(stats) == "the topic is gone"


def test_a_standby_is_ready_while_the_group_moves(seen: MonitorState, stats: Stats) -> None:
    slot = start_slot(stats, assigned=1)
    slot.set("assigned", 0)
    seen.see_lags([BEHIND], {"events": 1})
    seen.see_progress(stats, 0)
    assert seen.unready(stats)
    seen.see_lags([BEHIND._replace(committed=5)], {"events": 1})
    seen.see_progress(stats, 0)
    assert seen.unready(stats) == ""


def test_anothers_progress_is_not_ours(seen: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    for committed in (4, 5):
        seen.see_lags([BEHIND._replace(committed=committed)], {"events": 1})
        seen.see_progress(stats, 0)
    assert seen.unready(stats)
