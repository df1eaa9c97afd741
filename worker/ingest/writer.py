"""Jobs that talk to the store, in a thread of their own.

The consumer continues to poll meanwhile, so its group membership outlives any outage of the store. Commits are made in
the consumer's own thread instead: librdkafka holds a commit from another thread back for as long as a rebalance
callback runs, and the callback would wait for the commit.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from worker.core.batch import Batch, WriteResult
from worker.core.counters import Slot
from worker.core.errors import BlockTooLarge, ExitCode, Fatal, Retryable, RowsRefused, SchemaChanged
from worker.core.schemas import SchemaNeeded
from worker.kafka.dead_letters import DeadLetterProducer
from worker.sinks import Sink

log = logging.getLogger(__name__)

_BACKOFF_S = 0.1
_BACKOFF_CAP_S = 10.0


class TopicRecreated(Fatal):
    """The topic was deleted and created again: the consumer process starts over with nothing in memory."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} was deleted and created again: starting over with it", code=ExitCode.FAILED)


def write_batch(
    batch: Batch, sink: Sink, dead_letters: DeadLetterProducer, slot: Slot, topic_id: Callable[[str], str]
) -> WriteResult:
    """Try to write what is left of a batch, and return what that has reached. The batch itself stays as it is.

    librdkafka does not notice that a topic was deleted and created again, and reads on at the old offset. `topic_id`
    returns the topic's present id: if it is still that of the batch, all of the batch was read from that topic.
    Raises Fatal.
    """
    rows_stored = batch.is_stored or not batch.rows
    sent = False
    try:
        if topic_id(batch.topic) != batch.topic_id:
            raise TopicRecreated(batch.topic)
        if not rows_stored:
            began = time.perf_counter_ns()
            sent = True
            sink.write(batch)
            slot.observe("stage_write", time.perf_counter_ns() - began)
            rows_stored = True
        if batch.dead_letters:
            dead_letters.write(batch.topic, batch.partition, batch.dead_letters)
    except SchemaChanged as error:
        return WriteResult(error=_reopen(sink) or error)
    except BlockTooLarge as error:
        return WriteResult(in_doubt=True, error=error)
    except RowsRefused as error:  # nothing of this try was stored
        return WriteResult(error=error)
    except Retryable as error:
        return WriteResult(rows_stored=rows_stored, in_doubt=sent and not rows_stored, error=error)
    return WriteResult(rows_stored=True, dead_letters_stored=True)


def _reopen(sink: Sink) -> Retryable | None:
    """Have the sink learn its table's columns again; return why it could not."""
    try:
        sink.open()
    except Retryable as error:
        return error
    return None


def verify_topic_ids(expected: Iterable[tuple[str, str]], topic_id: Callable[[str], str]) -> None:
    """Raise TopicRecreated where a topic no longer has its id: one of the same name and length reads as the end."""
    for topic, expected_id in expected:
        try:
            current_id = topic_id(topic)
        except Retryable as error:  # asked again soon, and before each write
            log.warning("%s", error)
            continue
        if current_id != expected_id:
            raise TopicRecreated(topic)


def load_schemas(needed: Iterable[SchemaNeeded]) -> None:
    """Fetch the schemas that partitions wait for. Raises Retryable or Fatal."""
    for schema in needed:
        schema.load()


class Backoff:
    """Pauses that double, up to ten seconds, with jitter so that many consumers do not come back at once."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it is time for the next try."""
        return time.monotonic() >= self._until

    @property
    def has_failed(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def fail(self) -> None:
        pause = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self._until = time.monotonic() + pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures, self._until = 0, 0.0


class Writer:
    """Runs one job at a time, and returns its result."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._future: Future[WriteResult | None] | None = None

    def start(self, job: Callable[[], WriteResult | None]) -> None:
        """Begin a job. The thread waits for an abandoned one first; the caller does not."""
        self._future = self._pool.submit(job)

    def poll(self, timeout: float = 0.0) -> tuple[bool, WriteResult | None]:
        """Wait up to `timeout` seconds for the job; return whether it is done, and its result, or raise."""
        if self._future is None:
            return False, None
        try:
            result = self._future.result(timeout)
        except TimeoutError:
            return False, None  # still under way: what jobs raise is never a TimeoutError
        except BaseException:
            self._future = None
            raise
        self._future = None
        return True, result

    def rest(self, timeout: float) -> None:
        """Sleep where no job is under way, for there is nothing to wait for then."""
        if self._future is None and timeout:
            time.sleep(timeout)

    def abandon(self) -> None:
        """Ignore the job's result; it ends by itself."""
        self._future = None

    def close(self) -> None:
        """Do not wait for a job that hangs: the process is about to end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
