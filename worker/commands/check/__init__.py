"""The `check` command: checks Kafka, the store, a sample of events and the options, and shows how to fix each fault.

It never joins the group. It writes nothing, except what `--create` creates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from worker.commands.check.clickhouse import check_clickhouse
from worker.commands.check.evolution import check_evolution
from worker.commands.check.finding import Finding, Stored, fail_with
from worker.commands.check.kafka import check_kafka
from worker.commands.check.options import check_options
from worker.commands.check.position import check_position
from worker.commands.check.propose import create_proposed
from worker.commands.check.read_sample import sample_events
from worker.commands.check.redis import check_redis
from worker.commands.check.registry import check_registry
from worker.commands.check.sample import check_sample
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import ExitCode, WorkerError
from worker.decoding.transform import load_transform
from worker.sinks.clickhouse.names import shown


def check(
    settings: Settings, *, create: bool, partitions: int, sample: int, out: TextIO, proposed: TextIO | None = None
) -> int:
    """Print a line per finding as it is found; return FAILED if one is FAIL, else OK.

    `create` creates the topic (with `partitions`), the dead-letter topic and the table if they are missing. `sample` is
    how many events of each topic are tried on the table. With `proposed`, the table has columns for a sample of the
    events, and its statement is printed there.
    """
    printed: set[Finding] = set()
    for finding in _findings(settings, create, partitions, sample, proposed):
        if finding not in printed:  # topics that share a store have the same findings about it
            printed.add(finding)
            print(finding, file=out, flush=True)
    return ExitCode.FAILED if any(finding.level == "FAIL" for finding in printed) else ExitCode.OK


def _findings(
    settings: Settings, create: bool, partitions: int, sample: int, proposed: TextIO | None
) -> Iterator[Finding]:
    transform = None
    try:
        transform = load_transform(settings.transform) if settings.transform else None
    except WorkerError as error:
        yield fail_with("transform", error)
    existing: dict[str, int] = {}  # partitions of each topic
    readable: list[str] = []  # topics to sample
    yield from check_kafka(settings, create, partitions, existing, readable)
    yield from check_registry(settings, readable)
    if proposed and create:
        yield from create_proposed(list(map(settings.for_topic, readable)), sample, transform, proposed)
        create = False
    checks = {"redis": check_redis, "clickhouse": check_clickhouse}
    for topic in dict.fromkeys([*Selection(settings).names, *readable]):
        topic_settings, fields = settings.for_topic(topic), list[Stored]()
        for backend in settings.backends:
            known = len(fields)
            yield from checks[backend](topic_settings, create, fields)
            if len(fields) == known:  # the table cannot be used: a sample for the other store alone would mislead
                fields.clear()
        if topic in existing and fields and all(field.exists for field in fields):
            yield from check_position(topic_settings, existing[topic])
        if sample and topic in readable and fields:
            of_topic = "" if settings.one_topic else f" of {topic}"
            try:
                payloads, findings = sample_events(topic_settings, sample, transform)
                yield from findings
                yield from check_sample(payloads, fields, shown(topic_settings.table), of_topic)
            except WorkerError as error:
                yield fail_with("sample", error)
        if settings.evolve and topic in readable and fields and all(field.exists for field in fields):
            try:
                yield from check_evolution(topic_settings)
            except WorkerError as error:
                yield fail_with("evolve", error)
    yield from check_options(settings, sum(existing.values()))
