"""The definition of every metric, and the collector that reads them from the shared counters at scrape time.

This module counts and stores nothing: the consumers' cells are the counters. So a scrape costs the consumers nothing,
the counters of a dead consumer stay while its gauges disappear, and no counter decreases when the monitor restarts.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from worker.core.accounts import Accounts, running_slots
from worker.core.counters import HISTOGRAMS, REJECT_REASONS, RETRY_REASONS, STAGES, Slot, Stats
from worker.core.native import reader_in_use
from worker.core.version import version_text
from worker.kafka.properties import librdkafka_version
from worker.monitor.state import MonitorState, is_store_up

_OUTCOMES = ("written", "dead_lettered", "skipped")
_PARTITION = ("topic", "partition")
_BUILD = ("version", "python", "librdkafka", "topic", "backend", "group", "reader")


class Kind(NamedTuple):
    """A metric's type, meaning and labels; its unit is in its name."""

    type: str
    help: str
    labels: tuple[str, ...] = ()


def _counter(help: str, *labels: str) -> Kind:
    return Kind("counter", help, labels)


def _gauge(help: str, *labels: str) -> Kind:
    return Kind("gauge", help, labels)


def _histogram(help: str, *labels: str) -> Kind:
    return Kind("histogram", help, labels)


METRICS: dict[str, Kind] = {
    # the ledger: consumed = written + dead_lettered + skipped + replayed + in flight
    "worker_consumed_messages_total": _counter("Events read from Kafka"),
    "worker_consumed_bytes_total": _counter("Payload bytes of the events read from Kafka"),
    "worker_messages_total": _counter(
        "Events written to the store, written to the dead-letter topic, or skipped by a rule", "outcome"
    ),
    "worker_replayed_messages_total": _counter("Events read here that another read of the same offsets accounts for"),
    "worker_in_flight_messages": _gauge("Events read and not yet acknowledged", *_PARTITION),
    "worker_unaccounted_messages": _gauge(
        "Events read that are in no account of the ledger; a value other than 0 is a defect", *_PARTITION
    ),
    "worker_rejected_messages_total": _counter("Events rejected because of their content, by reason", "reason"),
    # lag
    "worker_lag_messages": _gauge(
        "Events up to the end of the readable log that the group has not committed", *_PARTITION
    ),
    "worker_lag_seconds": _gauge(
        "Age of the oldest event that the group has not committed; 0 if there is none", *_PARTITION
    ),
    "worker_retention_headroom_seconds": _gauge(
        "Time until retention removes an event that the group has not committed", *_PARTITION
    ),
    "worker_delivery_seconds": _histogram("Time from an event's Kafka timestamp to the acknowledgement of the store"),
    # time per step
    "worker_stage_seconds": _histogram(
        "Duration of a step of a consumer; writes overlap with the other steps", "stage"
    ),
    "worker_batch_rows": _histogram("Rows per batch"),
    # the store and Kafka
    "worker_sink_up": _gauge("1 while every consumer can reach the store", "backend"),
    "worker_sink_retries_total": _counter("Retries of writes, commits and connection attempts", "reason", "backend"),
    "worker_kafka_up": _gauge("1 while Kafka answers the monitor"),
    "worker_topic_partitions": _gauge("Partitions of the topic", "topic"),
    "worker_devices": _gauge("Distinct devices in the store at the last count", "topic", "backend"),
    "worker_evolved_columns_total": _counter("Columns that --evolve has added"),
    "worker_evolve_errors_total": _counter("Rounds of --evolve that failed, of each topic"),
    "worker_window_devices": _gauge(
        "Distinct devices of the last closed minute, hour and day (--windows); late events change it", "topic", "window"
    ),
    # the processes
    "worker_processes": _gauge("Running consumer processes"),
    "worker_processes_wanted": _gauge("Number of consumer processes that should run"),
    "worker_partitions_assigned": _gauge("Partitions assigned to the consumers of this supervisor"),
    "worker_rebalances_total": _counter("Partition assignments received by consumers"),
    "worker_restarts_total": _counter("Restarts of consumers"),
    "worker_slot_restarts_total": _counter("Restarts of the consumer in this slot", "slot"),
    "worker_slot_cpu_seconds_total": _counter("CPU time of all consumers in this slot, past ones included", "slot"),
    "worker_slot_resident_memory_bytes": _gauge("Resident memory of the consumer", "slot"),
    "worker_slot_start_time_seconds": _gauge("Start time of the consumer, in seconds since the epoch", "slot"),
    "worker_slot_heartbeat_age_seconds": _gauge("Time since the last iteration of the consumer's loop", "slot"),
    "worker_slot_paused": _gauge(
        "1 while reading is paused because the store is slower than the topic, or unavailable", "slot"
    ),
    "worker_dropped_log_lines_total": _counter("Log lines dropped because nothing read stderr"),
    "worker_build_info": _gauge("Versions and configuration of this worker; always 1", *_BUILD),
}


