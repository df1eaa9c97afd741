"""Rejected events to the dead-letter topic: the raw bytes unchanged, why and where from in the headers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from worker.config.settings import Settings
from worker.core.batch import DeadLetter
from worker.core.errors import Retryable
from worker.core.log import LIBRDKAFKA
from worker.kafka.errors import check_rights
from worker.kafka.properties import non_consumer_properties
from worker.kafka.topics import ANSWER_S, answer

log = logging.getLogger(__name__)

_Header = tuple[str, str | bytes | None]

_FLUSH_S = 30.0
_HEADERS_BYTES = 64 << 10
_MAX_BYTES = 1_000_000_000  # librdkafka's own limit: the broker's is the one that counts


class DeadLetterProducer:
    """Writes letters and waits for the brokers to have them. Its producer is made when the first letter comes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._there: set[str] = set()  # topics that were looked for, or made

    def topic_for(self, topic: str) -> str:
        """Return where the letters of a topic go."""
        return self._settings.for_topic(topic).dead_letter_topic_name

    def write(self, topic: str, partition: int, dead_letters: Sequence[DeadLetter]) -> None:
        """Return once every letter is acknowledged by all in-sync replicas. Raises Retryable where one is not.

        After a failure all of them are written again: a letter may then be there twice, told by its origin headers.
        """
        home = self.topic_for(topic)
        if home not in self._there:
            self._create_topic(home, topic)
            self._there.add(home)
        producer = self._producer or self._open()
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failures.append(error)

        for dead_letter in dead_letters:
            headers = _headers(topic, partition, dead_letter, self._settings.group_id)
            self._produce(producer, home, dead_letter, headers, on_delivery)
        if producer.flush(_FLUSH_S):
            producer.purge()
            producer.flush(1)
            raise Retryable(f"dead letters: {home} did not take them within {_FLUSH_S:g} s", reason="timeout")
        if failures:
            raise _to_retryable(home, failures[0])

    def close(self) -> None:
        """Forget the producer; every letter that matters has been acknowledged."""
        self._producer = None

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

    def _create_topic(self, home: str, origin: str) -> None:
        """Make the topic if it is missing; letters are kept until somebody looks."""
        admin = AdminClient(non_consumer_properties(self._settings), logger=logging.getLogger(LIBRDKAFKA))
        try:
            topic = NewTopic(home, num_partitions=1, replication_factor=-1, config=topic_config(admin, origin))
            answer(admin.create_topics([topic], request_timeout=ANSWER_S)[home])
            log.warning("dead letters: made the topic %s, which keeps them until they are removed", home)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _to_retryable(home, error.args[0]) from None

    def _produce(
        self, producer: Producer, home: str, dead_letter: DeadLetter, headers: list[_Header], on_delivery: Any
    ) -> None:
        while True:
            try:
                producer.produce(home, dead_letter.payload, headers=headers, on_delivery=on_delivery)
            except BufferError:  # the queue is full: make room
                producer.poll(0.1)
            else:
                return


def _to_retryable(home: str, error: KafkaError) -> Retryable:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return Retryable(
            f"dead letters: {home} refuses an event for its size; raise its max.message.bytes to that of the origin",
            reason="other",
        )
    check_rights(error)
    return Retryable(f"dead letters: {home}: {error.str()}", reason="connection")


def topic_config(admin: AdminClient, origin: str) -> dict[str, str]:
    """Return the configuration of a dead-letter topic: whatever the origin topic takes fits, with its headers.

    Where this client may not read the origin's configuration, the broker's own limit has to do.
    """
    config = {"retention.ms": "-1"}
    resource = ConfigResource(ConfigResource.Type.TOPIC, origin)
    with contextlib.suppress(KafkaException):
        largest = answer(admin.describe_configs([resource], request_timeout=ANSWER_S)[resource])["max.message.bytes"]
        config["max.message.bytes"] = str(min(int(largest.value) + _HEADERS_BYTES, 2**31 - 1))
    return config


def _headers(topic: str, partition: int, dead_letter: DeadLetter, group: str) -> list[_Header]:
    return [
        ("reason", dead_letter.reason.encode()),
        ("field", dead_letter.field.encode()),
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % dead_letter.offset),
        ("time", b"%d" % (time.time() * 1000)),
        ("group", group.encode()),
    ]
