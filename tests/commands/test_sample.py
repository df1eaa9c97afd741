"""The findings of `check` about a sample of events: which field is faulty, why, and the fix."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.commands.check.finding import Stored
from worker.commands.check.sample import check_sample
from worker.core.records import Field
from worker.kafka.sample import sample_ranges
from worker.sinks.clickhouse.table import Column, bind_columns

ABSENT = object()


def findings(
    types: dict[str, str], events: list[Any], mapped: dict[str, str] | None = None, **properties: bool
) -> list[str]:
    """Return the findings, each as its line; `properties` are those of each column."""
    bindings = bind_columns([Column(name, kind) for name, kind in types.items()], mapped or {})
    stored = [Stored(binding.field, binding.column, binding.codec.type, **properties) for binding in bindings]
    return [str(finding) for finding in check_sample(list(map(orjson.dumps, events)), stored, "t")]


@pytest.mark.parametrize(
    ("kind", "event", "fix"),
    [
        (
            "UInt16",
            {"a": "200"},
            "--types a=lenient",
        ),
        (
            "UInt16",
            {"a": "many"},
            "the events have text there: give the column a of t another type, or fix the producer",
        ),
        (
            "String",
            {"a": None},
            "the events have null there: give the column a of t another type, or fix the producer",
        ),
        (
            "String",
            {"a": {"b": "x"}},
            "the events have an object there: --map a.KEY=a for a field of it, or --types a=lenient for its JSON text",
        ),
        ("Int8", {"a": 300}, "ALTER TABLE t MODIFY COLUMN a Int64, or fix the producer"),
        ("String", {}, "name the field that fills it (--map FIELD=a), or give the column a DEFAULT"),
        ("Array(String)", {}, "name the field that fills it (--map FIELD=a), or give the column a DEFAULT"),
    ],
)
def test_a_fault_comes_with_its_fix(kind: str, event: dict[str, Any], fix: str) -> None:
    lines = findings({"a": kind, "b": "Int8"}, [{"a": orjson.loads(b"[]"), "b": 1} | event if event else {"b": 1}])
    assert lines[0].partition("; fix: ")[2] == fix


@pytest.mark.parametrize(
    ("kind", "values", "fix"),
    [
        ("String", ["x", ABSENT], "ALTER TABLE t MODIFY COLUMN a Nullable(String), or fix the producer"),
        ("String", ["x", None], "ALTER TABLE t MODIFY COLUMN a Nullable(String), or fix the producer"),
        (
            "LowCardinality(String)",
            ["x", ABSENT],
            "ALTER TABLE t MODIFY COLUMN a LowCardinality(Nullable(String)), or fix the producer",
        ),
        ("Array(String)", [["x"], ABSENT], "give the column a of t another type, or fix the producer"),
        ("Int8", [300, 5], "ALTER TABLE t MODIFY COLUMN a Int64, or fix the producer"),
        ("UInt8", [-1, 5], "ALTER TABLE t MODIFY COLUMN a Int64, or fix the producer"),
        ("Int16", [2**63, 5], "ALTER TABLE t MODIFY COLUMN a UInt64, or fix the producer"),
        ("Int16", [2**63, -5], "give the column a of t another type, or fix the producer"),
        ("Nullable(Int8)", [300, None], "ALTER TABLE t MODIFY COLUMN a Nullable(Int64), or fix the producer"),
        ("Int8", [300, ABSENT], "ALTER TABLE t MODIFY COLUMN a Nullable(Int64), or fix the producer"),
        # Nullable(Bool) would accept the events that have no value, and none of the others.
        (
            "Bool",
            [1, 0, ABSENT],
            "the events have a number there: give the column a of t another type, or fix the producer",
        ),
    ],
)
def test_a_type_is_proposed_only_if_all_sampled_events_fit_it(kind: str, values: list[Any], fix: str) -> None:
    lines = findings({"a": kind, "b": "Int8"}, [{"b": 1} if v is ABSENT else {"a": v, "b": 1} for v in values])
    assert lines[0].partition("; fix: ")[2] == fix


def test_the_type_of_a_key_or_of_a_table_that_does_not_exist_yet_is_not_altered() -> None:
    events = [{"a": 300}, {"a": 3}]
    key = findings({"a": "Int8"}, events, is_key=True)
    assert key[0].endswith("fix: another table, with Int64 for a, which is part of the key of t, or fix the producer")
    missing = findings({"a": "Int8", "bb": "Int8"}, [{**event, "bbb": 1} for event in events], exists=False)
    assert missing[0].endswith("fix: CREATE TABLE t yourself, with Int64 for a (docs/mapping.md), or fix the producer")
    assert "--map" not in "".join(missing)  # it needs a table
    assert missing[-2].endswith(
        "fix: CREATE TABLE t for these events, as worker check --propose prints it, or another --topic"
    )


@pytest.mark.parametrize(
    ("column", "kind", "event"),
    [
        (
            "_key",
            "Nullable(String)",
            {"repository": {"license": {"key": "mit"}}},
        ),  # of Kafka's message, not of the event
        ("_timestamp", "Nullable(DateTime)", {"timestamp": "2024-01-01T00:00:00Z"}),
        ("is_bot", "Nullable(Bool)", {"isbot": 1}),
        ("status", "Nullable(String)", {"statuses": None}),  # NULL in every row
    ],
)
def test_no_field_is_suggested_whose_values_do_not_fit_or_that_only_looks_similar(
    column: str, kind: str, event: dict[str, Any]
) -> None:
    lines = findings({column: kind, "x": "Int8"}, [{"x": 1, **event}])
    assert "--map" not in "".join(lines), lines


def test_a_field_whose_values_fit_in_some_events_only_is_not_suggested() -> None:
    events: list[Any] = [{"x": 1, "isbot": value} for value in (True, False, 1)]
    assert "--map" not in "".join(findings({"is_bot": "Nullable(Bool)", "x": "Int8"}, events))
    assert "--map isbot=is_bot" in "".join(findings({"is_bot": "Nullable(Bool)", "x": "Int8"}, [*events[:2], {"x": 1}]))


def test_a_field_is_suggested_if_its_parent_is_null_in_some_events() -> None:
    events: list[Any] = [{"x": 1, "upstream": upstream} for upstream in ({"time": 1.5}, None)]
    line = findings({"upstream_time": "Nullable(Float64)", "x": "Int8"}, events)[0]
    assert line.endswith("fix: --map upstream.time=upstream_time")


def test_the_list_of_fields_that_are_not_stored_says_how_many_it_leaves_out() -> None:
    event = {"a": 1, **{f"f{n:02}": 1 for n in range(25)}, "\x1b[2J": 1}
    line = findings({"a": "Int8"}, [event])[-1]
    assert line.startswith("OK    sample: fields that are not stored: \\x1b[2J, f00, f01,")
    assert line.endswith("f18 and 6 more")


@given(
    st.dictionaries(st.integers(0, 300), st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=200),
    st.integers(0, 5000),
)
def test_a_sample_is_disjoint_spread_over_partitions_and_no_larger_than_asked(
    spans: dict[int, tuple[int, int]], size: int
) -> None:
    bounds = {partition: (low, low + count) for partition, (low, count) in spans.items()}
    ranges = sample_ranges(bounds, size)
    assert all(bounds[partition][0] <= start < end <= bounds[partition][1] for partition, start, end in ranges)
    assert all(first[0] != second[0] or first[2] <= second[1] for first, second in pairwise(ranges))
    assert sum(end - start for _, start, end in ranges) <= size
    filled = [partition for partition, (_, count) in spans.items() if count]
    sampled = {partition for partition, _, _ in ranges}
    assert len(sampled) >= min(len(filled), size, 60) / 2
    assert len(ranges) <= 60
    if len(filled) <= 20 and size >= 60:  # begin, middle and end of each partition that is not read whole
        for partition in filled:
            own = [span[1:] for span in ranges if span[0] == partition]
            assert own == [bounds[partition]] or len(own) == 3
            assert (own[0][0], own[-1][1]) == bounds[partition]


def test_a_parent_that_is_not_an_object_is_reported() -> None:
    lines = findings({"a": "String"}, [{"x": {"y": "1"}}, {"x": "text"}], {"a": "x.y"})
    assert lines == [
        "WARN  sample: column a String from x.y: 1 wrong_type of the 2 sampled events; fix: "
        "the events have no object above it there: give the column a of t another type, or fix the producer",
        "OK    sample: 1 of the 2 sampled events would be stored",
    ]


def test_a_field_is_suggested_for_one_column_only_and_if_its_values_fit() -> None:
    event = {"time_iso8601": "2024-01-01T00:00:00Z", "upstream": {"time": 0.5}, "method": [1]}
    lines = findings({"time": "DateTime", "upstream_time": "Nullable(Float32)", "methods": "Nullable(String)"}, [event])
    assert [line.partition("fix: ")[2] for line in lines] == [
        "--map time_iso8601=time",
        "--map upstream.time=upstream_time",
        "",  # an array does not fit String
        "see above, or another --topic or --table",
        "",
    ]


def test_fields_that_are_stored_entirely_or_in_part_are_not_listed_as_not_stored() -> None:
    events = [{"a": {"b": 1, "c": 2}, "j": {"x": 1}}, {"a": None, "j": {}}]
    lines = findings({"b": "Nullable(Int8)", "j": "JSON"}, events, {"b": "a.b"})
    assert lines == [
        "OK    sample: 2 of the 2 sampled events would be stored",
        "OK    sample: fields that are not stored: a.c",
    ]


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        ("Array(String)", "issue.lables[].name", "its DEFAULT; fix: --map issue.labels[].name=c"),
        ("Nullable(String)", "sender.logn", "NULL; fix: --map sender.login=c"),
    ],
)
def test_a_field_of_map_that_no_event_has_is_a_warning_with_the_field_it_may_mean(
    kind: str, field: str, expected: str
) -> None:
    column = Column("c", kind, "DEFAULT", "[]", "[]") if kind.startswith("Array") else Column("c", kind)
    (binding,) = bind_columns([column], {"c": field})
    event = {"issue": {"labels": [{"name": "bug"}]}, "sender": {"url": "u", "login": "l"}}
    line = str(next(check_sample([orjson.dumps(event)], [Stored(binding.field, "c", kind)], "t")))
    assert line == f"WARN  sample: column c {kind} from {field}: in none of the 1 sampled events, so it is {expected}"


def test_a_path_through_an_array_is_written_with_brackets() -> None:
    (binding,) = bind_columns([Column("c", "Array(String)")], {"c": "issue.labels.name"})
    event = {"issue": {"labels": [{"name": "bug"}]}}
    line = str(next(check_sample([orjson.dumps(event)], [Stored(binding.field, "c", "Array(String)")], "t")))
    assert line.endswith("1 wrong_type of the 1 sampled events; fix: --map issue.labels[].name=c")


def test_a_device_or_a_time_that_no_event_has_is_another_field() -> None:
    stored = Stored(Field("timestamp", ("timestamp",), list))
    line = str(next(check_sample([b'{"ts": 1}'], [stored], "t")))
    assert line.endswith("fix: --device-field or --time-field with a field of these events")
