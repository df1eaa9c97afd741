"""Invalid events: each becomes a dead letter with its raw bytes, and never blocks valid events."""

from __future__ import annotations

import base64
import random
import re
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.support.job import Job, consumers, status
from tests.support.kit import PATIENCE_S, clickhouse_client, run_worker, wait_until
from tests.support.oracle import EXACT, DeadLetter, device, event, events
from worker.commands.produce.fleet import BAD_EVENTS
from worker.config.settings import Settings
from worker.kafka.log_reader import LogReader

pytestmark = pytest.mark.faults


def other(timestamp: bytes = b"1700000000000", device_ip: bytes = b'"10.0.0.1"', error_code: bytes = b"3") -> bytes:
    """Return an event with these texts as values."""
    return b'{"timestamp": %b, "device_ip": %b, "error_code": %b}' % (timestamp, device_ip, error_code)


# Reason and field of each of BAD_EVENTS.
WHY = (
    ("not_json", ""),
    ("not_json", ""),
    ("not_object", ""),
    ("not_json", ""),
    ("missing_field", "timestamp"),
    ("missing_field", "device_ip"),
    ("missing_field", "error_code"),
    ("bad_timestamp", "timestamp"),
    ("wrong_type", "device_ip"),
    ("wrong_type", "error_code"),
    ("out_of_range", "error_code"),
    ("out_of_range", "error_code"),
    ("bad_timestamp", "timestamp"),
    ("bad_timestamp", "timestamp"),
)
# Events that a table of the three fields cannot hold, with reason and field.
BAD: list[tuple[bytes, str, str]] = [
    *((payload.replace(b"<ip>", b"10.0.0.1"), *why) for payload, why in zip(BAD_EVENTS, WHY, strict=True)),
    (b"", "not_json", ""),
    (b" ", "not_json", ""),
    (b"\0", "not_json", ""),
    (b"NaN", "not_json", ""),
    (b"null", "not_object", ""),
    (b"7", "not_object", ""),
    (b'"10.0.0.1"', "not_object", ""),
    (b"[]", "not_object", ""),
    (b"{}", "missing_field", "timestamp"),
    (b"\xef\xbb\xbf" + other(), "not_json", ""),
    (other() + b"\n" + other(), "not_json", ""),
    (other() + b"," + other(), "not_json", ""),
    (b"[" + other() + b"]", "not_object", ""),
    (other(error_code=b"NaN"), "not_json", ""),
    (other(error_code=b"[" * 2000 + b"]" * 2000), "not_json", ""),
    (other(error_code=b"128"), "out_of_range", "error_code"),
    (other(error_code=b"256"), "out_of_range", "error_code"),
    (other(error_code=b"4294967296"), "out_of_range", "error_code"),
    (other(error_code=b"-9223372036854775808"), "out_of_range", "error_code"),
    (other(error_code=b"18446744073709551615"), "out_of_range", "error_code"),
    (other(error_code=b"true"), "wrong_type", "error_code"),
    (other(error_code=b"null"), "wrong_type", "error_code"),
    (other(error_code=b"3.5"), "wrong_type", "error_code"),
    (other(error_code=b'"3"'), "wrong_type", "error_code"),
    (other(device_ip=b"null"), "wrong_type", "device_ip"),
    (other(device_ip=b'["10.0.0.1"]'), "wrong_type", "device_ip"),
    (other(timestamp=b"true"), "bad_timestamp", "timestamp"),
    (other(timestamp=b"null"), "bad_timestamp", "timestamp"),
    (other(timestamp=b'""'), "bad_timestamp", "timestamp"),
    (other(timestamp=b'"2023-02-29T00:00:00Z"'), "bad_timestamp", "timestamp"),
    (other(timestamp=b"9" * 30), "bad_timestamp", "timestamp"),
]


def test_every_kind_of_bad_event_is_a_dead_letter_and_its_neighbours_are_rows(rows_job: Job) -> None:
    rows_job.create(2)
    began_ms = int(time.time() * 1000)
    payloads = [payload for i, (bad, _, _) in enumerate(BAD) for payload in (event(i), bad)]
    rows_job.send([*payloads, event(len(BAD))], partition=1)
    worker = rows_job.finish()
    assert rows_job.judge(range(len(BAD) + 1)) == EXACT
    dead_letters = rows_job.dead_letters()
    origins_and_reasons = [
        (dead_letter.offset, dead_letter.payload, dead_letter.reason, dead_letter.field) for dead_letter in dead_letters
    ]
    assert origins_and_reasons == [(2 * i + 1, *bad) for i, bad in enumerate(BAD)]
    for dead_letter in dead_letters:
        headers = dict(dead_letter.headers)
        assert (headers["topic"], headers["partition"]) == (rows_job.topic.encode(), b"1")
        assert began_ms <= int(headers["time"]) <= time.time() * 1000
    logged: Counter[str] = Counter()
    for line in worker.stderr:
        if match := re.search(r" (\d+) invalid events? \((\w+(?: in \w+)?)\) went to ", line):
            logged[match[2]] += int(match[1])
    assert logged == Counter(f"{reason} in {field}" if field else reason for _, reason, field in BAD)
    assert not any("10.0.0.1" in line or "yesterday" in line for line in worker.stderr), "an event is in the log"


