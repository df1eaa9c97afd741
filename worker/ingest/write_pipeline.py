"""From a sealed batch to its commit: intent → store and dead letters → ledger → commit, one batch at a time.

It never blocks: the write runs in the writer's thread, and each call does the next step that need not wait. A topic
whose store or dead-letter topic fails is tried again after a pause of its own; other topics continue meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple

from worker.config.settings import Settings
from worker.core import delivery
from worker.core.batch import Batch, BatchState, WriteResult
from worker.core.counters import DELIVERY_CAP_MS, RETRY_REASONS, STORES, Ledger, Slot
from worker.core.errors import BlockTooLarge, Retryable, RowsRefused, SchemaChanged, WorkerError
from worker.core.log import fields
from worker.core.records import Key
from worker.ingest.assignment import Assignment
from worker.ingest.partition import Partition
from worker.ingest.topic_sinks import TopicSink, TopicSinks
from worker.ingest.writer import Backoff, Writer, load_schemas, verify_topic_ids, write_batch
from worker.kafka.dead_letters import DeadLetterProducer
from worker.kafka.errors import TopicNotFound
from worker.kafka.group_consumer import GroupConsumer

log = logging.getLogger(__name__)

# Payload bytes that wait in one process, over all its partitions.
_MAX_PENDING_BYTES = 64 << 20
_VERIFY_TOPIC_IDS_S = 5.0


class OpenSink(NamedTuple):
    """The writer opens a topic's sink."""

    topic_sink: TopicSink


class WriteBatch(NamedTuple):
    """The writer writes the first sealed batch of a partition."""

    partition: Partition


class VerifyTopicIds(NamedTuple):
    """The writer checks that no topic was deleted and created again."""


class LoadSchemas(NamedTuple):
    """The writer fetches the schemas that partitions wait for."""


Job = OpenSink | WriteBatch | VerifyTopicIds | LoadSchemas


