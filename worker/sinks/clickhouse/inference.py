"""Which ClickHouse types hold a sample of events: one for each field, or the reason why none is certain. No I/O.

A type accepts, by the strict rules of `types.codec`, every sampled value, and as far as can be told the next one: whole
numbers are Int64, however small they are, others Float64. A time is DateTime64 if every value is ISO 8601 text, or if
the field's name says that numbers are times and all are in the years 2000 to 2099; the precision keeps all digits.
Text of few distinct values is LowCardinality(String), an object with ever new keys is a Map.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from math import log10
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

from worker.config.field_paths import format_path
from worker.decoding.converters import CONVERT_ERRORS
from worker.decoding.timestamps import to_nanos
from worker.sinks.clickhouse.table import METADATA, ORIGIN
from worker.sinks.clickhouse.types import codec

DEPTH = 4
"""Levels of nested objects whose fields have columns of their own."""

KINDS: dict[Any, str] = {
    **{str: "text", int: "a number", float: "a number", bool: "true or false", dict: "an object", list: "an array"},
    **{NoneType: "null", object: "no object above it"},
}
"""The kinds of JSON values, in words."""

_NAME_LENGTH = 128
_MAP_KEYS = 30  # an object with more distinct keys, each in at most half of the events, is a Map
_REPEATED, _VALUES, _DISTINCT = 10, 50, 1000  # LowCardinality: values for each distinct one, in all; distinct ones
_EXACT_FLOATS, _WHOLE_64 = 2**53, 2**63
_FIRST_NS, _END_NS = 946_684_800 * 10**9, 4_102_444_800 * 10**9  # 2000 … 2099
_NANOS = 9  # digits
_MOSTLY = 0.9
_word_begin = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|\W")
_is_time_name = re.compile(
    r"(?:.*(?:time|timestamp)|(?:.*_)?(?:ts|at|date|epoch))"
    r"(?:_?(?:s|secs?|seconds|ms|millis|milliseconds|us|micros|microseconds|ns|nanos|nanoseconds|unix|utc))?"
).fullmatch
_is_bare_date = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
_fraction = re.compile(r"[.,]([0-9]+)")

_NOT_NULLABLE = ("Array(", "Map(")

Path = tuple[str, ...]


class InferredField(NamedTuple):
    """A field of the sampled events, and the type of its column."""

    path: Path
    present: int  # events that have it, be it null
    nulls: int  # events in which it is null
    type: str  # accepts every value but null; empty: see `undecided`
    undecided: str = ""  # why there is no type, and what to do; no values of events
    optional: bool = False  # some events lack it, or have null
    distinct: int = 0  # values of a LowCardinality

    @property
    def column(self) -> str:
        """Return the name of the column that the field fills without `--map`."""
        return ".".join(self.path)

    @property
    def definition(self) -> str:
        """Return the type, and a DEFAULT where it needs one, with which a column accepts all sampled events."""
        return optional(self.type) if self.optional else self.type


class KnownTypes(NamedTuple):
    """What a schema says about fields."""

    types: Mapping[Path, str] = MappingProxyType({})
    nullable: Collection[Path] = ()

    def completed(self, field: InferredField) -> InferredField:
        """Return the field as optional if it, or an object above it, may be null."""
        above = (field.path[:depth] for depth in range(1, len(field.path) + 1))
        return field._replace(optional=field.optional or any(path in self.nullable for path in above))


def infer(
    events: Iterable[dict[str, Any]], known: KnownTypes | None = None, lenient: Collection[str] = ()
) -> list[InferredField]:
    """Return the fields in the order in which the events have them.

    A table with a column (`column`, `definition`) for each field that has a type stores all of the events. A known type
    that does not accept all values is ignored. `lenient` are columns with these rules.
    """
    objects, known = list(events), known or KnownTypes()
    return list(map(known.completed, _infer_object(objects, (), len(objects), known.types, lenient)))


def infer_column(
    path: Path, values: Sequence[Any], events: int, type_name: str = "", *, lenient: bool = False
) -> InferredField:
    """Return the type of a column that gets these values, null included, from so many events.

    `type_name` is preferred if it accepts all values. A `lenient` column is String if no other type is certain.
    """
    filled = [value for value in values if value is not None]
    field = InferredField(path, len(values), len(values) - len(filled), type_name, optional=len(filled) < events)
    if not (type_name and _holds(type_name, filled)):
        field = field._replace(type=_type_of(filled, path))
    if field.type == "String":
        distinct = len(set(filled))
        if distinct <= _DISTINCT and len(filled) >= max(_VALUES, _REPEATED * distinct):
            return field._replace(type="LowCardinality(String)", distinct=distinct)
    if not field.type and lenient and filled and _holds("String", filled, "lenient"):
        return field._replace(type="String")
    return field if field.type else field._replace(undecided=_describe(filled, path))


def optional(type_name: str) -> str:
    """Return the type as one that takes missing fields and null: Nullable, or with a DEFAULT where that cannot be."""
    if type_name.startswith("LowCardinality("):
        return f"LowCardinality(Nullable({type_name[15:-1]}))"
    if type_name.startswith(_NOT_NULLABLE):
        return f"{type_name} DEFAULT {'[]' if type_name.startswith('Array') else 'map()'}"
    return f"Nullable({type_name})"


def printed(path: Path) -> str:
    """Return a path as `--map` takes it, cut and made printable."""
    text = format_path(path)[:_NAME_LENGTH]
    return text if text.isprintable() else text.encode("unicode_escape", "surrogatepass").decode()


def _infer_object(
    objects: Sequence[dict[str, Any]], parent: Path, events: int, known: Mapping[Path, str], lenient: Collection[str]
) -> Iterator[InferredField]:
    values_of: dict[str, list[Any]] = {}
    for item in objects:
        for key, value in item.items():
            values_of.setdefault(key, []).append(value)
    for key, values in values_of.items():
        path = (*parent, key)
        error = _name_error(path)
        filled = [value for value in values if value is not None]
        if not error and len(path) < DEPTH and _kinds(filled) == {dict} and any(filled) and not _has_new_keys(filled):
            yield from _infer_object(filled, path, events, known, lenient)
            continue
        field = infer_column(path, values, events, known.get(path, ""), lenient=".".join(path) in lenient)
        if field.type.startswith(_NOT_NULLABLE) and parent:
            error = f"{field.type}, and the server takes arrays of columns named {printed(parent[:1])}.… for one Nested"
        if field.type and error:
            field = field._replace(type="", undecided=f"{error}; {_map_advice(path)} names another column")
        yield field


def _name_error(path: Path) -> str:
    """Return why the field cannot have a column of its own name; empty if it can."""
    name = ".".join(path)
    if name in ORIGIN or name in METADATA:
        return "the worker fills the column of this name from Kafka's message"
    if not name.isprintable() or len(name) > _NAME_LENGTH:
        return f"the name has more than {_NAME_LENGTH} characters, or some that cannot be printed"
    if any(not key or "." in key for key in path):
        return "a key is empty, or has a dot, which in a column's name separates keys"
    return ""


def _map_advice(path: Path, elements: str = "") -> str:
    """Return the option that fills a column of another name."""
    name = re.sub(r"\W+", "_", "_".join(path), flags=re.ASCII).strip("_")[:_NAME_LENGTH] or "COLUMN"
    if not all(path) or printed(path) != format_path(path):
        return "--transform with a function that"
    return f"--map {shlex.quote(f'{format_path(path)}{elements}={name}')}"


def _has_new_keys(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether the keys of the objects are data, such as ids: no key is in more than half of them."""
    counts = Counter(chain.from_iterable(objects))
    return len(counts) > _MAP_KEYS and 2 * max(counts.values()) <= len(objects)


