"""Rebalance callbacks: assignment, revocation, loss, and data removed by retention."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from worker.config.settings import Settings
from worker.core import delivery
from worker.core.counters import LedgerKey, Slot, Stats
from worker.core.delivery import Committed, Intent
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.core.log import fields
from worker.core.records import Key
from worker.ingest.assignment import Assignment
from worker.ingest.topic_sinks import TopicSinks
from worker.ingest.write_pipeline import WritePipeline
from worker.kafka.group_consumer import GroupConsumer
from worker.kafka.readers import ReadError
from worker.sinks import Sink

log = logging.getLogger(__name__)

_POLL_S = 0.1
_RETRY_S = 1.0


class _Start(NamedTuple):
    """Where a partition continues."""

    at: delivery.Resume
    topic_id: str
    accounted_offset: int  # below it this supervisor has counted all events


class RebalanceHandler:
    """Answers the group's callbacks, which run in the thread that reads: see `GroupConsumer.join`."""

    def __init__(
        self,
        settings: Settings,
        stats: Stats,
        slot: Slot,
        group_consumer: GroupConsumer,
        topic_sinks: TopicSinks,
        assignment: Assignment,
        pipeline: WritePipeline,
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._slot = slot
        self._group_consumer = group_consumer
        self._topic_sinks = topic_sinks
        self._assignment = assignment
        self._pipeline = pipeline
        self._start_deferred_at = 0.0
        self._compared: set[Sink] = set()  # with the group's offsets

    def on_assign(self, keys: list[Key]) -> dict[Key, int | None]:
        """Start the partitions whose sinks are open; `start_deferred_partitions` starts the others later."""
        self._assignment.resume_all()  # what it had before continues with the rest
        self._assignment.add(keys)
        starts = self._find_starts([key for key in keys if self._topic_sinks.get(key[0]).is_open])
        for key, start in starts.items():
            self._start(key, start)
        self._want_sinks()
        self._slot.add("rebalances")
        return {
            key: start.at.position if (start := starts.get(key)) and not start.at.is_at_end else None for key in keys
        }

    def start_deferred_partitions(self) -> None:
        """Start partitions that wait, as far as their sinks are open by now and their topics exist."""
        keys = self._assignment.waiting()
        if not keys or time.monotonic() < self._start_deferred_at:
            return
        self._want_sinks()
        keys = [key for key in keys if self._topic_sinks.get(key[0]).is_open]
        for key, start in self._find_starts(keys).items():
            if start is None or start.at.is_at_end:
                self._start(key, start)
            elif self._group_consumer.begin(*key, start.at.position):
                self._assignment.resume_all()
                self._start(key, start)
        if keys and not set(keys).isdisjoint(self._assignment.waiting()):
            self._start_deferred_at = time.monotonic() + _RETRY_S

    def on_revoke(self, keys: list[Key]) -> None:
        """Settle the write that is under way, commit what is acknowledged, and release the partitions."""
        self._pipeline.settle(keys, time.monotonic() + self._settings.drain_timeout, _POLL_S)
        self.release(keys)

    def on_lost(self, keys: list[Key]) -> None:
        """Another member may own these by now: commit nothing."""
        log.warning("partitions lost: this consumer was expelled from the group", extra=fields(partitions=len(keys)))
        self.release(keys)

    def release(self, keys: Sequence[Key]) -> None:
        """Own these no longer; the next owner reads what was not acknowledged."""
        self._pipeline.abandon(keys)
        self._assignment.release(keys)
        self._want_sinks()

    def stop_unreadable(self, error: ReadError) -> None:
        """Read no more of a partition that cannot be read at its position."""
        key = (error.topic, error.partition)
        partition = self._assignment.get(key)
        assert partition is not None
        log_start = self._group_consumer.log_start(*key) if error.out_of_range else None
        if log_start is not None and log_start > partition.position:
            self._stop_after_loss(key, f"offset {partition.position} is next but the log begins at {log_start}")
            return
        self._stop(
            key,
            f"it cannot be read at offset {partition.position}: {error.text}. Nothing was skipped or lost, so do not "
            "reset offsets: that would read events twice. Fix the cause and start the worker again. A batch that is "
            "larger than the client takes needs a larger -X receive.message.max.bytes; an offset beyond the log's end "
            "means that the log was truncated",
        )

    def _stop_after_loss(self, key: Key, text: str) -> None:
        """Read no more of a partition whose next events retention has removed."""
        self._stop(
            key,
            f"{text}. Events were removed before they were read, and are lost. To go on with what is left, stop the "
            f"workers and run kafka-consumer-groups --reset-offsets --group {self._settings.group_id} "
            f"--topic {key[0]}:{key[1]} --to-earliest --execute; this reads no event twice, because the log begins "
            "after the committed offset",
        )

    def _stop(self, key: Key, text: str) -> None:
        """Read no more of a partition; the others continue."""
        message = f"{key[0]}[{key[1]}] is stopped: {text}"
        self._slot.set_error(message)
        if self._settings.is_bounded:
            raise Fatal(message, code=ExitCode.HALT)
        log.error("%s", message)
        self._assignment.stop(key)

    def _want_sinks(self) -> None:
        """Have the sinks of the partitions opened, and no others."""
        keys = self._assignment.keys()
        self._topic_sinks.want_only({topic for topic, _ in keys})

    def _find_starts(self, keys: Collection[Key]) -> dict[Key, _Start | None]:
        """Find where partitions continue. None stands for a partition that is stopped.

        Partitions of deleted topics are left out. So are those for which Kafka or the store does not answer: they stay
        assigned and paused, and are tried again.
        """
        starts: dict[Key, _Start | None] = {}
        try:
            if keys:
                counted = self._stats.accounted()
                for key, committed in self._group_consumer.committed(list(keys)).items():
                    starts[key] = self._find_start(key, committed, counted)
        except Retryable as error:
            self._pipeline.report(error)
        return starts

    def _find_start(self, key: Key, committed: Committed, counted: Mapping[LedgerKey, int]) -> _Start | None:
        """Find where a partition continues: at the offset, or at the unfinished range, that the group's commit names.

        `counted` has the offsets that this supervisor has accounted for. None: the partition is stopped.
        """
        topic, partition = key
        sink = self._topic_sinks.get(topic).sink
        accounted_offset = counted.get((topic, committed.topic_id, partition), 0)
        if committed.offset is None and not any(
            name == topic and id_ != committed.topic_id for name, id_, _ in counted
        ):
            self._refuse_to_start_over(key, committed, committed.log_start, "has no committed offset")
        elif kind := delivery.parse_start_marker(committed.metadata):
            self._check_start(key, committed, kind)
        try:
            at = delivery.resume(committed, accounted_offset, sink.exactly_once)
        except delivery.DataLost as loss:
            stored_to = self._find_stored_end(key, loss.intent, committed.log_start)
            if stored_to is None:
                self._stop_after_loss(key, str(loss))
                return None
            # The rest is read again for its dead letters; its rows are stored under the token of the whole range.
            end = None if committed.end is None else max(committed.end, stored_to)
            at = delivery.Resume(committed.log_start, stored_to, end=end, recut_end=stored_to)
        self._warn_of_empty_store(key, committed)
        return _Start(at, committed.topic_id, accounted_offset)

    def _warn_of_empty_store(self, key: Key, committed: Committed) -> None:
        """Say that the group has read what the store does not have; once for each store."""
        sink = self._topic_sinks.get(key[0]).sink
        if sink in self._compared or committed.offset is None or committed.offset <= committed.log_start:
            return
        if delivery.parse_start_marker(committed.metadata):  # it has read nothing
            return
        self._compared.add(sink)
        with suppress(Retryable):  # only a warning is lost
            if not sink.is_empty():
                return
            log.warning(
                "group %s has read %s[%d] up to offset %d, but the store is empty. If the events before it "
                "are in another store, all is well; another --group-id reads them again",
                self._settings.group_id,
                *key,
                committed.offset,
            )

    def _check_start(self, key: Key, committed: Committed, kind: str) -> None:
        """Raise Fatal where the store has events that the group would store again after `--start`, or leave a gap to.

        A time stands for the same offset however often it is resolved. `latest` does not: if the group's offsets have
        expired, what came since the last row would be skipped.
        """
        assert committed.offset is not None
        begin = committed.log_start if kind == "latest" else max(committed.offset, committed.log_start)
        if not delivery.of_another_topic(committed.metadata, committed.topic_id):
            self._refuse_to_start_over(key, committed, begin, f"begins at offset {committed.offset} (--start)")

    def _refuse_to_start_over(self, key: Key, committed: Committed, begin: int, state: str) -> None:
        """Raise Fatal where the store has events from `begin` on of a partition that the group has not read.

        An intent is committed before the first insert. So the commit has expired, or another group wrote the rows. Rows
        beyond the log's end are of an earlier topic of the same name.
        """
        topic, partition = key
        last = self._topic_sinks.get(topic).sink.last_stored_offset(topic, partition, begin, committed.end)
        if last is not None and last < committed.log_end:
            group = self._settings.group_id
            reset = f"kafka-consumer-groups --reset-offsets --group {group} --topic {topic}:{partition}"
            raise Fatal(
                f"group {group} {state} for {topic}[{partition}], but the table has its events up to offset {last}: "
                "to start there would store events twice, or skip some. Kafka deletes the offsets of a group without "
                "members after offsets.retention.minutes (7 days). If another group wrote them, use its --group-id, or "
                f"another --table. Else, to continue after these: {reset} --to-offset {last + 1} --execute, then "
                "worker verify, which finds what a kill in the last block may have left out. Only if the topic was "
                "deleted and created again does the log have other events: then --to-earliest"
            )

    def _start(self, key: Key, start: _Start | None) -> None:
        if start is None:  # it is stopped
            return
        sink = self._topic_sinks.get(key[0]).sink
        self._assignment.start(key, start.at, start.topic_id, sink.fields, start.accounted_offset)
        log.info("took a partition", extra=fields(topic=key[0], partition=key[1], offset=start.at.position))

    def _find_stored_end(self, key: Key, intent: Intent | None, log_start: int) -> int | None:
        """Return where an intent ends that covers all that retention has removed, and whose rows are in the store."""
        sink = self._topic_sinks.get(key[0]).sink
        if intent is None or not sink.exactly_once or log_start > intent.end:
            return None
        return intent.end if sink.count_stored_rows(*key, intent.start, intent.end) == intent.rows else None
