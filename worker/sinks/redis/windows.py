"""HyperLogLogs by time and by value: their keys, their devices, and the fewest that cover a time span. No I/O.

Besides the total `devices:{topic}` there is a key for each slice of each window, in UTC by event time:
`devices:{topic}:day:2026-11-24`, `…:hour:2026-11-24T05`, `…:minute:2026-11-24T05:30`. With `--by error_code` there
is one more of each for every value: `devices:{topic}:error_code=3`, `devices:{topic}:day:2026-11-24:error_code=3`;
events without a value share `…:error_code=(none)`.
The set `devices:{topic}:windows` has the windows in use, `devices:{topic}:values:error_code` the values.
All keys of a topic are in one cluster slot.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from types import NoneType
from typing import Any, NamedTuple
from urllib.parse import quote

from worker.config.field_paths import parse_path
from worker.config.parsers import WINDOWS, window_ttls
from worker.config.settings import Settings
from worker.core.records import Field
from worker.decoding.converters import BadValue, millis, texts
from worker.sinks.redis.nodes import same_slot

VALUES = 256  # values with keys of their own, per process; all others share OTHER
_VALUE_LENGTH = 64  # escaped characters
# Never labels of values: escaped values have no parentheses.
OTHER = "(other)"
NONE = "(none)"  # of events without the field, or with null
_FORMATS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H", "minute": "%Y-%m-%dT%H:%M"}


class Window(NamedTuple):
    """A window's length. Its slices are numbered: Unix time divided by the length."""

    name: str
    seconds: int

    def spell(self, number: int) -> str:
        """Return the start of a slice, as precise as the window needs."""
        return datetime.fromtimestamp(number * self.seconds, UTC).strftime(_FORMATS[self.name])


def windows(names: Iterable[str]) -> tuple[Window, ...]:
    """Return the windows with these names, the finest first."""
    wanted = set(names)
    return tuple(Window(name, seconds) for name, seconds in WINDOWS.items() if name in wanted)


class Keys:
    """The keys of a topic, with the windows that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.total = settings.redis_key_name
        self.windows = windows(settings.windows.split(","))
        self.by = settings.by
        self._time_field = settings.time_field
        self._ttls = window_ttls(settings.window_ttl)
        self.prefix = same_slot(self.total)
        self._by = quote(self.by, safe="")
        self.registry = f"{self.prefix}:windows"
        self.values = f"{self.prefix}:values:{self._by}"

    def fields(self) -> tuple[Field, ...]:
        """Return the fields besides the device: the event's slice number in the finest window, and its value."""
        name = self._time_field
        time = [Field(name, parse_path(name), _slice_numbers(self.windows[0].seconds))] if self.windows else []
        value = [Field(self.by, parse_path(self.by), _values, required=False)] if self.by else []
        return (*time, *value)

    def of(self, window: Window | None, number: int, label: str) -> str:
        """Return the key of a slice, or of the total, for the value with this label, or for all values (empty)."""
        if window is None:
            return f"{self.prefix}:{self._by}={label}" if label else self.total
        key = f"{self.prefix}:{window.name}:{window.spell(number)}"
        return f"{key}:{self._by}={label}" if label else key

    def expires(self, window: Window, number: int) -> int:
        """Return the Unix time at which a slice's key expires: its TTL after the end of the slice."""
        return (number + 1) * window.seconds + self._ttls[window.name]


class Labels(dict[Any, str]):
    """A value → its label in keys: escaped, or OTHER if it is too long or there are VALUES labels already.

    None, for no value, is NONE.
    """

    def __init__(self) -> None:
        super().__init__({None: NONE})
        self._labels: set[str] = set()

    def learn(self, labels: Iterable[str]) -> None:
        """Add the labels that Redis already has, so that all processes give keys to the same values."""
        self._labels.update(set(labels) - {NONE, OTHER})

    def __missing__(self, value: str | int) -> str:
        label = quote(str(value), safe="") or "%"  # the empty string; no other value becomes a single %
        if len(label) > _VALUE_LENGTH or (label not in self._labels and len(self._labels) >= VALUES):
            return OTHER  # not cached: the number of such values has no bound
        self._labels.add(label)
        self[value] = label
        return label


