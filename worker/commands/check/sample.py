"""What a sample of the topic's events says about the fields that the store keeps of them. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from types import NoneType
from typing import Any

import orjson

from worker.commands.check.finding import Finding, Stored, fail, ok, warn
from worker.config.field_paths import format_path
from worker.core.batch import Field
from worker.decoding.json import decode

_SHOWN = 20  # fields that are not stored
_ALIKE = 0.7
_DEPTH = 4  # of objects that are searched for fields
_NOT_NULLABLE = ("Array", "Map", "Tuple", "Nested")
_KINDS = {
    **{str: "text", int: "a number", float: "a number", bool: "true or false", dict: "an object", list: "an array"},
    **{NoneType: "null", object: "no object above it"},
}

Path = tuple[str, ...]


def judge(payloads: Sequence[bytes], fields: Sequence[Stored], table: str, whose: str = "") -> Iterator[Finding]:
    """Say how many of the events would be rows, and for each field at fault how often, why, and what to do.

    `whose` goes on "the events".
    """
    if not payloads:
        yield ok("sample", f"there are no events{whose} to look at" if whose else "the topic has no events to look at")
        return
    rows = decode(payloads, tuple(stored.field for stored in fields)).rows
    total = f"of the {len(payloads)} newest events{whose}"
    whole = Counter(reject.reason for reject in decode(payloads, (_anything,)).rejects)
    if whole:
        yield warn("sample", f"{_tally(whole)} {total}", "mend the producer, or leave them to the dead letters")
    events = list(_objects(payloads))
    absent = [one for one in fields if events and all(_at(event, one.field.path) is _ABSENT for event in events)]
    unfit = [one for one in fields if one in absent or not decode(payloads, (one.field,)).rows]
    ignored = _ignored(events, {stored.field.path for stored in fields if stored not in unfit})
    meant = suggest([one for one in unfit if one.column], ignored, payloads)
    for stored in fields:
        what = f"column {stored}" if stored.column else stored.field.name
        rejects = [reject for reject in decode(payloads, (stored.field,)).rejects if reject.field]
        fix = f"--map {format_path(meant[stored.column])}={stored.column}" if stored.column in meant else ""
        if faults := Counter(reject.reason for reject in rejects):
            wrong = [payloads[reject.index] for reject in rejects if reject.reason == "wrong_type"]
            kinds = {_KINDS[type(_at(event, stored.field.path))] for event in _objects(wrong)}
            yield warn("sample", f"{what}: {_tally(faults)} {total}", fix or _mend(stored, faults, kinds, table))
        elif stored in absent:
            found = f"{what}: in none {total}, so it is NULL"
            yield warn("sample", found, fix) if fix else ok("sample", found)
    if rows:
        yield ok("sample", f"{rows} {total} would be stored")
    else:
        yield fail("sample", f"none {total} would be stored", "what is said above, another --topic or another --table")
    if ignored:
        yield ok(
            "sample", f"fields{whose} that are not stored: {', '.join(sorted(map(format_path, ignored))[:_SHOWN])}"
        )


def suggest(unfit: Sequence[Stored], ignored: Iterable[Path], payloads: Sequence[bytes]) -> dict[str, Path]:
    """Return for columns that no event fills the field that may be meant: alike in name, and of a fitting type.

    No field is named for two columns: the closest names are paired first.
    """
    paths = sorted({path[:depth] for path in ignored for depth in range(1, len(path) + 1)})
    pairs = sorted(
        ((_likeness(one.column, path), one, path) for one in unfit for path in paths),
        key=lambda pair: -pair[0],
    )
    found: dict[str, Path] = {}
    for likeness, one, path in pairs:
        if likeness < _ALIKE or one.column in found or path in found.values():
            continue
        if decode(payloads, (one.field._replace(path=path, required=True),)).rows:
            found[one.column] = path
    return found


def _likeness(column: str, path: Path) -> float:
    """Return how alike they are, from 0 to 1; the whole path counts more than its last key."""
    whole = SequenceMatcher(None, column, "_".join(path)).ratio()
    return max(whole, 0.95 * SequenceMatcher(None, column, path[-1]).ratio(), 0.9 * path[-1].startswith(column))


_anything = Field("", ("",), lambda values: values, required=False)  # takes every event that is an object


def _tally(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _mend(stored: Stored, faults: Counter[str], kinds: set[str], table: str) -> str:
    name, kind = stored.column, stored.type
    if "out_of_range" in faults and kind.removeprefix("U").startswith("Int"):
        return f"ALTER TABLE {table} MODIFY COLUMN {name} Int64, or mend the producer"
    if "missing_field" in faults and kind and not kind.startswith(_NOT_NULLABLE):
        return f"ALTER TABLE {table} MODIFY COLUMN {name} {_nullable(kind)}, or mend the producer"
    other = f"give the column {name} of {table} another type, or " if kind else ""
    return f"{'the events have ' + ' and '.join(sorted(kinds)) + ' there: ' if kinds else ''}{other}mend the producer"


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
    """Return the fields of the events that are neither stored nor inside of one that is."""
    found: set[Path] = set()
    for event in events:
        found.update(_leaves(event, (), stored))
    return found


def _leaves(value: dict[str, Any], above: Path, stored: set[Path]) -> Iterator[Path]:
    for key, inner in value.items():
        path = (*above, key)
        if path in stored or not key.isprintable():
            continue
        if type(inner) is dict and inner and len(path) < _DEPTH:
            yield from _leaves(inner, path, stored)
        elif all(one[: len(path)] != path for one in stored):  # a null above what is stored is no field of its own
            yield path
