"""The delivery protocol under faults: crashes at any step, lost answers, zombies, rebalances, gaps, evicted tokens.

The real Consumer runs against the values of `model`; hypothesis chooses what goes wrong.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tests.ingest.model import (
    KEYS,
    STATS,
    TOPICS,
    FakeDeadLetterProducer,
    FakeGroupConsumer,
    FakeSink,
    Member,
    World,
)
from worker.config.settings import Settings
from worker.core.counters import Slot
from worker.core.delivery import Intent, PartitionState, parse_intent, start_marker
from worker.core.errors import Retryable
from worker.core.records import Key
from worker.ingest import consumer, rebalance
from worker.ingest.bad_ratio import BadRatio
from worker.ingest.consumer import Consumer
from worker.ingest.topic_sinks import TopicSink, TopicSinks
from worker.ingest.writer import Backoff, TopicRecreated, Writer

SLOTS = 6
BATCH_ROWS = st.sampled_from([1, 3, 1000])
LINGERS_MS = st.sampled_from([0, 0, 3_600_000])
PARTITIONS = st.sampled_from(KEYS)
KIND_LISTS = st.lists(
    st.sampled_from(["good"] * 5 + ["bad", "poison", "suspect", "tombstone", "gap", "dropped", "failing"]), max_size=12
)
OUTCOMES = st.lists(st.sampled_from(["ok", "refused", "answer lost", "partial", "view", "too large"]), max_size=4)


@pytest.fixture(autouse=True, scope="module")
def _no_wait_before_a_pause() -> Iterator[None]:
    """The model's clock counts turns, so waiting for real seconds would change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer, "_PAUSE_AFTER_S", 0.0)
        patch.setattr(rebalance, "_RETRY_S", 0.0)
        yield


