"""Every metric once, and the collector that reads them from the shared counters when Prometheus asks.

Nothing is counted or remembered here: the consumers' cells are the counters, so a scrape costs them nothing, a dead
consumer's counts stay while its gauges go, and no counter runs backwards when the monitor is started again.
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
from worker.core.version import version_text
from worker.kafka.properties import librdkafka_version
from worker.monitor.state import MonitorState

_OUTCOMES = ("written", "dead_lettered", "skipped")
_PLACE = ("topic", "partition")
_BUILD = ("version", "python", "librdkafka", "topic", "backend", "group")


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
        "Events in the store, in the dead-letter topic, or left out by a rule", "outcome"
    ),
    "worker_replayed_messages_total": _counter("Events read here that another read accounts for"),
    "worker_in_flight_messages": _gauge("Events read and not yet acknowledged", *_PLACE),
    "worker_unaccounted_messages": _gauge("Events read that no account explains: a defect unless 0", *_PLACE),
    "worker_rejected_messages_total": _counter("Events that can never be written, by what is wrong", "reason"),
    # how far behind
    "worker_lag_messages": _gauge("Events up to the log's readable end that the group has not committed", *_PLACE),
    "worker_lag_seconds": _gauge("Age of the oldest event that the group has not committed, 0 without one", *_PLACE),
    "worker_retention_headroom_seconds": _gauge("Time until retention removes an event not yet committed", *_PLACE),
    "worker_delivery_seconds": _histogram("From an event's Kafka timestamp to the store's acknowledgement"),
    # where the time goes
    "worker_stage_seconds": _histogram("Time of one step of a consumer; writes overlap with the rest", "stage"),
    "worker_batch_rows": _histogram("Rows of a batch"),
    # the store and Kafka
    "worker_sink_up": _gauge("1 while every consumer reaches the store"),
    "worker_sink_retries_total": _counter("Writes, commits and connects that are tried again", "reason"),
    "worker_kafka_up": _gauge("1 while Kafka answers the monitor"),
    "worker_topic_partitions": _gauge("Partitions of the topic", "topic"),
    "worker_devices": _gauge("Distinct devices in the store, as last counted", "topic", "backend"),
    # the processes
    "worker_processes": _gauge("Consumer processes that run"),
    "worker_processes_wanted": _gauge("Consumer processes that should run"),
    "worker_partitions_assigned": _gauge("Partitions that this supervisor's consumers own"),
    "worker_rebalances_total": _counter("Assignments that consumers were given"),
    "worker_restarts_total": _counter("Consumers that were started again"),
    "worker_slot_restarts_total": _counter("Consumers that were started again in this slot", "slot"),
    "worker_slot_cpu_seconds_total": _counter("CPU time of all consumers that ran in this slot", "slot"),
    "worker_slot_resident_memory_bytes": _gauge("Resident memory of the consumer", "slot"),
    "worker_slot_start_time_seconds": _gauge("When the consumer was started, since the epoch", "slot"),
    "worker_slot_heartbeat_age_seconds": _gauge("Time since the consumer's loop last went round", "slot"),
    "worker_slot_paused": _gauge("1 while the consumer holds reading back: the store is slower, or away", "slot"),
    "worker_build_info": _gauge("What runs here; always 1", *_BUILD),
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
        self._build += [settings.topic, settings.backend, settings.group_id]

    def describe(self) -> list[Metric]:
        """Promise nothing: what is there depends on what runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family; gauges of what is gone are not there."""
        self._used = list(self._stats.used())  # asked once: it is a third of all reading
        yield from self._ledger()
        yield from self._behind()
        yield from self._histograms()
        yield from self._services()
        yield from self._processes()

    def _ledger(self) -> Iterator[Metric]:
        sums = self._accounts.read()
        total = sums.total
        yield _of("worker_consumed_messages_total", {(): total["consumed"]})
        yield _of("worker_consumed_bytes_total", {(): total["bytes"]})
        yield _of("worker_messages_total", {(outcome,): total[outcome] for outcome in _OUTCOMES})
        yield _of("worker_replayed_messages_total", {(): total["replayed"]})
        yield _of("worker_in_flight_messages", _places(sums.in_flight))
        yield _of("worker_unaccounted_messages", _places(sums.unaccounted))
        rejected = {(reason,): self._sum(f"rejected_{reason}") for reason in REJECT_REASONS}
        yield _of("worker_rejected_messages_total", rejected)

    def _behind(self) -> Iterator[Metric]:
        lags = self._state.lags
        yield _of("worker_lag_messages", {(lag.topic, str(lag.partition)): lag.messages for lag in lags})
        yield _of("worker_lag_seconds", {(lag.topic, str(lag.partition)): lag.seconds for lag in lags})
        headroom = {(lag.topic, str(lag.partition)): lag.headroom for lag in lags if lag.headroom is not None}
        yield _of("worker_retention_headroom_seconds", headroom)

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
                more, plus = slot.histogram(cell)
                counts, total = [a + b for a, b in zip(counts, more, strict=True)], total + plus
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total / unit)
        return family

    def _services(self) -> Iterator[Metric]:
        seen, settings = self._state, self._state.settings
        ups = [slot.get("sink_up") for slot in running_slots(self._stats)]
        up = min(ups) if ups else seen.store_up
        yield _of("worker_sink_up", {} if up is None else {(): int(up)})
        yield _of("worker_sink_retries_total", {(reason,): self._sum(f"retries_{reason}") for reason in RETRY_REASONS})
        yield _of("worker_kafka_up", {(): int(seen.kafka_up or 0)})
        yield _of("worker_topic_partitions", {(topic,): n for topic, n in seen.topics.items()})
        counted = seen.devices is not None and seen.store_up
        devices = {(topic, settings.backend): n for topic, n in seen.devices_by_topic.items()}
        yield _of("worker_devices", devices if counted else {})

    def _processes(self) -> Iterator[Metric]:
        running, settings = running_slots(self._stats), self._state.settings
        used = {(str(slot.index),): slot for slot in self._used}
        gauges = {(str(slot.index),): slot for slot in running}
        now, wall = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
        yield _of("worker_processes", {(): len(running)})
        yield _of("worker_processes_wanted", {(): settings.processes or self._state.partitions})
        yield _of("worker_partitions_assigned", {(): sum(slot.get("assigned") for slot in running)})
        yield _of("worker_rebalances_total", {(): self._sum("rebalances")})
        yield _of("worker_restarts_total", {(): self._sum("restarts")})
        yield _of("worker_slot_restarts_total", {label: slot.get("restarts") for label, slot in used.items()})
        spent = {label: slot.get("cpu_ns") / 1e9 for label, slot in used.items()}
        yield _of("worker_slot_cpu_seconds_total", spent)
        memory = {label: slot.get("rss_bytes") for label, slot in gauges.items()}
        yield _of("worker_slot_resident_memory_bytes", memory)
        started = {label: round((wall + slot.get("started_ns")) / 1e9, 1) for label, slot in gauges.items()}
        yield _of("worker_slot_start_time_seconds", started)
        age = {label: max(0, now - slot.get("heartbeat_ns")) / 1e9 for label, slot in gauges.items()}
        yield _of("worker_slot_heartbeat_age_seconds", age)
        yield _of("worker_slot_paused", {label: slot.get("paused") for label, slot in gauges.items()})
        yield _of("worker_build_info", {tuple(self._build): 1})

    def _sum(self, cell: str) -> int:
        return sum(slot.get(cell) for slot in self._used)


class Exposition:
    """The text that Prometheus reads."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition in the format that the client accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _of(name: str, values: Mapping[Any, float]) -> Metric:
    kind = METRICS[name]
    family = (CounterMetricFamily if kind.type == "counter" else GaugeMetricFamily)(name, kind.help, labels=kind.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _places(values: dict[tuple[str, int], int]) -> dict[tuple[str, ...], int]:
    return {(topic, str(partition)): value for (topic, partition), value in sorted(values.items())}
