"""Compare a sample of the topic's events with the fields that the store keeps. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import orjson

from worker.commands.check.finding import Finding, Stored, fail, ok, warn
from worker.config.field_paths import format_path
from worker.core.records import Field, Reject
from worker.decoding.json import decode
from worker.sinks.clickhouse import types
from worker.sinks.clickhouse.inference import DEPTH, KINDS, Path, optional
from worker.sinks.clickhouse.names import quoted, shown

_SHOWN = 20  # fields that are not stored
_CANDIDATES = 500  # fields, of the most events, that are compared with columns
_SIMILAR = 0.7
_NOT_NULLABLE = ("Array", "Map", "Tuple", "Nested")


def check_sample(
    payloads: Sequence[bytes], fields: Sequence[Stored], table: str, of_topic: str = ""
) -> Iterator[Finding]:
    """Report how many of the events would be stored, and for each faulty field how often, why, and the fix.

    Each fix that is proposed was tried on these events. `of_topic` follows "events" in the texts.
    """
    if not payloads:
        yield ok(
            "sample", f"there are no events{of_topic} to check" if of_topic else "the topic has no events to check"
        )
        return
    fields = [stored for stored in fields if not stored.field.of_message]
    rows = decode(payloads, tuple(stored.field for stored in fields)).rows
    total = f"of the {len(payloads)} sampled events{of_topic}"
    not_objects = Counter(reject.reason for reject in decode(payloads, (_ANY_OBJECT,)).rejects)
    if not_objects:
        fix = "fix the producer, or accept them as dead letters"
        if "schema_framing" in not_objects:
            fix = "--format avro, protobuf or json-schema, with --schema-registry-url"
        yield warn("sample", f"{_tally(not_objects)} {total}", fix)
    events = list(_objects(payloads))
    absent = [field for field in fields if events and all(_at(event, field.field.path) is _ABSENT for event in events)]
    unfit = [field for field in fields if field in absent or not decode(payloads, (field.field,)).rows]
    ignored = _ignored(events, {stored.field.path for stored in fields if stored not in unfit})
    suggested = suggest([field for field in unfit if field.column and field.exists], ignored, payloads)
    for stored in fields:
        name = f"column {stored}" if stored.column else stored.field.name
        rejects = [reject for reject in decode(payloads, (stored.field,)).rejects if reject.field]
        fix = f"--map {format_path(suggested[stored.column])}={stored.column}" if stored.column in suggested else ""
        if faults := Counter(reject.reason for reject in rejects):
            fix = fix or _lenient(stored, payloads) or _fix(stored, rejects, payloads, table)
            yield warn("sample", f"{name}: {_tally(faults)} {total}", fix)
        elif stored in absent:
            value = "NULL" if stored.field.missing is None else "its DEFAULT"
            result = f"{name}: in none {total}, so " + (f"it is {value}" if stored.column else "all count under (none)")
            fix = fix or ("" if stored.column else "--by with a field of these events")
            yield warn("sample", result, fix) if fix else ok("sample", result)
    if rows:
        yield ok("sample", f"{rows} {total} would be stored")
    else:
        yield fail("sample", f"none {total} would be stored", _fix_for_all(fields, table))
    if ignored:
        names = sorted(map(format_path, ignored))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield ok("sample", f"fields{of_topic} that are not stored: {', '.join(names[:_SHOWN])}{more}")


def suggest(unfit: Sequence[Stored], ignored: Counter[Path], payloads: Sequence[bytes]) -> dict[str, Path]:
    """Return a field for each column that no event fills: one with a similar name, all of whose values fit the column.

    No field is suggested for two columns: the most similar names are paired first. `ignored` are the fields to choose
    from, with the number of events that have them.
    """
    frequent = [path for path, _ in ignored.most_common(_CANDIDATES) if all(map(str.isprintable, path))]
    paths = sorted({path[:depth] for path in frequent for depth in range(1, len(path) + 1)})
    pairs = sorted(
        ((_similarity(stored.column, path), stored, path) for stored in unfit for path in paths),
        key=lambda pair: -pair[0],
    )
    suggested: dict[str, Path] = {}
    for similarity, stored, path in pairs:
        if similarity < _SIMILAR or stored.column in suggested or path in suggested.values():
            continue
        if _fits(stored.field._replace(path=path), payloads, {"missing_field"}):
            suggested[stored.column] = path
    return suggested


def _fits(field: Field, payloads: Sequence[bytes], accepted: Collection[str] = ()) -> bool:
    """Whether the field accepts all events but those that are no objects or rejected for an `accepted` reason.

    At least one of them must have a value that is not null: NULL in every row would say nothing.
    """
    rejects = [reject for reject in decode(payloads, (field,)).rejects if reject.field]
    if any(reject.reason not in accepted for reject in rejects):
        return False
    return any(_at(event, field.path) not in (_ABSENT, None) for event in _objects(payloads))


def _similarity(column: str, path: Path) -> float:
    """Return the similarity from 0 to 1; the whole path counts more than its last key.

    A name that begins with `_` is usually not a field's but of Kafka's or the pipeline's metadata: only the same name
    is similar.
    """
    if column.startswith("_"):
        return float(path[-1] == column)
    whole = SequenceMatcher(None, column, "_".join(path)).ratio()
    return max(whole, 0.95 * SequenceMatcher(None, column, path[-1]).ratio(), 0.9 * path[-1].startswith(column))


_ANY_OBJECT = Field("", ("",), lambda values: values, required=False)  # accepts every event that is an object


def _tally(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _lenient(stored: Stored, payloads: Sequence[bytes]) -> str:
    """Return the option with which the column would take all of the events; empty if it would not."""
    if not stored.type or "[]" in stored.field.name:
        return ""
    field = stored.field._replace(convert=types.codec(stored.type, "lenient").convert)
    return "" if decode(payloads, (field,)).rejects else f"--types {stored.column}=lenient"


def _fix(stored: Stored, rejects: Sequence[Reject], payloads: Sequence[bytes], table: str) -> str:
    """Return what fixes the events of `rejects`, which this field does not accept."""
    if not stored.column:
        return f"{_kinds(stored, rejects, payloads)}fix the producer"
    if not any(_at(event, stored.field.path) is not _ABSENT for event in _objects(payloads)) and stored.exists:
        return f"name the field that fills it (--map FIELD={stored.column}), or give the column a DEFAULT"
    kind = next((kind for kind in _wider(stored.type) if _fits_type(stored.field, kind, payloads)), "")
    if not stored.exists:
        other = f"CREATE TABLE {table} yourself, with {kind or 'another type'} for {stored.column} (docs/mapping.md)"
    elif stored.is_key:
        other = f"another table, with {kind or 'another type'} for {stored.column}, which is part of the key of {table}"
    elif kind:
        return f"ALTER TABLE {table} MODIFY COLUMN {shown(quoted(stored.column))} {kind}, or fix the producer"
    else:
        other = f"give the column {stored.column} of {table} another type"
    return f"{'' if kind else _kinds(stored, rejects, payloads)}{other}, or fix the producer"


def _fix_for_all(fields: Sequence[Stored], table: str) -> str:
    if all(field.exists for field in fields):
        return "see above, or another --topic or --table"
    return f"CREATE TABLE {table} for these events, as worker check --propose prints it, or another --topic"


def _kinds(stored: Stored, rejects: Sequence[Reject], payloads: Sequence[bytes]) -> str:
    """Return which kinds of JSON values the events have where the type of the column is wrong."""
    wrong = [payloads[reject.index] for reject in rejects if reject.reason == "wrong_type"]
    kinds = {KINDS[type(_at(event, stored.field.path))] for event in _objects(wrong)}
    return f"the events have {' and '.join(sorted(kinds))} there: " if kinds else ""


def _wider(kind: str) -> Iterator[str]:
    """Yield types that hold all values of this type and more, the nearest first."""
    nullable = kind.startswith(("Nullable(", "LowCardinality(Nullable("))
    integer = re.fullmatch(r"(Nullable\()?U?Int(8|16|32|64)\)?", kind)
    wide = [name for name in ("Int64", "UInt64") if integer and integer[2] != "64"]
    yield from (f"Nullable({name})" if nullable else name for name in wide)
    if not nullable and not kind.startswith(_NOT_NULLABLE):
        yield from map(optional, [kind, *wide])


def _fits_type(field: Field, kind: str, payloads: Sequence[bytes]) -> bool:
    """Whether a column of this type would accept all events."""
    try:
        codec = types.codec(kind)
    except ValueError:  # no such type
        return False
    required = field.required and codec.null is not None
    return _fits(field._replace(convert=codec.convert, required=required), payloads)


def _objects(payloads: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for payload in payloads:
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict):
            yield event


_ABSENT = object()


def _at(event: Any, path: Path) -> Any:
    for key in path:
        if type(event) is not dict or key not in event:
            return _ABSENT
        event = event[key]
    return event


def _ignored(events: Sequence[dict[str, Any]], stored: set[Path]) -> Counter[Path]:
    """Count the fields of the events that are neither stored nor part of a stored field."""
    ignored: Counter[Path] = Counter()
    for event in events:
        ignored.update(_leaves(event, (), stored))
    return ignored


def _leaves(value: dict[str, Any], parent: Path, stored: set[Path]) -> Iterator[Path]:
    for key, inner in value.items():
        path = (*parent, key)
        if path in stored:
            continue
        if type(inner) is dict and inner and len(path) < DEPTH:
            yield from _leaves(inner, path, stored)
        elif all(other[: len(path)] != path for other in stored):  # the null parent of a stored field is not listed
            yield path