class Delivery(RuleBasedStateMachine):
    """Whatever happens: a good event is one row, a bad one a dead letter, and no committed offset passes either."""

    members = Bundle("members")
    exactly_once = True

    def __init__(self) -> None:
        super().__init__()
        for index in range(SLOTS):
            STATS.slot(index).set("ledgers", 0)
        self.world = World()
        self.slots = itertools.count()

    @initialize(target=members, batch_rows=BATCH_ROWS, linger_ms=LINGERS_MS, key=PARTITIONS, kinds=KIND_LISTS)
    def begin(self, batch_rows: int, linger_ms: int, key: Key, kinds: list[str]) -> Any:
        """Begin with an owner and something to read: most faults need both."""
        self.produce(key, kinds)
        member = Member(self.world, next(self.slots), self.exactly_once, batch_rows, linger_ms)
        member.group_consumer.assign()
        return member

    @rule(target=members, batch_rows=BATCH_ROWS, linger_ms=LINGERS_MS, ready=st.booleans())
    def start(self, batch_rows: int, linger_ms: int, ready: bool) -> Any:
        index = next(self.slots)
        if index >= SLOTS - 1:
            return multiple()
        return Member(self.world, index, self.exactly_once, batch_rows, linger_ms, ready)

    @rule(key=PARTITIONS, kinds=KIND_LISTS)
    def produce(self, key: Key, kinds: list[str]) -> None:
        self.world.logs[key].append(kinds)

    @rule(member=members, outcomes=OUTCOMES, fetch=st.integers(1, 5))
    def turn(self, member: Member, outcomes: list[str], fetch: int) -> None:
        self.world.outcomes, self.world.fetch = outcomes, fetch
        member.turn()
        self.world.outcomes = []

    @rule(
        member=members,
        key=PARTITIONS,
        kinds=KIND_LISTS,
        outcomes=OUTCOMES,
        fetch=st.integers(1, 5),
        lands=st.booleans(),
    )
    def succeed(self, member: Member, key: Key, kinds: list[str], outcomes: list[str], fetch: int, lands: bool) -> None:
        """The owner vanishes while it writes, more events come, and another takes over."""
        owner = self.world.owner
        if owner is None or owner is member.group_consumer or member.group_consumer.expelled or member.is_dead:
            return
        self.expel_owner(owner)
        self.produce(key, kinds)
        if lands:
            for writer in self.world.writers:
                writer.abandon()
            self.abandoned_job_runs()
        member.group_consumer.assign()
        self.turn(member, outcomes, fetch)
        self.turn(member, [], fetch)

    @rule(member=members)
    def rebalance(self, member: Member) -> None:
        """The group moves the partitions in good order."""
        if member.is_dead:
            return
        if self.world.owner is not member.group_consumer:
            if self.world.owner is not None:
                self.revoke(self.world.owner)
            if not member.group_consumer.expelled:
                member.group_consumer.assign()

    def revoke(self, owner: FakeGroupConsumer) -> None:
        try:
            owner.revoke()
        except TopicRecreated:  # its process ends, without a commit
            self.world.owner = None
            owner.expelled = True

    @rule(member=members)
    def expel(self, member: Member) -> None:
        """The owner is stopped for longer than its session; it finds out when it continues."""
        if self.world.owner is member.group_consumer:
            self.expel_owner(member.group_consumer)

    def expel_owner(self, owner: FakeGroupConsumer) -> None:
        owner.expelled = True
        self.world.owner = None

    @rule(member=consumes(members))
    def crash(self, member: Member) -> None:
        """Kill -9: what was being written may still be stored."""
        member.die()

    @rule()
    def abandoned_job_runs(self) -> None:
        """A job whose result nobody waits for any longer does its work."""
        if self.world.abandoned:
            with suppress(TopicRecreated, Retryable):
                self.world.abandoned.pop()()

    @rule(key=PARTITIONS)
    def read_error(self, key: Key) -> None:
        """The next read of a partition fails once: an error that librdkafka had queued."""
        self.world.read_errors.append(key)

    @rule(key=PARTITIONS, count=st.integers(1, 6))
    def remove_prefix(self, key: Key, count: int) -> None:
        """Retention removes the oldest events, read or not."""
        self.world.remove_prefix(key, count)

    @rule(topic=st.sampled_from(TOPICS))
    def recreate(self, topic: str) -> None:
        """A topic is deleted and created again."""
        self.world.recreate(topic)

    @rule(topic=st.sampled_from(TOPICS), is_down=st.booleans())
    def fail_store(self, topic: str, is_down: bool) -> None:
        """The table of one topic fails, or works again."""
        self.world.tables[topic].is_down = is_down

    @rule(key=PARTITIONS)
    def assign_again(self, key: Key) -> None:
        """One partition moves away and comes back; the others stay."""
        if owner := self.world.owner:
            try:
                owner.assign_again(key)
            except TopicRecreated:  # its process ends, without a commit
                self.world.owner = None
                owner.expelled = True

    @rule(keys=st.sets(PARTITIONS))
    def lose_leaders(self, keys: set[Key]) -> None:
        """These partitions have no leader, all others have one."""
        self.world.leaderless = keys

    @rule(count=st.integers(1, 4))
    def leave_unanswered(self, count: int) -> None:
        """Kafka does not tell what the group has committed."""
        self.world.unanswered = count

    @rule(count=st.integers(1, 3), is_down=st.booleans())
    def name_new_schemas(self, count: int, is_down: bool) -> None:
        """The next record batches name schemas that have to be fetched; the registry may be down."""
        self.world.missing_schemas, self.world.registry_is_down = count, is_down

    @rule()
    def evict_tokens(self) -> None:
        """The server forgets all tokens; none of an insert that is under way, which docs/guarantees.md excludes.

        Of a topic that was recreated the look-up cannot tell its rows from the earlier one's: excluded there, too.
        """
        world = self.world
        if world.abandoned or world.owner is not None or world.recreated or any(w.busy for w in world.writers):
            return
        for table in world.tables.values():
            table.tokens.clear()
        for log in world.logs.values():
            offset, metadata = log.committed or (0, "")
            if intent := parse_intent(metadata):
                log.committed = (offset, intent._replace(time_ms=1).encode())

    @rule(topic=st.sampled_from(TOPICS))
    def constrain(self, topic: str) -> None:
        """ALTER TABLE … ADD CONSTRAINT: what is stored stays, what comes is refused."""
        if not self.world.recreated:  # a refused batch is looked up, see `evict_tokens`
            self.world.tables[topic].constrained = True

    @rule(topic=st.sampled_from(TOPICS))
    def alter(self, topic: str) -> None:
        """ALTER TABLE … MODIFY COLUMN."""
        self.world.tables[topic].alter()

    @rule(topic=st.sampled_from(TOPICS))
    def add_column(self, topic: str) -> None:
        """ALTER TABLE … ADD COLUMN by the monitor of this host, or of another one whose monitor has noticed it."""
        self.world.tables[topic].add_column()
        STATS.monitor.add("columns_version")

    @rule(is_down=st.booleans())
    def fail_dead_letter_topics(self, is_down: bool) -> None:
        """The dead-letter topics fail, or work again."""
        self.world.dead_letter_topic_is_down = is_down

    @rule(member=consumes(members))
    def stop(self, member: Member) -> None:
        """SIGTERM."""
        if member.group_consumer.expelled or member.is_dead:
            return
        if self.world.dead_letter_topic_is_down or any(table.is_down for table in self.world.tables.values()):
            member.die()  # its drain would time out
            return
        member.consumer.stop()
        try:
            assert member.consumer.drain() == 0
        except TopicRecreated:
            member.die()

    @invariant()
    def nothing_is_doubled_or_passed_over(self) -> None:
        world = self.world
        if self.exactly_once:
            for table in world.tables.values():
                assert set(table.rows.values()) <= {1}
        for (topic, partition), log in world.logs.items():
            rows = self.rows(topic, partition)
            dead_letters = self.dead_letters(topic, partition)
            committed = log.committed_offset
            for offset in log.expected("good"):
                assert offset >= committed or offset in rows
            for offset in log.expected("bad") | log.expected("poison") | log.expected("failing"):
                assert offset >= committed or offset in dead_letters
            assert not log.expected("dropped") & (rows | dead_letters)
            for offset in log.expected("suspect"):
                places = (offset in rows) + (offset in dead_letters)
                assert places == 1 or (places > 1 and not self.exactly_once) or offset >= committed

    def rows(self, topic: str, partition: int) -> set[int]:
        """Return the offsets that the table has of the present topic."""
        topic_id = self.world.logs[topic, partition].topic_id
        rows = self.world.tables[topic].rows
        return {offset for row_id, number, offset in rows if (row_id, number) == (topic_id, partition)}

    def dead_letters(self, topic: str, partition: int) -> set[int]:
        topic_id = self.world.logs[topic, partition].topic_id
        return {
            offset for row_id, number, offset in self.world.dead_letters if (row_id, number) == (topic_id, partition)
        }

    @invariant()
    def every_ledger_balances(self) -> None:
        for slot in (STATS.slot(index) for index in range(SLOTS)):
            for ledger in slot.ledgers():
                assert ledger.unaccounted == 0
                assert ledger.get("in_flight") >= 0

    def teardown(self) -> None:
        """One more owner finishes what is left, but for partitions whose unread events retention has removed."""
        world = self.world
        for table in world.tables.values():
            table.is_down = False
        world.registry_is_down = world.dead_letter_topic_is_down = False
        world.leaderless = set()
        if world.owner is not None:
            self.revoke(world.owner)
        member = Member(world, SLOTS - 1, self.exactly_once, 1000, 0)
        member.group_consumer.assign()
        for _ in range(12 * sum(len(log.records) for log in world.logs.values()) + 60):
            member.turn()
        assert not member.is_dead
        for key, log in world.logs.items():
            partition = member.consumer._assignment._partitions[key]
            if partition.state is PartitionState.STOPPED:
                assert log.lost_below, "a partition stopped without a loss"
                assert log.committed_offset < log.last, "a partition stopped that was read to its end"
                continue
            suspects = log.expected("suspect")
            lost = set(range(log.lost_below))
            assert self.rows(*key) - suspects - lost == log.expected("good")
            bad = log.expected("bad") | log.expected("poison") | log.expected("failing")
            assert self.dead_letters(*key) - suspects - lost == bad
            # An empty range is not committed.
            assert max(log.committed_offset, log.start, log.begin) >= log.last
            assert log.until is not None or max(log.committed_offset, log.start) == log.end
        self.nothing_is_doubled_or_passed_over()


