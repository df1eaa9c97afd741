"""The partitions that a consumer owns, and the reading of them: what is fetched, paused, or read again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence

from worker.core.counters import Slot
from worker.core.delivery import PartitionState, Resume
from worker.core.errors import Retryable
from worker.core.records import Decode, Field, Key, RecordBatch
from worker.core.schemas import SchemaNeeded
from worker.ingest.partition import Partition
from worker.ingest.writer import TopicRecreated
from worker.kafka.group_consumer import GroupConsumer
from worker.kafka.readers import ReadError

log = logging.getLogger(__name__)


class Assignment:
    """Owns the partitions, and is alone in telling the group consumer to pause, resume or seek."""

    def __init__(self, group_consumer: GroupConsumer, slot: Slot, batch_rows: int, decode: Decode) -> None:
        self._partitions: dict[Key, Partition] = {}
        self._started: list[Partition] = []  # of these, in the same order: every turn looks at them several times
        self._paused_topics: set[str] = set()
        self._group_consumer = group_consumer
        self._slot = slot
        self._batch_rows = batch_rows
        self._decode = decode

    def __iter__(self) -> Iterator[Partition]:
        """Iterate over the partitions that have something to account for."""
        return iter(self._started)

    def get(self, key: Key) -> Partition | None:
        """Return a partition that is owned and has started."""
        partition = self._partitions.get(key)
        return partition if partition and partition.has_started else None

    # ownership

    def add(self, keys: Iterable[Key]) -> None:
        """Own these partitions from now on; they wait for their sinks."""
        for key in keys:
            self._partitions[key] = Partition(key, self._batch_rows, self._decode)
        self._update()

    def start(self, key: Key, at: Resume, topic_id: str, fields: Sequence[Field], accounted_offset: int) -> None:
        """Begin to consume a partition."""
        ledger = self._slot.ledger(key[0], topic_id, key[1])
        self._partitions[key].start(ledger, at, fields, accounted_offset)
        self._update()

    def waiting(self) -> list[Key]:
        """Return the partitions that wait for their sinks, their topic or the group's offsets."""
        state = PartitionState.WAITING_FOR_SINK
        return [key for key, partition in self._partitions.items() if partition.state is state]

    def release(self, keys: Iterable[Key]) -> None:
        """Own these no longer. Whoever owns them next reads what is not accounted for."""
        for key in keys:
            if partition := self._partitions.pop(key, None):
                partition.release()
        self._update()

    def defer_topic(self, topic: str) -> None:
        """Discard what was read of a topic that is gone. Its partitions start anew if it comes back."""
        keys = [partition.key for partition in self if partition.topic == topic]
        self.resume_all()
        self.release(keys)
        self.add(keys)

    def keys(self) -> list[Key]:
        return list(self._partitions)

    def topics(self) -> set[str]:
        """Return the topics of the partitions that have something to account for."""
        return {partition.topic for partition in self}

    @property
    def pending_bytes(self) -> int:
        return sum(partition.pending_bytes for partition in self)

    @property
    def is_settled(self) -> bool:
        return all(partition.is_settled for partition in self)

    # reading

    def take(self, record_batches: Sequence[RecordBatch]) -> None:
        """Decode what was read into the partitions' batches."""
        for records in record_batches:
            if partition := self.get((records.topic, records.partition)):
                partition.take(records)
                if partition.is_at_end:
                    self._group_consumer.pause([partition.key])

    def advance_to(self, ends: Sequence[tuple[str, int, int]]) -> None:
        """Account for the ends of the log that were reached: topic, partition, offset."""
        for topic, number, offset in ends:
            if partition := self.get((topic, number)):
                partition.advance_to(offset)

    def needed_schemas(self) -> dict[str, SchemaNeeded]:
        """Return the topics that need a schema before they can be decoded further, each with one that it needs."""
        return {partition.topic: partition.needed for partition in self if partition.needed}

    def decode_again(self) -> None:
        """Read these partitions on from where a schema was missing."""
        for partition in self:
            if partition.needed:
                partition.decode_again()
                self._group_consumer.seek(*partition.key, partition.position)

    @property
    def paused_topics(self) -> set[str]:
        return self._paused_topics

    def pause_topics(self, topics: set[str]) -> None:
        """Read nothing of these topics, and go on reading all others."""
        for changed, call in (
            (topics - self._paused_topics, self._group_consumer.pause),
            (self._paused_topics - topics, self._group_consumer.resume),
        ):
            if keys := [partition.key for partition in self if partition.topic in changed and partition.can_be_read]:
                call(keys)
        self._paused_topics = topics
        self._slot.set("paused", int(bool(topics)))

    def pause_all(self) -> None:
        self.pause_topics({topic for topic, _ in self._partitions})

    def resume_all(self) -> None:
        if self._paused_topics:
            self.pause_topics(set())

    def stop(self, key: Key) -> None:
        """Read no more of a partition until it is assigned anew; the others continue."""
        self._partitions[key].stop()
        if self._partitions[key].has_started:
            self._group_consumer.pause([key])

    def reread(self, partition: Partition) -> None:
        """Read everything of a partition again that it has discarded."""
        self.resume_all()
        self._seek(partition)

    def discard_backlog(self, topics: Collection[str]) -> None:
        """Free the memory of these topics: of each partition only the first batch, which may be in doubt, stays."""
        for partition in self:
            if partition.topic in topics and partition.discard_backlog():
                self._seek(partition)

    def discard_unfinished_replays(self) -> None:
        """Drop blocks that are to end where an intent says, which will not be read: the next owner finds the intent."""
        for partition in self:
            partition.discard_unfinished_replay()

    def confirm_read_error(self, error: ReadError) -> bool:
        """Whether a partition really cannot be read on. Raises TopicRecreated where the topic is another one by now.

        The first error at a position may come from a fetch before the assignment, which librdkafka had queued; and it
        reports each error once, then fetches no more. So the position is read again before an error is believed.
        """
        partition = self.get((error.topic, error.partition))
        if partition is None or not partition.can_be_read:  # it was revoked meanwhile
            return False
        try:
            if self._group_consumer.topic_id(error.topic) != partition.ledger.topic_id:
                raise TopicRecreated(error.topic)
        except Retryable as unknown:
            log.warning("%s", unknown)
        else:
            if partition.confirm_read_error():
                return True
        self._group_consumer.seek(*partition.key, partition.position)
        return False

    def _seek(self, partition: Partition) -> None:
        """Read on at the partition's position, also where it was paused at its end."""
        self._group_consumer.seek(*partition.key, partition.position)
        if partition.topic not in self._paused_topics:
            self._group_consumer.resume([partition.key])

    def _update(self) -> None:
        self._started = [partition for partition in self._partitions.values() if partition.has_started]
        self._slot.set("assigned", len(self._started))
