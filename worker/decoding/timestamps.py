"""Every accepted form of a timestamp → Unix milliseconds or nanoseconds, and → `YYYY-MM-DDTHH:MM:SS.mmmZ`.

ISO 8601   `YYYY-MM-DDTHH:MM:SS`, with `T`, `t` or a space; then `.` or `,` and 1 to 9 digits, or no fraction; then `Z`,
           `z`, `+hh:mm`, `+hhmm`, `+hh` (or `-`), or no zone, which means UTC. The seconds are required: a bare date, a
           week date and the form without dashes are rejected. So are hour 24 and second 60, which Unix time lacks.
Unix time  A number, or a string of ASCII digits that may begin with `-` and end with a fraction of 1 to 9 digits. A
           value whose magnitude is below 10^11 is in seconds (`20211203` too), below 10^14 in milliseconds, below
           10^17 in microseconds, any other in nanoseconds. The last three leave out the days around 1970: from 1966
           to 1973.

What is finer than the result is rounded towards the past, so that every form of an instant gives the same number. A
result outside FIRST … LAST is rejected, never guessed. Booleans, NaN, surrounding spaces, underscores and digits of
other scripts are rejected. The machine's time zone has no effect.
"""

from __future__ import annotations

import re
from array import array
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import floor, isfinite
from typing import Any

from worker.decoding.bounded_cache import BoundedCache

SECONDS_BELOW = 100_000_000_000  # as seconds this is the year 5138, as milliseconds March 1973
FIRST = -2_208_988_800_000  # 1900-01-01T00:00:00.000Z … 2299-12-31T23:59:59.999Z: what a DateTime64(3) holds
LAST = 10_413_791_999_999

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_DAY = 86_400_000
_MILLI = 1_000_000  # nanoseconds
_MILLIS_BELOW, _MICROS_BELOW = 10**14, 10**17
_BYPASSED_COLUMNS = 30

# An ISO string is split after the second; for a backlog, which has too many distinct seconds, also after the minute.
_SECOND, _REST = slice(19), slice(19, None)
_MINUTE, _OF_MINUTE = slice(16), slice(16, 19)
_SECONDS_OF_MINUTE = {f":{second:02}": second * 1000 for second in range(60)}
_iso_minute = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})").fullmatch
_iso_rest = re.compile(r"(?:[.,]([0-9]{1,9}))?(?:[Zz]|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?").fullmatch
_unix = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,9})?").fullmatch


def to_millis(value: Any) -> int:
    """Return the Unix milliseconds of one JSON value; ValueError says why it is not a timestamp."""
    if type(value) is str and 11 < len(value) < 15 and value.isascii() and value.isdigit():  # the most frequent text
        number = int(value)
        if SECONDS_BELOW <= number <= LAST:
            return number
    return to_nanos(value) // _MILLI


def to_nanos(value: Any) -> int:
    """Return the Unix nanoseconds of one JSON value; ValueError says why it is not a timestamp."""
    kind = type(value)
    if kind is int:
        return _check_range(value * _unit(value))
    if kind is str:
        return _check_range(_text_nanos(value))
    if kind is float and isfinite(value):
        return _check_range(_decimal_nanos(repr(value)))  # the digits as written: 1.001 * 1000 is less than 1001
    raise ValueError("neither text nor finite number")


def _unit(number: int | Decimal) -> int:
    """Return the nanoseconds of a number's unit, by its magnitude."""
    magnitude = abs(number) if isinstance(number, int) else number.copy_abs()
    if magnitude < SECONDS_BELOW:
        return 10**9
    if magnitude < _MILLIS_BELOW:
        return _MILLI
    return 1000 if magnitude < _MICROS_BELOW else 1


def column_to_nanos(values: list[Any]) -> list[int]:
    """Return the Unix nanoseconds of each value, as to_nanos does; ValueError if any is not a timestamp."""
    seconds, rests = _seconds, _rest_nanos
    try:
        return [
            seconds[value[_SECOND]] * _MILLI + rests[value[_REST]]
            if type(value) is str and len(value) > 18
            else to_nanos(value)
            for value in values
        ]
    except (ValueError, KeyError):  # an invalid value, or a valid one that the caches do not take
        return list(map(to_nanos, values))


def column_to_millis(values: list[Any]) -> array[int]:
    """Return the Unix milliseconds of each value, as to_millis does; ValueError if any is not a timestamp.

    At high rates many events share a millisecond, so each distinct value is converted once.
    """
    try:
        distinct = dict.fromkeys(values)
    except TypeError:
        raise ValueError("neither text nor finite number") from None
    # As dictionary keys, True and False equal 1 and 0. Other equal numbers are the same instant.
    if 2 * len(distinct) > len(values) or True in distinct or False in distinct:
        return _each_to_millis(values)
    millis = dict(zip(distinct, _each_to_millis(list(distinct)), strict=True))
    return array("q", [millis[value] for value in values])


def _each_to_millis(values: list[Any]) -> array[int]:
    try:
        return array("q", (_by_second if _seconds.is_useful_for(len(values)) else _by_minute)(values))
    except (ValueError, KeyError):  # an invalid value, or a valid one that the caches do not accept
        return array("q", list(map(to_millis, values)))