class Bounded(Delivery):
    """With --start and --until: the same inside the range, and nothing outside of it."""

    @initialize(target=Delivery.members, batch_rows=BATCH_ROWS, linger_ms=LINGERS_MS, data=st.data())
    def begin(self, batch_rows: int, linger_ms: int, data: st.DataObject) -> Any:
        """Begin with what came before the group, and with the commit that says where it begins."""
        for log in self.world.logs.values():
            log.append(data.draw(KIND_LISTS))
            log.append(data.draw(KIND_LISTS))
            log.begin = data.draw(st.integers(0, log.end))
            log.until = data.draw(st.none() | st.integers(0, 24))
            if data.draw(st.booleans()):
                log.committed = (log.begin, start_marker(log.topic_id, data.draw(st.sampled_from(["latest", "2026"]))))
            else:
                log.begin = 0
        member = Member(self.world, next(self.slots), self.exactly_once, batch_rows, linger_ms)
        member.group_consumer.assign()
        return member

    def recreate(self, topic: str) -> None:
        """Not a rule: rows of the earlier topic pass for those of the new one where an insert is in doubt."""

    @invariant()
    def nothing_outside_of_the_range_is_touched(self) -> None:
        for key, log in self.world.logs.items():
            offsets = self.rows(*key) | self.dead_letters(*key)
            assert all(log.begin <= offset < log.last for offset in offsets)
            if log.committed and log.topic_id in log.committed[1]:
                assert log.committed[0] <= max(log.begin, log.last)


