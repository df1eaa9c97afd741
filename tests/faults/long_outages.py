"""Outages of a minute or more: no member is evicted, memory stays small, and work continues. Run by test_outages."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.support.job import Job, consumers, status
from tests.support.kit import Worker, descendants
from tests.support.oracle import EXACT, events
from tests.support.waiting import Scenario, pause
from worker.local import Server

_SMALL = 400 << 20  # bytes of one process


def broker_gone_for_60_s(job: Job, kafka: Server) -> Scenario:
    job.create(2)
    with job.start("--processes", "2") as worker:
        job.send(events(10_000))
        yield lambda: job.accounted() > 0  # the second member may still be joining
        kafka.stop()
        yield pause(60)
        assert len(descendants(worker.pid)) == 3
        kafka.start()
        yield lambda: job.accounted() == 10_000
        job.send(events(5000, first=10_000))
        yield lambda: job.accounted() == 15_000
        _is_small(worker)
        assert status(worker)["restarts"] == 0
        worker.signal(signal.SIGTERM)
        yield lambda: not worker.running()
        assert worker.wait() == 0, worker.tail()
    assert job.judge(range(15_000)) == EXACT


def clickhouse_gone_for_90_s(job: Job, clickhouse: Server) -> Scenario:
    count = 60_000
    job.create(2)
    options = ("-X", "max.poll.interval.ms=10000", "-X", "session.timeout.ms=9000", "--processes", "2")
    with job.start(*options) as worker:
        yield lambda: [process["partitions"] for process in status(worker)["processes"]] == [1, 1]
        job.send(events(10_000))
        yield lambda: job.accounted() == 10_000
        before = status(worker)["rebalances"], _members(job)
        clickhouse.stop()
        job.send(events(count - 10_000, first=10_000))
        yield pause(90)
        shown = status(worker)
        assert not shown["sink_up"]
        assert all(process["paused"] for process in shown["processes"])
        assert (shown["rebalances"], _members(job)) == before  # the group's generation is the same
        _is_small(worker)
        waiting = [line for line in worker.stderr if "will try again" in line and "consumer-0" in line]
        assert len(waiting) < 12, waiting  # one line a minute for each cause
        clickhouse.start()
        yield lambda: job.accounted() == count
        assert status(worker)["restarts"] == 0
        assert status(worker)["rebalances"] == before[0]
    assert job.judge(range(count)) == EXACT


def consumer_that_dies_whenever_it_starts(job: Job) -> Scenario:
    """It is restarted with growing pauses, and the supervisor gives up at last: no fork storm."""
    job.create()
    job.send(events(1000))
    with job.start("--processes", "1") as worker:
        yield worker.children
        monitor, began = min(worker.children()), time.monotonic()
        killed: set[int] = set()

        def ended() -> bool:
            for pid in set(worker.children()) - {monitor} - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            return not worker.running()

        yield ended
        assert worker.wait() == 1
    assert 5 <= len(killed) <= 10
    assert time.monotonic() - began > 10
    assert any("without progress: stopping" in line for line in worker.stderr), worker.tail()
    job.finish()
    assert job.judge(range(1000)) == EXACT


def _members(job: Job) -> list[str]:
    admin = AdminClient({"bootstrap.servers": job.kafka, "log_level": 2})
    group = admin.describe_consumer_groups([job.group])[job.group].result(60)
    return sorted(member.member_id for member in group.members)


def _is_small(worker: Worker) -> None:
    for pid in consumers(worker):
        resident = next(
            int(line.split()[1]) << 10
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
        assert resident < _SMALL, f"{pid}: {resident >> 20} MB"