def _kinds(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _holds(type_name: str, values: Sequence[Any], rules: str = "strict") -> bool:
    try:
        codec(type_name, rules).convert(list(values))
    except CONVERT_ERRORS:
        return False
    return True


def _type_of(values: Sequence[Any], path: Path, level: int = 1) -> str:
    """Return a type that accepts the values, of which none is null; empty if none is certain."""
    kinds = _kinds(values)
    if kinds == {list} and level <= DEPTH:
        return _type_with("Array(", list(chain.from_iterable(values)), path, level)
    if kinds == {dict} and level == 1 and _has_new_keys(values):
        return _type_with("Map(String, ", [value for item in values for value in item.values()], path, level)
    return next((candidate for candidate in _candidates(kinds, values, path) if _holds(candidate, values)), "")


def _type_with(prefix: str, values: Sequence[Any], path: Path, level: int) -> str:
    """Return the type of arrays with these elements, or of objects with these values; empty if none is certain."""
    filled = [value for value in values if value is not None]
    inner = _type_of(filled, path, level + 1)
    if len(filled) < len(values):
        inner = (inner and not inner.startswith(_NOT_NULLABLE) and optional(inner)) or ""
    return inner and f"{prefix}{inner})"


def _candidates(kinds: set[type], values: Sequence[Any], path: Path) -> Iterator[str]:
    """Yield types, the best first, of scalar values. None, if most but not all values are times."""
    if times := _times(values, path):
        if len(times) < len(values):
            return
        yield _time_type(times)
    if kinds == {bool}:
        yield "Bool"
    elif kinds == {int}:
        yield from ("Int64", "UInt64", "Int128")
    elif kinds and kinds <= {int, float} and not _loses_digits(values):
        yield "Float64"
    elif kinds == {str}:
        yield "UUID"
        if "version" not in path[-1].lower():  # 1.20.0.3
            yield from ("IPv4", "IPv6")
        if all(map(_is_bare_date, values)):
            yield "Date32"  # Date begins in 1970
        yield "String"


def _loses_digits(values: Iterable[int | float]) -> bool:
    """Whether Float64 would round numbers: whole ones beyond 64 bits, which JSON parsers make floats, or 2^53."""
    whole = [value for value in values if type(value) is int or abs(value) >= _WHOLE_64]
    return any(abs(value) > _EXACT_FLOATS for value in whole)


def _times(values: Sequence[Any], path: Path) -> list[int]:
    """Return how many digits each time has after the second; nothing if the values, or most of them, are no times.

    Without a name that says so, all of them must be ISO 8601 text.
    """
    named = _is_time_name(_word_begin.sub("_", path[-1]).lower())
    if not named and not all(type(value) is str and value[4:5] == "-" for value in values):
        return []
    times = [digits for digits in map(_time_digits, values) if digits <= _NANOS]
    return times if len(times) >= (_MOSTLY if named else 1) * len(values) else []


def _time_type(digits: Sequence[int]) -> str:
    return next(f"DateTime64({precision}, 'UTC')" for precision in (3, 6, _NANOS) if max(digits) <= precision)


def _time_digits(value: Any) -> int:
    """Return with how many digits after the second a time is written; more than _NANOS if it is none."""
    try:
        nanos = to_nanos(value)
        if type(value) is str and value[4:5] == "-":
            fraction = _fraction.search(value)
            return len(fraction[1]) if fraction else 0
        number = Decimal(str(value))
        if _FIRST_NS <= nanos < _END_NS:
            of_unit = _NANOS - round(log10(nanos / float(number)))
            return of_unit + max(0, -int(number.as_tuple().exponent))
    except (ValueError, ArithmeticError):
        pass
    return _NANOS + 1


def _describe(values: Sequence[Any], path: Path) -> str:
    """Return why no type is certain, and what to do."""
    if not values:
        return "only null: add a column of the type that you expect"
    kinds = Counter(KINDS.get(type(value), "a number beyond the largest float") for value in values)
    usual, count = kinds.most_common(1)[0]
    if times := _times(values, path):
        usual_type, count = _time_type(times), len(times)
    else:
        usual_type = _type_of([value for value in values if KINDS.get(type(value)) == usual], path)
    advice = []
    if usual_type and _MOSTLY * len(values) <= count < len(values):
        advice.append(f"a column {usual_type} makes the other {len(values) - count} events dead letters")
    if (len(kinds) > 1 or usual == "an array") and _holds("String", values, "lenient"):
        advice.append(f"--types {printed(path)}=lenient makes it String, with all values as text")
    if len(kinds) == 1 and usual in ("an object", "an array"):
        advice.append(f"{_map_advice(path)} makes objects JSON")
    if len(kinds) == 1 and usual == "an array":
        advice.append(f"{_map_advice(path, '[].KEY')} takes one field of each element")
    if len(kinds) == 1 and usual == "a number":
        advice.append("a column Float64 rounds whole numbers beyond 2^53, or beyond 64 bits")
    reason = " and ".join(f"{kind} in {count}" for kind, count in kinds.most_common()) + f" of {len(values)} values"
    return f"{reason}: {'; '.join(advice) or 'fix the producer, or do without the field'}"
