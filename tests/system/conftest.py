"""Fixtures for the tests of the whole worker on real servers."""

from __future__ import annotations

import pytest

from tests.support.job import Job, MakeJob
from tests.support.kit import Service


@pytest.fixture
def rows_job(kafka: Service, clickhouse: Service, make_job: MakeJob) -> Job:
    """A job into ClickHouse."""
    return make_job(kafka, clickhouse.address)
