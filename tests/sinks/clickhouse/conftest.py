"""A connection to the shared ClickHouse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_driver import Client

from tests.support.kit import Service, clickhouse_client


@pytest.fixture
def client(clickhouse: Service) -> Iterator[Client]:
    client = clickhouse_client(clickhouse.address)
    yield client
    client.disconnect()
