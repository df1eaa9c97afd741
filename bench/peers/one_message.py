"""The obvious consumer: poll, json.loads, then one PFADD an event, or inserts of 10 000 rows. Nothing is tuned."""

from __future__ import annotations

import json
from datetime import datetime

from clickhouse_driver import Client
from confluent_kafka import Consumer, KafkaError
from redis import Redis

from bench.peers.arguments import arguments
from bench.peers.moments import moment

_ROWS = 10_000


def main() -> None:
    job = arguments()
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,  # how it knows that it is done
        }
    )
    consumer.subscribe([job.topic])
    redis = Redis.from_url(job.url) if job.store == "redis" else None
    clickhouse = Client.from_url(job.url) if job.store == "clickhouse" else None
    rows: list[tuple[datetime, str, int]] = []

    def insert() -> None:
        if clickhouse and rows:
            clickhouse.execute(f"INSERT INTO {job.target} (timestamp, device_ip, error_code) VALUES", rows)
            rows.clear()
            consumer.commit(asynchronous=False)

    ends = 0
    while ends < job.partitions:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if error := message.error():
            ends += error.code() == KafkaError._PARTITION_EOF
            continue
        event = json.loads(message.value() or b"")
        if redis:
            redis.pfadd(job.target, event["device_ip"])
        else:
            rows.append((moment(event["timestamp"]), event["device_ip"], event["error_code"]))
            if len(rows) >= _ROWS:
                insert()
    insert()
    if redis:
        consumer.commit(asynchronous=False)
    consumer.close()


main()
