"""Events into a ClickHouse table, through the sink that the worker uses."""

from __future__ import annotations

from contextlib import closing

from worker.config.settings import Settings
from worker.core.batch import Batch, BatchState
from worker.core.records import RecordBatch
from worker.decoding.json import decode
from worker.sinks.clickhouse.sink import ClickHouseSink


def write(settings: Settings, payloads: list[bytes]) -> list[str]:
    """Write the events to the settings' table; return reason and field of each that is rejected."""
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
        batch = Batch("t", "id", 0, 0, 0, 0.0, sink.fields, [[] for _ in sink.fields])
        decoded = decode(payloads, sink.fields)
        batch.add(RecordBatch("t", 0, list(payloads), range(len(payloads)), len(payloads), 0), None, decoded)
        batch.state = BatchState.SEALED
        if batch.rows:
            sink.write(batch)
        return [f"{dead_letter.reason} {dead_letter.field}" for dead_letter in batch.dead_letters]
