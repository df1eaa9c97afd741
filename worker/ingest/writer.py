"""A batch into the store and its letters into the dead-letter topic, in a thread of their own.

The consumer goes on polling meanwhile: group membership outlives any outage of the store. Commits are not made here but
in the consumer's own thread: librdkafka holds a commit from another thread back for as long as a rebalance callback
runs, and the callback would be waiting for it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from worker.core.batch import Batch
from worker.core.counters import Slot
from worker.core.errors import ExitCode, Fatal, Retryable, RowsRefused, SchemaChanged
from worker.kafka.dead_letters import DeadLetterProducer
from worker.sinks import Sink

log = logging.getLogger(__name__)

_BACKOFF_S = 0.1
_BACKOFF_CAP_S = 10.0


def store(
    batch: Batch, sink: Sink, dead_letters: DeadLetterProducer, slot: Slot, topic_id: Callable[[str], str]
) -> None:
    """Do what is still to be done for a batch; when it returns, store and dead-letter topic have acknowledged it.

    librdkafka does not notice that a topic was deleted and made again, and reads on at the old offset. `topic_id` asks
    what the topic's id is now: if it is still that of the batch, all of the batch was read from that topic.
    """
    if topic_id(batch.topic) != batch.topic_id:
        raise TopicRecreated(batch.topic)
    if batch.rows and not batch.written:
        began = time.perf_counter_ns()
        _insert(batch, sink)
        slot.observe("stage_write", time.perf_counter_ns() - began)
    batch.written = True
    if batch.dead_letters and not batch.dead_letters_written:
        dead_letters.write(batch.topic, batch.partition, batch.dead_letters)
    batch.dead_letters_written = True


def verify_topic_ids(known: set[tuple[str, str]], topic_id: Callable[[str], str]) -> None:
    """Look whether topics still have the ids that are known of them: a namesake that is as long reads as the end."""
    for topic, known_id in known:
        try:
            found = topic_id(topic)
        except Retryable as unknown:  # asked again soon, and before each write
            log.warning("%s", unknown)
            continue
        if found != known_id:
            raise TopicRecreated(topic)


def _insert(batch: Batch, sink: Sink) -> None:
    """Write the rows, unless an earlier try may have landed, has, and the store would not tell by the token.

    While the store surely remembers the token it decides alone, for only the token tells a topic from an earlier one of
    the same name, whose rows may have the same offsets. But a store refuses rows before it looks at tokens: a batch in
    doubt that is refused now, by a constraint that is new, may be there whole.
    """
    in_doubt = batch.in_doubt
    forgotten = time.time() * 1000 - batch.intent_time_ms >= sink.dedup_retention_ms
    if in_doubt and forgotten and _landed(batch, sink):
        return
    batch.in_doubt = True  # until the store answers
    try:
        sink.write(batch)
    except SchemaChanged:
        sink.open()
        raise
    except RowsRefused:
        if not (in_doubt and _landed(batch, sink)):
            raise


def _landed(batch: Batch, sink: Sink) -> bool:
    """Whether the rows are in the store already; False where it cannot tell. Fatal where only some are."""
    count = sink.count_stored_rows(batch.topic, batch.partition, batch.start, batch.end)
    if not count:
        return False
    if count >= batch.rows:
        return True
    raise Fatal(
        f"{batch.topic}[{batch.partition}]: the table has {count} of the {batch.rows} rows of offsets {batch.start} to "
        f"{batch.end - 1}, and the server cannot tell which any more; remove them (ALTER TABLE … DELETE "
        f"WHERE _partition = {batch.partition} AND _offset >= {batch.start} AND _offset < {batch.end}) and start again",
        code=ExitCode.HALT,
    )


class TopicRecreated(Fatal):
    """The topic is another one than it was: the consumer starts over, with nothing in its hands."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} was deleted and made again: starting over with it", code=ExitCode.FAILED)


class Backoff:
    """Pauses that double, up to ten seconds, with jitter so that many consumers do not come back at once."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Whether it is time for the next try."""
        return time.monotonic() >= self._until

    def failed(self) -> None:
        """Begin the next pause."""
        pause = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self._until = time.monotonic() + pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew, with no pause."""
        self._failures, self._until = 0, 0.0


class Writer:
    """Runs one job at a time; after a failure, `backoff` says when to try again."""

    def __init__(self) -> None:
        self.backoff = Backoff()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._future: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job has been started and its outcome was not heard yet."""
        return self._future is not None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; one that was dropped is waited for by the thread, not by the caller."""
        self._future = self._pool.submit(job)

    def poll(self, timeout: float = 0.0) -> bool:
        """Return True once the job is done, waiting up to `timeout` seconds; raises what it raised."""
        if self._future is None:
            return False
        try:
            self._future.result(timeout)
        except TimeoutError:
            return False  # still under way: what jobs raise is never a TimeoutError
        except BaseException:
            self._future = None
            raise
        self._future = None
        return True

    def rest(self, timeout: float) -> None:
        """Wait for so long where no job is under way: there is nothing to hear then."""
        if self._future is None and timeout:
            time.sleep(timeout)

    def drop(self) -> None:
        """Give the job up; it ends by itself, unheard."""
        self._future = None

    def close(self) -> None:
        """Do not wait for a job that hangs: the process is about to end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
