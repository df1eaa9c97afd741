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
from worker.monitor.state import MonitorState
from worker.monitor.status import HISTORY, Status


class Shown:
    """A status page over counters that a test sets."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.seen = MonitorState(Settings(topic="events"), error="")
        self.accounts = Accounts(self.stats)
        self.status = Status(self.stats, self.seen, self.accounts)

    def consumer(self, index: int) -> Slot:
        return start_slot(self.stats, index, sink_up=0)

    def sample(self) -> None:
        self.status.sample(self.accounts.read())

    def json(self, **query: str) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(self.status.json(Request(query, "")).body)
        return answer


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_a_partition_names_its_owner(shown: Shown) -> None:
    ledger = shown.consumer(3).ledger("events", "id", 1)
    ledger.set("assigned", 1)
    shown.seen.see_lags([PartitionLag("events", p, 0, 10, 4, 2.0, None) for p in (0, 1)], {"events": 2})
    assert [(item["partition"], item["owner"]) for item in shown.json()["partitions"]] == [(0, None), (1, 3)]


def test_each_topic_is_shown_with_its_partitions_and_devices(shown: Shown) -> None:
    lags = [PartitionLag(topic, 0, 0, 10, 4, 2.0, None) for topic in ("alarms", "events")]
    shown.seen.see_lags(lags, {"events": 1, "alarms": 1})
    shown.seen.see_devices({"events": 5, "alarms": 7}, 9)
    page = shown.json()
    assert page["devices"] == 9
    assert {one["topic"]: one["devices"] for one in page["topics"]} == {"events": 5, "alarms": 7}
    assert [(one["topic"], one["partition"]) for one in page["partitions"]] == [("alarms", 0), ("events", 0)]
    shown.seen.see_lags(lags[1:], {"events": 1})
    assert [one["topic"] for one in shown.json()["partitions"]] == ["events"]


def test_an_error_that_many_have_is_listed_once(shown: Shown) -> None:
    for turn in range(3):
        for index in (1, 0):
            shown.consumer(index).set_error("Redis is down" if turn < 2 else "Redis is full")
            shown.sample()
    errors = [(error["who"], error["text"], error["times"]) for error in shown.json()["errors"]]
    everybody = ["consumer 0", "consumer 1"]
    assert errors == [(everybody, "Redis is full", 2), (everybody, "Redis is down", 4)]


def test_the_same_error_seen_again_is_no_new_one(shown: Shown) -> None:
    shown.consumer(0).set_error("once")
    for _ in range(5):
        shown.sample()
    assert [error["times"] for error in shown.json()["errors"]] == [1]


def test_the_history_goes_on_from_where_a_page_has_it(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.monitor.status._EVERY_S", 0.0)
    for _ in range(1000):
        shown.sample()
    history = shown.json()["history"]
    assert len(history) == 450
    assert all(len(point) == len(HISTORY) for point in history)
    assert shown.json(since=str(history[-1][0]))["history"] == []
    assert shown.status.json(Request({"since": "soon"}, "")).status == 400


def test_unknown_lag_is_a_gap_and_no_zero(shown: Shown) -> None:
    shown.sample()
    (point,) = shown.json()["history"]
    assert dict(zip(HISTORY, point, strict=True))["lag"] is None
    assert shown.json()["lag"] is None


def test_cpu_is_a_share_of_one_core_of_the_same_process(shown: Shown) -> None:
    slot = shown.consumer(0)
    slot.set("cpu_ns", 5_000_000_000)
    shown.sample()
    assert shown.json()["processes"][0]["cpu"] is None
    began = time.monotonic()
    while time.monotonic() - began < 0.2:
        pass
    slot.set("cpu_ns", 5_100_000_000)
    shown.sample()
    cpu = shown.json()["processes"][0]["cpu"]
    assert 0 < cpu <= 0.5
    slot.set("pid", 4711)
    shown.sample()
    assert shown.json()["processes"][0]["cpu"] is None


def test_the_page_is_one_html_file(shown: Shown) -> None:
    response = shown.status.page(Request({}, ""))
    assert response.content_type.startswith("text/html")
    assert response.body.startswith(b"<!doctype html>")
