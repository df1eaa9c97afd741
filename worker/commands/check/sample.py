"""Compare a sample of the topic's events with the fields that the store keeps. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from types import NoneType
from typing import Any

import orjson

from worker.commands.check.finding import Finding, Stored, fail, ok, warn
from worker.config.field_paths import format_path
from worker.core.records import Field
from worker.decoding.json import decode
from worker.sinks.clickhouse import types

_SHOWN = 20  # fields that are not stored
_SIMILAR = 0.7
_DEPTH = 4  # levels of nested objects that are searched for fields
_NOT_NULLABLE = ("Array", "Map", "Tuple", "Nested")
_KINDS = {
    **{str: "text", int: "a number", float: "a number", bool: "true or false", dict: "an object", list: "an array"},
    **{NoneType: "null", object: "no object above it"},
}

Path = tuple[str, ...]


def check_sample(
    payloads: Sequence[bytes], fields: Sequence[Stored], table: str, of_topic: str = ""
) -> Iterator[Finding]:
    """Report how many of the events would be stored, and for each faulty field how often, why, and the fix.

    `of_topic` follows "events" in the texts.
    """
    if not payloads:
        yield ok(
            "sample", f"there are no events{of_topic} to check" if of_topic else "the topic has no events to check"
        )
        return
    fields = [stored for stored in fields if not stored.field.of_message]
    rows = decode(payloads, tuple(stored.field for stored in fields)).rows
    total = f"of the {len(payloads)} newest events{of_topic}"
    not_objects = Counter(reject.reason for reject in decode(payloads, (_ANY_OBJECT,)).rejects)
    if not_objects:
        yield warn("sample", f"{_tally(not_objects)} {total}", "fix the producer, or accept them as dead letters")
    events = list(_objects(payloads))
    absent = [field for field in fields if events and all(_at(event, field.field.path) is _ABSENT for event in events)]
    unfit = [field for field in fields if field in absent or not decode(payloads, (field.field,)).rows]
    ignored = _ignored(events, {stored.field.path for stored in fields if stored not in unfit})
    suggested = suggest([field for field in unfit if field.column], ignored, payloads)
    for stored in fields:
        name = f"column {stored}" if stored.column else stored.field.name
        rejects = [reject for reject in decode(payloads, (stored.field,)).rejects if reject.field]
        fix = f"--map {format_path(suggested[stored.column])}={stored.column}" if stored.column in suggested else ""
        if faults := Counter(reject.reason for reject in rejects):
            wrong = [payloads[reject.index] for reject in rejects if reject.reason == "wrong_type"]
            kinds = {_KINDS[type(_at(event, stored.field.path))] for event in _objects(wrong)}
            fix = fix or _lenient(stored, payloads) or _fix(stored, faults, kinds, table)
            yield warn("sample", f"{name}: {_tally(faults)} {total}", fix)
        elif stored in absent:
            result = f"{name}: in none {total}, so it is NULL"
            yield warn("sample", result, fix) if fix else ok("sample", result)
    if rows:
        yield ok("sample", f"{rows} {total} would be stored")
    else:
        yield fail("sample", f"none {total} would be stored", "see above, or another --topic or --table")
    if ignored:
        yield ok(
            "sample", f"fields{of_topic} that are not stored: {', '.join(sorted(map(format_path, ignored))[:_SHOWN])}"
        )


def suggest(unfit: Sequence[Stored], ignored: Iterable[Path], payloads: Sequence[bytes]) -> dict[str, Path]:
    """Return a field for each column that no event fills: one with a similar name and a fitting type.

    No field is suggested for two columns: the most similar names are paired first.
    """
    paths = sorted({path[:depth] for path in ignored for depth in range(1, len(path) + 1)})
    pairs = sorted(
        ((_similarity(stored.column, path), stored, path) for stored in unfit for path in paths),
        key=lambda pair: -pair[0],
    )
    suggested: dict[str, Path] = {}
    for similarity, stored, path in pairs:
        if similarity < _SIMILAR or stored.column in suggested or path in suggested.values():
            continue
        if decode(payloads, (stored.field._replace(path=path, required=True),)).rows:
            suggested[stored.column] = path
    return suggested


def _similarity(column: str, path: Path) -> float:
    """Return the similarity from 0 to 1; the whole path counts more than its last key."""
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


def _fix(stored: Stored, faults: Counter[str], kinds: set[str], table: str) -> str:
    name, kind = stored.column, stored.type
    if "out_of_range" in faults and kind.removeprefix("U").startswith("Int"):
        return f"ALTER TABLE {table} MODIFY COLUMN {name} Int64, or fix the producer"
    if "missing_field" in faults and kind and not kind.startswith(_NOT_NULLABLE):
        return f"ALTER TABLE {table} MODIFY COLUMN {name} {_nullable(kind)}, or fix the producer"
    other = f"give the column {name} of {table} another type, or " if kind else ""
    return f"{'the events have ' + ' and '.join(sorted(kinds)) + ' there: ' if kinds else ''}{other}fix the producer"


def _nullable(kind: str) -> str:
    inner = kind.removeprefix("LowCardinality(")
    return f"Nullable({kind})" if inner == kind else f"LowCardinality(Nullable({inner[:-1]}))"


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


def _ignored(events: Sequence[dict[str, Any]], stored: set[Path]) -> set[Path]:
    """Return the fields of the events that are neither stored nor part of a stored field."""
    ignored: set[Path] = set()
    for event in events:
        ignored.update(_leaves(event, (), stored))
    return ignored


def _leaves(value: dict[str, Any], parent: Path, stored: set[Path]) -> Iterator[Path]:
    for key, inner in value.items():
        path = (*parent, key)
        if path in stored or not key.isprintable():
            continue
        if type(inner) is dict and inner and len(path) < _DEPTH:
            yield from _leaves(inner, path, stored)
        elif all(other[: len(path)] != path for other in stored):  # the null parent of a stored field is not listed
            yield path
