"""bytewax into ClickHouse: its Kafka source without tailing, JSON and timestamps in maps, a sink of batched inserts."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import bytewax.operators as op  # type: ignore[import-not-found]
from bytewax.connectors.kafka import KafkaSource  # type: ignore[import-not-found]
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found]
from bytewax.outputs import DynamicSink, StatelessSinkPartition  # type: ignore[import-not-found]
from bytewax.testing import run_main  # type: ignore[import-not-found]
from clickhouse_driver import Client

from bench.peers.arguments import arguments
from bench.peers.moments import moment

_ROWS = 10_000


class Rows(StatelessSinkPartition):  # type: ignore[misc]
    """Collects rows of the small batches that bytewax hands over, and inserts 10 000 at once."""

    def __init__(self, url: str, table: str) -> None:
        self._client = Client.from_url(url)
        self._insert = f"INSERT INTO {table} (timestamp, device_ip, error_code) VALUES"
        self._rows: list[tuple[datetime, str, int]] = []

    def write_batch(self, items: list[tuple[datetime, str, int]]) -> None:
        self._rows += items
        if len(self._rows) >= _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._client.execute(self._insert, self._rows)
            self._rows = []


class Table(DynamicSink):  # type: ignore[misc]
    def __init__(self, url: str, table: str) -> None:
        self._url, self._table = url, table

    def build(self, _step: str, _index: int, _count: int) -> Rows:
        return Rows(self._url, self._table)


def row(message: Any) -> tuple[datetime, str, int]:
    event = json.loads(message.value)
    return moment(event["timestamp"]), event["device_ip"], event["error_code"]


def main() -> None:
    job = arguments()
    flow = Dataflow("bench")
    source = KafkaSource([job.bootstrap], [job.topic], tail=False, batch_size=1000)
    messages = op.input("read", flow, source)
    op.output("write", op.map("decode", messages, row), Table(job.url, job.target))
    run_main(flow)


main()
