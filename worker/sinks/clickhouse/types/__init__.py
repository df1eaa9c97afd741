"""Columns of JSON values → bytes of ClickHouse's Native format, for any column type.

Read `codec` first: it defines what a type is to the worker. `texts`, `times`, `numbers` and `nested` hold the types.
`convert` never wraps, truncates or guesses a value: it raises if the column cannot hold the value as it is. The format
is defined in ClickHouse's src/DataTypes/Serializations.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from worker.sinks.clickhouse.types import nested, numbers, texts, times
from worker.sinks.clickhouse.types.codec import Codec
from worker.sinks.clickhouse.types.names import enum_members, member, plain, split

__all__ = ["Codec", "codec", "constant", "offsets"]


@cache
def codec(type_name: str) -> Codec:
    """Return the codec of a type as ClickHouse writes it; ValueError names the type that is not supported."""
    type_name = plain(type_name)
    name, arguments = split(type_name)
    if name not in _TYPES:
        raise ValueError(f"type {type_name} is not supported")
    return _TYPES[name](arguments)._replace(type=type_name)


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
_LANES = 1024
_COUNT_UP = int.from_bytes(array("q", range(_LANES)).tobytes(), "little")
_ONES = int.from_bytes(array("q", [1] * _LANES).tobytes(), "little")


def _encode_range(offsets: range) -> bytes:
    """Return consecutive offsets as 64-bit integers: one addition of big integers for each 1024 of them.

    No lane carries into the next, because offsets are below 2^63. Takes a fifth of the time of `array("q", offsets)`.
    """
    parts = [
        (_COUNT_UP + start * _ONES).to_bytes(8 * _LANES, "little")
        for start in range(offsets.start, offsets.stop, _LANES)
    ]
    return b"".join(parts)[: 8 * len(offsets)]


def _integer(bits: int, *, signed: bool) -> _Factory:
    return lambda _: numbers.integer(bits, signed)


def _low_cardinality(arguments: list[str]) -> Codec:
    name, inner = split(arguments[0])
    if name == "Nullable":
        return nested.low_cardinality(codec(inner[0]), nullable=True)
    return nested.low_cardinality(codec(arguments[0]), nullable=False)


def _map(arguments: list[str]) -> Codec:
    key, value = map(codec, arguments)
    if type(key.null) is not str:
        raise ValueError(f"type Map({', '.join(arguments)}) is not supported: the keys of a JSON object are strings")
    return nested.map_of(key, value)


def _tuple(arguments: list[str]) -> Codec:
    names, types = zip(*map(member, arguments), strict=True)
    return nested.tuple_of(list(names), list(map(codec, types)))


_Factory = Callable[[list[str]], Codec]

_TYPES: dict[str, _Factory] = {
    **{f"Int{bits}": _integer(bits, signed=True) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{bits}": _integer(bits, signed=False) for bits in (8, 16, 32, 64, 128, 256)},
    "Float32": lambda _: Codec(numbers.float32, null=0),
    "Float64": lambda _: Codec(numbers.float64, null=0),
    "Bool": lambda _: Codec(numbers.boolean, null=False),
    "Decimal": lambda arguments: numbers.decimal(int(arguments[0]), int(arguments[1])),
    "Enum8": lambda arguments: numbers.enum(enum_members(arguments), "b"),
    "Enum16": lambda arguments: numbers.enum(enum_members(arguments), "h"),
    "String": lambda _: Codec(texts.string, null=""),
    "FixedString": lambda arguments: texts.fixed_string(int(arguments[0])),
    "UUID": lambda _: Codec(texts.uuid, null="00000000-0000-0000-0000-000000000000"),
    "IPv4": lambda _: Codec(texts.ipv4, null="0.0.0.0"),
    "IPv6": lambda _: Codec(texts.ipv6, null="::"),
    "JSON": lambda _: Codec(texts.json, null={}, prefix=texts.JSON_AS_TEXT),
    "DateTime": lambda _: Codec(times.date_time, null=0),
    "DateTime64": lambda arguments: Codec(times.date_time64(int(arguments[0])), null=0),
    "Date": lambda _: Codec(times.days("H"), null=0),
    "Date32": lambda _: Codec(times.days("i"), null=0),
    "Nullable": lambda arguments: nested.nullable(codec(arguments[0])),
    "LowCardinality": _low_cardinality,
    "Array": lambda arguments: nested.array_of(codec(arguments[0])),
    "Map": _map,
    "Tuple": _tuple,
    "Nested": lambda arguments: nested.array_of(_tuple(arguments)),
    "SimpleAggregateFunction": lambda arguments: codec(arguments[1]),
}
