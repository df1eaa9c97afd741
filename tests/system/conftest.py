"""Fixtures for the tests of the whole worker on real servers."""

from __future__ import annotations

import pytest

from tests.support.job import Job
from tests.support.kit import Service


@pytest.fixture
def rows_job(kafka: Service, clickhouse: Service, topic_name: str, group_id: str, table_name: str) -> Job:
    """A job into ClickHouse."""
    return Job(
        kafka=kafka.address,
        topic=topic_name,
        group=group_id,
        backend="clickhouse",
        url=clickhouse.address,
        place=table_name,
    )
