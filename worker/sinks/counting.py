"""The distinct devices of one topic or several, and the lines that report them."""

from __future__ import annotations

from collections.abc import Mapping

from worker.config.settings import Settings
from worker.sinks import Sink


def count_devices(settings: Settings, sinks: Mapping[str, Sink]) -> tuple[dict[str, int], int | None]:
    """Return the distinct devices of each topic whose store keeps them, and of all together (None: it keeps none).

    `sinks` are those of one topic or more.
    """
    (first, sink), *others = sinks.items()
    tell = not (settings.one_topic or settings.table_by_topic)
    counted = {topic: one.devices(topic=topic if tell else "") for topic, one in sinks.items()}
    by_topic = {topic: count for topic, count in counted.items() if count is not None}
    if not others:
        return by_topic, counted[first]
    return by_topic, sink.devices(*(settings.for_topic(topic) for topic, _ in others))


def report(settings: Settings, by_topic: Mapping[str, int], together: int) -> list[str]:
    """Return the lines to print; the last one is the total."""
    topics = [] if settings.one_topic else [f"Total devices in {topic}: {count}" for topic, count in by_topic.items()]
    return [*topics, f"Total devices: {together}"]
