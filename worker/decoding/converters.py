"""A whole column of JSON values → the sink's form, for the kinds of value that several sinks share."""

from __future__ import annotations

from array import array
from typing import Any

from worker.core.records import Convert
from worker.decoding.timestamps import column_to_millis


class BadValue(Exception):
    """A value that the field cannot hold; `reason` is one of stats.REJECT_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def texts(values: list[Any]) -> list[str]:
    """Convert a column of texts, and nothing else, to itself."""
    try:
        "".join(values)  # a TypeError for all but texts, in a quarter of the time of set(map(type, values))
    except TypeError:
        raise BadValue("wrong_type") from None
    return values


def identities(values: list[Any]) -> list[str]:
    """Convert a column of texts and whole numbers, as identities are written, to texts."""
    try:
        return texts(values)
    except BadValue:
        if not set(map(type, values)) <= {str, int}:
            raise
    return list(map(str, values))


def integers(low: int, high: int) -> Convert:
    """Make a converter of integers from low to high, no booleans, to the narrowest array that holds both limits."""
    code = next((code for code, limits in _INTEGERS.items() if low in limits and high in limits), None)
    if code is None:
        raise ValueError(f"no machine integer holds {low} to {high}")
    checked_by_array = _INTEGERS[code] == range(low, high + 1)

    def convert(values: list[Any]) -> array[int]:
        if not set(map(type, values)) <= {int}:  # array alone takes True, for 1
            raise BadValue("wrong_type")
        part = array(code, values)
        if not checked_by_array and part and not low <= min(part) <= max(part) <= high:
            raise BadValue("out_of_range")
        return part

    return convert


def millis(values: list[Any]) -> array[int]:
    """Convert a column of timestamps in any form to Unix milliseconds, of the years 1900 to 2299."""
    try:
        return column_to_millis(values)
    except ValueError:
        raise BadValue("bad_timestamp") from None


_INTEGERS = {
    code: range(-(1 << bits - 1), 1 << bits - 1) if code.islower() else range(1 << bits)
    for bits, codes in ((8, "bB"), (16, "hH"), (32, "iI"), (64, "qQ"))
    for code in codes
}
