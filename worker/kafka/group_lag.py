"""The lag of the whole group: its committed offsets against the log ends, whoever owns the partitions.

Ends are those of `read_committed`: an open transaction's events cannot be read, so they are not lag. A commit that was
made for a deleted topic of the same name is ignored, as the consumers ignore it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource, ResourceType

from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.delivery import of_another_topic
from worker.core.records import Key
from worker.kafka.errors import raise_auth_error
from worker.kafka.log_ends import LogEnds
from worker.kafka.observer import Observer
from worker.kafka.read_range import commit_start, keys_of, offsets_at
from worker.kafka.topics import ANSWER_S, topic_ids, wait_for

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # s, of one request
_STARTS_EVERY = 10.0  # s: retention moves a log's start every few minutes, and topics are rarely recreated
_LATEST, _EARLIEST = -1, -2  # ListOffsets' special times
_LOOKUPS = 12  # per refresh; enough to find the age of a backlog of weeks


class Retention(NamedTuple):
    """A topic's retention; None: unlimited."""

    seconds: float | None = None
    bytes: float | None = None  # per partition


class PartitionLag(NamedTuple):
    """The group's lag in one partition. Offsets are those of the next event; ages are in seconds."""

    topic: str
    partition: int
    start: int  # of the log
    end: int
    committed: int | None  # None: never; the group begins at the start
    seconds: float  # age of the oldest unread event, 0 if there is none
    headroom: float | None  # s until retention removes an unread event; None: never

    @property
    def key(self) -> Key:
        return self.topic, self.partition

    @property
    def position(self) -> int:
        return self.start if self.committed is None else max(self.committed, self.start)

    @property
    def messages(self) -> int:
        return max(0, self.end - self.position)

    def has_reached(self, end: int) -> bool:
        """Whether every event before `end` is committed or removed from the log."""
        return self.position >= end