def test_error_codes_are_stored_as_they_are_or_not_at_all(rows_job: Job) -> None:
    codes = [*range(-140, 300), 10**6, -(10**6), 2**31, 2**63, -(2**63), 2**64 + 3, 10**40]
    rows_job.create()
    rows_job.send([other(error_code=b"%d" % code) for code in codes])
    rows_job.finish()
    assert sorted(_select(rows_job, "error_code")) == [(code,) for code in range(-128, 128)]
    dead_letters = rows_job.dead_letters()
    assert [dead_letter.offset for dead_letter in dead_letters] == [
        i for i, code in enumerate(codes) if not -128 <= code <= 127
    ]
    assert {dead_letter.field for dead_letter in dead_letters} == {"error_code"}


def test_redis_needs_only_a_valid_device(devices_job: Job) -> None:
    good = [other(b'"yesterday"', b'"%b"' % device(i).encode(), b"300") for i in range(9)]
    bad = [b"not json", b"[]", b"{}", other(device_ip=b"167772161"), other(device_ip=b"null")]
    devices_job.create()
    devices_job.send([*good, *bad, b'{"device_ip": "%b"}' % device(9).encode()])
    devices_job.finish()
    assert devices_job.judge(range(10)) == EXACT
    assert [(dead_letter.payload, dead_letter.field) for dead_letter in devices_job.dead_letters()] == [
        (payload, "device_ip" if payload.startswith(b"{") else "") for payload in bad
    ]


def test_only_bad_events(rows_job: Job) -> None:
    count = 60_000
    payloads: list[bytes | None] = [b"%d %b" % (i, b"x" * 500) for i in range(count)]
    rows_job.create()
    with rows_job.start("--batch-rows", "5000") as worker:
        worker.wait_for("took a partition")
        (pid,) = consumers(worker)
        before = _peak_mb(pid)
        rows_job.send(payloads)
        rows_job.all_done()
        wait_until(lambda: status(worker)["lag"] == 0, PATIENCE_S, "the lag is 0")
        accounts = status(worker)["accounts"]
        grown = _peak_mb(pid) - before
        assert consumers(worker) == [pid]
    assert (accounts["dead_lettered"], accounts["written"], accounts["unaccounted"]) == (count, 0, 0)
    assert rows_job.rows() == 0
    assert [dead_letter.payload for dead_letter in rows_job.dead_letters()] == payloads
    assert grown < 200


@pytest.mark.parametrize(("count", "bad"), [(25_000, {12_345}), (3000, {0, 1777, 1778})], ids=["one", "several"])
def test_rows_that_a_constraint_refuses(rows_job: Job, count: int, bad: set[int]) -> None:
    _make_table(rows_job, f"error_code != 99 AND device_ip NOT IN ({', '.join(repr(device(i)) for i in bad)})")
    rows_job.create()
    rows_job.send(events(count))
    rows_job.finish("--batch-rows", "100000", "--linger-ms", "3000")
    assert rows_job.judge(set(range(count)) - bad) == EXACT
    dead_letters = rows_job.dead_letters()
    assert [(dead_letter.offset, dead_letter.reason, dead_letter.payload) for dead_letter in dead_letters] == [
        (i, "store_refused", event(i)) for i in sorted(bad)
    ]


def test_events_of_5_mb(rows_job: Job) -> None:
    """Valid and invalid ones. The dead-letter topic, which the worker creates, accepts what the origin accepts."""
    count, source = 24, random.Random(5)
    rows_job.create(config={"max.message.bytes": str(10 << 20)})
    padding = base64.b85encode(source.randbytes(4 << 20))
    large = [event(i)[:-1] + b', "more": "%b"}' % padding for i in range(count)]
    broken = {i: payload[:-1] for i, payload in enumerate(large) if i % 3 == 0}
    with rows_job.start("--processes", "1") as worker:
        worker.wait_for("took a partition")
        (pid,) = consumers(worker)
        rows_job.send([broken.get(i, payload) for i, payload in enumerate(large)])
        rows_job.send(events(100, first=count))
        rows_job.all_done()
        peak = _peak_mb(pid)
        assert consumers(worker) == [pid]
    assert rows_job.judge(i for i in range(count + 100) if i not in broken) == EXACT
    dead_letters = rows_job.dead_letters()
    assert {dead_letter.offset: dead_letter.payload for dead_letter in dead_letters} == broken
    assert len(dead_letters) == len(broken)
    assert peak < 700


