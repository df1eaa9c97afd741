"""Dead letters back into their topic, each once: the messages and the place that is reached go in one transaction.

The place is a commit of a consumer group that nobody joins, `<group>.dlq-replay.<topic>`. A second replay, or one after
a crash, goes on there; two at a time fence each other by the transaction's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, Self, TextIO

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.errors import raise_auth_error
from worker.kafka.log_reader import LogReader
from worker.kafka.properties import client_properties

_VERSION = "r1"
_CHUNK = 500  # letters of one transaction; readers of the topic wait for its end
_TIMEOUT_S = 30.0
_MAX_BYTES = 1_000_000_000  # librdkafka's own limit: the broker's is the one that counts


class Place(NamedTuple):
    """How far one partition of the dead-letter topic has been replayed: all below `every`, and some reasons further."""

    every: int = 0
    reasons: Mapping[str, int] = {}

    @classmethod
    def parse(cls, offset: int | None, metadata: str) -> Self:
        """Read a place out of a commit."""
        version, _, rest = metadata.partition(";")
        words = [word.rpartition("=") for word in rest.split(";") if word] if version == _VERSION else []
        return cls(offset or 0, {reason: int(end) for reason, _, end in words})

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join([_VERSION, *(f"{reason}={end}" for reason, end in sorted(self.reasons.items()))])

    def passed(self, dead_letter: StoredDeadLetter) -> bool:
        """Whether the letter has been replayed, or left out as a double."""
        return dead_letter.position < max(self.every, self.reasons.get(dead_letter.reason, 0))

    def after(self, dead_letter: StoredDeadLetter, reason: str | None) -> Place:
        """Return the place when everything up to this letter is replayed: of that reason, or all."""
        if reason is None:
            return Place(
                dead_letter.position + 1,
                {name: end for name, end in self.reasons.items() if end > dead_letter.position + 1},
            )
        return self._replace(reasons={**self.reasons, reason: dead_letter.position + 1})


def replay(settings: Settings, *, reason: str | None, yes: bool, out: TextIO) -> int:
    """Produce every letter of the group that was not replayed before to its origin topic, or say what would be.

    Returns OK. All groups that read the topic get these events, also those that had no trouble with them.
    Raises Retryable where a transaction fails: none of its letters is then in the topic, and a next replay goes on with
    them. Letters of one event, as a retried write leaves them, are replayed once.
    """
    group = f"{settings.group_id}.dlq-replay.{settings.topic}"
    with closing(LogReader(settings, settings.dead_letter_topic_name, group=group)) as log_reader:
        places = {home: Place.parse(*commit) for home, commit in log_reader.committed(log_reader.partitions()).items()}
        counts: Counter[str] = Counter()
        due = _due(settings, reason, places, counts)
        if yes:
            with closing(LogReader(settings, settings.topic)) as origin:
                partitions = origin.partitions()
            if not partitions:
                raise Fatal(f"topic {settings.topic} does not exist on {settings.bootstrap_servers}")
            _replay(settings, log_reader, group, due, places, reason, partitions)
        else:
            for _ in due:
                pass
    left_out = f"{counts['before']} were replayed before, {counts['double']} are doubles"
    done = "replayed" if yes else "would replay"
    hint = "" if yes or not counts["due"] else "; add --yes to do it"
    print(f"{done} {counts['due']} letters to {settings.topic}; {left_out}{hint}", file=out)
    if counts["due"] and not yes:
        print(f"every group that reads {settings.topic} will get these events, not only {settings.group_id}", file=out)
    return ExitCode.OK


def _due(
    settings: Settings, reason: str | None, places: Mapping[int, Place], counts: Counter[str]
) -> Iterator[StoredDeadLetter]:
    """Yield the letters to replay, in order; count them and what is left out."""
    known = dict(places)  # as it was: `places` moves on while letters are replayed
    seen = set()
    if any(place != Place() for place in known.values()):
        dead_letters = (dead_letter for dead_letter in read_dead_letters(settings) if dead_letter.concerns(settings))
        seen = {_event(dead_letter) for dead_letter in dead_letters if known[dead_letter.home].passed(dead_letter)}
    for dead_letter in read_dead_letters(settings):
        if not dead_letter.concerns(settings) or reason not in (None, dead_letter.reason):
            continue
        if known[dead_letter.home].passed(dead_letter):
            counts["before"] += 1
        elif _event(dead_letter) in seen:
            counts["double"] += 1
        else:
            seen.add(_event(dead_letter))
            counts["due"] += 1
            yield dead_letter


def _event(dead_letter: StoredDeadLetter) -> tuple[str, int, int, int]:
    """Return what tells the letter's event from others, also from that of a topic of the same name that is gone."""
    return dead_letter.topic, dead_letter.partition, dead_letter.offset, hash(dead_letter.payload)


def _replay(
    settings: Settings,
    log_reader: LogReader,
    group: str,
    due: Iterator[StoredDeadLetter],
    places: dict[int, Place],
    reason: str | None,
    partitions: int,
) -> None:
    producer = _producer(settings, group)
    try:
        producer.init_transactions(_TIMEOUT_S)
        while records := list(islice(due, _CHUNK)):
            producer.begin_transaction()
            for dead_letter in records:
                where = dead_letter.partition if dead_letter.partition < partitions else -1
                producer.produce(
                    settings.topic,
                    dead_letter.payload,
                    partition=where,
                    headers=_headers(log_reader.topic, dead_letter),
                )
                places[dead_letter.home] = places[dead_letter.home].after(dead_letter, reason)
            commits = [
                TopicPartition(log_reader.topic, home, places[home].every, places[home].encode())
                for home in sorted({dead_letter.home for dead_letter in records})
            ]
            producer.send_offsets_to_transaction(commits, log_reader.group_metadata(), _TIMEOUT_S)
            producer.commit_transaction(_TIMEOUT_S)
    except KafkaException as error:
        raise _aborted(producer, settings, error.args[0]) from None


def _producer(settings: Settings, group: str) -> Producer:
    properties: dict[str, Any] = {
        **client_properties(settings),
        "transactional.id": group,
        "transaction.timeout.ms": 30_000,  # what a crash may hold up the topic's readers
        "compression.type": "lz4",
        "message.max.bytes": _MAX_BYTES,
        "log_level": 0,  # errors are raised
    }
    return Producer(properties)


def _aborted(producer: Producer, settings: Settings, error: KafkaError) -> Retryable:
    """Give the transaction up; return what is to be said."""
    if error.txn_requires_abort():
        try:
            producer.abort_transaction(_TIMEOUT_S)
        except KafkaException as failure:
            error = failure.args[0]
    raise_auth_error(error)
    return Retryable(
        f"Kafka at {settings.bootstrap_servers}: {error.str()}; the letters of this transaction are not replayed: "
        "run it again",
        reason="connection",
    )


def _headers(topic: str, dead_letter: StoredDeadLetter) -> list[tuple[str, str | bytes | None]]:
    """Return where a replayed event comes from: one that fails again and again can be traced."""
    values = {
        "dlq_topic": topic,
        "dlq_partition": dead_letter.home,
        "dlq_offset": dead_letter.position,
        "dlq_reason": dead_letter.reason,
        "dlq_field": dead_letter.field,
        "dlq_origin": f"{dead_letter.topic}[{dead_letter.partition}]@{dead_letter.offset}",
    }
    return [(name, str(value).encode()) for name, value in values.items()]
