"""One member of the consumer group: reads record batches and commits offsets.

librdkafka does not survive a fork: a GroupConsumer is created in the process that uses it, never in the supervisor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.core.log import LIBRDKAFKA
from worker.core.records import Key, RecordBatch
from worker.kafka.errors import UNKNOWN_TOPIC, TopicNotFound, commit_error, is_auth_error, raise_auth_error
from worker.kafka.properties import consumer_properties, non_consumer_properties
from worker.kafka.topics import topic_ids

log = logging.getLogger(__name__)

READ_MESSAGES = 1000  # more cost cache misses, fewer cost more calls: bench/README.md


class Committed(NamedTuple):
    """A partition's commit and its log's bounds at assignment."""

    offset: int | None  # None: never committed
    metadata: str | None
    topic_id: str
    log_start: int
    log_end: int


class ReadError(NamedTuple):
    """A partition that cannot be read, and the reason."""

    topic: str
    partition: int
    out_of_range: bool
    text: str


class Read(NamedTuple):
    """The result of one read: record batches in log order, ends of partitions that were reached, errors."""

    record_batches: list[RecordBatch]
    ends: list[tuple[str, int, int]]  # topic, partition, the next offset of a reader at the end
    errors: list[ReadError]


class GroupConsumer:
    """A consumer of Kafka; a member of the group once it is subscribed."""

    def __init__(self, settings: Settings, index: int, share: int) -> None:
        """`share` is the number of partitions that it may be assigned."""
        self._callbacks: dict[str, Any] = {}
        self._many_topics = not settings.one_topic
        # The new group protocol assigns partitions incrementally; the classic one, with range, all at once.
        self._incremental = settings.kafka.get("group.protocol") == "consumer"
        self._failure: BaseException | None = None
        self._consumer = Consumer(
            consumer_properties(settings, index, share), logger=logging.getLogger(LIBRDKAFKA), error_cb=self._on_error
        )
        self._admin_properties = non_consumer_properties(settings)
        self._admin = self._new_admin()
        self._closing = False
        self._many_partitions = True  # more than one partition may be assigned

    def join(
        self,
        topics: Sequence[str],
        *,
        on_assign: Callable[[list[Key]], Mapping[Key, int | None]],
        on_revoke: Callable[[list[Key]], None],
        on_lost: Callable[[list[Key]], None],
    ) -> None:
        """Join the group. The callbacks run inside `read` and `close`, in the caller's thread.

        `on_assign` gets the partitions and returns the first offset to read of each (None: do not read it yet);
        `on_revoke` gets them while commits are possible, `on_lost` when they no longer are.
        """
        self._callbacks = {
            "on_assign": self._guard(lambda partitions: self._assign(partitions, on_assign)),
            "on_revoke": self._guard(lambda partitions: on_revoke(_keys(partitions))),
            "on_lost": self._guard(lambda partitions: on_lost(_keys(partitions))),
        }
        self.subscribe(topics)

    def subscribe(self, topics: Sequence[str]) -> None:
        """Replace the subscription."""
        if topics:
            self._consumer.subscribe(list(topics), **self._callbacks)
        else:
            self._consumer.unsubscribe()

    def read(self, timeout: float) -> Read:
        """Read up to READ_MESSAGES messages, waiting up to `timeout` seconds (below 0.2: one call) for that many.

        Raises what a callback raised. The process must then end: librdkafka has assigned the partitions regardless.
        """
        messages = self._consumer.consume(READ_MESSAGES, timeout)
        if self._failure is not None:
            raise self._failure
        ends: list[tuple[str, int, int]] = []
        errors: list[ReadError] = []
        if any(map(Message.error, messages)):
            for message in messages:
                if error := message.error():
                    self._collect_error(message, error, ends, errors)
            messages = [message for message in messages if message.error() is None]
        if not messages:
            return Read([], ends, errors)
        if not self._many_partitions:
            return Read([_record_batch(messages)], ends, errors)
        runs: Iterable[Iterable[Message]] = [messages]
        if self._many_topics:
            runs = (run for _, run in groupby(messages, Message.topic))
        return Read(
            [_record_batch(list(part)) for run in runs for _, part in groupby(run, Message.partition)], ends, errors
        )

    def committed(self, partitions: Sequence[Key], timeout: float = 60.0) -> dict[Key, Committed]:
        """Return the group's commits, the topic ids and the log starts; retry for `timeout` seconds.

        Partitions of deleted topics are left out.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._committed(partitions)
            except KafkaException as error:
                raise_auth_error(error.args[0])
                if time.monotonic() > deadline:
                    raise Fatal(f"Kafka: cannot read committed offsets: {error}", code=ExitCode.FAILED) from None
                log.warning("cannot read committed offsets, retrying: %s", error.args[0].str())
                time.sleep(0.5)

    def _committed(self, partitions: Sequence[Key]) -> dict[Key, Committed]:
        ids = topic_ids(self._admin, sorted({topic for topic, _ in partitions}))
        requested = [TopicPartition(topic, partition) for topic, partition in partitions if topic in ids]
        commits: dict[Key, Committed] = {}
        if not requested:
            return commits
        for item in self._consumer.committed(requested, timeout=10):
            if item.error:
                raise KafkaException(item.error)
            low, high = self._consumer.get_watermark_offsets(TopicPartition(item.topic, item.partition), timeout=10)
            offset = item.offset if item.offset >= 0 else None
            commits[item.topic, item.partition] = Committed(offset, item.metadata, ids[item.topic], low, high)
        return commits

    def commit(self, offsets: Sequence[tuple[str, int, int, str]]) -> None:
        """Commit (topic, partition, offset, metadata) of assigned partitions, and wait for the answer.

        Call it only in the thread that reads. Raises Retryable; its reason is `fenced` if this member was expelled and
        may not write.
        """
        commits = [TopicPartition(topic, partition, offset, metadata) for topic, partition, offset, metadata in offsets]
        try:
            answers = self._consumer.commit(offsets=commits, asynchronous=False)
        except KafkaException as error:
            raise commit_error(error.args[0]) from None
        for answer in answers or ():
            if answer.error:
                raise commit_error(answer.error)

    def topic_id(self, topic: str) -> str:
        """Return the topic's current id; call it in any thread. Raises Retryable, or TopicNotFound."""
        try:
            ids = topic_ids(self._admin, [topic])
        except KafkaException as error:
            raise_auth_error(error.args[0])
            self._admin = self._new_admin()  # in case the old client is the cause
            raise Retryable(
                f"Kafka does not describe topic {topic}: {error.args[0].str()}", reason="connection", of_store=False
            ) from None
        if topic not in ids:
            raise TopicNotFound(topic)
        return ids[topic]

    def _new_admin(self) -> AdminClient:
        return AdminClient(self._admin_properties, logger=logging.getLogger(LIBRDKAFKA))

    def log_start(self, topic: str, partition: int) -> int | None:
        """Return the first offset that the log has; None where Kafka does not answer."""
        try:
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        except KafkaException as error:
            log.warning("Kafka does not tell where %s[%d] begins: %s", topic, partition, error.args[0].str())
            return None
        return int(low)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue reading at an offset."""
        self._consumer.seek(TopicPartition(topic, partition, offset))

    def begin(self, topic: str, partition: int, offset: int) -> bool:
        """Start to read an assigned partition that was not read yet; False if librdkafka is not ready."""
        try:
            self.seek(topic, partition, offset)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            return False
        self.resume([(topic, partition)])
        return True

    def pause(self, partitions: Sequence[Key]) -> None:
        """Stop fetching. Prefetched messages are dropped, so do not toggle often."""
        self._consumer.pause([TopicPartition(*key) for key in partitions])

    def resume(self, partitions: Sequence[Key]) -> None:
        """Fetch again."""
        self._consumer.resume([TopicPartition(*key) for key in partitions])

    def close(self) -> None:
        """Leave the group; `on_revoke` is called for what is still assigned."""
        self._closing = True
        self._consumer.close()

    def _assign(
        self, partitions: list[TopicPartition], on_assign: Callable[[list[Key]], Mapping[Key, int | None]]
    ) -> None:
        if self._closing:  # librdkafka assigns partitions even while it leaves the group
            return
        starts = on_assign(_keys(partitions))
        idle: list[TopicPartition] = []
        active: list[TopicPartition] = []
        for item in partitions:
            offset = starts[item.topic, item.partition]
            item.offset = OFFSET_BEGINNING if offset is None else offset
            (idle if offset is None else active).append(item)
        (self._consumer.incremental_assign if self._incremental else self._consumer.assign)(partitions)
        self._consumer.resume(active)  # librdkafka keeps a pause across assignments
        self._consumer.pause(idle)
        self._many_partitions = self._incremental or len(partitions) != 1

    def _guard(self, callback: Callable[[list[TopicPartition]], None]) -> Callable[[Any, list[TopicPartition]], None]:
        """Keep a callback's exception for `read`: librdkafka would print it and assign regardless."""

        def call(_consumer: Any, partitions: list[TopicPartition]) -> None:
            try:
                callback(partitions)
            except BaseException as error:
                self._failure = error

        return call

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or is_auth_error(error):
            try:
                raise_auth_error(error)
                self._failure = Fatal(f"Kafka: {error.str()}", code=ExitCode.FAILED)
            except Fatal as fatal:
                self._failure = fatal

    def _collect_error(
        self, message: Message, error: KafkaError, ends: list[tuple[str, int, int]], errors: list[ReadError]
    ) -> None:
        topic, partition = cast(str, message.topic()), cast(int, message.partition())
        if error.code() == KafkaError._PARTITION_EOF:
            ends.append((topic, partition, cast(int, message.offset())))
            return
        raise_auth_error(error)
        if error.retriable() or error.code() in UNKNOWN_TOPIC:  # once it exists again, its partitions are assigned anew
            log.warning("Kafka: %s", error.str())
            return
        out_of_range = error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
        errors.append(ReadError(topic, partition, out_of_range, error.str()))


def _keys(partitions: list[TopicPartition]) -> list[Key]:
    return [(item.topic, item.partition) for item in partitions]


def _record_batch(messages: list[Message]) -> RecordBatch:
    first = cast(int, messages[0].offset())
    end = cast(int, messages[-1].offset()) + 1
    dense = end - first == len(messages)
    offsets = range(first, end) if dense else [cast(int, message.offset()) for message in messages]
    payloads = cast("list[bytes | None]", list(map(Message.value, messages)))
    topic, partition = messages[0].topic(), messages[0].partition()
    timestamp_ms = messages[0].timestamp()[1]
    return RecordBatch(cast(str, topic), cast(int, partition), payloads, offsets, end, timestamp_ms, messages)
