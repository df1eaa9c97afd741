"""The `count` command: distinct devices in total, in a time range (by windows), and for each value of `--by`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from typing import TextIO
from urllib.parse import unquote

from worker.commands.terminal import printable
from worker.config.settings import Settings, UsageError
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.decoding.timestamps import to_iso
from worker.kafka.log_reader import require_topic
from worker.kafka.topics import each_topic
from worker.sinks import open_sink, uncounted
from worker.sinks.counting import count_devices, report
from worker.sinks.redis.nodes import Node
from worker.sinks.redis.windows import NONE, OTHER, Keys, Window, cover, windows


def count(settings: Settings, *, start: int | None, end: int | None, out: TextIO, notes: TextIO) -> int:
    """Print `Total devices: N`, and with `--by` a line `value: N` for each value that has devices; return OK.

    With `start` and `end` (Unix seconds, end excluded) it counts the windows that exist in Redis, whatever `--windows`
    says here. Without them it counts all devices. Raises UsageError if no windows cover that time range exactly, and
    Fatal if there are no devices because the topic does not exist.
    """
    if start is None and end is None and not settings.by:
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
    if "redis" not in settings.backends:
        raise UsageError("--from and --to count with the windows of --backend redis; query the ClickHouse table")
    for topic in each_topic(settings):
        if not settings.one_topic:
            print(f"== {topic.topic}", file=out)
        _count_windows(topic, start, end, out, notes)
    return ExitCode.OK


def _count_windows(settings: Settings, start: int | None, end: int | None, out: TextIO, notes: TextIO) -> None:
    keys = Keys(settings)
    with closing(Node(settings, keys.total)) as node:
        if start is None and end is None:
            slices: list[tuple[Window | None, int]] = [(None, 0)]
        else:
            slices = list(_slices(node, keys, start, end, notes))
        total = _count(node, keys, slices, "")
        if not total and start is None and end is None:
            _require_topic(settings)
        print(f"Total devices: {total}", file=out)
        if keys.by:
            labels = _members(node, keys.values)
            for label in sorted(labels, key=lambda label: (label in (NONE, OTHER), len(label), label)):
                if devices := _count(node, keys, slices, label):
                    print(f"{_decode(label)}: {devices}", file=out)


def _require_topic(settings: Settings) -> None:
    """Raise Fatal if the topic does not exist: its count is no 0 then. Only Kafka knows."""
    try:
        require_topic(settings)
    except Retryable as error:
        text = f"the store has no devices of topic {settings.topic}, and whether the topic exists is unknown: {error}"
        raise Fatal(text, code=ExitCode.FAILED) from None


def _slices(node: Node, keys: Keys, start: int | None, end: int | None, notes: TextIO) -> Iterable[tuple[Window, int]]:
    if start is None or end is None or start >= end:
        raise UsageError("write both --from TIME and a later --to TIME")
    existing = windows(_members(node, keys.registry))
    if not existing:
        raise UsageError(
            f"{keys.total} has no windows: run the worker with --windows minute,hour,day (docs/windows.md), or check "
            "--topic, --redis-url and --redis-key"
        )
    try:
        slices = cover(start, end, existing)
    except ValueError as error:
        raise UsageError(f"--from, --to: {error}") from None
    expired = [(window, number) for window, number in slices if keys.expires(window, number) <= time.time()]
    if expired:
        window, number = expired[-1]
        until = to_iso((number + 1) * window.seconds * 1000)
        print(f"count: devices before {until} are not counted: the {window.name}s expired (--window-ttl)", file=notes)
    return slices


def _count(node: Node, keys: Keys, slices: Iterable[tuple[Window | None, int]], label: str) -> int:
    return int(node.ask("PFCOUNT", *(keys.of(window, number, label) for window, number in slices)))


def _members(node: Node, key: str) -> list[str]:
    members: list[bytes] = node.ask("SMEMBERS", key)
    return [member.decode() for member in members]


def _decode(label: str) -> str:
    """Return the value as the event had it, or the label itself if the value has control characters."""
    value = label if label in (NONE, OTHER) else unquote(label.rstrip("%"))
    return value if value.isprintable() else printable(label)
