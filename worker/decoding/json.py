"""Payloads → one column per field that the sink stores, and a reject for each event that cannot become a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from math import isfinite
from operator import itemgetter
from secrets import token_hex
from types import NoneType
from typing import Any

import orjson

from worker.core.records import Decoded, Field, Reject
from worker.decoding.converters import CONVERT_ERRORS, BadValue, reject_reason
from worker.decoding.framing import HEAD_BYTES, is_framed

ReadField = Callable[[list[Any], Field], list[Any]]
"""Events and a field → its value of each: see `field_values`."""


def decode(payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
    """Return the columns of a record batch, and its rejects.

    The result is the same as for each message alone: orjson parses the bytes, which must be one object, then each
    field's convert runs. All messages are decoded together; only after a failure does the decoder look at single ones.
    """
    return decode_events(read_events(payloads), payloads, fields)


def decode_events(
    events: list[Any], texts: Sequence[bytes], fields: Sequence[Field], read: ReadField | None = None
) -> Decoded:
    """Return the columns of events, which are JSON values or Unreadable, and the rejects.

    `texts` has each event's JSON, from which fields that need it are read again. Where it is no JSON, they are not.
    With `read`, an event may also be an object that it reads as `field_values` reads JSON.
    """
    read = read or field_values
    try:
        return Decoded(_columns(events, fields, read), None, len(events), ())
    except CONVERT_ERRORS:
        return _with_rejects(events, texts, fields, read)


class Unreadable:
    """Stands for a payload that is no event, among events; `reason` is one of counters.REJECT_REASONS."""

    __slots__ = ("detail", "reason")

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail  # for `check`


def read_events(payloads: Sequence[bytes]) -> list[Any]:
    """Return each payload's JSON value, or Unreadable."""
    events = _parse_together(payloads)
    return _parse_each(payloads) if events is None else events


def read_framed_events(payloads: Sequence[bytes], _keys: Collection[str] | None) -> list[Any]:
    """Return what `read_events` does, for payloads in the frame of a schema registry.

    Events are not validated against their schema: the types of the store decide.
    """
    return read_events([payload[HEAD_BYTES:] for payload in payloads])


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


def _columns(events: list[Any], fields: Sequence[Field], read: ReadField) -> tuple[Any, ...]:
    return tuple([field.convert(read(events, field)) for field in fields])


def field_values(events: list[Any], field: Field) -> list[Any]:
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
    """Return each payload's JSON value, or Unreadable."""
    values: list[Any] = []
    for payload in payloads:
        try:
            values.append(orjson.loads(payload))
        except orjson.JSONDecodeError:
            values.append(_FRAMED if is_framed(payload) else _parse_unusual(payload))
    return values


class _HugeNumber(float):
    """A number beyond the largest float. No converter takes it, and orjson does not serialize it."""


def _parse_unusual(payload: bytes) -> Any:
    """Return the value of JSON that orjson refuses for a huge number or a lone surrogate; _NOT_JSON for all else.

    So such a value refuses an event only where a column would store it. Python's parser has no fixed limit of depth.
    """
    try:
        value = json.loads(
            payload.decode(), parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        return _NOT_JSON
    level = [value]
    for _ in range(_UNUSUAL_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    return _NOT_JSON


def _children(value: Any) -> Iterable[Any]:
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()


def _parse_float(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _HugeNumber(number)


def _parse_int(text: str) -> int | float:
    """Return what orjson does: beyond 64 bits a float."""
    if len(text) <= _INT_DIGITS and -(2**63) <= (number := int(text)) < 2**64:
        return number
    return _parse_float(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _with_rejects(events: list[Any], texts: Sequence[bytes], fields: Sequence[Field], read: ReadField) -> Decoded:
    """Find the invalid events field by field, and convert the others."""
    rejects: list[Reject] = []
    kept: list[int] = []
    for index, event in enumerate(events):
        if type(event) is Unreadable:
            rejects.append(Reject(index, event.reason, ""))
        elif isinstance(event, _NO_OBJECTS):
            rejects.append(Reject(index, "not_object", ""))
        else:
            kept.append(index)
    if rejects:  # often the other events are valid
        try:
            return Decoded(_columns([events[index] for index in kept], fields, read), kept, len(kept), rejects)
        except CONVERT_ERRORS:
            pass
    for field in fields:
        reasons = _reject_reasons([events[index] for index in kept], [texts[index] for index in kept], field, read)
        rejects += [Reject(i, reason, field.name) for i, reason in zip(kept, reasons, strict=True) if reason]
        kept = [i for i, reason in zip(kept, reasons, strict=True) if not reason]
    columns = _columns([events[index] for index in kept], fields, read)
    return Decoded(columns, kept if rejects else None, len(kept), sorted(rejects))


def _reject_reasons(events: list[Any], payloads: Sequence[bytes], field: Field, read: ReadField) -> list[str]:
    """Return each event's _reject_reason; only groups with an invalid event are searched event by event.

    A value that an exact field needs from the text is put into its event.
    """
    reasons: list[str] = []
    for start in range(0, len(events), _GROUP):
        group = events[start : start + _GROUP]
        try:
            field.convert(read(group, field))
        except CONVERT_ERRORS:
            for event, payload in zip(group, payloads[start : start + _GROUP], strict=True):
                reason = _reject_reason(event, field, read)
                if reason and field.exact and _use_exact_value(event, payload, field):
                    reason = _reject_reason(event, field, read)
                reasons.append(reason)
        else:
            reasons += [""] * len(group)
    return reasons


def _reject_reason(event: Any, field: Field, read: ReadField) -> str:
    """Return why the event has no valid value of the field; empty if it has one."""
    try:
        values = read([event], field)
    except KeyError:
        return "missing_field"
    except TypeError:
        return "wrong_type"
    except BadValue as error:
        return error.reason
    reason = reject_reason(field.convert, values)
    return reason and (_unusual(values) or reason)


def _unusual(value: Any) -> str:
    """Return the reason for a huge number or a lone surrogate at any depth; empty if there is none."""
    if type(value) is _HugeNumber:
        return "out_of_range"
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return "invalid_text"
    keys = value if type(value) is dict else ()
    return next(filter(None, map(_unusual, (*keys, *_children(value)))), "")


def _use_exact_value(event: dict[str, Any], payload: bytes, field: Field) -> bool:
    """Replace the event's value of the field by the one that its text has, with numbers as Decimal.

    False if it has none, or if the event's value is another one by now.
    """
    *parents, key = field.path
    try:
        exact, original = json.loads(payload, parse_float=Decimal), read_events([payload])[0]
        for parent in parents:
            event, exact, original = event[parent], exact[parent], original[parent]
        if type(event[key]) is not type(original[key]) or event[key] != original[key]:
            return False
        event[key] = exact[key]
    except (KeyError, TypeError, ValueError, RecursionError, ArithmeticError):  # the last: an exponent beyond Decimal's
        return False
    return True


_NO_OBJECTS = (str, int, float, list, NoneType)  # the JSON values that are no event
_NOT_JSON, _FRAMED = Unreadable("not_json"), Unreadable("schema_framing")
_UNUSUAL_DEPTH = 500
_INT_DIGITS = 20  # of any 64-bit integer, with its sign
_GROUP = 32  # the square root of a record batch: 1 invalid event in 1000 costs 32 single conversions
