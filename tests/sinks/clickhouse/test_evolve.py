"""Which fields get a column by `--evolve`, which do not and why, and the ALTER TABLE that adds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import orjson
import pytest
from clickhouse_driver import Client
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kit import Service, run_sql
from worker.config.settings import Settings
from worker.core.errors import Fatal, Retryable
from worker.decoding.json import decode
from worker.local import start_clickhouse
from worker.sinks.clickhouse.evolve import COMMENT, Candidate, EvolvingTable, candidates
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.clickhouse.table import Column, bind_columns, default_columns

TABLE = [Column("id", "Int64"), Column("_topic", "String"), Column("_partition", "Int32"), Column("_offset", "Int64")]
SETTINGS = Settings(topic="t", backend="clickhouse", evolve=20)


def found(events: list[dict[str, Any]], table: list[Column] = TABLE, evolve: int = 20, **mapped: str) -> dict[str, str]:
    """Return the definition of each candidate's column, or why it gets none; each event 100 times."""
    settings = Settings(topic="t", backend="clickhouse", evolve=evolve, map=mapped)
    return {
        item.name: item.reason or item.definition
        for item in candidates(table, [{"id": 1, **event} for event in events * 100], settings)
    }


@pytest.mark.parametrize(
    ("events", "columns"),
    [
        ([{"a": 1}, {}], {"a": "Nullable(Int64)"}),
        ([{"a": 1}, {}, {}], {}),
        ([{"a": 1}, {"a": None}, {"a": None}], {}),
        ([{"a": None}], {}),
        ([{"a": 1.5, "b": True}], {"a": "Nullable(Float64)", "b": "Nullable(Bool)"}),
        ([{"at": "2026-01-01T00:00:00Z"}], {"at": "Nullable(DateTime64(3, 'UTC'))"}),
        ([{"a": {"b": "x"}}], {"a.b": "LowCardinality(Nullable(String))"}),
        ([{"a": ["x"]}], {"a": "Array(String) DEFAULT []"}),
        ([{"a": 1}, {"a": "x"}], {"a": "a number in 100 and text in 100 of 200 values"}),
        ([{"a": 1}, {"a": {"b": 1}}], {"a": "a number in 100 and an object in 100 of 200 values"}),
        ([{"_a": 1}], {"_a": "its name begins with _, or has other characters than letters, digits, _ and -"}),
        ([{"a b": 1}], {"a b": "its name begins with _, or has other characters than letters, digits, _ and -"}),
    ],
)
def test_a_field_of_one_type_in_half_of_the_events_gets_a_column(
    events: list[dict[str, Any]], columns: dict[str, str]
) -> None:
    assert found(events) == columns


def test_texts_are_strings_whatever_they_look_like() -> None:
    """The next one may be another text, and would be a dead letter."""
    event = {"u": "6f1c2b34-0000-4000-8000-000000000000", "ip": "10.0.0.1", "six": ["::1"], "day": "1999-01-01"}
    assert {item.split("(")[-1].split(")")[0] for item in found([event]).values()} == {"String"}


@pytest.mark.parametrize("name", ["a.b", "a\tb", "a\x1b[31m", "", "a" * 200, "\u202eb", "_topic", "a`b", "a'b", "a%s"])
def test_a_field_with_a_name_that_no_column_should_have_gets_none(name: str) -> None:
    assert all(" " in text for text in found([{name: 1}]).values())


def test_fields_that_a_column_is_filled_from_get_no_other() -> None:
    event = {"geo": {"city": "x"}, "size": 1, "user": {"name": "a", "id": 5}, "tags": [{"k": "v"}], "day": "x"}
    table = [*TABLE, Column("geo", "JSON"), Column("bytes", "Int64"), Column("user.name", "String")]
    table += [Column("keys", "Array(String)"), Column("day", "Date", "MATERIALIZED")]
    settings = Settings(topic="t", backend="clickhouse", evolve=20, map={"bytes": "size", "keys": "tags[].k"})
    columns = [item.name for item in candidates(table, [event] * 100, settings)]
    assert columns == ["user.id"]


def test_an_object_that_becomes_a_scalar_gets_no_column_beside_those_of_its_fields() -> None:
    assert found([{"a": 5}], [*TABLE, Column("a.b", "Nullable(Int64)")]) == {}


def test_the_bound_counts_the_columns_that_are_marked_in_the_table() -> None:
    events = [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"c": 1}]
    limit = "--evolve 2 allows no more columns"
    assert found(events, evolve=2) == {"c": "Nullable(Int64)", "a": "Nullable(Int64)", "b": limit}
    marked = [
        *TABLE,
        Column("x", "String", "DEFAULT", comment=COMMENT),
        Column("y", "Nullable(String)", comment="mine"),
    ]
    assert found(events, marked, evolve=2) == {"c": "Nullable(Int64)", "a": limit, "b": limit}


def test_a_table_whose_columns_all_have_defaults_gets_columns() -> None:
    table = [Column("a", "Int64", "DEFAULT", "5"), Column("day", "Date", "DEFAULT", "today()")]
    assert [item.name for item in candidates(table, [{"b": 1}] * 100, SETTINGS) if not item.reason] == ["b"]


def test_few_events_prove_nothing() -> None:
    assert candidates(TABLE, [{"id": 1, "a": 1}] * 99, SETTINGS) == []
    assert candidates(TABLE, [], SETTINGS) == []


