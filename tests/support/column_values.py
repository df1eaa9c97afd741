"""Column types, each with a hypothesis strategy for the JSON values that it holds, extremes included."""

from __future__ import annotations

from decimal import Context, Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import strategies as st

Values = st.SearchStrategy[Any]


def integers(bits: int, signed: bool) -> Values:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    whole = st.integers(low, high) | st.sampled_from([low, high, 0])
    return whole.map(lambda value: value if -(1 << 63) <= value < 1 << 64 else str(value))


def decimals(precision: int, scale: int) -> Values:
    largest = 10**precision - 1
    exact = st.integers(-largest, largest) | st.sampled_from([largest, -largest, 0])
    floats = st.integers(-(10 ** min(precision, 15)) + 1, 10 ** min(precision, 15) - 1)
    exactly = Context(prec=100)
    return exact.map(lambda value: f"{Decimal(value).scaleb(-scale, exactly):f}") | floats.map(
        lambda value: float(Decimal(value).scaleb(-scale))
    )


text = st.text(max_size=30) | st.sampled_from(
    ["", "x" * 127, "y" * 128, "ü" * 64, "z" * 16_384, "\0", "日本", "\U0001f600"]
)
word = st.text("abcü", max_size=2)
short = st.text("aü", max_size=2)
floats64 = st.floats(allow_nan=False, allow_infinity=False)
floats32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
dates = st.dates().filter(lambda day: 1900 <= day.year < 2300).map(str) | st.sampled_from(["1900-01-01", "2299-12-31"])
late_dates = st.dates().filter(lambda day: 1970 <= day.year < 2149).map(str) | st.just("2149-06-06")
uuids = st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper())
ipv4 = st.integers(0, (1 << 32) - 1).map(lambda value: str(IPv4Address(value)))
ipv6 = st.integers(0, (1 << 128) - 1).map(lambda value: str(IPv6Address(value)))
leaves = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | floats64 | short
objects = st.dictionaries(word.filter(bool), leaves | st.lists(st.integers(0, 9)), max_size=4)

STRINGS: dict[str, Values] = {
    "String": text,
    "FixedString(6)": short,
    "LowCardinality(String)": word,
    "LowCardinality(FixedString(4))": short,
    "LowCardinality(Nullable(String))": st.none() | word,
    "Nullable(String)": st.none() | text,
    "UUID": uuids,
    "IPv4": ipv4,
    "IPv6": ipv6 | ipv4,
    r"Enum8('a' = 1, 'it\'s, (b)' = -128)": st.sampled_from(["a", "it's, (b)", 1, -128]),
    "Enum16('a' = 32767, '' = -32768)": st.sampled_from(["a", "", 32767]),
    "Nullable(Enum8('a' = 0, 'b' = 5))": st.sampled_from(["a", "b", None]),
}

NUMBERS: dict[str, Values] = {
    **{f"Int{bits}": integers(bits, signed=True) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{bits}": integers(bits, signed=False) for bits in (8, 16, 32, 64, 128, 256)},
    "Float32": floats32 | st.integers(-(1 << 24), 1 << 24),
    "Float64": floats64 | st.integers(-(1 << 53), 1 << 53),
    "Bool": st.booleans(),
    "Decimal(9, 2)": decimals(9, 2),
    "Decimal(18, 18)": decimals(18, 18),
    "Decimal(38, 0)": decimals(38, 0),
    "Decimal(76, 20)": decimals(76, 20),
    "Nullable(Int32)": st.none() | integers(32, signed=True),
    "LowCardinality(UInt16)": st.integers(0, 3),
    "LowCardinality(Nullable(Int64))": st.none() | st.integers(-2, 2),
    "SimpleAggregateFunction(sum, UInt64)": integers(64, signed=False),
}

NESTED: dict[str, Values] = {
    "Date": late_dates,
    "Date32": dates,
    "Array(Int8)": st.lists(integers(8, signed=True), max_size=4),
    "Array(Array(String))": st.lists(st.lists(short, max_size=3), max_size=3),
    "Array(LowCardinality(Nullable(String)))": st.lists(st.none() | word, max_size=4),
    "Array(Nullable(Float64))": st.lists(st.none() | floats64, max_size=3),
    "Map(String, UInt8)": st.dictionaries(short, integers(8, signed=False), max_size=3),
    "Map(LowCardinality(String), Array(Int8))": st.dictionaries(word, st.lists(st.integers(0, 9)), max_size=3),
    "Tuple(Int8, LowCardinality(String))": st.tuples(integers(8, signed=True), word).map(list),
    "Tuple(a Int8, `b c` Nullable(String))": st.fixed_dictionaries({"a": st.integers(-9, 9), "b c": st.none() | short}),
    "Nested(a Int8, b String)": st.lists(st.fixed_dictionaries({"a": st.integers(-9, 9), "b": short}), max_size=3),
    "JSON": objects,
    "Array(JSON)": st.lists(objects, max_size=2),
    "Map(String, Tuple(Decimal(9, 2), Array(LowCardinality(String))))": st.dictionaries(
        short, st.tuples(decimals(9, 2), st.lists(word, max_size=2)).map(list), max_size=2
    ),
}

clock_times = st.builds(
    lambda sign, seconds, fraction: f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{fraction}",
    st.sampled_from(["", "-"]),
    st.integers(0, 3_599_999),
    st.just(""),
)
points = st.lists(floats64, min_size=2, max_size=2)

LATER: dict[str, Values] = {
    "BFloat16": floats32 | st.integers(-(1 << 24), 1 << 24),
    "Time": clock_times,
    "Time64(3)": clock_times.flatmap(lambda text: st.from_regex(r"(\.[0-9]{1,6})?", fullmatch=True).map(text.__add__)),
    "Nullable(Time64(9))": st.none() | clock_times,
    "IntervalDay": integers(64, signed=True),
    "Map(UInt64, String)": st.dictionaries(integers(64, signed=False).map(str), short, max_size=3),
    "Map(Date, Int8)": st.dictionaries(late_dates, st.integers(-9, 9), max_size=3),
    "Point": points,
    "Ring": st.lists(points, max_size=3),
    "MultiPolygon": st.lists(st.lists(st.lists(points, max_size=2), max_size=2), max_size=2),
    "Variant(Array(UInt8), Bool, Float64, Map(String, Int8), String, UInt64)": st.none()
    | st.booleans()
    | st.integers(2, (1 << 64) - 1)  # the server takes 0 and 1 for false and true
    | floats64
    | st.text("xyz", min_size=1)
    | st.lists(st.integers(0, 255), max_size=2)
    | st.dictionaries(short, st.integers(-9, 9), max_size=2),
    "Array(Variant(LowCardinality(String), UInt64))": st.lists(
        st.none() | st.integers(0, 9) | st.text("xyz", min_size=1), max_size=3
    ),
    "Dynamic": st.none()
    | st.booleans()
    | integers(64, signed=True)
    | st.integers(1 << 63, (1 << 64) - 1)
    | floats64
    | st.text("xyz")
    | st.lists(st.none() | integers(64, signed=True), min_size=1, max_size=3)
    | st.lists(st.none() | st.text("xyz"), max_size=3)
    | st.lists(st.booleans(), max_size=3),
    "Array(Dynamic(max_types=2))": st.lists(st.none() | st.integers(0, 9) | st.text("xyz") | st.booleans(), max_size=4),
}

VALUES = {**LATER, **STRINGS, **NUMBERS, **NESTED}
