"""Send dead letters back to their topic, each once: one transaction has the messages and the new replay position.

The position is a commit of a consumer group that no consumer joins, `<group>.dlq-replay.<topic>`. The next replay, also
after a crash, continues there. Two replays at the same time fence each other by the transactional id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, Self, TextIO

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.commands.progress import ProgressBar
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.errors import raise_auth_error
from worker.kafka.log_reader import LogReader
from worker.kafka.properties import client_properties

_VERSION = "r1"
_TRANSACTION = 500  # dead letters; readers of the topic wait for the end of a transaction
_TIMEOUT_S = 30.0
_MAX_BYTES = 1_000_000_000  # librdkafka's own limit, so that only the broker's applies


class ReplayPosition(NamedTuple):
    """How far one partition of the dead-letter topic is replayed: all below `offset`, and some reasons further."""

    offset: int = 0
    reasons: Mapping[str, int] = {}

    @classmethod
    def parse(cls, offset: int | None, metadata: str) -> Self:
        """Read the position from a commit."""
        version, _, rest = metadata.partition(";")
        words = [word.rpartition("=") for word in rest.split(";") if word] if version == _VERSION else []
        return cls(offset or 0, {reason: int(end) for reason, _, end in words})

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join([_VERSION, *(f"{reason}={end}" for reason, end in sorted(self.reasons.items()))])

    def is_past(self, dead_letter: StoredDeadLetter) -> bool:
        """Whether the dead letter was replayed, or left out as a duplicate."""
        return dead_letter.dlq_offset < max(self.offset, self.reasons.get(dead_letter.reason, 0))

    def after(self, dead_letter: StoredDeadLetter, reason: str | None) -> ReplayPosition:
        """Return the position when everything up to this dead letter is replayed: of that reason, or of all."""
        end = dead_letter.dlq_offset + 1
        if reason is None:
            return ReplayPosition(end, {name: other for name, other in self.reasons.items() if other > end})
        return self._replace(reasons={**self.reasons, reason: end})


def replay(settings: Settings, *, reason: str | None, yes: bool, out: TextIO, progress: TextIO | None = None) -> int:
    """Produce the group's dead letters that were not replayed before to their origin topic. Without `yes`, only count.

    Returns OK. All groups that read the topic get these events, also those that have written them.
    Raises Retryable if a transaction fails: none of its dead letters is in the topic then, and the next replay
    continues with them. Several dead letters of one event, which a retried write causes, are replayed once.
    `progress` shows a progress bar if it is a terminal.
    """
    group = f"{settings.group_id}.dlq-replay.{settings.topic}"
    with (
        closing(LogReader(settings, settings.dead_letter_topic_name, group=group)) as log_reader,
        ProgressBar(progress) as bar,
    ):
        count = log_reader.partitions()
        commits = log_reader.committed(count)
        if bar.is_shown:
            bar.total = sum(high - low for low, high in map(log_reader.bounds, range(count)))
        positions = {partition: ReplayPosition.parse(*commit) for partition, commit in commits.items()}
        counts: Counter[str] = Counter()
        due = _due(settings, reason, positions, counts, bar)
        if yes:
            with closing(LogReader(settings, settings.topic)) as origin:
                partitions = origin.partitions()
            if not partitions:
                raise Fatal(f"topic {settings.topic} does not exist on {settings.bootstrap_servers}")
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
    return ExitCode.OK


def _due(
    settings: Settings,
    reason: str | None,
    positions: Mapping[int, ReplayPosition],
    counts: Counter[str],
    bar: ProgressBar,
) -> Iterator[StoredDeadLetter]:
    """Yield the dead letters to replay, in order; count these and the ones left out."""
    start = dict(positions)  # a copy: `positions` advances during the replay
    replayed = set()
    if any(position != ReplayPosition() for position in start.values()):
        dead_letters = (dead_letter for dead_letter in read_dead_letters(settings) if dead_letter.concerns(settings))
        replayed = {_event_key(dead) for dead in dead_letters if start[dead.dlq_partition].is_past(dead)}
    for dead_letter in bar.track(read_dead_letters(settings)):
        if not dead_letter.concerns(settings) or reason not in (None, dead_letter.reason):
            continue
        if start[dead_letter.dlq_partition].is_past(dead_letter):
            counts["before"] += 1
        elif _event_key(dead_letter) in replayed:
            counts["duplicate"] += 1
        else:
            replayed.add(_event_key(dead_letter))
            counts["due"] += 1
            yield dead_letter


def _event_key(dead_letter: StoredDeadLetter) -> tuple[str, int, int, int]:
    """Return what identifies the event. The payload's hash tells it from events of a deleted topic of the same name."""
    return dead_letter.topic, dead_letter.partition, dead_letter.offset, hash(dead_letter.payload)


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