Groups = Mapping[tuple[int, str], set[str]]
"""(slice of the finest window, or 0; label, or empty) → distinct devices."""


def group(columns: Sequence[list[Any]], keys: Keys, labels: Labels) -> Groups:
    """Group a batch's devices; `columns` has the devices, then each of `keys.fields()`, one part per record batch."""
    groups: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    device_parts, *others = columns
    for i, devices in enumerate(device_parts):
        numbers = others[0][i] if keys.windows else ()
        values = others[-1][i] if keys.by else ()
        distinct = set(numbers) or {0}
        if not values and len(distinct) == 1:  # most record batches of live events
            groups[distinct.pop(), ""].update(devices)
        else:
            pairs = zip(numbers or repeat(0), map(labels.__getitem__, values) if values else repeat(""), strict=False)
            for slice_and_label, device in zip(pairs, devices, strict=False):
                groups[slice_and_label].add(device)
    return groups


def slices(groups: Groups, keys: Keys) -> Iterator[tuple[str, int | None, set[str]]]:
    """Yield each key of the groups, the Unix time at which it expires (None: never), and its devices."""
    yield keys.total, None, set().union(*groups.values())
    for label, members in _regroup(groups, lambda _, label: label):
        if label:
            yield keys.of(None, 0, label), None, members
    for window in keys.windows:
        finer = window.seconds // keys.windows[0].seconds
        for number, members in _regroup(groups, lambda number, _, finer=finer: number // finer):
            yield keys.of(window, number, ""), keys.expires(window, number), members
        if keys.by:
            for (number, label), members in _regroup(groups, lambda n, label, finer=finer: (n // finer, label)):
                yield keys.of(window, number, label), keys.expires(window, number), members


def _regroup(groups: Groups, key_of: Any) -> Iterable[tuple[Any, set[str]]]:
    """Merge the groups for which `key_of(slice, label)` is the same."""
    regrouped: defaultdict[Any, list[set[str]]] = defaultdict(list)
    for slice_and_label, devices in groups.items():
        regrouped[key_of(*slice_and_label)].append(devices)
    for key, parts in regrouped.items():
        yield key, parts[0] if len(parts) == 1 else set().union(*parts)


def cover(start: int, end: int, available: Sequence[Window]) -> list[tuple[Window, int]]:
    """Return the fewest slices that make up [start, end), in Unix seconds; `available` has the finest window first.

    ValueError if a time is not a boundary between slices of the finest window.
    """
    for time in (start, end):
        if time % available[0].seconds:
            name = available[0].name
            raise ValueError(f"windows of this topic have whole {name}s; write times that begin one")
    return list(_cover(start, end, list(available)))


def _cover(start: int, end: int, available: list[Window]) -> Iterator[tuple[Window, int]]:
    if start >= end:
        return
    *finer, window = available
    first, last = -(-start // window.seconds), end // window.seconds
    if first >= last:
        yield from _cover(start, end, finer)
        return
    yield from _cover(start, first * window.seconds, finer)
    yield from zip(repeat(window), range(first, last), strict=False)
    yield from _cover(last * window.seconds, end, finer)


def _slice_numbers(seconds: int) -> Any:
    length = seconds * 1000

    def convert(values: list[Any]) -> array[int]:
        return array("q", [time // length for time in millis(values)])

    return convert


def _values(values: list[Any]) -> list[Any]:
    """Accept strings, integers and None for no value, but no booleans, which equal 1 and 0."""
    if not set(map(type, values)) <= {str, int, NoneType}:
        raise BadValue("wrong_type")
    texts([value for value in values if type(value) is str])
    return values
