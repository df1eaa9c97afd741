"""One consumer's life: read → decode → write → commit, from start-up to drain, across rebalances and outages.

The loop never blocks for longer than a moment: writes run in the writer's thread, and while one is waited for, reading
goes on until the next batch is full; then the partitions are paused and polling goes on.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from typing import Any

from worker.config.settings import Settings
from worker.core.counters import MAX_SLOTS, Stats
from worker.core.errors import ExitCode
from worker.ingest.assignment import Assignment
from worker.ingest.rebalance import Membership
from worker.ingest.topic_sinks import Outlets
from worker.ingest.write_pipeline import Outbox
from worker.ingest.writer import Recreated, Writer
from worker.kafka.dead_letters import DeadLetters
from worker.kafka.group_consumer import READ_MESSAGES, Source

log = logging.getLogger(__name__)

_POLL_S = 0.1
_PAUSE_AFTER_S = 2.0
_HOUSEKEEPING_S = 5.0


class Consumer:
    """A member of the group: what it has been given to read, and the way out of it."""

    def __init__(
        self,
        settings: Settings,
        stats: Stats,
        index: int,
        *,
        source: Source,
        outlets: Outlets,
        letters: DeadLetters,
        writer: Writer,
    ) -> None:
        self._slot = slot = stats.slot(index)
        self._linger_s = settings.linger_ms / 1000
        self._drain_timeout_s = settings.drain_timeout
        self._source = source
        self._assignment = Assignment(source, slot)
        self._outlets = outlets
        self._outbox = Outbox(settings, slot, source, self._assignment, outlets, letters=letters, writer=writer)
        self._membership = Membership(settings, stats, slot, source, outlets, self._assignment, self._outbox)
        self._roster = stats.roster
        self._topics = 0  # the roster's version that it is subscribed to
        self._stopping = False
        self._housekeeping_at = 0.0
        self._cpu_ns = 0  # of this process, as far as it is in the slot's

    def stop(self, *_: Any) -> None:
        """Drain at the next turn. A service manager may say so twice: to the group, and through the supervisor."""
        self._stopping = True

    def run(self) -> int:
        """Consume until stopped; return the exit code."""
        for ledger in self._slot.ledgers():  # of the process that was here before
            ledger.adopt()
        signal.signal(signal.SIGTERM, self.stop)
        if not self._reach_store():
            return ExitCode.OK
        gc.freeze()  # nothing on the data path makes cycles; what error paths leave is collected in _housekeep
        gc.disable()
        self.join()
        try:
            while not self._stopping:
                self.turn()
        except Recreated:
            self._membership.let_go(list(self._assignment.partitions))  # what it was told of another topic: no commit
            self._source.close()
            raise
        return self.drain()

    def join(self) -> None:
        """Become a member of the group."""
        member = self._membership
        self._topics, topics = self._roster.read()
        self._source.join(topics, on_assign=member.on_assign, on_revoke=member.on_revoke, on_lost=member.on_lost)

    def _reach_store(self) -> bool:
        """Open one sink, waiting for the store if need be, so that no partition goes where it is out of reach.

        False when told to stop before that.
        """
        topic = next(iter(self._roster.read()[1]), None)
        self._outbox.wanted.update([topic] if topic else [])
        while not self._stopping:
            self._slot.beat()
            self._outbox.work(_POLL_S)
            if topic is None or self._outlets.of(topic).open:
                return True
        return False

    def turn(self) -> None:
        """Read once, take what came, and move batches on."""
        slot, assignment = self._slot, self._assignment
        slot.beat()
        began = time.perf_counter_ns()
        read = self._source.read(self._patience())
        polled = time.perf_counter_ns()
        full = sum(len(chunk.payloads) for chunk in read.chunks) >= READ_MESSAGES
        slot.observe("stage_paused" if assignment.paused else "stage_poll" if full else "stage_idle", polled - began)
        if read.chunks:
            assignment.take(read.chunks)
            slot.observe("stage_decode", time.perf_counter_ns() - polled)
        assignment.reach(read.ends)
        self._membership.pursue()
        for trouble in read.errors:
            if assignment.believes(trouble):
                self._membership.stop((trouble.topic, trouble.partition), trouble.text)
        self._advance()
        if time.monotonic() > self._housekeeping_at:
            self._housekeep()
        if self._roster.version != self._topics:
            self._resubscribe()

    def _resubscribe(self) -> None:
        """Follow the monitor, which looks for topics that match."""
        version, topics = self._roster.read()
        if version >= 0:
            self._topics = version
            self._source.subscribe(topics)

    def _patience(self) -> float:
        """Return how long a read may wait: not past the moment at which a batch is due."""
        opened = [since for one in self._assignment.partitions.values() if (since := one.growing_since) is not None]
        if not opened:  # what arrives meanwhile has waited already when its batch begins
            return min(_POLL_S, max(0.005, self._linger_s / 4))
        return min(_POLL_S, max(0.001, min(opened) + self._linger_s - time.monotonic()))

    def _advance(self) -> None:
        """Hear the writer, give it the next batch that is due, and hold reading back when batches pile up."""
        outbox, assignment = self._outbox, self._assignment
        outbox.work(0.0, hurry=self._stopping)
        deadline = time.monotonic() + (0.0 if assignment.paused else _PAUSE_AFTER_S)
        while outbox.crowded and time.monotonic() < deadline and not self._stopping:
            self._slot.beat()
            outbox.work(_POLL_S)
        if outbox.crowded != assignment.paused:
            assignment.pause(not assignment.paused)

    def _housekeep(self) -> None:
        """Tell the process' memory and CPU time, and collect what error paths may have left."""
        self._housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        with open("/proc/self/statm") as statm:
            self._slot.set("rss_bytes", int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        cpu_ns = time.process_time_ns()
        self._slot.add("cpu_ns", cpu_ns - self._cpu_ns)  # to what earlier processes have spent
        self._cpu_ns = cpu_ns
        gc.collect()

    def drain(self) -> int:
        """Write and commit what was read, then leave the group; FAILED when the time was too short for that."""
        deadline = time.monotonic() + self._drain_timeout_s
        self._assignment.pause(True)
        self._assignment.drop_resuming()
        while not self._settled() and time.monotonic() < deadline:
            self._slot.beat()
            self._source.read(0.0)
            self._outbox.work(0.02, hurry=True)
        clean = self._settled()
        self._source.close()
        self._outbox.close()
        if not clean:
            log.error("the drain timeout is over: what was not acknowledged is read again by the next owner")
        return ExitCode.OK if clean else ExitCode.FAILED

    def _settled(self) -> bool:
        return self._outbox.idle and self._assignment.settled


def run(settings: Settings, stats: Stats, index: int) -> int:
    """Be the consumer in slot `index`; called in a fresh child of the supervisor."""
    partitions = max(1, stats.roster.partitions)
    consumers = min(settings.processes or partitions, MAX_SLOTS)
    return Consumer(
        settings,
        stats,
        index,
        source=Source(settings, index, share=-(-partitions // consumers)),
        outlets=Outlets.by(settings),
        letters=DeadLetters(settings),
        writer=Writer(),
    ).run()
