"""The delivery protocol under faults: crashes at any step, lost answers, zombies, rebalances, gaps, forgotten tokens.

The real Consumer runs against a log, a consumer group and a store that keep values; hypothesis chooses what goes wrong.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from worker.config.settings import Settings
from worker.core.batch import Batch, DeadLetter, Field, RecordBatch
from worker.core.counters import Slot, Stats
from worker.core.delivery import Intent, parse_intent, token
from worker.core.errors import Retryable, RowsRefused, SchemaChanged
from worker.ingest.bad_ratio import BadRatio
from worker.ingest.consumer import Consumer
from worker.ingest.topic_sinks import TopicSink, TopicSinks
from worker.ingest.writer import Backoff, Writer
from worker.kafka.group_consumer import Committed, Read

TOPIC = "t"
KEY = (TOPIC, 0)
STATS = Stats()
SLOTS = 6
TOPIC_IDS = itertools.count()
BATCH_ROWS = st.sampled_from([1, 3, 1000])
LINGERS_MS = st.sampled_from([0, 0, 3_600_000])
KIND_LISTS = st.lists(st.sampled_from(["good"] * 5 + ["bad", "poison", "suspect", "tombstone", "gap"]), max_size=12)
OUTCOMES = st.lists(st.sampled_from(["ok", "refused", "answer lost"]), max_size=4)


class World:
    """One partition's log, its group and the store; every offset that was written is counted."""

    def __init__(self) -> None:
        self.topic_id = f"id{next(TOPIC_IDS)}"
        self.log: list[tuple[int, bytes | None]] = []
        self.end = 0
        self.committed: tuple[int, str] | None = None
        self.owner: FakeSource | None = None
        self.tokens: set[str] = set()
        self.rows: dict[int, int] = {}
        self.dead_letters: set[int] = set()
        self.outcomes: list[str] = []
        self.constrained = False
        self.fields = (Field("v", ("v",), list),)
        self.fetch = 5  # messages that one read brings at most
        self.unowned: list[Callable[[], None]] = []
        self.writers: list[FakeWriter] = []

    def expected(self, kind: str) -> set[int]:
        """Return the offsets of one kind of event: good, bad, poison or suspect (see FakeSink)."""
        return {offset for offset, payload in self.log if payload is not None and payload.startswith(KINDS[kind])}


KINDS = {"good": b'{"v":1', "bad": b"x", "poison": b'{"v":2', "suspect": b'{"v":3'}


