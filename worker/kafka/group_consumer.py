"""One member of the consumer group: reads record batches and commits offsets.

librdkafka does not survive a fork: a GroupConsumer is created in the process that uses it, never in the supervisor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.core.log import LIBRDKAFKA
from worker.core.native import native, reader_in_use
from worker.core.records import Key
from worker.kafka.errors import TopicNotFound, auth_error, checked, commit_error, raise_auth_error
from worker.kafka.properties import consumer_properties, non_consumer_properties
from worker.kafka.read_range import offsets_at
from worker.kafka.readers import NativeReader, PythonReader, Read, RecordReader
from worker.kafka.topics import topic_ids

log = logging.getLogger(__name__)


class Committed(NamedTuple):
    """A partition's commit and its log's bounds at assignment."""

    offset: int | None  # None: never committed
    metadata: str | None
    topic_id: str
    log_start: int
    log_end: int
    end: int | None = None  # of `--until`


class GroupConsumer:
    """A consumer of Kafka; a member of the group once it is subscribed."""

    def __init__(self, settings: Settings, index: int, share: int) -> None:
        """`share` is the number of partitions that it may be assigned."""
        self._callbacks: dict[str, Any] = {}
        # The new group protocol assigns partitions incrementally; the classic one, with range, all at once.
        self._incremental = settings.kafka.get("group.protocol") == "consumer"
        self._failure: BaseException | None = None
        self._consumer = Consumer(
            consumer_properties(settings, index, share), logger=logging.getLogger(LIBRDKAFKA), error_cb=self._on_error
        )
        self._admin_properties = non_consumer_properties(settings)
        self._admin = self._new_admin()
        self._until_ms = settings.until_ms
        self._closing = False
        self._reader = self._open_reader(settings)

    def _open_reader(self, settings: Settings) -> RecordReader:
        if reader_in_use(settings.reader) == "native":
            try:
                return NativeReader(self._consumer, native().library)
            except ValueError as error:
                raise Fatal(f"the native reader cannot be used: {error}; fix: --reader python") from None
        return PythonReader(self._consumer, many_topics=not settings.one_topic, incremental=self._incremental)

    @property
    def read_limit(self) -> int:
        return self._reader.limit

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
            "on_revoke": self._guard(lambda partitions: self._release(partitions, on_revoke)),
            "on_lost": self._guard(lambda partitions: self._release(partitions, on_lost)),
        }
        self.subscribe(topics)

    def subscribe(self, topics: Sequence[str]) -> None:
        if topics:
            self._consumer.subscribe(list(topics), **self._callbacks)
        else:
            self._consumer.unsubscribe()

    def read(self, timeout: float) -> Read:
        """Read up to `read_limit` messages, waiting up to `timeout` seconds (below 0.2: one call) for that many.

        Raises what a callback raised. The process must then end: librdkafka has assigned the partitions regardless.
        """
        read = self._reader.read(timeout)
        if self._failure is not None:
            raise self._failure
        return read

    def committed(self, partitions: Sequence[Key]) -> dict[Key, Committed]:
        """Return the group's commits, the topic ids and the logs' bounds, without partitions of deleted topics.

        Raises Retryable.
        """
        try:
            return self._committed(partitions)
        except KafkaException as error:
            raise_auth_error(error.args[0])
            text = f"Kafka: cannot read committed offsets: {error.args[0].str()}"
            raise Retryable(text, reason="connection") from None

    def _committed(self, partitions: Sequence[Key]) -> dict[Key, Committed]:
        ids = topic_ids(self._admin, sorted({topic for topic, _ in partitions}))
        keys = [key for key in partitions if key[0] in ids]
        commits: dict[Key, Committed] = {}
        if not keys:
            return commits
        ends = {} if self._until_ms is None else offsets_at(self._consumer, keys, self._until_ms)
        for item in checked(self._consumer.committed([TopicPartition(*key) for key in keys], timeout=10)):
            key = item.topic, item.partition
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=10)
            offset = item.offset if item.offset >= 0 else None
            commits[key] = Committed(offset, item.metadata, ids[item.topic], low, high, ends.get(key))
        return commits

    def commit(self, offsets: Sequence[tuple[str, int, int, str]]) -> None:
        """Commit (topic, partition, offset, metadata) of assigned partitions, and wait for the answer.

        Call it only in the thread that reads. Raises Retryable; its reason is `fenced` if this member was expelled and
        may not write.
        """
        commits = [TopicPartition(topic, partition, offset, metadata) for topic, partition, offset, metadata in offsets]
        try:
            checked(self._consumer.commit(offsets=commits, asynchronous=False))
        except KafkaException as error:
            raise commit_error(error.args[0]) from None

    def topic_id(self, topic: str) -> str:
        """Return the topic's current id; call it in any thread. Raises Retryable, or TopicNotFound."""
        try:
            ids = topic_ids(self._admin, [topic])
        except KafkaException as error:
            raise_auth_error(error.args[0])
            self._admin = self._new_admin()  # in case the old client is the cause
            raise Retryable(
                f"Kafka does not describe topic {topic}: {error.args[0].str()}", reason="connection"
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
        self._consumer.resume([TopicPartition(*key) for key in partitions])

    def close(self) -> None:
        """Leave the group; `on_revoke` is called for what is still assigned."""
        self._closing = True
        self._reader.close()
        self._consumer.close()

    def _assign(
        self, partitions: list[TopicPartition], on_assign: Callable[[list[Key]], Mapping[Key, int | None]]
    ) -> None:
        if self._closing:  # librdkafka assigns partitions even while it leaves the group
            return
        starts = on_assign(_keys(partitions))
        self._reader.attach(_keys(partitions))
        idle: list[TopicPartition] = []
        active: list[TopicPartition] = []
        for item in partitions:
            offset = starts[item.topic, item.partition]
            item.offset = OFFSET_BEGINNING if offset is None else offset
            (idle if offset is None else active).append(item)
        (self._consumer.incremental_assign if self._incremental else self._consumer.assign)(partitions)
        self._consumer.resume(active)  # librdkafka keeps a pause across assignments
        self._consumer.pause(idle)

    def _release(self, partitions: list[TopicPartition], callback: Callable[[list[Key]], None]) -> None:
        callback(_keys(partitions))
        self._reader.detach(_keys(partitions))

    def _guard(self, callback: Callable[[list[TopicPartition]], None]) -> Callable[[Any, list[TopicPartition]], None]:
        """Keep a callback's exception for `read`: librdkafka would print it and assign regardless."""

        def call(_consumer: Any, partitions: list[TopicPartition]) -> None:
            try:
                callback(partitions)
            except BaseException as error:
                self._failure = error

        return call

    def _on_error(self, error: KafkaError) -> None:
        if fatal := auth_error(error):
            self._failure = fatal
        elif error.fatal():
            self._failure = Fatal(f"Kafka: {error.str()}", code=ExitCode.FAILED)


def _keys(partitions: list[TopicPartition]) -> list[Key]:
    return [(item.topic, item.partition) for item in partitions]
