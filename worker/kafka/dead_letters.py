"""Writes dead letters: payload bytes unchanged, reason and origin in headers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from worker.config.settings import Settings
from worker.core.batch import DeadLetter
from worker.core.errors import Retryable
from worker.core.log import LIBRDKAFKA
from worker.kafka.errors import raise_auth_error
from worker.kafka.properties import non_consumer_properties
from worker.kafka.topics import ANSWER_S, topic_configuration, wait_for

log = logging.getLogger(__name__)

_Header = tuple[str, str | bytes | None]

OWN_HEADERS = ("reason", "field", "topic", "partition", "offset", "time", "group", "error")
"""The headers of a dead letter, after those of the event itself. `error` is the store's text, or empty."""

_FLUSH_S = 30.0
_HEADERS_BYTES = 64 << 10
_MAX_BYTES = 1_000_000_000  # librdkafka's own limit: the broker's is the one that counts


class DeadLetterProducer:
    """Writes dead letters and waits until the brokers have them. The first dead letter creates the producer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._existing: set[str] = set()  # dead-letter topics

    def write(self, topic: str, partition: int, dead_letters: Sequence[DeadLetter]) -> None:
        """Write dead letters; return once all in-sync replicas have acknowledged all of them. Raises Retryable.

        After a failure all of them are written again. The origin headers identify a duplicate.
        """
        target = self._settings.for_topic(topic).dead_letter_topic_name
        if target not in self._existing:
            self._create_topic(target, topic)
            self._existing.add(target)
        producer = self._producer or self._open()
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failures.append(error)

        for dead_letter in dead_letters:
            headers = _headers(topic, partition, dead_letter, self._settings.group_id)
            self._produce(producer, target, dead_letter, headers, on_delivery)
        if producer.flush(_FLUSH_S):
            producer.purge()
            producer.flush(1)
            raise Retryable(f"dead letters: {target} did not acknowledge them within {_FLUSH_S:g} s", reason="timeout")
        if failures:
            raise _to_retryable(target, failures[0])

    def _open(self) -> Producer:
        properties: dict[str, Any] = {
            **non_consumer_properties(self._settings),
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.max.bytes": _MAX_BYTES,
            "delivery.timeout.ms": 25_000,
        }
        self._producer = Producer(properties, logger=logging.getLogger(LIBRDKAFKA))
        return self._producer

    def _create_topic(self, target: str, source: str) -> None:
        """Create the topic if it is missing. Its dead letters do not expire."""
        admin = AdminClient(non_consumer_properties(self._settings), logger=logging.getLogger(LIBRDKAFKA))
        try:
            topic = NewTopic(target, num_partitions=1, replication_factor=-1, config=topic_config(admin, source))
            wait_for(admin.create_topics([topic], request_timeout=ANSWER_S)[target])
            log.warning("dead letters: created the topic %s, which keeps them until they are removed", target)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _to_retryable(target, error.args[0]) from None

    def _produce(
        self, producer: Producer, target: str, dead_letter: DeadLetter, headers: list[_Header], on_delivery: Any
    ) -> None:
        while True:
            try:
                producer.produce(
                    target,
                    dead_letter.payload,
                    dead_letter.key,
                    timestamp=max(0, dead_letter.timestamp_ms),  # 0: now
                    headers=headers,
                    on_delivery=on_delivery,
                )
            except BufferError:  # the queue is full: let it drain
                producer.poll(0.1)
            else:
                return


def _to_retryable(target: str, error: KafkaError) -> Retryable:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return Retryable(
            f"dead letters: {target} refuses an event for its size; set its max.message.bytes to the source topic's",
            reason="other",
        )
    raise_auth_error(error)
    return Retryable(f"dead letters: {target}: {error.str()}", reason="connection")


def topic_config(admin: AdminClient, source: str) -> dict[str, str]:
    """Return the configuration of a dead-letter topic: every event of the source topic fits, with its headers.

    If this client may not read the source's configuration, the broker's own limit applies.
    """
    config = {"retention.ms": "-1"}
    if largest := topic_configuration(admin, source).get("max.message.bytes"):
        config["max.message.bytes"] = str(min(int(largest) + _HEADERS_BYTES, 2**31 - 1))
    return config


def _headers(topic: str, partition: int, dead_letter: DeadLetter, group: str) -> list[_Header]:
    """Return the event's own headers, and after them OWN_HEADERS: where it comes from and why it is here."""
    return [
        *dead_letter.headers,
        ("reason", dead_letter.reason.encode()),
        ("field", dead_letter.field.encode()),
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % dead_letter.offset),
        ("time", b"%d" % (time.time() * 1000)),
        ("group", group.encode()),
        ("error", dead_letter.error.encode()),
    ]