class FakeSource:
    """What Source offers, against a World. An expelled member learns it at its next read; its commits are refused."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.position: int | None = None
        self.expelled = False

    def join(self, _topics: Any, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def assign(self) -> None:
        self.world.owner = self
        self.expelled = False
        self.position = 0
        self.position = self.on_assign([KEY])[KEY]

    def revoke(self) -> None:
        self.on_revoke([KEY])
        self.position, self.world.owner = None, None

    def read(self, _timeout: float) -> Read:
        if self.expelled:
            self.expelled = False
            self.position = None
            self.on_lost([KEY])
        if self.position is None:
            return Read([], [], [])
        there = [(offset, payload) for offset, payload in self.world.log if offset >= self.position]
        there = there[: self.world.fetch]
        if not there:
            return Read([], [(TOPIC, 0, self.world.end)], [])
        self.position = there[-1][0] + 1
        records = RecordBatch(
            TOPIC, 0, [payload for _, payload in there], [offset for offset, _ in there], self.position, 0
        )
        return Read([records], [], [])

    def committed(self, _partitions: Any) -> dict[tuple[str, int], Committed]:
        offset, metadata = self.world.committed or (None, None)
        return {KEY: Committed(offset, metadata, self.world.topic_id, 0)}

    def commit(self, offsets: list[tuple[str, int, int, str]]) -> None:
        if self.world.owner is not self:
            raise Retryable("expelled", reason="fenced")
        ((_, _, offset, metadata),) = offsets
        assert self.world.committed is None or offset >= self.world.committed[0], "a commit went backwards"
        self.world.committed = (offset, metadata)

    def topic_id(self, _topic: str) -> str:
        return self.world.topic_id

    def seek(self, _topic: str, _partition: int, offset: int) -> None:
        self.position = offset

    def begin(self, topic: str, partition: int, offset: int) -> bool:
        self.seek(topic, partition, offset)
        return True

    def pause(self, _keys: Any) -> None: ...

    def resume(self, _keys: Any) -> None: ...

    def close(self) -> None:
        if self.world.owner is self:
            self.revoke()


class FakeSink:
    """A table with a deduplication window, a constraint against poison, and maybe a second one, against suspects.

    It may be altered, too. The drawn outcomes come first, then all goes well.
    """

    dedup_retention_ms = 3_600_000.0  # all that an example takes; `window_expires` makes intents older

    def __init__(self, world: World, exactly_once: bool) -> None:
        self.world = world
        self.exactly_once = exactly_once
        self.open()

    def open(self) -> None:
        self.fields = self.world.fields

    def close(self) -> None: ...

    def write(self, batch: Batch) -> None:
        if not batch.fields is self.fields is self.world.fields:
            raise SchemaChanged("altered")
        outcome = self.world.outcomes.pop() if self.world.outcomes else "ok"
        if outcome == "refused":
            raise Retryable("no", reason="other")
        values = [value for part in batch.columns[0] for value in part]
        if 2 in values or (3 in values and self.world.constrained):
            raise RowsRefused("constraint")
        offsets = [offset for part in batch.offsets for offset in part]
        assert len(values) == len(offsets) == batch.rows
        if token(batch) not in self.world.tokens:
            for offset in offsets:
                self.world.rows[offset] = self.world.rows.get(offset, 0) + 1
        self.world.tokens.add(token(batch))
        if outcome == "answer lost":
            raise Retryable("lost", reason="timeout")

    def count_stored_rows(self, _topic: str, _partition: int, start: int, end: int) -> int | None:
        if not self.exactly_once:
            return None
        return sum(count for offset, count in self.world.rows.items() if start <= offset < end)

    def devices(self, *_: Settings, topic: str = "") -> int:  # noqa: ARG002 (the protocol's)
        return 0


class FakeLetters:
    def __init__(self, world: World) -> None:
        self.world = world

    def topic_for(self, topic: str) -> str:
        return f"{topic}.dlq"

    def write(self, _topic: str, _partition: int, dead_letters: list[DeadLetter]) -> None:
        self.world.dead_letters.update(dead_letter.offset for dead_letter in dead_letters)


class NoPause:
    over = True

    def failed(self) -> None: ...

    def reset(self) -> None: ...


class FakeWriter:
    """Runs its job when it is asked for the outcome; a dropped job runs on unheard, at a moment hypothesis chooses."""

    def __init__(self, world: World) -> None:
        self.backoff = NoPause()
        self._world = world
        world.writers.append(self)
        self._job: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        return self._job is not None

    def start(self, job: Callable[[], None]) -> None:
        assert self._job is None
        self._job = job

    def poll(self, _timeout: float = 0.0) -> bool:
        job, self._job = self._job, None
        if job is None:
            return False
        job()
        return True

    def drop(self) -> None:
        if self._job:
            self._world.unowned.append(self._job)
        self._job = None

    def rest(self, timeout: float) -> None: ...

    def close(self) -> None: ...


class Member:
    """A consumer process."""

    def __init__(
        self, world: World, index: int, exactly_once: bool, batch_rows: int, linger_ms: int, ready: bool = True
    ) -> None:
        self.world = world
        self.ready = ready  # whether its sink is open when it gets the partition
        self.group_consumer = FakeSource(world)
        self.writer = FakeWriter(world)
        parts: dict[str, Any] = {
            "group_consumer": self.group_consumer,
            "topic_sinks": TopicSinks(self.topic_sink),
            "dead_letters": FakeLetters(world),
            "writer": self.writer,
        }
        options = Settings(topic=TOPIC, linger_ms=linger_ms, batch_rows=batch_rows)
        self.exactly_once = exactly_once
        self.consumer = Consumer(options, STATS, index, **parts)
        self.consumer.join()
        self.consumer._housekeeping_at = math.inf  # a full collection each time would be all that the test does

    def topic_sink(self, topic: str) -> TopicSink:
        pause: Any = NoPause()
        return TopicSink(topic, FakeSink(self.world, self.exactly_once), BadRatio(1.0), pause, open=self.ready)

    def turn(self) -> None:
        self.consumer.turn()


class Delivery(RuleBasedStateMachine):
    """Whatever happens: a good event is one row, a bad one a letter, and the group's offset never passes either."""

    members = Bundle("members")
    exactly_once = True

    def __init__(self) -> None:
        super().__init__()
        for index in range(SLOTS):
            STATS.slot(index).set("ledgers", 0)
        self.world = World()
        self.slots = itertools.count()

    @initialize(target=members, batch_rows=BATCH_ROWS, linger_ms=LINGERS_MS, kinds=KIND_LISTS)
    def begin(self, batch_rows: int, linger_ms: int, kinds: list[str]) -> Any:
        """Begin with an owner and something to read: most faults need both."""
        self.produce(kinds)
        member = Member(self.world, next(self.slots), self.exactly_once, batch_rows, linger_ms)
        member.group_consumer.assign()
        return member

    @rule(target=members, batch_rows=BATCH_ROWS, linger_ms=LINGERS_MS, ready=st.booleans())
    def start(self, batch_rows: int, linger_ms: int, ready: bool) -> Any:
        index = next(self.slots)
        if index >= SLOTS - 1:
            return multiple()
        return Member(self.world, index, self.exactly_once, batch_rows, linger_ms, ready)

    @rule(kinds=KIND_LISTS)
    def produce(self, kinds: list[str]) -> None:
        for kind in kinds:
            if kind != "gap":
                payload = None if kind == "tombstone" else KINDS[kind] + (b"" if kind == "bad" else b"}")
                self.world.log.append((self.world.end, payload))
            self.world.end += 1

    @rule(member=members, outcomes=OUTCOMES, fetch=st.integers(1, 5))
    def turn(self, member: Member, outcomes: list[str], fetch: int) -> None:
        self.world.outcomes, self.world.fetch = outcomes, fetch
        member.turn()
        self.world.outcomes = []

    @rule(member=members, kinds=KIND_LISTS, outcomes=OUTCOMES, fetch=st.integers(1, 5), count_stored_rows=st.booleans())
    def succeed(
        self, member: Member, kinds: list[str], outcomes: list[str], fetch: int, count_stored_rows: bool
    ) -> None:
        """The owner vanishes while it writes, more events come, and another takes over."""
        owner = self.world.owner
        if owner is not None and owner is not member.group_consumer and not member.group_consumer.expelled:
            self.expel_owner(owner)
            self.produce(kinds)
            if count_stored_rows:
                for writer in self.world.writers:
                    writer.drop()
                self.orphan_lands()
            member.group_consumer.assign()
            self.turn(member, outcomes, fetch)
            self.turn(member, [], fetch)

    @rule(member=members)
    def rebalance(self, member: Member) -> None:
        """The group moves the partition in good order."""
        if self.world.owner is not member.group_consumer:
            if self.world.owner is not None:
                self.world.owner.revoke()
            if not member.group_consumer.expelled:
                member.group_consumer.assign()

    @rule(member=members)
    def expel(self, member: Member) -> None:
        """The owner is stopped for longer than its session; it finds out when it goes on."""
        if self.world.owner is member.group_consumer:
            self.expel_owner(member.group_consumer)

    def expel_owner(self, owner: FakeSource) -> None:
        owner.expelled = True
        self.world.owner = None

    @rule(member=consumes(members))
    def crash(self, member: Member) -> None:
        """Kill -9: what was being written may still land."""
        if self.world.owner is member.group_consumer:
            self.world.owner = None
        member.writer.drop()

    @rule()
    def orphan_lands(self) -> None:
        """A job that nobody waits for any longer does its work."""
        if self.world.unowned:
            with suppress(Retryable, RowsRefused, SchemaChanged):
                self.world.unowned.pop()()

    @rule()
    def window_expires(self) -> None:
        """The server forgets all tokens; none of an insert that is still under way, which README says it must not."""
        writers = self.world.writers
        if not self.world.unowned and self.world.owner is None and not any(writer.busy for writer in writers):
            self.world.tokens.clear()
            offset, metadata = self.world.committed or (0, "")
            if intent := parse_intent(metadata):
                self.world.committed = (offset, intent._replace(time_ms=1).encode())

    @rule()
    def constrain(self) -> None:
        """ALTER TABLE … ADD CONSTRAINT: what is stored stays, what comes is refused."""
        self.world.constrained = True

    @rule()
    def alter(self) -> None:
        """ALTER TABLE … MODIFY COLUMN."""
        self.world.fields = (Field("v", ("v",), list),)

    @rule(member=consumes(members))
    def stop(self, member: Member) -> None:
        """SIGTERM."""
        if not member.group_consumer.expelled:
            member.consumer.stop()
            assert member.consumer.drain() == 0

    @invariant()
    def nothing_is_doubled_or_passed_over(self) -> None:
        world = self.world
        if self.exactly_once:
            assert set(world.rows.values()) <= {1}
        committed = world.committed[0] if world.committed else 0
        for offset in world.expected("good"):
            assert offset >= committed or offset in world.rows
        for offset in world.expected("bad") | world.expected("poison"):
            assert offset >= committed or offset in world.dead_letters
        for offset in world.expected("suspect"):
            places = (offset in world.rows) + (offset in world.dead_letters)
            assert places == 1 or (places > 1 and not self.exactly_once) or offset >= committed

    @invariant()
    def every_ledger_balances(self) -> None:
        for slot in (STATS.slot(index) for index in range(SLOTS)):
            for ledger in slot.ledgers():
                assert ledger.unaccounted == 0
                assert ledger.get("in_flight") >= 0

    def teardown(self) -> None:
        """One more owner finishes what is left."""
        world = self.world
        if world.owner is not None:
            world.owner.revoke()
        member = Member(world, SLOTS - 1, self.exactly_once, 1000, 0)
        member.group_consumer.assign()
        for _ in range(10 * len(world.log) + 20):
            member.turn()
        suspects = world.expected("suspect")
        assert set(world.rows) - suspects == world.expected("good")
        assert world.dead_letters - suspects == world.expected("bad") | world.expected("poison")
        assert (world.committed[0] if world.committed else 0) == world.end
        self.nothing_is_doubled_or_passed_over()


