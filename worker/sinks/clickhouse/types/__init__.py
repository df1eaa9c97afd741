"""Columns of JSON values → bytes of ClickHouse's Native format, for any column type.

Read `codec` first: it defines what a type is to the worker. The other modules hold the types. `convert` never wraps,
truncates or guesses a value: it raises if the column cannot hold the value as it is. The format is defined in
ClickHouse's src/DataTypes/Serializations.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from worker.decoding.converters import CONVERT_ERRORS
from worker.sinks.clickhouse.types import nested, numbers, texts, times, variants
from worker.sinks.clickhouse.types.codec import Codec
from worker.sinks.clickhouse.types.names import enum_members, member, plain, split

__all__ = ["Codec", "codec", "constant", "offsets", "plain", "split"]


@cache
def codec(type_name: str, rules: str = "strict") -> Codec:
    """Return the codec of a type as ClickHouse writes it; ValueError names the type that is not supported.

    `rules` say which values it accepts: `strict` JSON values of the type's own kind; `lenient` also those that mean
    one, such as numbers as text; `message` what Kafka has of a message: bytes for String, Unix milliseconds for times.
    """
    type_name = plain(type_name)
    name, arguments = split(type_name)
    factories = _RULES[rules]
    if name not in factories:
        reason = f": {_REFUSED[name]}" if name in _REFUSED else ""
        raise ValueError(f"type {type_name} is not supported{reason}")
    return factories[name](arguments, partial(codec, rules=rules))._replace(type=type_name)


def constant(type_name: str, value: Any, rows: int) -> bytes:
    """Return a column with the same value in every row."""
    kind = codec(type_name)
    parts, rest = divmod(rows, _PART_ROWS)
    return kind.encode([kind.convert([value] * _PART_ROWS)] * parts + [kind.convert([value] * rest)])


def offsets(type_name: str, record_batches: Sequence[Sequence[int]]) -> bytes:
    """Return a column of offsets, which are integers from 0 up."""
    if type_name in ("Int64", "UInt64"):
        return b"".join(
            [_encode_range(batch) if isinstance(batch, range) else array("q", batch) for batch in record_batches]
        )
    kind = codec(type_name)
    return kind.encode([kind.convert(list(batch)) for batch in record_batches])


_PART_ROWS = 1000
_PAGE = 1 << 16  # offsets that share all but their two lowest bytes
_LOWEST_BYTES = bytes(range(256)) * 256
_SECOND_BYTES = b"".join([bytes([byte]) * 256 for byte in range(256)])


def _encode_range(offsets: range) -> bytes:
    """Return consecutive offsets as 64-bit integers: 38 instructions each, where `array("q", offsets)` takes 620."""
    parts = []
    for page in range(offsets.start // _PAGE * _PAGE, offsets.stop, _PAGE):
        start, stop = max(offsets.start - page, 0), min(offsets.stop - page, _PAGE)
        part = bytearray(page.to_bytes(8, "little") * (stop - start))
        part[::8], part[1::8] = _LOWEST_BYTES[start:stop], _SECOND_BYTES[start:stop]
        parts.append(part)
    return b"".join(parts)


def _integer(bits: int, *, signed: bool) -> _Factory:
    return lambda *_: numbers.integer(bits, signed)


def _alias(type_name: str) -> _Factory:
    return lambda _, inner_codec: inner_codec(type_name)


def _low_cardinality(arguments: list[str], inner_codec: _Inner) -> Codec:
    name, inner = split(arguments[0])
    if name == "Nullable":
        return nested.low_cardinality(inner_codec(inner[0]), nullable=True)
    return nested.low_cardinality(inner_codec(arguments[0]), nullable=False)


def _map(arguments: list[str], inner_codec: _Inner) -> Codec:
    key, value = map(inner_codec, arguments)
    if type(key.null) in (int, bool):  # the keys of a JSON object are strings
        key = codec(arguments[0], "lenient")
    elif type(key.null) not in (str, bytes):
        raise ValueError(f"type Map({', '.join(arguments)}) is not supported: JSON's keys cannot be {arguments[0]}")
    return nested.map_of(key, value)


def _tuple(arguments: list[str], inner_codec: _Inner) -> Codec:
    names, types = zip(*map(member, arguments), strict=True)
    return nested.tuple_of(list(names), list(map(inner_codec, types)))


_Inner = Callable[[str], Codec]
"""The codec of a type inside another."""

_Factory = Callable[[list[str], _Inner], Codec]
"""A type's arguments → its codec."""

_NESTED: dict[str, _Factory] = {
    "Nullable": lambda arguments, inner: nested.nullable(inner(arguments[0])),
    "LowCardinality": _low_cardinality,
    "Array": lambda arguments, inner: nested.array_of(inner(arguments[0])),
    "Map": _map,
    "Tuple": _tuple,
    "Nested": lambda arguments, inner: nested.array_of(_tuple(arguments, inner)),
    "Variant": lambda arguments, inner: variants.variant(arguments, list(map(inner, arguments))),
    "SimpleAggregateFunction": lambda arguments, inner: inner(arguments[1]),
}

