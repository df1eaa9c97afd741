"""One consumer's life: read → decode → write → commit, from start-up to drain, across rebalances and outages.

The loop never blocks for longer than a moment: writes run in the writer's thread, and while one is waited for, reading
goes on until the next batch is full; then the partitions are paused and polling goes on.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from typing import Any

from worker.config.settings import Settings
from worker.core.counters import MAX_SLOTS, Stats
from worker.core.errors import ExitCode
from worker.core.native import reader_in_use
from worker.core.process import resident_bytes
from worker.core.records import Decode
from worker.decoding.formats import open_decoder
from worker.ingest.assignment import Assignment
from worker.ingest.rebalance import RebalanceHandler
from worker.ingest.topic_sinks import TopicSinks
from worker.ingest.write_pipeline import WritePipeline
from worker.ingest.writer import TopicRecreated, Writer
from worker.kafka.dead_letters import DeadLetterProducer
from worker.kafka.group_consumer import GroupConsumer
from worker.kafka.schemas import schema_source

log = logging.getLogger(__name__)

_POLL_S = 0.1
_PAUSE_AFTER_S = 2.0
_HOUSEKEEPING_S = 5.0
_LEAVE_S = 4.0  # the supervisor waits for 5 s beyond the drain timeout


class Consumer:
    """A member of the group: what it has been given to read, and the way out of it."""

    def __init__(
        self,
        settings: Settings,
        stats: Stats,
        index: int,
        *,
        group_consumer: GroupConsumer,
        topic_sinks: TopicSinks,
        dead_letters: DeadLetterProducer,
        writer: Writer,
        decode: Decode,
    ) -> None:
        self._slot = slot = stats.slot(index)
        self._linger_s = settings.linger_ms / 1000
        self._drain_timeout_s = settings.drain_timeout
        self._group_consumer = group_consumer
        self._assignment = Assignment(group_consumer, slot, settings.batch_rows, decode)
        self._topic_sinks = topic_sinks
        self._pipeline = WritePipeline(
            settings, slot, group_consumer, self._assignment, topic_sinks, dead_letters=dead_letters, writer=writer
        )
        self._rebalance_handler = RebalanceHandler(
            settings, stats, slot, group_consumer, topic_sinks, self._assignment, self._pipeline
        )
        self._topic_list = stats.topic_list
        self._topics = 0  # version of the topic list that it is subscribed to
        self._monitor = stats.monitor
        self._columns_version = stats.monitor.get("columns_version")
        self._stopping = False
        self._housekeeping_at = 0.0
        self._cpu_ns = 0  # of this process, as far as it is in the slot's

    def stop(self, *_: Any) -> None:
        """Drain at the next turn. A service manager may say so twice: to the group, and through the supervisor."""
        self._stopping = True

    def run(self) -> int:
        """Consume until stopped; return the exit code."""
        for ledger in self._slot.ledgers():  # of the process that was here before
            ledger.close_after_crash()
        signal.signal(signal.SIGTERM, self.stop)
        if not self._reach_store():
            return ExitCode.OK
        gc.freeze()  # nothing on the data path makes cycles; what error paths leave is collected in _housekeep
        gc.disable()
        self.join()
        try:
            while not self._stopping:
                self.turn()
        except TopicRecreated:
            self._rebalance_handler.release(self._assignment.keys())  # its offsets are of another topic: no commit
            self._group_consumer.close()
            raise
        return self.drain()

    def join(self) -> None:
        """Become a member of the group."""
        member = self._rebalance_handler
        self._topics, topics = self._topic_list.read()
        self._group_consumer.join(
            topics, on_assign=member.on_assign, on_revoke=member.on_revoke, on_lost=member.on_lost
        )

    def _reach_store(self) -> bool:
        """Open one sink, waiting for the store if need be, so that no partition goes where it is out of reach.

        False when told to stop before that.
        """
        topic = next(iter(self._topic_list.read()[1]), None)
        self._topic_sinks.want_only([topic] if topic else [])
        while not self._stopping:
            self._slot.beat()
            self._pipeline.work(_POLL_S)
            if topic is None or self._topic_sinks.get(topic).is_open:
                return True
        return False

    def turn(self) -> None:
        """Read once, take what came, and move batches on."""
        slot, assignment = self._slot, self._assignment
        slot.beat()
        began = time.perf_counter_ns()
        read = self._group_consumer.read(self._patience())
        polled = time.perf_counter_ns()
        full = sum(len(records.payloads) for records in read.record_batches) >= self._group_consumer.read_limit
        slot.observe(
            "stage_paused" if assignment.paused_topics else "stage_poll" if full else "stage_idle", polled - began
        )
        if read.record_batches:
            assignment.take(read.record_batches)
            read.record_batches.clear()  # their messages pin fetch buffers
            slot.observe("stage_decode", time.perf_counter_ns() - polled)
        assignment.advance_to(read.ends)
        self._rebalance_handler.start_deferred_partitions()
        for error in read.errors:
            if assignment.confirm_read_error(error):
                self._rebalance_handler.stop_unreadable(error)
        self._advance()
        if time.monotonic() > self._housekeeping_at:
            self._housekeep()
        if self._topic_list.version != self._topics:
            self._resubscribe()
        if (version := self._monitor.get("columns_version")) != self._columns_version:
            self._columns_version = version
            self._topic_sinks.reopen()

    def _resubscribe(self) -> None:
        """Follow the monitor, which looks for topics that match."""
        version, topics = self._topic_list.read()
        if version >= 0:
            self._topics = version
            self._group_consumer.subscribe(topics)

    def _patience(self) -> float:
        """Return how long a read may wait: not past the moment at which a batch is due."""
        opened = [since for partition in self._assignment if (since := partition.filling_since) is not None]
        if not opened:  # what arrives meanwhile has waited already when its batch begins
            return min(_POLL_S, max(0.005, self._linger_s / 4))
        return min(_POLL_S, max(0.001, min(opened) + self._linger_s - time.monotonic()))

    def _advance(self) -> None:
        """Do the pipeline's next step, and pause the topics whose batches pile up.

        Where that is all of them, it waits for a moment first: pausing drops what librdkafka has fetched.
        """
        pipeline, assignment = self._pipeline, self._assignment
        pipeline.work(0.0, flush=self._stopping)
        full = pipeline.backpressured_topics()
        deadline = time.monotonic() + _PAUSE_AFTER_S
        while full and not (full <= assignment.paused_topics or full < assignment.topics() or self._stopping):
            if time.monotonic() > deadline:
                break
            self._slot.beat()
            pipeline.work(_POLL_S)
            full = pipeline.backpressured_topics()
        if full != assignment.paused_topics:
            assignment.pause_topics(full)

    def _housekeep(self) -> None:
        """Tell the process' memory and CPU time, and collect what error paths may have left."""
        self._housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        self._slot.set("rss_bytes", resident_bytes())
        cpu_ns = time.process_time_ns()
        self._slot.add("cpu_ns", cpu_ns - self._cpu_ns)  # to what earlier processes have spent
        self._cpu_ns = cpu_ns
        gc.collect()

    def drain(self) -> int:
        """Write and commit what was read, then leave the group; FAILED when the time was too short for that."""
        deadline = time.monotonic() + self._drain_timeout_s
        self._assignment.pause_all()
        self._assignment.discard_unfinished_replays()
        while not self._settled() and time.monotonic() < deadline:
            self._slot.beat()
            self._group_consumer.read(0.0)
            self._pipeline.work(0.02, flush=True)
        code = ExitCode.OK if self._settled() else ExitCode.FAILED
        if code:
            log.error("the drain timeout is over: what was not acknowledged is read again by the next owner")
        self._leave_group(code)
        self._pipeline.close()
        return code

    def _leave_group(self, code: int) -> None:
        """Leave the group; exit with `code` if that takes too long.

        librdkafka waits for a broker's answer, and was seen to wait for ever during another member's rebalance.
        """

        def exit_without_leaving() -> None:
            log.warning("leaving the group took more than %g s: its partitions wait for the session timeout", _LEAVE_S)
            os._exit(code)

        timer = threading.Timer(_LEAVE_S, exit_without_leaving)
        timer.daemon = True
        timer.start()
        self._group_consumer.close()
        timer.cancel()

    def _settled(self) -> bool:
        return self._pipeline.is_idle and self._assignment.is_settled


def _decoder(settings: Settings) -> Decode:
    if settings.format != "json" or settings.transform or reader_in_use(settings.reader) == "python":
        return open_decoder(settings.format, schema_source(settings), settings.transform)
    from worker.decoding.native import NativeDecoder

    return NativeDecoder()


def run(settings: Settings, stats: Stats, index: int) -> int:
    """Be the consumer in slot `index`; called in a fresh child of the supervisor."""
    partitions = max(1, stats.topic_list.partitions)
    consumers = min(settings.processes or partitions, MAX_SLOTS)
    return Consumer(
        settings,
        stats,
        index,
        group_consumer=GroupConsumer(settings, index, share=-(-partitions // consumers)),
        topic_sinks=TopicSinks.from_settings(settings),
        dead_letters=DeadLetterProducer(settings),
        writer=Writer(),
        decode=_decoder(settings),
    ).run()
