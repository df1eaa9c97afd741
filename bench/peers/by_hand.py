"""A script for one shape of events, by somebody who knows the libraries: see bench/jobs.py. It ends with the topic."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from clickhouse_driver import Client
from confluent_kafka import Consumer
from redis import Redis

from bench.peers.arguments import arguments, tuned

_ROWS = 100_000
_DAY = 86_400
_KEEP = 400 * _DAY

Event = dict[str, Any]


def main() -> None:
    job = arguments()
    consumer = Consumer(tuned(job))
    consumer.subscribe([job.topic])
    write = _SCRIPTS[job.kind](job.url, job.target)
    gc.freeze()
    gc.disable()
    events: list[Event] = []
    ends = 0
    while ends < job.partitions:
        for message in consumer.consume(1000, 0.1):
            if message.error():
                ends += 1
            else:
                events.append(orjson.loads(message.value() or b""))
        if len(events) >= _ROWS:
            write(events)
            consumer.commit(asynchronous=False)
            events = []
    if events:
        write(events)
        consumer.commit(asynchronous=False)
    consumer.close()


def access_log(url: str, table: str) -> Callable[[list[Event]], None]:
    client = Client.from_url(url)

    def write(events: list[Event]) -> None:
        requests = [event["request"] for event in events]
        columns: dict[str, list[Any]] = {
            "time": [datetime.fromisoformat(event["time_iso8601"]) for event in events],
            "remote_addr": [event["remote_addr"] for event in events],
            "status": [event["status"] for event in events],
            "bytes": [event["bytes"] for event in events],
            "request_id": [UUID(request["id"]) for request in requests],
            "method": [request["method"] for request in requests],
            "path": [request["path"] for request in requests],
            "secure": [request["secure"] for request in requests],
            "headers": [request["headers"] for request in requests],
            "upstream_time": [event["upstream"] and event["upstream"]["time"] for event in events],
            "user_agent": [event["user_agent"] for event in events],
            "tags": [event["tags"] for event in events],
        }
        _insert(client, table, columns)

    return write


def readings(url: str, table: str) -> Callable[[list[Event]], None]:
    client = Client.from_url(url)

    def write(events: list[Event]) -> None:
        columns: dict[str, list[Any]] = {
            "sensor": [UUID(event["sensor"]["id"]) for event in events],
            "at": [datetime.fromtimestamp(event["at"], UTC) for event in events],
            "celsius": [Decimal(str(event["celsius"])) for event in events],
            "battery": [event["battery"] for event in events],
            "state": [event["state"] for event in events],
            "place": [(event["place"]["lat"], event["place"]["lon"]) for event in events],
            "version": [event["version"] for event in events],
        }
        _insert(client, table, columns)

    return write


def clicks(url: str, key: str) -> Callable[[list[Event]], None]:
    redis = Redis.from_url(url)

    def write(events: list[Event]) -> None:
        users: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for event in events:
            users[event["timestamp"][:10], event["country"]].add(event["user"]["id"])
        days: defaultdict[str, set[int]] = defaultdict(set)
        countries: defaultdict[str, set[int]] = defaultdict(set)
        pipeline = redis.pipeline(transaction=False)
        for (day, country), those in users.items():
            days[day] |= those
            countries[country] |= those
            _add(pipeline, f"{key}:day:{day}:country={country}", those, day)
        for day, those in days.items():
            _add(pipeline, f"{key}:day:{day}", those, day)
        for country, those in countries.items():
            pipeline.pfadd(f"{key}:country={country}", *those)
        pipeline.pfadd(key, *set().union(*days.values()))
        pipeline.execute()

    return write


def _add(pipeline: Any, key: str, users: set[int], day: str) -> None:
    pipeline.pfadd(key, *users)
    pipeline.expireat(key, int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + _DAY + _KEEP)


def _insert(client: Client, table: str, columns: dict[str, list[Any]]) -> None:
    client.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES", list(columns.values()), columnar=True)


_SCRIPTS = {"access_log": access_log, "readings": readings, "clicks": clicks}

main()