class AtLeastOnce(Delivery):
    """Without tokens: nothing is missing, a row may be there twice."""

    exactly_once = False


_budget = settings(
    max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestExactlyOnce = Delivery.TestCase
TestExactlyOnce.settings = _budget
TestBounded = Bounded.TestCase
TestBounded.settings = _budget
TestAtLeastOnce = AtLeastOnce.TestCase
TestAtLeastOnce.settings = _budget


def test_dead_letters_of_a_block_are_written_though_retention_has_removed_its_first_events() -> None:
    """The block is stored, its dead letters are not, and its owner is killed; then retention removes its start."""
    world, member = _member(batch_rows=1000)
    log = world.logs["a", 0]
    log.append(["good", "good", "good", "bad"])
    world.outcomes = ["answer lost"]
    while not world.tables["a"].rows:
        member.turn()
    member.die()
    world.remove_prefix(("a", 0), 2)
    successor = Member(world, 1, True, 1000, 0)
    successor.group_consumer.assign()
    for _ in range(40):
        successor.turn()
    assert {offset for _, _, offset in world.dead_letters} == {3}
    assert sorted(world.tables["a"].rows.values()) == [1, 1, 1]
    assert log.committed_offset == log.end == 4


def test_a_kill_between_the_intent_and_the_insert_of_a_part_of_a_block_doubles_nothing() -> None:
    """The block is stored in part, then refused and halved: rows of a half may be stored with the block's token."""
    world, member = _member(batch_rows=1000)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["good", "good", "suspect", "good"])
    world.outcomes = ["partial"]
    while not table.rows:
        member.turn()
    table.constrained = True
    while (intent := parse_intent(log.committed and log.committed[1])) is None or intent.end > 2:
        member.turn()
    assert member.writer.busy
    member.die()
    successor = Member(world, 1, True, 1000, 0)
    successor.group_consumer.assign()
    for _ in range(60):
        successor.turn()
    assert set(table.rows.values()) == {1}
    assert {offset for _, _, offset in table.rows} == {0, 1, 2, 3}
    assert not world.dead_letters
    assert log.committed_offset == log.end


