"""Both stores in one pass: each batch into ClickHouse, then into Redis.

In this order Redis never has an event that ClickHouse refuses. PFADD is idempotent, so only ClickHouse's part needs the
delivery protocol. A batch is acknowledged once both stores have it. While Redis is unavailable, ClickHouse's part is
not sent again. After a crash the next owner sends both parts again: ClickHouse drops its block by the token.
"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakSet

from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.records import Field
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.redis.sink import RedisSink


class BothSinks:
    """A sink of both stores' fields. An event has to be valid for both.

    Redis' fields stand after ClickHouse's, but before those of Kafka's metadata, which come last.
    """

    def __init__(self, settings: Settings) -> None:
        self._clickhouse = ClickHouseSink(settings)
        self._redis = RedisSink(settings)
        self._fields: tuple[Field, ...] = ()
        self._of_clickhouse: tuple[Field, ...] = ()  # those of them that are ClickHouse's
        self._of_redis = slice(0)  # its columns
        self._in_clickhouse: WeakSet[Batch] = WeakSet()  # batches that it has acknowledged

    @property
    def fields(self) -> tuple[Field, ...]:
        if not self._fields:
            raise RuntimeError("the sink is not open")
        return self._fields

    @property
    def exactly_once(self) -> bool:
        return self._clickhouse.exactly_once

    def open(self) -> None:
        self._clickhouse.open()
        self._redis.open()
        own, redis = self._clickhouse.fields, self._redis.fields
        if own is self._of_clickhouse:
            return
        self._of_clickhouse = own
        of_event = tuple(field for field in own if not field.of_message)
        self._fields = (*of_event, *redis, *own[len(of_event) :])
        self._of_redis = slice(len(of_event), len(of_event) + len(redis))

    def write(self, batch: Batch) -> None:
        """Return once both stores have acknowledged the batch."""
        if batch not in self._in_clickhouse:
            columns = [*batch.columns]
            del columns[self._of_redis]
            # Other fields than its own make ClickHouse raise SchemaChanged: its columns were read again meanwhile.
            fields = self._of_clickhouse if batch.fields is self._fields else ()
            self._clickhouse.write(replace(batch, fields=fields, columns=columns))
            self._in_clickhouse.add(batch)
        self._redis.write(replace(batch, fields=self._redis.fields, columns=batch.columns[self._of_redis]))

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Return None: rows in ClickHouse do not prove that Redis has their devices."""

    def last_stored_offset(self, topic: str, partition: int, start: int, end: int | None = None) -> int | None:
        return self._clickhouse.last_stored_offset(topic, partition, start, end)

    def is_empty(self) -> bool:
        """Whether one of the stores has nothing: what the group has read is missing there."""
        return self._clickhouse.is_empty() or self._redis.is_empty()

    def devices(self, *others: Settings, topic: str = "") -> int:
        """Return what Redis counts: approximate, and without reading the table."""
        return self._redis.devices(*others, topic=topic)

    def window_devices(self) -> dict[str, int]:
        return self._redis.window_devices()

    def close(self) -> None:
        self._clickhouse.close()
        self._redis.close()
