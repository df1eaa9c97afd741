"""Points in time: DateTime, DateTime64, Date, Date32, from every form that `timestamps` accepts.

Values are rounded towards the past to the column's precision. A time zone in the type changes only the display.
"""

from __future__ import annotations

import re
from array import array
from datetime import date
from typing import Any

from worker.core.records import Convert
from worker.decoding.converters import BadValue, millis
from worker.decoding.timestamps import FIRST, LAST, to_millis

_DAY = 86_400_000
_EPOCH = date(1970, 1, 1).toordinal()
_bare_date = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch


def date_time(values: list[Any]) -> array[int]:
    """DateTime: seconds, the years 1970 to 2106."""
    return array("I", [value // 1000 for value in millis(values)])


def date_time64(precision: int) -> Convert:
    """DateTime64(P): 10^-P seconds, the years 1900 to 2299 (2262 with P = 9), exact to the millisecond."""
    if precision == 3:
        return millis
    if precision > 3:
        factor = 10 ** (precision - 3)
        return lambda values: array("q", [value * factor for value in millis(values)])
    divisor = 10 ** (3 - precision)
    return lambda values: array("q", [value // divisor for value in millis(values)])


def days(code: str) -> Convert:
    """Date (array code H: 1970 to 2149) and Date32 (i: 1900 to 2299): `YYYY-MM-DD`, or a timestamp's day in UTC."""

    def convert(values: list[Any]) -> array[int]:
        try:
            return array(code, [value // _DAY for value in millis(values)])
        except BadValue:
            return array(code, list(map(_day, values)))

    return convert


def _day(value: Any) -> int:
    try:
        if type(value) is str and _bare_date(value):
            day = date.fromisoformat(value).toordinal() - _EPOCH
        else:
            return to_millis(value) // _DAY
    except ValueError:
        raise BadValue("bad_timestamp") from None
    if not FIRST <= day * _DAY <= LAST:
        raise BadValue("out_of_range")
    return day
