"""Where a group begins and ends (--start, --until): all of the range once and nothing else, across kills."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from clickhouse_driver import Client
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.support.job import Job, consumers, kill, stopped
from tests.support.kit import PATIENCE_S, run_worker, send, wait_until
from tests.support.oracle import BEGINNING_MS, EXACT, event, events
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.core.delivery import parse_start_marker
from worker.core.errors import ExitCode

pytestmark = pytest.mark.faults


KEPT = {"retention.ms": "-1"}  # of events with old timestamps


def at(i: int) -> str:
    """Return the time of event i, as Kafka's timestamp has it here."""
    return datetime.fromtimestamp((BEGINNING_MS + i) / 1000, UTC).isoformat()


def send_at_their_times(job: Job, numbers: Iterable[int], partitions: int = 1) -> None:
    """Write events with their own times as Kafka's timestamps, in turn to the partitions."""
    producer = Producer({"bootstrap.servers": job.kafka, "enable.idempotence": True, "log_level": 2})
    for i in numbers:
        producer.produce(job.topic, event(i), partition=i % partitions, timestamp=BEGINNING_MS + i)
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_restart_of_latest_skips_nothing_that_came_meanwhile(rows_job: Job, protocol: str) -> None:
    """Also in a partition that was still, in one that is added later, and in one that had never an event."""
    options = ("--start", "latest", "-X", f"group.protocol={protocol}")
    rows_job.create(3, KEPT)
    rows_job.send(events(300), 0)
    rows_job.send(events(300), 1)
    with rows_job.start(*options) as worker:
        wait_until(lambda: len(rows_job.committed()) == 3, PATIENCE_S, "the start is committed")
        rows_job.send(events(100, 300), 0)
        rows_job.advance_to(300 + 300 + 100)
        worker.kill_tree()
    rows_job.send(events(100, 400), 1)
    rows_job.send(events(100, 500), 2)
    admin = AdminClient({"bootstrap.servers": rows_job.kafka})
    admin.create_partitions([NewPartitions(rows_job.topic, 4)])[rows_job.topic].result(PATIENCE_S)
    wait_until(lambda: len(admin.list_topics(rows_job.topic).topics[rows_job.topic].partitions) == 4, PATIENCE_S)
    rows_job.send(events(100, 600), 3)
    worker = rows_job.finish(*options)
    assert any("--start latest does not apply" in line for line in worker.stderr)
    assert rows_job.judge(range(300, 700)) == EXACT
    with run_worker("verify", *rows_job.arguments(*options)) as verify:
        assert verify.wait() == 0, verify.stdout


