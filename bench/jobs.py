"""`python -m bench.jobs`: three jobs that the worker was not made for, beside a script written by hand for each.

An access log with nested fields into twelve columns, as docs/mapping.md has it; sensors' readings keyed by UUID into
ReplacingMergeTree; a clickstream into daily distinct users by country, as HyperLogLogs in Redis. The scripts are those
of somebody who knows the libraries (`peers/by_hand.py`): batches, orjson, columnar inserts, pipelines. They check
nothing, keep no dead letters and are not exactly-once. All read the same topic in turn, the worker also with `--reader
python`, and what arrived is compared with what was sent. `--check` fails where the worker takes more than 1.5 times the
CPU time of the script.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench import contenders, report, rounds, services
from bench.contenders import Contender, Job
from bench.services import Dataset, Services
from worker.core.errors import Fatal
from worker.decoding.timestamps import to_iso

LIMIT = 1.5
_GUIDE = Path(__file__).parents[1] / "docs/mapping.md"
_PARTITIONS = 4
_SEED = 1
_TAKE = 1000
_FROM = int(time.time()) // 86_400 * 86_400 - 8 * 86_400  # Unix seconds of the first event: windows are still kept

Event = dict[str, Any]


class Shape(NamedTuple):
    """One job: its events, the table or keys that they go into, and the expected result."""

    name: str  # the same as in peers/by_hand.py
    store: str
    event: Callable[[random.Random, int], Event]  # returns the n-th event
    table: str  # the statement that creates it, with {target}
    options: tuple[str, ...]  # of the worker; {config} is the guide's file
    actual: Callable[[Job], tuple[Any, ...]]
    expected: Callable[[Services, list[Event]], tuple[Any, ...]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=500_000, help="of each job [%(default)s]")
    names = [shape.name for shape in _SHAPES]
    parser.add_argument("--job", action="append", choices=names, help="only this; repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--check", action="store_true", help=f"fail above {LIMIT} times the script's CPU time")
    options = parser.parse_args(argv)
    try:
        with services.running() as running, tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "access_log.toml"
            config.write_text(_guides("toml"))
            shapes = [shape for shape in _SHAPES if shape.name in (options.job or names)]
            field = [entry for shape in shapes for entry in _field(running, shape, options.events, config)]
            results = rounds.play(running, field, options.rounds, rounds.progress)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code
    rounds.progress("")
    print(report.table(results))
    if texts := report.failures(results):
        print(texts)
        return 1
    code = 0
    for script, worker, python in zip(results[::3], results[1::3], results[2::3], strict=True):
        ratio = median(report.ratios(worker, script))
        code |= options.check and ratio > LIMIT
        share = median(report.ratios(worker, python))
        name = worker.contender.name
        print(f"{name}: {ratio:.2f} × the script by hand, limit {LIMIT}; {share:.2f} × the Python reader")
    return int(code)


def _field(running: Services, shape: Shape, count: int, config: Path) -> Iterator[tuple[Contender, Dataset, Dataset]]:
    """Yield the script, the worker, and the worker with the Python reader, each with the topic and an empty one."""
    rounds.progress(f"writing: {shape.name}")
    events = _events(shape, count)
    topics = [f"jobs-{shape.name}-{part}" for part in (len(events), 0)]
    _send(running.kafka, topics[0], events)
    _send(running.kafka, topics[1], [])
    nothing = Dataset(topics[1], 0, _PARTITIONS, 0, 0, 0, 0, frozenset())
    data = nothing._replace(topic=topics[0], events=len(events))
    results = {topics[0]: shape.expected(running, events), topics[1]: shape.expected(running, [])}

    def arrived(job: Job) -> str:
        actual, expected = shape.actual(job), results[job.data.topic]
        return "" if actual == expected else f"the store has {actual}, not {expected}"

    words = tuple(word.format(config=config) for word in shape.options)
    script = contenders.peer(f"{shape.name}, by hand", shape.store, "by_hand", kind=shape.name)
    worker = contenders.ours(1, shape.store, words, name=f"{shape.name}, worker")
    python = contenders.ours(1, shape.store, (*words, "--reader", "python"), name=f"{shape.name}, Python reader")
    for contender in (script, worker, python):
        yield replace(contender, statement=shape.table, arrived=arrived), data, nothing


def _events(shape: Shape, count: int) -> list[Event]:
    chosen = random.Random(_SEED)
    return [shape.event(chosen, n) for n in range(count)]


def _send(kafka: str, topic: str, events: list[Event]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})  # the client must live until the answer arrives
    admin.create_topics([NewTopic(topic, _PARTITIONS, 1)])[topic].result(60)
    producer = Producer({"bootstrap.servers": kafka, "compression.type": "lz4", "linger.ms": 20, "acks": "all"})
    for n, event in enumerate(events):
        while True:
            try:
                producer.produce(topic, orjson.dumps(event), partition=n // _TAKE % _PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise SystemExit(f"{topic}: some events were not written")


def _guides(language: str) -> str:
    """Return the guide's first block of code in a language."""
    match = re.search(rf"```{language}\n(.*?)```", _GUIDE.read_text(), re.DOTALL)
    assert match
    return match[1]


# the access log


