"""quix-streams into ClickHouse: its JSON dataframe, a batching sink on clickhouse-driver, its defaults otherwise."""

from __future__ import annotations

from typing import Any

from clickhouse_driver import Client
from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.sinks import BatchingSink  # type: ignore[import-not-found]

from bench.peers.arguments import arguments
from bench.peers.moments import moment


class Table(BatchingSink):  # type: ignore[misc]
    """Rows of a batch in one insert, when quix-streams commits."""

    def __init__(self, url: str, table: str) -> None:
        super().__init__()
        self._client = Client.from_url(url)
        self._insert = f"INSERT INTO {table} (timestamp, device_ip, error_code) VALUES"

    def write(self, batch: Any) -> None:
        events = [item.value for item in batch]
        columns = (
            [moment(event["timestamp"]) for event in events],
            [event["device_ip"] for event in events],
            [event["error_code"] for event in events],
        )
        self._client.execute(self._insert, columns, columnar=True)


def main() -> None:
    job = arguments()
    app = Application(
        job.bootstrap,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        commit_every=100_000,
        loglevel="WARNING",
    )
    frame = app.dataframe(app.topic(job.topic, value_deserializer="json"))
    frame.sink(Table(job.url, job.target))
    app.run(count=job.count, collect=False)


main()
