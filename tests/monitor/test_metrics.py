from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support.slots import own_partition, start_slot
from worker.config.settings import Settings
from worker.core.accounts import Accounts
from worker.core.counters import HISTOGRAMS, STAGES, Slot, Stats
from worker.kafka.group_lag import PartitionLag
from worker.local import fetch
from worker.monitor.metrics import METRICS, Collector, Exposition
from worker.monitor.state import MonitorState

# Users' dashboards rely on these: name → type and labels.
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
    "sink_up": ("gauge", ("backend",)),
    "sink_retries_total": ("counter", ("reason", "backend")),
    "processes": ("gauge", ()),
    "restarts_total": ("counter", ()),
    "rebalances_total": ("counter", ()),
    "partitions_assigned": ("gauge", ()),
    "devices": ("gauge", ("topic", "backend")),
}
LAG = PartitionLag("events", 0, start=0, end=10, committed=4, seconds=2.5, headroom=3600.0)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scrape:
    """A monitor's state without a monitor, and the metrics that Prometheus reads from it."""

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
def scrape() -> Scrape:
    return Scrape()


def test_the_contract_is_served_under_its_names() -> None:
    for name, (kind, labels) in CONTRACT.items():
        assert METRICS[f"worker_{name}"][0::2] == (kind, labels)
    assert "version" in METRICS["worker_build_info"].labels


def test_exactly_the_declared_metrics_are_served(scrape: Scrape) -> None:
    own_partition(scrape.consumer(0), 0, consumed=3, written=3)
    scrape.state.record_lags([LAG], {"events": 1})
    scrape.state.record_devices({"events": 7}, 7, {("events", "hour"): 3})
    served = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(scrape.text())
    }
    assert served.keys() == METRICS.keys()
    for name, family in served.items():
        assert family.samples, name
        assert (family.type, family.documentation) == (METRICS[name].type, METRICS[name].help)
        labels = set(METRICS[name].labels)
        assert {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples} == {frozenset(labels)}


def test_openmetrics_has_the_same_samples(scrape: Scrape) -> None:
    own_partition(scrape.consumer(0), 0, consumed=3, written=2)
    scrape.state.record_lags([LAG], {"events": 1})
    accept = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    body, content_type = scrape.exposition.text(accept)
    assert content_type.startswith("application/openmetrics-text")

    def names(families: Iterable[Metric]) -> set[str]:
        return {sample.name for family in families for sample in family.samples}

    plain = names(text_string_to_metric_families(scrape.text()))
    families = openmetrics.text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
    assert names(families) == plain


