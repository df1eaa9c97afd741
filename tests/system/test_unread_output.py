"""A worker whose stdout and stderr are pipes that nobody reads, or whose reader ends: it goes on."""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import oracle
from tests.support.kit import PATIENCE_S, Service, children, create_topic, send, wait_until
from worker.core.output import Output
from worker.local.process import free_port

ROOT = Path(__file__).parents[2]
EVENTS = [b'{"timestamp": "2024-01-01T00:00:00Z", "device_ip": "10.0.0.%d", "error_code": 3}' % n for n in range(50)]
FILLER = b"-" * 1023 + b"\n"


def filled_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that takes no more."""
    reader, writer = os.pipe()
    out = Output(writer)
    while out.write(FILLER):
        pass
    out.close()
    return reader, writer


class Unread:
    """A worker on a topic with events, and the reading ends of its stdout and stderr."""

    def __init__(self, env: dict[str, str], make_pipe: Callable[[], tuple[int, int]]) -> None:
        self._port = free_port()
        self._kafka, self._topic, self._group = (
            env[f"WORKER_{name}"] for name in ("BOOTSTRAP_SERVERS", "TOPIC", "GROUP_ID")
        )
        self.sent = 0
        (self.stdout, out), (self.stderr, err) = make_pipe(), make_pipe()
        words = ["--metrics-port", str(self._port), "--linger-ms", "50", "--report-interval", "0.1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", *words, "-X", "session.timeout.ms=6000"],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        os.close(out)
        os.close(err)

    def ingest(self) -> None:
        """Write events to the topic, and return when the group has committed them."""
        send(self._kafka, self._topic, EVENTS)
        self.sent += len(EVENTS)
        wait_until(
            lambda: oracle.accounted_offsets(self._kafka, self._group, self._topic) == self.sent,
            PATIENCE_S,
            "all events are committed",
        )

    def get(self, path: str) -> bytes:
        def fetch() -> bytes:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
            try:
                connection.request("GET", path)
                return connection.getresponse().read()
            except OSError:
                return b""
            finally:
                connection.close()

        return wait_until(fetch, PATIENCE_S, f"{path} is served")

    def kill_consumer(self) -> None:
        """Kill the consumer, and return when the supervisor has started another one."""

        def consumer() -> int | None:
            processes = orjson.loads(self.get("/status.json"))["processes"]
            return processes[0]["pid"] if processes else None

        killed = wait_until(consumer, PATIENCE_S)
        assert killed
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: consumer() not in (None, killed), PATIENCE_S, "the consumer is restarted")

    def metric(self, name: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics").decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def env(kafka: Service, topic_name: str, redis_env: dict[str, str]) -> dict[str, str]:
    create_topic(kafka.address, topic_name)
    return redis_env


@pytest.fixture
def start(env: dict[str, str]) -> Iterator[Callable[[Callable[[], tuple[int, int]]], Unread]]:
    """Start workers, and kill what is left of them after the test."""
    workers: list[Unread] = []

    def start(make_pipe: Callable[[], tuple[int, int]]) -> Unread:
        workers.append(Unread(env, make_pipe))
        return workers[-1]

    yield start
    for worker in workers:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(PATIENCE_S)
        for number in (worker.stdout, worker.stderr):
            with suppress(OSError):
                os.close(number)


def read(number: int) -> str:
    """Return what the pipe holds."""
    data = b""
    while select.select([number], [], [], 0)[0] and (part := os.read(number, 1 << 20)):
        data += part
    return data.decode()


def test_full_pipes_stop_neither_the_data_path_nor_the_supervisor(
    start: Callable[[Callable[[], tuple[int, int]]], Unread],
) -> None:
    worker = start(filled_pipe)
    worker.ingest()
    worker.kill_consumer()
    worker.ingest()
    worker.process.send_signal(signal.SIGUSR1)  # prints stacks to the full pipe
    worker.kill_consumer()
    worker.ingest()
    assert worker.metric("worker_dropped_log_lines_total") > 5
    assert set(read(worker.stderr) + read(worker.stdout)) <= {"-", "\n"}

    worker.kill_consumer()  # the supervisor logs it
    worker.ingest()
    text = ""

    def read_on() -> bool:
        nonlocal text
        text += read(worker.stderr)
        return "restarting" in text

    wait_until(read_on, PATIENCE_S, "the supervisor logs again")
    lines = text.splitlines()
    counts = [
        line for line in lines if re.search(r" [1-9]\d* log lines were dropped because nobody read stderr$", line)
    ]
    assert len([line for line in counts if " supervisor " in line]) == 1, lines
    wait_until(lambda: "Total devices: 50\n" in read(worker.stdout), PATIENCE_S)
    assert worker.stop() == 0
    assert "ledger of all partitions" in read(worker.stderr)
    assert read(worker.stdout).endswith("Total devices: 50\n")


def test_it_stops_with_full_pipes(start: Callable[[Callable[[], tuple[int, int]]], Unread]) -> None:
    worker = start(filled_pipe)
    worker.ingest()
    assert worker.stop() == 0


def test_readers_that_end_stop_neither_the_data_path_nor_the_supervisor(
    start: Callable[[Callable[[], tuple[int, int]]], Unread],
) -> None:
    worker = start(os.pipe)
    worker.ingest()
    os.close(worker.stderr)
    os.close(worker.stdout)
    for _ in range(2):
        worker.kill_consumer()
        worker.ingest()
    assert len(children(worker.process.pid)) == 2
    assert worker.stop() == 0