def test_no_column_is_added_with_which_the_worker_would_refuse_the_table() -> None:
    """A table with the three columns of device events whose types hold none is refused at the start."""
    table = [Column("timestamp", "DateTime64(3)"), Column("device_ip", "String")]
    event = {"timestamp": 1, "device_ip": "10.0.0.1", "error_code": "E5"}
    (candidate,) = candidates(table, [event] * 100, SETTINGS)
    assert "cannot hold an event's error_code" in candidate.reason


numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=5)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc._-é ", max_size=3), inner, max_size=3),
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "at", "c-d", "é", "_e"]), json_values), min_size=1, max_size=4)
)
def test_events_of_the_sample_and_events_without_the_fields_fit_the_added_columns(events: list[dict[str, Any]]) -> None:
    payloads = [json.dumps({"id": 1, **event}).encode() for event in events for _ in range(100)]
    sample = [orjson.loads(payload) for payload in payloads]
    columns = [*TABLE]
    for item in candidates(TABLE, sample, SETTINGS):
        if not item.reason:
            kind, default, value = item.definition.partition(" DEFAULT ")
            constant = {"[]": "[]", "map()": "{}"}.get(value, "")
            columns.append(Column(item.name, kind, default.strip(), value, constant, COMMENT))
    fields = [binding.field for binding in bind_columns(columns, {})]
    assert decode([*payloads, b'{"id":2}'], fields).rows == len(payloads) + 1
    added = [item for item in candidates(columns, sample, SETTINGS) if not item.reason]
    assert not added, "a second round adds nothing"


# the table itself


@pytest.fixture
def settings(clickhouse: Service, client: Client, table_name: str) -> Iterator[Settings]:
    yield Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name, evolve=5)
    client.execute(f"DROP TABLE IF EXISTS {table_name}")


def test_columns_are_added_once_marked_and_quoted_and_the_sink_takes_the_table(
    client: Client, settings: Settings
) -> None:
    with closing(ClickHouseSink(settings)) as sink, closing(EvolvingTable(settings)) as table:
        sink.open()
        fields = sink.fields
        sink.open()
        assert sink.fields is fields, "batches stay valid where nothing has changed"
        hostile = "a`b\\'%s; DROP TABLE x --"
        first = [
            Candidate("n", "Nullable(Int64)", 1.0),
            Candidate("g.c", "LowCardinality(Nullable(String))", 1.0),
            Candidate("l", "Array(String) DEFAULT []", 1.0),
            Candidate("m", "Map(String, Int64) DEFAULT map()", 1.0),
            Candidate(hostile, "Nullable(Int64)", 1.0),
        ]
        table.add(first)
        table.add([item._replace(definition="Nullable(String)") for item in first])  # of another host: it is too late
        added = {column.name: column.type for column in table.columns() if column.comment == COMMENT}
        assert added == {item.name: item.definition.partition(" DEFAULT ")[0] for item in first}
        sink.open()
        assert sink.fields is not fields
        names = [binding.column for binding in sink.bindings]
        assert names == [column.name for column in default_columns() if column.name[0] != "_"] + list(added)
        events = [
            b'{"timestamp":1,"device_ip":"a","error_code":1}',
            b'{"timestamp":1,"device_ip":"a","error_code":1,"l":["x"],"m":{"k":1}}',
        ]
        assert decode(events, sink.fields).rows == 2


@pytest.mark.parametrize(
    "engine",
    [
        "Memory",
        "Null",
        "Buffer('', events, 1, 1, 1, 1, 1, 1, 1)",
        "Merge(currentDatabase(), '^events$')",
        "VIEW",
    ],
)
def test_a_table_that_keeps_no_rows_of_its_own_is_refused(client: Client, settings: Settings, engine: str) -> None:
    create = f"CREATE TABLE {settings.table} (a Int64) ENGINE = {engine}"
    client.execute(f"CREATE VIEW {settings.table} AS SELECT 1 AS a" if engine == "VIEW" else create)
    with closing(EvolvingTable(settings)) as table, pytest.raises(Fatal, match="needs a table of the MergeTree family"):
        table.check()


def test_a_missing_right_is_named_with_the_statement_that_grants_it(table_name: str) -> None:
    rights = f"SELECT, INSERT, SHOW COLUMNS{{}} ON default.{table_name}"
    users: dict[str, dict[str, Any]] = {
        name: {"password": "", "grants": {"query": f"GRANT {rights.format(more)}"}}
        for name, more in (("poor", ""), ("able", ", ALTER ADD COLUMN"))
    }
    candidate = Candidate("n", "Nullable(Int64)", 1.0)
    with start_clickhouse(users=users) as server:
        run_sql(server.address, f"CREATE TABLE {table_name} (a Int64) ENGINE = MergeTree ORDER BY a")

        def table_of(user: str) -> EvolvingTable:
            url = server.address.replace("default@", f"{user}@")
            return EvolvingTable(replace(SETTINGS, clickhouse_url=url, table=table_name))

        with closing(table_of("poor")) as table:
            with pytest.raises(
                Fatal, match=f"a right that poor lacks; GRANT ALTER ADD COLUMN ON {table_name} TO poor$"
            ):
                table.check()
            with pytest.raises(Retryable, match="ALTER ADD COLUMN"):
                table.add([candidate])
        with closing(table_of("able")) as table:
            table.check()
            table.add([candidate])
            assert [column.name for column in table.columns()] == ["a", "n"]
