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
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from worker import delivery
from worker.batch import Batch, Letter
from worker.deadletter import DeadLetters
from worker.errors import ExitCode, Fatal, Rejected, Reshaped, Retryable
from worker.log import fields
from worker.partition import Partition
from worker.settings import Settings
from worker.sinks import Sink, open_sink
from worker.source import READ_MESSAGES, ReadError, Source
from worker.stats import DELIVERY_CAP_MS, RETRY_REASONS, Slot, Stats
from worker.writer import Recreated, Writer, identify, store

log = logging.getLogger("worker.consumer")

# Payload bytes that wait in one process, over all its partitions.
_MAX_WAITING_BYTES = 64 << 20
_POLL_S = 0.1
_PAUSE_AFTER_S = 2.0
_HOUSEKEEPING_S = 5.0
_IDENTIFY_S = 5.0
_BAD_RATIO_WINDOW = 10_000

_Key = tuple[str, int]


class Consumer:
    """A member of the group with its sink, its writer and its slot of counters."""

    def __init__(
        self, settings: Settings, stats: Stats, index: int, *, sink: Sink, letters: DeadLetters, writer: Writer
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._slot: Slot = stats.slot(index)
        self._linger_s = settings.linger_ms / 1000
        self._sink = sink
        self._letters = letters
        self._writer = writer
        self._writing: _Key | None = None  # whose first sealed batch is on its way into the store
        self._partitions: dict[_Key, Partition] = {}
        self._stopped: set[_Key] = set()
        self._paused = False
        self._stopping = False
        self._doubted: dict[_Key, int] = {}  # positions at which a read has failed once
        self._identify_at = 0.0
        self._housekeeping_at = 0.0
        self._window: deque[tuple[int, int]] = deque()

    def stop(self, *_: Any) -> None:
        """Drain at the next turn. A service manager may say so twice: to the group, and through the supervisor."""
        self._stopping = True

    def run(self) -> int:
        """Consume until stopped; return the exit code."""
        for ledger in self._slot.ledgers():  # of the process that was here before
            ledger.adopt()
        signal.signal(signal.SIGTERM, self.stop)
        if not self._open_sink():
            return ExitCode.OK
        gc.freeze()  # nothing on the data path makes cycles; what error paths leave is collected in _housekeep
        gc.disable()
        self.join(Source)
        try:
            while not self._stopping:
                self.turn()
        except Recreated:
            self._let_go(list(self._partitions))  # what it was told about another topic is not committed
            self._source.close()
            raise
        return self.drain()

    def join(self, source: type[Source]) -> None:
        """Become a member of the group."""
        self._source = source(
            self._settings,
            self._slot.index,
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def _open_sink(self) -> bool:
        """Open the sink, waiting for the store if need be; False when told to stop before that."""
        while not self._stopping:
            self._slot.beat()
            try:
                if self._writer.poll(_POLL_S):
                    self._writer.backoff.reset()
                    self._slot.set("sink_up", 1)
                    return True
            except Retryable as trouble:
                self._wait_for(trouble)
            if not self._writer.busy and self._writer.backoff.over:
                self._writer.start(self._sink.open)
        return False

    # reading

    def turn(self) -> None:
        """Read once, take what came, and move batches on."""
        slot = self._slot
        slot.beat()
        began = time.perf_counter_ns()
        read = self._source.read(self._patience())
        polled = time.perf_counter_ns()
        full = sum(len(chunk.payloads) for chunk in read.chunks) >= READ_MESSAGES
        slot.observe("stage_paused" if self._paused else "stage_poll" if full else "stage_idle", polled - began)
        for chunk in read.chunks:
            if partition := self._partitions.get((chunk.topic, chunk.partition)):
                partition.take(chunk)
        if read.chunks:
            slot.observe("stage_decode", time.perf_counter_ns() - polled)
        for topic, number, offset in read.ends:
            if partition := self._partitions.get((topic, number)):
                partition.reach(offset)
        for trouble in read.errors:
            self._unreadable(trouble)
        self._advance()
        if time.monotonic() > self._housekeeping_at:
            self._housekeep()

    def _patience(self) -> float:
        """Return how long a read may wait: not past the moment at which a batch is due."""
        opened = [since for one in self._partitions.values() if (since := one.growing_since) is not None]
        if not opened:  # what arrives meanwhile has waited already when its batch begins
            return min(_POLL_S, max(0.005, self._linger_s / 4))
        return min(_POLL_S, max(0.001, min(opened) + self._linger_s - time.monotonic()))

    # writing

    def _advance(self) -> None:
        """Hear the writer, give it the next batch that is due, and hold reading back when batches pile up."""
        self._work(0.0)
        deadline = time.monotonic() + (0.0 if self._paused else _PAUSE_AFTER_S)
        while self._crowded() and time.monotonic() < deadline and not self._stopping:
            self._slot.beat()
            self._work(_POLL_S)
        if self._crowded() != self._paused:
            self._set_paused(not self._paused)

    def _work(self, timeout: float) -> None:
        """Hear the writer for up to `timeout` seconds; then do the next step, if there is one that need not wait."""
        try:
            if self._writer.poll(timeout):
                self._stored()
            if not self._writer.busy and self._writer.backoff.over:
                self._next_step()
        except Retryable as trouble:
            self._wait_for(trouble)
        except Rejected as refusal:
            self._refused(refusal)
        except Reshaped as change:
            log.warning("%s", change)
            self._writing = None
            for key, one in self._partitions.items():
                one.fields = self._sink.fields
                self._reread(key)

    def _crowded(self) -> bool:
        """Whether reading on would only pile up: a full batch waits behind a write, or the bytes are used up."""
        if self._writing is None:
            return False
        return sum(len(one.sealed) for one in self._partitions.values()) > 1 or self._waiting() > _MAX_WAITING_BYTES

    def _waiting(self) -> int:
        return sum(one.waiting for one in self._partitions.values())

    def _set_paused(self, paused: bool) -> None:
        keys = [key for key in self._partitions if key not in self._stopped]
        if keys:
            (self._source.pause if paused else self._source.resume)(keys)
        self._paused = paused
        self._slot.set("paused", int(paused))

    def _next_step(self) -> None:
        """Go on with the batch that is on its way, or take the oldest that is full or old enough, or commit."""
        if self._writing is None:
            self._writing = self._choose()
        if self._writing is None:
            self._commit_idle({key: one for key, one in self._partitions.items() if one.uncommitted and not one.open})
            if self._partitions and time.monotonic() > self._identify_at:
                self._identify_at = time.monotonic() + _IDENTIFY_S
                known = {(key[0], one.ledger.topic_id) for key, one in self._partitions.items()}
                self._writer.start(partial(identify, known, self._source.topic_id))
            return
        one = self._partitions[self._writing]
        batch = one.sealed[0]
        if batch.written and batch.lettered:  # and its commit failed
            self._stored()
            return
        if self._sink.exactly_once and batch.rows and not batch.written:
            # Before each try: a member that was expelled meanwhile is refused here, and does not insert.
            batch.announced_ms = batch.announced_ms or time.time_ns() // 1_000_000
            self._commit([(*self._writing, batch.start, delivery.intent_of(batch).encode())])
            one.progress.committed = batch.start
        job = partial(store, batch, self._sink, self._letters, self._slot, self._source.topic_id)
        self._writer.start(job)

    def _choose(self) -> _Key | None:
        """Seal batches that are old enough, and return the partition of the oldest sealed one."""
        now = time.monotonic()
        hurry = self._stopping or self._waiting() > _MAX_WAITING_BYTES
        for one in self._partitions.values():
            since = one.growing_since
            if since is not None and (hurry or now - since >= self._linger_s):
                one.seal()
        due = [(one.sealed[0].opened, key) for key, one in self._partitions.items() if one.sealed]
        if not due:
            return None
        _, key = min(due)
        self._watch_bad_ratio(self._partitions[key].sealed[0])
        return key

    def _stored(self) -> None:
        """Book the batch that store and dead-letter topic have acknowledged.

        Its commit is the next batch's intent, or is made once nothing more comes; without intents it is made here.
        """
        self._slot.set("sink_up", 1)
        if self._writing is None:
            return
        one = self._partitions[self._writing]
        batch = one.sealed[0]
        if not (self._sink.exactly_once and batch.rows):
            self._commit([(*self._writing, batch.end, delivery.plain(batch.topic_id))])
            one.progress.committed = batch.end
        self._writer.backoff.reset()
        key, self._writing = self._writing, None
        one.settle()
        self._record(batch)
        if one.progress.limit is not None and one.sealed:
            self._reread(key)  # what follows was cut into batches as small as this one

    def _commit(self, offsets: list[tuple[str, int, int, str]]) -> None:
        began = time.perf_counter_ns()
        self._source.commit(offsets)
        self._slot.observe("stage_commit", time.perf_counter_ns() - began)

    def _commit_idle(self, partitions: dict[_Key, Partition]) -> None:
        """Commit what is accounted for, without an intent."""
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
        for letter in batch.letters:
            self._slot.add(f"rejected_{letter.reason}")
        if batch.letters:
            first = batch.letters[0]
            log.warning(
                "events that cannot be written went to %s",
                self._letters.topic,
                extra=fields(topic=batch.topic, partition=batch.partition, offset=first.offset, reason=first.reason),
            )

    def _refused(self, refusal: Rejected) -> None:
        """Find the rows that the store refuses by halves; the one that is left alone becomes a dead letter."""
        assert self._writing is not None
        key, self._writing = self._writing, None
        one = self._partitions[key]
        batch = one.sealed[0]
        if one.progress.refused(batch) and batch.payloads:
            log.warning("%s", refusal, extra=fields(topic=key[0], partition=key[1], offset=batch.start))
            batch.letters.append(Letter(batch.offsets[0][0], batch.payloads[0], "store_refused", ""))
            batch.rows, batch.uncertain = 0, False
        else:
            self._reread(key)

    def _reread(self, key: _Key) -> None:
        """Read everything of a partition again that is not accounted for."""
        if self._paused:
            self._set_paused(False)
        self._partitions[key].drop()
        self._source.seek(*key, self._partitions[key].progress.position)

    def _wait_for(self, trouble: Retryable) -> None:
        """Try again later, and say what is being waited for."""
        self._writer.backoff.failed()
        self._slot.add(f"retries_{trouble.reason if trouble.reason in RETRY_REASONS else 'other'}")
        self._slot.set_error(str(trouble))
        if trouble.reason != "fenced":
            self._slot.set("sink_up", 0)
        log.warning("waiting, will try again: %s", trouble)

    def _watch_bad_ratio(self, batch: Batch) -> None:
        """Stop before a topic that is not made of events drains into the dead letters."""
        window = self._window
        window.append((batch.consumed, len(batch.letters)))
        while len(window) > 1 and sum(consumed for consumed, _ in window) - window[0][0] >= _BAD_RATIO_WINDOW:
            window.popleft()
        consumed, bad = (sum(column) for column in zip(*window, strict=True))
        if consumed >= _BAD_RATIO_WINDOW and bad > self._settings.max_bad_ratio * consumed:
            raise Fatal(
                f"{bad} of the last {consumed} events of {batch.topic} cannot be written, more than --max-bad-ratio "
                f"{self._settings.max_bad_ratio:g} allows; nothing from offset {batch.start} of partition "
                f"{batch.partition} on was committed. Is it the right topic?",
                code=ExitCode.HALT,
            )

    # rebalances

    def _on_assign(self, keys: list[_Key]) -> dict[_Key, int | None]:
        """Take partitions over at the offset, or at the unfinished range, that the group's commit names."""
        if self._paused:
            self._set_paused(False)  # what it had before goes on with the rest
        starts: dict[_Key, int | None] = {}
        for key, known in self._source.committed(keys).items():
            counted_to = self._stats.accounted_to(key[0], known.topic_id, key[1])
            try:
                start = delivery.resume(
                    known.offset, known.metadata, known.topic_id, known.log_start, counted_to, self._sink.exactly_once
                )
            except delivery.DataLost as loss:
                landed_to = self._landed_to(key, loss)
                if landed_to is None:
                    self._stop_partition(key, str(loss))
                    starts[key] = None
                    continue
                start = delivery.Resume(landed_to)
            ledger = self._slot.ledger(key[0], known.topic_id, key[1])
            ledger.set("assigned", 1)
            self._partitions[key] = Partition(
                ledger, delivery.Progress.at(start), self._sink.fields, self._settings.batch_rows, counted_to
            )
            starts[key] = start.position
            log.info("took a partition", extra=fields(topic=key[0], partition=key[1], offset=start.position))
        self._slot.add("rebalances")
        self._slot.set("assigned", len(self._partitions))
        return starts

    def _landed_to(self, key: _Key, loss: delivery.DataLost) -> int | None:
        """Return where an intent ends that covers all that retention has removed, and whose rows are in the store."""
        intent = loss.intent
        if intent is None or not self._sink.exactly_once or loss.log_start > intent.end:
            return None
        return intent.end if self._sink.landed(*key, intent.start, intent.end) == intent.rows else None

    def _on_revoke(self, keys: list[_Key]) -> None:
        """Settle the write that is under way, commit what is acknowledged, and let go of the rest."""
        deadline = time.monotonic() + self._settings.drain_timeout
        try:
            while self._writer.busy and time.monotonic() < deadline:
                self._slot.beat()
                if self._writer.poll(_POLL_S):
                    self._stored()
            self._commit_idle({key: one for key, one in self._partitions.items() if key in keys and one.uncommitted})
        except (Retryable, Rejected, Reshaped) as trouble:  # the next owner finds the intent, and goes on from there
            log.warning("not everything could be settled at a rebalance: %s", trouble)
        self._let_go(keys)

    def _on_lost(self, keys: list[_Key]) -> None:
        """Another member may own these by now: commit nothing."""
        log.warning("partitions lost: this consumer was expelled from the group", extra=fields(partitions=len(keys)))
        self._let_go(keys)

    def _let_go(self, keys: Sequence[_Key]) -> None:
        if self._writing in keys:
            self._writer.drop()
            self._writing = None
        for key in keys:
            self._stopped.discard(key)
            self._doubted.pop(key, None)
            if one := self._partitions.pop(key, None):
                one.drop()
                one.ledger.set("assigned", 0)
        self._slot.set("assigned", len(self._partitions))

    def _unreadable(self, trouble: ReadError) -> None:
        """Start over where the topic is another one; else stop the partition.

        The first error at a position may be of a fetch before the assignment, which librdkafka had queued; and it says
        each error once, then fetches no more. So the position is asked for again before an error is believed.
        """
        key = (trouble.topic, trouble.partition)
        one = self._partitions.get(key)
        if one is None:  # it was taken from this consumer meanwhile
            return
        try:
            if self._source.topic_id(trouble.topic) != one.ledger.topic_id:
                raise Recreated(trouble.topic)
        except Retryable as unknown:
            log.warning("%s", unknown)
        else:
            if self._doubted.get(key) == one.progress.position:
                self._stop_partition(key, trouble.text)
                return
            self._doubted[key] = one.progress.position
        self._source.seek(*key, one.progress.position)

    def _stop_partition(self, key: _Key, text: str) -> None:
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
        self._stopped.add(key)
        if key in self._partitions:
            self._source.pause([key])

    # the rest

    def _housekeep(self) -> None:
        """Refresh the process' gauges, and collect what error paths may have left."""
        self._housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        with open("/proc/self/statm") as statm:
            self._slot.set("rss_bytes", int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self._slot.set("cpu_ns", time.process_time_ns())
        gc.collect()

    def drain(self) -> int:
        """Write and commit what was read, then leave the group; FAILED when the time was too short for that."""
        deadline = time.monotonic() + self._settings.drain_timeout
        self._set_paused(True)
        for one in self._partitions.values():
            if one.open and one.progress.resuming:  # its end will not be read: the next owner finds the same intent
                one.drop()
        while not self._settled() and time.monotonic() < deadline:
            self._slot.beat()
            self._source.read(0.0)
            self._work(0.02)
        clean = self._settled()
        self._source.close()
        self._sink.close()
        self._writer.close()
        if not clean:
            log.error("the drain timeout is over: what was not acknowledged is read again by the next owner")
        return ExitCode.OK if clean else ExitCode.FAILED

    def _settled(self) -> bool:
        return self._writing is None and all(one.settled for one in self._partitions.values())


def run(settings: Settings, stats: Stats, index: int) -> int:
    """Be the consumer in slot `index`; called in a fresh child of the supervisor."""
    return Consumer(
        settings, stats, index, sink=open_sink(settings), letters=DeadLetters(settings), writer=Writer()
    ).run()
