"""The sink of each topic, opened when a partition of the topic is first assigned."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from worker.config.settings import Settings
from worker.core.errors import Retryable
from worker.ingest.bad_ratio import BadRatio
from worker.ingest.writer import Backoff
from worker.sinks import Sink, open_sink


@dataclass(slots=True, eq=False)
class TopicSink:
    """One topic's sink and its errors: they delay no other topic."""

    topic: str
    sink: Sink
    bad_ratio: BadRatio
    backoff: Backoff
    is_open: bool = False
    is_wanted: bool = False  # a partition waits for it, or its table may have other columns
    failing_backend: str = ""  # the store that failed last; empty: the dead-letter topic

    def want(self, wanted: bool) -> None:
        self.is_wanted = wanted and not self.is_open

    def fail(self, error: Retryable) -> None:
        """Note that a write, or a try to open the sink, failed; begin a pause."""
        self.failing_backend = error.backend
        self.backoff.fail()

    def open(self) -> None:
        self.is_open, self.is_wanted = True, False
        self.backoff.reset()


class TopicSinks:
    """The sinks of all topics that this consumer has met."""

    def __init__(self, create: Callable[[str], TopicSink]) -> None:
        self._create = create
        self._by_topic: dict[str, TopicSink] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> TopicSinks:
        """Return the sinks that the settings describe."""

        def create(topic: str) -> TopicSink:
            return TopicSink(topic, open_sink(settings.for_topic(topic)), BadRatio(settings.max_bad_ratio), Backoff())

        return cls(create)

    def get(self, topic: str) -> TopicSink:
        """Return a topic's sink, maybe not open yet."""
        if topic not in self._by_topic:
            self._by_topic[topic] = self._create(topic)
        return self._by_topic[topic]

    def want_only(self, topics: Collection[str]) -> None:
        """Have the sinks of these topics opened, and no others."""
        for topic in topics:
            self.get(topic)
        for topic, topic_sink in self._by_topic.items():
            topic_sink.want(topic in topics)

    def reopen(self) -> None:
        """Have the open sinks read their tables' columns again; no partition starts meanwhile."""
        for topic_sink in self._by_topic.values():
            topic_sink.is_open, topic_sink.is_wanted = False, topic_sink.is_open or topic_sink.is_wanted

    def next_to_open(self) -> TopicSink | None:
        """Return a sink that a partition waits for, if it is time to try to open one."""
        return next((sink for sink in self._by_topic.values() if sink.is_wanted and sink.backoff.is_over), None)

    def failing_topics(self) -> set[str]:
        """Return the topics whose last write, or try to open the sink, failed."""
        return {topic for topic, sink in self._by_topic.items() if sink.backoff.has_failed}

    def failing_backends(self) -> set[str]:
        """Return the stores that failed last for one of these topics."""
        return {sink.failing_backend for sink in self._by_topic.values() if sink.backoff.has_failed}

    def close(self) -> None:
        for topic_sink in self._by_topic.values():
            topic_sink.sink.close()
