"""What the worker can find in a table of a real ClickHouse."""

from __future__ import annotations

from contextlib import closing

import pytest
from clickhouse_driver import Client

from tests.support.kit import Service
from worker.config.settings import Settings
from worker.sinks.clickhouse.sink import ClickHouseSink


@pytest.mark.parametrize(
    ("ttl", "stored"),
    [
        ("", 1),
        ("TTL t + INTERVAL 50 YEAR TO DISK 'default'", 1),
        ("TTL t + INTERVAL 50 YEAR TO VOLUME 'default', t + INTERVAL 60 YEAR RECOMPRESS CODEC(ZSTD(1))", 1),
        ("TTL t + INTERVAL 50 YEAR", None),
        ("TTL t + INTERVAL 50 YEAR TO DISK 'default', t + INTERVAL 60 YEAR DELETE WHERE _partition = 1", None),
    ],
)
def test_rows_are_found_by_their_origin_unless_a_ttl_removes_them(
    client: Client, clickhouse: Service, table_name: str, ttl: str, stored: int | None
) -> None:
    client.execute(
        f"CREATE TABLE {table_name} (t DateTime, _topic String, _partition Int32, _offset Int64) ENGINE = MergeTree "
        f"ORDER BY t {ttl} SETTINGS non_replicated_deduplication_window = 10000"
    )
    client.execute(f"INSERT INTO {table_name} VALUES (now(), 'a', 0, 5)")
    settings = Settings(topic="a", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
        assert sink.exactly_once
        assert sink.count_stored_rows("a", 0, 0, 10) == stored