def _by_second(values: list[Any]) -> list[int]:
    seconds, rests = _seconds, _rests
    return [
        seconds[value[_SECOND]] + rests[value[_REST]]
        if type(value) is str
        else value
        if type(value) is int and SECONDS_BELOW <= value <= LAST
        else to_millis(value)
        for value in values
    ]


def _by_minute(values: list[Any]) -> list[int]:
    minutes, seconds, rests = _minutes, _SECONDS_OF_MINUTE, _rests
    return [
        minutes[value[_MINUTE]] + seconds[value[_OF_MINUTE]] + rests[value[_REST]]
        if type(value) is str and len(value) > 18
        else value
        if type(value) is int and SECONDS_BELOW <= value <= LAST
        else to_millis(value)
        for value in values
    ]


def to_iso(millis: int) -> str:
    """Return Unix milliseconds as `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return (_EPOCH + millis * _MILLISECOND).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def normalize(value: Any) -> str:
    """Return any accepted form as `YYYY-MM-DDTHH:MM:SS.mmmZ`; ValueError says why it is not a timestamp."""
    return to_iso(to_millis(value))


def _text_nanos(text: str) -> int:
    if len(text) < 20 and text.isascii() and text.isdigit():  # in a third of the time of _unix
        number = int(text)
        return number * _unit(number)
    if text[4:5] == "-":
        return _second_millis(text[_SECOND]) * _MILLI + _rest_to_nanos(text[_REST])
    if _unix(text):
        return _decimal_nanos(text)
    raise ValueError("neither ISO 8601 nor Unix time")


def _decimal_nanos(text: str) -> int:
    """Return a Unix time with a sign, fraction or exponent as nanoseconds."""
    number = Decimal(text)
    return floor(number * _unit(number))


def _check_range(nanos: int) -> int:
    if FIRST <= nanos // _MILLI <= LAST:
        return nanos
    raise ValueError("out of range")


def _second_millis(text: str) -> int:
    """Return the Unix milliseconds of `YYYY-MM-DDTHH:MM:SS` in UTC; ValueError for any other form."""
    millis = _minute_millis(text[_MINUTE])
    try:
        return millis + _SECONDS_OF_MINUTE[text[_OF_MINUTE]]
    except KeyError:
        raise ValueError("not ISO 8601: the second must be :00 to :59") from None


def _minute_millis(text: str) -> int:
    """Return the Unix milliseconds of `YYYY-MM-DDTHH:MM` in UTC."""
    parts = _iso_minute(text)
    if not parts:
        raise ValueError("not ISO 8601")
    year, month, day, hour, minute = map(int, parts.groups())
    return (datetime(year, month, day, hour, minute, tzinfo=UTC) - _EPOCH) // _MILLISECOND


def _rest_to_nanos(text: str) -> int:
    """Return the nanoseconds that fraction and zone, the rest of an ISO string, add to its second."""
    parts = _iso_rest(text)
    if not parts:
        raise ValueError("not a fraction and a zone after the second")
    fraction, sign, hours, minutes = parts.groups("0")
    offset = (int(hours) * 60 + int(minutes)) * 60 * 10**9
    return int(fraction.ljust(9, "0")) + (offset if sign == "-" else -offset)


class _Seconds(BoundedCache[str, int]):
    """The first 19 characters of a string → milliseconds, to which those of the rest are added.

    A shorter key is the whole string, and its rest is empty. A key of 19 is the second of an ISO string. Any other key
    is a ValueError or KeyError: to_millis decides.
    """

    def __init__(self) -> None:
        super().__init__(to_millis)
        self._misses = 0  # of the last column
        self._values = 0  # in the last column
        self._bypassed = 0  # columns that still bypass this cache

    def __missing__(self, key: str) -> int:
        if len(key) < 19:
            return to_millis(key) if len(key) > 10 else super().__missing__(key)  # Unix milliseconds rarely repeat
        self._misses += 1
        return self.store(key, _minutes[key[_MINUTE]] + _SECONDS_OF_MINUTE[key[_OF_MINUTE]])

    def is_useful_for(self, values: int) -> bool:
        """Whether a column of `values` values should use this cache.

        Not if more than a quarter of the last column missed: a backlog of many devices has too many distinct seconds,
        and to cache them takes twice as long. The cache is tried again after _BYPASSED_COLUMNS columns.
        """
        if self._bypassed:
            self._bypassed -= 1
            return False
        if 4 * self._misses > self._values:
            self._bypassed = _BYPASSED_COLUMNS
        self._misses, self._values = 0, values
        return not self._bypassed


class _Rests(BoundedCache[str, int]):
    """The characters after the first 19 → the milliseconds that they add."""

    def __missing__(self, key: str) -> int:
        return self.store(key, self._compute(key) // _MILLI)


def _inner_minute_millis(text: str) -> int:
    """Return what _minute_millis does; ValueError within a day of FIRST or LAST: a zone could move it out of range."""
    millis = _minute_millis(text)
    if not FIRST + _DAY <= millis <= LAST - _DAY:
        raise ValueError("near the end of the range")
    return millis


_seconds = _Seconds()
_minutes = BoundedCache(_inner_minute_millis)
_rest_nanos = BoundedCache(_rest_to_nanos)
_rests = _Rests(_rest_to_nanos)
