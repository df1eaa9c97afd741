"""Encoded blocks, sent to a real ClickHouse: each stored value is the one that the server itself reads from JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from clickhouse_driver import Client, errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.column_values import VALUES
from tests.support.kit import Service
from worker.decoding.timestamps import to_iso
from worker.local import start_clickhouse
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.insert import BlockMismatch, insert_block
from worker.sinks.clickhouse.types import codec, constant, offsets

SYNC = {"async_insert": 0}
CREATE = {"allow_suspicious_low_cardinality_types": 1, "flatten_nested": 0}


@pytest.fixture(scope="module", params=["", "?compression=lz4"], ids=["plain", "lz4"])
def client(request: pytest.FixtureRequest, clickhouse: Service) -> Iterator[Client]:
    client = connect(clickhouse.address + request.param)
    yield client
    client.disconnect()


@pytest.fixture
def table(client: Client, table_name: str) -> Iterator[str]:
    yield table_name
    client.execute(f"DROP TABLE IF EXISTS {table_name}")


def create(client: Client, table: str, columns: str, engine: str = "Memory") -> None:
    client.execute(f"CREATE TABLE {table} ({columns}) ENGINE = {engine}", settings=CREATE)


def send(
    client: Client, table: str, header: list[tuple[str, str]], columns: Sequence[list[Any]], **options: Any
) -> None:
    """Insert columns of JSON values."""
    data = [
        codec(kind).encode([codec(kind).convert(values)]) for (_, kind), values in zip(header, columns, strict=True)
    ]
    names = ", ".join(name for name, _ in header)
    insert_block(client, f"INSERT INTO {table} ({names}) VALUES", {**SYNC, **options}, header, len(columns[0]), data)


def send_record_batches(client: Client, table: str, kind: str, record_batches: list[list[Any]]) -> None:
    """Insert numbered values of one type: several record batches in one block."""
    rows = sum(map(len, record_batches))
    column = codec(kind)
    data = [offsets("Int64", [range(rows)]), column.encode([column.convert(records) for records in record_batches])]
    header = [("i", "Int64"), ("c", column.type)]
    insert_block(client, f"INSERT INTO {table} (i, c) VALUES", SYNC, header, rows, data)


@pytest.mark.parametrize("kind", VALUES)
def test_stored_values_are_those_that_the_server_reads_from_json(client: Client, table: str, kind: str) -> None:
    create(client, table, f"i Int64, c {kind}")
    described = client.execute(f"DESCRIBE TABLE {table}")[1][1]

    @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(VALUES[kind], max_size=12), min_size=1, max_size=3))
    def check(record_batches: list[list[Any]]) -> None:
        client.execute(f"TRUNCATE TABLE {table}")
        send_record_batches(client, table, described, record_batches)
        values = [value for records in record_batches for value in records]
        text = b"\n".join(orjson.dumps({"i": i, "c": value}) for i, value in enumerate(values)).decode()
        stored = client.execute(f"SELECT toJSONString(c) FROM {table} ORDER BY i")
        assert len(stored) == len(values)
        if values:
            query = "SELECT toJSONString(c) FROM format('JSONEachRow', %(structure)s, %(text)s) ORDER BY i"
            structure = f"i Int64, c {codec(described).type}"
            assert stored == client.execute(query, {"structure": structure, "text": text}, settings=CREATE)

    check()


@pytest.mark.parametrize(
    ("kind", "step_ms", "low", "high"),
    [
        ("DateTime", 1000, "1970-01-01T00:00:00.000Z", "2106-02-07T06:28:15.999Z"),
        ("DateTime('America/New_York')", 1000, "1970-01-01T00:00:00.000Z", "2106-02-07T06:28:15.999Z"),
        ("DateTime64(0, 'UTC')", 1000, "1900-01-01T00:00:00.000Z", "2299-12-31T23:59:59.999Z"),
        ("DateTime64(2)", 10, "1900-01-01T00:00:00.000Z", "2299-12-31T23:59:59.999Z"),
        ("DateTime64(3, 'UTC')", 1, "1900-01-01T00:00:00.000Z", "2299-12-31T23:59:59.999Z"),
        ("Nullable(DateTime64(3, 'Asia/Tokyo'))", 1, "1900-01-01T00:00:00.000Z", "2299-12-31T23:59:59.999Z"),
        ("DateTime64(9, 'UTC')", 1, "1900-01-01T00:00:00.000Z", "2262-04-11T23:47:16.854Z"),
        ("Date", 86_400_000, "1970-01-01T00:00:00.000Z", "2149-06-06T23:59:59.999Z"),
        ("Date32", 86_400_000, "1900-01-01T00:00:00.000Z", "2299-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_stored_rounded_down_to_the_columns_precision(
    client: Client, table: str, kind: str, step_ms: int, low: str, high: str
) -> None:
    create(client, table, f"i Int64, c {kind}")
    first, last = (datetime.fromisoformat(text) for text in (low, high))
    epoch, millisecond = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
    millis = [(first + (last - first) * part / 97 - epoch) // millisecond for part in range(98)]
    millis += [0, 1, 999, 1_638_526_530_123]
    send_record_batches(client, table, kind, [list(map(to_iso, millis))])
    stored = client.execute(
        f"SELECT toUnixTimestamp64Milli(toDateTime64(toString(c, 'UTC'), 3, 'UTC')) FROM {table} ORDER BY i"
        if "Time" in kind
        else f"SELECT toInt64(toInt32(c)) * 86400000 FROM {table} ORDER BY i"
    )
    assert [row[0] for row in stored] == [value // step_ms * step_ms for value in millis]


def test_a_block_of_many_record_batches_is_stored_complete(client: Client, table: str) -> None:
    """The block is several times larger than the driver's buffers."""
    create(client, table, "t LowCardinality(String), p Int32, o Int64, s String, l LowCardinality(String)")
    rows = 100_000
    record_batches = [range(start, start + 1000) for start in range(0, rows, 1000)]
    texts, low = codec("String"), codec("LowCardinality(String)")
    data = [
        constant("LowCardinality(String)", "topic", rows),
        constant("Int32", 7, rows),
        offsets("Int64", record_batches),
        texts.encode([texts.convert([str(number) * 20 for number in records]) for records in record_batches]),
        low.encode([low.convert([str(number % 700) for number in records]) for records in record_batches]),
    ]
    header = [("t", "LowCardinality(String)"), ("p", "Int32"), ("o", "Int64"), ("s", "String"), low_header("l")]
    insert_block(client, f"INSERT INTO {table} (t, p, o, s, l) VALUES", SYNC, header, rows, data)
    assert client.execute(
        f"SELECT count(), uniqExact(t), any(t), min(p), max(p), uniqExact(o), max(o), "
        f"countIf(s = repeat(toString(o), 20)), countIf(l = toString(o % 700)) FROM {table}"
    ) == [(rows, 1, "topic", 7, 7, rows, rows - 1, rows, rows)]


