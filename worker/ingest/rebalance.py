"""What the consumer group gives and takes: take-over of partitions, orderly and disorderly loss, a log that is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from worker.config.settings import Settings
from worker.core import delivery
from worker.core.batch import Key
from worker.core.counters import Slot, Stats
from worker.core.errors import ExitCode, Fatal
from worker.core.log import fields
from worker.ingest.assignment import Assignment
from worker.ingest.partition import Partition
from worker.ingest.topic_sinks import TopicSinks
from worker.ingest.write_pipeline import WritePipeline
from worker.kafka.group_consumer import GroupConsumer

log = logging.getLogger(__name__)

_POLL_S = 0.1
_RETRY_S = 1.0

_Start = tuple[delivery.Resume, str, int]  # where, the topic's id, the offset below which all was counted before


class RebalanceHandler:
    """Answers the group's callbacks, which run in the thread that reads: see `Source.subscribe`."""

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

    def on_assign(self, keys: list[Key]) -> dict[Key, int | None]:
        """Take over what can be taken over at once; the rest is begun by `pursue`."""
        self._assignment.unpause()  # what it had before goes on with the rest
        starts = self._starts([key for key in keys if self._topic_sinks.of(key[0]).open])
        for key, start in starts.items():
            if start is not None:
                self._take(key, *start)
        later = [key for key in keys if key not in starts]
        self._assignment.awaiting.update(later)
        self._pipeline.wanted.update(topic for topic, _ in later)
        self._slot.add("rebalances")
        return {key: start[0].position if (start := starts.get(key)) else None for key in keys}

    def start_deferred_partitions(self) -> None:
        """Begin with partitions that wait, as far as their sinks are open by now and their topics there."""
        if not self._assignment.awaiting or time.monotonic() < self._start_deferred_at:
            return
        keys = [key for key in self._assignment.awaiting if self._topic_sinks.of(key[0]).open]
        for key, start in self._starts(keys).items():
            if start is None:
                self._assignment.awaiting.discard(key)
            elif self._group_consumer.begin(*key, start[0].position):
                self._assignment.unpause()
                self._take(key, *start)
        if keys and not self._assignment.awaiting.isdisjoint(keys):
            self._start_deferred_at = time.monotonic() + _RETRY_S

    def _starts(self, keys: list[Key]) -> dict[Key, _Start | None]:
        """Say where partitions go on: at the offset, or at the unfinished range, that the group's commit names.

        None stands for one that is stopped; those of topics that are gone are not among the answers.
        """
        if not keys:
            return {}
        counted = self._stats.accounted()
        starts: dict[Key, _Start | None] = {}
        for key, known in self._group_consumer.committed(keys).items():
            accounted_offset = counted.get((key[0], known.topic_id, key[1]), 0)
            exactly_once = self._topic_sinks.of(key[0]).sink.exactly_once
            try:
                start = delivery.resume(
                    known.offset, known.metadata, known.topic_id, known.log_start, accounted_offset, exactly_once
                )
            except delivery.DataLost as loss:
                stored_to = self._find_stored_end(key, loss)
                if stored_to is None:
                    self.stop(key, str(loss))
                    starts[key] = None
                    continue
                start = delivery.Resume(stored_to)
            starts[key] = start, known.topic_id, accounted_offset
        return starts

    def _take(self, key: Key, start: delivery.Resume, topic_id: str, accounted_offset: int) -> None:
        progress, fields_of = delivery.Progress.at(start), self._topic_sinks.of(key[0]).sink.fields
        ledger = self._slot.ledger(key[0], topic_id, key[1])
        one = Partition(ledger, progress, fields_of, self._settings.batch_rows, accounted_offset)
        self._assignment.add(key, one)
        log.info("took a partition", extra=fields(topic=key[0], partition=key[1], offset=start.position))

    def on_revoke(self, keys: list[Key]) -> None:
        """Settle the write that is under way, commit what is acknowledged, and let go of the rest."""
        self._pipeline.settle(keys, time.monotonic() + self._settings.drain_timeout, _POLL_S)
        self.release(keys)

    def on_lost(self, keys: list[Key]) -> None:
        """Another member may own these by now: commit nothing."""
        log.warning("partitions lost: this consumer was expelled from the group", extra=fields(partitions=len(keys)))
        self.release(keys)

    def release(self, keys: Sequence[Key]) -> None:
        """Own these no longer; the next owner reads what was not settled."""
        self._pipeline.give_up(keys)
        self._assignment.remove(keys)
        self._pipeline.wanted.intersection_update({topic for topic, _ in self._assignment.awaiting})

    def stop(self, key: Key, text: str) -> None:
        """Read no more of a partition that would lose events by going on; the others go on."""
        message = (
            f"{key[0]}[{key[1]}] is stopped: {text}. Events were removed before they were read. To go on with what is "
            f"left, stop the workers and run kafka-consumer-groups --reset-offsets --group {self._settings.group_id} "
            f"--topic {key[0]}:{key[1]} --to-earliest --execute"
        )
        self._slot.set_error(message)
        if self._settings.until_end:
            raise Fatal(message, code=ExitCode.HALT)
        log.error("%s", message)
        self._assignment.stop(key)

    def _find_stored_end(self, key: Key, loss: delivery.DataLost) -> int | None:
        """Return where an intent ends that covers all that retention has removed, and whose rows are in the store."""
        intent = loss.intent
        sink = self._topic_sinks.of(key[0]).sink
        if intent is None or not sink.exactly_once or loss.log_start > intent.end:
            return None
        return intent.end if sink.count_stored_rows(*key, intent.start, intent.end) == intent.rows else None