def test_kills_at_any_moment_of_the_first_start_lose_nothing(rows_job: Job) -> None:
    """The start of all partitions is committed at once, or of none: then the group has not begun."""
    partitions, sent = 4, 0
    began: dict[int, tuple[int, str]] = {}
    rows_job.create(partitions, KEPT)
    starts = [random.Random(7).uniform(0.3, 2.0) * (1 + n / 4) for n in range(6)]
    for pause in starts:
        rows_job.send(events(100, sent), sent // 100 % partitions)
        sent += 100
        with rows_job.start("--start", "latest") as worker:
            time.sleep(pause)  # not a proof: it only draws the moment of the kill
            worker.kill_tree()
        committed = rows_job.committed()
        assert len(committed) in (0, partitions)
        began = began or committed
    rows_job.finish("--start", "latest")
    began = began or rows_job.committed()
    # Which events those are: every hundred went to the next partition.
    expected = [i for i in range(sent) if _offset(i, partitions) >= began[i // 100 % partitions][0]]
    assert rows_job.judge(expected) == EXACT


def _offset(i: int, partitions: int) -> int:
    return i // 100 // partitions * 100 + i % 100


def test_a_kill_between_the_commit_of_the_start_and_the_first_read(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    rows_job.create(2, KEPT)
    rows_job.send(events(100), 0)
    with rows_job.start("--start", "latest", *rows_job.via(clickhouse_proxy.port)) as worker:
        wait_until(lambda: len(rows_job.committed()) == 2, PATIENCE_S, "the start is committed")
        worker.kill_tree()
    assert {parse_start_marker(metadata) for _, metadata in rows_job.committed().values()} == {"latest"}
    rows_job.send(events(100, 100), 0)
    rows_job.send(events(100, 200), 1)
    rows_job.finish("--start", "latest")
    assert rows_job.judge(range(100, 300)) == EXACT


def test_a_topic_that_is_found_later_begins_with_its_first_event(rows_job: Job) -> None:
    pattern = replace(rows_job, topic=f"^{rows_job.topic}")
    later = replace(rows_job, topic=f"{rows_job.topic}_later")
    rows_job.create(1, KEPT)
    rows_job.send(events(100))
    with pattern.start("--start", "latest") as worker:
        wait_until(rows_job.committed, PATIENCE_S, "the start is committed")
        worker.kill_tree()
    later.create()
    later.send(events(100, 100))
    pattern.finish("--start", "latest")
    assert rows_job.judge(range(100, 200)) == EXACT


@pytest.mark.parametrize("backend", ["clickhouse", "redis"])
def test_a_backfill_between_two_times_by_two_hosts_that_are_killed(
    backend: str, request: pytest.FixtureRequest
) -> None:
    job: Job = request.getfixturevalue("rows_job" if backend == "clickhouse" else "devices_job")
    partitions, count = 3, 90_000
    first, last = 20_001, 70_002
    job.create(partitions + 1, KEPT)  # one without events
    send_at_their_times(job, range(count), partitions)
    bounds = ("--start", at(first), "--until", at(last))
    slowly = (*bounds, "--processes", "2", "--batch-rows", "25")
    with job.start(*slowly) as one, job.start(*slowly) as other:
        for share in (10, 5):
            job.advance_to(first + (last - first) // share)
            kill(*consumers(one, busy=True)[:1])
        send_at_their_times(job, range(count, count + 1000), partitions)
        assert one.wait() == 0, one.tail()
        assert other.wait() == 0, other.tail()
    assert job.judge(range(first, last)) == EXACT
    ends = {p: sum(i % partitions == p for i in range(last)) for p in range(partitions)}
    assert {partition: offset for partition, (offset, _) in job.committed().items()} == {**ends, partitions: 0}
    with job.start(*bounds) as again:
        assert again.wait() == 0, again.tail()
    assert job.judge(range(first, last)) == EXACT
    with run_worker("verify", *job.arguments(*bounds)) as verify:
        assert verify.wait() == 0, verify.stdout
    assert f"{job.topic}[0]: the events from {ends[0]} on are not compared: --until" in verify.stdout
    assert not any("not committed yet" in line for line in verify.stdout)


def test_events_that_come_during_the_run_are_read_only_if_they_precede_the_time(rows_job: Job) -> None:
    """In a partition whose last event is before the time, the end is where the log ended at the start."""
    rows_job.create(1, KEPT)
    send_at_their_times(rows_job, range(1000))
    until = at(5000)
    with rows_job.start("--until", until) as worker:
        (pid,) = consumers(worker)
        with stopped(pid):
            send_at_their_times(rows_job, range(5000, 6000))
        assert worker.wait() == 0, worker.tail()
    assert rows_job.judge(range(1000)) == EXACT
    rows_job.finish()
    assert rows_job.judge([*range(1000), *range(5000, 6000)]) == EXACT


def test_rows_of_the_last_block_that_are_refused_are_found(rows_job: Job, clickhouse_sql: Client) -> None:
    """The partition was paused at its end by then, and has to be read again."""
    rows_job.create(1, KEPT)
    send_at_their_times(rows_job, range(400))
    rows_job.finish("--until", at(10))  # creates the table
    clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} ADD CONSTRAINT c CHECK error_code != 7")
    rows_job.finish("--until", at(300))
    assert rows_job.judge(i for i in range(300) if i < 10 or i % 11 != 7) == EXACT
    letters = sorted(letter.offset for letter in rows_job.dead_letters())
    assert letters == [i for i in range(10, 300) if i % 11 == 7]


def test_a_block_that_was_announced_beyond_the_end_stays_whole(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    rows_job.create(1, KEPT)
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.drop_reply(after_bytes=10_000, until=END_OF_STREAM)
        clickhouse_proxy.refuse()
        send_at_their_times(rows_job, range(2000))
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "the answer is lost")
        worker.kill_tree()
    clickhouse_proxy.heal()
    assert rows_job.rows() == 1000
    rows_job.finish("--until", at(500))
    assert rows_job.judge(range(1000)) == EXACT
    assert rows_job.committed()[0][0] == 1000


@pytest.mark.parametrize("start", ["latest", at(0)])
def test_a_group_whose_offsets_expired_does_not_start_over_or_skip(rows_job: Job, start: str) -> None:
    """The option stays in the unit file for years. Then the offsets expire, and `latest` is another offset."""
    rows_job.create(1, KEPT)
    with rows_job.start("--start", start) as worker:
        wait_until(rows_job.committed, PATIENCE_S, "the start is committed")
        send_at_their_times(rows_job, range(1000))
        rows_job.all_done()
        worker.signal()
        assert worker.wait() == 0
    admin = AdminClient({"bootstrap.servers": rows_job.kafka})
    admin.delete_consumer_groups([rows_job.group])[rows_job.group].result(PATIENCE_S)
    send_at_their_times(rows_job, range(1000, 1500))
    for _ in range(2):  # the second time it finds its own commit of the start
        with rows_job.start("--start", start) as worker:
            assert worker.wait() == ExitCode.CONFIG, worker.tail()
        assert "--to-offset 1000 --execute" in worker.tail()
    assert rows_job.rows() == 1000


def test_a_backfill_into_the_table_that_another_group_fills(rows_job: Job) -> None:
    """The ranges do not overlap, so nothing is refused; an overlap is."""
    live, backfill = rows_job, replace(rows_job, group=f"{rows_job.group}_backfill")
    live.create(1, KEPT)
    send_at_their_times(live, range(3000))
    with live.start("--start", "latest") as worker:
        wait_until(live.committed, PATIENCE_S, "the start is committed")
        send_at_their_times(live, range(3000, 4000))
        live.all_done()
        bounds = ("--start", at(1000), "--until", at(3000))
        with run_worker("check", *backfill.arguments(*bounds)) as check:
            assert check.wait() == 0, check.stdout
        backfill.finish(*bounds)
        worker.signal()
        assert worker.wait() == 0
    assert live.judge(range(1000, 4000)) == EXACT
    overlapping = replace(live, group=f"{live.group}_overlapping")
    bounds = ("--start", at(0), "--until", at(1001))
    with run_worker("check", *overlapping.arguments(*bounds)) as check:
        assert check.wait() == ExitCode.FAILED
    assert any("events up to offset 1000" in line for line in check.stdout if line.startswith("FAIL")), check.stdout
    with overlapping.start(*bounds) as refused:
        assert refused.wait() == ExitCode.CONFIG, refused.tail()
    assert "but the table has its events up to offset 1000" in refused.tail()
    assert live.judge(range(1000, 4000)) == EXACT


def test_a_group_with_members_and_no_offsets_is_waited_for(rows_job: Job) -> None:
    """Its members may have begun elsewhere: nobody moves them."""
    rows_job.create(1, KEPT)
    rows_job.send(events(100))
    properties = {"bootstrap.servers": rows_job.kafka, "group.id": rows_job.group, "enable.auto.commit": False}
    with closing(Consumer(properties)) as member:
        member.subscribe([rows_job.topic])
        wait_until(lambda: member.poll(0.1) is None and member.assignment(), PATIENCE_S, "it is a member")
        with rows_job.start("--start", "latest") as worker:
            worker.wait_for("has members but no committed offsets")
            assert not rows_job.committed()
            member.unsubscribe()
            wait_until(rows_job.committed, PATIENCE_S, "the start is committed")
            send(rows_job.kafka, rows_job.topic, events(100, 100))
            rows_job.all_done()
    assert rows_job.judge(range(100, 200)) == EXACT


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--until", "2999-01-01"), "--until: invalid value '2999-01-01': write a time between 1970 and now"),
        (("--start", "2999-01-01"), "write a time between 1970 and now; or earliest or latest"),
        (("--start", "yesterday"), "--start: invalid value 'yesterday': write a time such as"),
        (("--start", "2024-01-02", "--until", "2024-01-02"), "--until: 2024-01-02 is not after --start 2024-01-02"),
        (("--start", "latest", "--until", "2024-01-02"), "--until: 2024-01-02 is not after --start latest"),
    ],
)
def test_a_range_that_cannot_be_is_refused(rows_job: Job, options: tuple[str, ...], text: str) -> None:
    with rows_job.start(*options) as worker:
        assert worker.wait() == ExitCode.USAGE
    assert text in worker.tail()


def test_a_monitor_that_is_killed_does_not_move_the_end(rows_job: Job) -> None:
    """The next one finds a later end than the consumers have: events before the time came late."""
    rows_job.create(1, KEPT)
    send_at_their_times(rows_job, range(1000))
    with rows_job.start("--until", at(5000), "--batch-rows", "100") as worker:
        worker.wait_for("took a partition")
        (pid,) = consumers(worker)
        (monitor,) = set(worker.children()) - {pid}
        with stopped(pid):
            send_at_their_times(rows_job, range(1000, 1100))
            kill(monitor)
            wait_until(lambda: sum("status page" in line for line in worker.stderr) == 2, PATIENCE_S, "a new monitor")
        assert worker.wait() == 0, worker.tail()
    assert rows_job.judge(range(1000)) == EXACT
    rows_job.finish("--until", at(5000))
    assert rows_job.judge(range(1100)) == EXACT


def test_verify_says_where_it_cannot_know_the_start(devices_job: Job) -> None:
    devices_job.create(1, KEPT)
    with run_worker("verify", *devices_job.arguments("--start", "latest")) as verify:
        assert verify.wait() == ExitCode.CONFIG
    assert "give the time at which the worker was first started" in verify.tail()
