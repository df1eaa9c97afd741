"""Counts of days, seconds and their parts → ISO 8601 text, exactly.

The text says what a bare number leaves open: `timestamps` reads a number's unit from its magnitude, which fails around
1970. A count beyond the years 1 to 9999 becomes a text that no converter accepts as a time, such as `9223372036854 ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date as Date
from typing import Any

from worker.decoding.bounded_cache import BoundedCache

_EPOCH_DAY = Date(1970, 1, 1).toordinal()
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # 0001-01-01T00:00:00Z … 9999-12-31T23:59:59Z
_UNITS = {3: "ms", 6: "us", 9: "ns"}


def date(days: int, *_: Any) -> str:
    """Return days since 1970 as `YYYY-MM-DD`."""
    try:
        return _dates[days]
    except (ValueError, OverflowError):
        return f"{days} days"


def timestamp(digits: int, zone: str) -> Callable[..., str]:
    """Return a function of a count of 10^-digits seconds since 1970: `YYYY-MM-DDTHH:MM:SS.…` and the zone.

    The fraction has three digits if the others are zero, else all.
    """
    factor, rest_of_milli = 10**digits, 10 ** (digits - 3)
    millis = [f".{milli:03d}{zone}" for milli in range(1000)]

    def convert(count: int, *_: Any) -> str:
        second, rest = divmod(count, factor)
        try:
            if rest % rest_of_milli:
                return f"{_seconds[second]}.{rest:0{digits}d}{zone}"
            return f"{_seconds[second]}{millis[rest // rest_of_milli]}"
        except OverflowError:
            return f"{count} {_UNITS[digits]}"

    return convert


def time_of_day(digits: int) -> Callable[..., str]:
    """Return a function of a count of 10^-digits seconds since midnight: `HH:MM:SS.…`."""
    factor = 10**digits

    def convert(count: int, *_: Any) -> str:
        if not 0 <= count < 86_400 * factor:
            return f"{count} {_UNITS[digits]}"
        second, rest = divmod(count, factor)
        return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{rest:0{digits}d}"

    return convert


def _date(days: int) -> str:
    """Return days since 1970 as `YYYY-MM-DD`; ValueError or OverflowError beyond the years 1 to 9999."""
    return Date.fromordinal(_EPOCH_DAY + days).isoformat()


def _second(second: int) -> str:
    """Return Unix seconds as `YYYY-MM-DDTHH:MM:SS`; OverflowError beyond the years 1 to 9999."""
    if not _FIRST_SECOND <= second <= _LAST_SECOND:
        raise OverflowError
    parts = time.gmtime(second)
    return f"{parts.tm_year:04}" + time.strftime("-%m-%dT%H:%M:%S", parts)


_dates, _seconds = BoundedCache(_date), BoundedCache(_second)