def test_an_intent_survives_the_commit_metadata() -> None:
    intent = Intent("AbC-_1", 5, 9, 4, 1_700_000_000_000)
    assert parse_intent(intent.encode()) == intent
    part = intent._replace(recut_end=12)
    assert parse_intent(part.encode()) == part


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
def test_a_stored_block_whose_table_changed_before_the_retry_is_not_written_again(change: str) -> None:
    """Its answer was lost; the store refuses the second try, or has to be given the rows in another form."""
    world, member = _member(batch_rows=1000)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["suspect"] * 3)
    world.outcomes = ["answer lost"]
    for _ in range(10):
        member.turn()
        if table.rows:
            break
    assert sorted(table.rows.values()) == [1, 1, 1]
    if change == "constrained":
        table.constrained = True
    else:
        table.alter()
        log.append(["good"] * 3)
    for _ in range(80):
        member.turn()
    assert sorted(offset for _, _, offset in table.rows) == list(range(log.end))
    assert set(table.rows.values()) == {1}
    assert not world.dead_letters
    assert log.committed is not None
    assert log.committed[0] == log.end


@pytest.mark.parametrize("change", ["altered", "column added"])
def test_a_stored_block_whose_dead_letters_wait_is_not_written_again_after_a_change_of_the_table(change: str) -> None:
    """Its rows have their token. Read again with what came since, they would be another block with another one."""
    world, member = _member(batch_rows=1000)
    pipeline, assignment = member.consumer._pipeline, member.consumer._assignment
    log, other, table = world.logs["a", 0], world.logs["a", 1], world.tables["a"]
    pipeline._linger_s = 3600
    other.append(["good"] * 3)  # the older batch, which is sealed later
    member.turn()
    log.append(["good", "bad", "good"])
    member.turn()
    partition, other_partition = assignment.get(("a", 0)), assignment.get(("a", 1))
    assert partition
    assert other_partition
    partition.seal()
    world.dead_letter_topic_is_down = True
    while not table.rows:
        member.turn()
    log.append(["good"] * 3)
    if change == "altered":
        table.alter()
        other_partition.seal()
    else:
        table.add_column()
        STATS.monitor.add("columns_version")
    for _ in range(40):
        member.turn()
    world.dead_letter_topic_is_down, pipeline._linger_s = False, 0
    for _ in range(40):
        member.turn()
    assert sorted(table.rows.values()) == [1] * 8
    assert {offset for _, _, offset in world.dead_letters} == {1}
    assert [log.committed_offset, other.committed_offset] == [6, 3]


def test_what_is_read_behind_a_stored_block_is_formed_again_also_at_the_end_of_a_range() -> None:
    world, member = _member(batch_rows=3, until=6)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["good", "bad", "good", "good", "good", "good", "good"])
    world.dead_letter_topic_is_down, world.fetch = True, 7
    for _ in range(20):
        member.turn()
    partition = member.consumer._assignment.get(("a", 0))
    assert partition
    assert partition.is_at_end
    assert [batch.is_stored for batch in partition.sealed] == [True, False]
    table.alter()
    STATS.monitor.add("columns_version")
    for _ in range(20):
        member.turn()
    world.dead_letter_topic_is_down = False
    for _ in range(40):
        member.turn()
    assert sorted(table.rows.values()) == [1] * 5
    assert {offset for _, _, offset in world.dead_letters} == {1}
    assert log.committed_offset == 6


