"""Fixtures for the tests of the whole worker on real servers."""

from __future__ import annotations

import pytest

from tests.support.job import Job, MakeJob
from tests.support.kit import Service, create_topic


@pytest.fixture
def rows_job(kafka: Service, clickhouse: Service, make_job: MakeJob) -> Job:
    """A job into ClickHouse."""
    return make_job(kafka, clickhouse.address)


@pytest.fixture
def redis_env(kafka: Service, redis_server: Service, topic_name: str, group_id: str, redis_key: str) -> dict[str, str]:
    """The variables of a worker that writes the test's topic, which does not exist yet, into Redis."""
    return {
        "WORKER_BOOTSTRAP_SERVERS": kafka.address,
        "WORKER_REDIS_URL": redis_server.address,
        "WORKER_REDIS_KEY": redis_key,
        "WORKER_TOPIC": topic_name,
        "WORKER_GROUP_ID": group_id,
    }


@pytest.fixture
def env(kafka: Service, redis_server: Service, clickhouse: Service, topic_name: str, group_id: str) -> dict[str, str]:
    """The addresses of the servers, and a topic of two partitions that keeps old messages."""
    create_topic(kafka.address, topic_name, 2, {"retention.ms": "-1"})
    return {
        "WORKER_BOOTSTRAP_SERVERS": kafka.address,
        "WORKER_CLICKHOUSE_URL": clickhouse.address,
        "WORKER_REDIS_URL": redis_server.address,
        "WORKER_TOPIC": topic_name,
        "WORKER_GROUP_ID": group_id,
        "WORKER_METRICS_PORT": "0",
    }
