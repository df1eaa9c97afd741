"""The monitor process: serves the pages, measures the group's lag, reports the devices, follows topics and partitions.

It writes lines to the supervisor: `partitions N` once Kafka, the topic and the store have answered and whenever N
changes, and `finished` once all events that were in the topic at start, or before a time, are committed (`--until-end`,
`--until`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.accounts import Accounts
from worker.core.counters import Stats
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.core.records import Key
from worker.decoding.formats import open_decoder
from worker.kafka.group_lag import GroupLag, PartitionLag, Retention
from worker.kafka.schemas import schema_source
from worker.monitor.http import Request, Response, Server
from worker.monitor.invalid_events import InvalidEvents
from worker.monitor.metrics import Collector, Exposition
from worker.monitor.report import Report
from worker.monitor.state import MonitorState
from worker.monitor.status import Status
from worker.monitor.table_columns import TableColumns
from worker.monitor.unowned_partitions import UnownedPartitions

log = logging.getLogger(__name__)

_TICK_S = 1.0
_TICK_UNTIL_END_S = 0.5
_PARTITIONS_EVERY_S = 5.0
_RETENTION_EVERY_S = 600.0
_RETRY_S = 1.0
_GRACE_S = 3.0  # shorter outages of Kafka are not reported
_START_GRACE_S = 15.0  # the first coordinator of a group may take longer
_RECORD_BYTES = 12  # of the log for each event, besides its payload

_T = TypeVar("_T")


class Monitor:
    """The tasks of the event loop, a thread for the blocking Kafka client, and the monitor's state."""

    def __init__(self, settings: Settings, stats: Stats, report_fd: int) -> None:
        self._settings = settings
        self._stats = stats
        self._report_fd = report_fd
        self._parent = os.getppid()
        self._kafka = ThreadPoolExecutor(1, "kafka")
        self._lag = GroupLag(settings)
        self._answered_at = time.monotonic()  # when Kafka last answered
        self._retention: dict[str, Retention] = {}
        self._selection = Selection(settings)
        self._unreadable: set[str] = set()  # topics that match, but cannot be read
        self._target_offsets: dict[Key, int] | None = None  # of `--until-end`
        self._is_finished = False  # whether the target offsets are committed
        self._state = MonitorState(settings)
        self._report = Report(self._state)
        self._table_columns = TableColumns(settings, stats) if "clickhouse" in settings.backends else None
        self._unowned = UnownedPartitions()
        self._accounts = Accounts(stats)
        self._sums = self._accounts.read()
        self._exposition = Exposition(Collector(stats, self._state, self._accounts))
        self._invalid = InvalidEvents(settings, stats)
        self._status = Status(stats, self._state, self._accounts, self._invalid)
        self._server = Server(
            {
                "/": self._status.page,
                "/status.json": self._status.json,
                "/metrics": self._metrics,
                "/livez": self._livez,
                "/readyz": self._readyz,
            }
        )

    async def run(self) -> int:
        """Run until the supervisor sends SIGUSR2; return the exit code."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, stop.set)
        address = await self._server.start(self._settings.metrics_host, self._settings.metrics_port)
        log.info("status page, /metrics, /livez and /readyz are at %s/", address)
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # raises: the work only ends with an error
        work.cancel()
        await self._report.print_final()
        self._invalid.sample()
        self._invalid.log(at_end=True)
        await self._server.close()
        return ExitCode.OK

    async def _work(self) -> None:
        counts = await self._find_topics()
        self._state.error = f"starting: waiting for {' and '.join(self._settings.backends)}"
        for topic in counts:
            await self._report.wait_and_add(topic, self._report_error)
        if self._table_columns and not any(self._stats.used()):
            await self._table_columns.start(counts)
        self._publish_topics(counts)
        if self._settings.start != "earliest":
            await self._commit_start(counts)
        if self._settings.is_bounded:
            until_ms = self._settings.until_ms
            if until_ms is None:
                self._target_offsets = await self._retry(self._lag.ends, counts)
            else:
                self._target_offsets = await self._retry(self._lag.offsets_at, counts, until_ms)
            self._record_lags(await self._retry(self._refresh_lags, counts), counts)
        if not self._is_finished:
            self._send_partitions(sum(counts.values()))
        self._state.error = ""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(counts))
            tasks.create_task(self._report.run())
            if self._table_columns:
                tasks.create_task(self._table_columns.run(lambda: self._state.topics))

    async def _commit_start(self, counts: dict[str, int]) -> None:
        """Have the group begin at `--start`, before any consumer joins it."""
        while waits_for := await self._retry(self._lag.commit_start, self._settings, counts):
            self._report_error(waits_for)
            await asyncio.sleep(_RETRY_S)

    # the topics

    async def _find_topics(self) -> dict[str, int]:
        """Wait for a topic; return the number of partitions of each. Raises Fatal if a named topic does not exist."""
        while True:
            counts = await self._retry(self._lag.partitions)
            servers = self._settings.bootstrap_servers
            for topic in self._selection.names:
                if topic not in counts:
                    raise Fatal(
                        f"topic {topic} does not exist on Kafka at {servers}; to create it: "
                        f"worker check --create --topic {topic} --partitions 4 --bootstrap-servers {servers}, or "
                        f"kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {servers}"
                    )
            if clash := self._selection.find_table_clash(list(counts)):
                raise Fatal(_clash(clash))
            if counts:
                self._state.kafka_up, self._state.topics = True, counts
                return counts
            error_text = f"no topic on Kafka at {servers} matches {self._settings.topic}"
            if self._settings.is_bounded:
                raise Fatal(f"{error_text}; dead-letter topics and Kafka's internal topics are excluded")
            self._report_error(error_text)
            await asyncio.sleep(_PARTITIONS_EVERY_S)

    async def _follow_topics(self, before: dict[str, int]) -> dict[str, int]:
        """Return the number of partitions of each topic now, and publish topics that were created or deleted."""
        existing = await self._blocking(self._lag.partitions)
        counts = {
            topic: count for topic, count in existing.items() if topic in before or await self._add_topic(topic, before)
        }
        for topic in before.keys() - counts.keys():
            log.warning("topic %s was deleted", topic)
            await self._report.remove(topic)
        self._unreadable &= existing.keys()
        self._publish_topics(counts)
        return counts

    def _publish_topics(self, topics: Iterable[str]) -> None:
        """Write the named and the matching topics to the topic list that consumers follow, if it changed."""
        topic_list = [*dict.fromkeys([*self._selection.names, *topics])]
        if self._stats.topic_list.read()[1] != topic_list:
            self._stats.topic_list.write(topic_list)

    async def _add_topic(self, topic: str, others: Iterable[str]) -> bool:
        """Return whether a new topic can be read. Its errors must not stop the others."""
        if topic in self._unreadable:
            return False
        try:
            if clash := self._selection.find_table_clash([*others, topic]):
                raise Fatal(_clash(clash))
            await self._report.add(topic)
        except Retryable as error:
            log.warning("topic %s cannot be read yet: %s", topic, error)
            return False
        except Fatal as error:
            log.error("topic %s cannot be read and is ignored: %s", topic, error)
            self._unreadable.add(topic)
            return False
        log.info("new topic %s", topic)
        return True

    async def _retry(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of a call to Kafka; wait while Kafka is unavailable."""
        while True:
            try:
                return await self._blocking(call, *arguments)
            except Retryable as error:
                self._handle_kafka_error(error)
                await asyncio.sleep(_RETRY_S)

    async def _blocking(self, call: Callable[..., _T], *arguments: Any) -> _T:
        result = await asyncio.get_running_loop().run_in_executor(self._kafka, call, *arguments)
        self._answered_at = time.monotonic()
        return result

    def _handle_kafka_error(self, error: Exception) -> None:
        starting = self._state.kafka_up and self._state.is_starting
        if time.monotonic() - self._answered_at < (_START_GRACE_S if starting else _GRACE_S):
            return  # a new coordinator or leader is being elected
        self._state.kafka_up = False
        self._report_error(f"Kafka at {self._settings.bootstrap_servers} does not answer: {_plain(error)}")

    def _report_error(self, text: str) -> None:
        self._state.error = text
        log.warning("%s; still trying", text)  # the log repeats a line at most once a minute

    # the group

    async def _watch(self, counts: dict[str, int]) -> None:
        """Refresh the lag every tick and the partitions every few seconds. Calls that fail are repeated."""
        loop = asyncio.get_running_loop()
        tick = _TICK_UNTIL_END_S if self._settings.is_bounded else _TICK_S
        sent_partitions, counted_at, retention_due = sum(counts.values()), loop.time(), 0.0
        while True:
            started = loop.time()
            if os.getppid() != self._parent:
                raise Fatal("the supervisor has ended", code=ExitCode.FAILED)
            try:
                if started - counted_at >= _PARTITIONS_EVERY_S:
                    counts = await self._follow_topics(counts)
                    counted_at = started
                lags = await self._blocking(self._refresh_lags, counts) if counts else []
            except (Retryable, Fatal) as error:
                self._handle_kafka_error(error)
            else:
                self._record_lags(lags, counts)
                if (partitions := sum(counts.values())) and partitions != sent_partitions:
                    log.info("the number of partitions is now %d", partitions)
                    self._send_partitions(partitions)
                    sent_partitions = partitions
                if started >= retention_due:  # after the lag: some brokers do not answer this request
                    retention_due = started + _RETENTION_EVERY_S
                    self._retention = await self._blocking(self._lag.retention, list(counts))
            self._sums = self._accounts.read()
            self._state.record_progress(self._stats, self._sums.accounted)
            if self._state.store_up and (unowned := self._unowned.find(self._unfinished(), self._sums.owner)):
                self._request_reassignment(unowned)
            self._invalid.sample()
            self._invalid.log()
            self._status.sample(self._sums)
            await asyncio.sleep(max(tick / 4, tick - (loop.time() - started)))

    def _request_reassignment(self, unowned: list[Key]) -> None:
        """Have the consumers subscribe again, which makes the group compute a new assignment."""
        names = ", ".join(f"{topic}[{partition}]" for topic, partition in unowned[:10])
        log.warning(
            "%d partitions have unread events, no consumer of this worker and no commits: subscribing again, so that "
            "the group computes a new assignment (%s)",
            len(unowned),
            names + (" …" if len(unowned) > 10 else ""),
        )
        self._stats.topic_list.write(self._stats.topic_list.read()[1])

    def _record_lags(self, lags: list[PartitionLag], counts: dict[str, int]) -> None:
        self._state.record_lags(lags, counts)
        missing = [topic for topic in self._selection.names if topic not in counts]
        self._state.error = f"topic {', '.join(missing)} does not exist" if missing else ""
        if not self._is_finished and self._are_targets_committed(lags):
            self._is_finished = True
            self._send("finished")

    def _refresh_lags(self, counts: dict[str, int]) -> list[PartitionLag]:
        """Return the lag of all partitions. Blocking: call it in the Kafka thread."""
        return self._lag.refresh(counts, self._retention, self._event_bytes())

    def _event_bytes(self) -> float:
        total = self._sums.total
        return total["bytes"] / total["consumed"] + _RECORD_BYTES if total["consumed"] else 0.0

    def _unfinished(self) -> list[PartitionLag]:
        """Return the lag of each partition that is not read up to its target yet, if it has one."""
        targets = self._target_offsets or {}
        return [lag for lag in self._state.lags if lag.key not in targets or not lag.has_reached(targets[lag.key])]

    def _are_targets_committed(self, lags: list[PartitionLag]) -> bool:
        if self._target_offsets is None:
            return False
        # A monitor that was restarted may have found a later end than its consumers: events that came late.
        by_key, ends = {lag.key: lag for lag in lags}, self._stats.ends()
        return all(
            key in by_key and by_key[key].has_reached(min(target, ends.get(key, target)))
            for key, target in self._target_offsets.items()
        )

    # pages

    def _metrics(self, request: Request) -> Response:
        body, content_type = self._exposition.text(request.accept)
        return Response(body, content_type)

    def _livez(self, _request: Request) -> Response:
        alive = os.getppid() == self._parent
        return Response(b"alive\n") if alive else Response(b"the supervisor has ended\n", status=503)

    def _readyz(self, _request: Request) -> Response:
        reason = self._state.unready_reason(self._stats)
        return Response(f"{reason}\n".encode(), status=503) if reason else Response(b"ready\n")

    def _send_partitions(self, count: int) -> None:
        self._stats.topic_list.partitions = count  # first: the consumers that the supervisor then forks read it
        self._send(f"partitions {count}")

    def _send(self, line: str) -> None:
        os.write(self._report_fd, f"{line}\n".encode())


def run(settings: Settings, stats: Stats, report_fd: int) -> int:
    """Run the monitor in a new child of the supervisor. Raises Fatal for errors that retrying cannot fix."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its errors once, before each consumer has them.
    open_decoder(settings.format, schema_source(settings), settings.transform)
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        from uvloop import new_event_loop as loop_factory
    runner = asyncio.Runner(loop_factory=loop_factory)
    try:
        return runner.run(Monitor(settings, stats, report_fd).run())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _clash(clash: tuple[str, str, str]) -> str:
    first, second, table = clash
    return (
        f"topics {first} and {second} would both be written to the table {table}: change --table, or select one topic"
    )


def _plain(error: Exception) -> str:
    """Return an error's text without the parts that differ between attempts."""
    return re.sub(r" \(after \d+ms in state \w+\)", "", str(error))
