"""Real servers for the tests: one of each for the session, started when first asked for, or a test's own to hurt.

`WORKER_TEST_KAFKA`, `WORKER_TEST_REDIS` and `WORKER_TEST_CLICKHOUSE` name running servers to use for the shared ones.
A server that cannot be had fails the test that needs it, with what to install; nothing is skipped.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.kit import Service
from worker.local import Server, start_clickhouse, start_kafka, start_redis


class Elsewhere(NamedTuple):
    """A server that somebody else runs."""

    address: str


def _shared(variable: str, start: Callable[[], Server]) -> Iterator[Service]:
    if address := os.environ.get(variable):
        yield Elsewhere(address)
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
def topic_name() -> str:
    return _fresh("topic")


@pytest.fixture
def group_id() -> str:
    return _fresh("group")


@pytest.fixture
def redis_key() -> str:
    return _fresh("devices")


@pytest.fixture
def table_name() -> str:
    return _fresh("events")


def _fresh(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:12]}"
