"""Shared by tests: waiting for a condition, topics and messages, and the worker as a process that a test can kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from clickhouse_driver import Client
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import worker.local.launch

PATIENCE_S = 120.0  # for what takes one or two seconds on an idle machine
_QUIET = {"log_level": 2}  # else librdkafka logs to stderr each connection that a stopped broker closed
PARTITION_UA = -1  # librdkafka's "unassigned": its partitioner chooses
_T = TypeVar("_T")


class Service(Protocol):
    """A running server; `address` is the value for the worker's option."""

    @property
    def address(self) -> str: ...


def wait_until(predicate: Callable[[], _T], timeout: float = 60.0, message: str = "") -> _T:
    """Return the predicate's first true value; AssertionError with the message after the timeout."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {message or predicate}"
        time.sleep(0.02)
    return value


def create_topic(bootstrap: str, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
    """Create a topic and return when all its partitions have a leader."""
    admin = AdminClient({"bootstrap.servers": bootstrap, **_QUIET})
    admin.create_topics([NewTopic(topic, partitions, 1, config=dict(config or {}))])[topic].result(PATIENCE_S)

    def has_leaders() -> bool:
        listed = admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
        return len(listed) == partitions and all(partition.leader >= 0 for partition in listed.values())

    wait_until(has_leaders, PATIENCE_S, f"topic {topic} has {partitions} partitions with leaders")


def send(bootstrap: str, topic: str, payloads: Sequence[bytes | None], partition: int | None = None) -> None:
    """Write the payloads in order (None is a tombstone) and return when the broker has acknowledged them all."""
    errors: list[str] = []

    def on_delivery(error: KafkaError | None, _: object) -> None:
        if error:
            errors.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 5,
            "message.max.bytes": 100_000_000,
            "enable.idempotence": True,  # the tests count each message once
            **_QUIET,
        }
    )
    target = PARTITION_UA if partition is None else partition
    for payload in payloads:
        while True:
            try:
                producer.produce(topic, payload, partition=target, on_delivery=on_delivery)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(PATIENCE_S) == 0, "messages are still queued"
    assert not errors, errors[0]


def clickhouse_client(url: str) -> Client:
    """Return a client for a `clickhouse://` URL; `client.disconnect()` closes it."""
    return Client.from_url(url)


def run_sql(url: str, statement: str) -> Any:
    """Run one statement in ClickHouse; return its rows."""
    client = clickhouse_client(url)
    try:
        return client.execute(statement)
    finally:
        client.disconnect()


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of "host:port" or a URL, for a proxy in front of it."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    assert parts.hostname, address
    assert parts.port, address
    return parts.hostname, parts.port


class Worker:
    """`python -m worker …` as a process: its output, its children, and signals.

    It ends with the test's process. The end of the `with` block kills all its processes that still run.
    """

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        launch = [sys.executable, "-I", "-S", worker.local.launch.__file__, str(os.getpid())]
        self._process = subprocess.Popen(
            [*launch, sys.executable, "-m", "worker", *arguments],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._readers = [
            threading.Thread(target=_read, args=(stream, lines), daemon=True)
            for stream, lines in ((self._process.stdout, self.stdout), (self._process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Return the exit code when it has ended and all its output is read; AssertionError after the timeout."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker is still running after {timeout:.0f} s:\n{self.tail()}") from None
        for reader in self._readers:
            reader.join(10)
        return code

    def wait_for(self, pattern: str, timeout: float = PATIENCE_S) -> re.Match[str]:
        """Return the first match of a regular expression in a line of stdout or stderr."""

        def search() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in [*self.stdout, *self.stderr])
            match = next(filter(None, matches), None)
            assert match or self.running() or self._readers[1].is_alive(), f"no {pattern!r}:\n{self.tail()}"
            return match

        match = wait_until(search, timeout, f"a line with {pattern!r}")
        assert match
        return match

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def children(self) -> list[int]:
        """Return the pids of its direct children, the oldest first."""
        return children(self.pid)

    def kill_tree(self) -> None:
        """Kill it and all its descendants (SIGKILL)."""
        pids = [self.pid, *descendants(self.pid)]
        if self.running():
            os.killpg(self.pid, signal.SIGKILL)
        for pid in pids[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(PATIENCE_S)

    def tail(self, lines: int = 40) -> str:
        """Return the end of its output, for the message of a failure."""
        return "\n".join([*self.stdout[-lines:], *self.stderr[-lines:]])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_tree()
        for reader in self._readers:
            reader.join(10)
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


def run_worker(*arguments: str, env: Mapping[str, str] | None = None) -> Worker:
    """Start `python -m worker` with these arguments; for `with`."""
    return Worker(arguments, env)


def children(pid: int) -> list[int]:
    """Return the pids of a process's direct children, the oldest first; none if it has ended (Linux)."""
    pids: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    except FileNotFoundError:
        pass
    return pids


def descendants(pid: int) -> list[int]:
    pids = children(pid)
    return pids + [descendant for child in pids for descendant in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process is running (a zombie is not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _read(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))
