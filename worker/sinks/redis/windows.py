"""HyperLogLogs by time and by value: their keys, their devices, and the fewest that cover a time span. No I/O.

Besides the total `devices:{topic}` there is a key for each slice of each window, in UTC by event time:
`devices:{topic}:day:2026-11-24`, `…:hour:2026-11-24T05`, `…:minute:2026-11-24T05:30`; days of a time zone are in
`…:day@Europe/Amsterdam:2026-11-24`. With `--by error_code` there is one more of each for every value:
`devices:{topic}:error_code=3`, `devices:{topic}:day:2026-11-24:error_code=3`; events without a value share
`…:error_code=(none)`. With `--by country,plan` there is one more for every combination: `…:country=NL:plan=free`.
The set `devices:{topic}:windows` has the windows in use, `devices:{topic}:by` the fields (`country:plan`), and
`devices:{topic}:values:country:plan` their values (`NL:free`). All keys of a topic are in one cluster slot.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

from worker.config.field_paths import parse_path
from worker.config.parsers import WINDOWS, window_ttls
from worker.config.settings import Settings
from worker.core.records import Field
from worker.decoding.converters import BadValue, millis, texts
from worker.sinks.redis.nodes import same_slot

VALUES = 256  # values, or combinations, with keys of their own, per process; all others share OTHER
_VALUE_LENGTH = 64  # escaped characters
# Never labels of values: escaped values have no parentheses.
OTHER = "(other)"
NONE = "(none)"  # of events without the field, or with null
_QUARTER = 900  # seconds
_FORMATS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H", "minute": "%Y-%m-%dT%H:%M"}


class Window(NamedTuple):
    """A window. Its slices are numbered: Unix time divided by the length, or the days of a zone since 1970-01-01.

    A day of a zone begins at its midnight: the first of two; one in a gap is that of the offset before the gap. Days
    begin on a quarter of an hour in UTC, to which other midnights, of some zones before 1972, are rounded up.
    """

    name: str
    seconds: int
    zone: str = ""  # of days; empty: UTC

    @property
    def id(self) -> str:
        """The name in keys and in the registry."""
        return f"{self.name}@{self.zone}" if self.zone else self.name

    def number(self, time: int) -> int:
        """Return the number of the slice that has this Unix time."""
        return _day(self.zone, time) if self.zone else time // self.seconds

    def start(self, number: int) -> int:
        """Return the Unix time at which a slice begins."""
        return _midnight(self.zone, number) if self.zone else number * self.seconds

    def spell(self, number: int) -> str:
        """Return the start of a slice, as precise as the window needs."""
        return datetime.fromtimestamp(number * self.seconds, UTC).strftime(_FORMATS[self.name])


@lru_cache(10_000)
def _midnight(zone: str, day: int) -> int:
    midnight = datetime.fromtimestamp(day * WINDOWS["day"], UTC).replace(tzinfo=ZoneInfo(zone))
    return -(-int(midnight.timestamp()) // _QUARTER) * _QUARTER


@lru_cache(10_000)
def _day(zone: str, time: int) -> int:
    offset = datetime.fromtimestamp(time, ZoneInfo(zone)).utcoffset()
    day = (time + int(offset.total_seconds() if offset else 0)) // WINDOWS["day"]
    while _midnight(zone, day) > time:  # before a midnight that was rounded up, or is in a gap
        day -= 1
    while _midnight(zone, day + 1) <= time:  # a clock that went back over midnight
        day += 1
    return day


def windows(ids: Iterable[str]) -> tuple[Window, ...]:
    """Return the windows with these ids, the finest first; what is no window is left out."""
    parts = (id.partition("@") for id in ids)
    found = (Window(name, WINDOWS[name], zone) for name, _, zone in parts if name in WINDOWS)
    return tuple(sorted(found, key=lambda window: (window.seconds, window.zone)))


class Keys:
    """The keys of a topic, with the windows that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.total = settings.redis_key_name
        zone = "" if settings.window_time_zone == "UTC" else settings.window_time_zone
        self.windows = windows(f"{name}@{zone}" if name == "day" else name for name in settings.windows.split(","))
        self.by = sorted(settings.by_fields)  # so that either order means the same keys
        self._time_field = settings.time_field
        self._ttls = window_ttls(settings.window_ttl)
        self.prefix = same_slot(self.total)
        self.names = ":".join(quote(name, safe="") for name in self.by)
        self.registry = f"{self.prefix}:windows"
        self.fields_registry = f"{self.prefix}:by"
        # What events are grouped by: the slices of all windows begin on it.
        self.unit = min(self.windows[0].seconds, _QUARTER if zone else WINDOWS["day"]) if self.windows else 1

    def values(self, names: str) -> str:
        """Return the key of the set of labels of these fields."""
        return f"{self.prefix}:values:{names}"

    def fields(self) -> tuple[Field, ...]:
        """Return the fields besides the device: the event's time in units, and its values."""
        name = self._time_field
        time = [Field(name, parse_path(name), _units(self.unit))] if self.windows else []
        return (*time, *(Field(name, parse_path(name), _values, required=False) for name in self.by))

    def of(self, window: Window | None, number: int, label: str, names: str = "") -> str:
        """Return the key of a slice, or of the total, for the values with this label, or for all values (empty).

        `names` are the fields of the label, if they are not those of the settings.
        """
        parts = [f"{window.id}:{window.spell(number)}"] if window else []
        if label:
            pairs = zip((names or self.names).split(":"), label.split(":"), strict=True)
            parts += [f"{name}={value}" for name, value in pairs]
        return ":".join([self.prefix, *parts]) if parts else self.total

    def expires(self, window: Window, number: int) -> int:
        """Return the Unix time at which a slice's key expires: its TTL after the end of the slice."""
        return window.start(number + 1) + self._ttls[window.name]


