"""Where a group begins and ends: `--start` and `--until` as offsets of each partition."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.delivery import start_marker
from worker.core.log import fields
from worker.core.records import Key
from worker.kafka.errors import checked, commit_error
from worker.kafka.topics import topic_ids

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_LATEST = -1  # ListOffsets' special time


def keys_of(counts: Mapping[str, int]) -> list[Key]:
    """Return the first `counts[topic]` partitions of each topic."""
    return [(topic, partition) for topic, count in counts.items() for partition in range(count)]


def offsets_at(consumer: Consumer, keys: Sequence[Key], time_ms: int | None) -> dict[Key, int]:
    """Return the first offset of each partition whose timestamp is not before a time (Unix ms).

    Where there is none, and for None, it is the end of the log for a reader of committed events. That is asked for
    first: an event that is written in between is then at or after the returned offset, or before the time.
    Raises KafkaException.
    """
    ends = _list_offsets(consumer, keys, _LATEST)
    if time_ms is None:
        return ends
    found = _list_offsets(consumer, keys, time_ms)
    return {key: offset if offset >= 0 else ends[key] for key, offset in found.items()}


def _list_offsets(consumer: Consumer, keys: Sequence[Key], time_ms: int) -> dict[Key, int]:
    requested = [TopicPartition(*key, time_ms) for key in keys]
    answers = consumer.offsets_for_times(requested, timeout=_TIMEOUT_S) if requested else []
    return {(item.topic, item.partition): item.offset for item in checked(answers)}


def commit_start(consumer: Consumer, admin: AdminClient, settings: Settings, counts: Mapping[str, int]) -> str:
    """Commit where the group begins (`--start latest` or a time), unless it has committed anything before.

    One request commits the first `counts[topic]` partitions of all topics. So after a crash either all of them are
    committed or none is, and no partition begins later than another. Kafka takes such a commit only while the group has
    no members: another host that begins at the same time cannot move a group that reads already.

    Returns an empty text, or what has to be waited for. Raises KafkaException and Fatal.
    """
    keys = keys_of(counts)
    ids = topic_ids(admin, list(counts))
    begins = offsets_at(consumer, keys, settings.start_ms)
    commits = [
        TopicPartition(*key, offset, start_marker(ids[key[0]], settings.start))
        for key, offset in begins.items()
        if key[0] in ids
    ]
    commits_before = consumer.committed([TopicPartition(*key) for key in keys], timeout=_TIMEOUT_S)
    if any(item.offset >= 0 for item in checked(commits_before)):  # as late as possible before the commit
        log.info("the group has committed offsets, where it continues: --start %s does not apply", settings.start)
        return ""
    try:
        checked(consumer.commit(offsets=commits, asynchronous=False))
    except KafkaException as error:
        if commit_error(error.args[0]).reason != "fenced":
            raise
        return (
            f"group {settings.group_id} has members but no committed offsets, so --start {settings.start} cannot be "
            "applied until they have left; stop workers of this group that run without it"
        )
    for (topic, partition), offset in begins.items():
        log.info("the group begins here", extra=fields(topic=topic, partition=partition, offset=offset))
    return ""
