"""Reads any range of a topic's log, without joining a group or committing: for `verify`, `dlq`, `count`, `check`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from worker.config.settings import Settings
from worker.core.delivery import of_another_topic
from worker.core.errors import ExitCode, Fatal
from worker.kafka.errors import UNKNOWN_TOPIC, checked
from worker.kafka.observer import Observer
from worker.kafka.properties import MAX_BATCH_BYTES
from worker.kafka.read_range import offsets_at
from worker.kafka.readers import PythonReader
from worker.kafka.topics import topic_ids

_TIMEOUT_S = 10.0  # of one request
_COORDINATOR_S = 30.0  # to create or move a group's coordinator
_SILENCE_S = 60.0  # without a message where one must come
_NO_COORDINATOR = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class LogReader(Observer):
    """A reader of one topic. `committed` returns the commits of `group`. It never joins the group and never commits."""

    def __init__(self, settings: Settings, topic: str, *, group: str | None = None) -> None:
        self.topic = topic
        self._servers = f"Kafka at {settings.bootstrap_servers}"
        properties: dict[str, Any] = {
            "group.id": group or settings.group_id,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # events that retention removes meanwhile are passed over
            "receive.message.max.bytes": MAX_BATCH_BYTES,
            "queued.min.messages": 10_000,
            "queued.max.messages.kbytes": 32_768,
            "fetch.queue.backoff.ms": 1,
            "fetch.wait.max.ms": 50,  # also how long a range waits for the previous one's fetch
        }
        super().__init__(settings, properties, where=f"{self._servers}, topic {topic}: ")

    def partitions(self) -> int:
        """Return the number of partitions; 0 if the topic does not exist. Never creates it."""
        metadata = self._ask(lambda: self._consumer.list_topics(self.topic, timeout=_TIMEOUT_S)).topics[self.topic]
        if metadata.error is not None:
            if metadata.error.code() in UNKNOWN_TOPIC:
                return 0
            raise self._to_retryable(metadata.error)
        return len(metadata.partitions)

    def existing_partitions(self) -> int:
        """Return the number of partitions; raise Fatal if the topic does not exist."""
        if not (count := self.partitions()):
            raise Fatal(
                f"{self._servers}: topic {self.topic} does not exist; check --topic and --bootstrap-servers",
                code=ExitCode.FAILED,
            )
        return count

    def committed(self, count: int) -> dict[int, tuple[int | None, str]]:
        """Return the group's commit (None: never) and its metadata for each of the first `count` partitions."""
        requested = [TopicPartition(self.topic, partition) for partition in range(count)]
        answers = self._ask(lambda: checked(self._read_commits(requested)))
        return {item.partition: (item.offset if item.offset >= 0 else None, item.metadata or "") for item in answers}

    def _read_commits(self, requested: list[TopicPartition]) -> list[TopicPartition]:
        """Return the commits. A new cluster first creates the group's coordinator, and returns errors until then."""
        deadline = time.monotonic() + _COORDINATOR_S
        while True:
            try:
                return self._consumer.committed(requested, timeout=_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() not in _NO_COORDINATOR or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def accounted(self, count: int) -> dict[int, int | None]:
        """Return the offset below which the group has accounted for every event (None: it has not begun).

        A commit for a deleted topic of the same name does not count.
        """
        commits = self.committed(count)
        topic_id = self._ask(lambda: topic_ids(self._admin, [self.topic]))[self.topic]
        return {
            partition: None if of_another_topic(metadata, topic_id) else offset
            for partition, (offset, metadata) in commits.items()
        }

    def offsets_at(self, count: int, time_ms: int) -> dict[int, int]:
        """Return where the first `count` partitions begin for `--start` with a time (Unix ms)."""
        keys = [(self.topic, partition) for partition in range(count)]
        offsets = self._ask(lambda: offsets_at(self._consumer, keys, time_ms))
        return {partition: offset for (_, partition), offset in offsets.items()}

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the start of the log, and its end for a reader of committed events."""
        requested = TopicPartition(self.topic, partition)
        low, high = self._ask(lambda: self._consumer.get_watermark_offsets(requested, timeout=_TIMEOUT_S))
        return low, high

    def read(self, partition: int, start: int, end: int) -> Iterator[list[Message]]:
        """Yield the messages of [start, end) in log order, up to 1000 at a time.

        `end` is not beyond the log's end. Offsets without a message (compacted, aborted, transaction markers, removed)
        are left out.
        """
        if start >= end:
            return
        self._consumer.assign([TopicPartition(self.topic, partition, start)])
        last_message = time.monotonic()
        try:
            while True:
                messages = self._consumer.consume(PythonReader.limit, 0.1)
                if messages:
                    last_message = time.monotonic()
                elif time.monotonic() - last_message > _SILENCE_S:
                    raise self._to_retryable(self._last_error or KafkaError(KafkaError._TIMED_OUT))
                # The queue may still have messages of the previous range, above all its end.
                messages = [message for message in messages if message.partition() == partition]
                at_end = self._remove_errors(messages)
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
        """Return the group metadata that a transactional producer needs to commit for the group."""
        return self._consumer.consumer_group_metadata()

    def _remove_errors(self, messages: list[Message]) -> bool:
        """Remove errors from the list; return whether the end of the log was one of them."""
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


def require_topic(settings: Settings) -> None:
    """Raise Fatal if the settings' topic does not exist."""
    with closing(LogReader(settings, settings.topic)) as log_reader:
        log_reader.existing_partitions()
