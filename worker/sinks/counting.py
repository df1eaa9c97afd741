"""The distinct devices of one or several topics, and the lines that report them."""

from __future__ import annotations

from collections.abc import Mapping

from worker.config.settings import Settings
from worker.sinks import Sink


def count_devices(settings: Settings, sinks: Mapping[str, Sink]) -> tuple[dict[str, int], int | None]:
    """Return the distinct devices of each topic whose store keeps them, and of all together (None: no store does).

    `sinks` has the sink of each topic, at least one.
    """
    first, *others = sinks
    shared = not (settings.one_topic or settings.table_by_topic)
    counts = {topic: sink.devices(topic=topic if shared else "") for topic, sink in sinks.items()}
    by_topic = {topic: count for topic, count in counts.items() if count is not None}
    if not others:
        return by_topic, counts[first]
    return by_topic, sinks[first].devices(*map(settings.for_topic, others))


def count_windows(sinks: Mapping[str, Sink]) -> dict[tuple[str, str], int]:
    """Return the distinct devices of each topic in the last closed slice of each window: (topic, window) → count."""
    counts = {topic: sink.window_devices() for topic, sink in sinks.items()}
    return {(topic, window): count for topic, by_window in counts.items() for window, count in by_window.items()}


def report(settings: Settings, by_topic: Mapping[str, int], together: int) -> list[str]:
    """Return the lines to print; the last one is the total."""
    topics = [] if settings.one_topic else [f"Total devices in {topic}: {count}" for topic, count in by_topic.items()]
    return [*topics, f"Total devices: {together}"]