class Collector:
    """All of METRICS, read at scrape time."""

    def __init__(self, stats: Stats, state: MonitorState, accounts: Accounts) -> None:
        self._stats = stats
        self._state = state
        self._accounts = accounts
        self._used: list[Slot] = []
        self._build = [version_text(), platform.python_version(), librdkafka_version()]
        settings = state.settings
        self._build += [settings.topic, settings.backend, settings.group_id, reader_in_use(settings.reader)]

    def describe(self) -> list[Metric]:
        """Return nothing: which metrics exist depends on the running processes."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families, without gauges of processes and partitions that no longer exist."""
        self._used = list(self._stats.used())  # once per scrape: it is a third of the cost of reading
        yield from self._ledger()
        yield from self._lag()
        yield from self._histograms()
        yield from self._services()
        yield from self._processes()

    def _ledger(self) -> Iterator[Metric]:
        sums = self._accounts.read()
        total = sums.total
        yield _family("worker_consumed_messages_total", {(): total["consumed"]})
        yield _family("worker_consumed_bytes_total", {(): total["bytes"]})
        yield _family("worker_messages_total", {(outcome,): total[outcome] for outcome in _OUTCOMES})
        yield _family("worker_replayed_messages_total", {(): total["replayed"]})
        yield _family("worker_in_flight_messages", _by_partition(sums.in_flight))
        yield _family("worker_unaccounted_messages", _by_partition(sums.unaccounted))
        rejected = {(reason,): self._sum(f"rejected_{reason}") for reason in REJECT_REASONS}
        yield _family("worker_rejected_messages_total", rejected)

    def _lag(self) -> Iterator[Metric]:
        lags = self._state.lags
        yield _family("worker_lag_messages", {(lag.topic, str(lag.partition)): lag.messages for lag in lags})
        yield _family("worker_lag_seconds", {(lag.topic, str(lag.partition)): lag.seconds for lag in lags})
        headroom = {(lag.topic, str(lag.partition)): lag.headroom for lag in lags if lag.headroom is not None}
        yield _family("worker_retention_headroom_seconds", headroom)

    def _histograms(self) -> Iterator[Metric]:
        yield self._histogram("worker_delivery_seconds", {(): "delivery"})
        yield self._histogram("worker_stage_seconds", {(stage,): f"stage_{stage}" for stage in STAGES})
        yield self._histogram("worker_batch_rows", {(): "batch_rows"})

    def _histogram(self, name: str, cells: dict[tuple[str, ...], str]) -> Metric:
        kind = METRICS[name]
        family = HistogramMetricFamily(name, kind.help, labels=kind.labels)
        for labels, cell in cells.items():
            unit = HISTOGRAMS[cell].unit
            bounds = [*(str(bound / unit) for bound in HISTOGRAMS[cell].bounds), "+Inf"]
            counts, total = [0] * len(bounds), 0
            for slot in self._used:
                slot_counts, slot_total = slot.histogram(cell)
                counts = [a + b for a, b in zip(counts, slot_counts, strict=True)]
                total += slot_total
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total / unit)
        return family

    def _services(self) -> Iterator[Metric]:
        state, settings = self._state, self._state.settings
        running = running_slots(self._stats)
        sinks_up = {
            (store,): int(all(is_store_up(slot, store) for slot in running) if running else bool(state.store_up))
            for store in settings.backends
        }
        yield _family("worker_sink_up", sinks_up if running or state.store_up is not None else {})
        retries = {
            (reason, backend): self._sum(f"retries_{backend}_{reason}")
            for backend in (*settings.backends, "kafka")
            for reason in RETRY_REASONS
        }
        yield _family("worker_sink_retries_total", retries)
        for name in ("evolved_columns", "evolve_errors"):
            yield _family(f"worker_{name}_total", {(): self._stats.monitor.get(name)})
        yield _family("worker_kafka_up", {(): int(state.kafka_up or 0)})
        yield _family("worker_topic_partitions", {(topic,): n for topic, n in state.topics.items()})
        is_current = state.devices is not None and state.store_up
        devices = {(topic, settings.counting_backend): n for topic, n in state.devices_by_topic.items()}
        yield _family("worker_devices", devices if is_current else {})
        yield _family("worker_window_devices", state.devices_by_window if is_current else {})

    def _processes(self) -> Iterator[Metric]:
        running, settings = running_slots(self._stats), self._state.settings
        used = {(str(slot.index),): slot for slot in self._used}
        gauges = {(str(slot.index),): slot for slot in running}
        now, wall = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
        yield _family("worker_processes", {(): len(running)})
        yield _family("worker_processes_wanted", {(): settings.processes or self._state.partitions})
        yield _family("worker_partitions_assigned", {(): sum(slot.get("assigned") for slot in running)})
        yield _family("worker_rebalances_total", {(): self._sum("rebalances")})
        yield _family("worker_restarts_total", {(): self._sum("restarts")})
        yield _family("worker_slot_restarts_total", {label: slot.get("restarts") for label, slot in used.items()})
        cpu_seconds = {label: slot.get("cpu_ns") / 1e9 for label, slot in used.items()}
        yield _family("worker_slot_cpu_seconds_total", cpu_seconds)
        memory = {label: slot.get("rss_bytes") for label, slot in gauges.items()}
        yield _family("worker_slot_resident_memory_bytes", memory)
        started = {label: round((wall + slot.get("started_ns")) / 1e9, 1) for label, slot in gauges.items()}
        yield _family("worker_slot_start_time_seconds", started)
        age = {label: max(0, now - slot.get("heartbeat_ns")) / 1e9 for label, slot in gauges.items()}
        yield _family("worker_slot_heartbeat_age_seconds", age)
        yield _family("worker_slot_paused", {label: slot.get("paused") for label, slot in gauges.items()})
        others = (self._stats.supervisor, self._stats.monitor)
        dropped = self._sum("dropped_log_lines") + sum(slot.get("dropped_log_lines") for slot in others)
        yield _family("worker_dropped_log_lines_total", {(): dropped})
        yield _family("worker_build_info", {tuple(self._build): 1})

    def _sum(self, cell: str) -> int:
        return sum(slot.get(cell) for slot in self._used)


class Exposition:
    """The metrics as text, in the formats that Prometheus reads."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that the client accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _family(name: str, values: Mapping[Any, float]) -> Metric:
    kind = METRICS[name]
    family = (CounterMetricFamily if kind.type == "counter" else GaugeMetricFamily)(name, kind.help, labels=kind.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _by_partition(values: dict[tuple[str, int], int]) -> dict[tuple[str, ...], int]:
    return {(topic, str(partition)): value for (topic, partition), value in sorted(values.items())}
