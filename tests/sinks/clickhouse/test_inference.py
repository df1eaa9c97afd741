"""Types from a sample of events: what an expert would choose, and a table of them stores every sampled event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.column_values import ipv4, ipv6, short, uuids
from worker.decoding.json import decode, read_events
from worker.decoding.timestamps import to_nanos
from worker.sinks.clickhouse import types
from worker.sinks.clickhouse.inference import InferredField, infer, optional
from worker.sinks.clickhouse.table import Column, bind_columns

UTC = "'UTC')"


def columns(fields: list[InferredField]) -> list[Column]:
    """Return the columns as a server would describe them."""
    described = []
    for field in filter(lambda field: field.type, fields):
        kind, _, default = field.definition.partition(" DEFAULT ")
        constant = {"": "", "[]": "[]", "map()": "{}"}[default]
        described.append(Column(field.column, kind, "DEFAULT" if default else "", default, constant))
    return described


def inferred(*events: dict[str, Any], **arguments: Any) -> dict[str, str]:
    """Return the definition of each column; for a field without one, the reason."""
    return {
        ".".join(field.path): field.definition if field.type else f"? {field.undecided}"
        for field in infer(events, **arguments)
    }


def type_of(*values: Any, name: str = "x") -> str:
    return inferred(*({name: value} for value in values))[name]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 200], "Int64"),
        ([2**63], "UInt64"),
        ([-1, 2**63 - 1], "Int64"),
        ([-1, 2**63], "Int128"),
        ([1, 2.5], "Float64"),
        ([5.0], "Float64"),
        ([True, False], "Bool"),
        (["a", ""], "String"),
        (["a"] * 30 + ["b"] * 30, "LowCardinality(String)"),
        (["a"] * 30 + ["b"] * 30 + [None], "LowCardinality(Nullable(String))"),
        (list(map(str, range(1000))), "String"),
        (["10.0.0.1", "255.255.255.255"], "IPv4"),
        (["10.0.0.1", "::1"], "IPv6"),
        (["10.0.0.1", "example.org"], "String"),
        (["c386bbc4-cd61-4e30-98f1-6adf91b7584a"], "UUID"),
        (["1950-01-31"], "Date32"),
        (["1950-01-31", "2024-01-01T00:00:00Z"], "String"),
        (["2024-01-01T00:00:00Z"], f"DateTime64(3, {UTC}"),
        (["2024-01-01T00:00:00.5+02:00", "2024-01-01 00:00:00.123400"], f"DateTime64(6, {UTC}"),
        (["2024-01-01T00:00:00.123456789Z"], f"DateTime64(9, {UTC}"),
        (["2290-01-01T00:00:00.123456789Z"], "String"),  # 64 bits of nanoseconds end in 2262
        ([1_700_000_000], "Int64"),  # a time only by its name
        ([1, None], "Nullable(Int64)"),
        ([["a"], []], "Array(String)"),
        ([["a"], None], "Array(String) DEFAULT []"),
        ([[1, None], [2]], "Array(Nullable(Int64))"),
        ([[[1.5]], [[]]], "Array(Array(Float64))"),
        ([["10.0.0.1"]], "Array(IPv4)"),
    ],
)
def test_a_type_that_holds_these_values_and_likely_the_next(values: list[Any], expected: str) -> None:
    assert type_of(*values) == expected


@pytest.mark.parametrize(
    "name", ["ts", "time", "event_time", "createdAt", "created_at", "timestampMs", "ts_us", "epoch"]
)
@pytest.mark.parametrize(
    ("value", "precision"),
    [
        (1_700_000_000, 3),
        (1_700_000_000_123, 3),
        (1_700_000_000_123_456, 6),
        (1_700_000_000_123_456_789, 9),
        (1_700_000_000.25, 3),
        (1_700_000_000.123456, 6),
        (1_700_000_000_123.5, 6),
        ("1700000000123456", 6),
    ],
)
def test_a_number_is_a_time_if_the_name_says_so(name: str, value: Any, precision: int) -> None:
    assert type_of(value, name=name) == f"DateTime64({precision}, {UTC}"


@pytest.mark.parametrize("name", ["latency", "stats", "format", "pasts", "id"])
def test_a_number_of_another_name_is_none(name: str) -> None:
    assert type_of(1_700_000_000, name=name) == "Int64"


@pytest.mark.parametrize(("value", "expected"), [(0.012, "Float64"), (20211203, "Int64"), (5_000_000_000, "Int64")])
def test_an_implausible_number_is_no_time(value: Any, expected: str) -> None:
    assert type_of(value, name="time") == expected


def test_all_forms_of_a_timestamp_in_one_field_are_a_time() -> None:
    assert type_of("2024-01-01T00:00:00Z", 1_700_000_000, "1700000000123", name="timestamp") == f"DateTime64(3, {UTC}"


def test_some_values_that_are_no_times_are_reported_and_not_hidden_in_a_string() -> None:
    assert "1 of 11 values are no times" in type_of(*["2024-01-01T00:00:00Z"] * 10, "soon", name="ts")


def test_a_version_is_no_address() -> None:
    assert type_of("1.20.0.3", name="agentVersion") == "String"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None], "only null"),
        ([[], None], "only empty"),
        ([{}], "an object in 1 of 1 values"),
        ([1, "1"], "a number in 1 and text in 1 of 2 values: --types x=lenient makes it String"),
        ([{"a": 1}, 5], "--types x=lenient makes it String"),
        ([[1], ["a"]], "--types x=lenient makes it String"),
        ([[{"name": "a"}]], "--map 'x[].KEY=COLUMN'"),
        ([[[1], None]], "arrays and null"),
        ([1e19, 5], "have lost digits"),
        ([2**53 + 1, 0.5], "have lost digits"),
    ],
)
def test_what_cannot_be_decided_says_why_and_what_to_do(values: list[Any], reason: str) -> None:
    assert reason in type_of(*values)
    assert type_of(*values).startswith("? ")


def test_objects_become_columns_down_to_four_levels() -> None:
    event = {"a": {"b": {"c": {"d": 1, "e": {"f": 1}}, "g": "x"}}, "h": True}
    fields = inferred(event, {"a": None})
    assert fields.pop("a.b.c.e").startswith("? an object")
    assert fields == {"a.b.c.d": "Nullable(Int64)", "a.b.g": "Nullable(String)", "h": "Nullable(Bool)"}


def test_an_object_with_ever_new_keys_is_a_map() -> None:
    assert type_of(*({f"id{i}-{j}": j for j in range(3)} for i in range(50))) == "Map(String, Int64)"
    wide = {f"field{i}": i for i in range(200)}
    assert len(inferred({"x": wide}, {"x": wide})) == 200


@pytest.mark.parametrize("key", ["_offset", "_key", "_raw_message", "a.b", "", "new\nline", "\ud83d", "x" * 200])
def test_a_name_that_a_column_cannot_have_needs_another(key: str) -> None:
    (field,) = infer([{key: 1}])
    assert "--map '" in field.undecided
    assert field.undecided.isprintable()
    assert len(field.undecided) < 500


def test_arrays_inside_of_objects_need_another_name() -> None:
    """The server takes `a.b` and `a.c` for a Nested, whose arrays must have the same length."""
    assert "--map 'a.b=a_b'" in inferred({"a": {"b": ["x"]}})["a.b"]


def test_types_of_a_schema_win_where_they_accept_all_values() -> None:
    known = {("price",): "Decimal(10, 2)", ("text",): "Decimal(10, 2)"}
    event = {"price": "12.50", "text": "none"}
    assert inferred(event, known=known) == {"price": "Decimal(10, 2)", "text": "String"}


def test_a_lenient_column_takes_mixed_values_as_text() -> None:
    events = {"x": 1, "n": {"y": "a"}}, {"x": "1", "n": {"y": 2}}
    assert inferred(*events, lenient=["x", "n.y"]) == {"x": "String", "n.y": "String"}


def test_counts() -> None:
    (field,) = infer([{"a": 1}, {"a": None}, {}])
    assert (field.path, field.present, field.nulls, field.type, field.optional) == (("a",), 2, 1, "Int64", True)


times = st.integers(0, 4 * 10**18).map(lambda n: n // 10 ** (n % 10)) | st.floats(0, 4e9)
iso = st.datetimes().map(lambda time: f"{time.isoformat()}Z")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    short,
    st.text(max_size=5),
    st.sampled_from(["\ud83d", 1e19, 2**70, "2024-01-01", "10.0.0.1"]),
    *(iso, times, times.map(str), uuids, ipv4, ipv6),
)
keys = st.sampled_from(["a", "b", "ts", "created_at", "A", "a.b", "", "_key", "`x`", "\\", "it's", "\n"]) | short
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
# Fields that are alike in all events are the usual case; events of any kind hardly ever have two of them.
alike = st.sampled_from(["ts", "a", "n"]).flatmap(
    lambda key: st.sampled_from([iso, times, uuids, ipv4, ipv6, short, st.integers(0, 5), st.floats(0, 9)]).flatmap(
        lambda kind: st.lists(st.fixed_dictionaries({key: kind}), min_size=1, max_size=80)
    )
)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(keys, values, max_size=5), max_size=8) | alike)
def test_a_table_of_the_inferred_types_stores_every_event(events: list[dict[str, Any]]) -> None:
    payloads = [json.dumps(event).encode() for event in events]
    table = columns(infer(read_events(payloads)))
    if not table:
        return
    bindings = bind_columns(table, {})
    decoded = decode(payloads, tuple(binding.field for binding in bindings))
    assert (decoded.rows, decoded.rejects) == (len(events), ())
    assert len({column.name for column in table}) == len(table)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(alike)
def test_a_time_is_the_same_instant(events: list[dict[str, Any]]) -> None:
    for field in infer(events):
        if field.type.startswith("DateTime64("):
            unit = 10 ** (9 - int(field.type[11]))
            values = [event[field.path[0]] for event in events]
            ticks = types.codec(field.type).convert(values)
            assert [tick * unit for tick in ticks] == list(map(to_nanos, values))


def test_optional_types() -> None:
    assert optional("UUID") == "Nullable(UUID)"
    assert optional("LowCardinality(String)") == "LowCardinality(Nullable(String))"
    assert optional("Map(String, Int64)") == "Map(String, Int64) DEFAULT map()"
