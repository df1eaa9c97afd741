"""Lenient columns take values as people send them; strict ones stay strict, and no value is changed in meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from clickhouse_driver import Client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.column_values import VALUES
from tests.support.kit import Service
from tests.support.rows import write
from worker.config.settings import Settings, UsageError
from worker.config.sources import load
from worker.core.errors import Fatal
from worker.decoding.converters import CONVERT_ERRORS, reject_reason
from worker.sinks.clickhouse import schema
from worker.sinks.clickhouse.insert import insert_block
from worker.sinks.clickhouse.types import codec

LENIENT: list[str] = [
    *(f"{sign}{bits}" for sign in ("Int", "UInt") for bits in (8, 64, 128)),
    *("Float32", "Float64", "BFloat16", "Decimal(9, 2)", "Bool", "String", "FixedString(6)"),
    *("Nullable(Int32)", "LowCardinality(String)", "LowCardinality(Nullable(String))", "LowCardinality(UInt16)"),
    *("Array(Int8)", "Array(String)", "Map(String, String)", "Map(String, Int64)"),
]
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-300, 300).map(float),
    st.integers(-300, 300).map(str),
    st.sampled_from(["", "5.0", "1e2", "1.5", "-0", "007", "true", "False", "1e400", " 5", "+5", "x", "ü", "nan"]),
)
lists = st.lists(scalars, max_size=3)
objects = st.dictionaries(st.sampled_from("ab"), scalars | lists, max_size=3)
SENT = st.one_of(scalars, scalars, scalars, lists, objects, st.tuples(scalars, scalars).map(list))


def accepts(kind: str, rules: str, value: Any) -> bool:
    try:
        codec(kind, rules).convert([value])
    except CONVERT_ERRORS:
        return False
    return True


@pytest.mark.parametrize("kind", LENIENT)
def test_what_is_accepted_is_stored_as_the_server_reads_it_from_json(
    client: Client, table_name: str, kind: str
) -> None:
    """Values that only the worker accepts are in the tests below."""
    client.execute(
        f"CREATE TABLE {table_name} (i Int64, c {kind}) ENGINE = Memory",
        settings={"allow_suspicious_low_cardinality_types": 1},
    )
    column, compared = codec(kind, "lenient"), 0

    @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(SENT, min_size=8, max_size=12))
    @example(
        [5, "5", 5.0, True, "true", {"a": 5}, {"a": "5"}, [5], ["5"], [5, "5"]]
    )  # for each type some that it takes
    def check(sent: list[Any]) -> None:
        nonlocal compared
        values = [value for value in sent if accepts(kind, "lenient", value)]
        if not values:
            return
        client.execute(f"TRUNCATE TABLE {table_name}")
        header = [("i", "Int64"), ("c", column.type)]
        data = [codec("Int64").encode([codec("Int64").convert(list(range(len(values))))])]
        data.append(column.encode([column.convert(values)]))
        insert_block(client, f"INSERT INTO {table_name} (i, c) VALUES", {"async_insert": 0}, header, len(values), data)
        stored = client.execute(f"SELECT toJSONString(c) FROM {table_name} ORDER BY i")
        for value, (text,) in zip(values, stored, strict=True):
            read = server_reads(client, kind, value)
            if read is not _REFUSED:
                compared += 1
                assert text == read, value

    check()
    client.execute(f"DROP TABLE {table_name}")
    assert compared > 0


_REFUSED = object()


def server_reads(client: Client, kind: str, value: Any) -> Any:
    """Return the JSON of what the server makes of a value; _REFUSED where it refuses it."""
    text = orjson.dumps({"c": value}).decode()
    query = "SELECT toJSONString(c) FROM format('JSONEachRow', %(structure)s, %(text)s)"
    options = {"input_format_null_as_default": 0, "allow_suspicious_low_cardinality_types": 1}
    try:
        ((read,),) = client.execute(query, {"structure": f"c {kind}", "text": text}, settings=options)
    except Exception:
        return _REFUSED
    return read


@pytest.mark.parametrize("kind", VALUES)
@given(data=st.data())
def test_lenient_takes_all_that_strict_takes_in_the_same_way(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[kind], min_size=1, max_size=5))
    strict, lenient = codec(kind), codec(kind, "lenient")
    assert lenient.encode([lenient.convert(values)]) == strict.encode([strict.convert(values)])


@pytest.mark.parametrize("kind", LENIENT)
@given(st.lists(SENT, max_size=5))
def test_a_record_batch_is_rejected_exactly_if_one_of_its_values_is(kind: str, values: list[Any]) -> None:
    together = not reject_reason(codec(kind, "lenient").convert, values)
    assert together == all(accepts(kind, "lenient", value) for value in values)


@pytest.mark.parametrize(
    ("kind", "sent", "same"),
    [
        ("Int8", ["5", 5.0, True, False, "5.0", "-1.2e2"], [5, 5, 1, 0, 5, -120]),
        ("Nullable(UInt64)", ["18446744073709551615", None], [18446744073709551615, None]),
        ("Float64", ["5", True, "-1.5e-3", "0.1"], [5, 1, -0.0015, 0.1]),
        ("Decimal(9, 2)", [True, "1.25"], [1, 1.25]),
        ("Bool", [1, 0, "1", "0", "true", "False", 1.0], [True, False, True, False, True, False, True]),
        ("String", [5, 1.5, True, [1, "ü", None], {"a": {"b": 1e100 / 1e90}}, "x"],
         ["5", "1.5", "true", '[1,"ü",null]', '{"a":{"b":1e10}}'.replace("1e10", "10000000000.0"), "x"]),
        ("LowCardinality(String)", [1, True, 1.0, "1"], ["1", "true", "1.0", "1"]),
        ("Map(String, String)", [{"a": 1, "b": [True]}], [{"a": "1", "b": "[true]"}]),
        ("Array(UInt8)", [["1", 2, 3.0]], [[1, 2, 3]]),
        ("Map(UInt8, Bool)", [{"1": 1}], [{"1": True}]),
    ],
)  # fmt: skip
def test_a_value_is_what_it_means(kind: str, sent: list[Any], same: list[Any]) -> None:
    strict, lenient = codec(kind), codec(kind, "lenient")
    assert lenient.encode([lenient.convert(sent)]) == strict.encode([strict.convert(same)])
    assert not all(accepts(kind, "strict", value) for value in sent) or kind.startswith("Map(UInt8")


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("Int8", "300", "out_of_range"), ("Int8", 5.5, "out_of_range"), ("Int8", "5.5", "out_of_range"),
        ("Int64", 9007199254740992.0, "out_of_range"), ("UInt8", "-1", "out_of_range"), ("UInt8", None, "wrong_type"),
        *[("Int64", text, "wrong_type") for text in ("", " 5", "+5", "0x5", "٣", "5 ", "true")],
        ("Int64", [], "wrong_type"), ("Int64", {}, "wrong_type"), ("Bool", 2, "wrong_type"), ("Bool", [], "wrong_type"),
        ("Float64", "1e999", "out_of_range"), ("Float64", "nan", "wrong_type"), ("Float64", "inf", "wrong_type"),
        ("Bool", "yes", "wrong_type"), ("Bool", "tRUE", "wrong_type"), ("Bool", None, "wrong_type"),
        ("Bool", 0.5, "wrong_type"),
        ("String", None, "wrong_type"), ("String", float(1 << 64), "out_of_range"),
        ("String", {"id": [float(1 << 64)]}, "out_of_range"), ("FixedString(2)", 123, "out_of_range"),
        ("DateTime", True, "bad_timestamp"), ("UUID", 5, "wrong_type"), ("Array(String)", "[]", "wrong_type"),
    ],
)  # fmt: skip
def test_what_may_mean_another_value_is_rejected(kind: str, value: Any, reason: str) -> None:
    assert reject_reason(codec(kind, "lenient").convert, [value]) == reason


def test_only_the_columns_that_types_names_are_lenient(clickhouse: Service, client: Client, table_name: str) -> None:
    client.execute(f"CREATE TABLE {table_name} (i Int64, a Int8, b Int8 DEFAULT 7) ENGINE = MergeTree ORDER BY i")
    options = {"topic": "t", "backend": "clickhouse", "table": table_name, "types": ["a=lenient,b=lenient", "b=strict"]}
    settings, _ = load(options, {"WORKER_CLICKHOUSE_URL": clickhouse.address})
    payloads = [
        b'{"i": 1, "a": "5", "b": 6}',
        b'{"i": 2, "a": true}',
        b'{"i": 3, "a": 1, "b": "6"}',
        b'{"i": "4", "a": 1}',
    ]
    assert write(settings, payloads) == ["wrong_type b", "wrong_type i"]
    assert client.execute(f"SELECT i, a, b FROM {table_name} ORDER BY i") == [(1, 5, 6), (2, 1, 7)]
    wrong, _ = load({**options, "types": ["aa=lenient"]}, {"WORKER_CLICKHOUSE_URL": clickhouse.address})
    with pytest.raises(Fatal, match=r"--types aa=lenient: there is no column aa \(did you mean a\?\)"):
        write(wrong, [])
    client.execute(f"DROP TABLE {table_name}")


def test_labels_of_an_array_of_objects(clickhouse: Service, client: Client, table_name: str) -> None:
    client.execute(
        f"CREATE TABLE {table_name} (i Int64, labels Array(String) DEFAULT [], ids Array(Nullable(Int64)), "
        "deep Array(Array(String)) DEFAULT [['none']]) ENGINE = MergeTree ORDER BY i"
    )
    mapped = {"labels": "issue.labels[].name", "ids": "tags[].id", "deep": "a[].b[].c"}
    url, types = clickhouse.address, {"labels": "lenient"}
    settings = Settings(topic="t", backend="clickhouse", clickhouse_url=url, table=table_name, map=mapped, types=types)
    events: list[dict[str, Any]] = [
        {"i": 0, "issue": {"labels": [{"name": "bug"}, {"name": 5}]}, "tags": [{"id": 1}, {}, None, {"id": None}]},
        {"i": 1, "tags": [], "a": [{"b": [{"c": "x"}, {"c": "y"}]}, {"b": []}]},
        {"i": 2, "issue": None, "tags": []},
        {"i": 3, "issue": {"labels": [{}]}, "tags": []},
        {"i": 4, "issue": {"labels": ["bug"]}, "tags": []},
        {"i": 5, "issue": {"labels": {"name": "bug"}}, "tags": []},
        {"i": 6, "issue": {"labels": []}},
        {"i": 7, "issue": {"labels": []}, "tags": None},
    ]
    assert write(settings, list(map(orjson.dumps, events))) == [
        *["wrong_type issue.labels[].name"] * 3,
        "missing_field tags[].id",
        "wrong_type tags[].id",
    ]
    assert client.execute(f"SELECT * FROM {table_name} ORDER BY i") == [
        (0, ["bug", "5"], [1, None, None, None], [["none"]]),
        (1, [], [], [["x", "y"], []]),
        (2, [], [], [["none"]]),
    ]
    client.execute(f"DROP TABLE {table_name}")


def test_a_server_that_is_too_old_for_dynamic_is_refused(
    clickhouse: Service, client: Client, table_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.execute(f"CREATE TABLE {table_name} (i Int64, d Array(Dynamic)) ENGINE = MergeTree ORDER BY i")
    settings = Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)
    assert write(settings, [b'{"i": 1, "d": [1, "a", {"b": [1]}, [{"c": 1}], [1.5, 2]]}', b'{"i": 2}']) == [
        "missing_field d"
    ]
    query = f"SELECT arrayMap(x -> dynamicType(x), d), toJSONString(d) FROM {table_name}"
    kinds = ["Int64", "String", "JSON", "Array(JSON)", "Array(Nullable(Float64))"]
    assert client.execute(query) == [(kinds, '[1,"a",{"b":[1]},[{"c":1}],[1.5,2]]')]
    monkeypatch.setattr(schema, "_FLATTENED", "a_setting_that_no_server_has")
    with pytest.raises(Fatal, match="column d: type Dynamic needs a server"):
        write(settings, [])
    client.execute(f"DROP TABLE {table_name}")


def test_flag_variable_and_file_mean_the_same(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('[types]\na = "lenient"\n"b.c" = "strict"\n')
    expected = {"a": "lenient", "b.c": "strict"}
    for flags, environ, file in (
        ({"types": ["a=lenient", "b.c=strict"]}, {}, None),
        ({}, {"WORKER_TYPES": "a=lenient, b.c=strict"}, None),
        ({}, {}, config),
    ):
        assert load({"topic": "t", **flags}, environ, file)[0].types == expected
    for text in ("types = 5", '[types]\na = "loose"', "[types]\na = 5"):
        config.write_text(text)
        with pytest.raises(UsageError, match="write a table of columns"):
            load({}, {}, config)
    for word in ("a", "a=loose", "=lenient"):
        with pytest.raises(UsageError, match="write COLUMN=lenient"):
            load({"types": [word]}, {})
