"""Columns have the same bytes as those of clickhouse-driver, and invalid values are rejected."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
from clickhouse_driver.bufferedwriter import CompressedBufferedWriter
from clickhouse_driver.columns.service import write_column
from clickhouse_driver.context import Context
from hypothesis import given
from hypothesis import strategies as st

from tests.support.column_values import VALUES
from worker.decoding.converters import BadValue
from worker.sinks.clickhouse.types import codec, constant, offsets

REJECTIONS = (BadValue, TypeError, ValueError, OverflowError, KeyError)
SAME_VALUES = [  # types for which the driver accepts the same Python values
    *(f"{sign}{bits}" for sign in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *("Float32", "Float64", "Bool", "String", "Nullable(String)", "Nullable(Int32)", "LowCardinality(String)"),
    *(
        "LowCardinality(Nullable(String))",
        "Array(Int8)",
        "Array(Array(String))",
        "Map(String, UInt8)",
        "IPv4",
        "Int128",
    ),
]
OWN_DICTIONARIES = [kind for kind in VALUES if "LowCardinality" in kind]
ANY_VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, 0, -1, 300, 1 << 63, -1 << 63, 1.0, 1.5, 1e300),
        *("", "a", "12", "1e5", "x" * 300, "ü" * 3, "2021-12-03", "2999-01-01", "10.0.0.1", "::"),
        *([], ["a"], [1], [None], [True], [1, "a"], [[1]], [[]]),
        *({}, {"a": 1}, {"a": None, "b c": "x"}),
    ]
)


def encoded(kind: str, *record_batches: list[Any]) -> bytes:
    column = codec(kind)
    return column.encode([column.convert(records) for records in record_batches])


def encoded_by_driver(kind: str, values: Sequence[Any]) -> bytes:
    context = Context()
    context.client_settings = {"strings_as_bytes": False, "strings_encoding": "utf-8", "use_numpy": False}
    out = BytesIO()
    writer = CompressedBufferedWriter(out, 1 << 20)
    write_column(context, "c", kind, list(values), writer)
    writer.flush()
    return out.getvalue()


def rejects(kind: str, values: list[Any]) -> bool:
    try:
        codec(kind).convert(values)
    except REJECTIONS:
        return True
    return False


@pytest.mark.parametrize("kind", SAME_VALUES)
@given(data=st.data())
def test_bytes_are_those_of_the_driver(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[kind].filter(lambda value: kind != "Int128" or type(value) is int), min_size=1))
    assert encoded(kind, values) == encoded_by_driver(kind, values)


@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind not in OWN_DICTIONARIES])
@given(data=st.data())
def test_a_column_does_not_depend_on_how_it_is_split_into_record_batches(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[kind], max_size=10))
    split = data.draw(st.integers(0, len(values)))
    assert encoded(kind, values[:split], [], values[split:]) == encoded(kind, values)


@pytest.mark.parametrize("kind", VALUES)
@given(data=st.data())
def test_a_record_batch_is_rejected_exactly_if_one_of_its_values_is(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[kind] | ANY_VALUES, max_size=6))
    assert rejects(kind, values) == any(rejects(kind, [value]) for value in values)


@pytest.mark.parametrize("kind", VALUES)
def test_a_column_without_values_is_only_its_prefix(kind: str) -> None:
    assert encoded(kind) == encoded(kind, []) == encoded(kind, [], []) == codec(kind).prefix


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(f"Int{bits}", -(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64, 128, 256)]
    + [(f"UInt{bits}", 0, (1 << bits) - 1) for bits in (8, 16, 32, 64, 128, 256)],
)
def test_an_integer_beyond_the_type_is_rejected_not_wrapped(kind: str, low: int, high: int) -> None:
    assert not rejects(kind, [low, high, 0])
    assert rejects(kind, [0, low - 1])
    assert rejects(kind, [0, high + 1])
    assert rejects(kind, [str(high + 1)])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("Int8", True), ("Int64", 5.0), ("Int64", "5"), ("Int64", None), ("UInt256", "1_000"), ("Int128", "٣"),
        ("Float64", True), ("Float64", "1"), ("Float64", math.nan), ("Float64", math.inf), ("Float32", -math.inf),
        ("Float32", 1e39), ("Float32", math.nan), ("Bool", 1), ("Bool", "true"),
        ("String", 5), ("String", None), ("String", ["a"]), ("String", {"a": 1}), ("String", "\ud800"),
        ("FixedString(2)", "abc"), ("FixedString(2)", "aü"), ("FixedString(2)", 12),
        ("LowCardinality(String)", None), ("LowCardinality(String)", 5), ("LowCardinality(String)", []),
        ("LowCardinality(UInt16)", True), ("Nullable(Int8)", 128), ("Nullable(String)", 0),
        ("DateTime", -1), ("DateTime", "2106-02-07T06:28:16Z"), ("DateTime", True), ("DateTime", "yesterday"),
        ("DateTime64(3)", "1899-12-31T23:59:59.999Z"), ("DateTime64(3)", "2300-01-01T00:00:00Z"),
        ("DateTime64(9)", "2262-04-11T23:47:16.855Z"), ("DateTime64(3)", None), ("DateTime64(3)", math.nan),
        ("Date", "1969-12-31"), ("Date", "2149-06-07"), ("Date", "2021-02-29"), ("Date", "2020-W01-1"),
        ("Date", "20000"), ("Date", 20000.0),
        ("Date32", "1899-12-31"), ("Date32", "2300-01-01"), ("Date32", None),
        ("IPv4", "1.2.3"), ("IPv4", "1.2.3.256"), ("IPv4", "::1"), ("IPv4", 16909060), ("IPv4", "1.2.3.4\0"),
        ("IPv6", "1::2::3"), ("IPv6", ""), ("IPv6", None),
        ("UUID", "00112233445566778899aabbccddeeff"), ("UUID", "0011223 -4455-6677-8899-aabbccddeeff"),
        ("UUID", "00112233-4455-6677-8899-aabbccddeefg"), ("UUID", "0-112233-4455-6677-8899-aabbccddeeff"),
        ("UUID", "00112233-4455-6677-8899-aabbccddee  "), ("UUID", None),
        ("Enum8('a' = 1)", "b"), ("Enum8('a' = 1)", 2),
        ("Enum8('a' = 1)", True), ("Enum8('a' = 1)", 1.0), ("Enum8('a' = 1)", None),
        ("Decimal(9, 2)", 1.005), ("Decimal(9, 2)", "0.001"), ("Decimal(9, 2)", 10**7), ("Decimal(9, 2)", "1e99"),
        ("Decimal(9, 2)", "NaN"), ("Decimal(9, 2)", math.nan), ("Decimal(9, 2)", True), ("Decimal(9, 2)", " 1"),
        ("Decimal(38, 20)", 0.1 + 0.2), ("Decimal(38, 2)", 12345678901234567.0), ("Decimal(9, 2)", None),
        ("Array(Int8)", [1, 128]), ("Array(Int8)", None), ("Array(String)", "abc"), ("Array(String)", {"a": 1}),
        ("Map(String, Int8)", {"a": 200}), ("Map(String, Int8)", []), ("Map(UUID, Int8)", {"a": 1}),
        ("Tuple(Int8, String)", [1]), ("Tuple(Int8, String)", [1, "a", 2]), ("Tuple(Int8, String)", {"a": 1}),
        ("Tuple(a Int8, b String)", {"a": 1}), ("Tuple(a Int8, b String)", "ab"), ("Tuple(a Int8, b String)", ["x", 1]),
        ("Time", "1:2:3"), ("Time", "1000:00:00"), ("Time", "01:60:00"), ("Time", 3600), ("Time64(3)", "01:00"),
        ("Time64(3)", 5), ("BFloat16", 1e39), ("BFloat16", "1"), ("IntervalDay", "5"), ("IntervalDay", 1.5),
        ("Map(UInt8, String)", {"300": "a"}), ("Map(UInt8, String)", {"x": "a"}), ("Map(Date, Int8)", {"x": 1}),
        ("Point", [1]), ("Point", ["1", "2"]), ("Ring", [1, 2]),
        ("Variant(Int8, String)", 300), ("Variant(Int8, String)", 1.5), ("Variant(Int8, String)", True),
        ("Variant(Int8, String)", []), ("Dynamic", [1, "a"]), ("Dynamic", [[1]]), ("Dynamic", [True, 1]),
        ("JSON", []), ("JSON", "{}"), ("JSON", None),
    ],
)  # fmt: skip
def test_a_value_that_the_type_cannot_hold_is_rejected(kind: str, value: Any) -> None:
    assert rejects(kind, [value])


def test_each_kind_of_invalid_value_has_its_reason() -> None:
    for kind, value, reason in (
        ("Int8", "1", "wrong_type"),
        ("DateTime", "x", "bad_timestamp"),
        ("Float32", 1e39, "out_of_range"),
        ("Tuple(a Int8, b Int8)", {"a": 1}, "missing_field"),
    ):
        with pytest.raises(BadValue) as caught:
            codec(kind).convert([value])
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("DateTime64(3, 'UTC')", "2021-12-03T10:15:30.123Z", struct.pack("<q", 1_638_526_530_123)),
        ("DateTime64(0)", -1, struct.pack("<q", -1)),  # a second before 1970
        ("DateTime64(0)", "1969-12-31T23:59:59.500Z", struct.pack("<q", -1)),
        ("DateTime64(6)", 1_638_526_530_123, struct.pack("<q", 1_638_526_530_123_000)),
        ("DateTime('Europe/Berlin')", "2021-12-03T10:15:30.999Z", struct.pack("<I", 1_638_526_530)),
        ("DateTime64(6)", "2024-01-01T00:00:00.120255Z", struct.pack("<q", 1_704_067_200_120_255)),
        ("DateTime64(9)", "2024-01-01T00:00:00.120255001Z", struct.pack("<q", 1_704_067_200_120_255_001)),
        ("DateTime64(9)", 1_704_067_200_120_255_001, struct.pack("<q", 1_704_067_200_120_255_001)),
        ("DateTime64(6)", 1_704_067_200_120_255, struct.pack("<q", 1_704_067_200_120_255)),
        ("Date", 20_000, struct.pack("<H", 20_000)),  # days, as JSONEachRow has it
        ("Date32", 20_000, struct.pack("<i", 20_000)),
        ("Date", 1_704_067_200, struct.pack("<H", 19_723)),
        ("Date", "1970-01-02", struct.pack("<H", 1)),
        ("Date", "1970-01-02T23:59:59+00:00", struct.pack("<H", 1)),
        ("Date32", "1969-12-31", struct.pack("<i", -1)),
        ("Date32", "1969-12-31T00:00:00Z", struct.pack("<i", -1)),
        ("Decimal(9, 2)", 0.29, struct.pack("<i", 29)),
        ("Decimal(9, 2)", "-1.5e1", struct.pack("<i", -1500)),
        ("Int128", str(-(1 << 127)), bytes(15) + b"\x80"),
    ],
)
def test_a_value_is_encoded_exactly(kind: str, value: Any, expected: bytes) -> None:
    assert encoded(kind, [value]) == expected


@pytest.mark.parametrize(("keys", "width"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_a_dictionary_has_the_narrowest_index_for_its_keys(keys: int, width: int) -> None:
    values = [str(number) for number in range(keys)]
    column = encoded("LowCardinality(String)", values)
    index = column[-width * keys :]
    assert [int.from_bytes(index[i : i + width], "little") for i in range(0, len(index), width)] == list(range(keys))
    assert len(column) == 8 + 16 + len(encoded("String", values)) + 8 + width * keys


@pytest.mark.parametrize("rows", [0, 1, 999, 1000, 2500])
def test_a_constant_is_the_value_in_every_row(rows: int) -> None:
    assert constant("Int32", 7, rows) == struct.pack("<i", 7) * rows
    assert constant("String", "topic", rows) == b"\5topic" * rows
    assert constant("Nullable(Int8)", None, rows) == b"\1" * rows + bytes(rows)


def test_offsets_may_be_ranges_or_lists_in_any_integer_column() -> None:
    record_batches = [range(5, 8), [10, 1 << 40]]
    expected = struct.pack("<5q", 5, 6, 7, 10, 1 << 40)
    assert offsets("Int64", record_batches) == offsets("UInt64", record_batches) == expected
    assert offsets("Int128", [range(2)]) == struct.pack("<4q", 0, 0, 1, 0)
    with pytest.raises(OverflowError):
        offsets("Int32", record_batches)


def test_a_type_that_describe_writes_on_several_lines_is_on_one_line() -> None:
    kind = codec("Tuple(\n    a Int8,\n    b Tuple(\n        c String,\n        d Decimal(9, 2)))")
    assert kind.type == "Tuple(a Int8, b Tuple(c String, d Decimal(9, 2)))"
    assert kind.encode([kind.convert([{"a": 1, "b": {"c": "x", "d": 1}}])]) == b"\1\1x" + struct.pack("<i", 100)


@pytest.mark.parametrize(
    "kind",
    [
        *("QBit(Float32, 8)", "Array(Geometry)", "AggregateFunction(sum, UInt64)", "Nothing", "Int9", ""),
        "Map(Array(String), String)",
    ],
)
def test_an_unsupported_type_is_named_in_the_error(kind: str) -> None:
    with pytest.raises(ValueError, match=r"type .*is not supported"):
        codec(kind)


@pytest.mark.parametrize("kind", ["Variant(Date, String)", "Variant(Array(Int8), Point)", "Variant(Float64, Float32)"])
def test_a_variant_with_two_types_for_one_kind_of_value_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"are both for .*nothing says which an event means"):
        codec(kind)


@given(
    start=st.one_of(
        st.integers(0, 3000),
        st.integers(0, 2**63 - 10_000),
        st.integers(1, 2**47 - 1).map(lambda page: 65_536 * page - 1000),
    ),
    lengths=st.lists(st.integers(0, 2500), max_size=3),
)
def test_offsets_are_the_same_from_ranges_and_from_lists(start: int, lengths: list[int]) -> None:
    ranges = []
    for length in lengths:
        ranges.append(range(start, start + length))
        start += length
    assert offsets("Int64", ranges) == offsets("Int64", [list(part) for part in ranges])
