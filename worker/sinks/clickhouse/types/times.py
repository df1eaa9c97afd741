"""Points in time: DateTime, DateTime64, Date, Date32, from every form that `timestamps` accepts.

Values are rounded towards the past to the column's precision. A time zone in the type changes only the display.
"""

from __future__ import annotations

import re
from array import array
from datetime import date
from typing import Any

from worker.core.records import Convert
from worker.decoding.converters import BadValue, millis, nanos, texts
from worker.decoding.timestamps import FIRST, LAST, to_millis

_DAY = 86_400_000
_EPOCH = date(1970, 1, 1).toordinal()
_LAST_DAY = {"H": 65_535, "i": 120_529}  # of Date: 2149-06-06; of Date32: 2299-12-31
_clock_time = re.compile(r"(-)?([0-9]{2,3}):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,9}))?").fullmatch
_bare_date = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch


def date_time(values: list[Any]) -> array[int]:
    """DateTime: seconds, the years 1970 to 2106."""
    return array("I", [value // 1000 for value in millis(values)])


def date_time64(precision: int) -> Convert:
    """DateTime64(P): 10^-P seconds, the years 1900 to 2299 (2262 with P = 9)."""
    if precision == 3:
        return millis
    if precision > 3:
        divisor = 10 ** (9 - precision)
        return lambda values: array("q", [value // divisor for value in nanos(values)])
    divisor = 10 ** (3 - precision)
    return lambda values: array("q", [value // divisor for value in millis(values)])


def seconds_of_millis(values: list[Any]) -> array[int]:
    """DateTime from Unix milliseconds."""
    return array("I", [value // 1000 for value in values])


def ticks_of_millis(precision: int) -> Convert:
    """DateTime64(P) from Unix milliseconds, the years 1900 to 2299 (2262 with P = 9)."""
    factor, divisor = 10 ** max(0, precision - 3), 10 ** max(0, 3 - precision)

    def convert(values: list[Any]) -> array[int]:
        if values and not FIRST <= min(values) <= max(values) <= LAST:
            raise BadValue("out_of_range")
        return array("q", [value * factor // divisor for value in values])

    return convert


def clock_time(precision: int, code: str) -> Convert:
    """Time (P = 0) and Time64(P): `HH:MM:SS` with a fraction, up to ±999:59:59, which is cut to the precision.

    Numbers are rejected: the server takes them for seconds in Time, and for 10^-P seconds in Time64.
    """
    return lambda values: array(code, [_ticks(text, precision) for text in texts(values)])


def _ticks(text: str, precision: int) -> int:
    parts = _clock_time(text)
    if not parts:
        raise BadValue("bad_timestamp")
    sign, hours, minutes, seconds, fraction = parts.groups("")
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    ticks: int = whole * 10**precision + int((fraction + "0" * 9)[:precision] or 0)
    return -ticks if sign else ticks


def days(code: str) -> Convert:
    """Date (array code H: 1970 to 2149) and Date32 (i: 1900 to 2299): `YYYY-MM-DD`, or a timestamp's day in UTC.

    A number counts days where ClickHouse's own JSONEachRow reads it so: up to the type's last day.
    """
    last_day = _LAST_DAY[code]

    def convert(values: list[Any]) -> array[int]:
        if not set(map(type, values)) <= {str}:
            return array(code, [_day(value, last_day) for value in values])
        try:
            if not any(map(str.isdigit, values)):
                return array(code, [value // _DAY for value in millis(values)])
        except BadValue:
            pass
        days_of = {text: _day(text, last_day) for text in set(values)}  # bare dates repeat
        return array(code, [days_of[text] for text in values])

    return convert


def _day(value: Any, last_day: int) -> int:
    try:
        if type(value) is int and abs(value) <= last_day:
            day = value
        elif type(value) is str and value.isdigit() and int(value) <= last_day:
            raise ValueError("digits that may be days or seconds")
        elif type(value) is float and abs(value) <= last_day:
            raise ValueError("a number that may be days or seconds")
        elif type(value) is str and _bare_date(value):
            day = date.fromisoformat(value).toordinal() - _EPOCH
        else:
            return to_millis(value) // _DAY
    except ValueError:
        raise BadValue("bad_timestamp") from None
    if not FIRST <= day * _DAY <= LAST:
        raise BadValue("out_of_range")
    return day
