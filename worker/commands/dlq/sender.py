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

from worker.commands.dlq.letters import StoredLetter, read_letters
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.errors import check_rights
from worker.kafka.log_reader import Scan
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

    def passed(self, letter: StoredLetter) -> bool:
        """Whether the letter has been replayed, or left out as a double."""
        return letter.position < max(self.every, self.reasons.get(letter.reason, 0))

    def after(self, letter: StoredLetter, reason: str | None) -> Place:
        """Return the place when everything up to this letter is replayed: of that reason, or all."""
        if reason is None:
            return Place(
                letter.position + 1, {name: end for name, end in self.reasons.items() if end > letter.position + 1}
            )
        return self._replace(reasons={**self.reasons, reason: letter.position + 1})


def replay(settings: Settings, *, reason: str | None, yes: bool, out: TextIO) -> int:
    """Produce every letter of the group that was not replayed before to its origin topic, or say what would be.

    Returns OK. All groups that read the topic get these events, also those that had no trouble with them.
    Raises Retryable where a transaction fails: none of its letters is then in the topic, and a next replay goes on with
    them. Letters of one event, as a retried write leaves them, are replayed once.
    """
    group = f"{settings.group_id}.dlq-replay.{settings.topic}"
    with closing(Scan(settings, settings.dead_letter_topic_name, group=group)) as scan:
        places = {home: Place.parse(*commit) for home, commit in scan.committed(scan.partitions()).items()}
        counts: Counter[str] = Counter()
        due = _due(settings, reason, places, counts)
        if yes:
            with closing(Scan(settings, settings.topic)) as origin:
                partitions = origin.partitions()
            if not partitions:
                raise Fatal(f"topic {settings.topic} does not exist on {settings.bootstrap_servers}")
            _replay(settings, scan, group, due, places, reason, partitions)
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
) -> Iterator[StoredLetter]:
    """Yield the letters to replay, in order; count them and what is left out."""
    known = dict(places)  # as it was: `places` moves on while letters are replayed
    seen = set()
    if any(place != Place() for place in known.values()):
        letters = (letter for letter in read_letters(settings) if letter.concerns(settings))
        seen = {_event(letter) for letter in letters if known[letter.home].passed(letter)}
    for letter in read_letters(settings):
        if not letter.concerns(settings) or reason not in (None, letter.reason):
            continue
        if known[letter.home].passed(letter):
            counts["before"] += 1
        elif _event(letter) in seen:
            counts["double"] += 1
        else:
            seen.add(_event(letter))
            counts["due"] += 1
            yield letter


def _event(letter: StoredLetter) -> tuple[str, int, int, int]:
    """Return what tells the letter's event from others, also from that of a topic of the same name that is gone."""
    return letter.topic, letter.partition, letter.offset, hash(letter.payload)


def _replay(
    settings: Settings,
    scan: Scan,
    group: str,
    due: Iterator[StoredLetter],
    places: dict[int, Place],
    reason: str | None,
    partitions: int,
) -> None:
    producer = _producer(settings, group)
    try:
        producer.init_transactions(_TIMEOUT_S)
        while chunk := list(islice(due, _CHUNK)):
            producer.begin_transaction()
            for letter in chunk:
                where = letter.partition if letter.partition < partitions else -1
                producer.produce(settings.topic, letter.payload, partition=where, headers=_headers(scan.topic, letter))
                places[letter.home] = places[letter.home].after(letter, reason)
            commits = [
                TopicPartition(scan.topic, home, places[home].every, places[home].encode())
                for home in sorted({letter.home for letter in chunk})
            ]
            producer.send_offsets_to_transaction(commits, scan.group_metadata(), _TIMEOUT_S)
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
    check_rights(error)
    return Retryable(
        f"Kafka at {settings.bootstrap_servers}: {error.str()}; the letters of this transaction are not replayed: "
        "run it again",
        reason="connection",
    )


def _headers(topic: str, letter: StoredLetter) -> list[tuple[str, str | bytes | None]]:
    """Return where a replayed event comes from: one that fails again and again can be traced."""
    values = {
        "dlq_topic": topic,
        "dlq_partition": letter.home,
        "dlq_offset": letter.position,
        "dlq_reason": letter.reason,
        "dlq_field": letter.field,
        "dlq_origin": f"{letter.topic}[{letter.partition}]@{letter.offset}",
    }
    return [(name, str(value).encode()) for name, value in values.items()]
