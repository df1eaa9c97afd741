"""The `check` command: looks at Kafka, the store, a sample of events and the options, and says what to mend.

It never joins the group; it writes nothing but what `--create` makes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import TextIO

from worker.commands.check.clickhouse import look_at_clickhouse
from worker.commands.check.finding import Finding, Stored, fail, fail_with, ok, warn
from worker.commands.check.kafka import look_at_kafka
from worker.commands.check.redis import look_at_redis
from worker.commands.check.sample import judge
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import ExitCode, WorkerError
from worker.kafka.log_reader import LogReader

_SAMPLE = 100  # events at most
_FEW_ROWS = 1000
_INSERTS_S = 20  # of all processes; ClickHouse merges about so many new parts without falling behind


def check(settings: Settings, *, create: bool, partitions: int, out: TextIO) -> int:
    """Print a line per finding as it is found; return FAILED if one is FAIL, else OK.

    `create` makes the topic (with so many partitions), the dead-letter topic and the table where they are missing.
    """
    found: set[Finding] = set()
    for finding in _findings(settings, create, partitions):
        if finding not in found:  # topics that share a place are not told twice of it
            found.add(finding)
            print(finding, file=out, flush=True)
    return ExitCode.FAILED if any(finding.level == "FAIL" for finding in found) else ExitCode.OK


def _findings(settings: Settings, create: bool, partitions: int) -> Iterator[Finding]:
    readable: list[str] = []  # topics to take a sample of
    yield from look_at_kafka(settings, create, partitions, readable)
    look = look_at_redis if settings.backend == "redis" else look_at_clickhouse
    for topic in dict.fromkeys([*Selection(settings).names, *readable]):
        one, fields = settings.for_topic(topic), list[Stored]()
        yield from look(one, create, fields)
        if topic in readable and fields:
            try:
                yield from judge(_sample(one), fields, one.table, "" if settings.one_topic else f" of {topic}")
            except WorkerError as error:
                yield fail_with("sample", error)
    yield from _options(settings)


def _sample(settings: Settings) -> list[bytes]:
    """Return the newest events, as many of each partition."""
    payloads: list[bytes] = []
    with closing(LogReader(settings, settings.topic)) as log_reader:
        count = log_reader.partitions()
        for partition in range(min(count, _SAMPLE)):
            low, high = log_reader.bounds(partition)
            for messages in log_reader.read(partition, max(low, high - max(1, _SAMPLE // count)), high):
                payloads += [payload for message in messages if (payload := message.value()) is not None]
    return payloads


def _options(settings: Settings) -> Iterator[Finding]:
    yield _port(settings)
    if settings.backend != "clickhouse":
        return
    if settings.batch_rows < _FEW_ROWS:
        yield warn(
            "options",
            f"--batch-rows {settings.batch_rows} makes many small parts in ClickHouse",
            "--batch-rows 100000",
        )
    inserts = (settings.processes or 1) * 1000 / max(settings.linger_ms, 1)
    if inserts > _INSERTS_S:
        yield warn(
            "options",
            f"--linger-ms {settings.linger_ms} lets {settings.processes or 1} processes insert {inserts:.0f} times a "
            "second into ClickHouse",
            f"--linger-ms {max(1000, 1000 * (settings.processes or 1) // _INSERTS_S)}",
        )


def _port(settings: Settings) -> Finding:
    what = "metrics"
    address = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        found = socket.getaddrinfo(settings.metrics_host, settings.metrics_port, type=socket.SOCK_STREAM)
        with socket.socket(*found[0][:3]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        return fail(
            what,
            f"{address} cannot be served: {error.strerror}, unless that is a worker that runs",
            "--metrics-port 0 (any free one) or another --metrics-host",
        )
    return ok(what, f"{address} is free" if settings.metrics_port else "any free port")
