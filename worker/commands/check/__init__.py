"""The `check` command: checks Kafka, the store, a sample of events and the options, and shows how to fix each fault.

It never joins the group. It writes nothing, except what `--create` creates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TextIO

from worker.commands.check.clickhouse import check_clickhouse
from worker.commands.check.finding import Finding, Stored, fail_with
from worker.commands.check.kafka import check_kafka
from worker.commands.check.options import check_options
from worker.commands.check.redis import check_redis
from worker.commands.check.registry import check_registry, sample_as_json
from worker.commands.check.sample import check_sample
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import ExitCode, WorkerError
from worker.kafka.log_reader import LogReader

_SAMPLE = 100  # events at most


def check(settings: Settings, *, create: bool, partitions: int, out: TextIO) -> int:
    """Print a line per finding as it is found; return FAILED if one is FAIL, else OK.

    `create` creates the topic (with `partitions`), the dead-letter topic and the table if they are missing.
    """
    printed: set[Finding] = set()
    for finding in _findings(settings, create, partitions):
        if finding not in printed:  # topics that share a store have the same findings about it
            printed.add(finding)
            print(finding, file=out, flush=True)
    return ExitCode.FAILED if any(finding.level == "FAIL" for finding in printed) else ExitCode.OK


def _findings(settings: Settings, create: bool, partitions: int) -> Iterator[Finding]:
    readable: list[str] = []  # topics to sample
    yield from check_kafka(settings, create, partitions, readable)
    yield from check_registry(settings, readable)
    check_store = check_redis if settings.backend == "redis" else check_clickhouse
    for topic in dict.fromkeys([*Selection(settings).names, *readable]):
        topic_settings, fields = settings.for_topic(topic), list[Stored]()
        yield from check_store(topic_settings, create, fields)
        if topic in readable and fields:
            of_topic = "" if settings.one_topic else f" of {topic}"
            try:
                payloads, findings = sample_as_json(topic_settings, _read_sample(topic_settings))
                yield from findings
                yield from check_sample(payloads, fields, topic_settings.table, of_topic)
            except WorkerError as error:
                yield fail_with("sample", error)
    yield from check_options(settings)


def _read_sample(settings: Settings) -> list[bytes]:
    """Return the newest events, equally many of each partition."""
    payloads: list[bytes] = []
    with closing(LogReader(settings, settings.topic)) as log_reader:
        count = log_reader.partitions()
        for partition in range(min(count, _SAMPLE)):
            low, high = log_reader.bounds(partition)
            for messages in log_reader.read(partition, max(low, high - max(1, _SAMPLE // count)), high):
                payloads += [payload for message in messages if (payload := message.value()) is not None]
    return payloads