def test_a_topic_of_other_events_is_not_drained_into_the_dead_letters(rows_job: Job) -> None:
    count, good = 60_000, 2000
    rows_job.create()
    rows_job.send(events(good))
    rows_job.send([b"another line of a log"] * count)
    with rows_job.start("--max-bad-ratio", "0.5") as worker:
        assert worker.wait() == 1
    message = next(line for line in worker.stderr if "--max-bad-ratio 0.5" in line)
    assert rows_job.topic in message
    assert "Is it the right topic?" in message
    sent = rows_job.dead_letters()
    assert len(sent) < 12_000
    assert rows_job.judge(range(good)) == EXACT
    rows_job.finish(code=1)  # without a limit: it continues where it stopped, and doubles nothing
    assert rows_job.judge(range(good)) == EXACT
    assert [dead_letter.offset for dead_letter in rows_job.dead_letters()] == list(range(good, good + count))


def test_a_ratio_below_the_limit_stops_nothing(rows_job: Job) -> None:
    count = 24_000
    rows_job.create()
    rows_job.send([b"bad" if i % 10 == 0 else event(i) for i in range(count)])
    rows_job.finish("--max-bad-ratio", "0.2")
    assert rows_job.judge(i for i in range(count) if i % 10) == EXACT
    assert len(rows_job.dead_letters()) == count // 10


def test_no_message_changes_the_result_of_its_neighbours(rows_job: Job) -> None:
    """Halves that together form an event, messages that look like two, and texts that would hide the next message."""
    groups: list[list[bytes]] = [
        [event(0)[:30], event(0)[30:]],
        [event(0)[:-1], b"}"],
        [event(0) + b",", event(0)],
        [event(0), b"," + event(0)],
        [event(0) + b"," + event(0)],
        [event(0) + event(0)],
        [b"[" + event(0), event(0) + b"]"],
        [event(0)[:-1] + b', "more": [{}', b"{}]}"],
        [event(0)[:-1] + b', "more": "', b'"}'],
        [event(0)[:-1] + b', "more": "\\', b'"}'],
        [b'{"more": "' + event(0), event(0) + b'"}'],
        [event(0) + b',"0123456789abcdef",' + event(0)],
        [b'0],"', event(0) + b'","'],
        [b"{}],[{}"],
        [event(0) + b"]", b"[" + event(0)],
        [b"/*", b"*/"],
        [b'"', b'"'],
        [b"\\", b"\\"],
    ]
    # Some pieces of a group are complete events: these are rows.
    numbers = iter(range(10**6))
    payloads: list[bytes] = []
    rows: list[int] = []
    bad: dict[int, bytes] = {}
    source = random.Random(9)
    for _ in range(60):
        for piece in (piece for group in source.sample(groups, len(groups)) for piece in group):
            if piece == event(0) or source.random() < 0.2:
                rows.append(next(numbers))
                payloads.append(event(rows[-1]))
            else:
                bad[len(payloads)] = piece
                payloads.append(piece)
    rows_job.create()
    rows_job.send(payloads)
    rows_job.finish()
    assert rows_job.judge(rows) == EXACT
    assert _by_offset(rows_job.dead_letters()) == bad


def _by_offset(dead_letters: list[DeadLetter]) -> dict[int, bytes | None]:
    by_offset = {dead_letter.offset: dead_letter.payload for dead_letter in dead_letters}
    assert len(by_offset) == len(dead_letters), "an event has two dead letters"
    return by_offset


def _select(job: Job, expressions: str) -> list[tuple[Any, ...]]:
    client = clickhouse_client(job.url)
    try:
        rows: list[tuple[Any, ...]] = client.execute(f"SELECT {expressions} FROM {job.target}")
        return rows
    finally:
        client.disconnect()


def _make_table(job: Job, check: str) -> None:
    """Create the table as the worker does, with a constraint."""
    client = clickhouse_client(job.url)
    try:
        client.execute(files("worker.sinks.clickhouse").joinpath("events.sql").read_text().format(table=job.target))
        client.execute(f"ALTER TABLE {job.target} ADD CONSTRAINT sound CHECK {check}")
    finally:
        client.disconnect()


