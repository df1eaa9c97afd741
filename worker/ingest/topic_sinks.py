"""Where the events of each topic go: its sink, opened when a partition of the topic is first assigned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.config.settings import Settings
from worker.ingest.bad_ratio import BadRatio
from worker.ingest.writer import Backoff
from worker.sinks import Sink, open_sink


@dataclass(slots=True, eq=False)
class TopicSink:
    """One topic's sink, and what goes with it."""

    topic: str
    sink: Sink
    bad_ratio: BadRatio
    backoff: Backoff  # between tries to open the sink
    open: bool = False


class TopicSinks:
    """The outlets of all topics that this consumer has met."""

    def __init__(self, make: Callable[[str], TopicSink]) -> None:
        self._make = make
        self._known: dict[str, TopicSink] = {}

    @classmethod
    def by(cls, settings: Settings) -> TopicSinks:
        """Return the outlets that the settings describe."""
        return cls(
            lambda topic: TopicSink(
                topic, open_sink(settings.for_topic(topic)), BadRatio(settings.max_bad_ratio), Backoff()
            )
        )

    def of(self, topic: str) -> TopicSink:
        """Return a topic's outlet, maybe not open yet."""
        known = self._known.get(topic)
        if known is None:
            known = self._known[topic] = self._make(topic)
        return known

    def close(self) -> None:
        """Drop all connections."""
        for topic_sink in self._known.values():
            topic_sink.sink.close()
