"""Columns with a DEFAULT: the event's own value where it has one, else the default, as the server's JSONEachRow."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from clickhouse_driver import Client

from tests.support.kit import Service
from tests.support.rows import write
from worker.config.settings import Settings
from worker.sinks.clickhouse.table import Column, has_constant_default

COLUMNS = {
    "id": "Int64",
    "number": "Int16 DEFAULT -5",
    "flag": "Bool DEFAULT true",
    "text": r"String DEFAULT 'it\'s, (now)'",
    "label": "LowCardinality(String) DEFAULT 'none'",
    "maybe": "Nullable(String) DEFAULT 'unknown'",
    "null": "Nullable(Int8) DEFAULT NULL",
    "at": "DateTime('Europe/Berlin') DEFAULT '2026-01-01 00:00:00'",
    "fine": "DateTime64(6, 'UTC') DEFAULT toDateTime64('2026-01-01 00:00:00.123456', 6, 'UTC')",
    "day": "Date DEFAULT '2026-01-02'",
    "price": "Decimal(38, 18) DEFAULT '1.000000000000000001'",
    "tags": "Array(String) DEFAULT ['a', 'b']",
    "address": "IPv4 DEFAULT '10.1.2.3'",
    "level": "Enum8('low' = 1, 'high' = 2) DEFAULT 'high'",
}
EVENTS: list[dict[str, Any]] = [
    {"id": 0},
    {"id": 1, "number": 7, "flag": False, "text": "x", "label": "y", "maybe": "z", "null": 3},
    {"id": 2, "maybe": None, "null": None},
    {"id": 3, "number": None, "label": None, "tags": None, "at": None},  # not Nullable: null is the default, too
    {"id": 4, "at": "2026-05-05 10:00:00", "day": "2026-05-05", "price": "2.5", "tags": [], "level": "low"},
    {"id": 5, "fine": "2026-05-05 10:00:00.000001", "address": "1.2.3.4"},
]


@pytest.fixture
def settings(clickhouse: Service, table_name: str) -> Settings:
    return Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)


def test_rows_are_those_of_json_each_row(client: Client, settings: Settings) -> None:
    described = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    for table in (settings.table, f"{settings.table}_reference"):
        client.execute(f"CREATE TABLE {table} ({described}) ENGINE = MergeTree ORDER BY id")
    assert write(settings, [json.dumps(event).encode() for event in EVENTS]) == []
    zone = {"session_timezone": "UTC"}  # a time without a zone is UTC to the worker
    for event in EVENTS:
        row = json.dumps({**event, **({"at": "2026-05-05 12:00:00"} if event.get("at") else {})})
        client.execute(f"INSERT INTO {settings.table}_reference FORMAT JSONEachRow {row}", settings=zone)
    rows = [client.execute(f"SELECT * FROM {t} ORDER BY id") for t in (settings.table, f"{settings.table}_reference")]
    assert rows[0] == rows[1]


def test_an_invalid_value_is_rejected_not_replaced_by_the_default(client: Client, settings: Settings) -> None:
    client.execute(f"CREATE TABLE {settings.table} (id Int64, n Int8 DEFAULT 5) ENGINE = MergeTree ORDER BY id")
    payloads = [b'{"id": 1, "n": "6"}', b'{"id": 2, "n": 300}', b'{"id": 3}']
    assert write(settings, payloads) == ["wrong_type n", "out_of_range n"]
    assert client.execute(f"SELECT * FROM {settings.table}") == [(3, 5)]


def test_a_path_may_end_anywhere(client: Client, settings: Settings) -> None:
    client.execute(f"CREATE TABLE {settings.table} (`a.b.c` Int8 DEFAULT 5, id Int64) ENGINE = MergeTree ORDER BY id")
    payloads = [b'{"id": 1}', b'{"id": 2, "a": null}', b'{"id": 3, "a": {}}', b'{"id": 4, "a": {"b": {"c": 6}}}']
    assert write(settings, payloads) == []
    assert client.execute(f"SELECT * FROM {settings.table} ORDER BY id") == [(5, 1), (5, 2), (5, 3), (6, 4)]


def test_a_default_that_is_an_expression_is_computed_by_the_server_with_a_warning(
    client: Client, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client.execute(
        f"CREATE TABLE {settings.table} (id Int64, twice Int64 DEFAULT id * 2, at DateTime DEFAULT now()) "
        "ENGINE = MergeTree ORDER BY id"
    )
    with caplog.at_level(logging.WARNING):
        assert write(settings, [b'{"id": 4, "twice": 5}']) == []
    assert "columns twice, at of" in caplog.text
    assert client.execute(f"SELECT id, twice FROM {settings.table}") == [(4, 8)]


@pytest.mark.parametrize(
    ("expression", "constant"),
    [
        *[(text, True) for text in ("5", "-1.5e10", "'x'", r"'now() \' x'", "[1, 2]", "NULL", "map('a', true)")],
        *[(text, True) for text in ("CAST('3', 'Int16')", "toDateTime('2026-01-01 00:00:00')")],
        *[(text, False) for text in ("now()", "id + 1", "`id`", "generateUUIDv4()", "toDate(time)", "today()")],
    ],
)
def test_a_constant_default_has_only_literals(expression: str, constant: bool) -> None:
    assert has_constant_default(Column("c", "String", "DEFAULT", expression)) is constant
    assert not has_constant_default(Column("c", "String", "MATERIALIZED", expression))
