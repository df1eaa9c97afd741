"""`_key`, `_timestamp`, `_headers` and `_raw_message`: which tables have them filled, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from clickhouse_driver import Client

from tests.decoding.test_metadata import Record
from tests.support.kit import Service, clickhouse_client
from worker.config.settings import Settings
from worker.core.batch import Batch, BatchState
from worker.core.records import RecordBatch
from worker.decoding import json
from worker.decoding.metadata import decode_with_metadata
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.clickhouse.table import Column, bind_columns

RECORDS = [
    Record(b"k1", [("trace", b"a\xff"), ("empty", b""), ("trace", b"b")], (1, 1_700_000_000_123)),
    Record(None, None, (0, -1)),
    Record(b"\xff\x00", [("none", None)], (2, 5)),
    Record(b"", [], (1, -1)),
]
TIMES = [datetime.fromtimestamp(ms / 1000, UTC) for ms in (1_700_000_000_123, 0, 5)]


@pytest.fixture
def client(clickhouse: Service) -> Iterator[Client]:
    client = Client.from_url(clickhouse.address + "?strings_as_bytes=1")
    yield client
    client.disconnect()


@pytest.fixture
def settings(clickhouse: Service, table_name: str) -> Iterator[Settings]:
    yield Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)
    client = clickhouse_client(clickhouse.address)
    client.execute(f"DROP TABLE IF EXISTS {table_name}")
    client.disconnect()


def write(settings: Settings, records: list[Record]) -> list[str]:
    """Write events numbered from 0 in column n, and return the reasons for which some were rejected."""
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
        fields = sink.fields
        metadata = tuple(field for field in fields if field.of_message)
        payloads = [b'{"n": %d, "_key": "of the event"}' % i for i in range(len(records))]
        decoded = decode_with_metadata(json.decode, payloads, records, fields[: -len(metadata) or None], metadata)
        batch = Batch("t", "id", 0, 0, 0, 0.0, fields, [[] for _ in fields])
        batch.add(RecordBatch("t", 0, list(payloads), range(len(payloads)), len(payloads), 0, records), None, decoded)
        batch.state = BatchState.SEALED
        if batch.rows:
            sink.write(batch)
        return [f"{dead_letter.reason} {dead_letter.field}" for dead_letter in batch.dead_letters]


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        ("_key", "String", [b"k1", b"", b"\xff\x00", b""]),
        ("_key", "LowCardinality(String)", [b"k1", b"", b"\xff\x00", b""]),
        ("_key", "Nullable(String)", [b"k1", None, b"\xff\x00", b""]),
        ("_key", "LowCardinality(Nullable(String))", [b"k1", None, b"\xff\x00", b""]),
        ("_raw_message", "String", [b'{"n": %d, "_key": "of the event"}' % i for i in range(4)]),
        ("_timestamp", "DateTime64(3, 'UTC')", [TIMES[0], TIMES[1], TIMES[2]]),
        ("_timestamp", "DateTime64(6, 'UTC')", [TIMES[0], TIMES[1], TIMES[2]]),
        ("_timestamp", "DateTime64(0, 'UTC')", [TIMES[0].replace(microsecond=0), TIMES[1], TIMES[1]]),
        ("_timestamp", "DateTime('UTC')", [TIMES[0].replace(microsecond=0), TIMES[1], TIMES[1]]),
        ("_timestamp", "Nullable(DateTime64(3, 'UTC'))", [TIMES[0], None, TIMES[2]]),
        ("_headers", "Map(String, String)", [{b"trace": b"b", b"empty": b""}, {}, {b"none": b""}, {}]),
        ("_headers", "Map(String, Nullable(String))", [{b"trace": b"b", b"empty": b""}, {}, {b"none": None}, {}]),
        ("_headers", "Map(LowCardinality(String), LowCardinality(String))",
         [{b"trace": b"b", b"empty": b""}, {}, {b"none": b""}, {}]),
        ("_headers", "Array(Tuple(name String, value String))",
         [[(b"trace", b"a\xff"), (b"empty", b""), (b"trace", b"b")], [], [(b"none", b"")], []]),
    ],
)  # fmt: skip
def test_a_column_has_what_kafka_has(
    client: Client, settings: Settings, column: str, kind: str, values: list[Any]
) -> None:
    client.execute(f"CREATE TABLE {settings.table} ({column} {kind}, n Int64) ENGINE = MergeTree ORDER BY n")
    records = RECORDS[: len(values)]
    assert write(settings, records) == []
    assert client.execute(f"SELECT {column} FROM {settings.table} ORDER BY n") == [(value,) for value in values]


def test_headers_as_json(client: Client, settings: Settings) -> None:
    client.execute(f"CREATE TABLE {settings.table} (_headers JSON, n Int64) ENGINE = MergeTree ORDER BY n")
    records = [Record(None, [("a", b"1"), ("a", b"2"), ("none", None)]), Record(None, [("bad", b"\xff")]), Record()]
    assert write(settings, records) == ["wrong_type _headers"]
    rows = client.execute(f"SELECT n, toJSONString(_headers) FROM {settings.table} ORDER BY n")
    assert rows == [(0, b'{"a":"2"}'), (2, b"{}")]


@pytest.mark.parametrize("kind", ["DateTime", "DateTime64(3)", "DateTime64(9)", "Nullable(DateTime64(3))"])
def test_a_time_that_the_column_cannot_hold_is_a_dead_letter(client: Client, settings: Settings, kind: str) -> None:
    client.execute(f"CREATE TABLE {settings.table} (_timestamp {kind}, n Int64) ENGINE = MergeTree ORDER BY n")
    records = [Record(its_time=(1, time)) for time in (1 << 62, 1_700_000_000_000, -1 << 62)]
    assert write(settings, records) == ["out_of_range _timestamp"] * 2
    assert client.execute(f"SELECT n FROM {settings.table}") == [(1,)]


def test_all_columns_at_once_and_the_origin(client: Client, settings: Settings) -> None:
    client.execute(
        f"CREATE TABLE {settings.table} (_raw_message String EPHEMERAL, _headers Map(String, String), _offset Int64, "
        "_key String, size UInt64 DEFAULT length(_raw_message), n Int64, _partition Int32, _topic String, "
        "_timestamp DateTime DEFAULT 5) ENGINE = MergeTree ORDER BY n"
    )
    assert write(settings, RECORDS[:2]) == []
    columns = "_headers['trace'], _offset, _key, size, n, _topic, toUnixTimestamp(_timestamp)"
    assert client.execute(f"SELECT {columns} FROM {settings.table} ORDER BY n") == [
        (b"b", 0, b"k1", 32, 0, b"t", 1_700_000_000),
        (b"", 1, b"", 32, 1, b"t", 0),
    ]


def test_map_fills_the_column_from_the_event(clickhouse: Service, client: Client, settings: Settings) -> None:
    client.execute(f"CREATE TABLE {settings.table} (_key String, n Int64) ENGINE = MergeTree ORDER BY n")
    url = clickhouse.address
    mapped = Settings(topic="t", backend="clickhouse", clickhouse_url=url, table=settings.table, map={"_key": "_key"})
    assert write(mapped, RECORDS) == []
    assert client.execute(f"SELECT DISTINCT _key FROM {settings.table}") == [(b"of the event",)]


def test_the_server_fills_what_it_computes() -> None:
    for default in ("MATERIALIZED", "ALIAS", "DEFAULT"):
        table = [Column("n", "Int8"), Column("_timestamp", "DateTime", default, "now()")]
        assert [binding.column for binding in bind_columns(table, {})] == ["n"]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("_key", "UUID", "column _key: UUID cannot hold a message's key; make it String, or .*--map _key=_key"),
        ("_timestamp", "Int64", "make it DateTime64.3. or DateTime"),
        ("_headers", "Map(String, UInt8)", r"make it Map\(String, String\)"),
        ("_headers", "Array(String)", "message's headers"),
        ("_raw_message", "JSON", "make it String"),
    ],
)
def test_a_type_that_does_not_fit_is_refused_at_the_start(column: str, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind_columns([Column("n", "Int8"), Column(column, kind)], {})
