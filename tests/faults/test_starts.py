"""Children that cannot start: no fork storm, one clear error."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support.job import Job
from tests.support.kit import PATIENCE_S, wait_until
from tests.support.oracle import EXACT, events

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
