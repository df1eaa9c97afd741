"""Rounds of `--evolve` that fail are counted and logged. They stop nothing, and no value of an event is logged."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from dataclasses import replace

import pytest

from tests.support.kit import Service, create_topic, run_sql, send
from worker.config.settings import Settings
from worker.core.counters import Stats
from worker.monitor.table_columns import TableColumns
from worker.sinks.clickhouse.sink import ClickHouseSink

CANARY = "s3cret-canary"


def run_out_of_memory(events: list[dict[str, str]]) -> list[dict[str, str]]:
    """Fail as no event is at fault for, with a value of one in the text."""
    raise MemoryError(events[0]["device_ip"])


@pytest.fixture
def settings(kafka: Service, clickhouse: Service, topic_name: str, table_name: str) -> Settings:
    """A topic of 200 events with two fields that its table lacks, and the table."""
    create_topic(kafka.address, topic_name, 2)
    settings = Settings(
        topic=topic_name,
        bootstrap_servers=kafka.address,
        backend="clickhouse",
        clickhouse_url=clickhouse.address,
        table=table_name,
        evolve=1,
    )
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
    event = b'{"timestamp": 1, "device_ip": "%b", "error_code": 1, "first": 1, "second": 2}' % CANARY.encode()
    send(kafka.address, topic_name, [event] * 200)
    return settings


def rounds(settings: Settings, stats: Stats, count: int) -> list[int]:
    """Run rounds; return the version that consumers see after each."""
    table_columns = TableColumns(settings, stats)
    versions = []
    for _ in range(count):
        table_columns._round([settings.topic])
        versions.append(stats.monitor.get("columns_version"))
    return versions


def test_consumers_are_told_of_each_change_and_once_more_a_round_later(settings: Settings) -> None:
    """A replica may get the columns after the consumer has read them. A new monitor does not know of changes."""
    stats = Stats()
    assert rounds(settings, stats, 4) == [1, 2, 2, 2]
    assert stats.monitor.get("evolved_columns") == 1
    assert rounds(settings, stats, 3) == [3, 4, 4]
    assert stats.monitor.get("evolved_columns") == 1
    assert stats.monitor.get("evolve_errors") == 0


def test_without_evolve_consumers_are_told_of_changes_and_nothing_is_added(settings: Settings) -> None:
    stats = Stats()
    table_columns = TableColumns(replace(settings, evolve=0), stats)

    def version() -> int:
        table_columns._round([settings.topic, "missing"])
        return stats.monitor.get("columns_version")

    assert [version() for _ in range(3)] == [1, 2, 2]
    run_sql(settings.clickhouse_url, f"ALTER TABLE {settings.table} MODIFY COLUMN error_code Int64")
    assert [version() for _ in range(3)] == [3, 4, 4]
    assert stats.monitor.get("evolved_columns") == 0


def test_fields_without_a_column_are_logged_when_the_table_has_changed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rounds(settings, Stats(), 3)
    (refused,) = [record.message for record in caplog.records if "get no column" in record.message]
    limit = "--evolve 1 allows no more columns"
    assert refused == f"--evolve: fields of topic {settings.topic} that get no column: second ({limit})"
    assert CANARY not in caplog.text


def test_a_failed_round_is_counted_and_another_topic_is_not_affected(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    stats = Stats()
    table_columns = TableColumns(replace(settings, table=f"{{topic}}{settings.table}"), stats)
    run_sql(settings.clickhouse_url, f"RENAME TABLE {settings.table} TO `{settings.topic}{settings.table}`")
    asyncio.run(table_columns.start([settings.topic]))
    table_columns._round(["missing", settings.topic])
    assert stats.monitor.get("evolve_errors") == 1
    assert stats.monitor.get("columns_version") == 2
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "--evolve: new fields of topic missing get no columns: ClickHouse at" in line


def test_consumers_do_not_read_a_table_again_that_they_would_refuse(settings: Settings) -> None:
    """Their sinks are open with the columns from before, and they can go on."""
    stats = Stats()
    table_columns = TableColumns(settings, stats)
    for _ in range(2):
        table_columns._round([settings.topic])
    run_sql(settings.clickhouse_url, f"ALTER TABLE {settings.table} ADD COLUMN s AggregateFunction(sum, Int64)")
    table_columns._round([settings.topic])
    assert [stats.monitor.get(cell) for cell in ("columns_version", "evolve_errors")] == [2, 1]
    run_sql(settings.clickhouse_url, f"ALTER TABLE {settings.table} DROP COLUMN s")
    table_columns._round([settings.topic])
    assert [stats.monitor.get(cell) for cell in ("columns_version", "evolve_errors")] == [2, 1]


def test_the_text_of_an_unexpected_error_is_not_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    rounds(replace(settings, transform=f"{__name__}:run_out_of_memory"), stats, 1)
    assert stats.monitor.get("evolve_errors") == 1
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "get no columns: MemoryError; still trying" in line
    assert CANARY not in caplog.text