class AtLeastOnce(Delivery):
    """Without tokens: nothing is missing, a row may be there twice."""

    exactly_once = False


_budget = settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestExactlyOnce = Delivery.TestCase
TestExactlyOnce.settings = _budget
TestAtLeastOnce = AtLeastOnce.TestCase
TestAtLeastOnce.settings = _budget


def test_an_intent_survives_the_commit_metadata() -> None:
    intent = Intent("AbC-_1", 5, 9, 4, 1_700_000_000_000)
    assert parse_intent(intent.encode()) == intent


def test_metadata_of_other_tools_is_no_intent() -> None:
    for metadata in (
        None,
        "",
        "v1",
        "v1;a;1;2",
        "v2;id;1;2;1;0",
        "v1;id;2;1;1;0",
        "v1;id;x;2;1;0",
        orjson.dumps({}).decode(),
    ):
        assert parse_intent(metadata) is None


@pytest.mark.parametrize("change", ["constrained", "altered"])
def test_a_block_that_landed_before_its_table_changed_is_not_written_again(change: str) -> None:
    """Its answer was lost; the store refuses the second try, or has to be given the rows in another form."""
    STATS.slot(0).set("ledgers", 0)
    world = World()
    world.log = [(offset, KINDS["suspect"] + b"}") for offset in range(3)]
    world.end = 3
    member = Member(world, 0, True, 1000, 0)
    member.group_consumer.assign()
    world.outcomes = ["answer lost"]
    for _ in range(10):
        member.turn()
        if world.rows:
            break
    assert world.rows == {0: 1, 1: 1, 2: 1}
    if change == "constrained":
        world.constrained = True
    else:
        world.fields = (Field("v", ("v",), list),)
        world.log += [(offset, KINDS["good"] + b"}") for offset in range(3, 6)]
        world.end = 6
    for _ in range(50):
        member.turn()
    assert world.rows == dict.fromkeys(range(world.end), 1)
    assert not world.dead_letters
    assert world.committed is not None
    assert world.committed[0] == world.end


class Away(FakeSink):
    """A store that nobody reaches."""

    def open(self) -> None:
        raise Retryable("away", reason="connection")

    def __init__(self) -> None: ...


def test_a_consumer_that_waits_for_its_store_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once took a whole core for as long as the store was away."""
    world, beats = World(), itertools.count()
    STATS.topic_list.write([TOPIC])
    topic_sinks = TopicSinks(lambda topic: TopicSink(topic, Away(), BadRatio(1.0), Backoff()))
    parts: dict[str, Any] = {
        "group_consumer": FakeSource(world),
        "dead_letters": FakeLetters(world),
        "writer": Writer(),
    }
    consumer = Consumer(Settings(topic=TOPIC), STATS, 0, topic_sinks=topic_sinks, **parts)
    monkeypatch.setattr(Slot, "beat", lambda _: next(beats))
    threading.Timer(1.0, consumer.stop).start()
    assert not consumer._reach_store()
    assert next(beats) < 50
