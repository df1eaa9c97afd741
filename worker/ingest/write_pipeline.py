"""The way out of one consumer: sealed batch → intent → store and dead letters → books → commit, one batch at a time.

It never blocks: the write runs in the writer's thread, and each call does the next step that need not wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from functools import partial

from worker.config.settings import Settings
from worker.core import delivery
from worker.core.batch import Batch, DeadLetter, Key
from worker.core.counters import DELIVERY_CAP_MS, RETRY_REASONS, Slot
from worker.core.errors import Retryable, RowsRefused, SchemaChanged
from worker.core.log import fields
from worker.ingest.assignment import Assignment
from worker.ingest.topic_sinks import TopicSink, TopicSinks
from worker.ingest.writer import Writer, store, verify_topic_ids
from worker.kafka.dead_letters import DeadLetterProducer
from worker.kafka.errors import TopicNotFound
from worker.kafka.group_consumer import GroupConsumer

log = logging.getLogger(__name__)

# Payload bytes that wait in one process, over all its partitions.
_MAX_WAITING_BYTES = 64 << 20
_IDENTIFY_S = 5.0


class WritePipeline:
    """Owns the writer, and which batch is on its way; alone in committing."""

    def __init__(
        self,
        settings: Settings,
        slot: Slot,
        group_consumer: GroupConsumer,
        assignment: Assignment,
        topic_sinks: TopicSinks,
        *,
        dead_letters: DeadLetterProducer,
        writer: Writer,
    ) -> None:
        self._slot = slot
        self._group_consumer = group_consumer
        self._assignment = assignment
        self._partitions = assignment.partitions
        self._topic_sinks = topic_sinks
        self._dead_letters = dead_letters
        self._writer = writer
        self._writing: Key | None = None  # whose first sealed batch is on its way into the store
        self._linger_s = settings.linger_ms / 1000
        self._opening: TopicSink | None = None  # whose sink is being opened
        self.wanted: set[str] = set()  # topics whose sinks are to be opened
        self._verify_topic_ids_at = 0.0

    def work(self, timeout: float, *, flush: bool = False) -> None:
        """Hear the writer for up to `timeout` seconds; then do the next step, if there is one that need not wait.

        It takes the time also where there is nothing to hear: who waits for a store calls it again and again. In a
        hurry, batches are sealed at any size and age.
        """
        try:
            if self._writer.poll(timeout):
                self._done()
            if not self._writer.busy and not (self.wanted and self._open_next()) and self._writer.backoff.over:
                self._next_step(flush)
        except TopicNotFound as gone:
            log.warning("%s: what was read of it is given up", gone)
            self._writing = None
            self._assignment.abandon(gone.topic)
        except Retryable as error:
            self._wait_for(error)
        except RowsRefused as refusal:
            self._refused(refusal)
        except SchemaChanged as change:
            log.warning("%s", change)
            self._reshape()
        self._writer.rest(timeout)

    @property
    def idle(self) -> bool:
        """Whether no batch is on its way."""
        return self._writing is None

    @property
    def backpressured(self) -> bool:
        """Whether reading on would only pile up: a full batch waits behind a write, or the bytes are used up."""
        if self._writing is None:
            return False
        sealed = sum(len(one.sealed) for one in self._partitions.values())
        return sealed > 1 or self._assignment.waiting > _MAX_WAITING_BYTES

    def settle(self, keys: Collection[Key], deadline: float, poll_s: float) -> None:
        """Wait for the write that is under way, until `deadline` (time.monotonic()); commit what `keys` have done."""
        try:
            while self._writer.busy and time.monotonic() < deadline:
                self._slot.beat()
                if self._writer.poll(poll_s):
                    self._done()
            self._commit_idle(key for key, one in self._partitions.items() if key in keys and one.uncommitted)
        except (
            Retryable,
            RowsRefused,
            SchemaChanged,
        ) as error:  # the next owner finds the intent, and goes on from there
            self._not_opened()
            log.warning("not everything could be settled at a rebalance: %s", error)

    def give_up(self, keys: Collection[Key]) -> None:
        """Hear no more of a write for any of these."""
        if self._writing in keys:
            if self._opening is None:
                self._writer.drop()
            self._writing = None

    def close(self) -> None:
        """Drop the connections."""
        self._topic_sinks.close()
        self._writer.close()

    def _open_next(self) -> bool:
        """Begin to open a sink that is wanted, if it is time to try; False where there is none."""
        for topic in self.wanted:
            topic_sink = self._topic_sinks.of(topic)
            if topic_sink.open or topic_sink.backoff.over:
                self.wanted.discard(topic)
                if not topic_sink.open:
                    self._opening = topic_sink
                    self._writer.start(topic_sink.sink.open)
                return not topic_sink.open
        return False

    def _not_opened(self) -> bool:
        """Try later to open the sink that was being opened; False where there was none."""
        topic_sink, self._opening = self._opening, None
        if topic_sink is not None:
            topic_sink.backoff.failed()
            self.wanted.add(topic_sink.topic)
        return topic_sink is not None

    def _done(self) -> None:
        """Book what the writer has done."""
        self._slot.set("sink_up", 1)
        if self._opening is not None:
            self._opening.open = True
            self._opening = None
        elif self._writing is not None:
            self._stored(self._writing)

    def _next_step(self, flush: bool) -> None:
        """Go on with the batch that is on its way, or take the oldest that is full or old enough, or commit."""
        if self._writing is None:
            self._writing = self._choose(flush)
        if self._writing is None:
            self._commit_idle(key for key, one in self._partitions.items() if one.uncommitted and not one.open)
            if self._partitions and time.monotonic() > self._verify_topic_ids_at:
                self._verify_topic_ids_at = time.monotonic() + _IDENTIFY_S
                known = {(key[0], one.ledger.topic_id) for key, one in self._partitions.items()}
                self._writer.start(partial(verify_topic_ids, known, self._group_consumer.topic_id))
            return
        one, sink = self._partitions[self._writing], self._topic_sinks.of(self._writing[0]).sink
        batch = one.sealed[0]
        if batch.written and batch.dead_letters_written:  # and its commit failed
            self._stored(self._writing)
            return
        if sink.exactly_once and batch.rows and not batch.written:
            # Before each try: a member that was expelled meanwhile is refused here, and does not insert.
            batch.intent_time_ms = batch.intent_time_ms or time.time_ns() // 1_000_000
            self._commit([(*self._writing, batch.start, delivery.intent_of(batch).encode())])
            one.progress.committed = batch.start
        job = partial(store, batch, sink, self._dead_letters, self._slot, self._group_consumer.topic_id)
        self._writer.start(job)

    def _choose(self, flush: bool) -> Key | None:
        """Seal batches that are old enough, and return the partition of the oldest sealed one."""
        now = time.monotonic()
        flush = flush or self._assignment.waiting > _MAX_WAITING_BYTES
        for one in self._partitions.values():
            since = one.growing_since
            if since is not None and (flush or now - since >= self._linger_s):
                one.seal()
        due = [(one.sealed[0].opened, key) for key, one in self._partitions.items() if one.sealed]
        if not due:
            return None
        _, key = min(due)
        self._topic_sinks.of(key[0]).bad_ratio.watch(self._partitions[key].sealed[0])
        return key

    def _stored(self, key: Key) -> None:
        """Book the batch that store and dead-letter topic have acknowledged.

        Its commit is the next batch's intent, or is made once nothing more comes; without intents it is made here.
        """
        one = self._partitions[key]
        batch = one.sealed[0]
        if not (self._topic_sinks.of(key[0]).sink.exactly_once and batch.rows):
            self._commit([(*key, batch.end, delivery.plain(batch.topic_id))])
            one.progress.committed = batch.end
        self._writer.backoff.reset()
        self._writing = None
        one.settle()
        self._record(batch)
        if one.progress.limit is not None and one.sealed:
            self._assignment.reread(key)  # what follows was cut into batches as small as this one

    def _commit(self, offsets: list[tuple[str, int, int, str]]) -> None:
        began = time.perf_counter_ns()
        self._group_consumer.commit(offsets)
        self._slot.observe("stage_commit", time.perf_counter_ns() - began)

    def _commit_idle(self, keys: Iterable[Key]) -> None:
        """Commit what is accounted for, without an intent."""
        partitions = {key: self._partitions[key] for key in keys}
        if partitions:
            plain = delivery.plain
            self._commit([(*key, one.progress.acked, plain(one.ledger.topic_id)) for key, one in partitions.items()])
        for one in partitions.values():
            one.progress.committed = one.progress.acked

    def _record(self, batch: Batch) -> None:
        """Count a batch that is accounted for."""
        now_ms = time.time_ns() // 1_000_000
        if batch.rows:
            self._slot.observe("batch_rows", batch.rows)
        for timestamp_ms, rows in batch.arrivals:
            self._slot.observe("delivery", min(max(0, now_ms - timestamp_ms), DELIVERY_CAP_MS), rows)
        for dead_letter in batch.dead_letters:
            self._slot.add(f"rejected_{dead_letter.reason}")
        if batch.dead_letters:
            first = batch.dead_letters[0]
            log.warning(
                "events that cannot be written went to %s",
                self._dead_letters.topic_for(batch.topic),
                extra=fields(topic=batch.topic, partition=batch.partition, offset=first.offset, reason=first.reason),
            )

    # trouble

    def _wait_for(self, error: Retryable) -> None:
        """Try again later, and say what is being waited for."""
        if not self._not_opened():
            self._writer.backoff.failed()
        self._slot.add(f"retries_{error.reason if error.reason in RETRY_REASONS else 'other'}")
        self._slot.set_error(str(error))
        if error.of_store:
            self._slot.set("sink_up", 0)
        log.warning("waiting, will try again: %s", error)

    def _refused(self, refusal: RowsRefused) -> None:
        """Find the rows that the store refuses by halves; the one that is left alone becomes a dead letter."""
        assert self._writing is not None
        key, self._writing = self._writing, None
        one = self._partitions[key]
        batch = one.sealed[0]
        if one.progress.refused(batch) and batch.payloads:
            log.warning("%s", refusal, extra=fields(topic=key[0], partition=key[1], offset=batch.start))
            batch.dead_letters.append(DeadLetter(batch.offsets[0][0], batch.payloads[0], "store_refused", ""))
            batch.rows, batch.in_doubt = 0, False
        else:
            self._assignment.reread(key)

    def _reshape(self) -> None:
        """Form what was read of the topic again, in the shape that its table has now."""
        assert self._writing is not None
        topic, self._writing = self._writing[0], None
        for key, one in self._partitions.items():
            if key[0] == topic:
                one.fields = self._topic_sinks.of(topic).sink.fields
                if one.sealed and one.sealed[0].in_doubt:
                    one.progress.replay(one.sealed[0])
                self._assignment.reread(key)
