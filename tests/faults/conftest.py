"""Servers for faults: the session's own, restarted or repaired before the test ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_driver import Client

from tests.support.job import Job, MakeJob
from tests.support.kit import Service, clickhouse_client, host_and_port
from tests.support.proxy import Proxy
from worker.local import Server, start_clickhouse, start_kafka, start_redis


@pytest.fixture(scope="session")
def hurt_kafka(kafka: Service) -> Iterator[Server]:
    """A broker to pause and restart: the shared one, unless it was started outside of the tests."""
    if isinstance(kafka, Server):
        yield kafka
    else:
        with start_kafka() as server:
            yield server


@pytest.fixture(scope="session")
def hurt_clickhouse(clickhouse: Service) -> Iterator[Server]:
    if isinstance(clickhouse, Server):
        yield clickhouse
    else:
        with start_clickhouse() as server:
            yield server


@pytest.fixture(scope="session")
def hurt_redis(redis_server: Service) -> Iterator[Server]:
    if isinstance(redis_server, Server):
        yield redis_server
    else:
        with start_redis() as server:
            yield server


@pytest.fixture
def rows_job(hurt_kafka: Server, hurt_clickhouse: Server, make_job: MakeJob) -> Job:
    """A job into ClickHouse."""
    return make_job(hurt_kafka, hurt_clickhouse.address)


@pytest.fixture
def devices_job(hurt_kafka: Server, hurt_redis: Server, make_job: MakeJob) -> Job:
    """A job into Redis."""
    return make_job(hurt_kafka, hurt_redis.address)


@pytest.fixture
def clickhouse_sql(hurt_clickhouse: Server) -> Iterator[Client]:
    client = clickhouse_client(hurt_clickhouse.address)
    yield client
    client.disconnect()


@pytest.fixture
def clickhouse_proxy(hurt_clickhouse: Server) -> Iterator[Proxy]:
    with Proxy(*host_and_port(hurt_clickhouse.address)) as proxy:
        yield proxy


@pytest.fixture
def redis_proxy(hurt_redis: Server) -> Iterator[Proxy]:
    with Proxy(*host_and_port(hurt_redis.address)) as proxy:
        yield proxy