class WritePipeline:
    """Owns the writer and its job, and is alone in committing offsets."""

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
        self._topic_sinks = topic_sinks
        self._dead_letters = dead_letters
        self._writer = writer
        self._job: Job | None = None
        self._commit_backoff = Backoff()
        self._schema_backoff = Backoff()
        self._linger_s = settings.linger_ms / 1000
        self._verify_topic_ids_at = 0.0

    def work(self, timeout: float, *, flush: bool = False) -> None:
        """Wait for the writer for up to `timeout` seconds; then do the next step, if one need not wait.

        It takes the time also where there is nothing to wait for: who waits for a store calls it again and again.
        `flush` seals batches at any size and age.
        """
        self._collect_result(timeout)
        if self._job is None and self._commit_backoff.is_over:
            try:
                self._start_next(flush)
                self._commit_backoff.reset()
            except TopicNotFound as error:
                self._defer_topic(error)
            except Retryable as error:
                self._commit_backoff.fail()
                self.report(error)
        self._writer.rest(timeout)

    @property
    def is_idle(self) -> bool:
        return not isinstance(self._job, WriteBatch)

    def backpressured_topics(self) -> set[str]:
        """Return the topics not to be read: full batches wait, the bytes are used up, or a schema is missing.

        The topics that fail are judged each by itself, all others together, for they share the writer.
        """
        without_schema = set(self._assignment.needed_schemas())
        if not any(partition.sealed for partition in self._assignment):
            return without_schema
        failing = self._topic_sinks.failing_topics()
        sealed, size = Counter[str](), Counter[str]()  # by failing topic; of all others together under ""
        for partition in self._assignment:
            group = partition.topic if partition.topic in failing else ""
            sealed[group] += len(partition.sealed)
            size[group] += partition.pending_bytes
        full = {group for group, count in sealed.items() if count > 1 or (count and size[group] > _MAX_PENDING_BYTES)}
        topics = self._assignment.topics()
        if failing and topics - failing and size.total() - size[""] > _MAX_PENDING_BYTES:
            self._assignment.discard_backlog(failing)
        return without_schema | {topic for topic in topics if (topic if topic in failing else "") in full}

    def settle(self, keys: Collection[Key], deadline: float, poll_s: float) -> None:
        """Wait for the job that is under way, until `deadline` (time.monotonic()); commit what `keys` have done."""
        while self._job is not None and time.monotonic() < deadline:
            self._slot.beat()
            self._collect_result(poll_s)
        try:
            self._commit_acknowledged(item for item in self._assignment if item.key in keys and item.has_uncommitted)
        except Retryable as error:  # the next owner finds the intent, and continues from there
            log.warning("not everything could be committed at a rebalance: %s", error)

    def abandon(self, keys: Collection[Key]) -> None:
        """Ignore the result of a write for any of these partitions."""
        if isinstance(self._job, WriteBatch) and self._job.partition.key in keys:
            self._writer.abandon()
            self._job = None

    def close(self) -> None:
        self._topic_sinks.close()
        self._writer.close()

    # the next step

    def _start_next(self, flush: bool) -> None:
        """Open a sink, continue with the oldest batch that is due, or commit. Raises Retryable of Kafka's."""
        if topic_sink := self._topic_sinks.next_to_open():
            self._job = OpenSink(topic_sink)
            self._writer.start(topic_sink.sink.open)
        elif self._schema_backoff.is_over and (needed := self._assignment.needed_schemas()):
            self._job = LoadSchemas()
            self._writer.start(partial(load_schemas, needed.values()))
        elif partition := self._choose(flush):
            self._continue(partition)
        else:
            self._commit_acknowledged(item for item in self._assignment if item.has_uncommitted and not item.open)
            self._start_verification()

    def _choose(self, flush: bool) -> Partition | None:
        """Seal batches that are old enough, and return the partition of the oldest sealed one that may be tried."""
        now = time.monotonic()
        flush = flush or self._assignment.pending_bytes > _MAX_PENDING_BYTES
        for partition in self._assignment:
            since = partition.filling_since
            if since is not None and (flush or now - since >= self._linger_s):
                partition.seal()
        due = [
            partition
            for partition in self._assignment
            if partition.sealed and self._topic_sinks.get(partition.topic).backoff.is_over
        ]
        return min(due, key=lambda partition: partition.sealed[0].opened, default=None)

    def _continue(self, partition: Partition) -> None:
        """Do the next step of a partition's first sealed batch."""
        batch, topic_sink = partition.sealed[0], self._topic_sinks.get(partition.topic)
        if batch.state is BatchState.ACKNOWLEDGED:  # and its commit failed
            self._acknowledge(partition)
            return
        if not batch.attempts:
            topic_sink.bad_ratio.watch(batch)
        if topic_sink.sink.exactly_once and batch.needs_intent:
            # Before each try: a member that was expelled meanwhile is refused here, and does not insert.
            batch.announce(time.time_ns() // 1_000_000)
            self._commit([(*partition.key, batch.start, delivery.intent_of(batch).encode())])
            partition.commit(batch.start)
        batch.begin_attempt()
        self._job = WriteBatch(partition)
        self._writer.start(
            partial(write_batch, batch, topic_sink.sink, self._dead_letters, self._slot, self._group_consumer.topic_id)
        )

    def _start_verification(self) -> None:
        topic_ids = {(partition.topic, partition.ledger.topic_id) for partition in self._assignment}
        if topic_ids and time.monotonic() > self._verify_topic_ids_at:
            self._verify_topic_ids_at = time.monotonic() + _VERIFY_TOPIC_IDS_S
            self._job = VerifyTopicIds()
            self._writer.start(partial(verify_topic_ids, topic_ids, self._group_consumer.topic_id))

    # results

    def _collect_result(self, timeout: float) -> None:
        """Wait for the job for up to `timeout` seconds, and take over its result."""
        try:
            done, result = self._writer.poll(timeout)
        except WorkerError as error:
            job, self._job = self._job, None
            self._handle_error(job, error)
            return
        if not done:
            return
        job, self._job = self._job, None
        match job:
            case OpenSink(topic_sink):
                topic_sink.open()
                self._rebuild_topic(topic_sink.topic)
            case LoadSchemas():
                self._schema_backoff.reset()
                self._assignment.decode_again()
            case WriteBatch(partition) if result is not None:
                self._take_result(partition, result)
        self._show_sinks()

    def _take_result(self, partition: Partition, result: WriteResult) -> None:
        partition.sealed[0].apply(result)
        if result.error is not None:
            self._handle_error(WriteBatch(partition), result.error)
            return
        self._topic_sinks.get(partition.topic).backoff.reset()
        try:
            self._acknowledge(partition)
        except Retryable as error:  # the batch stays acknowledged; its commit is tried again
            self._commit_backoff.fail()
            self.report(error)

    def _acknowledge(self, partition: Partition) -> None:
        """Account for a batch that the store and the dead-letter topic have acknowledged.

        Its commit is the next batch's intent, or is made once nothing more comes. Without intents it is made here.
        """
        batch = partition.sealed[0]
        if not (self._topic_sinks.get(partition.topic).sink.exactly_once and batch.rows):
            self._commit([(*partition.key, batch.end, delivery.plain(batch.topic_id))])
            partition.commit(batch.end)
        grows = partition.acknowledge()
        self._record(batch, partition.ledger)
        if grows:
            self._assignment.reread(partition)  # what follows was cut into batches as small as this one

    def _commit(self, offsets: list[tuple[str, int, int, str]]) -> None:
        began = time.perf_counter_ns()
        self._group_consumer.commit(offsets)
        self._slot.observe("stage_commit", time.perf_counter_ns() - began)

    def _commit_acknowledged(self, partitions: Iterable[Partition]) -> None:
        """Commit what is accounted for, without an intent."""
        partitions = list(partitions)
        if partitions:
            self._commit([(*item.key, item.acknowledged, delivery.plain(item.ledger.topic_id)) for item in partitions])
        for partition in partitions:
            partition.commit(partition.acknowledged)

    def _record(self, batch: Batch, ledger: Ledger) -> None:
        """Count a batch that is accounted for."""
        now_ms = time.time_ns() // 1_000_000
        if batch.rows:
            self._slot.observe("batch_rows", batch.rows)
        for timestamp_ms, rows in batch.arrivals:
            self._slot.observe("delivery", min(max(0, now_ms - timestamp_ms), DELIVERY_CAP_MS), rows)
        if batch.dead_letters:
            counts = Counter((dead_letter.reason, dead_letter.field) for dead_letter in batch.dead_letters)
            last = {(dead_letter.reason, dead_letter.field): dead_letter.offset for dead_letter in batch.dead_letters}
            for (reason, field), count in counts.items():  # the monitor shows and logs them
                self._slot.add_rejects(ledger, reason, field, count, last[reason, field])

    # errors

    def _handle_error(self, job: Job | None, error: WorkerError) -> None:
        """Decide what happens after a job failed. Raises what is neither the store's error nor the rows'."""
        match job, error:
            case _, TopicNotFound():
                self._defer_topic(error)
            case OpenSink(topic_sink), Retryable():
                topic_sink.fail(error)
                self.report(error)
            case LoadSchemas(), Retryable():
                self._schema_backoff.fail()
                self.report(error)
            case WriteBatch(partition), Retryable():
                self._topic_sinks.get(partition.topic).fail(error)
                self.report(error)
            case WriteBatch(partition), RowsRefused():
                self._bisect(partition, error)
            case WriteBatch(partition), BlockTooLarge():
                partition.shrink_batches()
                log.warning("%s; batches have half its size from now on", error)
                self._assignment.reread(partition)
            case WriteBatch(partition), SchemaChanged():
                log.warning("%s", error)
                self._rebuild_topic(partition.topic)
            case _:
                raise error

    def report(self, error: Retryable) -> None:
        """Log and count an error that is waited out."""
        reason = error.reason if error.reason in RETRY_REASONS else "other"
        self._slot.add(f"retries_{error.backend or 'kafka'}_{reason}")
        self._slot.set_error(str(error))
        self._show_sinks(error.backend)
        log.warning("waiting, will try again: %s", error)

    def _show_sinks(self, failing_backend: str = "") -> None:
        """Record which stores can be reached; `failing_backend` has just failed."""
        self._slot.set("sink_up", int(not (failing_backend or self._topic_sinks.failing_topics())))
        failing = {failing_backend, *self._topic_sinks.failing_backends()}
        for store in STORES:
            self._slot.set(f"{store}_down", int(store in failing))

    def _defer_topic(self, error: TopicNotFound) -> None:
        log.warning("%s: what was read of it and not written is discarded", error)
        self._assignment.defer_topic(error.topic)

    def _bisect(self, partition: Partition, error: RowsRefused) -> None:
        """Search for the rows that the store refuses by halves; the one that is left alone becomes a dead letter."""
        start = partition.sealed[0].start
        if partition.bisect(str(error)):
            log.warning("%s", error, extra=fields(topic=partition.topic, partition=partition.partition, offset=start))
        else:
            self._assignment.reread(partition)

    def _rebuild_topic(self, topic: str) -> None:
        """Form what was read of the topic again, in the shape that its table has now, where that is another one."""
        fields = self._topic_sinks.get(topic).sink.fields
        for partition in self._assignment:
            if partition.topic == topic and not partition.is_formed_for(fields):
                partition.rebuild(fields)
                self._assignment.reread(partition)
