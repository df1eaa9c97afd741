"""Real servers for the tests: shared ones that start at their first use, and a test's own for faults.

`WORKER_TEST_KAFKA`, `WORKER_TEST_REDIS` and `WORKER_TEST_CLICKHOUSE` name running servers to use as the shared ones.
If a server is not installed, the tests that need it fail with the command that installs it. Nothing is skipped.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.job import Job, MakeJob
from tests.support.kit import Service, Worker
from worker.local import Server, start_clickhouse, start_kafka, start_redis, start_schema_registry


class ExternalServer(NamedTuple):
    """A server that the tests did not start."""

    address: str


def _shared(variable: str, start: Callable[[], Server]) -> Iterator[Service]:
    if address := os.environ.get(variable):
        yield ExternalServer(address)
    else:
        with start() as server:
            yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[Service]:
    yield from _shared("WORKER_TEST_KAFKA", start_kafka)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Service]:
    yield from _shared("WORKER_TEST_REDIS", start_redis)


@pytest.fixture(scope="session")
def clickhouse() -> Iterator[Service]:
    yield from _shared("WORKER_TEST_CLICKHOUSE", start_clickhouse)


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[Server]:
    with start_schema_registry() as server:
        yield server


@pytest.fixture
def own_kafka() -> Iterator[Server]:
    with start_kafka() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[Server]:
    with start_redis() as server:
        yield server


@pytest.fixture
def own_clickhouse() -> Iterator[Server]:
    with start_clickhouse() as server:
        yield server


@pytest.fixture
def make_job(topic_name: str, group_id: str, redis_key: str, table_name: str) -> Iterator[MakeJob]:
    """Make the test's job from Kafka and a store's URL. Pytest shows its workers' output if the test fails."""
    started: list[Worker] = []

    def make(kafka: Service, url: str) -> Job:
        backend, target = ("clickhouse", table_name) if url.startswith("clickhouse") else ("redis", redis_key)
        address, topic, group = kafka.address, topic_name, group_id
        return Job(kafka=address, topic=topic, group=group, backend=backend, url=url, target=target, started=started)

    yield make
    for worker in started:
        print(f"--- worker {worker.pid}\n{worker.tail(60)}")


@pytest.fixture
def topic_name() -> str:
    return _unique_name("topic")


@pytest.fixture
def group_id() -> str:
    return _unique_name("group")


@pytest.fixture
def redis_key() -> str:
    return _unique_name("devices")


@pytest.fixture
def table_name() -> str:
    return _unique_name("events")


def _unique_name(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:12]}"
