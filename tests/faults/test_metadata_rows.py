"""Metadata of messages in a table that is written exactly once: a takeover forms the same block again."""

from __future__ import annotations

import pytest
from clickhouse_driver import Client
from confluent_kafka import Producer

from tests.support.job import Job, consumers, kill
from tests.support.kit import PATIENCE_S, wait_until
from tests.support.oracle import BEGINNING_MS, EXACT, event
from tests.support.proxy import END_OF_STREAM, Proxy

pytestmark = pytest.mark.faults

_COUNT = 3000
_COLUMNS = (
    "timestamp DateTime64(3, 'UTC'), device_ip String, error_code Int8, _key String, _headers Map(String, String), "
    "_timestamp DateTime64(3, 'UTC'), _raw_message String, _topic String, _partition Int32, _offset Int64"
)


def test_an_insert_whose_answer_is_lost_is_repeated_with_the_same_metadata(
    rows_job: Job, clickhouse_proxy: Proxy, clickhouse_sql: Client
) -> None:
    clickhouse_sql.execute(
        f"CREATE TABLE {rows_job.target} ({_COLUMNS}) ENGINE = MergeTree ORDER BY timestamp "
        "SETTINGS non_replicated_deduplication_window = 10000"
    )
    rows_job.create()
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.drop_reply(after_bytes=100_000, until=END_OF_STREAM)  # of some 200 000 of the first block
        clickhouse_proxy.refuse()
        _send_with_metadata(rows_job)
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "the answer is lost")
        assert rows_job.rows() == 1000
        kill(*consumers(worker))
        assert rows_job.intent()
        clickhouse_proxy.heal()
        rows_job.all_done()
    assert rows_job.judge(range(_COUNT)) == EXACT
    wrong = (
        "_key != concat('k', toString(_offset)) OR _headers != map('n', toString(_offset)) OR "
        "JSONExtractString(_raw_message, 'device_ip') != device_ip OR "
        f"toUnixTimestamp64Milli(_timestamp) != {BEGINNING_MS} + 7 * _offset"
    )
    assert clickhouse_sql.execute(f"SELECT count(), countIf({wrong}) FROM {rows_job.target}") == [(_COUNT, 0)]


def _send_with_metadata(job: Job) -> None:
    producer = Producer({"bootstrap.servers": job.kafka, "enable.idempotence": True, "log_level": 2})
    for i in range(_COUNT):
        producer.produce(
            job.topic,
            event(i),
            key=f"k{i}",
            headers={"n": str(i)},
            timestamp=BEGINNING_MS + 7 * i,
            partition=0,
        )
    assert producer.flush(PATIENCE_S) == 0
