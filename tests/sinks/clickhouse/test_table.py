"""Which columns are filled from which field, and what is rejected with advice."""

from __future__ import annotations

import pytest

from worker.decoding.json import decode
from worker.sinks.clickhouse.table import Column, bind_columns, counted

TABLE = [
    Column("time", "DateTime64(3)"),
    Column("request.user", "LowCardinality(Nullable(String))"),
    Column("size", "UInt32", "DEFAULT"),
    Column("raw", "String", "EPHEMERAL"),
    Column("day", "Date", "MATERIALIZED"),
    Column("host", "String", "ALIAS"),
    Column("_topic", "String"),
    Column("_partition", "Int32"),
    Column("_offset", "Int64"),
]


def test_a_column_is_filled_from_the_field_of_its_name_unless_the_server_fills_it() -> None:
    bindings = bind_columns(TABLE, {})
    assert [(binding.column, binding.field.path, binding.field.required) for binding in bindings] == [
        ("time", ("time",), True),
        ("request.user", ("request", "user"), False),
    ]


def test_map_names_another_field_also_for_columns_with_a_default() -> None:
    bindings = bind_columns(TABLE, {"time": "@timestamp", "size": "response.bytes", "raw": r"a\.b"})
    assert [(binding.column, binding.field.name, binding.field.path) for binding in bindings] == [
        ("time", "@timestamp", ("@timestamp",)),
        ("request.user", "request.user", ("request", "user")),
        ("size", "response.bytes", ("response", "bytes")),
        ("raw", r"a\.b", ("a.b",)),
    ]


@pytest.mark.parametrize(
    ("mapped", "message"),
    [
        ({"tme": "t"}, r"--map t=tme: there is no column tme \(did you mean time\?\)"),
        ({"zzz": "t"}, r"there is no column zzz; correct it, or ALTER TABLE … ADD COLUMN zzz"),
        ({"_offset": "t"}, "the worker itself fills _offset"),
        ({"day": "t"}, "column day is MATERIALIZED, so the server fills it"),
        ({"host": "t"}, "column host is ALIAS"),
    ],
)
def test_an_impossible_mapping_is_rejected_with_advice(mapped: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind_columns(TABLE, mapped)


def test_a_table_without_a_column_to_fill_and_an_unsupported_type_are_rejected() -> None:
    with pytest.raises(ValueError, match="no column that an event could fill"):
        bind_columns(TABLE[2:], {})
    with pytest.raises(ValueError, match=r"column v: type AggregateFunction.* give it a DEFAULT, or another type"):
        bind_columns([Column("v", "AggregateFunction(sum, Int8)")], {})
    assert bind_columns([Column("v", "AggregateFunction(sum, Int8)", "DEFAULT"), *TABLE], {}) == bind_columns(TABLE, {})


@pytest.mark.parametrize(
    ("field", "mapped", "column"),
    [
        ("time", {}, "time"),
        ("t", {"time": "t"}, "time"),
        ("request.user", {}, "request.user"),
        ("size", {}, "size"),  # by its name: the server fills it
        ("day", {}, "day"),
        ("time", {"time": "t"}, "time"),
        ("raw", {}, ""),  # stored nowhere
        ("device_ip", {}, ""),
    ],
)
def test_devices_are_counted_in_the_column_that_the_field_fills(
    field: str, mapped: dict[str, str], column: str
) -> None:
    assert counted(TABLE, bind_columns(TABLE, mapped), field) == column


def test_a_table_for_device_events_must_be_able_to_hold_them() -> None:
    table = [Column("timestamp", "UInt64"), Column("device_ip", "Nullable(IPv4)"), Column("error_code", "Int8")]
    with pytest.raises(
        ValueError, match="column timestamp is UInt64, which cannot hold an event's timestamp; its type"
    ):
        bind_columns(table, {})
    assert bind_columns(table[:2], {})
    assert bind_columns(table, {"timestamp": "at"})
    assert bind_columns([Column("timestamp", "Nullable(DateTime64(3))"), *table[1:]], {})


@pytest.mark.parametrize(
    ("kind", "text", "whole"),
    [
        ("Decimal(38, 18)", "90071992547409.93", 90071992547409_930000000000000000),
        ("Decimal(18, 4)", "12345678901234.5678", 123456789012345678),
        ("Array(Decimal(18, 4))", "[1.5, 12345678901234.5678]", 123456789012345678),
        ("Decimal(38, 0)", "99999999999999999999", 99999999999999999999),
        ("Decimal(38, 0)", "1e20", 10**20),
        ("Nullable(Decimal(38, 2))", "9007199254740993.25", 900719925474099325),
    ],
)
def test_decimals_have_all_digits_of_the_event_s_text(kind: str, text: str, whole: int) -> None:
    (binding,) = bind_columns([Column("a.price", kind)], {})
    decoded = decode([b'{"a": {"price": %s}}' % text.encode()], [binding.field])
    assert not decoded.rejects
    size = 16 if "38" in kind else 8
    assert binding.codec.encode([decoded.columns[0]])[-size:] == whole.to_bytes(size, "little", signed=True)


@pytest.mark.parametrize(
    "text", ["90071992547409.931", "1e30", "1e400", "1e999999999", "1e99999999999999999999", "-1e400", "1.5e300"]
)
def test_decimals_with_more_digits_than_the_column_are_out_of_range(text: str) -> None:
    (binding,) = bind_columns([Column("price", "Decimal(30, 2)")], {})
    (reject,) = decode([b'{"price": %s}' % text.encode()], [binding.field]).rejects
    assert reject.reason == "out_of_range"
