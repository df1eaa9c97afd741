"""Types from a sample of events: what an expert would choose, and a table of them stores every sampled event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.sampled_events import alike, keys, values
from worker.decoding.json import decode, read_events
from worker.decoding.timestamps import to_nanos
from worker.sinks.clickhouse import types
from worker.sinks.clickhouse.inference import InferredField, KnownTypes, infer, optional
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
    others: list[Any] = ["soon", {}, True, [1]]
    for other in others:
        reason = type_of(*["2024-01-01T00:00:00Z"] * 10, other, name="ts")
        assert f"a column DateTime64(3, {UTC} makes the other 1 events dead letters" in reason


def test_a_version_is_no_address() -> None:
    assert type_of("1.20.0.3", name="agentVersion") == "String"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None], "only null"),
        ([[], None], "an array in 1 of 1 values: --types x=lenient"),
        ([{}], "an object in 1 of 1 values: --map x=x makes objects JSON"),
        ([1, "1"], "a number in 1 and text in 1 of 2 values: --types x=lenient makes it String"),
        ([1] * 9 + ["1"], "in 1 of 10 values: a column Int64 makes the other 1 events dead letters; --types x=lenient"),
        ([{"a": 1}, 5], "--types x=lenient makes it String"),
        ([[1], ["a"]], "--types x=lenient makes it String"),
        ([[{"name": "a"}]], "--map x=x makes objects JSON; --map 'x[].KEY=x' takes one field of each element"),
        ([[[1], None]], "--types x=lenient makes it String"),
        ([1e19, 5], "Float64 rounds"),
        ([2**53 + 1, 0.5], "Float64 rounds"),
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
    kinds = [{"action": "new", **{f"field{i}": i for i in range(kind, 200, 50)}} for kind in range(50)]
    assert len(inferred(*({"x": event} for event in kinds))) == 201  # events of many kinds
    values = type_of(*({f"id{i}-{j}": [j, "text"][i % 2] for j in range(3)} for i in range(50)))
    assert values == "? an object in 50 of 50 values: --map x=x makes objects JSON"


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("_offset", "--map _offset=offset names another column"),
        ("_key", "--map _key=key names another column"),
        ("a.b", r"--map 'a\.b=a_b' names another column"),
        ("a's.b", r"""--map 'a'"'"'s\.b=a_s_b' names another column"""),
        *(
            (key, "--transform with a function that names another column")
            for key in ("", "new\nline", "\ud83d", "x" * 200)
        ),
    ],
)
def test_a_name_that_a_column_cannot_have_needs_another(key: str, advice: str) -> None:
    (field,) = infer([{key: 1}])
    assert field.undecided.endswith(advice)
    assert field.undecided.isprintable()
    assert len(field.undecided) < 500


def test_an_object_with_such_a_name_is_one_field() -> None:
    assert [field.path for field in infer([{"a.b": {"c": 1, "d": 2}}])] == [("a.b",)]


def test_arrays_inside_of_objects_need_another_name() -> None:
    """The server takes `a.b` and `a.c` for a Nested, whose arrays must have the same length."""
    assert "--map a.b=a_b" in inferred({"a": {"b": ["x"]}})["a.b"]


def test_types_of_a_schema_win_where_they_accept_all_values() -> None:
    known = KnownTypes({("price",): "Decimal(10, 2)", ("text",): "Decimal(10, 2)"}, {("n",)})
    event = {"price": "12.50", "text": "none", "n": {"x": 1}}
    expected = {"price": "Decimal(10, 2)", "text": "String", "n.x": "Nullable(Int64)"}
    assert inferred(event, known=known) == expected


def test_a_lenient_column_takes_mixed_values_as_text() -> None:
    events = {"x": 1, "n": {"y": "a"}}, {"x": "1", "n": {"y": 2}}
    assert inferred(*events, lenient=["x", "n.y"]) == {"x": "String", "n.y": "String"}


def test_counts() -> None:
    (field,) = infer([{"a": 1}, {"a": None}, {}])
    assert (field.path, field.present, field.nulls, field.type, field.optional) == (("a",), 2, 1, "Int64", True)


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
