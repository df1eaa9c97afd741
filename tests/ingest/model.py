"""What surrounds a Consumer, as values: logs, a consumer group and a table for each topic, all of which may fail."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.config.settings import Settings
from worker.core.batch import Batch, DeadLetter, WriteResult
from worker.core.counters import Stats
from worker.core.delivery import Committed, token, token_decides
from worker.core.errors import BlockTooLarge, Retryable, RowsRefused, SchemaChanged
from worker.core.records import Decoded, Field, Key, RecordBatch
from worker.core.schemas import SchemaNeeded
from worker.decoding.json import read_events
from worker.decoding.transform import Transform
from worker.ingest.bad_ratio import BadRatio
from worker.ingest.consumer import Consumer
from worker.ingest.topic_sinks import TopicSink, TopicSinks
from worker.ingest.writer import TopicRecreated
from worker.kafka.readers import Read, ReadError

TOPICS = ("a", "b")
KEYS: tuple[Key, ...] = tuple((topic, partition) for topic in TOPICS for partition in range(2))
STATS = Stats()
KINDS = {
    "good": b'{"v":1',
    "bad": b"x",
    "poison": b'{"v":2',
    "suspect": b'{"v":3',
    "dropped": b'{"v":4',
    "failing": b'{"v":5',
}
TABLE_PARTITIONS = 2  # a block is as many parts, by its rows' offsets
_TOPIC_IDS = itertools.count()


def transform(events: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Drop events, and fail for some: the function of `--transform`."""
    if any(event["v"] == 5 for event in events):
        raise ValueError
    return [None if event["v"] == 4 else event for event in events]


