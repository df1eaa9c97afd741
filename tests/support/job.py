"""A test's job: a topic, a group, a table or key in a store, the worker's arguments for them, and its processes."""

from __future__ import annotations

import http.client
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support import oracle
from tests.support.kit import PATIENCE_S, Service, Worker, alive, create_topic, run_worker, send, wait_until
from worker.core.delivery import parse_intent

# A dead member is removed after 4 s; a member on an overloaded host is not. Small batches, so that there are many.
_OPTIONS = (
    *("--metrics-port", "0"),
    *("--report-interval", "3600"),
    *("--batch-rows", "1000"),
    *("--linger-ms", "100"),
    *("--drain-timeout", "100"),
    *("-X", "session.timeout.ms=4000"),
    *("-X", "heartbeat.interval.ms=800"),
    *("-X", "topic.metadata.refresh.interval.ms=1000"),
)
_STATUS_PORT = re.compile(r"readyz are at http://127\.0\.0\.1:(\d+)/")


@dataclass(frozen=True, kw_only=True)
class Job:
    """`kafka` is the bootstrap server, `target` the table or key in the store at `url`."""

    kafka: str
    topic: str
    group: str
    backend: str
    url: str
    target: str
    started: list[Worker] = field(default_factory=list, repr=False)

    def via(self, port: int) -> tuple[str, str]:
        """Return the arguments that connect the worker to the store through a proxy; the oracle connects directly."""
        head, _, tail = self.url.rpartition(":")
        return f"--{self.backend}-url", f"{head}:{port}/{tail.partition('/')[2]}"

    def arguments(self, *more: str) -> list[str]:
        """Return the worker's arguments; later ones override earlier ones."""
        flag = "--table" if self.backend == "clickhouse" else "--redis-key"
        return [
            *("--topic", self.topic),
            *("--bootstrap-servers", self.kafka),
            *("--group-id", self.group),
            *("--backend", self.backend),
            *(f"--{self.backend}-url", self.url),
            *(flag, self.target),
            *_OPTIONS,
            *more,
        ]

    def start(self, *more: str, env: Mapping[str, str] | None = None) -> Worker:
        """Start a worker, for `with`."""
        worker = run_worker(*self.arguments(*more), env=env)
        self.started.append(worker)
        return worker

    def create(self, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        create_topic(self.kafka, self.topic, partitions, config)

    def send(self, payloads: Sequence[bytes | None], partition: int | None = None) -> None:
        send(self.kafka, self.topic, payloads, partition)

    def finish(self, *more: str, code: int = 0) -> Worker:
        """Run a worker to the end, check its exit code (1: it could write not one event), and return it."""
        with self.start("--until-end", *more) as worker:
            assert worker.wait() == code, worker.tail()
        return worker

    def rows(self) -> int:
        return oracle.rows(self.url, self.target)

    def judge(self, expected: Iterable[int], **options: bool) -> oracle.Verdict:
        """Compare the store's content with the numbers of the events that it should have."""
        if self.backend == "redis":
            return oracle.judge_devices(self.url, self.target, expected)
        return oracle.judge_rows(self.url, self.target, expected, **options)

    def committed(self) -> dict[int, tuple[int, str]]:
        return oracle.committed(self.kafka, self.group, self.topic)

    def accounted(self) -> int:
        """Return the sum of the committed offsets."""
        return oracle.accounted_offsets(self.kafka, self.group, self.topic)

    def dead_letters(self) -> list[oracle.DeadLetter]:
        return oracle.dead_letters(self.kafka, f"{self.topic}.dlq")

    def advance_to(self, offsets: int, timeout: float = PATIENCE_S) -> None:
        """Return when the sum of the group's committed offsets is at least `offsets`."""
        wait_until(lambda: self.accounted() >= offsets, timeout, f"{offsets} offsets are committed")

    def _is_all_committed(self) -> bool:
        """Whether each partition is committed to its end. The group commits nothing for a partition without events."""
        committed = self.committed()
        ends = oracle.ends(self.kafka, self.topic)
        return all(committed.get(partition, (0, ""))[0] == end for partition, end in ends.items())

    def all_done(self, timeout: float = PATIENCE_S) -> None:
        """Return when the group has committed everything in the topic."""
        wait_until(
            self._is_all_committed,
            timeout,
            f"everything in {self.topic} is committed",
        )

    def intent(self) -> bool:
        """Whether the group has announced a write and not confirmed it yet."""
        return any(parse_intent(metadata) for _, metadata in self.committed().values())


MakeJob = Callable[[Service, str], Job]
"""Kafka and a store's URL → the test's job: see the fixture `make_job`."""


def status(worker: Worker) -> dict[str, Any]:
    """Return the content of the worker's status page; a restarted monitor uses another port."""

    def fetch() -> dict[str, Any] | None:
        ports = [match[1] for line in list(worker.stderr) if (match := _STATUS_PORT.search(line))]
        connection = http.client.HTTPConnection("127.0.0.1", int(ports[-1]) if ports else 1, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/status.json")
            content: dict[str, Any] = orjson.loads(connection.getresponse().read())
            return content
        except OSError:
            assert worker.running(), worker.tail()
            return None
        finally:
            connection.close()

    content = wait_until(fetch, PATIENCE_S, "the status page is served")
    assert content
    return content


def consumers(worker: Worker, *, busy: bool = False) -> list[int]:
    """Return the pids of the consumers, once there are any; with `busy`, of those that own partitions."""

    def pids() -> list[int]:
        processes = status(worker)["processes"]
        return [process["pid"] for process in processes if process["pid"] and (process["partitions"] or not busy)]

    return wait_until(pids, PATIENCE_S, "consumers run")


def kill(*pids: int) -> None:
    """Kill processes (SIGKILL), and return when they have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), PATIENCE_S, f"{pids} have ended")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Keep processes stopped (SIGSTOP) inside the block."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
