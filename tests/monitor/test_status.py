from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from tests.support.slots import start_slot
from worker.config.settings import Settings
from worker.core.accounts import Accounts
from worker.core.counters import Slot, Stats
from worker.kafka.group_lag import PartitionLag
from worker.monitor.http import Request
from worker.monitor.invalid_events import InvalidEvents
from worker.monitor.state import MonitorState
from worker.monitor.status import HISTORY, Status


class StatusPage:
    """A status page over counters that a test sets."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.state = MonitorState(Settings(topic="events"), error="")
        self.accounts = Accounts(self.stats)
        self.invalid = InvalidEvents(self.state.settings, self.stats)
        self.status = Status(self.stats, self.state, self.accounts, self.invalid)

    def consumer(self, index: int) -> Slot:
        return start_slot(self.stats, index, sink_up=0)

    def sample(self) -> None:
        self.status.sample(self.accounts.read())

    def json(self, **query: str) -> dict[str, Any]:
        status: dict[str, Any] = orjson.loads(self.status.json(Request(query, "")).body)
        return status


@pytest.fixture
def status_page() -> StatusPage:
    return StatusPage()


def test_a_partition_names_its_owner(status_page: StatusPage) -> None:
    ledger = status_page.consumer(3).ledger("events", "id", 1)
    ledger.set("assigned", 1)
    status_page.state.record_lags([PartitionLag("events", p, 0, 10, 4, 2.0, None) for p in (0, 1)], {"events": 2})
    assert [(item["partition"], item["owner"]) for item in status_page.json()["partitions"]] == [(0, None), (1, 3)]


def test_each_topic_is_shown_with_its_partitions_and_devices(status_page: StatusPage) -> None:
    lags = [PartitionLag(topic, 0, 0, 10, 4, 2.0, None) for topic in ("alarms", "events")]
    status_page.state.record_lags(lags, {"events": 1, "alarms": 1})
    status_page.state.record_devices({"events": 5, "alarms": 7}, 9)
    page = status_page.json()
    assert page["devices"] == 9
    assert {topic["topic"]: topic["devices"] for topic in page["topics"]} == {"events": 5, "alarms": 7}
    assert [(item["topic"], item["partition"]) for item in page["partitions"]] == [("alarms", 0), ("events", 0)]
    status_page.state.record_lags(lags[1:], {"events": 1})
    assert [item["topic"] for item in status_page.json()["partitions"]] == ["events"]


def test_an_error_of_several_processes_is_listed_once(status_page: StatusPage) -> None:
    for sample in range(3):
        for index in (1, 0):
            status_page.consumer(index).set_error("Redis is down" if sample < 2 else "Redis is full")
            status_page.sample()
    errors = [(error["who"], error["text"], error["times"]) for error in status_page.json()["errors"]]
    both = ["consumer 0", "consumer 1"]
    assert errors == [(both, "Redis is full", 2), (both, "Redis is down", 4)]


def test_an_error_whose_numbers_change_is_listed_once(status_page: StatusPage) -> None:
    slot = status_page.consumer(0)
    for elapsed in range(5):
        slot.set_error(f"no answer after {elapsed} ms")
        status_page.sample()
    assert [(error["text"], error["times"]) for error in status_page.json()["errors"]] == [("no answer after 4 ms", 5)]


def test_an_unchanged_error_is_counted_once(status_page: StatusPage) -> None:
    status_page.consumer(0).set_error("once")
    for _ in range(5):
        status_page.sample()
    assert [error["times"] for error in status_page.json()["errors"]] == [1]


def test_the_history_continues_after_the_last_point_of_a_page(
    status_page: StatusPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.monitor.status._SAMPLE_S", 0.0)
    for _ in range(1000):
        status_page.sample()
    history = status_page.json()["history"]
    assert len(history) == 450
    assert all(len(point) == len(HISTORY) for point in history)
    assert status_page.json(since=str(history[-1][0]))["history"] == []
    assert status_page.status.json(Request({"since": "soon"}, "")).status == 400


def test_unknown_lag_is_null_and_not_zero(status_page: StatusPage) -> None:
    status_page.sample()
    (point,) = status_page.json()["history"]
    assert dict(zip(HISTORY, point, strict=True))["lag"] is None
    assert status_page.json()["lag"] is None


def test_cpu_is_a_share_of_one_core_of_one_process(status_page: StatusPage) -> None:
    slot = status_page.consumer(0)
    slot.set("cpu_ns", 5_000_000_000)
    status_page.sample()
    assert status_page.json()["processes"][0]["cpu"] is None
    began = time.monotonic()
    while time.monotonic() - began < 0.2:
        pass
    slot.set("cpu_ns", 5_100_000_000)
    status_page.sample()
    cpu = status_page.json()["processes"][0]["cpu"]
    assert 0 < cpu <= 0.5
    slot.set("pid", 4711)
    status_page.sample()
    assert status_page.json()["processes"][0]["cpu"] is None


def test_the_page_is_one_html_file(status_page: StatusPage) -> None:
    response = status_page.status.page(Request({}, ""))
    assert response.content_type.startswith("text/html")
    assert response.body.startswith(b"<!doctype html>")


def test_invalid_events_are_shown_by_reason_and_field(status_page: StatusPage) -> None:
    slot = status_page.consumer(0)
    status_page.sample()
    assert status_page.json()["invalid"] == {"text": "", "causes": []}
    slot.add_rejects(slot.ledger("events", "id", 7), "wrong_type", "error_code", 1500, 12345)
    status_page.invalid.sample()
    invalid = status_page.json()["invalid"]
    assert invalid["text"] == "invalid events (last minute: wrong_type in error_code 1500)"
    (cause,) = invalid["causes"]
    assert cause.pop("age_s") >= 0
    assert cause == {
        "reason": "wrong_type",
        "field": "error_code",
        "count": 1500,
        "last_minute": 1500,
        "topic": "events",
        "partition": 7,
        "offset": 12345,
    }
