"""The consumer asks for rows of a partition that it is assigned while its writer inserts those of another one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from clickhouse_driver import Client

from tests.support.kit import Service
from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.records import RecordBatch
from worker.decoding.json import decode
from worker.sinks.clickhouse.sink import ClickHouseSink


def test_rows_are_looked_up_while_another_thread_inserts(client: Client, clickhouse: Service, table_name: str) -> None:
    client.execute(
        f"CREATE TABLE {table_name} (n Int64, slow UInt8 MATERIALIZED sleep(2), "
        "_topic String, _partition Int32, _offset Int64) ENGINE = MergeTree ORDER BY n "
        "SETTINGS non_replicated_deduplication_window = 10000"
    )
    settings = Settings(topic="a", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)
    with closing(ClickHouseSink(settings)) as sink, ThreadPoolExecutor(1) as pool:
        sink.open()
        batch = Batch("a", "id", 0, 0, 1, 0.0, sink.fields, [[] for _ in sink.fields])
        payloads = [b'{"n": 1}']
        batch.add(RecordBatch("a", 0, payloads, range(1), 1, 0), None, decode(payloads, sink.fields))
        began = threading.Event()

        def write() -> None:
            began.set()
            sink.write(batch)

        writing = pool.submit(write)
        assert began.wait(10)
        lookups = 0
        while not writing.done():
            assert sink.last_stored_offset("a", 1, 0) is None
            sink.is_empty()
            lookups += 1
        writing.result()
        assert lookups > 1
        assert sink.last_stored_offset("a", 0, 0) == 0
        assert client.execute(f"SELECT count() FROM {table_name}") == [(1,)]
