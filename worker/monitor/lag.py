"""How far the whole group is behind: its committed offsets against the log's ends, whoever owns the partitions.

Asked through a consumer that never subscribes, so that it neither joins the group nor makes it. (An AdminClient would
have no group of its own, and librdkafka crashes there when the coordinator moves: librdkafka #5040. It is asked for the
topic alone.) Ends are those of `read_committed`: what an open transaction holds back cannot be read, so it is no lag of
ours. A commit that was made for a deleted topic of the same name is none: as the consumers judge it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from worker.delivery import of_another_topic
from worker.errors import Fatal, Retryable
from worker.kafka import ANSWER_S, answer, check_rights, client_properties, other_properties, topic_ids, unusable
from worker.log import LIBRDKAFKA
from worker.monitor.ends import Ends
from worker.settings import Settings

log = logging.getLogger("worker.monitor")

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

    partition: int
    start: int  # of what the log still has
    end: int
    committed: int | None  # None: the group has not committed here yet, and begins at the start
    seconds: float  # age of the oldest unread event, 0 without one
    headroom: float | None  # s until retention removes an unread event; None: it never does

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
        self._topic = settings.topic
        self._said = ""  # Kafka's newest complaint
        self._refused: KafkaError | None = None
        quiet = {"log_level": 0}
        properties = {"group.id": settings.group_id, **client_properties(settings), **quiet}
        properties["enable.auto.commit"] = False
        try:
            self._consumer = Consumer(properties, error_cb=self._on_error, logger=logging.getLogger(LIBRDKAFKA))
            self._admin = AdminClient({**other_properties(settings), **quiet})
        except KafkaException as error:
            raise unusable(error) from None
        self._ends: dict[int, Ends] = {}
        self._topic_id = ""
        self._starts: dict[int, int] = {}
        self._logs_seen = -_LOGS_EVERY

    def partitions(self) -> int:
        """Return how many partitions the topic has; 0 where there is no such topic. Never makes one."""
        found = self._ask(lambda: self._consumer.list_topics(self._topic, timeout=_TIMEOUT)).topics[self._topic]
        if found.error is not None:
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return 0
            raise self._trouble(found.error)
        return len(found.partitions)

    def ends(self, count: int) -> dict[int, int]:
        """Return the end of each of the first `count` partitions."""
        return self._offsets(dict.fromkeys(range(count), _LATEST))

    def refresh(self, count: int, retention: Retention = Retention(), event_bytes: float = 0.0) -> list[PartitionLag]:  # noqa: B008 (immutable)
        """Return the lag of those of the first `count` partitions that Kafka can tell of now.

        `event_bytes` is an event's mean size in the log: what `retention.bytes` is measured with.
        """
        asked = [TopicPartition(self._topic, partition) for partition in range(count)]
        answers = self._ask(lambda: self._consumer.committed(asked, timeout=_TIMEOUT))
        ends, now = self.ends(count), time.time()
        if time.monotonic() - self._logs_seen > _LOGS_EVERY or ends.keys() - self._starts.keys():
            self._topic_id = self._ask(lambda: topic_ids(self._admin, [self._topic]))[self._topic]
            self._starts = self._offsets(dict.fromkeys(range(count), _EARLIEST))
            self._logs_seen = time.monotonic()
        committed = {
            item.partition: None if item.offset < 0 or of_another_topic(item.metadata, self._topic_id) else item.offset
            for item in self._good(answers)
        }
        lags = [
            PartitionLag(partition, self._starts[partition], ends[partition], offset, 0, None)
            for partition, offset in sorted(committed.items())
            if partition in ends and partition in self._starts
        ]
        for lag in lags:
            self._ends.setdefault(lag.partition, Ends()).sample(now, lag.end)
        self._date(lags, now)
        return [self._dated(lag, now, retention, event_bytes) for lag in lags]

    def retention(self) -> Retention:
        """Return what the topic's configuration says; nothing where this user may not read it."""
        resource = ConfigResource(ResourceType.TOPIC, self._topic)
        try:
            config = answer(self._admin.describe_configs([resource], request_timeout=ANSWER_S)[resource])
        except KafkaException as error:
            log.info("no retention headroom: cannot read the topic's configuration: %s", error.args[0].str())
            return Retention()
        values = {name: entry.value for name, entry in config.items()}
        if "delete" not in values.get("cleanup.policy", "delete"):
            return Retention()
        age, size = float(values.get("retention.ms", -1)), float(values.get("retention.bytes", -1))
        return Retention(age / 1000 if age >= 0 else None, size if size >= 0 else None)

    def close(self) -> None:
        self._consumer.close()

    def _date(self, lags: list[PartitionLag], now: float) -> None:
        """Ask Kafka where the logs ended at past times, until the oldest unread event of each partition is dated."""
        for _ in range(_QUESTIONS):
            times = {
                lag.partition: time
                for lag in lags
                if lag.messages and (time := self._ends[lag.partition].question(lag.position, now))
            }
            if not times:
                return
            found = self._offsets({partition: int(time * 1000) for partition, time in times.items()})
            latest = {lag.partition: lag.end for lag in lags}
            for partition, end in found.items():
                # -1: nothing was written since, so the log had ended where it ends now
                self._ends[partition].learn(times[partition], end if end >= 0 else latest[partition])

    def _dated(self, lag: PartitionLag, now: float, retention: Retention, event_bytes: float) -> PartitionLag:
        ends = self._ends[lag.partition]
        seconds = ends.age(lag.position, now) if lag.messages else 0.0
        room = headroom(lag, seconds, retention, event_bytes, ends.growth(now))
        ends.forget(lag.position)
        return lag._replace(seconds=seconds, headroom=room)

    def _offsets(self, times: dict[int, int]) -> dict[int, int]:
        """Return the first offset at or after a time (ms, or a special one) by partition; -1 where there is none."""
        asked = [TopicPartition(self._topic, partition, time) for partition, time in times.items()]
        answers = self._ask(lambda: self._consumer.offsets_for_times(asked, timeout=_TIMEOUT))
        return {item.partition: item.offset for item in self._good(answers)}

    def _good(self, answers: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the answers without those in error: a partition without a leader must not hide the others."""
        good = []
        for item in answers:
            if item.error is None:
                good.append(item)
            else:
                check_rights(item.error)
                self._said = f"partition {item.partition}: {item.error.str()}"
        return good

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            answer = question()
        except KafkaException as error:
            self._consumer.poll(0)  # serves error_cb, which knows the reason
            raise self._trouble(error.args[0]) from None
        self._consumer.poll(0)
        self._refused = None
        return answer

    def _trouble(self, error: KafkaError) -> Retryable:
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
