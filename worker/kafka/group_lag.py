"""How far the whole group is behind: its committed offsets against the log's ends, whoever owns the partitions.

Asked through a consumer that never subscribes, so that it neither joins the group nor makes it. (An AdminClient would
have no group of its own, and librdkafka crashes there when the coordinator moves: librdkafka #5040. It is asked for the
topic alone.) Ends are those of `read_committed`: what an open transaction holds back cannot be read, so it is no lag of
ours. A commit that was made for a deleted topic of the same name is none: as the consumers judge it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.batch import Key
from worker.core.delivery import of_another_topic
from worker.core.errors import Fatal, Retryable
from worker.core.log import LIBRDKAFKA
from worker.kafka.errors import check_rights
from worker.kafka.log_ends import Ends
from worker.kafka.properties import client_properties, non_consumer_properties, unusable
from worker.kafka.topics import ANSWER_S, answer, topic_ids

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # s, of one question
_LOGS_EVERY = 10.0  # s: retention moves a log's start in steps of minutes, and a topic is seldom made again
_LATEST, _EARLIEST = -1, -2  # ListOffsets' special times
_QUESTIONS = 12  # a refresh; enough to date a backlog of weeks at once


class Retention(NamedTuple):
    """What removes events from the topic; None where nothing does."""

    seconds: float | None = None
    bytes: float | None = None  # a partition


class PartitionLag(NamedTuple):
    """One partition of the group; offsets are of the next event, ages in seconds."""

    topic: str
    partition: int
    start: int  # of what the log still has
    end: int
    committed: int | None  # None: the group has not committed here yet, and begins at the start
    seconds: float  # age of the oldest unread event, 0 without one
    headroom: float | None  # s until retention removes an unread event; None: it never does

    @property
    def key(self) -> Key:
        return self.topic, self.partition

    @property
    def position(self) -> int:
        return self.start if self.committed is None else max(self.committed, self.start)

    @property
    def messages(self) -> int:
        return max(0, self.end - self.position)

    def reached(self, end: int) -> bool:
        """Whether all that was there before `end` is committed, or is gone from the log."""
        return self.position >= end


class GroupLag:
    """The clients, and what they have learnt of each partition. Blocking: all calls come from one and the same thread.

    Calls raise Retryable while Kafka does not answer, and Fatal where it refuses this client.
    """

    def __init__(self, settings: Settings) -> None:
        self._selection = Selection(settings)
        self._said = ""  # Kafka's newest complaint
        self._refused: KafkaError | None = None
        quiet = {"log_level": 0}
        properties = {"group.id": settings.group_id, **client_properties(settings), **quiet}
        properties["enable.auto.commit"] = False
        try:
            self._consumer = Consumer(properties, error_cb=self._on_error, logger=logging.getLogger(LIBRDKAFKA))
            self._admin = AdminClient({**non_consumer_properties(settings), **quiet})
        except KafkaException as error:
            raise unusable(error) from None
        self._ends: dict[Key, Ends] = {}
        self._ids: dict[str, str] = {}  # of the topics that are there
        self._starts: dict[Key, int] = {}
        self._logs_seen = -_LOGS_EVERY

    def partitions(self) -> dict[str, int]:
        """Return how many partitions each topic has that is there and asked for. Never makes one."""
        there: dict[str, int] = {}
        for asked in [None] if self._selection.patterns else self._selection.names:
            for topic, found in self._ask(partial(self._list, asked)).topics.items():
                if found.error is None:
                    there[topic] = len(found.partitions)
                elif topic in self._selection.names and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._to_retryable(found.error)
        return {topic: there[topic] for topic in self._selection.select(there)}

    def _list(self, topic: str | None) -> Any:
        """Ask for one topic; for all of them where none is named."""
        named = {} if topic is None else {"topic": topic}
        return self._consumer.list_topics(**named, timeout=_TIMEOUT)

    def ends(self, counts: Mapping[str, int]) -> dict[Key, int]:
        """Return the ends of the first partitions of each topic: so many as `counts` says."""
        return self._offsets(dict.fromkeys(_keys(counts), _LATEST))

    def refresh(
        self,
        counts: Mapping[str, int],
        retention: Mapping[str, Retention] = MappingProxyType({}),
        event_bytes: float = 0.0,
    ) -> list[PartitionLag]:
        """Return the lag of those of the first partitions of each topic that Kafka can tell of now.

        `event_bytes` is an event's mean size in the log: what `retention.bytes` is measured with.
        """
        keys = _keys(counts)
        asked = [TopicPartition(*key) for key in keys]
        answers = self._ask(lambda: self._consumer.committed(asked, timeout=_TIMEOUT))
        ends, now = self.ends(counts), time.time()
        new = ends.keys() - self._starts.keys() or counts.keys() - self._ids.keys()
        if new or time.monotonic() - self._logs_seen > _LOGS_EVERY:
            self._ids = self._ask(lambda: topic_ids(self._admin, list(counts)))
            self._starts = self._offsets(dict.fromkeys(keys, _EARLIEST))
            self._logs_seen = time.monotonic()
        committed = {(item.topic, item.partition): self._begun(item) for item in self._good(answers)}
        lags = [
            PartitionLag(*key, self._starts[key], ends[key], offset, 0, None)
            for key, offset in sorted(committed.items())
            if key in ends and key in self._starts and key[0] in self._ids
        ]
        for lag in lags:
            self._ends.setdefault(lag.key, Ends()).sample(now, lag.end)
        self._date(lags, now)
        return [self._dated(lag, now, retention.get(lag.topic, Retention()), event_bytes) for lag in lags]

    def _begun(self, commit: TopicPartition) -> int | None:
        """Return the offset that the group has committed; None for none, or one of a deleted topic of this name."""
        gone = of_another_topic(commit.metadata, self._ids.get(commit.topic, ""))
        return None if commit.offset < 0 or gone else commit.offset

    def retention(self, topics: Iterable[str]) -> dict[str, Retention]:
        """Return what the topics' configurations say; nothing where this user may not read one."""
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        asked = self._admin.describe_configs(resources, request_timeout=ANSWER_S) if resources else {}
        found: dict[str, Retention] = {}
        for resource, future in asked.items():
            try:
                found[resource.name] = _retention(answer(future))
            except KafkaException as error:
                said = error.args[0].str()
                log.info("no retention headroom: cannot read the configuration of %s: %s", resource.name, said)
        return found

    def close(self) -> None:
        self._consumer.close()

    def _date(self, lags: list[PartitionLag], now: float) -> None:
        """Ask Kafka where the logs ended at past times, until the oldest unread event of each partition is dated."""
        for _ in range(_QUESTIONS):
            times = {
                lag.key: time
                for lag in lags
                if lag.messages and (time := self._ends[lag.key].question(lag.position, now))
            }
            if not times:
                return
            found = self._offsets({key: int(time * 1000) for key, time in times.items()})
            latest = {lag.key: lag.end for lag in lags}
            for key, end in found.items():
                # -1: nothing was written since, so the log had ended where it ends now
                self._ends[key].learn(times[key], end if end >= 0 else latest[key])

    def _dated(self, lag: PartitionLag, now: float, retention: Retention, event_bytes: float) -> PartitionLag:
        ends = self._ends[lag.key]
        seconds = ends.age(lag.position, now) if lag.messages else 0.0
        room = headroom(lag, seconds, retention, event_bytes, ends.growth(now))
        ends.forget(lag.position)
        return lag._replace(seconds=seconds, headroom=room)

    def _offsets(self, times: Mapping[Key, int]) -> dict[Key, int]:
        """Return the first offset at or after a time (ms, or a special one) by partition; -1 where there is none."""
        asked = [TopicPartition(*key, time) for key, time in times.items()]
        if not asked:
            return {}
        answers = self._ask(lambda: self._consumer.offsets_for_times(asked, timeout=_TIMEOUT))
        return {(item.topic, item.partition): item.offset for item in self._good(answers)}

    def _good(self, answers: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the answers without those in error: a partition without a leader must not hide the others."""
        good = []
        for item in answers:
            if item.error is None:
                good.append(item)
            else:
                check_rights(item.error)
                self._said = f"{item.topic}[{item.partition}]: {item.error.str()}"
        return good

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            answer = question()
        except KafkaException as error:
            self._consumer.poll(0)  # serves error_cb, which knows the reason
            raise self._to_retryable(error.args[0]) from None
        self._consumer.poll(0)
        self._refused = None
        return answer

    def _to_retryable(self, error: KafkaError) -> Retryable:
        check_rights(self._refused or error)
        said, self._said = self._said or error.str(), ""
        return Retryable(said, reason="connection")

    def _on_error(self, error: KafkaError) -> None:
        try:
            check_rights(error)
        except Fatal:
            self._refused = error
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._said = error.str()


def _keys(counts: Mapping[str, int]) -> list[Key]:
    return [(topic, partition) for topic, count in counts.items() for partition in range(count)]


def _retention(config: Mapping[str, Any]) -> Retention:
    values = {name: entry.value for name, entry in config.items()}
    if "delete" not in values.get("cleanup.policy", "delete"):
        return Retention()
    age, size = float(values.get("retention.ms", -1)), float(values.get("retention.bytes", -1))
    return Retention(age / 1000 if age >= 0 else None, size if size >= 0 else None)


def headroom(
    lag: PartitionLag, seconds: float, retention: Retention, event_bytes: float, growth: float
) -> float | None:
    """Return the seconds until retention removes an event that the group has not read; None where it never does.

    By age: what is left of retention.ms to the oldest unread event. By size: how long the log, growing by `growth`
    events a second, takes until what is unread alone fills retention.bytes. Both are the earliest moment: Kafka removes
    whole segments, and compresses.
    """
    if lag.committed is not None and lag.committed < lag.start:
        return 0.0  # it has already happened
    left = []
    if retention.seconds is not None:
        left.append(retention.seconds - seconds)
    if retention.bytes is not None and event_bytes and growth:
        left.append((retention.bytes / event_bytes - lag.messages) / growth)
    return max(0.0, min(left)) if left else None
