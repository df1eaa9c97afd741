"""Send dead letters back to their topic, each once: one transaction has the messages and the new replay position.

The position is a commit of a consumer group that no consumer joins, `<group>.dlq-replay.<topic>`. The next replay, also
after a crash, continues there. Two replays at the same time fence each other by the transactional id.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, TextIO

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.commands.dlq.position import Replayed, ReplayPosition, read_positions, replay_group
from worker.commands.progress import ProgressBar
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.errors import raise_auth_error
from worker.kafka.log_reader import LogReader
from worker.kafka.properties import client_properties, non_consumer_properties
from worker.kafka.topics import topic_configuration

_OFFSETS_RETENTION_S = 7 * 86_400  # Kafka's default
_TRANSACTION = 500  # dead letters; readers of the topic wait for the end of a transaction
_TIMEOUT_S = 30.0
_MAX_BYTES = 1_000_000_000  # librdkafka's own limit, so that only the broker's applies


def replay(
    settings: Settings,
    *,
    reason: str | None,
    yes: bool,
    out: TextIO,
    progress: TextIO | None = None,
    from_start: bool = False,
) -> int:
    """Produce the group's dead letters that were not replayed before to their origin topic. Without `yes`, only count.

    Returns OK. All groups that read the topic get these events, also those that have written them.
    Raises Retryable if a transaction fails: none of its dead letters is in the topic then, and the next replay
    continues with them. Raises Fatal, before the first transaction, if the topic does not exist, or is compacted and a
    dead letter has no key, or if the replay position may have expired, unless `from_start`. Several dead letters of one
    event, which a retried write causes, are replayed once. `progress` shows a progress bar if it is a terminal.
    """
    group = replay_group(settings)
    with (
        closing(LogReader(settings, settings.dead_letter_topic_name, group=group)) as log_reader,
        ProgressBar(progress) as bar,
    ):
        positions = read_positions(log_reader)
        if bar.is_shown:
            bar.total = sum(high - low for low, high in map(log_reader.bounds, positions))
        with closing(LogReader(settings, settings.topic)) as origin:
            partitions = origin.existing_partitions()
        is_compacted = "compact" in _cleanup_policy(settings)
        find_due = partial(_due, settings, reason, positions)
        if yes and not from_start and all(position == ReplayPosition() for position in positions.values()):
            _require_recent(group, find_due(Counter(), ProgressBar(None)))
        if is_compacted:
            _require_keys(settings, find_due(Counter(), ProgressBar(None)))
        counts: Counter[str] = Counter()
        due = find_due(counts, bar)
        if yes:
            _replay(settings, log_reader, group, due, positions, reason, partitions)
        else:
            for _ in due:
                pass
    left_out = f"{counts['before']} were replayed before, {counts['duplicate']} are duplicates"
    action = "replayed" if yes else "would replay"
    hint = "" if yes or not counts["due"] else "; add --yes to do it"
    print(f"{action} {counts['due']} dead letters to {settings.topic}; {left_out}{hint}", file=out)
    if counts["due"] and not yes:
        print(f"every group that reads {settings.topic} will get these events, not only {settings.group_id}", file=out)
        if is_compacted:
            print(f"{settings.topic} is compacted: each of these events becomes the newest one of its key", file=out)
    return ExitCode.OK


def _cleanup_policy(settings: Settings) -> str:
    """Return the topic's cleanup policy; empty if this client may not read it."""
    admin = AdminClient({**non_consumer_properties(settings), "log_level": 0})
    return topic_configuration(admin, settings.topic).get("cleanup.policy", "")


def _require_recent(group: str, due: Iterator[StoredDeadLetter]) -> None:
    """Raise Fatal if there is no position, and the dead letters are so old that Kafka may have deleted it."""
    oldest_ms = min((dead_letter.time_ms for dead_letter in due), default=None)
    age_s = time.time() - (oldest_ms / 1000 if oldest_ms is not None else math.inf)
    if age_s > _OFFSETS_RETENTION_S:
        raise Fatal(
            f"group {group} has no committed offset, and the oldest dead letter is {age_s / 86_400:.0f} days old: "
            "none was replayed, or Kafka has deleted the offsets (offsets.retention.minutes, 7 days), and a replay "
            "would send events again that were replayed before. worker dlq list shows them; --from-start replays all"
        )


