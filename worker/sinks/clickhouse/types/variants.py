"""Types whose values have types of their own: Variant and Dynamic. The kind of the JSON value decides, nothing else.

See SerializationVariant and SerializationDynamic in ClickHouse's src/DataTypes/Serializations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import Any

from worker.decoding.converters import BadValue
from worker.sinks.clickhouse.types.codec import Codec
from worker.sinks.clickhouse.types.names import member, split
from worker.sinks.clickhouse.types.nested import join_each

_BASIC_DISCRIMINATORS = pack("<Q", 0)
_FLATTENED = pack("<Q", 3)  # the types by name, the number of each row's type, the values of each type
_NULL = 255

_ARRAYS = ("Array", "Tuple", "Point", "Ring", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "Nested")
_OBJECTS = ("Map", "JSON")
_NUMBERS = ("Float32", "Float64", "BFloat16", "Decimal")
_WHOLE_NUMBERS = ("Int", "UInt", "Interval")
# Members of every Dynamic. An array is one type: its elements are of one kind, or null.
_ARRAY_OF: dict[Any, str] = {bool: "Bool", int: "Int64", float: "Float64", str: "String"}
_DYNAMIC: dict[Any, str] = {
    **_ARRAY_OF,
    dict: "JSON",
    **{(list, kind): f"Array(Nullable({name}))" for kind, name in _ARRAY_OF.items()},
    (list, dict): "Array(JSON)",
    "unsigned": "UInt64",
}


def variant(types: list[str], members: list[Codec]) -> Codec:
    """Variant(T1, T2 …): a number per row that tells its type (255: NULL), then the values of each type.

    ValueError if two types are for the same kind of JSON value.
    """
    of_kind: dict[Any, int] = {}
    for i, name in enumerate(types):
        kind = _kind(name)
        if kind in of_kind:
            raise ValueError(
                f"{types[of_kind[kind]]} and {name} are both for {_KINDS[kind]}, and nothing says which an event means"
            )
        of_kind[kind] = i
    if float in of_kind:
        of_kind.setdefault(int, of_kind[float])
    prefix = _BASIC_DISCRIMINATORS + b"".join(codec.prefix for codec in members)
    return _by_kind(members, lambda value: of_kind.get(type(value)), _NULL, prefix)


def dynamic(codec_of: Callable[[str], Codec]) -> Codec:
    """Dynamic: Bool, Int64 (UInt64 beyond it), Float64, String, JSON for objects, and arrays of one of these."""
    names = list(_DYNAMIC.values())
    numbers = {kind: names.index(name) for kind, name in _DYNAMIC.items()}
    members = list(map(codec_of, names))

    def number_of(value: Any) -> int | None:
        kind = type(value)
        if kind is list:
            kinds = set(map(type, value)) - {type(None)}
            if kinds == {int, float}:
                kinds = {float}
            return numbers.get((list, kinds.pop() if len(kinds) == 1 else str if not kinds else None))
        return numbers["unsigned"] if kind is int and value >= 1 << 63 else numbers.get(kind)

    listed = b"".join(bytes([len(name)]) + name.encode() for name in names)
    prefix = _FLATTENED + bytes([len(names)]) + listed + b"".join(codec.prefix for codec in members)
    return _by_kind(members, number_of, len(names), prefix)


def _by_kind(members: Sequence[Codec], number_of: Callable[[Any], int | None], null: int, prefix: bytes) -> Codec:
    def convert(values: list[Any]) -> tuple[Any, ...]:
        numbers = [null if value is None else number_of(value) for value in values]
        if None in numbers:
            raise BadValue("wrong_type")
        columns: list[list[Any]] = [[] for _ in range(max(len(members), null) + 1)]
        for number, value in zip(numbers, values, strict=True):
            columns[number].append(value)  # type: ignore[index]
        parts = [codec.convert(column) for codec, column in zip(members, columns, strict=False)]
        return bytes(numbers), *parts  # type: ignore[arg-type]

    return Codec(convert, join_each((b"".join, *(codec.join for codec in members))), None, prefix)


_KINDS = {bool: "true and false", int: "whole numbers", float: "numbers", str: "text", list: "arrays", dict: "objects"}


def _kind(type_name: str) -> type:
    """Return the kind of JSON values that a type is for."""
    name, arguments = split(type_name)
    if name == "LowCardinality":
        return _kind(arguments[0])
    if name == "Tuple" and all(member(argument)[0] for argument in arguments):
        return dict
    if name in _ARRAYS:
        return list
    if name in _OBJECTS:
        return dict
    if name in _NUMBERS:
        return float
    if name.startswith(_WHOLE_NUMBERS):
        return int
    return bool if name == "Bool" else str