_POINTS = {  # the types of geometry, each an Array of the one before
    "Point": "Tuple(Float64, Float64)",
    **dict.fromkeys(("Ring", "LineString"), "Array(Point)"),
    **dict.fromkeys(("Polygon", "MultiLineString"), "Array(Ring)"),
    "MultiPolygon": "Array(Polygon)",
}
_INTERVALS = (
    *("Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"),
    *("Day", "Week", "Month", "Quarter", "Year"),
)

_STRICT: dict[str, _Factory] = {
    **_NESTED,
    **{f"Int{bits}": _integer(bits, signed=True) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{bits}": _integer(bits, signed=False) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"Interval{unit}": _integer(64, signed=True) for unit in _INTERVALS},
    "BFloat16": lambda *_: Codec(numbers.bfloat16, null=0),
    "Float32": lambda *_: Codec(numbers.float32, null=0),
    "Float64": lambda *_: Codec(numbers.float64, null=0),
    "Bool": lambda *_: Codec(numbers.boolean, null=False),
    "Decimal": lambda arguments, _: numbers.decimal(int(arguments[0]), int(arguments[1])),
    "Enum8": lambda arguments, _: numbers.enum(enum_members(arguments), "b"),
    "Enum16": lambda arguments, _: numbers.enum(enum_members(arguments), "h"),
    "String": lambda *_: Codec(texts.string, null=""),
    "FixedString": lambda arguments, _: texts.fixed_string(int(arguments[0])),
    "UUID": lambda *_: Codec(texts.uuid, null="00000000-0000-0000-0000-000000000000"),
    "IPv4": lambda *_: Codec(texts.ipv4, null="0.0.0.0"),
    "IPv6": lambda *_: Codec(texts.ipv6, null="::"),
    "JSON": lambda *_: Codec(texts.json, null={}, prefix=texts.JSON_AS_TEXT),
    "DateTime": lambda *_: Codec(times.date_time, null=0),
    "DateTime64": lambda arguments, _: Codec(times.date_time64(int(arguments[0])), null=0),
    "Date": lambda *_: Codec(times.days("H"), null=0),
    "Date32": lambda *_: Codec(times.days("i"), null=0),
    "Time": lambda *_: Codec(times.clock_time(0, "i"), null="00:00:00"),
    "Time64": lambda arguments, _: Codec(times.clock_time(int(arguments[0]), "q"), null="00:00:00"),
    "Dynamic": lambda _, inner: variants.dynamic(inner),
    **{name: _alias(stands_for) for name, stands_for in _POINTS.items()},
}

_NORMALIZERS = {  # of the types that are lenient: any JSON value that is meant → one that the strict type takes
    **{f"{sign}{bits}": numbers.whole_number for sign in ("Int", "UInt") for bits in (8, 16, 32, 64, 128, 256)},
    **dict.fromkeys(("Float32", "Float64", "BFloat16"), numbers.any_number),
    "Decimal": numbers.decimal_number,
    "Bool": numbers.truth,
    **dict.fromkeys(("String", "FixedString"), texts.as_text),
}


def _relaxed(strict: Codec, normalize: Callable[[Any], Any]) -> Codec:
    """Return a codec that accepts what `normalize` makes a value for the strict one."""

    def convert(values: list[Any]) -> Any:
        try:
            return strict.convert(values)
        except CONVERT_ERRORS:
            return strict.convert(list(map(normalize, values)))

    return strict._replace(convert=convert)


def _lenient(name: str) -> _Factory:
    return lambda arguments, inner: _relaxed(_STRICT[name](arguments, inner), _NORMALIZERS[name])


def _lenient_low_cardinality(arguments: list[str], _: _Inner) -> Codec:
    """Normalize before the dictionary is made: 1, 1.0 and true are one key of it."""
    strict = _low_cardinality(arguments, codec)
    name, inner = split(arguments[0])
    normalize = _NORMALIZERS.get(split(inner[0])[0] if name == "Nullable" else name)
    return _relaxed(strict, normalize) if normalize else strict


_LENIENT: dict[str, _Factory] = {
    **_STRICT,
    **{name: _lenient(name) for name in _NORMALIZERS},
    "LowCardinality": _lenient_low_cardinality,
    "Variant": lambda arguments, _: _STRICT["Variant"](arguments, codec),  # the kind of a value decides
    "Dynamic": lambda arguments, _: _STRICT["Dynamic"](arguments, codec),
}

_REFUSED = {  # types that no JSON value can mean, or that are not surely written
    "AggregateFunction": "a state has no form in JSON; store the value, and aggregate in a materialized view",
    "Geometry": "an array of points may be a LineString or a Ring; make it one of these types",
    "QBit": "its Native form has the bits transposed; make it Array(Float32), and this column MATERIALIZED from that",
    "Nothing": "a column cannot have it",
}

_MESSAGE: dict[str, _Factory] = {
    **_NESTED,
    "String": lambda *_: Codec(texts.raw_string, null=b""),
    "JSON": lambda *_: Codec(texts.json_of_bytes, null={}, prefix=texts.JSON_AS_TEXT),
    "DateTime": lambda *_: Codec(times.seconds_of_millis, null=0),
    "DateTime64": lambda arguments, _: Codec(times.ticks_of_millis(int(arguments[0])), null=0),
}

_RULES = {"strict": _STRICT, "lenient": _LENIENT, "message": _MESSAGE}
