"""The devices of a table that the worker creates are counted without reading it, exactly or approximately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from clickhouse_driver import Client

from tests.support.kit import Service, clickhouse_client
from worker.config.settings import Settings
from worker.core.batch import Batch, BatchState
from worker.core.records import RecordBatch
from worker.decoding.json import decode
from worker.sinks.clickhouse import devices
from worker.sinks.clickhouse.names import quoted, table_name
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.clickhouse.table import events_template

DEVICES = 5000
PROJECTED = "?force_optimize_projection=1"  # an error where a query does not use one


@pytest.fixture
def settings(clickhouse: Service, client: Client, table_name: str) -> Iterator[Settings]:
    yield Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)
    client.execute(f"DROP TABLE IF EXISTS {table_name}")


def write(settings: Settings, topic: str, first: int, count: int, *, times: int = 1) -> None:
    """Write an event of each of `count` devices as one block, with the same token each time."""
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
        payloads = [
            b'{"timestamp": 1700000000, "device_ip": "d%d", "error_code": 1}' % device
            for device in range(first, first + count)
        ]
        for _ in range(times):
            batch = Batch(topic, f"id-{topic}", 0, 0, count, 0.0, sink.fields, [[] for _ in sink.fields])
            records = RecordBatch(topic, 0, list(payloads), range(count), count, 0)
            batch.add(records, None, decode(payloads, sink.fields))
            batch.state = BatchState.SEALED
            sink.write(batch)


def count(settings: Settings, topic: str = "") -> int | None:
    with closing(ClickHouseSink(settings)) as sink:
        return sink.devices(topic=topic)


@pytest.mark.parametrize("report", ["exact", "approximate"])
def test_the_created_table_is_counted_by_its_projection_also_after_a_repeated_insert(
    client: Client, settings: Settings, report: str
) -> None:
    settings = replace(settings, report=report)
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
    write(settings, "t", 0, DEVICES, times=2)
    write(settings, "u", DEVICES - 1000, DEVICES)
    assert client.execute(f"SELECT count() FROM {settings.table}") == [(2 * DEVICES,)]
    counts = [count(settings), count(settings, "t"), count(settings, "u")]
    expected = [2 * DEVICES - 1000, DEVICES, DEVICES]
    if report == "exact":
        assert counts == expected
    else:
        assert counts == [pytest.approx(devices, rel=0.02) for devices in expected]
    projected = clickhouse_client(settings.clickhouse_url + PROJECTED)
    query = f"SELECT {devices.function(report)}(device_ip) FROM {settings.table}"
    assert projected.execute(query) == [(counts[0],)]
    assert projected.execute(f"{query} WHERE _topic = 'u'") == [(counts[2],)]
    projected.disconnect()
    assert count(replace(settings, clickhouse_url=settings.clickhouse_url + PROJECTED))


def test_rows_that_a_user_deletes_are_not_counted(client: Client, settings: Settings) -> None:
    write(settings, "t", 0, 100)
    write(settings, "u", 50, 100)
    client.execute(f"DELETE FROM {settings.table} WHERE _topic = 't'")
    assert count(settings) == count(settings, "u") == 100
    assert count(settings, "t") == 0
    client.execute(f"ALTER TABLE {settings.table} DELETE WHERE device_ip = 'd149'", settings={"mutations_sync": 2})
    assert count(settings) == 99


def test_a_table_without_the_projection_is_read_and_gets_it_by_the_advice_of_check(
    client: Client, settings: Settings
) -> None:
    off = replace(settings, report="off")
    write(off, "t", 0, DEVICES)
    assert "PROJECTION" not in client.execute(f"SHOW CREATE TABLE {settings.table}")[0][0]
    assert count(settings) == count(off) == DEVICES
    for statement in devices.advice("exact", table_name(settings.table), quoted("device_ip")).split("; "):
        client.execute(statement, settings={"mutations_sync": 2})
    assert count(replace(settings, clickhouse_url=settings.clickhouse_url + PROJECTED)) == DEVICES


def test_a_server_that_does_not_know_the_setting_gets_the_plain_table(client: Client, settings: Settings) -> None:
    template = events_template().replace("lightweight_mutation", "later")
    with closing(ClickHouseSink(settings, template)) as sink:
        sink.open()
    write(settings, "t", 0, 100)
    assert "PROJECTION" not in client.execute(f"SHOW CREATE TABLE {settings.table}")[0][0]
    assert count(settings) == 100
