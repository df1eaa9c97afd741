"""FastStream (confluent) into ClickHouse: a batch subscriber that reads the JSON itself, one insert a batch."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

from clickhouse_driver import Client
from faststream import FastStream  # type: ignore[import-not-found]
from faststream.confluent import KafkaBroker, KafkaMessage  # type: ignore[import-not-found]

from bench.peers.arguments import arguments
from bench.peers.moments import moment

_ROWS = 10_000


async def main() -> None:
    job = arguments()
    client = Client.from_url(job.url)
    insert = f"INSERT INTO {job.target} (timestamp, device_ip, error_code) VALUES"
    broker = KafkaBroker(job.bootstrap, logger=None)
    app = FastStream(broker, logger=None)
    done = 0

    @broker.subscriber(  # type: ignore[untyped-decorator]
        job.topic, group_id=job.group, auto_offset_reset="earliest", batch=True, max_records=_ROWS, decoder=_undecoded
    )
    async def take(messages: list[bytes]) -> None:
        nonlocal done
        events = list(map(json.loads, messages))
        columns: tuple[list[datetime], list[str], list[int]] = (
            [moment(event["timestamp"]) for event in events],
            [event["device_ip"] for event in events],
            [event["error_code"] for event in events],
        )
        client.execute(insert, columns, columnar=True)
        done += len(messages)
        if done >= job.count:
            app.exit()

    await app.run()


async def _undecoded(message: KafkaMessage) -> list[bytes]:
    return list(message.body)


asyncio.run(main())