def test_events_fill_a_new_column_from_the_next_block_on_and_none_is_passed_over() -> None:
    """What was read before is formed again; a block whose answer was lost keeps its range."""
    world, member = _member(batch_rows=1000)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["good"] * 4)
    world.outcomes = ["answer lost"]
    while not table.rows:
        member.turn()
    table.is_down = True
    log.append(["good"] * 4)
    for _ in range(10):
        member.turn()
    table.add_column()
    STATS.monitor.add("columns_version")
    for _ in range(20):
        member.turn()
    table.is_down = False
    for _ in range(40):
        member.turn()
    assert member.consumer._topic_sinks.get("a").sink.fields is table.fields
    assert sorted(table.rows.values()) == [1] * 8
    assert log.committed_offset == 8


def test_rows_that_a_replay_adds_to_a_block_are_looked_up_also_after_a_second_replay() -> None:
    """The schema of one event is known only at the replay, and the table changes before that is stored."""
    world, member = _member(batch_rows=1000)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["good"] * 4)
    world.rejected, world.outcomes = {1}, ["answer lost"]
    while not table.rows:
        member.turn()
    member.die()
    world.rejected = set()
    successor = Member(world, 1, True, 1000, 0)
    successor.group_consumer.assign()
    table.is_down = True
    for _ in range(10):
        successor.turn()
    table.alter()
    table.is_down = False
    for _ in range(40):
        successor.turn()
    assert sorted(offset for _, _, offset in table.rows) == [0, 1, 2, 3]
    assert set(table.rows.values()) == {1}


def test_a_view_that_raises_is_waited_out_and_nothing_is_searched_by_halves() -> None:
    world, member = _member(batch_rows=1000)
    world.logs["a", 0].append(["good"] * 8)
    world.fetch = 8
    world.outcomes = ["view"] * 5
    for _ in range(60):
        member.turn()
    table = world.tables["a"]
    assert set(table.rows.values()) == {1}
    assert len(table.rows) == 8
    assert len({token for token, _ in table.tokens}) == 1
    assert not world.dead_letters


def test_a_block_that_is_too_large_is_written_in_smaller_ones_from_then_on() -> None:
    world, member = _member(batch_rows=8)
    log = world.logs["a", 0]
    log.append(["good"] * 40)
    world.fetch = 8
    world.outcomes = ["too large", "too large"]
    for _ in range(200):
        member.turn()
    table = world.tables["a"]
    assert sorted(offset for _, _, offset in table.rows) == list(range(40))
    assert set(table.rows.values()) == {1}
    assert log.committed is not None
    assert log.committed[0] == 40
    assert table.writes == 2 + 40 // 2


def test_one_topic_that_cannot_be_written_holds_up_no_other() -> None:
    """Between two writes of the topic that works there is one try of the other at most."""
    world, member = _member(batch_rows=1)
    world.tables["a"].is_down = True
    for key in KEYS:
        world.logs[key].append(["good"] * 20)
    tries: list[str] = []
    for _ in range(400):
        before = {topic: table.writes for topic, table in world.tables.items()}
        member.turn()
        tries += [topic for topic, table in world.tables.items() if table.writes > before[topic]]
    assert len(world.tables["b"].rows) == 40
    assert not world.tables["a"].rows
    last = len(tries) - tries[::-1].index("b")
    assert all("b" in pair for pair in itertools.pairwise(tries[tries.index("b") : last]))
    world.tables["a"].is_down = False
    for _ in range(200):
        member.turn()
    assert len(world.tables["a"].rows) == 40


