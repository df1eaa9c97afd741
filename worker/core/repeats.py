"""One log line a minute for each cause of a warning or error, and the number of those that were suppressed."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

_INTERVAL_S = 60.0
_MAX_CAUSES = 256
_MAX_VARIANTS = 8  # of a text: causes that differ only in the digits of a name or in the partition
_HEX = r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[a-f]*\d)[0-9a-f]{8,})\b"
_NUMBER = r"-?(?<!\w\[)\d(?:[\w.:,+-]*\w)?"  # also times and addresses
_UNIT = r"(?: (?:[KMGTP]?i?B|bytes|[mnuµ]?s)\b)?"
# Names with digits do not change: `orders-2`, `consumer-3`, `events[7]`.
_CHANGING = re.compile(rf"(?<![\w.-])(?:{_NUMBER}|{_HEX}){_UNIT}", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")


def without_numbers(text: str) -> str:
    """Return what the texts of one cause have in common: `#` stands for each number, address or id."""
    return _CHANGING.sub("#", text)


class _Key(NamedTuple):
    """What all records of one cause share: the text without what changes, and the names among the fields."""

    level: int
    text: str
    names: tuple[tuple[str, Any], ...]

    @property
    def without_digits(self) -> _Key:
        names = tuple((name, _DIGITS.sub("#", value)) for name, value in self.names if isinstance(value, str))
        return _Key(self.level, _DIGITS.sub("#", self.text), names)


@dataclass(slots=True)
class _Cause:
    since: float  # time.monotonic() of its last line
    suppressed: int = 0
    last: logging.LogRecord | None = None  # the last that was suppressed


class Repeats:
    """Decides which records are written. The caller serializes the calls.

    The first word of a line of the logger `by_first_word` is its cause: librdkafka's begin with the kind of error.
    """

    def __init__(self, by_first_word: str) -> None:
        self._by_first_word = by_first_word
        self._causes: dict[_Key, _Cause] = {}  # oldest line first
        self._variants: Counter[_Key] = Counter()  # number of causes by their key without digits

    def allow(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written; set `record.repeats` to the number suppressed before it."""
        if record.levelno < logging.WARNING or getattr(record, "each_time", False):
            return True
        key = self._key(record)
        if key not in self._causes and self._variants[key.without_digits] >= _MAX_VARIANTS:
            key = key.without_digits
        now = time.monotonic()
        cause = self._causes.get(key)
        if cause is not None and now - cause.since < _INTERVAL_S:
            cause.suppressed += 1
            cause.last = record
            return False
        if cause is not None:
            self._remove(key)
            record.repeats = cause.suppressed
        self._causes[key] = _Cause(now)
        self._variants[key.without_digits] += 1
        return True

    def ended(self, *, all_causes: bool = False) -> list[logging.LogRecord]:
        """Forget the causes without a line in the last minute; return one record for each with suppressed ones.

        If there are too many causes, or with `all_causes`, younger ones are forgotten as well.
        """
        now = time.monotonic()
        records: list[logging.LogRecord] = []
        while self._causes:
            key, cause = next(iter(self._causes.items()))
            if not all_causes and len(self._causes) <= _MAX_CAUSES and now - cause.since < _INTERVAL_S:
                break
            self._remove(key)
            if cause.last is not None:
                records.append(_summary(cause.last, cause.suppressed))
        return records

    def _key(self, record: logging.LogRecord) -> _Key:
        text = record.getMessage()
        if record.name == self._by_first_word:
            text = text.partition(" ")[0]
        values: dict[str, Any] = getattr(record, "fields", {})
        names = [(name, value) for name, value in values.items() if name == "partition" or isinstance(value, str)]
        return _Key(record.levelno, without_numbers(text), tuple(names))

    def _remove(self, key: _Key) -> None:
        del self._causes[key]
        self._variants[key.without_digits] -= 1
        if not self._variants[key.without_digits]:
            del self._variants[key.without_digits]


def _summary(last: logging.LogRecord, suppressed: int) -> logging.LogRecord:
    now = time.time()
    return logging.makeLogRecord(
        {
            **vars(last),
            "msg": "suppressed %d lines like this one: %s",
            "args": (suppressed, last.getMessage()),
            "exc_info": None,
            "created": now,
            "msecs": now % 1 * 1000,
        }
    )
