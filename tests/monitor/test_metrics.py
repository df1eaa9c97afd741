from __future__ import annotations

import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.slots import own_partition, start_slot
from worker.config.settings import Settings
from worker.core.accounts import Accounts
from worker.core.counters import HISTOGRAMS, STAGES, Slot, Stats
from worker.kafka.group_lag import PartitionLag
from worker.local import fetch
from worker.monitor.metrics import METRICS, Collector, Exposition
from worker.monitor.state import MonitorState

# What users' dashboards rely on: name → type and labels.
CONTRACT = {
    "messages_total": ("counter", ("outcome",)),
    "consumed_messages_total": ("counter", ()),
    "consumed_bytes_total": ("counter", ()),
    "batch_rows": ("histogram", ()),
    "stage_seconds": ("histogram", ("stage",)),
    "delivery_seconds": ("histogram", ()),
    "lag_messages": ("gauge", ("topic", "partition")),
    "lag_seconds": ("gauge", ("topic", "partition")),
    "unaccounted_messages": ("gauge", ("topic", "partition")),
    "sink_up": ("gauge", ()),
    "sink_retries_total": ("counter", ("reason",)),
    "processes": ("gauge", ()),
    "restarts_total": ("counter", ()),
    "rebalances_total": ("counter", ()),
    "partitions_assigned": ("gauge", ()),
    "devices": ("gauge", ("topic", "backend")),
}
LAG = PartitionLag("events", 0, start=0, end=10, committed=4, seconds=2.5, headroom=3600.0)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """A monitor's state without a monitor, and what Prometheus reads of it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stats = Stats()
        self.state = MonitorState(Settings(topic="events"), now=lambda: self.now)
        self.exposition = Exposition(Collector(self.stats, self.state, Accounts(self.stats)))

    def consumer(self, index: int) -> Slot:
        """Start a process in a slot, as the supervisor does."""
        return start_slot(self.stats, index)

    def text(self, accept: str = "") -> str:
        return self.exposition.text(accept)[0].decode()

    def series(self) -> Series:
        return {
            (sample.name.removeprefix("worker_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.series().get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_the_contract_is_served_under_its_names() -> None:
    for name, (kind, labels) in CONTRACT.items():
        assert METRICS[f"worker_{name}"][0::2] == (kind, labels)
    assert "version" in METRICS["worker_build_info"].labels


def test_every_metric_is_served_and_none_that_is_not_declared(scraped: Scraped) -> None:
    own_partition(scraped.consumer(0), 0, consumed=3, written=3)
    scraped.state.see_lags([LAG], {"events": 1})
    scraped.state.see_devices({"events": 7})
    served = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(scraped.text())
    }
    assert served.keys() == METRICS.keys()
    for name, family in served.items():
        assert family.samples, name
        assert (family.type, family.documentation) == (METRICS[name].type, METRICS[name].help)
        labels = set(METRICS[name].labels)
        assert {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples} == {frozenset(labels)}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0; charset=utf-8"])
def test_prometheus_own_linter_has_no_complaint(scraped: Scraped, accept: str) -> None:
    own_partition(scraped.consumer(0), 0, consumed=3, written=2)
    scraped.state.see_lags([LAG], {"events": 1})
    if accept:
        assert scraped.exposition.text(accept)[1].startswith("application/openmetrics-text")
        return  # promtool reads the other format alone
    lint = subprocess.run(
        [fetch.tool("promtool"), "check", "metrics"], input=scraped.text(), capture_output=True, text=True, check=False
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_counters_add_up_over_slots_and_survive_a_restart(scraped: Scraped) -> None:
    one, two = scraped.consumer(0), scraped.consumer(1)
    own_partition(one, 0, consumed=100, bytes=8000, written=90, dead_lettered=4, skipped=1, replayed=5)
    own_partition(two, 1, consumed=11, bytes=880, written=11)
    one.add("rejected_not_json", 4)
    one.add("retries_timeout", 2)
    one.set("cpu_ns", 5_000_000_000)
    before = scraped.series()
    one.set("pid", 0)
    one.add("cpu_ns", 1_000_000_000)  # the next process adds its own
    one.add("restarts")
    after = scraped.series()
    totals = {
        ("consumed_messages_total", ()): 111,
        ("consumed_bytes_total", ()): 8880,
        ("messages_total", (("outcome", "written"),)): 101,
        ("messages_total", (("outcome", "dead_lettered"),)): 4,
        ("messages_total", (("outcome", "skipped"),)): 1,
        ("replayed_messages_total", ()): 5,
        ("rejected_messages_total", (("reason", "not_json"),)): 4,
        ("sink_retries_total", (("reason", "timeout"),)): 2,
    }
    assert totals.items() <= before.items()
    assert totals.items() <= after.items()
    assert after["restarts_total", ()] == after["slot_restarts_total", (("slot", "0"),)] == 1
    assert after["slot_cpu_seconds_total", (("slot", "0"),)] == 6
    backwards = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert all(after[key] >= before[key] for key in backwards)


def test_gauges_of_a_dead_consumer_are_gone(scraped: Scraped) -> None:
    slot = scraped.consumer(0)
    own_partition(slot, 0, consumed=5, in_flight=5)
    assert scraped.value("in_flight_messages", topic="events", partition="0") == 5
    assert scraped.value("sink_up") == 1
    slot.set("pid", 0)
    names = {name for name, _ in scraped.series()}
    gone = {"in_flight_messages", "unaccounted_messages", "sink_up", "slot_resident_memory_bytes", "slot_paused"}
    assert not gone & names
    assert scraped.value("processes") == 0


def test_gauges_of_a_revoked_partition_are_gone(scraped: Scraped) -> None:
    slot = scraped.consumer(0)
    own_partition(slot, 0, consumed=5, written=5)
    own_partition(slot, 1, consumed=5, written=5)
    slot.ledger("events", "id", 1).set("assigned", 0)
    assert scraped.value("unaccounted_messages", topic="events", partition="0") == 0
    assert scraped.value("unaccounted_messages", topic="events", partition="1") is None


def test_a_batch_half_booked_is_no_defect(scraped: Scraped) -> None:
    slot = scraped.consumer(0)
    own_partition(slot, 0, consumed=5)
    ledger = slot.ledger("events", "id", 0)
    assert scraped.value("unaccounted_messages", topic="events", partition="0") == 0
    ledger.add("consumed", 5)  # another batch, just as short-lived
    assert scraped.value("unaccounted_messages", topic="events", partition="0") == 0
    ledger.add("written", 10)
    assert scraped.value("unaccounted_messages", topic="events", partition="0") == 0


def test_a_difference_that_stays_is_shown_even_after_the_partition_is_gone(scraped: Scraped) -> None:
    slot = scraped.consumer(0)
    own_partition(slot, 0, consumed=5, written=2)
    scraped.text()
    deadline = time.monotonic() + 60
    while scraped.value("unaccounted_messages", topic="events", partition="0") != 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    slot.ledger("events", "id", 0).set("assigned", 0)
    slot.set("pid", 0)
    assert scraped.value("unaccounted_messages", topic="events", partition="0") == 3


def test_lag_is_gone_when_kafka_has_been_silent(scraped: Scraped) -> None:
    place = {"topic": "events", "partition": "0"}
    scraped.state.see_lags([LAG], {"events": 1})
    assert scraped.value("lag_messages", **place) == 6
    assert scraped.value("lag_seconds", **place) == 2.5
    assert scraped.value("retention_headroom_seconds", **place) == 3600
    scraped.state.kafka_up = False
    scraped.now += 14
    assert scraped.value("lag_messages", **place) == 6
    scraped.now += 2
    assert not {"lag_messages", "lag_seconds", "retention_headroom_seconds"} & {name for name, _ in scraped.series()}
    assert scraped.value("kafka_up") == 0


def test_lag_is_gone_when_the_topic_is(scraped: Scraped) -> None:
    scraped.state.see_lags([LAG], {"events": 1})
    scraped.state.see_lags([], {})
    assert {name for name, _ in scraped.series()} & {"lag_messages", "topic_partitions"} == set()


def test_a_partition_without_a_leader_keeps_its_lag_for_a_while_only(scraped: Scraped) -> None:
    scraped.state.see_lags([LAG, LAG._replace(partition=1)], {"events": 2})
    scraped.now += 10
    scraped.state.see_lags([LAG], {"events": 2})
    assert [lag.partition for lag in scraped.state.lags] == [0, 1]
    scraped.now += 10
    assert [lag.partition for lag in scraped.state.lags] == [0]


def test_histograms_are_in_base_units_and_add_up(scraped: Scraped) -> None:
    one, two = scraped.consumer(0), scraped.consumer(1)
    one.observe("delivery", 300, count=10)
    two.observe("delivery", 7000)
    two.observe("batch_rows", 100_000)
    for stage in STAGES:
        one.observe(f"stage_{stage}", 2_000_000)
    assert scraped.value("delivery_seconds_count") == 11
    assert scraped.value("delivery_seconds_sum") == pytest.approx(10)
    assert scraped.value("delivery_seconds_bucket", le="0.5") == 10
    assert scraped.value("delivery_seconds_bucket", le="10.0") == 11
    assert scraped.value("batch_rows_bucket", le="100000.0") == 1
    assert scraped.value("batch_rows_bucket", le="50000.0") == 0
    for stage in STAGES:
        assert scraped.value("stage_seconds_sum", stage=stage) == pytest.approx(0.002)


def test_the_store_is_up_when_every_consumer_reaches_it(scraped: Scraped) -> None:
    scraped.consumer(0)
    other = scraped.consumer(1)
    assert scraped.value("sink_up") == 1
    other.set("sink_up", 0)
    assert scraped.value("sink_up") == 0


def test_devices_are_gone_while_the_store_does_not_answer(scraped: Scraped) -> None:
    scraped.state.see_devices({"events": 7})
    assert scraped.value("devices", topic="events", backend="redis") == 7
    scraped.state.store_up = False
    assert scraped.value("devices", topic="events", backend="redis") is None


def test_as_many_processes_are_wanted_as_there_are_partitions(scraped: Scraped) -> None:
    scraped.consumer(0)
    scraped.state.see_lags([], {"events": 4})
    assert scraped.value("processes_wanted") == 4
    assert scraped.value("processes") == 1


@pytest.fixture
def backpressured(scraped: Scraped) -> Scraped:
    """64 consumers, 256 partitions, each owned by one of them."""
    for index in range(64):
        slot = scraped.consumer(index)
        for name in HISTOGRAMS:
            slot.observe(name, 5000)
    for partition in range(256):
        own_partition(scraped.stats.slot(partition % 64), partition, consumed=1000, written=999, in_flight=1)
    scraped.state.see_lags([LAG._replace(partition=partition) for partition in range(256)], {"events": 256})
    return scraped


def test_a_scrape_of_64_slots_and_256_partitions_takes_little(backpressured: Scraped) -> None:
    """50 ms on a quiet core; the host may be slow, so the bound is on CPU time and has room."""
    spent = []
    for _ in range(7):
        started = time.process_time()
        backpressured.text()
        spent.append(time.process_time() - started)
    assert len(backpressured.series()) > 1500
    assert min(spent) < 0.05 * 4, f"{min(spent) * 1000:.0f} ms"
