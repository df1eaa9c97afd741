"""The monitor child: serves the pages, watches the group's lag, reports the devices, tells the parent what it needs.

To the parent go lines: `partitions N` once Kafka, the topic and the store are there and whenever N changes, `finished`
once everything that was in the topic at start is committed (`--until-end`).
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
from worker.core.batch import Key
from worker.core.counters import Stats
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.group_lag import GroupLag, PartitionLag, Retention
from worker.monitor.http import Request, Response, Server
from worker.monitor.metrics import Collector, Exposition
from worker.monitor.report import Report
from worker.monitor.state import MonitorState
from worker.monitor.status import Status
from worker.monitor.unowned_partitions import UnownedPartitions

log = logging.getLogger(__name__)

_TICK_S = 1.0
_TICK_UNTIL_END_S = 0.5
_PARTITIONS_EVERY_S = 5.0
_RETENTION_EVERY_S = 600.0
_RETRY_S = 1.0
_GRACE_S = 3.0  # shorter silences of Kafka's are not spoken of
_START_GRACE_S = 15.0  # the group's first coordinator may take longer
_RECORD_BYTES = 12  # of the log for each event beside its payload

_T = TypeVar("_T")


class Monitor:
    """The event loop's tasks, a thread for the blocking Kafka client, and what was seen."""

    def __init__(self, settings: Settings, stats: Stats, to_parent: int) -> None:
        self._settings = settings
        self._stats = stats
        self._to_parent = to_parent
        self._parent = os.getppid()
        self._kafka = ThreadPoolExecutor(1, "kafka")
        self._lag = GroupLag(settings)
        self._heard = time.monotonic()  # when Kafka last answered
        self._retention: dict[str, Retention] = {}
        self._selection = Selection(settings)
        self._refused: set[str] = set()  # topics that match, but cannot be read
        self._targets: dict[Key, int] | None = None  # the ends to reach
        self._finished = False  # whether they are
        self._seen = MonitorState(settings)
        self._report = Report(self._seen)
        self._unowned = UnownedPartitions()
        self._accounts = Accounts(stats)
        self._sums = self._accounts.read()
        self._exposition = Exposition(Collector(stats, self._seen, self._accounts))
        self._status = Status(stats, self._seen, self._accounts)
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
        """Watch until SIGUSR2, the supervisor's; return the exit code."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, stop.set)
        address = await self._server.start(self._settings.metrics_host, self._settings.metrics_port)
        log.info("status page, /metrics, /livez and /readyz are at %s/", address)
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # raises: the work has no end of its own
        work.cancel()
        await self._report.last()
        await self._server.close()
        return ExitCode.OK

    async def _work(self) -> None:
        counts = await self._find_topics()
        self._seen.error = f"starting: waiting for {self._settings.backend}"
        for topic in counts:
            await self._report.open(topic, self._complain)
        self._call_roll(counts)
        if self._settings.until_end:
            self._targets = await self._patiently(self._lag.ends, counts)
            self._see(await self._patiently(self._refresh, counts), counts)
        if not self._finished:
            self._tell_partitions(sum(counts.values()))
        self._seen.error = ""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(counts))
            tasks.create_task(self._report.run())

    # the topics

    async def _find_topics(self) -> dict[str, int]:
        """Return how many partitions each topic has, once there is one; one that is named has to be there."""
        while True:
            counts = await self._patiently(self._lag.partitions)
            servers = self._settings.bootstrap_servers
            for topic in self._selection.names:
                if topic not in counts:
                    raise Fatal(
                        f"topic {topic} does not exist on Kafka at {servers}; to make it: "
                        f"python -m worker produce --topic {topic} --partitions 4 --bootstrap-servers {servers}, or "
                        f"kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {servers}"
                    )
            if clash := self._selection.find_table_clash(list(counts)):
                raise Fatal(_clash(clash))
            if counts:
                self._seen.kafka_up, self._seen.topics = True, counts
                return counts
            none = f"no topic on Kafka at {servers} matches {self._settings.topic}"
            if self._settings.until_end:
                raise Fatal(f"{none}; dead-letter topics and Kafka's own are left out")
            self._complain(none)
            await asyncio.sleep(_PARTITIONS_EVERY_S)

    async def _follow(self, known: dict[str, int]) -> dict[str, int]:
        """Return how many partitions each topic has now; consumers are told of topics that came or went."""
        found = await self._blocking(self._lag.partitions)
        counts = {topic: count for topic, count in found.items() if topic in known or await self._admit(topic, known)}
        for topic in known.keys() - counts.keys():
            log.warning("topic %s is gone", topic)
            await self._report.forget(topic)
        self._refused &= found.keys()
        self._call_roll(counts)
        return counts

    def _call_roll(self, there: Iterable[str]) -> None:
        """Tell the consumers which topics to read, where that is news: those that are named or were found."""
        topic_list = [*dict.fromkeys([*self._selection.names, *there])]
        if self._stats.topic_list.read()[1] != topic_list:
            self._stats.topic_list.write(topic_list)

    async def _admit(self, topic: str, known: Iterable[str]) -> bool:
        """Whether a topic that has appeared can be read; it must not stop the others."""
        if topic in self._refused:
            return False
        try:
            if clash := self._selection.find_table_clash([*known, topic]):
                raise Fatal(_clash(clash))
            await self._report.admit(topic)
        except Retryable as error:
            log.warning("topic %s has to wait: %s", topic, error)
            return False
        except Fatal as error:
            log.error("topic %s is not read: %s", topic, error)
            self._refused.add(topic)
            return False
        log.info("topic %s was found", topic)
        return True

    async def _patiently(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Return what a question to Kafka returns, however long Kafka is away."""
        while True:
            try:
                return await self._blocking(call, *arguments)
            except Retryable as error:
                self._kafka_is_away(error)
                await asyncio.sleep(_RETRY_S)

    async def _blocking(self, call: Callable[..., _T], *arguments: Any) -> _T:
        answer = await asyncio.get_running_loop().run_in_executor(self._kafka, call, *arguments)
        self._heard = time.monotonic()
        return answer

    def _kafka_is_away(self, error: Exception) -> None:
        starting = self._seen.kafka_up and self._seen.starting
        if time.monotonic() - self._heard < (_START_GRACE_S if starting else _GRACE_S):
            return  # a new coordinator or leader is being found
        self._seen.kafka_up = False
        self._complain(f"Kafka at {self._settings.bootstrap_servers} does not answer: {_plain(error)}")

    def _complain(self, text: str) -> None:
        self._seen.error = text
        log.warning("%s; still trying", text)  # the log shows the same line once a minute

    # the group

    async def _watch(self, counts: dict[str, int]) -> None:
        """Refresh the lag every tick, and the number of partitions every few; whatever fails is asked again."""
        loop = asyncio.get_running_loop()
        tick = _TICK_UNTIL_END_S if self._settings.until_end else _TICK_S
        told, counted_at, retention_due = sum(counts.values()), loop.time(), 0.0
        while True:
            started = loop.time()
            if os.getppid() != self._parent:
                raise Fatal("the supervisor is gone", code=ExitCode.FAILED)
            try:
                if started - counted_at >= _PARTITIONS_EVERY_S:
                    counts = await self._follow(counts)
                    counted_at = started
                lags = await self._blocking(self._refresh, counts) if counts else []
            except (Retryable, Fatal) as error:
                self._kafka_is_away(error)
            else:
                self._see(lags, counts)
                if (partitions := sum(counts.values())) and partitions != told:
                    log.info("there are %d partitions now", partitions)
                    self._tell_partitions(partitions)
                    told = partitions
                if started >= retention_due:  # after the lag: some brokers have no answer to this
                    retention_due = started + _RETENTION_EVERY_S
                    self._retention = await self._blocking(self._lag.retention, list(counts))
            self._sums = self._accounts.read()
            self._seen.see_progress(self._stats, self._sums.accounted)
            if self._seen.store_up and (unowned := self._unowned.look(self._seen.lags, self._sums.owner)):
                self._share_out_anew(unowned)
            self._status.sample(self._sums)
            await asyncio.sleep(max(tick / 4, tick - (loop.time() - started)))

    def _share_out_anew(self, unowned: list[Key]) -> None:
        """Have the consumers subscribe again: the group then shares its partitions out."""
        names = ", ".join(f"{topic}[{partition}]" for topic, partition in unowned[:10])
        log.warning(
            "%d partitions have unread events, no consumer of this worker, and no commits: asking the group to share "
            "its partitions out anew (%s)",
            len(unowned),
            names + (" …" if len(unowned) > 10 else ""),
        )
        self._stats.topic_list.write(self._stats.topic_list.read()[1])

    def _see(self, lags: list[PartitionLag], counts: dict[str, int]) -> None:
        self._seen.see_lags(lags, counts)
        gone = [topic for topic in self._selection.names if topic not in counts]
        self._seen.error = f"topic {', '.join(gone)} is gone" if gone else ""
        if not self._finished and self._reached(lags):
            self._finished = True
            self._tell("finished")

    def _refresh(self, counts: dict[str, int]) -> list[PartitionLag]:
        """Blocking; in Kafka's thread."""
        return self._lag.refresh(counts, self._retention, self._event_bytes())

    def _event_bytes(self) -> float:
        total = self._sums.total
        return total["bytes"] / total["consumed"] + _RECORD_BYTES if total["consumed"] else 0.0

    def _reached(self, lags: list[PartitionLag]) -> bool:
        if self._targets is None:
            return False
        known = {lag.key: lag for lag in lags}
        return all(key in known and known[key].has_reached(end) for key, end in self._targets.items())

    # pages

    def _metrics(self, request: Request) -> Response:
        body, content_type = self._exposition.text(request.accept)
        return Response(body, content_type)

    def _livez(self, _request: Request) -> Response:
        alive = os.getppid() == self._parent
        return Response(b"alive\n") if alive else Response(b"the supervisor is gone\n", status=503)

    def _readyz(self, _request: Request) -> Response:
        reason = self._seen.unready(self._stats)
        return Response(f"{reason}\n".encode(), status=503) if reason else Response(b"ready\n")

    def _tell_partitions(self, count: int) -> None:
        self._stats.topic_list.partitions = count  # first: the consumers that the parent now forks look at it
        self._tell(f"partitions {count}")

    def _tell(self, line: str) -> None:
        os.write(self._to_parent, f"{line}\n".encode())


def run(settings: Settings, stats: Stats, to_parent: int) -> int:
    """Be the monitor; called in a fresh child of the supervisor. Raises Fatal where waiting would not help."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        from uvloop import new_event_loop as loop_factory
    runner = asyncio.Runner(loop_factory=loop_factory)
    try:
        return runner.run(Monitor(settings, stats, to_parent).run())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _clash(clash: tuple[str, str, str]) -> str:
    one, other, table = clash
    return f"topics {one} and {other} would both go into the table {table}: --table needs other names, or give one only"


def _plain(error: Exception) -> str:
    """Return an error's text without what differs from one try to the next."""
    return re.sub(r" \(after \d+ms in state \w+\)", "", str(error))
