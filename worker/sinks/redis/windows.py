"""HyperLogLogs by time and by value: their keys, what goes into which, and the fewest that cover a span. No I/O.

Beside the total `devices:{topic}` there is a key for each slice of each window, in UTC by the events' own time:
`devices:{topic}:day:2026-11-24`, `…:hour:2026-11-24T05`, `…:minute:2026-11-24T05:30`. With `--by error_code` there
is one more of each for every value: `devices:{topic}:error_code=3`, `devices:{topic}:day:2026-11-24:error_code=3`.
The set `devices:{topic}:windows` has the windows that are written, `devices:{topic}:values:error_code` the values.
All of a topic's keys are in one slot of a cluster.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, NamedTuple
from urllib.parse import quote

from worker.config.parsers import WINDOWS, window_ttls
from worker.config.settings import Settings
from worker.core.records import Field
from worker.decoding.converters import BadValue, millis
from worker.sinks.redis.nodes import same_slot

VALUES = 256  # that get keys of their own, as far as a process knows; the others share OTHER
_VALUE_LENGTH = 64  # of one, escaped
OTHER = "(other)"  # no value: escaped ones have no brackets
_FORMATS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H", "minute": "%Y-%m-%dT%H:%M"}


class Window(NamedTuple):
    """A slice is numbered: Unix time divided by its length."""

    name: str
    seconds: int

    def spell(self, number: int) -> str:
        """Return when the slice begins, down to what the window needs."""
        return datetime.fromtimestamp(number * self.seconds, UTC).strftime(_FORMATS[self.name])


def windows(names: Iterable[str]) -> tuple[Window, ...]:
    """Return the windows of these names, the finest first."""
    wanted = set(names)
    return tuple(Window(name, seconds) for name, seconds in WINDOWS.items() if name in wanted)


class Keys:
    """The keys of a topic; of the windows, those that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.total = settings.redis_key_name
        self.windows = windows(settings.windows.split(","))
        self.by = settings.by
        self._ttls = window_ttls(settings.window_ttl)
        self.prefix = same_slot(self.total)
        self._by = quote(self.by, safe="")
        self.registry = f"{self.prefix}:windows"
        self.values = f"{self.prefix}:values:{self._by}"

    def fields(self) -> tuple[Field, ...]:
        """Return what an event needs beside its device: the number of its slice of the finest window, and its value."""
        time = [Field("timestamp", ("timestamp",), _numbers(self.windows[0].seconds))] if self.windows else []
        value = [Field(self.by, tuple(self.by.split(".")), _values)] if self.by else []
        return (*time, *value)

    def of(self, window: Window | None, number: int, label: str) -> str:
        """Return the key of a slice, or of the total, for a value, or for all of them (empty)."""
        if window is None:
            return f"{self.prefix}:{self._by}={label}" if label else self.total
        key = f"{self.prefix}:{window.name}:{window.spell(number)}"
        return f"{key}:{self._by}={label}" if label else key

    def expires(self, window: Window, number: int) -> int:
        """Return the Unix time at which a slice's key may go: its TTL after the slice has ended."""
        return (number + 1) * window.seconds + self._ttls[window.name]


class Labels(dict[Any, str]):
    """A value → what keys have for it: escaped; OTHER where it is too long, or VALUES are known already."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[str] = set()

    def learn(self, labels: Iterable[str]) -> None:
        """Take the labels that Redis has already, so that all processes give keys to the same values."""
        self._known.update(labels)

    def __missing__(self, value: str | int) -> str:
        label = quote(str(value), safe="") or "%"  # the empty text; no other is a lone %
        if len(label) > _VALUE_LENGTH or (label not in self._known and len(self._known) >= VALUES):
            return OTHER  # not remembered: there may be any number of these
        self._known.add(label)
        self[value] = label
        return label


Groups = Mapping[tuple[int, str], set[str]]
"""(slice of the finest window, or 0; label, or empty) → distinct devices."""


def group(columns: Sequence[list[Any]], keys: Keys, labels: Labels) -> Groups:
    """Group a batch's devices; `columns` are parts per chunk of devices, then of each of `keys.fields()`."""
    groups: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    devices, *others = columns
    for at, part in enumerate(devices):
        numbers = others[0][at] if keys.windows else ()
        values = others[-1][at] if keys.by else ()
        distinct = set(numbers) or {0}
        if not values and len(distinct) == 1:  # most chunks of live events
            groups[distinct.pop(), ""].update(part)
        else:
            places = zip(numbers or repeat(0), map(labels.__getitem__, values) if values else repeat(""), strict=False)
            for place, device in zip(places, part, strict=False):
                groups[place].add(device)
    return groups


def slices(groups: Groups, keys: Keys) -> Iterator[tuple[str, int | None, set[str]]]:
    """Yield each key that the groups go into, the Unix time at which it expires (None: never), and its devices."""
    yield keys.total, None, set().union(*groups.values())
    for label, members in _gathered(groups, lambda place: place[1]):
        if label:
            yield keys.of(None, 0, label), None, members
    for window in keys.windows:
        finer = window.seconds // keys.windows[0].seconds
        for number, members in _gathered(groups, lambda place, finer=finer: place[0] // finer):
            yield keys.of(window, number, ""), keys.expires(window, number), members
        if keys.by:
            for (number, label), members in _gathered(groups, lambda place, finer=finer: (place[0] // finer, place[1])):
                yield keys.of(window, number, label), keys.expires(window, number), members


def _gathered(groups: Groups, of: Any) -> Iterable[tuple[Any, set[str]]]:
    gathered: defaultdict[Any, list[set[str]]] = defaultdict(list)
    for place, devices in groups.items():
        gathered[of(place)].append(devices)
    for target, parts in gathered.items():
        yield target, parts[0] if len(parts) == 1 else set().union(*parts)


def cover(start: int, end: int, among: Sequence[Window]) -> list[tuple[Window, int]]:
    """Return the fewest slices that make up [start, end), Unix seconds, the finest window first in `among`.

    Both have to lie on the edge of a slice of the finest window; ValueError says which times do.
    """
    for moment in (start, end):
        if moment % among[0].seconds:
            names = f"whole {among[0].name}s" if among else "nothing"
            raise ValueError(f"windows of this topic have {names}; write times that begin one")
    return list(_cover(start, end, list(among)))


def _cover(start: int, end: int, among: list[Window]) -> Iterator[tuple[Window, int]]:
    if start >= end:
        return
    window = among[-1]
    first, last = -(-start // window.seconds), end // window.seconds
    if first >= last:
        yield from _cover(start, end, among[:-1])
        return
    yield from _cover(start, first * window.seconds, among[:-1])
    yield from zip(repeat(window), range(first, last), strict=False)
    yield from _cover(last * window.seconds, end, among[:-1])


def _numbers(seconds: int) -> Any:
    length = seconds * 1000

    def convert(values: list[Any]) -> array[int]:
        return array("q", [moment // length for moment in millis(values)])

    return convert


def _values(values: list[Any]) -> list[Any]:
    """Take texts and whole numbers, and no booleans, which are equal to 1 and 0."""
    if not set(map(type, values)) <= {str, int}:
        raise BadValue("wrong_type")
    return values
