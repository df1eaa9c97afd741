"""Which ClickHouse types hold a sample of events: one for each field, or the reason why none is certain. No I/O.

A type accepts, by the strict rules of `types.codec`, every sampled value, and as far as can be told the next one: whole
numbers are Int64, however small they are, others Float64. A time is DateTime64 if every value is ISO 8601 text, or if
the field's name says that numbers are times and all are in the years 2000 to 2099; the precision keeps all digits.
Text of few distinct values is LowCardinality(String), an object with ever new keys is a Map.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from math import log10
from types import NoneType
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
_MAP_KEYS = 30  # an object with more distinct keys, of which each event has at most half, is a Map
_REPEATED, _VALUES, _DISTINCT = 10, 50, 1000  # LowCardinality: values for each distinct one, in all; distinct ones
_EXACT_FLOATS, _WHOLE_64 = 2**53, 2**63
_FIRST_NS, _END_NS = 946_684_800 * 10**9, 4_102_444_800 * 10**9  # 2000 … 2099
_NO_TIME = 10  # digits
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


def infer(
    events: Iterable[dict[str, Any]], known: Mapping[Path, str] | None = None, lenient: Collection[str] = ()
) -> list[InferredField]:
    """Return the fields in the order in which the events have them.

    A table with a column (`column`, `definition`) for each field that has a type stores all of the events. `known` has
    types from a schema; one that does not accept all values is ignored. `lenient` are columns with these rules.
    """
    objects = list(events)
    return list(_infer_object(objects, (), len(objects), known or {}, lenient))


def infer_column(
    path: Path, values: Sequence[Any], events: int, type_name: str = "", *, lenient: bool = False
) -> InferredField:
    """Return the type of a column that gets these values, null included, from so many events.

    `type_name` is preferred if it accepts all values. A `lenient` column is String if no other type is certain.
    """
    filled = [value for value in values if value is not None]
    field = InferredField(path, len(values), len(values) - len(filled), "", optional=len(filled) < events)
    try:
        if not (type_name and _holds(type_name, filled)):
            type_name = _type_of(filled, path)
    except _UndecidedError as error:
        if filled and lenient and _holds("String", filled, "lenient"):
            return field._replace(type="String")
        return field._replace(undecided=str(error))
    distinct = len(set(filled)) if type_name == "String" else 0
    if distinct and distinct <= _DISTINCT and len(filled) >= max(_VALUES, _REPEATED * distinct):
        return field._replace(type="LowCardinality(String)", distinct=distinct)
    return field._replace(type=type_name)


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


class _UndecidedError(Exception):
    """No type is certain; the text says why, and what to do."""


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
            name = re.sub(r"\W+", "_", "_".join(path), flags=re.ASCII).strip("_")[:_NAME_LENGTH] or "COLUMN"
            advice = f"--map '{printed(path)}={name}' names another column"
            field = field._replace(type="", undecided=f"{error}; {advice}")
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


def _has_new_keys(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether the keys of the objects are data, such as ids: nearly each object has others."""
    keys = len(set().union(*objects))
    return keys > _MAP_KEYS and 2 * sum(map(len, objects)) <= keys * len(objects)