def low_header(name: str) -> tuple[str, str]:
    return name, "LowCardinality(String)"


def test_a_block_without_rows_writes_nothing_and_leaves_the_connection_usable(client: Client, table: str) -> None:
    create(client, table, "a Int8, l LowCardinality(String)")
    header = [("a", "Int8"), low_header("l")]
    send(client, table, header, [[], []])
    send(client, table, header, [[1], ["x"]])
    assert client.execute(f"SELECT * FROM {table}") == [(1, "x")]


def test_the_same_block_with_the_same_token_is_written_once(client: Client, table: str) -> None:
    engine = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000"
    create(client, table, "a Int8, s String", engine)
    header = [("a", "Int8"), ("s", "String")]
    columns: list[list[Any]] = [[1, 2], ["x", "y"]]
    for _ in range(3):
        send(client, table, header, columns, insert_deduplication_token="topic/0/5-7")
    assert client.execute(f"SELECT count() FROM {table}") == [(2,)]
    send(client, table, header, columns, insert_deduplication_token="topic/0/7-9")
    assert client.execute(f"SELECT count() FROM {table}") == [(4,)]


def test_a_token_deduplicates_across_connections_with_and_without_compression(
    client: Client, clickhouse: Service, table: str
) -> None:
    engine = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000"
    create(client, table, "a Int8", engine)
    for options in ("", "?compression=lz4", "?compression=lz4hc"):
        other = connect(clickhouse.address + options)
        try:
            send(other, table, [("a", "Int8")], [[1, 2]], insert_deduplication_token="t")
        finally:
            other.disconnect()
    assert client.execute(f"SELECT count() FROM {table}") == [(2,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("MODIFY COLUMN b Int16", "its column b is Int16, no longer Int8"),
        ("MODIFY COLUMN b Nullable(Int8)", r"its column b is Nullable\(Int8\), no longer Int8"),
    ],
)
def test_an_altered_table_is_detected_before_anything_is_sent(
    client: Client, table: str, change: str, message: str
) -> None:
    create(client, table, "a Int8, b Int8", "MergeTree ORDER BY a")
    header = [("a", "Int8"), ("b", "Int8")]
    send(client, table, header, [[1], [2]])
    client.execute(f"ALTER TABLE {table} {change}")
    with pytest.raises(BlockMismatch, match=message):
        send(client, table, header, [[3], [4]])
    assert client.execute(f"SELECT a FROM {table}") == [(1,)]