def _peak_mb(pid: int) -> int:
    """Return the peak resident memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def test_a_batch_that_is_large_when_decompressed_is_read(rows_job: Job) -> None:
    """90 000 events of 1 kB in one zstd batch: 90 MB, of which Kafka sees half a megabyte."""
    count = 110_000
    rows_job.create(config={"max.message.bytes": "20000000"})
    producer = Producer(
        {
            "bootstrap.servers": rows_job.kafka,
            "compression.type": "zstd",
            "linger.ms": 2000,
            "batch.size": 200_000_000,
            "batch.num.messages": count,
            "message.max.bytes": 200_000_000,
            "queue.buffering.max.kbytes": 1_000_000,
            "queue.buffering.max.messages": 2 * count,
        }
    )
    for payload in events(count):
        producer.produce(rows_job.topic, payload[:-1] + b',"filler":"' + b"x" * 1000 + b'"}', partition=0)
    assert producer.flush(PATIENCE_S) == 0
    rows_job.finish()
    assert rows_job.judge(range(count)) == EXACT


def test_key_headers_and_timestamp_of_an_event_survive_its_dead_letter_and_its_replay(rows_job: Job) -> None:
    timestamp_ms = int(time.time() * 1000) - 3_600_000
    rows_job.create(config={"cleanup.policy": "compact"})  # which refuses messages without a key
    _make_table(rows_job, "error_code != 7")
    headers: list[tuple[str, str | bytes | None]] = [
        ("trace", b"1"),
        ("reason", b"the producer's own"),
        ("empty", None),
    ]
    payloads = [b"not json", b'{"timestamp": 1700000000, "device_ip": "10.0.0.1", "error_code": 7}']
    producer = Producer({"bootstrap.servers": rows_job.kafka})
    for i, payload in enumerate(payloads):
        producer.produce(rows_job.topic, payload, b"key-%d" % i, timestamp=timestamp_ms, headers=headers)
    assert producer.flush(PATIENCE_S) == 0
    rows_job.finish(code=1)

    def read(topic: str) -> list[tuple[Any, ...]]:
        with closing(LogReader(Settings(bootstrap_servers=rows_job.kafka), topic)) as reader:
            (messages,) = reader.read(0, *reader.bounds(0))
        return [(m.key(), m.value(), m.timestamp()[1], m.headers() or []) for m in messages]

    stored = read(f"{rows_job.topic}.dlq")
    assert [(key, value, stamp) for key, value, stamp, _ in stored] == [
        (b"key-%d" % i, payload, timestamp_ms) for i, payload in enumerate(payloads)
    ]
    assert all(found[: len(headers)] == headers for *_, found in stored)
    assert dict(stored[0][3])["error"] == b""
    assert b"refuses rows" in dict(stored[1][3])["error"]
    with run_worker("dlq", "replay", "--yes", *rows_job.arguments()) as replay:
        assert replay.wait() == 0, replay.tail()
    for i, (key, value, stamp, found) in enumerate(read(rows_job.topic)[len(payloads) :]):
        assert (key, value, stamp) == (b"key-%d" % i, payloads[i], timestamp_ms)
        assert found[: len(headers)] == headers
        assert "dlq_offset" in dict(found)
        assert "group" not in dict(found)


def test_until_end_fails_where_not_one_event_could_be_written(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send([b'{"timestamp": 1, "device_ip": "10.0.0.1"}', b"no", b"no"])
    worker = rows_job.finish(code=1)
    assert "accounted for: 0 written, 3 dead letters (not_json 2, missing_field 1); not one event" in worker.tail()
    rows_job.send(events(5))
    assert "accounted for: 5 written, 0 dead letters" in rows_job.finish().tail()
    assert "there was nothing to read" in rows_job.finish().tail()


def test_a_group_that_is_ahead_of_an_empty_store_is_warned_of(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send(events(5))
    rows_job.finish()
    rows_job.send(events(1, 5))
    other = replace(rows_job, target=f"{rows_job.target}_2")
    with run_worker("check", "--create", *other.arguments()) as check:
        assert check.wait() == 0, check.stdout
    assert any(line.startswith("WARN  group") and "the store is empty" in line for line in check.stdout), check.stdout
    worker = other.finish()
    assert f"has read {rows_job.topic}[0] up to offset 5, but the store is empty" in worker.tail()
    assert "but the store is empty" not in rows_job.finish().tail()
