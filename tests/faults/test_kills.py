"""Processes that are killed, frozen or stopped at any moment: the others continue, and the next start finishes."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from tests.support.job import Job, consumers, kill, status, stopped
from tests.support.kit import PATIENCE_S, alive, descendants, wait_until
from tests.support.oracle import EXACT, events
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.local import Server

pytestmark = pytest.mark.faults


def test_kill_after_the_insert_and_before_its_answer(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    count = 5000
    rows_job.create()
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.drop_reply(after_bytes=20_000, until=END_OF_STREAM)  # of some 33 000
        clickhouse_proxy.refuse()  # so it cannot query the table
        rows_job.send(events(count))
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "the answer is lost")
        assert rows_job.rows() == 1000
        assert rows_job.committed()[0][0] == 0
        assert rows_job.intent()
        kill(*consumers(worker))
        clickhouse_proxy.heal()
        rows_job.all_done()  # the supervisor restarts the consumer
    assert rows_job.judge(range(count)) == EXACT


def test_the_block_of_a_takeover_is_cut_by_neither_time_nor_size(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """It needs many fetches. By time and size the next owner would seal its batch long before."""
    count = 20_000
    rows_job.create()
    rows_job.send(events(count))
    big = ("--batch-rows", str(count), "--linger-ms", "5000")
    with rows_job.start(*big, *rows_job.via(clickhouse_proxy.port)) as worker:
        clickhouse_proxy.drop_reply(after_bytes=20 * count, until=END_OF_STREAM)
        wait_until(rows_job.rows, PATIENCE_S, "the block is in the table")
        kill(worker.pid, *consumers(worker))
    clickhouse_proxy.heal()
    assert rows_job.rows() == count
    assert rows_job.intent()
    rows_job.send(events(100, first=count))
    rows_job.finish("--batch-rows", "700", "--linger-ms", "1")
    assert rows_job.judge(range(count + 100)) == EXACT


def test_kill_after_the_answer_and_before_the_commit(
    rows_job: Job, clickhouse_proxy: Proxy, hurt_kafka: Server
) -> None:
    count = 5000
    rows_job.create()
    with rows_job.start(*rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        (pid,) = consumers(worker)
        clickhouse_proxy.delay(0.5)  # time to see the insert before its answer arrives
        rows_job.send(events(count))
        wait_until(rows_job.rows, PATIENCE_S, "a batch is in the table")
        try:
            hurt_kafka.pause()  # commits get no answer
            wait_until(lambda: status(worker)["accounts"]["written"], PATIENCE_S, "its answer has arrived")
            kill(pid)
        finally:
            hurt_kafka.resume()
        clickhouse_proxy.heal()
        rows_job.all_done()
    assert rows_job.judge(range(count)) == EXACT


def test_kill_half_way_through_an_insert(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    count = 5000
    rows_job.create()
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        (pid,) = consumers(worker)
        clickhouse_proxy.cut_to_server(20_000)  # of some 33 000
        clickhouse_proxy.refuse()  # so there is no retry
        rows_job.send(events(count))
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "half an insert is on the server")
        kill(pid)
        assert rows_job.rows() == 0
        assert rows_job.intent()
        clickhouse_proxy.heal()
        rows_job.all_done()
    assert rows_job.judge(range(count)) == EXACT


@pytest.mark.parametrize("backend", ["rows_job", "devices_job"])
def test_consumers_killed_repeatedly(backend: str, request: pytest.FixtureRequest) -> None:
    job: Job = request.getfixturevalue(backend)
    part, kills, chance = 8000, 5, random.Random(4)
    job.create(4)
    with job.start("--processes", "3", "--batch-rows", "500", "--linger-ms", "20") as worker:
        for i in range(kills):
            job.send(events(part, first=i * part))
            job.advance_to(i * part + 1)
            kill(chance.choice(consumers(worker)))
        job.all_done()
    assert job.judge(range(kills * part)) == EXACT


def test_consumers_of_two_topics_killed_repeatedly(rows_job: Job) -> None:
    part, kills, chance = 4000, 4, random.Random(8)
    jobs = (rows_job, replace(rows_job, topic=f"{rows_job.topic}_2"))
    for job in jobs:
        job.create(2)
    options = ("--topic", jobs[1].topic, "--processes", "3", "--batch-rows", "300", "--linger-ms", "20")
    with rows_job.start(*options) as worker:
        for i in range(kills):
            for n, job in enumerate(jobs):
                job.send(events(part, first=(2 * i + n) * part))
            for job in jobs:
                job.advance_to(i * part + 1)
            kill(chance.choice(consumers(worker)))
        for job in jobs:
            job.all_done()
    assert rows_job.judge(range(2 * kills * part)) == EXACT


def test_kill_of_the_supervisor_leaves_no_process_and_the_next_start_finishes(rows_job: Job) -> None:
    count = 30_000
    rows_job.create(2)
    rows_job.send(events(count))
    with rows_job.start("--until-end", "--batch-rows", "500") as worker:
        wait_until(rows_job.rows, PATIENCE_S, "rows arrive")
        family = descendants(worker.pid)
        assert len(family) == 3
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, family)), 5, "consumers and monitor have ended")
    assert rows_job.rows() < count
    rows_job.finish()
    assert rows_job.judge(range(count)) == EXACT


def test_second_signal_stops_at_once_and_nothing_is_lost(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    count = 5000
    rows_job.create()
    with rows_job.start(*rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.blackhole()
        rows_job.send(events(count))
        wait_until(rows_job.intent, PATIENCE_S, "a write is under way")
        worker.signal(signal.SIGTERM)
        worker.wait_for("stopping: SIGTERM")
        assert worker.running()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1
    clickhouse_proxy.heal()
    rows_job.finish()
    assert rows_job.judge(range(count)) == EXACT


def test_sigterm_at_random_moments_20_times(rows_job: Job) -> None:
    each, chance = 6000, random.Random(20)
    rows_job.create(4)
    for number in range(10):
        rows_job.send(events(each, first=number * each))
        # Two workers of one group: each stop is a rebalance for the other.
        options = ("--processes", "2", "--batch-rows", "200", "--linger-ms", "20")
        with rows_job.start(*options) as one, rows_job.start(*options) as other:
            begun = rows_job.accounted()
            if chance.random() < 0.8:  # else stop it while it starts
                rows_job.advance_to(begun + 1)
            for worker in (one, other):
                time.sleep(chance.uniform(0, 0.3))  # the moment is random
                worker.signal(signal.SIGTERM)
            for worker in (one, other):
                code = worker.wait()
                assert code == 0 or (code == -signal.SIGTERM and not worker.stderr)  # it had not begun
    rows_job.finish()
    assert rows_job.judge(range(10 * each)) == EXACT


def test_frozen_for_longer_than_its_session_it_is_fenced(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """Its insert is in progress when it freezes, and continues after another worker has written the same range."""
    count = 10_000
    rows_job.create()
    with rows_job.start(*rows_job.via(clickhouse_proxy.port)) as frozen:
        frozen.wait_for("took a partition")
        clickhouse_proxy.blackhole()
        rows_job.send(events(count))
        wait_until(rows_job.intent, PATIENCE_S, "a write is announced")
        with stopped(frozen.pid, *frozen.children()), rows_job.start() as other:
            rows_job.all_done()
            assert other.running()
            clickhouse_proxy.heal()  # its insert arrives and is answered while it is still frozen
        frozen.wait_for("partitions lost|not take a commit")
        rows_job.send(events(count, first=count))
        rows_job.all_done()
        frozen.signal(signal.SIGTERM)
        assert frozen.wait() == 0, frozen.tail()
    assert rows_job.judge(range(2 * count)) == EXACT