def test_a_dropped_column_is_an_error_of_the_server(client: Client, table: str) -> None:
    create(client, table, "a Int8, b Int8", "MergeTree ORDER BY a")
    client.execute(f"ALTER TABLE {table} DROP COLUMN b")
    with pytest.raises(errors.ServerException, match="No such column b"):
        send(client, table, [("a", "Int8"), ("b", "Int8")], [[1], [2]])


def test_a_setting_that_the_server_does_not_know_is_an_error(client: Client, table: str) -> None:
    create(client, table, "a Int8")
    with pytest.raises(errors.ServerException) as caught:
        send(client, table, [("a", "Int8")], [[1]], insert_dedup_token="t")
    assert caught.value.code == errors.ErrorCodes.UNKNOWN_SETTING


def test_after_a_refused_block_the_connection_is_closed_and_the_next_insert_opens_another(
    client: Client, table: str
) -> None:
    create(client, table, "a Int8, CONSTRAINT small CHECK a < 10", "MergeTree ORDER BY a")
    with pytest.raises(errors.ServerException) as caught:
        send(client, table, [("a", "Int8")], [[1, 99]])
    assert caught.value.code == 469
    assert not client.connection.connected
    send(client, table, [("a", "Int8")], [[2]])
    assert client.execute(f"SELECT a FROM {table}") == [(2,)]


def test_an_incomplete_block_writes_nothing(client: Client, table: str) -> None:
    """As with a worker that is killed while it sends."""
    create(client, table, "s String", "MergeTree ORDER BY s")
    header = [("s", "String")]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        insert_block(client, f"INSERT INTO {table} (s) VALUES", SYNC, header, 1, [])
    assert not client.connection.connected
    assert client.execute(f"SELECT count() FROM {table}") == [(0,)]


@pytest.mark.parametrize("revision", [54453, 54461])
def test_an_older_protocol_revision_is_supported(
    client: Client, clickhouse: Service, table: str, revision: int
) -> None:
    """54453 has no byte for a column's serialization. Here the client chooses the revision."""
    create(client, table, "a Nullable(Int8), l LowCardinality(String)")
    older = connect(f"{clickhouse.address}?client_revision={revision}")
    try:
        send(older, table, [("a", "Nullable(Int8)"), low_header("l")], [[1, None], ["x", "y"]])
    finally:
        older.disconnect()
    assert client.execute(f"SELECT * FROM {table}") == [(1, "x"), (None, "y")]


def test_a_password_may_be_separate_from_the_url_and_is_in_no_error() -> None:
    with start_clickhouse(users={"writer": {"password": "sec/r@t"}}) as server:
        url = server.address.replace("default@", "writer@")
        good, bad = connect(url, "sec/r@t"), connect(url, "sec/r@u")
        assert good.execute("SELECT currentUser()") == [("writer",)]
        with pytest.raises(errors.ServerException) as caught:
            bad.execute("SELECT 1")
        good.disconnect()
        bad.disconnect()
    assert caught.value.code == 516
    assert "sec/r" not in str(caught.value)


def test_an_address_has_a_port_and_no_secrets() -> None:
    assert address("clickhouse://user:secret@host:9001/db") == "host:9001"
    assert address("clickhouse://host/db") == "host:9000"
    assert address("clickhouses://host/db") == "host:9440"
