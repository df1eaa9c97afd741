"""The partitions that a consumer has, and the reading of them: what is fetched, held back, or read again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from worker.core.batch import Key, RecordBatch
from worker.core.counters import Slot
from worker.core.errors import Retryable
from worker.ingest.partition import Partition
from worker.ingest.writer import TopicRecreated
from worker.kafka.group_consumer import GroupConsumer, ReadError

log = logging.getLogger(__name__)


class Assignment:
    """Owns the partitions, and is alone in telling the source to pause, resume or seek."""

    def __init__(self, group_consumer: GroupConsumer, slot: Slot) -> None:
        self.partitions: dict[Key, Partition] = {}
        self.awaiting: set[Key] = set()  # assigned, but not begun: their sink is not open yet, or their topic is gone
        self.paused = False  # all of it, because batches pile up
        self._group_consumer = group_consumer
        self._slot = slot
        self._stopped: set[Key] = set()
        self._doubted: dict[Key, int] = {}  # positions at which a read has failed once

    def add(self, key: Key, partition: Partition) -> None:
        """Own a partition from now on."""
        partition.ledger.set("assigned", 1)
        self.awaiting.discard(key)
        self.partitions[key] = partition
        self._slot.set("assigned", len(self.partitions))

    def remove(self, keys: Sequence[Key]) -> None:
        """Own these no longer: what of them is not settled is given up."""
        self.awaiting.difference_update(keys)
        for key in keys:
            self._stopped.discard(key)
            self._doubted.pop(key, None)
            if one := self.partitions.pop(key, None):
                one.drop()
                one.ledger.set("assigned", 0)
        self._slot.set("assigned", len(self.partitions))

    def abandon(self, topic: str) -> None:
        """Give up what was read of a topic that is gone; its partitions begin anew should it come back."""
        keys = [key for key in self.partitions if key[0] == topic]
        self.unpause()
        self.remove(keys)
        self.awaiting.update(keys)

    @property
    def waiting(self) -> int:
        """Bytes of the payloads that were read and are not settled."""
        return sum(one.waiting for one in self.partitions.values())

    @property
    def settled(self) -> bool:
        """Whether everything that was read is accounted for, and the group knows."""
        return all(one.settled for one in self.partitions.values())

    def take(self, record_batches: Sequence[RecordBatch]) -> None:
        """Decode what was read into the partitions' batches."""
        for records in record_batches:
            if partition := self.partitions.get((records.topic, records.partition)):
                partition.take(records)

    def advance_to(self, ends: Sequence[tuple[str, int, int]]) -> None:
        """Account for the ends of the log that were reached: topic, partition, offset."""
        for topic, number, offset in ends:
            if partition := self.partitions.get((topic, number)):
                partition.advance_to(offset)

    def pause(self, paused: bool) -> None:
        """Hold all reading back, or go on with it."""
        keys = [key for key in self.partitions if key not in self._stopped]
        if keys:
            (self._group_consumer.pause if paused else self._group_consumer.resume)(keys)
        self.paused = paused
        self._slot.set("paused", int(paused))

    def unpause(self) -> None:
        """Go on with reading, if it is held back."""
        if self.paused:
            self.pause(False)

    def stop(self, key: Key) -> None:
        """Read no more of a partition until it is assigned anew; the others go on."""
        self._stopped.add(key)
        if key in self.partitions:
            self._group_consumer.pause([key])

    def reread(self, key: Key) -> None:
        """Read everything of a partition again that is not accounted for."""
        self.unpause()
        one = self.partitions[key]
        one.drop()
        self._group_consumer.seek(*key, one.progress.position)

    def drop_resuming(self) -> None:
        """Give blocks up that are to end where an intent says, for that will not be read: the next owner finds it."""
        for one in self.partitions.values():
            if one.open and one.progress.resuming:
                one.drop()

    def confirm_read_error(self, error: ReadError) -> bool:
        """Whether a partition cannot be read on. Raises Recreated where the topic is another one by now.

        The first error at a position may be of a fetch before the assignment, which librdkafka had queued; and it says
        each error once, then fetches no more. So the position is asked for again before an error is believed.
        """
        key = (error.topic, error.partition)
        one = self.partitions.get(key)
        if one is None:  # it was taken from this consumer meanwhile
            return False
        try:
            if self._group_consumer.topic_id(error.topic) != one.ledger.topic_id:
                raise TopicRecreated(error.topic)
        except Retryable as unknown:
            log.warning("%s", unknown)
        else:
            if self._doubted.get(key) == one.progress.position:
                return True
            self._doubted[key] = one.progress.position
        self._group_consumer.seek(*key, one.progress.position)
        return False