@dataclass
class Log:
    """One partition's log, and the group's commit for it."""

    topic_id: str
    records: list[tuple[int, bytes | None]] = field(default_factory=list)
    start: int = 0
    end: int = 0
    committed: tuple[int, str] | None = None
    lost_below: int = 0  # retention has removed events below it that nobody had read
    begin: int = 0  # where the group began: --start
    until: int | None = None  # where it ends: --until

    @property
    def committed_offset(self) -> int:
        """The offset that the group has committed for this topic, not for an earlier one of its name."""
        return self.committed[0] if self.committed and self.topic_id in self.committed[1] else 0

    @property
    def last(self) -> int:
        """The offset up to which the group reads."""
        return self.end if self.until is None else min(self.end, self.until)

    def expected(self, kind: str) -> set[int]:
        """Return the offsets of one kind of event: see FakeSink and `transform`."""
        prefix = KINDS[kind]
        return {
            offset
            for offset, payload in self.records
            if payload is not None and payload.startswith(prefix) and offset >= self.lost_below
            if self.begin <= offset < self.last
        }

    def append(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            if kind != "gap":
                payload = None if kind == "tombstone" else KINDS[kind] + (b"" if kind == "bad" else b"}")
                self.records.append((self.end, payload))
            self.end += 1


@dataclass
class Table:
    """One topic's table: how often each event is in it, by topic id, partition and offset."""

    rows: dict[tuple[str, int, int], int] = field(default_factory=dict)
    tokens: set[tuple[str, int]] = field(default_factory=set)  # of each part
    constrained: bool = False
    fields: tuple[Field, ...] = (Field("v", ("v",), list),)
    accepted: list[tuple[Field, ...]] = field(default_factory=list)  # what blocks may have been formed for, besides
    is_down: bool = False
    writes: int = 0

    def alter(self) -> None:
        self.fields, self.accepted = (Field("v", ("v",), list),), []

    def add_column(self) -> None:
        """Add a column that no event has; blocks without it are still accepted."""
        self.accepted.append(self.fields)
        self.fields = (*self.fields, Field(f"w{len(self.fields)}", ("w",), list, required=False))

    def takes(self, fields: Sequence[Field]) -> bool:
        return any(fields is known for known in (self.fields, *self.accepted))


class World:
    """Two topics of two partitions, their group and their tables; every offset that is written is counted."""

    def __init__(self) -> None:
        ids = {topic: f"id{next(_TOPIC_IDS)}" for topic in TOPICS}
        self.logs = {key: Log(ids[key[0]]) for key in KEYS}
        self.tables = {topic: Table() for topic in TOPICS}
        self.owner: FakeGroupConsumer | None = None
        self.dead_letters: set[tuple[str, int, int]] = set()  # topic id, partition, offset
        self.dead_letter_topic_is_down = False
        self.outcomes: list[str] = []
        self.fetch = 5  # messages of a partition that one read brings at most
        self.read_errors: list[Key] = []
        self.abandoned: list[Callable[[], Any]] = []
        self.writers: list[FakeWriter] = []
        self.recreated = False
        self.clock = 0
        self.missing_schemas = 0  # how many more record batches name a schema that nobody has fetched
        self.registry_is_down = False
        self.leaderless: set[Key] = set()  # Kafka answers nothing about these
        self.unanswered = 0  # how many more questions for commits Kafka does not answer
        self.rejected: set[int] = set()  # positions in the next record batch whose schema the registry lacks

    def recreate(self, topic: str) -> None:
        """Delete a topic and create it again: the group's commits stay, and so do the table's rows."""
        topic_id = f"id{next(_TOPIC_IDS)}"
        for key in KEYS:
            if key[0] == topic:
                self.logs[key] = Log(topic_id, committed=self.logs[key].committed)
        self.recreated = True

    def remove_prefix(self, key: Key, count: int) -> None:
        """Have retention remove the oldest events of a log."""
        log = self.logs[key]
        log.start = min(log.end, log.start + count)
        if log.start > log.committed_offset:
            log.lost_below = log.start

    def decode(self, payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
        """Decode JSON; where a schema is missing, only after its fetch."""
        if self.missing_schemas:
            raise SchemaNeeded(self._fetch_schema)
        unknown = [i for i in self.rejected if i < len(payloads)]
        decode = Transform("model:transform", transform, read_events).decode
        return decode([b"x" if i in unknown else payload for i, payload in enumerate(payloads)], fields)

    def _fetch_schema(self) -> None:
        if self.registry_is_down:
            raise Retryable("down", reason="schema_registry")
        self.missing_schemas = max(0, self.missing_schemas - 1)


class FakeGroupConsumer:
    """What GroupConsumer offers. An expelled member learns it at its next read; its commits are refused."""

    read_limit = 1000

    def __init__(self, world: World) -> None:
        self.world = world
        self.positions: dict[Key, int | None] = {}
        self.paused: set[Key] = set()
        self.expelled = False

    def join(self, _topics: Any, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def assign(self) -> None:
        self.world.owner = self
        self.expelled = False
        self.positions = dict.fromkeys(KEYS, None)
        self.positions |= self.on_assign(list(KEYS))
        self.paused = {key for key, position in self.positions.items() if position is None}

    def assign_again(self, key: Key) -> None:
        """Take one partition and give it back, as incremental assignment does, while the others are read on."""
        self.on_revoke([key])
        self.positions.pop(key)
        start = self.on_assign([key])[key]
        self.positions[key] = start
        (self.paused.add if start is None else self.paused.discard)(key)

    def revoke(self) -> None:
        self.on_revoke(list(KEYS))
        self.positions, self.world.owner = {}, None

    def read(self, _timeout: float) -> Read:
        if self.expelled:
            self.expelled = False
            self.positions = {}
            self.on_lost(list(KEYS))
        read = Read([], [], [])
        errors, self.world.read_errors = self.world.read_errors, []
        for key, position in self.positions.items():
            if position is not None and key not in self.paused:
                self._read(key, position, key in errors, read)
        return read

    def _read(self, key: Key, position: int, fails: bool, read: Read) -> None:
        log = self.world.logs[key]
        if fails or position < log.start:
            read.errors.append(ReadError(*key, position < log.start, "cannot be read"))
            return
        found = [(offset, payload) for offset, payload in log.records if offset >= max(position, log.start)]
        found = found[: self.world.fetch]
        if not found:
            read.ends.append((*key, log.end))
            return
        self.positions[key] = end = found[-1][0] + 1
        payloads, offsets = [payload for _, payload in found], [offset for offset, _ in found]
        read.record_batches.append(RecordBatch(*key, payloads, offsets, end, 0))
        if found[-1] == log.records[-1]:
            read.ends.append((*key, log.end))

    def committed(self, partitions: list[Key]) -> dict[Key, Committed]:
        if self.world.unanswered:
            self.world.unanswered -= 1
            raise Retryable("no answer", reason="connection")
        found = {}
        for key in (key for key in partitions if key not in self.world.leaderless):
            log = self.world.logs[key]
            offset, metadata = log.committed or (None, None)
            found[key] = Committed(offset, metadata, log.topic_id, log.start, log.end, log.until)
        return found

    def commit(self, offsets: list[tuple[str, int, int, str]]) -> None:
        if self.world.owner is not self:
            raise Retryable("expelled", reason="fenced")
        for topic, partition, offset, metadata in offsets:
            log = self.world.logs[topic, partition]
            if log.committed and log.topic_id in log.committed[1] and log.topic_id in metadata:
                assert offset >= log.committed[0], "a commit went backwards"
            log.committed = (offset, metadata)

    def topic_id(self, topic: str) -> str:
        return self.world.logs[topic, 0].topic_id

    def log_start(self, topic: str, partition: int) -> int | None:
        return self.world.logs[topic, partition].start

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self.positions[topic, partition] = offset

    def begin(self, topic: str, partition: int, offset: int) -> bool:
        self.seek(topic, partition, offset)
        self.resume([(topic, partition)])
        return True

    def pause(self, keys: Iterable[Key]) -> None:
        self.paused.update(keys)

    def resume(self, keys: Iterable[Key]) -> None:
        self.paused.difference_update(keys)

    def close(self) -> None:
        if self.world.owner is self:
            self.revoke()


class FakeSink:
    """A table with a deduplication window, a constraint against poison, and maybe a second one, against suspects.

    A block is written part by part. The drawn outcomes come first, then all goes well.
    """

    retention_ms = 3_600_000.0  # all that an example takes; `evict_tokens` makes intents older

    def __init__(self, world: World, topic: str, exactly_once: bool) -> None:
        self.world = world
        self.table = world.tables[topic]
        self.exactly_once = exactly_once
        self.open()

    def open(self) -> None:
        self.fields = self.table.fields

    def close(self) -> None: ...

    def write(self, batch: Batch) -> None:
        table = self.table
        table.writes += 1
        self._raise_if_down()
        if batch.fields is not self.fields or not table.takes(self.fields):
            raise SchemaChanged("altered")
        assert [len(parts) for parts in batch.columns] == [len(batch.offsets)] * len(self.fields)
        outcome = self.world.outcomes.pop() if self.world.outcomes else "ok"
        if outcome == "refused":
            raise Retryable("no", reason="other")
        offsets = [offset for part in batch.offsets for offset in part]
        values = [value for part in batch.columns[0] for value in part]
        assert len(values) == len(offsets) == batch.rows
        if self.exactly_once and not token_decides(batch, self.retention_ms, time.time() * 1000):
            known = {offset for _, partition, offset in table.rows if partition == batch.partition}
            rows = [(o, v) for o, v in zip(offsets, values, strict=True) if o not in known]
            offsets, values = [o for o, _ in rows], [v for _, v in rows]
        if 2 in values or (3 in values and table.constrained):
            if (
                batch.in_doubt
                and self.exactly_once
                and self._count(batch.partition, batch.start, batch.end) >= batch.rows
            ):
                return
            raise RowsRefused("constraint")
        if outcome == "too large" and (self.world.recreated or batch.consumed < 2):
            raise Retryable("a row exceeds the memory limit", reason="memory")
        for part in range(TABLE_PARTITIONS):
            self._write_part(batch, part, [offset for offset in offsets if offset % TABLE_PARTITIONS == part])
            if outcome == "too large":
                raise BlockTooLarge("memory limit, after a part")
            if outcome == "partial":
                raise Retryable("crashed after a part", reason="connection")
        if outcome == "answer lost":
            raise Retryable("lost", reason="timeout")
        if outcome == "view":
            raise Retryable("a view raises", reason="view")

    def _write_part(self, batch: Batch, part: int, offsets: list[int]) -> None:
        if (token(batch), part) not in self.table.tokens or batch.recut:
            for offset in offsets:
                row = (batch.topic_id, batch.partition, offset)
                self.table.rows[row] = self.table.rows.get(row, 0) + 1
        self.table.tokens.add((token(batch), part))

    def _count(self, partition: int, start: int, end: int) -> int:
        self._raise_if_down()
        return sum(
            count
            for (_, number, offset), count in self.table.rows.items()
            if number == partition and start <= offset < end
        )

    def count_stored_rows(self, _topic: str, partition: int, start: int, end: int) -> int | None:
        return self._count(partition, start, end) if self.exactly_once else None

    def _raise_if_down(self) -> None:
        if self.table.is_down:
            raise Retryable("down", reason="connection")

    def last_stored_offset(self, _topic: str, partition: int, start: int, end: int | None = None) -> int | None:
        self._raise_if_down()
        rows = self.table.rows if self.exactly_once else ()
        offsets = (offset for _, number, offset in rows if number == partition)
        return max((offset for offset in offsets if start <= offset < (end or math.inf)), default=None)

    def is_empty(self) -> bool:
        return not self.table.rows

    def devices(self, *_: Settings, topic: str = "") -> int:  # noqa: ARG002 (the protocol's)
        return 0

    def window_devices(self) -> dict[str, int]:
        return {}


class FakeDeadLetterProducer:
    def __init__(self, world: World) -> None:
        self.world = world

    def write(self, topic: str, partition: int, dead_letters: list[DeadLetter]) -> None:
        if self.world.dead_letter_topic_is_down:
            raise Retryable("down", reason="other")
        topic_id = self.world.logs[topic, partition].topic_id
        self.world.dead_letters.update((topic_id, partition, dead_letter.offset) for dead_letter in dead_letters)


class FakeBackoff:
    """A pause after a failure, by the world's clock, which counts the steps of all pipelines."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._until = 0
        self.has_failed = False

    @property
    def is_over(self) -> bool:
        return self._world.clock >= self._until

    def fail(self) -> None:
        self.has_failed, self._until = True, self._world.clock + 2

    def reset(self) -> None:
        self.has_failed, self._until = False, 0


class FakeWriter:
    """Runs its job when it is asked for the result; an abandoned job runs later, when hypothesis chooses."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.writers.append(self)
        self._job: Callable[[], WriteResult | None] | None = None

    @property
    def busy(self) -> bool:
        return self._job is not None

    def start(self, job: Callable[[], WriteResult | None]) -> None:
        assert self._job is None
        self._job = job

    def poll(self, _timeout: float = 0.0) -> tuple[bool, WriteResult | None]:
        job, self._job = self._job, None
        return (False, None) if job is None else (True, job())

    def abandon(self) -> None:
        if self._job:
            self._world.abandoned.append(self._job)
        self._job = None

    def rest(self, _timeout: float) -> None:
        self._world.clock += 1

    def close(self) -> None: ...


class Member:
    """A consumer process."""

    def __init__(
        self, world: World, index: int, exactly_once: bool, batch_rows: int, linger_ms: int, ready: bool = True
    ) -> None:
        self.world = world
        self.ready = ready  # whether its sinks are open when it gets the partitions
        self.is_dead = False
        self.group_consumer = FakeGroupConsumer(world)
        self.writer = FakeWriter(world)
        parts: dict[str, Any] = {
            "group_consumer": self.group_consumer,
            "topic_sinks": TopicSinks(self.topic_sink),
            "dead_letters": FakeDeadLetterProducer(world),
            "writer": self.writer,
            "decode": world.decode,
        }
        options = Settings(topic=",".join(TOPICS), linger_ms=linger_ms, batch_rows=batch_rows)
        self.exactly_once = exactly_once
        self.consumer = Consumer(options, STATS, index, **parts)
        self.consumer.join()
        self.consumer._housekeeping_at = math.inf  # a full collection each time would be all that the test does
        backoff: Any = FakeBackoff(world)
        self.consumer._pipeline._commit_backoff = backoff
        schema_backoff: Any = FakeBackoff(world)
        self.consumer._pipeline._schema_backoff = schema_backoff

    def topic_sink(self, topic: str) -> TopicSink:
        backoff: Any = FakeBackoff(self.world)
        return TopicSink(
            topic, FakeSink(self.world, topic, self.exactly_once), BadRatio(1.0), backoff, is_open=self.ready
        )

    def turn(self) -> None:
        """Go round the loop once; a process whose topic was recreated ends."""
        if self.is_dead:
            return
        try:
            self.consumer.turn()
        except TopicRecreated:
            self.consumer._rebalance_handler.release(self.consumer._assignment.keys())
            self.die()

    def die(self) -> None:
        self.is_dead = True
        if self.world.owner is self.group_consumer:
            self.world.owner = None
        self.writer.abandon()
