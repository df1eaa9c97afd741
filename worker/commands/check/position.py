"""The check of the group's offsets against the store: what a first start would double, or leave out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from worker.commands.check.finding import Finding, fail, fail_with, warn
from worker.config.settings import Settings
from worker.core.errors import WorkerError
from worker.kafka.group_lag import GroupLag
from worker.sinks import open_sink


def check_position(settings: Settings, partitions: int) -> Iterator[Finding]:
    """Yield a finding where group and store do not agree on what was read. The table exists."""
    delivery = "auto" if settings.delivery == "exactly-once" else settings.delivery
    group, topic = settings.group_id, settings.topic
    try:
        with closing(GroupLag(settings)) as lag, closing(open_sink(replace(settings, delivery=delivery))) as sink:
            sink.open()
            for item in lag.refresh({topic: partitions}):
                if item.committed is None:
                    last = sink.last_stored_offset(topic, item.partition, item.start)
                    if last is not None and last < item.end:
                        yield fail(
                            "group",
                            f"{group} has no committed offset for {topic}[{item.partition}], but the table has its "
                            f"events up to offset {last}: they would be stored twice",
                            "the --group-id that wrote them, another --table, or kafka-consumer-groups.sh "
                            f"--reset-offsets --group {group} --topic {topic}:{item.partition} --to-offset {last + 1} "
                            "--execute",
                        )
                elif item.committed > item.start and sink.is_empty():
                    result = f"{group} has read {topic}[{item.partition}] up to offset {item.committed}"
                    fix = "nothing, if another store has the events; else another --group-id reads them again"
                    yield warn("group", f"{result}, but the store is empty", fix)
                    return
    except WorkerError as error:
        yield fail_with("group", error)
