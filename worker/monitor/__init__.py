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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from worker.errors import ExitCode, Fatal, Retryable
from worker.monitor.accounts import Accounts
from worker.monitor.http import Request, Response, Server
from worker.monitor.lag import GroupLag, PartitionLag, Retention
from worker.monitor.metrics import Collector, Exposition
from worker.monitor.observed import Observed
from worker.monitor.report import Report
from worker.monitor.status import Status
from worker.settings import Settings
from worker.stats import Stats

log = logging.getLogger("worker.monitor")

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
        self._retention = Retention()
        self._targets: dict[int, int] | None = None  # the ends to reach, by partition
        self._finished = False  # whether they are
        self._seen = Observed(settings)
        self._report = Report(self._seen)
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
        count = await self._find_topic()
        self._seen.trouble = f"starting: waiting for {self._settings.backend}"
        await self._report.open(self._complain)
        if self._settings.until_end:
            self._targets = await self._patiently(self._lag.ends, count)
            self._see(await self._patiently(self._refresh, count), count)
        if not self._finished:
            self._tell(f"partitions {count}")
        self._seen.trouble = ""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(count))
            tasks.create_task(self._report.run())

    # start

    async def _find_topic(self) -> int:
        count = await self._patiently(self._lag.partitions)
        if not count:
            topic, servers = self._settings.topic, self._settings.bootstrap_servers
            raise Fatal(
                f"topic {topic} does not exist on Kafka at {servers}; to make it: "
                f"python -m worker produce --topic {topic} --partitions 4 --bootstrap-servers {servers}, or "
                f"kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {servers}"
            )
        self._seen.kafka_up, self._seen.partitions = True, count
        return count

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
        self._seen.trouble = text
        log.warning("%s; still trying", text)  # the log shows the same line once a minute

    # the group

    async def _watch(self, count: int) -> None:
        """Refresh the lag every tick, and the number of partitions every few; whatever fails is asked again."""
        loop = asyncio.get_running_loop()
        tick = _TICK_UNTIL_END_S if self._settings.until_end else _TICK_S
        told, counted_at, retention_due = count, loop.time(), 0.0
        while True:
            started = loop.time()
            if os.getppid() != self._parent:
                raise Fatal("the supervisor is gone", code=ExitCode.FAILED)
            try:
                if started - counted_at >= _PARTITIONS_EVERY_S:
                    count = await self._blocking(self._lag.partitions)
                    counted_at = started
                lags = await self._blocking(self._refresh, count) if count else []
            except (Retryable, Fatal) as error:
                self._kafka_is_away(error)
            else:
                self._see(lags, count)
                if count and count != told:
                    log.info("the topic has %d partitions now", count)
                    self._tell(f"partitions {count}")
                    told = count
                if started >= retention_due:  # after the lag: some brokers have no answer to this
                    retention_due = started + _RETENTION_EVERY_S
                    self._retention = await self._blocking(self._lag.retention)
            self._sums = self._accounts.read()
            self._seen.see_progress(self._stats, self._sums.accounted)
            self._status.sample(self._sums)
            await asyncio.sleep(max(tick / 4, tick - (loop.time() - started)))

    def _see(self, lags: list[PartitionLag], count: int) -> None:
        self._seen.see_lags(lags, count)
        self._seen.trouble = "" if count else f"topic {self._settings.topic} is gone"
        if not self._finished and self._reached(lags):
            self._finished = True
            self._tell("finished")

    def _refresh(self, count: int) -> list[PartitionLag]:
        """Blocking; in Kafka's thread."""
        return self._lag.refresh(count, self._retention, self._event_bytes())

    def _event_bytes(self) -> float:
        total = self._sums.total
        return total["bytes"] / total["consumed"] + _RECORD_BYTES if total["consumed"] else 0.0

    def _reached(self, lags: list[PartitionLag]) -> bool:
        if self._targets is None:
            return False
        positions = {lag.partition: lag for lag in lags}
        return all(
            partition in positions and positions[partition].reached(end) for partition, end in self._targets.items()
        )

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


def _plain(error: Exception) -> str:
    """Return an error's text without what differs from one try to the next."""
    return re.sub(r" \(after \d+ms in state \w+\)", "", str(error))