def _request(chosen: random.Random, n: int) -> Event:
    return {
        "time_iso8601": to_iso((_FROM + n // 100) * 1000).replace(".000Z", "+00:00"),
        "remote_addr": f"10.{n % 7}.{chosen.randrange(256)}.{chosen.randrange(256)}",
        "status": chosen.choice([200, 200, 304, 404, 500]),
        "bytes": chosen.randrange(100_000),
        "request": {
            "id": str(uuid.UUID(int=chosen.getrandbits(128))),
            "method": chosen.choice(["GET", "POST"]),
            "path": f"/item/{chosen.randrange(5000)}",
            "secure": n % 5 > 0,
            "headers": {"host": "example.org", "accept": "*/*"},
        },
        "upstream": {"addr": "10.0.0.9:8080", "time": chosen.randrange(1000) / 1000} if n % 4 else None,
        "user_agent": f"agent/{chosen.randrange(40)}" if n % 9 else None,
        "tags": ["edge", "cached"][: n % 3],
    }


def _query(expressions: str, job: Job) -> tuple[Any, ...]:
    return job.services.query(f"SELECT {expressions} FROM {job.target}")[0]


def _requests_expected(_running: Services, events: list[Event]) -> tuple[Any, ...]:
    return (
        len(events),
        sum(event["bytes"] for event in events),
        len({event["request"]["id"] for event in events}),
        sum(event["request"]["secure"] for event in events),
        sum(event["upstream"] is None for event in events),
        sum(len(event["tags"]) for event in events),
    )


# readings


def _reading(chosen: random.Random, n: int) -> Event:
    return {
        "sensor": {"id": str(uuid.UUID(int=chosen.randrange(20_000)))},
        "at": _FROM + n,
        "celsius": chosen.randrange(-40_000, 60_000) / 1000,
        "battery": chosen.randrange(101),
        "state": "ok" if n % 9 else "failing",
        "place": {"lat": round(chosen.uniform(50, 54), 5), "lon": round(chosen.uniform(3, 7), 5)},
        "version": n,
    }


_READINGS = """CREATE TABLE {target} (sensor UUID, at DateTime64(6, 'UTC'), celsius Decimal(9, 3), battery UInt8,
    state Enum8('ok' = 1, 'failing' = 2), place Tuple(lat Float64, lon Float64), version UInt64,
    _topic LowCardinality(String), _partition Int32, _offset Int64)
    ENGINE = ReplacingMergeTree(version) ORDER BY (sensor, at, _topic, _partition, _offset)
    SETTINGS non_replicated_deduplication_window = 10000"""


def _readings_expected(_running: Services, events: list[Event]) -> tuple[Any, ...]:
    return (
        len(events),
        len({event["sensor"]["id"] for event in events}),
        sum(round(event["celsius"] * 1000) for event in events),
        sum(event["state"] == "ok" for event in events),
        sum(event["version"] for event in events),
        sum(event["at"] for event in events),
    )


# clicks

_COUNTRIES = ("NL", "DE", "FR", "BR", "JP")
_DAYS = 7


def _click(chosen: random.Random, n: int) -> Event:
    moment = _FROM + chosen.randrange(_DAYS * 86_400)
    return {
        "timestamp": to_iso(moment * 1000),
        "user": {"id": chosen.randrange(20_000), "plan": "free"},
        "country": chosen.choice(_COUNTRIES),
        "page": f"/item/{n % 5000}",
    }


def _clicks_actual(job: Job) -> tuple[Any, ...]:
    """Return the total count, and the count of each day and country."""
    client = job.services.redis_client()
    keys = sorted(key.decode() for key in client.scan_iter(f"*{job.target}*:day:*:country=*", count=1000))
    return int(client.pfcount(job.target)), *((key[key.index(":day:") :], client.pfcount(key)) for key in keys)


def _clicks_expected(running: Services, events: list[Event]) -> tuple[Any, ...]:
    client = running.redis_client()
    users: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        users[""].add(event["user"]["id"])
        users[f":day:{event['timestamp'][:10]}:country={event['country']}"].add(event["user"]["id"])

    def count_once(members: set[int]) -> int:
        client.delete("jobs-clean")
        if members:
            client.pfadd("jobs-clean", *members)
        return int(client.pfcount("jobs-clean"))

    total = count_once(users.pop("", set()))
    return total, *((key, count_once(users[key])) for key in sorted(users))


_SHAPES = [
    Shape(
        "access_log",
        "clickhouse",
        _request,
        _guides("sql").replace("access_log", "{target}"),
        ("--config", "{config}"),
        partial(
            _query,
            "count(), sum(bytes), uniqExact(request_id), countIf(secure), countIf(upstream_time IS NULL), "
            "sum(length(tags))",
        ),
        _requests_expected,
    ),
    Shape(
        "readings",
        "clickhouse",
        _reading,
        _READINGS,
        ("--map", "sensor.id=sensor", "--device-field", "sensor.id"),
        partial(
            _query,
            "count(), uniqExact(sensor), toInt64(sum(celsius) * 1000), countIf(state = 'ok'), sum(version), "
            "toInt64(sum(toUnixTimestamp(at)))",
        ),
        _readings_expected,
    ),
    Shape(
        "clicks",
        "redis",
        _click,
        "",
        ("--windows", "day", "--by", "country", "--device-field", "user.id"),
        _clicks_actual,
        _clicks_expected,
    ),
]

if __name__ == "__main__":
    sys.exit(main())
