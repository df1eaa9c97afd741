"""No decoding at all: payloads joined by newlines, 100 000 an insert, and ClickHouse reads the JSON."""

from __future__ import annotations

import gc
from http.client import HTTPConnection
from urllib.parse import urlencode

from confluent_kafka import Consumer, Message

from bench.peers.arguments import arguments, tuned

_ROWS = 100_000


def main() -> None:
    job = arguments()
    consumer = Consumer(tuned(job))
    consumer.subscribe([job.topic])
    # The types' own readers take milliseconds for seconds, so the expression that the Kafka engine's view has, too.
    query = (
        f"INSERT INTO {job.target} (timestamp, device_ip, error_code) "
        "SELECT parseDateTime64BestEffort(timestamp, 3, 'UTC'), device_ip, error_code "
        "FROM input('timestamp String, device_ip String, error_code Int8') FORMAT JSONEachRow"
    )
    settings = {"async_insert": 0, "max_insert_block_size": 1_048_576}
    path = "/?" + urlencode({"query": query, **settings})
    server = HTTPConnection(job.http)
    rows: list[bytes | None] = []

    def insert() -> None:
        if rows:
            server.request("POST", path, b"\n".join([row for row in rows if row]))
            answer = server.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise SystemExit(text[:2000])
            rows.clear()
            consumer.commit(asynchronous=False)

    gc.freeze()
    gc.disable()
    ends = 0
    while ends < job.partitions:
        messages = consumer.consume(1000, 0.1)
        if any(map(Message.error, messages)):
            ends += sum(message.error() is not None for message in messages)
            messages = [message for message in messages if message.error() is None]
        rows += map(Message.value, messages)
        if len(rows) >= _ROWS:
            insert()
    insert()
    consumer.close()


main()
