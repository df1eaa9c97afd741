"""The findings of `check` about a sample of events: which field is faulty, why, and the fix."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from worker.commands.check.finding import Stored
from worker.commands.check.sample import check_sample
from worker.sinks.clickhouse.table import Column, bind_columns


def findings(types: dict[str, str], events: list[Any], mapped: dict[str, str] | None = None) -> list[str]:
    """Return the findings, each as its line."""
    bindings = bind_columns([Column(name, kind) for name, kind in types.items()], mapped or {})
    stored = [Stored(binding.field, binding.column, binding.codec.type) for binding in bindings]
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
        ("Int8", {"a": 300}, "ALTER TABLE t MODIFY COLUMN a Int64, or fix the producer"),
        ("String", {}, "ALTER TABLE t MODIFY COLUMN a Nullable(String), or fix the producer"),
        (
            "LowCardinality(String)",
            {},
            "ALTER TABLE t MODIFY COLUMN a LowCardinality(Nullable(String)), or fix the producer",
        ),
        ("Array(String)", {}, "give the column a of t another type, or fix the producer"),
    ],
)
def test_a_fault_comes_with_its_fix(kind: str, event: dict[str, Any], fix: str) -> None:
    lines = findings({"a": kind, "b": "Int8"}, [{"a": orjson.loads(b"[]"), "b": 1} | event if event else {"b": 1}])
    assert lines[0].partition("; fix: ")[2] == fix


def test_a_parent_that_is_not_an_object_is_reported() -> None:
    lines = findings({"a": "String"}, [{"x": {"y": "1"}}, {"x": "text"}], {"a": "x.y"})
    assert lines == [
        "WARN  sample: column a String from x.y: 1 wrong_type of the 2 newest events; fix: "
        "the events have no object above it there: give the column a of t another type, or fix the producer",
        "OK    sample: 1 of the 2 newest events would be stored",
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
        "OK    sample: 2 of the 2 newest events would be stored",
        "OK    sample: fields that are not stored: a.c",
    ]