class GroupLag(Observer):
    """Reads the lag, and keeps a history of each partition's end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._selection = Selection(settings)
        self._ends: dict[Key, LogEnds] = {}
        self._ids: dict[str, str] = {}  # of existing topics
        self._starts: dict[Key, int] = {}
        self._starts_read = -_STARTS_EVERY

    def partitions(self) -> dict[str, int]:
        """Return the number of partitions of each selected topic that exists. Never creates a topic."""
        counts: dict[str, int] = {}
        for name in [None] if self._selection.patterns else self._selection.names:
            arguments = {} if name is None else {"topic": name}
            answer = self._ask(partial(self._consumer.list_topics, **arguments, timeout=_TIMEOUT))
            for topic, metadata in answer.topics.items():
                if metadata.error is None:
                    counts[topic] = len(metadata.partitions)
                elif topic in self._selection.names and metadata.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._to_retryable(metadata.error)
        return {topic: counts[topic] for topic in self._selection.select(counts)}

    def ends(self, counts: Mapping[str, int]) -> dict[Key, int]:
        """Return the log ends of the first `counts[topic]` partitions of each topic."""
        return self._offsets(dict.fromkeys(keys_of(counts), _LATEST))

    def offsets_at(self, counts: Mapping[str, int], time_ms: int) -> dict[Key, int]:
        """Return where `--until` ends the first `counts[topic]` partitions of each topic."""
        return self._ask(lambda: offsets_at(self._consumer, keys_of(counts), time_ms))

    def commit_start(self, settings: Settings, counts: Mapping[str, int]) -> str:
        return self._ask(lambda: commit_start(self._consumer, self._admin, settings, counts))

    def refresh(
        self,
        counts: Mapping[str, int],
        retention: Mapping[str, Retention] = MappingProxyType({}),
        event_bytes: float = 0.0,
    ) -> list[PartitionLag]:
        """Return the lag of the first `counts[topic]` partitions of each topic, without those in error.

        `event_bytes` is an event's mean size in the log, for `retention.bytes`.
        """
        keys = keys_of(counts)
        requested = [TopicPartition(*key) for key in keys]
        self._consumer.poll(0)  # serves error_cb
        answers = self._ask(lambda: self._consumer.committed(requested, timeout=_TIMEOUT))
        ends, now = self.ends(counts), time.time()
        new = ends.keys() - self._starts.keys() or counts.keys() - self._ids.keys()
        if new or time.monotonic() - self._starts_read > _STARTS_EVERY:
            self._ids = self._ask(lambda: topic_ids(self._admin, list(counts)))
            self._starts = self._offsets(dict.fromkeys(keys, _EARLIEST))
            self._starts_read = time.monotonic()
        committed = {(item.topic, item.partition): self._committed_offset(item) for item in self._valid(answers)}
        lags = [
            PartitionLag(*key, self._starts[key], ends[key], offset, 0, None)
            for key, offset in sorted(committed.items())
            if key in ends and key in self._starts and key[0] in self._ids
        ]
        for lag in lags:
            self._ends.setdefault(lag.key, LogEnds()).sample(now, lag.end)
        self._find_ages(lags, now)
        return [self._with_age(lag, now, retention.get(lag.topic, Retention()), event_bytes) for lag in lags]

    def _committed_offset(self, commit: TopicPartition) -> int | None:
        """Return the committed offset; None if there is none, or if it is that of a deleted topic of the same name."""
        other_topic = of_another_topic(commit.metadata, self._ids.get(commit.topic, ""))
        return None if commit.offset < 0 or other_topic else commit.offset

    def retention(self, topics: Iterable[str]) -> dict[str, Retention]:
        """Return the topics' retention, without topics whose configuration this user may not read."""
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        futures = self._admin.describe_configs(resources, request_timeout=ANSWER_S) if resources else {}
        retention: dict[str, Retention] = {}
        for resource, future in futures.items():
            try:
                retention[resource.name] = _retention(wait_for(future))
            except KafkaException as error:
                text = error.args[0].str()
                log.info("no retention headroom: cannot read the configuration of %s: %s", resource.name, text)
        return retention

    def _find_ages(self, lags: list[PartitionLag], now: float) -> None:
        """Ask Kafka for past log ends until the age of each partition's oldest unread event is known."""
        for _ in range(_LOOKUPS):
            times = {
                lag.key: time
                for lag in lags
                if lag.messages and (time := self._ends[lag.key].next_lookup(lag.position, now))
            }
            if not times:
                return
            ends = self._offsets({key: int(time * 1000) for key, time in times.items()})
            latest = {lag.key: lag.end for lag in lags}
            for key, end in ends.items():
                # -1: nothing was written since, so the log ended where it ends now
                self._ends[key].add_past(times[key], end if end >= 0 else latest[key])

    def _with_age(self, lag: PartitionLag, now: float, retention: Retention, event_bytes: float) -> PartitionLag:
        ends = self._ends[lag.key]
        seconds = ends.age(lag.position, now) if lag.messages else 0.0
        room = headroom(lag, seconds, retention, event_bytes, ends.growth(now))
        ends.prune(lag.position)
        return lag._replace(seconds=seconds, headroom=room)

    def _offsets(self, times: Mapping[Key, int]) -> dict[Key, int]:
        """Return the first offset at or after a time (ms, or a special one) per partition; -1 if there is none."""
        requested = [TopicPartition(*key, time) for key, time in times.items()]
        if not requested:
            return {}
        answers = self._ask(lambda: self._consumer.offsets_for_times(requested, timeout=_TIMEOUT))
        return {(item.topic, item.partition): item.offset for item in self._valid(answers)}

    def _valid(self, answers: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the answers without those in error: one partition without a leader must not hide the others."""
        answers = list(answers)
        for item in answers:
            if item.error is not None:
                raise_auth_error(item.error)
        return [item for item in answers if item.error is None]


def _retention(config: Mapping[str, Any]) -> Retention:
    values = {name: entry.value for name, entry in config.items()}
    if "delete" not in values.get("cleanup.policy", "delete"):
        return Retention()
    age, size = float(values.get("retention.ms", -1)), float(values.get("retention.bytes", -1))
    return Retention(age / 1000 if age >= 0 else None, size if size >= 0 else None)


def headroom(
    lag: PartitionLag, seconds: float, retention: Retention, event_bytes: float, growth: float
) -> float | None:
    """Return the seconds until retention removes an unread event; None: never.

    By age: retention.ms less the age of the oldest unread event. By size: the time until unread events alone fill
    retention.bytes, at `growth` events a second. Both are the earliest time: Kafka removes whole segments, and
    compresses.
    """
    if lag.committed is not None and lag.committed < lag.start:
        return 0.0  # retention has removed unread events already
    left = []
    if retention.seconds is not None:
        left.append(retention.seconds - seconds)
    if retention.bytes is not None and event_bytes and growth:
        left.append((retention.bytes / event_bytes - lag.messages) / growth)
    return max(0.0, min(left)) if left else None
