"""Kafka, Redis and ClickHouse for a benchmark: started here or named by WORKER_TEST_…, and their topics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from clickhouse_driver import Client
from confluent_kafka import Consumer, TopicPartition
from redis import Redis

from bench import machine
from worker.commands.produce.fleet import Fleet
from worker.decoding.timestamps import to_millis
from worker.local import Server, start_clickhouse, start_kafka, start_redis

ROOT = Path(__file__).parents[1]
_TAKE = 10_000
SMALL = 100  # events of each partition of the topic that start-up is measured with
# The broker waits for further members before it assigns partitions (Kafka's default is 3000 ms). Without this the first
# of several consumers drains the topic before the others have joined.
_BROKER = {"group.initial.rebalance.delay.ms": 1000}


class Dataset(NamedTuple):
    """A topic with the first events of a seeded fleet in all partitions, and what a store must have afterwards."""

    topic: str
    events: int
    partitions: int
    devices: int
    distinct: int
    error_codes: int  # their sum
    millis: int  # the sum of the timestamps, in Unix ms
    addresses: frozenset[str]


@dataclass
class Services:
    """Addresses as the worker's options take them, and the servers' pids (0 if they run elsewhere)."""

    kafka: str
    redis: str
    clickhouse: str
    pids: dict[str, int] = field(default_factory=dict)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one ClickHouse query on a new connection."""
        client = Client.from_url(self.clickhouse)
        try:
            rows: list[tuple[Any, ...]] = client.execute(sql)
        finally:
            client.disconnect()
        return rows

    def redis_client(self) -> Redis:
        return Redis.from_url(self.redis)

    def clickhouse_http(self) -> str:
        """Return host:port of the HTTP interface."""
        ((port,),) = self.query("SELECT getServerPort('http_port')")
        return f"{urlsplit(self.clickhouse).hostname}:{port}"

    def versions(self) -> dict[str, str]:
        info: Any = self.redis_client().info("server")
        return {"ClickHouse": str(self.query("SELECT version()")[0][0]), "Redis": str(info["redis_version"])}

    def dataset(self, events: int, devices: int, partitions: int, seed: int = 1, size: int = 0) -> Dataset:
        """Return a topic with these events, created if missing; `size` pads each event to about so many bytes."""
        topic = f"bench-{events}-{devices}-{partitions}-{seed}" + (f"-{size}" if size else "")
        existing = self._count_events(topic, partitions)
        if existing not in (0, events):
            raise SystemExit(f"topic {topic} has {existing} events, not {events}: remove it and start again")
        if existing == 0:
            self._produce(topic, events, devices, partitions, seed, size)
        fleet = Fleet(devices, seed=seed)
        codes = millis = 0
        addresses: set[str] = set()
        for start in range(0, events, _TAKE):
            rows = list(map(orjson.loads, fleet.take(min(_TAKE, events - start))))
            codes += sum(row["error_code"] for row in rows)
            millis += sum(to_millis(row["timestamp"]) for row in rows)
            addresses.update(row["device_ip"] for row in rows)
        return Dataset(topic, events, partitions, devices, len(addresses), codes, millis, frozenset(addresses))

    def filled_table(self, rows: int) -> str:
        """Return a table as the worker creates it with so many rows of other devices, created if missing."""
        table = f"bench_filled_{rows}"
        if not self.query(f"EXISTS TABLE {table}")[0][0]:
            self.query(files("worker.sinks.clickhouse").joinpath("events.sql").read_text().format(table=table))
            self.query(
                f"INSERT INTO {table} SELECT now64(3), concat('172.16.', toString(number % 100), '.', "
                f"toString(intDiv(number, 100) % 100)), 0, '', -1, number FROM numbers({rows})"
            )
        return table

    def _count_events(self, topic: str, partitions: int) -> int:
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": "bench-look", "log_level": 2})
        try:
            if topic not in consumer.list_topics(timeout=30).topics:
                return 0
            marks = [consumer.get_watermark_offsets(TopicPartition(topic, i), timeout=30) for i in range(partitions)]
            return sum(high - low for low, high in marks)
        finally:
            consumer.close()

    def _produce(self, topic: str, events: int, devices: int, partitions: int, seed: int, size: int) -> None:
        command = [sys.executable, "-m", "worker", "produce", "--bootstrap-servers", self.kafka, "--topic", topic]
        command += ["--num-devices", str(devices), "--partitions", str(partitions), "--seed", str(seed)]
        if size:
            subprocess.run([*command, "--num-messages", "0"], cwd=ROOT, check=True, stderr=subprocess.PIPE)
            pad = [sys.executable, "-m", "bench.peers.padded", self.kafka, topic]
            pad += [str(part) for part in (events, devices, partitions, seed, size)]
            subprocess.run(pad, cwd=ROOT, check=True)
        else:
            subprocess.run([*command, "--num-messages", str(events)], cwd=ROOT, check=True, stderr=subprocess.PIPE)


@contextmanager
def running() -> Iterator[Services]:
    """Yield the services; those started here are stopped and their data removed at the end of the block."""
    with ExitStack() as stack:
        addresses = {}
        starts: dict[str, Callable[[], Server]] = {
            "kafka": partial(start_kafka, _BROKER),
            "redis": partial(start_redis, appendonly="no"),
            "clickhouse": start_clickhouse,
        }
        for name, start in starts.items():
            given = os.environ.get(f"WORKER_TEST_{name.upper()}")
            addresses[name] = given or stack.enter_context(start()).address
        services = Services(addresses["kafka"], addresses["redis"], addresses["clickhouse"])
        for name, address in addresses.items():
            port = urlsplit(address if "//" in address else f"//{address}").port
            services.pids[name] = machine.listener(port) if port else 0
        yield services
