"""Converters that several sinks share: a column of JSON values → the sink's form."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from worker.core.records import Convert
from worker.decoding.timestamps import column_to_millis, column_to_nanos

_T = TypeVar("_T")


class BadValue(Exception):
    """A value that the field cannot hold; `reason` is one of counters.REJECT_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


CONVERT_ERRORS = (BadValue, TypeError, ValueError, OverflowError, KeyError)
"""What a Convert raises for values that the field cannot hold."""


def check_types(values: list[Any], *allowed: type) -> None:
    """Raise BadValue unless each value is of one of these types; a subtype is none of them."""
    if not set(map(type, values)) <= set(allowed):
        raise BadValue("wrong_type")


def reject_reason(convert: Convert, values: list[Any]) -> str:
    """Return why the field cannot hold the values, as one of counters.REJECT_REASONS; empty if it can."""
    try:
        convert(values)
    except BadValue as error:
        return error.reason
    except (OverflowError, KeyError):
        return "out_of_range"
    except (TypeError, ValueError):
        return "wrong_type"
    return ""


def elements(paths: Sequence[Sequence[str]], convert: Convert) -> Convert:
    """Return a converter of arrays: it passes on arrays of the values at `paths[0]` in their elements.

    Those are arrays again where there are further paths. A value is None where the element, or an object on the way,
    lacks it or is null. A column without an array is passed on as None.
    """

    def values_of(value: Any, path: Sequence[str], rest: Sequence[Sequence[str]]) -> Any:
        for key in path:
            if value is None:
                break
            if type(value) is not dict:
                raise BadValue("wrong_type")
            value = value.get(key)
        return collect(value, rest) if rest else value

    def collect(value: Any, inner: Sequence[Sequence[str]]) -> Any:
        if value is None:
            return None
        if type(value) is not list:
            raise BadValue("wrong_type")
        return [values_of(element, inner[0], inner[1:]) for element in value]

    return lambda values: convert([collect(value, paths) for value in values])


def texts(values: list[Any]) -> list[str]:
    """Return a column of strings unchanged; BadValue for any other type, and for text that UTF-8 cannot have."""
    try:
        joined = "".join(values)  # a TypeError for all but strings, in a quarter of the time of set(map(type, values))
        joined.isascii() or joined.encode()
    except TypeError:
        raise BadValue("wrong_type") from None
    except UnicodeEncodeError:
        raise BadValue("invalid_text") from None
    return values


def identities(values: list[Any]) -> list[str]:
    """Convert a column of identities, which are strings or integers, to strings."""
    try:
        return texts(values)
    except BadValue:
        if not set(map(type, values)) <= {str, int}:
            raise
    return texts(list(map(str, values)))


def integers(low: int, high: int) -> Convert:
    """Return a converter of integers from low to high, no booleans, to the narrowest array that holds both limits."""
    code = next((code for code, limits in _INTEGERS.items() if low in limits and high in limits), None)
    if code is None:
        raise ValueError(f"no machine integer holds {low} to {high}")
    checked_by_array = _INTEGERS[code] == range(low, high + 1)

    def convert(values: list[Any]) -> array[int]:
        if not set(map(type, values)) <= {int}:  # array itself accepts True as 1
            # orjson returns whole numbers beyond 64 bits as floats.
            too_large = all(
                type(v) is int or (type(v) is float and abs(v) >= 2**63 and not low <= v <= high) for v in values
            )
            raise BadValue("out_of_range" if too_large else "wrong_type")
        column = array(code, values)
        if not checked_by_array and column and not low <= min(column) <= max(column) <= high:
            raise BadValue("out_of_range")
        return column

    return convert


def _timestamps(to_column: Callable[[list[Any]], _T]) -> Callable[[list[Any]], _T]:
    def convert(values: list[Any]) -> _T:
        try:
            return to_column(values)
        except ValueError:
            raise BadValue("bad_timestamp") from None

    return convert


# Timestamps of the years 1900 to 2299 in any accepted form, to Unix milliseconds and nanoseconds.
millis, nanos = _timestamps(column_to_millis), _timestamps(column_to_nanos)

_INTEGERS = {
    code: range(-(1 << bits - 1), 1 << bits - 1) if code.islower() else range(1 << bits)
    for bits, codes in ((8, "bB"), (16, "hH"), (32, "iI"), (64, "qQ"))
    for code in codes
}