def _kinds(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _holds(type_name: str, values: Sequence[Any], rules: str = "strict") -> bool:
    try:
        codec(type_name, rules).convert(list(values))
    except CONVERT_ERRORS:
        return False
    return True


def _type_of(values: Sequence[Any], path: Path, level: int = 1) -> str:
    """Return a type that accepts the values, of which none is null. Raises _UndecidedError."""
    if not values:
        raise _UndecidedError("only null: add a column of the type that you expect")
    kinds = _kinds(values)
    if kinds == {list} and level <= DEPTH:
        return f"Array({_element_type(list(chain.from_iterable(values)), path, level)})"
    if kinds == {dict} and level == 1 and _has_new_keys(values):
        return f"Map(String, {_element_type([value for item in values for value in item.values()], path, level)})"
    for candidate in _candidates(kinds, values, path):
        if _holds(candidate, values):
            return candidate
    raise _UndecidedError(_describe(values, path))


def _element_type(values: Sequence[Any], path: Path, level: int) -> str:
    """Return the type of the elements of arrays, or of the values of objects."""
    filled = [value for value in values if value is not None]
    if not filled:
        raise _UndecidedError("only empty, or with null: add a column such as Array(String), if you expect texts")
    if _kinds(filled) == {dict}:
        fields = f"--map '{printed(path)}[].KEY=COLUMN' takes one field of each"
        raise _UndecidedError(
            f"it contains objects: add a column Array(JSON) for arrays, JSON for objects; or {fields}"
        )
    element = _type_of(filled, path, level + 1)
    if len(filled) == len(values):
        return element
    if element.startswith(_NOT_NULLABLE):
        raise _UndecidedError("it contains arrays and null: add a column String, and --types COLUMN=lenient")
    return optional(element)


def _candidates(kinds: set[type], values: Sequence[Any], path: Path) -> Iterator[str]:
    """Yield types, the best first, of scalar values."""
    if kinds <= {int, float, str}:
        yield from _time_types(values, path)
    if kinds == {bool}:
        yield "Bool"
    elif kinds == {int}:
        yield from ("Int64", "UInt64", "Int128")
    elif kinds <= {int, float}:
        if not _loses_digits(values):
            yield "Float64"
    elif kinds == {str}:
        yield "UUID"
        if "version" not in path[-1].lower():  # 1.20.0.3
            yield from ("IPv4", "IPv6")
        if all(map(_is_bare_date, values)):
            yield "Date32"  # Date ends the events of a person who was born before 1970
        yield "String"


def _loses_digits(values: Iterable[int | float]) -> bool:
    """Whether Float64 would round numbers: whole ones beyond 64 bits, which JSON parsers make floats, or 2^53."""
    whole = [value for value in values if type(value) is int or abs(value) >= _WHOLE_64]
    return any(abs(value) > _EXACT_FLOATS for value in whole)


def _time_types(values: Sequence[Any], path: Path) -> Iterator[str]:
    named = _is_time_name(_word_begin.sub("_", path[-1]).lower())
    if not named and not all(type(value) is str and value[4:5] == "-" for value in values):
        return
    digits = list(map(_time_digits, values))
    times = sum(count <= 9 for count in digits)
    if times == len(values):
        yield from (f"DateTime64({precision}, 'UTC')" for precision in (3, 6, 9) if max(digits) <= precision)
    elif named and times >= _MOSTLY * len(values):
        other = f"{len(values) - times} of {len(values)} values are no times"
        raise _UndecidedError(f"{other}: a column DateTime64(3, 'UTC') makes them dead letters, String takes all texts")


def _time_digits(value: Any) -> int:
    """Return with how many digits after the second a time is written; more than 9 if it is surely no time."""
    try:
        nanos = to_nanos(value)
        if type(value) is str and value[4:5] == "-":
            fraction = _fraction.search(value)
            return len(fraction[1]) if fraction else 0
        number = Decimal(str(value))
        if not _FIRST_NS <= nanos < _END_NS:
            return _NO_TIME
        of_unit = 9 - round(log10(nanos / float(number)))
        return of_unit + max(0, -int(number.as_tuple().exponent))
    except (ValueError, ArithmeticError):
        return _NO_TIME


def _describe(values: Sequence[Any], path: Path) -> str:
    """Return why no type is certain, and what to do."""
    kinds = Counter(KINDS.get(type(value), _HUGE) for value in values)
    reason = " and ".join(f"{kind} in {count}" for kind, count in kinds.most_common()) + f" of {len(values)} values"
    if len(kinds) > 1 and _holds("String", values, "lenient"):
        return f"{reason}: --types {printed(path)}=lenient makes it String, with all values as text"
    return f"{reason}: {_ADVICE.get(' '.join(kinds), 'fix the producer, or do without the field')}"


_HUGE = "a number beyond the largest float"
_ADVICE = {
    "an object": f"add a column JSON if it has fields, which are empty here or below {DEPTH} levels",
    "an array": f"more than {DEPTH} levels of arrays: --types COLUMN=lenient makes it String, as JSON text",
    "a number": "whole numbers beyond 64 bits or, among fractions, beyond 2^53 have lost digits: add a column Float64 "
    "for the nearest number, or send text",
    "text": "some with half of a surrogate pair, which UTF-8 cannot have: fix the producer",
}
