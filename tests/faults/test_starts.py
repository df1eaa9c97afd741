"""Children that cannot start: no fork storm, one clear error."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support.job import Job
from tests.support.kit import PATIENCE_S, run_worker, wait_until
from tests.support.oracle import EXACT, events
from worker.local import Server, start_clickhouse

pytestmark = pytest.mark.faults


def test_metrics_port_in_use(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send(events(1000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with rows_job.start("--until-end", "--metrics-port", str(port)) as worker:
            assert worker.wait() == 78
    lines = [line for line in worker.stderr if "ERROR" in line]
    assert len(lines) == 1, worker.tail()
    assert f"127.0.0.1:{port}" in lines[0]
    assert "--metrics-port" in lines[0]
    rows_job.finish()
    assert rows_job.judge(range(1000)) == EXACT


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("http port", "no native port of ClickHouse: HTTP's is 8123, the native one 9000"),
        ("long table name", "name too long.*name another --table, or one without {topic}"),
        ("read-only user", "code 164.*let the user change the settings"),
        ("constraint", "code 452.*let the user change the settings"),
    ],
)
def test_what_retrying_cannot_fix_ends_the_worker_and_fails_check(
    rows_job: Job, hurt_clickhouse: Server, fault: str, message: str
) -> None:
    with ExitStack() as stack:
        url = rows_job.url
        if fault == "long table name":
            rows_job = replace(rows_job, topic="t" * 249, target="events_{topic}")
        elif fault == "http port":
            url = f"clickhouse://127.0.0.1:{hurt_clickhouse.http_port}/default"
        elif fault == "read-only user":
            url = f"{url}?readonly=1"
        else:
            constraints = {"async_insert": {"const": ""}}
            url = stack.enter_context(start_clickhouse(settings={"constraints": constraints})).address
        rows_job.create()
        rows_job.send(events(10))
        with rows_job.start("--until-end", "--clickhouse-url", url) as worker:
            assert worker.wait() == 78, worker.tail()
        assert re.search(message, worker.tail(), re.DOTALL), worker.tail()
        with run_worker("check", *rows_job.arguments("--clickhouse-url", url)) as check:
            assert check.wait() == 1, check.stdout
        assert [line for line in check.stdout if line.startswith("FAIL")], check.stdout


def test_a_redis_database_that_does_not_exist_ends_the_worker_and_fails_check(devices_job: Job) -> None:
    devices_job.create()
    url = f"{devices_job.url.rpartition('/')[0]}/99"
    with devices_job.start("--redis-url", url) as worker:
        assert worker.wait() == 78, worker.tail()
    assert "DB index is out of range (name another database in --redis-url" in worker.tail()
    with run_worker("check", *devices_job.arguments("--redis-url", url)) as check:
        assert check.wait() == 1
    assert any(line.startswith("FAIL") and "DB index" in line for line in check.stdout), check.stdout


def test_a_group_whose_offsets_expired_does_not_start_over(rows_job: Job) -> None:
    """Kafka deletes the offsets of a group without members after 7 days; everything would be stored twice."""
    rows_job.create()
    rows_job.send(events(1000))
    rows_job.finish()
    admin = AdminClient({"bootstrap.servers": rows_job.kafka})
    _once_without_members(
        lambda: [future.result() for future in admin.delete_consumer_groups([rows_job.group]).values()]
    )
    rows_job.send(events(500, 1000))
    with rows_job.start("--until-end") as worker:
        assert worker.wait() == 78, worker.tail()
    lines = [line for line in worker.stderr if "no committed offset" in line]
    assert lines, worker.tail()
    assert f"--topic {rows_job.topic}:0 --to-offset 1000 --execute" in lines[0]
    assert rows_job.rows() == 1000
    with run_worker("check", *rows_job.arguments()) as check:
        assert check.wait() == 1
    assert any(line.startswith("FAIL  group") and "would be stored twice" in line for line in check.stdout), (
        check.stdout
    )
    consumer = Consumer({"bootstrap.servers": rows_job.kafka, "group.id": rows_job.group})
    offsets = [TopicPartition(rows_job.topic, 0, 1000)]
    _once_without_members(lambda: consumer.commit(offsets=offsets, asynchronous=False))
    consumer.close()
    rows_job.finish()
    assert rows_job.judge(range(1500)) == EXACT


def _once_without_members(call: Callable[[], object]) -> None:
    """Call until the group's last members, which were killed, have left it."""

    def succeeds() -> bool:
        try:
            call()
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError.NON_EMPTY_GROUP, KafkaError.UNKNOWN_MEMBER_ID):
                raise
            return False
        return True

    wait_until(succeeds, PATIENCE_S, "the group has no members")
