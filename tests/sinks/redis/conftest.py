"""A job and a client of a Redis of its own, for tests that run the worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.support.job import Job, MakeJob
from tests.support.kit import PATIENCE_S, Service
from worker.local import Server


@pytest.fixture
def job(kafka: Service, own_redis: Server, topic_name: str, make_job: MakeJob) -> Job:
    job = replace(make_job(kafka, own_redis.address), target=f"devices:{{{topic_name}}}")
    job.create(2)
    return job


@pytest.fixture
def client(own_redis: Server) -> Iterator[Any]:
    with redis.Redis(port=own_redis.port, socket_timeout=PATIENCE_S) as client:
        yield client