@pytest.mark.parametrize("is_down", [False, True])
def test_events_wait_for_their_schema_and_none_is_passed_over(is_down: bool) -> None:
    world, member = _member(batch_rows=3)
    log, other = world.logs["a", 0], world.logs["a", 1]
    log.append(["good"] * 7)
    for _ in range(20):
        member.turn()
    world.missing_schemas, world.registry_is_down = 1, is_down
    log.append(["good", "bad", "gap", "gap", "good"])  # they and the log's end come with one read
    other.append(["good"] * 5)
    for _ in range(60):
        member.turn()
    done = [log.committed_offset, other.committed_offset]
    assert done == ([7, 0] if is_down else [12, 5])
    world.registry_is_down = False
    for _ in range(60):
        member.turn()
    assert [log.committed_offset, other.committed_offset] == [12, 5]
    assert sorted(world.tables["a"].rows.values()) == [1] * 14
    assert len(world.dead_letters) == 1


def test_an_outage_in_the_middle_of_an_assignment_is_waited_out() -> None:
    world = World()
    STATS.slot(0).set("ledgers", 0)
    member = Member(world, 0, True, 1000, 0)
    log = world.logs["a", 0]
    log.append(["good"] * 3)
    log.committed = (1, start_marker(log.topic_id, "2026"))  # so the table has to be asked, too
    world.unanswered, world.tables["a"].is_down = 3, True
    member.group_consumer.assign()
    for _ in range(10):
        member.turn()
    assert not world.unanswered
    assert log.committed[0] == 1
    world.tables["a"].is_down = False
    for _ in range(10):
        member.turn()
    assert log.committed_offset == 3
    assert sorted(offset for _, _, offset in world.tables["a"].rows) == [1, 2]


@pytest.mark.parametrize("lands", ["answer lost", "refused"])
def test_a_block_whose_schema_is_known_only_at_its_replay_loses_no_event(lands: str) -> None:
    """The token is of a block without the event: dropped for it, the event would be in neither place."""
    world, member = _member(batch_rows=1000)
    log, table = world.logs["a", 0], world.tables["a"]
    log.append(["good"] * 4)
    world.rejected, world.outcomes = {1}, [lands]
    for _ in range(10):
        member.turn()
        if table.writes:
            break
    assert sorted(offset for _, _, offset in table.rows) == ([0, 2, 3] if lands == "answer lost" else [])
    member.die()
    world.rejected = set()
    successor = Member(world, 1, True, 1000, 0)
    successor.group_consumer.assign()
    for _ in range(40):
        successor.turn()
    assert sorted(offset for _, _, offset in table.rows) == [0, 1, 2, 3]
    assert set(table.rows.values()) == {1}
    assert log.committed_offset == 4


def _member(batch_rows: int, until: int | None = None) -> tuple[World, Member]:
    STATS.slot(0).set("ledgers", 0)
    world = World()
    for log in world.logs.values():
        log.until = until
    member = Member(world, 0, True, batch_rows, 0)
    member.group_consumer.assign()
    return world, member


class Unreachable(FakeSink):
    """A store that nobody reaches."""

    def open(self) -> None:
        raise Retryable("unavailable", reason="connection")

    def __init__(self) -> None: ...


def test_a_consumer_that_waits_for_its_store_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once took a whole core for as long as the store was unavailable."""
    world, beats = World(), itertools.count()
    STATS.topic_list.write([TOPICS[0]])
    topic_sinks = TopicSinks(lambda topic: TopicSink(topic, Unreachable(), BadRatio(1.0), Backoff()))
    parts: dict[str, Any] = {
        "group_consumer": FakeGroupConsumer(world),
        "dead_letters": FakeDeadLetterProducer(world),
        "writer": Writer(),
        "decode": world.decode,
    }
    waiting = Consumer(Settings(topic=TOPICS[0]), STATS, 0, topic_sinks=topic_sinks, **parts)
    monkeypatch.setattr(Slot, "beat", lambda _: next(beats))
    threading.Timer(1.0, waiting.stop).start()
    assert not waiting._reach_store()
    assert next(beats) < 50
