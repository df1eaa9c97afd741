"""Any range of a topic's log, read without joining a group and without committing: for `verify`, `dlq` and `check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.delivery import of_another_topic
from worker.core.errors import Retryable
from worker.kafka.errors import check_rights
from worker.kafka.group_consumer import READ_MESSAGES
from worker.kafka.properties import client_properties, unusable
from worker.kafka.topics import topic_ids

_TIMEOUT_S = 10.0  # of one question
_SILENCE_S = 60.0  # without a message where there must be some
_UNKNOWN = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class LogReader:
    """A client for one topic. `group` is whose commits `committed` tells; nothing joins it, nothing is committed.

    Every method may raise Retryable where the brokers do not answer, and Fatal where they refuse this client.
    """

    def __init__(self, settings: Settings, topic: str, *, group: str | None = None) -> None:
        self.topic = topic
        self._where = f"Kafka at {settings.bootstrap_servers}"
        self._said: KafkaError | None = None
        self._client = {**client_properties(settings), "log_level": 0}  # what it would log comes through error_cb, too
        properties: dict[str, Any] = {
            **self._client,
            "group.id": group or settings.group_id,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # what retention removes while it is read is stepped over
            "queued.min.messages": 10_000,
            "queued.max.messages.kbytes": 32_768,
            "fetch.queue.backoff.ms": 1,
            "fetch.wait.max.ms": 50,  # also how long the next range waits for the last one's fetch
        }
        try:
            self._consumer = Consumer(properties, error_cb=self._on_error)
        except KafkaException as error:
            raise unusable(error) from None

    def partitions(self) -> int:
        """Return how many partitions the topic has; 0 where there is no such topic. Never makes one."""
        found = self._ask(lambda: self._consumer.list_topics(self.topic, timeout=_TIMEOUT_S)).topics[self.topic]
        if found.error is not None:
            if found.error.code() in _UNKNOWN:
                return 0
            raise self._to_retryable(found.error)
        return len(found.partitions)

    def committed(self, count: int) -> dict[int, tuple[int | None, str]]:
        """Return the group's commit (None: never) and its metadata for each of the first `count` partitions."""
        asked = [TopicPartition(self.topic, partition) for partition in range(count)]
        answers = self._ask(lambda: self._consumer.committed(asked, timeout=_TIMEOUT_S))
        for item in answers:
            if item.error is not None:
                raise self._to_retryable(item.error)
        return {item.partition: (item.offset if item.offset >= 0 else None, item.metadata or "") for item in answers}

    def accounted(self, count: int) -> dict[int, int | None]:
        """Return the offset below which the group has accounted for every event (None: it has not begun).

        A commit that speaks of a topic with another id is none: that topic is gone.
        """
        commits = self.committed(count)
        topic_id = self._ask(lambda: topic_ids(AdminClient(self._client), [self.topic]))[self.topic]
        return {
            partition: None if of_another_topic(metadata, topic_id) else offset
            for partition, (offset, metadata) in commits.items()
        }

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the offsets at which the log starts, and at which it ends for a reader of committed events."""
        asked = TopicPartition(self.topic, partition)
        low, high = self._ask(lambda: self._consumer.get_watermark_offsets(asked, timeout=_TIMEOUT_S))
        return low, high

    def read(self, partition: int, start: int, end: int) -> Iterator[list[Message]]:
        """Yield the messages of [start, end) in the order of the log, up to a thousand at a time.

        `end` is not beyond the log's. Offsets without a message (compacted, aborted, transaction markers, removed) are
        not there.
        """
        if start >= end:
            return
        self._consumer.assign([TopicPartition(self.topic, partition, start)])
        heard = time.monotonic()
        try:
            while True:
                messages = self._consumer.consume(READ_MESSAGES, 0.1)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENCE_S:
                    raise self._to_retryable(self._said or KafkaError(KafkaError._TIMED_OUT))
                # What the last range left in the queue, its end above all, is not of this one.
                messages = [message for message in messages if message.partition() == partition]
                at_end = self._without_errors(messages)
                last = cast(int, messages[-1].offset()) if messages else -1
                if last >= end:
                    messages = [message for message in messages if cast(int, message.offset()) < end]
                if messages:
                    yield messages
                if at_end or last >= end - 1:
                    return
        finally:
            self._consumer.unassign()

    def group_metadata(self) -> Any:
        """Return what a transactional producer needs to commit for the group."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        self._consumer.close()

    def _without_errors(self, messages: list[Message]) -> bool:
        """Take what is no message out of the list; return whether the end of the log was among it."""
        if not any(map(Message.error, messages)):
            return False
        at_end = False
        for message in messages:
            if (error := message.error()) is not None:
                at_end = at_end or error.code() == KafkaError._PARTITION_EOF
                if error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                    raise self._to_retryable(error)
        messages[:] = [message for message in messages if message.error() is None]
        return at_end

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            answer = question()
        except KafkaException as error:
            self._consumer.poll(0)  # serves error_cb, which knows the reason
            raise self._to_retryable(self._said or error.args[0]) from None
        self._said = None
        return answer

    def _to_retryable(self, error: KafkaError) -> Retryable:
        check_rights(error)
        return Retryable(f"{self._where}, topic {self.topic}: {error.str()}", reason="connection")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._said = error
