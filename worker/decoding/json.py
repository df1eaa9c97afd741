"""Payloads → one column per field that the sink stores, and a reject for each event that cannot become a row."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from secrets import token_hex
from typing import Any

import orjson

from worker.core.records import Decoded, Field, Reject
from worker.decoding.converters import CONVERT_ERRORS, reject_reason


def decode(payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
    """Return the columns of a record batch, and its rejects.

    The result is the same as for each message alone: orjson parses the bytes, which must be one object, then each
    field's convert runs. All messages are decoded together; only after a failure does the decoder look at single ones.
    """
    events = _parse_together(payloads)
    if events is not None:
        try:
            return Decoded(_columns(events, fields), None, len(events), ())
        except CONVERT_ERRORS:
            pass
    return _decode_with_rejects(_parse_each(payloads) if events is None else events, fields)


def _parse_together(payloads: Sequence[bytes]) -> list[Any] | None:
    """Return the JSON values of all payloads, or None; 10 to 15 % faster than parsing each alone.

    The payloads are joined into one JSON array with a fence, `,"<token>",`, before and after each. No message can merge
    with its neighbours, split in two, or replace another:

    - The token is random for each call and secret, so no payload contains it. Each fence produces the value <token> at
      most once, and nothing else produces it.
    - The array has one odd position for each fence, and each must hold <token>. So every fence is an element of the
      array itself: none is inside a payload's string, array or object.
    - Between two fences the text has `,`, one payload, `,`, and the array has one element. So that payload is the text
      of that element: one complete JSON value.

    Each element would also parse alone. The reverse fails only at orjson's limit of 1024 levels, of which the array
    takes one. If this function returns None, the caller parses each payload alone.
    """
    token = token_hex(8)
    fence = b',"%b",' % token.encode()
    try:
        parsed = orjson.loads(fence.join((b"[0", *payloads, b"0]")))
    except orjson.JSONDecodeError:
        return None
    fences = parsed[1::2]
    if len(parsed) != 2 * len(payloads) + 3 or fences.count(token) != len(fences):
        return None
    events: list[Any] = parsed[2:-1:2]
    return events


def _columns(events: list[Any], fields: Sequence[Field]) -> tuple[Any, ...]:
    return tuple([field.convert(_values(events, field)) for field in fields])


def _values(events: list[Any], field: Field) -> list[Any]:
    """Return each event's value of the field; KeyError if one is missing, TypeError if a parent is not an object."""
    values = events
    if field.required:
        for key in field.path:
            values = list(map(itemgetter(key), values))  # a string key: TypeError for all but objects
        return values
    get = dict.get  # TypeError for all but objects
    *parents, key = field.path
    for parent in parents:
        values = [None if value is None else get(value, parent) for value in values]
    missing = field.missing
    if parents:
        return [missing if value is None else get(value, key, missing) for value in values]
    return [get(event, key, missing) for event in values]


def _parse_each(payloads: Sequence[bytes]) -> list[Any]:
    """Return each payload's JSON value, or _NOT_JSON."""
    values: list[Any] = []
    for payload in payloads:
        try:
            values.append(orjson.loads(payload))
        except orjson.JSONDecodeError:
            values.append(_NOT_JSON)
    return values


def _decode_with_rejects(events: list[Any], fields: Sequence[Field]) -> Decoded:
    """Find the invalid events field by field, and convert the others."""
    rejects: list[Reject] = []
    kept: list[int] = []
    for index, event in enumerate(events):
        if type(event) is dict:
            kept.append(index)
        else:
            rejects.append(Reject(index, "not_json" if event is _NOT_JSON else "not_object", ""))
    for field in fields:
        reasons = _reject_reasons([events[index] for index in kept], field)
        rejects += [Reject(i, reason, field.name) for i, reason in zip(kept, reasons, strict=True) if reason]
        kept = [i for i, reason in zip(kept, reasons, strict=True) if not reason]
    columns = _columns([events[index] for index in kept], fields)
    return Decoded(columns, kept if rejects else None, len(kept), sorted(rejects))


def _reject_reasons(events: list[Any], field: Field) -> list[str]:
    """Return each event's _reject_reason; only groups with an invalid event are searched event by event."""
    reasons: list[str] = []
    for start in range(0, len(events), _GROUP):
        group = events[start : start + _GROUP]
        try:
            field.convert(_values(group, field))
        except CONVERT_ERRORS:
            reasons += [_reject_reason(event, field) for event in group]
        else:
            reasons += [""] * len(group)
    return reasons


def _reject_reason(event: dict[str, Any], field: Field) -> str:
    """Return why the event has no valid value of the field; empty if it has one."""
    try:
        values = _values([event], field)
    except KeyError:
        return "missing_field"
    except TypeError:
        return "wrong_type"
    return reject_reason(field.convert, values)


_NOT_JSON = object()
_GROUP = 32  # the square root of a record batch: 1 invalid event in 1000 costs 32 single conversions
