"""Members, partitions, topics and logs that change while events flow: every event is still stored once.

Events that were removed before they were read are lost: then the partition stops with an error.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.support.job import Job, consumers, status
from tests.support.kit import PATIENCE_S, Worker, wait_until
from tests.support.oracle import EXACT, Verdict, ends, event, events
from tests.support.proxy import Proxy

pytestmark = pytest.mark.faults

PROTOCOLS = {"classic": (), "consumer": ("-X", "group.protocol=consumer")}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_members_join_and_leave_every_2_s_while_events_flow(rows_job: Job, protocol: str) -> None:
    steps, portion = 10, 12_000
    options = ("--processes", "1", *PROTOCOLS[protocol])
    rows_job.create(6)
    with ExitStack() as stack:
        members = [stack.enter_context(rows_job.start(*options)) for _ in range(2)]
        left: list[Worker] = []
        for member in members:
            member.wait_for("took a partition")
        for step in range(steps):
            begun = time.monotonic()
            rows_job.send(events(portion, first=step * portion))
            if step % 2:
                left.append(members.pop(0))
                left[-1].signal(signal.SIGTERM)
            else:
                members.append(stack.enter_context(rows_job.start(*options)))
            time.sleep(max(0.0, 2 - (time.monotonic() - begun)))  # the pace of the fault
        rows_job.all_done()
        for member in (*left, *members):
            member.signal(signal.SIGTERM)
            assert member.wait() == 0, member.tail()
    assert rows_job.judge(range(steps * portion)) == EXACT


def test_partitions_added_while_producing_are_read_from_their_beginning(rows_job: Job) -> None:
    portion = 2000
    rows_job.create(1)
    admin = _admin(rows_job)
    with rows_job.start() as worker:  # the default is one process for each partition
        for wanted in (1, 2, 4):
            if wanted > 1:
                # A client may see them before the worker does, and write to them at once.
                admin.create_partitions([NewPartitions(rows_job.topic, wanted)])[rows_job.topic].result(PATIENCE_S)
                _has_partitions(rows_job, wanted)
            for partition in range(wanted):
                rows_job.send(events(portion, first=(wanted * 10 + partition) * portion), partition)
            _has_processes(worker, wanted)
            rows_job.all_done()
    expected = [(n * 10 + p) * portion + i for n in (1, 2, 4) for p in range(n) for i in range(portion)]
    assert rows_job.judge(expected) == EXACT


_AGAIN = pytest.mark.parametrize(
    ("before", "after"), [(3000, 1200), (3000, 3000), (1200, 3000)], ids=["shorter", "as long", "longer"]
)


@_AGAIN
def test_topic_deleted_and_created_again_is_read_from_its_beginning(rows_job: Job, before: int, after: int) -> None:
    rows_job.create(2)
    with rows_job.start() as worker:
        worker.wait_for("took a partition")
        _send_evenly(rows_job, before, first=0)
        rows_job.all_done()
        _create_again(rows_job, partitions=2)
        _send_evenly(rows_job, after, first=before)
        wait_until(lambda: rows_job.rows() >= before + after, PATIENCE_S, "the new topic's events are rows")
        rows_job.all_done()
        assert worker.running()
        assert not any("is stopped" in line for line in worker.stderr), worker.tail()  # nothing was lost
    # The events of both topics have the same offsets.
    assert rows_job.judge(range(before + after), origin=False) == EXACT


@_AGAIN
def test_topic_deleted_and_created_again_while_no_worker_runs(rows_job: Job, before: int, after: int) -> None:
    """`--until-end` ignores the commits of the old topic.

    Kafka removes them with the topic, but not those that a worker makes just after that.
    """
    rows_job.create(2)
    _send_evenly(rows_job, before, first=0)
    rows_job.finish()
    late = rows_job.committed()
    _create_again(rows_job, partitions=2)
    _commit_again(rows_job, late)
    _send_evenly(rows_job, after, first=before)
    rows_job.finish()
    assert rows_job.judge(range(before + after), origin=False) == EXACT


def test_unread_partition_without_an_owner_is_reassigned(rows_job: Job) -> None:
    """The worker cannot tell a partition without an owner from one whose owner does nothing.

    The worker joins first, so it is the group's leader: all partitions are reassigned only when the leader rejoins.
    """
    rows_job.create(2)
    shares: list[int] = []
    other = Consumer({"bootstrap.servers": rows_job.kafka, "group.id": rows_job.group, "enable.auto.commit": False})
    with rows_job.start("--processes", "1") as worker:
        worker.wait_for("took a partition")
        other.subscribe([rows_job.topic], on_assign=lambda _, partitions: shares.append(len(partitions)))

        def shared(times: int) -> bool:
            other.poll(0.1)
            return shares.count(1) >= times

        wait_until(lambda: shared(1), PATIENCE_S, "each of two members has a partition")
        _send_evenly(rows_job, 3000, first=0)
        wait_until(lambda: shared(2), PATIENCE_S, "the group has reassigned its partitions")
        other.close()
        rows_job.all_done()
        assert any("so that the group computes a new assignment" in line for line in worker.stderr), worker.tail()
    assert rows_job.judge(range(3000)) == EXACT


def test_lost_answer_in_a_topic_that_was_created_again(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """The rows of the old topic, with the same offsets, are not mistaken for those of the insert in doubt."""
    count = 900  # one batch
    rows_job.create()
    rows_job.send(events(count))
    rows_job.finish()
    _create_again(rows_job, partitions=1)
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.cut_to_server(10_000)  # of some 30 000: nothing of it is written
        rows_job.send(events(count, first=count))
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "an insert is cut short")
        rows_job.all_done()
    assert rows_job.judge(range(2 * count), origin=False) == EXACT


def test_offset_out_of_range_at_start_stops_its_partition_and_no_other(rows_job: Job) -> None:
    _lose_events(rows_job)
    with rows_job.start("--processes", "1") as worker:
        match = worker.wait_for(rf"{rows_job.topic}\[(\d)\] is stopped: .*Events were removed before they were read")
        assert match[1] == "0"
        wait_until(lambda: rows_job.committed().get(1, (0, ""))[0] == 2000, PATIENCE_S, "the other partition continues")
        assert worker.running()
        assert status(worker)["restarts"] == 0
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    assert rows_job.committed()[0][0] == 1000
    assert rows_job.judge([*range(2000), *range(3000, 4000)]) == EXACT
    _reset_offset(rows_job, TopicPartition(rows_job.topic, 0, 1500))
    rows_job.finish()
    assert rows_job.judge([*range(2000), *range(2500, 4000)]) == EXACT


def test_offset_out_of_range_ends_a_run_until_the_end_with_1(rows_job: Job) -> None:
    _lose_events(rows_job)
    with rows_job.start("--until-end") as worker:
        assert worker.wait() == 1
    assert any("[0] is stopped" in line and "--reset-offsets" in line for line in worker.stderr), worker.tail()
    verdict = rows_job.judge([*range(2000), *range(3000, 4000)])
    assert (verdict.doubled, verdict.wrong) == (0, 0)
    assert verdict.missing <= 1000  # of the other partition, whose consumer was stopped


def test_events_removed_while_the_store_is_away(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """What was read is written; the partition whose next event is gone stops, the other goes on."""
    count = 20_000  # a partition; more than the batches that wait for the store
    rows_job.create(2)
    with rows_job.start("--processes", "1", *rows_job.via(clickhouse_proxy.port)) as worker:
        consumers(worker, busy=True)
        clickhouse_proxy.blackhole()
        for partition in range(2):
            rows_job.send(events(count, first=partition * count), partition)
        wait_until(lambda: status(worker)["processes"][0]["paused"], PATIENCE_S, "reading is held back")
        _remove(rows_job, partition=0, before=count - 100)
        clickhouse_proxy.heal()
        worker.wait_for(r"\[0\] is stopped")
        wait_until(
            lambda: rows_job.committed().get(1, (0, ""))[0] == count, PATIENCE_S, "the other partition continues"
        )
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    read = rows_job.committed()[0][0]
    assert read < count - 100
    assert rows_job.judge([*range(read), *range(count, 2 * count)]) == EXACT


def test_aborted_transactions_are_no_rows_and_their_markers_no_lag(rows_job: Job) -> None:
    rows_job.create()
    portions: list[Callable[[Producer], None]] = [_commit, _abort, _commit, _abort, _abort]
    for number, end in enumerate(portions):
        _transaction(rows_job, events(1500, first=number * 1500), end)
    rows_job.finish()
    assert rows_job.committed()[0][0] == ends(rows_job.kafka, rows_job.topic)[0] == 5 * 1501
    expected = [*range(1500), *range(3000, 4500)]
    assert rows_job.judge(expected) == EXACT
    with rows_job.start() as worker:
        wait_until(lambda: status(worker)["lag"] == 0, PATIENCE_S, "the lag is 0")
        for number, end in ((5, _commit), (6, _abort)):
            _transaction(rows_job, events(1500, first=number * 1500), end)
        rows_job.all_done()
        wait_until(lambda: status(worker)["lag"] == 0, PATIENCE_S, "the lag is 0")
        accounts = status(worker)["accounts"]
    assert (accounts["consumed"], accounts["written"], accounts["unaccounted"]) == (1500, 1500, 0)
    assert rows_job.judge([*expected, *range(7500, 9000)]) == EXACT


def test_insert_cut_short_in_a_log_of_aborted_transactions_is_completed(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """A range with gaps is the same range when it is read again."""
    rows_job.create()
    for number in range(10):
        _transaction(rows_job, events(150, first=number * 150), _abort if number % 2 else _commit)
    with rows_job.start("--until-end", *rows_job.via(clickhouse_proxy.port)) as worker:
        clickhouse_proxy.cut_to_server(20_000)
        assert worker.wait() == 0, worker.tail()
    assert clickhouse_proxy.faults == 1
    assert rows_job.judge([n * 150 + i for n in range(0, 10, 2) for i in range(150)]) == EXACT


def test_open_transaction_does_not_block_until_end(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send(events(500))
    producer = _transactional(rows_job)
    producer.begin_transaction()
    for payload in events(500, first=500):
        producer.produce(rows_job.topic, payload)
    producer.flush(PATIENCE_S)
    rows_job.send(events(500, first=1000))
    rows_job.finish()
    assert rows_job.judge(range(500)) == EXACT
    _commit(producer)
    rows_job.finish()
    assert rows_job.judge(range(1500)) == EXACT


def test_tombstones_are_skipped_and_counted(rows_job: Job) -> None:
    payloads: Sequence[bytes | None] = [None if i % 3 == 2 else event(i) for i in range(3000)]
    rows_job.create()
    with rows_job.start() as worker:
        worker.wait_for("took a partition")
        rows_job.send(payloads)
        rows_job.send([None] * 50)  # a batch of tombstones only
        rows_job.all_done()
        wait_until(lambda: status(worker)["lag"] == 0, PATIENCE_S, "the lag is 0")
        accounts = status(worker)["accounts"]
    assert {name: accounts[name] for name in ("consumed", "written", "skipped", "dead_lettered", "unaccounted")} == {
        "consumed": 3050,
        "written": 2000,
        "skipped": 1050,
        "dead_lettered": 0,
        "unaccounted": 0,
    }
    assert rows_job.judge(i for i in range(3000) if i % 3 != 2) == Verdict(0, 0, 0)


def _admin(job: Job) -> AdminClient:
    return AdminClient({"bootstrap.servers": job.kafka, "log_level": 2})


def _has_partitions(job: Job, count: int) -> None:
    wait_until(lambda: len(ends(job.kafka, job.topic)) == count, PATIENCE_S, f"{count} partitions")


def _has_processes(worker: Worker, count: int) -> None:
    wait_until(lambda: len(consumers(worker, busy=True)) == count, PATIENCE_S, f"{count} processes, a partition each")


def _send_evenly(job: Job, count: int, first: int) -> None:
    """Write half of the events to each of two partitions, so that their ends are known."""
    half = count // 2
    for partition in range(2):
        job.send(events(half, first=first + partition * half), partition)


def _create_again(job: Job, partitions: int) -> None:
    admin = _admin(job)  # the client must live until the answer arrives
    admin.delete_topics([job.topic])[job.topic].result(PATIENCE_S)
    wait_until(
        lambda: job.topic not in admin.list_topics(timeout=PATIENCE_S).topics, PATIENCE_S, "the topic is deleted"
    )
    job.create(partitions)


def _commit_again(job: Job, commits: Mapping[int, tuple[int, str]]) -> None:
    consumer = Consumer({"bootstrap.servers": job.kafka, "group.id": job.group})
    offsets = [TopicPartition(job.topic, partition, *commit) for partition, commit in commits.items()]
    consumer.commit(offsets=offsets, asynchronous=False)
    consumer.close()


def _lose_events(job: Job) -> None:
    """Leave partition 0 with 1000 events stored, 500 removed and 500 to read; 1 with 1000 stored and 1000 to read."""
    job.create(2)
    for partition in range(2):
        job.send(events(1000, first=partition * 1000), partition)
    job.finish()
    for partition in range(2):
        job.send(events(1000, first=2000 + partition * 1000), partition)
    _remove(job, partition=0, before=1500)


def _remove(job: Job, partition: int, before: int) -> None:
    """Remove the beginning of the log, as retention does."""
    admin, offset = _admin(job), TopicPartition(job.topic, partition, before)
    admin.delete_records([offset])[offset].result(PATIENCE_S)


def _reset_offset(job: Job, offset: TopicPartition) -> None:
    """Reset the group to the beginning of the log, as the error message says."""
    admin, request = _admin(job), ConsumerGroupTopicPartitions(job.group, [offset])
    admin.alter_consumer_group_offsets([request])[job.group].result(PATIENCE_S)


def _transaction(job: Job, payloads: Sequence[bytes], end: Callable[[Producer], None]) -> None:
    producer = _transactional(job)
    producer.begin_transaction()
    for payload in payloads:
        producer.produce(job.topic, payload)
    producer.flush(PATIENCE_S)
    end(producer)


def _transactional(job: Job) -> Producer:
    producer = Producer({"bootstrap.servers": job.kafka, "transactional.id": job.topic, "linger.ms": 5, "log_level": 2})
    producer.init_transactions(PATIENCE_S)
    return producer


def _commit(producer: Producer) -> None:
    producer.commit_transaction(PATIENCE_S)


def _abort(producer: Producer) -> None:
    producer.abort_transaction(PATIENCE_S)
