"""How messages come out of a consumer: by confluent-kafka, an object for each, or by the optional native package."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol, cast, overload

from confluent_kafka import Consumer, KafkaError, Message

from worker.core.records import Key, LazyPayloads, RecordBatch
from worker.kafka.errors import UNKNOWN_TOPIC, raise_auth_error

log = logging.getLogger(__name__)


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

    def add_error(self, topic: str, partition: int, offset: int, error: KafkaError) -> None:
        """Take over an error that came in a message's stead; raises Fatal for one of authentication."""
        if error.code() == KafkaError._PARTITION_EOF:
            self.ends.append((topic, partition, offset))
            return
        raise_auth_error(error)
        if error.retriable() or error.code() in UNKNOWN_TOPIC:  # once it exists again, it is assigned anew
            log.warning("Kafka: %s", error.str())
            return
        out_of_range = error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
        self.errors.append(ReadError(topic, partition, out_of_range, error.str()))


class RecordReader(Protocol):
    """Reads what is assigned to a consumer. All calls come from the thread that the consumer's callbacks run in."""

    limit: int  # messages that one read returns at most

    def attach(self, keys: Sequence[Key]) -> None:
        """Read these partitions, which are about to be assigned."""

    def detach(self, keys: Sequence[Key]) -> None:
        """Read these partitions no longer: they were revoked."""

    def read(self, timeout: float) -> Read:
        """Serve the consumer's callbacks, and wait up to `timeout` seconds for `limit` messages."""

    def close(self) -> None:
        """Free everything; the consumer is closed next."""


class PythonReader:
    """Reads by `Consumer.consume`."""

    limit = 1000  # more cost cache misses, fewer cost more calls: bench/README.md

    def __init__(self, consumer: Consumer, *, many_topics: bool, incremental: bool) -> None:
        """`incremental`: partitions are assigned a few at a time, not all at once."""
        self._consumer = consumer
        self._many_topics = many_topics
        self._incremental = incremental
        self._many_partitions = True  # more than one partition may be assigned

    def attach(self, keys: Sequence[Key]) -> None:
        self._many_partitions = self._incremental or len(keys) != 1

    def detach(self, keys: Sequence[Key]) -> None: ...

    def read(self, timeout: float) -> Read:
        messages = self._consumer.consume(self.limit, timeout)
        read = Read([], [], [])
        if any(map(Message.error, messages)):
            for message in messages:
                _add_error_of(message, read)
            messages = [message for message in messages if message.error() is None]
        read.record_batches.extend(map(_record_batch, self._runs(messages)))
        return read

    def _runs(self, messages: list[Message]) -> Iterable[list[Message]]:
        """Return the consecutive messages of one partition."""
        if not messages:
            return []
        if not self._many_partitions:
            return [messages]
        runs: Iterable[Iterable[Message]] = [messages]
        if self._many_topics:
            runs = (run for _, run in groupby(messages, Message.topic))
        return [list(part) for run in runs for _, part in groupby(run, Message.partition)]

    def close(self) -> None: ...


class NativeReader:
    """Reads by the native package, from the consumer's own librdkafka: no object for each message.

    The consumer stays the group's member: `poll` serves its callbacks, and returns errors of the whole client.
    """

    limit = 5000

    def __init__(self, consumer: Consumer, library: str) -> None:
        """`library` is the path of the librdkafka that the consumer uses. Raises ValueError where it cannot be used."""
        from worker_native import Reader

        self._consumer = consumer
        self._reader = Reader(consumer, library)

    def attach(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._reader.attach(*key)

    def detach(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._reader.detach(*key)

    def read(self, timeout: float) -> Read:
        read = Read([], [], [])
        if (message := self._consumer.poll(0)) is not None:
            _add_error_of(message, read)
            if message.error() is None:  # it was fetched before its partition was attached
                read.record_batches.append(_record_batch([message]))
        runs, errors = self._reader.read(self.limit, int(timeout * 1000))
        for run in runs:
            read.record_batches.append(
                RecordBatch(
                    run.topic,
                    run.partition,
                    NativePayloads(run),
                    run.offsets(),
                    run.end,
                    run.timestamp_ms,
                    NativeMessages(run),
                )
            )
        for topic, partition, code, offset, text in errors:
            read.add_error(topic, partition, offset, KafkaError(code, text))
        return read

    def close(self) -> None:
        self._reader.close()


class NativePayloads(LazyPayloads):
    """The payloads of messages that librdkafka has; a bytes object is made for each that is looked at."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.size = source.size

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> NativePayloads: ...
    def __getitem__(self, index: int | slice) -> bytes | NativePayloads | None:
        if isinstance(index, slice):
            return NativePayloads(_slice(self.source, index))
        return cast("bytes | None", self.source.payload(index))

    def __contains__(self, value: object) -> bool:
        """Whether there is a tombstone (None), which is all that is asked for."""
        return value is None and self.source.tombstones > 0


class NativeMessages(Sequence["NativeMessage"]):
    """Messages that librdkafka has."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> NativeMessage: ...
    @overload
    def __getitem__(self, index: slice) -> NativeMessages: ...
    def __getitem__(self, index: int | slice) -> NativeMessage | NativeMessages:
        if isinstance(index, slice):
            return NativeMessages(_slice(self._source, index))
        return NativeMessage(self._source, index)

    def __iter__(self) -> Iterator[NativeMessage]:
        return (NativeMessage(self._source, index) for index in range(len(self._source)))


class NativeMessage(NamedTuple):
    """One of them."""

    source: Any
    position: int

    def key(self) -> bytes | None:
        return cast("bytes | None", self.source.key(self.position))

    def headers(self) -> list[tuple[str, bytes | None]]:
        return cast("list[tuple[str, bytes | None]]", self.source.headers(self.position))

    def timestamp(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.source.timestamp(self.position))


def _slice(source: Any, index: slice) -> Any:
    start, stop, _ = index.indices(len(source))
    return source.slice(start, stop)


def _add_error_of(message: Message, read: Read) -> None:
    if error := message.error():
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        read.add_error(cast(str, topic), cast(int, partition), cast(int, offset), error)


def _record_batch(messages: list[Message]) -> RecordBatch:
    first = cast(int, messages[0].offset())
    end = cast(int, messages[-1].offset()) + 1
    dense = end - first == len(messages)
    offsets = range(first, end) if dense else [cast(int, message.offset()) for message in messages]
    payloads = cast("list[bytes | None]", list(map(Message.value, messages)))
    topic, partition = messages[0].topic(), messages[0].partition()
    timestamp_ms = messages[0].timestamp()[1]
    return RecordBatch(cast(str, topic), cast(int, partition), payloads, offsets, end, timestamp_ms, messages)
