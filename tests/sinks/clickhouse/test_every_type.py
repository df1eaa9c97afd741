"""docs/mapping.md lists every type that the server has, with what the worker does with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_driver import Client

from docs.types import BEGIN, END, FAMILIES, PAGE, TYPES, table
from tests.support.kit import Service, clickhouse_client
from worker.sinks.clickhouse.types import codec


@pytest.fixture(scope="module")
def client(clickhouse: Service) -> Iterator[Client]:
    client = clickhouse_client(clickhouse.address)
    yield client
    client.disconnect()


def test_the_page_lists_every_type_of_the_server(client: Client) -> None:
    listed = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert listed == table(client.execute(FAMILIES)), "run: python -m docs.types"


@pytest.mark.parametrize("name", [name for name in TYPES if name != "Nothing"])
def test_a_column_of_each_type_is_described_as_the_table_knows_it(client: Client, table_name: str, name: str) -> None:
    example, how = TYPES[name]
    settings = {"flatten_nested": 0, "allow_experimental_qbit_type": 1}
    client.execute(f"CREATE TABLE {table_name} (c {example}) ENGINE = Memory", settings=settings)
    ((_, described, *_),) = client.execute(f"DESCRIBE TABLE {table_name}")
    client.execute(f"DROP TABLE {table_name}")
    if how:
        assert codec(described).type
    else:
        with pytest.raises(ValueError, match="is not supported: "):
            codec(described)


def test_a_missing_type_is_an_error() -> None:
    with pytest.raises(KeyError, match="Later"):
        table([("Later", "")])