def _require_keys(settings: Settings, due: Iterator[StoredDeadLetter]) -> None:
    """Raise Fatal if a dead letter has no key: a compacted topic would refuse it after others were sent."""
    counts = Counter(dead_letter.key is None for dead_letter in due)
    if counts[True]:
        raise Fatal(
            f"topic {settings.topic} is compacted, so it refuses events without a key, and {counts[True]} of the "
            f"{counts.total()} dead letters have none: nothing is replayed; --reason replays those of another reason",
            code=ExitCode.FAILED,
        )


def _due(
    settings: Settings,
    reason: str | None,
    positions: Mapping[int, ReplayPosition],
    counts: Counter[str],
    bar: ProgressBar,
) -> Iterator[StoredDeadLetter]:
    """Yield the dead letters to replay, in order; count these and the ones left out."""
    replayed = Replayed(settings, positions)
    sent = set()
    for dead_letter in bar.track(read_dead_letters(settings)):
        if not dead_letter.concerns(settings) or reason not in (None, dead_letter.reason):
            continue
        if replayed.is_past(dead_letter):
            counts["before"] += 1
        elif replayed.has_event(dead_letter) or dead_letter.event_key() in sent:
            counts["duplicate"] += 1
        else:
            sent.add(dead_letter.event_key())
            counts["due"] += 1
            yield dead_letter


def _replay(
    settings: Settings,
    log_reader: LogReader,
    group: str,
    due: Iterator[StoredDeadLetter],
    positions: dict[int, ReplayPosition],
    reason: str | None,
    partitions: int,
) -> None:
    producer = _producer(settings, group)
    try:
        producer.init_transactions(_TIMEOUT_S)
        while dead_letters := list(islice(due, _TRANSACTION)):
            producer.begin_transaction()
            for dead_letter in dead_letters:
                producer.produce(
                    settings.topic,
                    dead_letter.payload,
                    dead_letter.key,
                    timestamp=max(0, dead_letter.timestamp_ms),  # 0: now
                    partition=dead_letter.partition if dead_letter.partition < partitions else -1,
                    headers=_headers(log_reader.topic, dead_letter),
                )
                positions[dead_letter.dlq_partition] = positions[dead_letter.dlq_partition].after(dead_letter, reason)
            commits = [
                TopicPartition(log_reader.topic, partition, positions[partition].offset, positions[partition].encode())
                for partition in sorted({dead_letter.dlq_partition for dead_letter in dead_letters})
            ]
            producer.send_offsets_to_transaction(commits, log_reader.group_metadata(), _TIMEOUT_S)
            producer.commit_transaction(_TIMEOUT_S)
    except KafkaException as error:
        raise _aborted(producer, settings, error.args[0]) from None


def _producer(settings: Settings, group: str) -> Producer:
    properties: dict[str, Any] = {
        **client_properties(settings),
        "transactional.id": group,
        "transaction.timeout.ms": 30_000,  # the longest time that a crash delays the topic's readers
        "compression.type": "lz4",
        "message.max.bytes": _MAX_BYTES,
        "log_level": 0,  # errors are raised
    }
    return Producer(properties)


def _aborted(producer: Producer, settings: Settings, error: KafkaError) -> Retryable:
    """Abort the transaction; return the error to raise."""
    if error.txn_requires_abort():
        try:
            producer.abort_transaction(_TIMEOUT_S)
        except KafkaException as failure:
            error = failure.args[0]
    raise_auth_error(error)
    return Retryable(
        f"Kafka at {settings.bootstrap_servers}: {error.str()}; the dead letters of this transaction are not replayed: "
        "run it again",
        reason="connection",
    )


def _headers(topic: str, dead_letter: StoredDeadLetter) -> list[tuple[str, str | bytes | None]]:
    """Return the event's headers, and those that say where it comes from, to trace one that fails repeatedly."""
    values = {
        "dlq_topic": topic,
        "dlq_partition": dead_letter.dlq_partition,
        "dlq_offset": dead_letter.dlq_offset,
        "dlq_reason": dead_letter.reason,
        "dlq_field": dead_letter.field,
        "dlq_origin": f"{dead_letter.topic}[{dead_letter.partition}]@{dead_letter.offset}",
    }
    own: list[tuple[str, str | bytes | None]] = [(name, str(value).encode()) for name, value in values.items()]
    kept = [(name, value) for name, value in dead_letter.headers if name not in values]  # of an earlier replay
    return [*kept, *own]