def test_the_linter_of_prometheus_accepts_the_metrics(scrape: Scrape) -> None:
    own_partition(scrape.consumer(0), 0, consumed=3, written=2)
    scrape.state.record_lags([LAG], {"events": 1})
    lint = subprocess.run(
        [fetch.tool("promtool"), "check", "metrics"], input=scrape.text(), capture_output=True, text=True, check=False
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_counters_add_up_over_slots_and_survive_a_restart(scrape: Scrape) -> None:
    first, second = scrape.consumer(0), scrape.consumer(1)
    own_partition(first, 0, consumed=100, bytes=8000, written=90, dead_lettered=4, skipped=1, replayed=5)
    own_partition(second, 1, consumed=11, bytes=880, written=11)
    first.add("rejected_not_json", 4)
    first.add("retries_redis_timeout", 2)
    first.set("cpu_ns", 5_000_000_000)
    before = scrape.series()
    first.set("pid", 0)
    first.add("cpu_ns", 1_000_000_000)  # by the next process
    first.add("restarts")
    after = scrape.series()
    totals = {
        ("consumed_messages_total", ()): 111,
        ("consumed_bytes_total", ()): 8880,
        ("messages_total", (("outcome", "written"),)): 101,
        ("messages_total", (("outcome", "dead_lettered"),)): 4,
        ("messages_total", (("outcome", "skipped"),)): 1,
        ("replayed_messages_total", ()): 5,
        ("rejected_messages_total", (("reason", "not_json"),)): 4,
        ("sink_retries_total", (("backend", "redis"), ("reason", "timeout"))): 2,
    }
    assert totals.items() <= before.items()
    assert totals.items() <= after.items()
    assert after["restarts_total", ()] == after["slot_restarts_total", (("slot", "0"),)] == 1
    assert after["slot_cpu_seconds_total", (("slot", "0"),)] == 6
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert all(after[key] >= before[key] for key in counters)


def test_gauges_of_a_dead_consumer_are_removed(scrape: Scrape) -> None:
    slot = scrape.consumer(0)
    own_partition(slot, 0, consumed=5, in_flight=5)
    assert scrape.value("in_flight_messages", topic="events", partition="0") == 5
    assert scrape.value("sink_up", backend="redis") == 1
    slot.set("pid", 0)
    names = {name for name, _ in scrape.series()}
    removed = {"in_flight_messages", "unaccounted_messages", "sink_up", "slot_resident_memory_bytes", "slot_paused"}
    assert not removed & names
    assert scrape.value("processes") == 0


def test_gauges_of_a_revoked_partition_are_removed(scrape: Scrape) -> None:
    slot = scrape.consumer(0)
    own_partition(slot, 0, consumed=5, written=5)
    own_partition(slot, 1, consumed=5, written=5)
    slot.ledger("events", "id", 1).set("assigned", 0)
    assert scrape.value("unaccounted_messages", topic="events", partition="0") == 0
    assert scrape.value("unaccounted_messages", topic="events", partition="1") is None


def test_a_batch_between_two_accounts_is_no_defect(scrape: Scrape) -> None:
    slot = scrape.consumer(0)
    own_partition(slot, 0, consumed=5)
    ledger = slot.ledger("events", "id", 0)
    assert scrape.value("unaccounted_messages", topic="events", partition="0") == 0
    ledger.add("consumed", 5)  # another batch, read in the meantime
    assert scrape.value("unaccounted_messages", topic="events", partition="0") == 0
    ledger.add("written", 10)
    assert scrape.value("unaccounted_messages", topic="events", partition="0") == 0


def test_a_permanent_difference_is_shown_even_after_the_partition_is_revoked(scrape: Scrape) -> None:
    slot = scrape.consumer(0)
    own_partition(slot, 0, consumed=5, written=2)
    scrape.text()
    deadline = time.monotonic() + 60
    while scrape.value("unaccounted_messages", topic="events", partition="0") != 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    slot.ledger("events", "id", 0).set("assigned", 0)
    slot.set("pid", 0)
    assert scrape.value("unaccounted_messages", topic="events", partition="0") == 3


def test_lag_is_removed_when_kafka_does_not_answer(scrape: Scrape) -> None:
    partition = {"topic": "events", "partition": "0"}
    scrape.state.record_lags([LAG], {"events": 1})
    assert scrape.value("lag_messages", **partition) == 6
    assert scrape.value("lag_seconds", **partition) == 2.5
    assert scrape.value("retention_headroom_seconds", **partition) == 3600
    scrape.state.kafka_up = False
    scrape.now += 14
    assert scrape.value("lag_messages", **partition) == 6
    scrape.now += 2
    assert not {"lag_messages", "lag_seconds", "retention_headroom_seconds"} & {name for name, _ in scrape.series()}
    assert scrape.value("kafka_up") == 0


def test_lag_is_removed_with_its_topic(scrape: Scrape) -> None:
    scrape.state.record_lags([LAG], {"events": 1})
    scrape.state.record_lags([], {})
    assert {name for name, _ in scrape.series()} & {"lag_messages", "topic_partitions"} == set()


def test_a_partition_without_a_leader_keeps_its_lag_for_15_seconds(scrape: Scrape) -> None:
    scrape.state.record_lags([LAG, LAG._replace(partition=1)], {"events": 2})
    scrape.now += 10
    scrape.state.record_lags([LAG], {"events": 2})
    assert [lag.partition for lag in scrape.state.lags] == [0, 1]
    scrape.now += 10
    assert [lag.partition for lag in scrape.state.lags] == [0]


def test_histograms_are_in_base_units_and_add_up(scrape: Scrape) -> None:
    first, second = scrape.consumer(0), scrape.consumer(1)
    first.observe("delivery", 300, count=10)
    second.observe("delivery", 7000)
    second.observe("batch_rows", 100_000)
    for stage in STAGES:
        first.observe(f"stage_{stage}", 2_000_000)
    assert scrape.value("delivery_seconds_count") == 11
    assert scrape.value("delivery_seconds_sum") == pytest.approx(10)
    assert scrape.value("delivery_seconds_bucket", le="0.5") == 10
    assert scrape.value("delivery_seconds_bucket", le="10.0") == 11
    assert scrape.value("batch_rows_bucket", le="100000.0") == 1
    assert scrape.value("batch_rows_bucket", le="50000.0") == 0
    for stage in STAGES:
        assert scrape.value("stage_seconds_sum", stage=stage) == pytest.approx(0.002)


def test_the_store_is_up_when_every_consumer_reaches_it(scrape: Scrape) -> None:
    scrape.consumer(0)
    other = scrape.consumer(1)
    assert scrape.value("sink_up", backend="redis") == 1
    other.set("sink_up", 0)
    assert scrape.value("sink_up", backend="redis") == 0


def test_the_store_that_fails_is_named(scrape: Scrape) -> None:
    scrape.state.settings = Settings(topic="events", backend="redis,clickhouse")
    slot, other = scrape.consumer(0), scrape.consumer(1)

    def up() -> tuple[float | None, float | None]:
        return scrape.value("sink_up", backend="redis"), scrape.value("sink_up", backend="clickhouse")

    assert up() == (1, 1)
    slot.set("sink_up", 0)  # as before the first answer
    assert up() == (0, 0)
    slot.set("clickhouse_down", 1)
    assert up() == (1, 0)
    other.set("sink_up", 0)
    other.set("redis_down", 1)
    assert up() == (0, 0)
    slot.add("retries_clickhouse_timeout", 2)
    slot.add("retries_kafka_other", 1)
    assert scrape.value("sink_retries_total", backend="clickhouse", reason="timeout") == 2
    assert scrape.value("sink_retries_total", backend="redis", reason="timeout") == 0
    assert scrape.value("sink_retries_total", backend="kafka", reason="other") == 1


def test_devices_are_removed_while_the_store_does_not_answer(scrape: Scrape) -> None:
    scrape.state.record_devices({"events": 7}, 7, {("events", "hour"): 3})
    assert scrape.value("devices", topic="events", backend="redis") == 7
    assert scrape.value("window_devices", topic="events", window="hour") == 3
    scrape.state.store_up = False
    assert scrape.value("devices", topic="events", backend="redis") is None
    assert scrape.value("window_devices", topic="events", window="hour") is None


def test_one_process_is_wanted_for_each_partition(scrape: Scrape) -> None:
    scrape.consumer(0)
    scrape.state.record_lags([], {"events": 4})
    assert scrape.value("processes_wanted") == 4
    assert scrape.value("processes") == 1


@pytest.fixture
def large_scrape(scrape: Scrape) -> Scrape:
    """64 consumers, 256 partitions, each owned by one of them."""
    for index in range(64):
        slot = scrape.consumer(index)
        for name in HISTOGRAMS:
            slot.observe(name, 5000)
    for partition in range(256):
        own_partition(scrape.stats.slot(partition % 64), partition, consumed=1000, written=999, in_flight=1)
    scrape.state.record_lags([LAG._replace(partition=partition) for partition in range(256)], {"events": 256})
    return scrape


def test_a_scrape_of_64_slots_and_256_partitions_is_cheap(large_scrape: Scrape) -> None:
    """50 ms on a quiet core. The host may be slow, so the limit is on CPU time and is four times as high."""
    cpu_seconds = []
    for _ in range(7):
        started = time.process_time()
        large_scrape.text()
        cpu_seconds.append(time.process_time() - started)
    assert len(large_scrape.series()) > 1500
    assert min(cpu_seconds) < 0.05 * 4, f"{min(cpu_seconds) * 1000:.0f} ms"