class Labels(dict[Any, str]):
    """A value, or a tuple of the values of several fields → its label in keys: escaped, with colons between fields.

    None, for no value, is NONE; a value that is too long is OTHER, and so is every value of a label beyond VALUES.
    """

    def __init__(self, fields: int = 1) -> None:
        self._none, self._other = (":".join([label] * fields) for label in (NONE, OTHER))
        super().__init__({None if fields == 1 else (None,) * fields: self._none})
        self._labels: set[str] = set()

    def learn(self, labels: Iterable[str]) -> None:
        """Add the labels that Redis already has, so that all processes give keys to the same values."""
        self._labels.update(set(labels) - {self._none, self._other})

    def __missing__(self, value: str | int | tuple[str | int | None, ...]) -> str:
        parts = list(map(_label, value if type(value) is tuple else [value]))
        label = ":".join(parts)
        if label == self._other or (label not in self._labels and len(self._labels) >= VALUES):
            return self._other  # not cached: the number of such values has no bound
        self._labels.add(label)
        if OTHER not in parts:
            self[value] = label
        return label


def _label(value: Any) -> str:
    label = quote(str(value), safe="") or "%"  # the empty string; no other value becomes a single %
    return NONE if value is None else label if len(label) <= _VALUE_LENGTH else OTHER


Groups = Mapping[tuple[int, str], set[str]]
"""(time in units, or 0; label, or empty) → distinct devices."""


def group(columns: Sequence[list[Any]], keys: Keys, labels: Labels) -> Groups:
    """Group a batch's devices; `columns` has the devices, then each of `keys.fields()`, one part per record batch."""
    groups: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    device_parts, *others = columns
    for i, devices in enumerate(device_parts):
        numbers = others[0][i] if keys.windows else ()
        values: Any = [parts[i] for parts in others[bool(keys.windows) :]]
        values = values[0] if len(values) == 1 else list(zip(*values, strict=True))
        distinct = set(numbers) or {0}
        if not values and len(distinct) == 1:  # most record batches of live events
            groups[distinct.pop(), ""].update(devices)
        else:
            pairs = zip(numbers or repeat(0), map(labels.__getitem__, values) if values else repeat(""), strict=False)
            for time_and_label, device in zip(pairs, devices, strict=False):
                groups[time_and_label].add(device)
    return groups


def slices(groups: Groups, keys: Keys) -> Iterator[tuple[str, int | None, set[str]]]:
    """Yield each key of the groups, the Unix time at which it expires (None: never), and its devices."""
    yield keys.total, None, set().union(*groups.values())
    for label, members in _regroup(groups, lambda _, label: label):
        if label:
            yield keys.of(None, 0, label), None, members
    for window in keys.windows:
        number_of = {time: window.number(time * keys.unit) for time in {time for time, _ in groups}}
        for number, members in _regroup(groups, lambda time, _, of=number_of: of[time]):
            yield keys.of(window, number, ""), keys.expires(window, number), members
        if keys.by:
            for (number, label), members in _regroup(groups, lambda time, label, of=number_of: (of[time], label)):
                yield keys.of(window, number, label), keys.expires(window, number), members


def _regroup(groups: Groups, key_of: Any) -> Iterable[tuple[Any, set[str]]]:
    """Merge the groups for which `key_of(time, label)` is the same."""
    regrouped: defaultdict[Any, list[set[str]]] = defaultdict(list)
    for time_and_label, devices in groups.items():
        regrouped[key_of(*time_and_label)].append(devices)
    for key, parts in regrouped.items():
        yield key, parts[0] if len(parts) == 1 else set().union(*parts)


Slices = list[tuple[Window, int]]
IsStored = Callable[[Window, int], bool]


def cover(start: int, end: int, available: Sequence[Window], is_stored: IsStored) -> Slices | None:
    """Return few slices that make up [start, end), in Unix seconds, exactly; None if there are none.

    `available` has the finest window first. Of a coarser one as many slices as fit are taken, if slices of finer ones
    make up the rest. `is_stored` says whether a slice can be taken; a later one of the same window can be, too.
    """
    if start >= end or not available:
        return [] if start == end else None
    *finer, window = available
    last = window.number(end)
    first = window.number(start)
    first += window.start(first) < start
    if first < last and is_stored(window, first):
        head = cover(start, window.start(first), finer, is_stored)
        tail = cover(window.start(last), end, finer, is_stored)
        if head is not None and tail is not None:
            return [*head, *((window, number) for number in range(first, last)), *tail]
    return cover(start, end, finer, is_stored)


def _units(seconds: int) -> Any:
    unit = seconds * 1000

    def convert(values: list[Any]) -> array[int]:
        return array("q", [time // unit for time in millis(values)])

    return convert


def _values(values: list[Any]) -> list[Any]:
    """Accept strings, integers and None for no value, but no booleans, which equal 1 and 0."""
    if not set(map(type, values)) <= {str, int, NoneType}:
        raise BadValue("wrong_type")
    texts([value for value in values if type(value) is str])
    return values
