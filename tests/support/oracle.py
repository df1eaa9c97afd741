"""Finds exactly which events are missing or stored twice: every event contains its number, and so does its row.

Event `i` is one millisecond after event `i - 1`, from a device of its own, so a row shows which event it is and whether
it is complete. The caller excludes events that must not become rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import redis
from clickhouse_driver import Client
from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.support.kit import PATIENCE_S, wait_until

BEGINNING_MS = 1_700_000_000_000
_NETWORK = 10 << 24  # 10.0.0.0
_SHOWN = 5
_T = TypeVar("_T")


class Verdict(NamedTuple):
    """How many events are missing, how many rows are surplus, and how many rows differ from what was sent."""

    missing: int
    doubled: int
    wrong: int
    examples: str = ""


EXACT = Verdict(0, 0, 0)


class DeadLetter(NamedTuple):
    """A dead letter, by its headers."""

    partition: int
    offset: int
    reason: str
    field: str
    payload: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def device(i: int) -> str:
    return ".".join(str((_NETWORK + i) >> shift & 255) for shift in (24, 16, 8, 0))


def event(i: int) -> bytes:
    return b'{"timestamp": %d, "device_ip": "%s", "error_code": %d}' % (BEGINNING_MS + i, device(i).encode(), i % 11)


def events(count: int, first: int = 0) -> list[bytes]:
    return [event(i) for i in range(first, first + count)]


def rows(clickhouse: str, table: str) -> int:
    """Return how many rows the table has; 0 if it does not exist."""
    client = Client.from_url(clickhouse)
    try:
        exists = client.execute(f"EXISTS TABLE {table}")[0][0]
        return int(client.execute(f"SELECT count() FROM {table}")[0][0]) if exists else 0
    finally:
        client.disconnect()


def judge_rows(clickhouse: str, table: str, expected: Iterable[int], *, origin: bool = True) -> Verdict:
    """Compare a table with the numbers of the events that should be in it, each once and complete.

    With `origin`, rows of the same offset in Kafka also count as doubled, whatever they contain.
    """
    distinct = "uniqExact(_topic, _partition, _offset)" if origin else "count()"
    client = Client.from_url(clickhouse)
    try:
        ((count, offsets, wrong),) = client.execute(
            f"SELECT count(), {distinct}, countIf(device_ip != IPv4NumToString(toUInt32({_NETWORK} + id)) "
            f"OR error_code != id % 11 OR id < 0) FROM (SELECT *, {_number()} AS id FROM {table})"
        )
        counts = dict(client.execute(f"SELECT {_number()} AS id, count() FROM {table} GROUP BY id"))
    finally:
        client.disconnect()
    wanted = set(expected)
    missing = wanted - counts.keys()
    extra = {i: n - (i in wanted) for i, n in counts.items() if n > 1 or i not in wanted}
    return Verdict(
        len(missing),
        max(sum(extra.values()), count - offsets),
        wrong,
        _examples(missing, extra) if missing or extra else "",
    )


def judge_devices(url: str, key: str, expected: Iterable[int]) -> Verdict:
    """Compare a HyperLogLog with a new one of the same devices: both and their union must have the same count.

    PFADD in any order and any number of times gives the same registers, so equality is exact, not approximate.
    """
    client = redis.Redis.from_url(url)
    clean = f"{key}:clean"
    try:
        numbers = list(expected)
        for start in range(0, len(numbers), 10_000):
            client.pfadd(clean, *map(device, numbers[start : start + 10_000]))
        counted, wanted, union = client.pfcount(key), client.pfcount(clean), client.pfcount(key, clean)
        client.delete(clean)
    finally:
        client.close()
    return Verdict(union - counted, union - wanted, 0)


def dead_letters(kafka: str, topic: str) -> list[DeadLetter]:
    """Read a whole dead-letter topic; nothing if it does not exist."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "oracle", "log_level": 2, "enable.auto.commit": False})
    result: list[DeadLetter] = []
    try:
        for partition, end in ends(kafka, topic).items():
            if not end:
                continue
            consumer.assign([TopicPartition(topic, partition, 0)])

            def read_to(end: int = end) -> bool:
                messages = [message for message in consumer.consume(1000, 0.1) if not message.error()]
                result.extend(map(_dead_letter, messages))
                return bool(messages) and (messages[-1].offset() or 0) + 1 >= end

            wait_until(read_to, PATIENCE_S, f"all of {topic}[{partition}] is read")
    finally:
        consumer.close()
    return result


def ends(kafka: str, topic: str) -> dict[int, int]:
    """Return the end offset of each partition of a topic; empty if the topic does not exist."""

    def query(client: Consumer, partitions: list[TopicPartition]) -> dict[int, int]:
        return {item.partition: client.get_watermark_offsets(item, timeout=10)[1] for item in partitions}

    return _query_partitions(kafka, "oracle", topic, query)


def committed(kafka: str, group: str, topic: str) -> dict[int, tuple[int, str]]:
    """Return the group's offset and metadata of each partition that it has committed."""

    def query(client: Consumer, partitions: list[TopicPartition]) -> dict[int, tuple[int, str]]:
        offsets = client.committed(partitions, timeout=10)
        for item in offsets:
            if item.error:
                raise KafkaException(item.error)
        return {item.partition: (item.offset, item.metadata or "") for item in offsets if item.offset >= 0}

    return _query_partitions(kafka, group, topic, query)


def accounted_offsets(kafka: str, group: str, topic: str) -> int:
    """Return the sum of the group's committed offsets."""
    return sum(offset for offset, _ in committed(kafka, group, topic).values())


def offsets_of_rows(clickhouse: str, table: str) -> dict[int, int]:
    """Return the offset after the last row of each partition."""
    client = Client.from_url(clickhouse)
    try:
        return dict(client.execute(f"SELECT _partition, max(_offset) + 1 FROM {table} GROUP BY _partition"))
    finally:
        client.disconnect()


def _query_partitions(
    kafka: str, group: str, topic: str, query: Callable[[Consumer, list[TopicPartition]], dict[int, _T]]
) -> dict[int, _T]:
    """Query a topic's partitions until the broker responds: a broker that has just started does not yet.

    Not with AdminClient: then its responses never arrived, or it crashed the process.
    """
    client = Consumer(
        {"bootstrap.servers": kafka, "group.id": group, "log_level": 2, "isolation.level": "read_uncommitted"}
    )

    def attempt() -> list[dict[int, _T]]:
        try:
            metadata = client.list_topics(timeout=10).topics.get(topic)
            partitions = [TopicPartition(topic, partition) for partition in (metadata.partitions if metadata else ())]
            return [query(client, partitions) if partitions else {}]
        except KafkaException:
            return []

    try:
        return wait_until(attempt, PATIENCE_S, f"the broker responds about {topic} and {group}")[0]
    finally:
        client.close()


def _number() -> str:
    return f"toUnixTimestamp64Milli(timestamp) - {BEGINNING_MS}"


def _dead_letter(message: Any) -> DeadLetter:
    headers: Sequence[tuple[str, bytes]] = message.headers() or []
    text = {name: value.decode() for name, value in headers}
    return DeadLetter(
        int(text["partition"]), int(text["offset"]), text["reason"], text["field"], message.value(), tuple(headers)
    )


def _examples(missing: Collection[int], extra: dict[int, int]) -> str:
    return f"missing {sorted(missing)[:_SHOWN]}, extra {dict(sorted(extra.items())[:_SHOWN])}"
