"""The `count` command: distinct devices in total, in a time range (by windows), and for each value of `--by`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, tzinfo
from time import time as unix_time
from typing import NamedTuple, TextIO
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from worker.commands.terminal import printable
from worker.config.parsers import time_zone
from worker.config.settings import Settings, UsageError
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.log_reader import require_topic
from worker.kafka.topics import each_topic
from worker.sinks import open_sink, uncounted
from worker.sinks.counting import count_devices, report
from worker.sinks.redis.nodes import Node
from worker.sinks.redis.windows import NONE, OTHER, IsStored, Keys, Slices, Window, cover, windows

_Keyed = Sequence[tuple[Window | None, int]]  # slices, or the total


class Span(NamedTuple):
    """What to count: from `start` to `end`, which is excluded, or the last `seconds`; all devices if it is empty.

    Times without an offset are in the time zone of the topic's days.
    """

    start: datetime | None = None
    end: datetime | None = None
    seconds: int | None = None

    @property
    def is_valid(self) -> bool:
        """Whether it is the last seconds, or two times. If they can be compared without a zone, the second is later."""
        start, end, seconds = self
        if seconds or not (start and end):
            return bool(seconds) and not (start or end)
        return (start.tzinfo is None) != (end.tzinfo is None) or start < end


def count(settings: Settings, span: Span, *, out: TextIO, notes: TextIO) -> int:
    """Print `Total devices: N`, and with `--by` a line `value: N` for each value that has devices; return OK.

    A span is counted by the windows that exist in Redis, whatever `--windows` says here. Raises UsageError if no
    windows make it up exactly, or none is stored by the fields of `--by`, and Fatal if the topic does not exist.
    """
    if not any(span) and not settings.by:
        sinks = {topic.topic: open_sink(topic) for topic in each_topic(settings)}
        try:
            by_topic, total = count_devices(settings, sinks)
        finally:
            for sink in sinks.values():
                sink.close()
        if total is None:
            raise Fatal(uncounted(settings))
        for name, devices in by_topic.items():
            if not devices:
                _require_topic(settings.for_topic(name))
        print(*report(settings, by_topic, total), sep="\n", file=out)
        return ExitCode.OK
    if any(span) and not span.is_valid:
        raise UsageError("write --from TIME and a later --to TIME, or --last TIME")
    if "redis" not in settings.backends:
        raise UsageError("--from, --to and --last count windows, of --backend redis; query the ClickHouse table")
    for topic in each_topic(settings):
        if not settings.one_topic:
            print(f"== {topic.topic}", file=out)
        _count_windows(topic, span, out, notes)
    return ExitCode.OK


def _count_windows(settings: Settings, span: Span, out: TextIO, notes: TextIO) -> None:
    keys = Keys(settings)
    with closing(Node(settings, keys.total)) as node:
        slices: _Keyed = [(None, 0)]
        if any(span):
            slices = _slices(node, keys, span, settings.window_time_zone, notes)
        total = _count(node, keys, slices, [("", "")])
        if not total and not any(span):
            _require_topic(settings)
        values = _values(node, keys, settings, must_exist=total > 0) if keys.by else {}
        print(f"Total devices: {total}", file=out)
        for value in sorted(values, key=lambda value: [(part in (NONE, OTHER), len(part), part) for part in value]):
            if devices := _count(node, keys, slices, values[value]):
                print(f"{','.join(map(_decode, value))}: {devices}", file=out)


def _require_topic(settings: Settings) -> None:
    """Raise Fatal if the topic does not exist: its count is no 0 then. Only Kafka knows."""
    try:
        require_topic(settings)
    except Retryable as error:
        text = f"the store has no devices of topic {settings.topic}, and whether the topic exists is unknown: {error}"
        raise Fatal(text, code=ExitCode.FAILED) from None


def _slices(node: Node, keys: Keys, span: Span, asked_zone: str, notes: TextIO) -> Slices:
    existing, zone_name = _windows(node, keys, asked_zone)
    zone, now = _zone(zone_name), int(unix_time())

    def is_stored(window: Window, number: int) -> bool:
        return keys.expires(window, number) > now

    def spell(seconds: int) -> str:
        return f"{datetime.fromtimestamp(seconds, zone):%Y-%m-%dT%H:%M} ({zone_name})"

    if span.seconds:
        since, slices = _slices_since(now - span.seconds, now, existing, is_stored)
        print(f"count: from {spell(since)} to now", file=notes)
        return slices
    slices = _slices_between(span, zone, existing, is_stored)
    expired = [(window, number) for window, number in slices if not is_stored(window, number)]
    if expired:
        window, number = expired[-1]
        until = spell(window.start(number + 1))
        print(f"count: devices before {until} are not counted: the {window.name}s expired (--window-ttl)", file=notes)
    return slices


def _slices_since(start: int, now: int, existing: list[Window], is_stored: IsStored) -> tuple[int, Slices]:
    """Return the begin of the slice with this time, in the finest window that lives so long, and all slices from it."""
    if now - start < existing[0].seconds:
        raise UsageError(f"--last: the finest window of this topic is the {existing[0].name}; write a longer time")
    for window in existing:
        since = window.start(window.number(start))
        if slices := cover(since, window.start(window.number(now) + 1), existing, is_stored):
            return since, slices
    raise UsageError("--last: the windows that are this old have expired (--window-ttl); write a shorter time")


def _slices_between(span: Span, zone: tzinfo, existing: list[Window], is_stored: IsStored) -> Slices:
    """Return slices that make up the span, stored ones if possible."""
    times = [time.replace(tzinfo=time.tzinfo or zone).timestamp() for time in (span.start, span.end) if time]
    start, end = map(int, times)
    whole = existing if [start, end] == times else []
    slices = cover(start, end, whole, is_stored) or cover(start, end, whole, lambda *_: True)
    if not slices:
        ids = ", ".join(window.id for window in existing)
        raise UsageError(f"--from, --to: write times at which a slice begins; the windows of this topic are {ids}")
    return slices


def _windows(node: Node, keys: Keys, asked_zone: str) -> tuple[list[Window], str]:
    """Return the windows that exist, the finest first, with days of one time zone, and its name."""
    existing = windows(_members(node, keys.registry))
    if not existing:
        raise UsageError(
            f"{keys.total} has no windows: run the worker with --windows minute,hour,day (docs/windows.md), or check "
            "--topic, --redis-url and --redis-key"
        )
    zones = [window.zone or "UTC" for window in existing if window.name == "day"]
    zone = asked_zone or (zones[0] if len(zones) == 1 else "" if zones else "UTC")
    if zones and zone not in zones:
        options = " or ".join(f"--window-time-zone {zone}" for zone in zones)
        raise UsageError(f"the days of this topic begin at midnight in {' and '.join(zones)}: write {options}")
    return [window for window in existing if window.name != "day" or (window.zone or "UTC") == zone], zone


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(time_zone(name))
    except ValueError as error:
        raise Fatal(f"the topic's days are those of the time zone {name}, which is not known here: {error}") from None


def _count(node: Node, keys: Keys, slices: _Keyed, values: Iterable[tuple[str, str]]) -> int:
    words = [keys.of(window, number, label, names) for names, label in values for window, number in slices]
    return int(node.ask("PFCOUNT", *words))


def _values(
    node: Node, keys: Keys, settings: Settings, *, must_exist: bool
) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Return the stored values of the fields of `--by`: their labels → the names and labels of the keys that have them.

    A value of one field is also in the keys of its combinations with another.
    """
    asked = [quote(name, safe="") for name in settings.by_fields]
    stored = {*_members(node, keys.fields_registry), keys.names}  # before there was a registry, there was one field
    values: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for names in stored:
        fields = names.split(":")
        for label in _members(node, keys.values(names)) if set(asked) <= set(fields) else ():
            parts = dict(zip(fields, label.split(":"), strict=True))
            values.setdefault(tuple(parts[name] for name in asked), []).append((names, label))
    if must_exist and not values:
        others = "".join(f", but by {unquote(names.replace(':', ','))}" for names in sorted(stored - {keys.names}))
        raise UsageError(
            f"{keys.total} has no devices by {settings.by}{others}: run the worker with --by {settings.by}"
        )
    return values


def _members(node: Node, key: str) -> list[str]:
    members: list[bytes] = node.ask("SMEMBERS", key)
    return [member.decode() for member in members]


def _decode(label: str) -> str:
    """Return the value as the event had it, or the label itself if the value has control characters."""
    value = label if label in (NONE, OTHER) else unquote(label.rstrip("%"))
    return value if value.isprintable() else printable(label)
