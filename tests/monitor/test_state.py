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
def state(clock: Clock) -> MonitorState:
    return MonitorState(Settings(topic="events"), now=clock, error="")


def test_not_ready_before_kafka_answers(state: MonitorState, stats: Stats) -> None:
    state.error = "waiting for Kafka"
    assert state.unready_reason(stats) == "waiting for Kafka"


def test_it_is_starting_until_the_lag_is_known_or_kafka_is_unavailable(state: MonitorState, stats: Stats) -> None:
    assert state.unready_reason(stats) == "starting"
    start_slot(stats, assigned=1)
    state.topics = {"events": 1}
    for kafka_up in (None, True):
        state.kafka_up = kafka_up
        assert state.unready_reason(stats) == "starting: the lag is unknown"
    state.kafka_up = False
    assert "Kafka does not answer" in state.unready_reason(stats)


def test_ready_when_nothing_is_unread(state: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    state.record_lags([CAUGHT_UP], {"events": 1})
    assert state.unready_reason(stats) == ""


def test_not_ready_before_the_first_progress(state: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    state.record_lags([BEHIND], {"events": 1})
    assert state.unready_reason(stats) == "6 events unread, and nothing written yet"
    state.record_progress(stats, 5)
    assert state.unready_reason(stats) == ""


def test_not_ready_when_there_is_no_progress(state: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    state.record_progress(stats, 5)
    clock.now += 61
    slot.set("heartbeat_ns", int(clock.now * 1e9))
    state.record_lags([BEHIND], {"events": 1})
    state.record_progress(stats, 5)
    assert state.unready_reason(stats) == "6 events unread, and nothing written for 61 s"
    slot.set("sink_up", 0)
    assert state.unready_reason(stats) == "6 events unread, and nothing written for 61 s"
    slot.set_error("Connection refused")
    assert state.unready_reason(stats) == "6 events unread, and nothing written for 61 s: redis does not answer"


@pytest.mark.parametrize(
    ("down", "cause"),
    [
        (["clickhouse"], "clickhouse does not answer"),
        (["redis"], "redis does not answer"),
        (["redis", "clickhouse"], "redis and clickhouse do not answer"),
    ],
)
def test_the_reason_names_the_store_that_fails(state: MonitorState, stats: Stats, down: list[str], cause: str) -> None:
    state.settings = Settings(topic="events", backend="redis,clickhouse")
    slot = start_slot(stats, sink_up=0, **{f"{store}_down": 1 for store in down})
    slot.set_error("Connection refused")
    state.record_lags([BEHIND], {"events": 1})
    assert state.unready_reason(stats) == f"6 events unread, and nothing written yet: {cause}"


def test_not_ready_without_a_heartbeat(state: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    state.record_lags([CAUGHT_UP], {"events": 1})
    clock.now += 31
    assert "no consumer" in state.unready_reason(stats)
    slot.set("pid", 0)
    assert "no consumer" in state.unready_reason(stats)


def test_not_ready_when_the_lag_is_unknown(state: MonitorState, stats: Stats, clock: Clock) -> None:
    slot = start_slot(stats, assigned=1)
    state.record_lags([CAUGHT_UP], {"events": 1})
    clock.now += 20
    slot.set("heartbeat_ns", int(clock.now * 1e9))
    assert state.unready_reason(stats) == "the lag is unknown"
    state.kafka_up = False
    assert "Kafka does not answer" in state.unready_reason(stats)
    state.record_lags([], {})
    assert state.unready_reason(stats) == "the topic was deleted"


def test_a_standby_is_ready_while_the_group_makes_progress(state: MonitorState, stats: Stats) -> None:
    slot = start_slot(stats, assigned=1)
    slot.set("assigned", 0)
    state.record_lags([BEHIND], {"events": 1})
    state.record_progress(stats, 0)
    assert state.unready_reason(stats)
    state.record_lags([BEHIND._replace(committed=5)], {"events": 1})
    state.record_progress(stats, 0)
    assert state.unready_reason(stats) == ""


def test_progress_of_another_host_does_not_count_as_own(state: MonitorState, stats: Stats) -> None:
    start_slot(stats, assigned=1)
    for committed in (4, 5):
        state.record_lags([BEHIND._replace(committed=committed)], {"events": 1})
        state.record_progress(stats, 0)
    assert state.unready_reason(stats)
