"""Formats with a schema registry, under faults: schemas that change, kills, a registry that is down, invalid events."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from clickhouse_driver import Client

from tests.support.framed import avro_event, json_event, protobuf_event, register, register_protobuf, registry_at
from tests.support.job import Job, consumers, kill, status
from tests.support.kit import PATIENCE_S, run_worker, wait_until
from tests.support.oracle import EXACT
from tests.support.proxy import Proxy
from worker.commands.produce.fleet import Fleet
from worker.decoding.framing import frame
from worker.decoding.timestamps import to_millis
from worker.local import Server

JSON_SCHEMA = '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}'
pytestmark = pytest.mark.faults


@pytest.fixture
def registry_proxy(schema_registry: Server) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", schema_registry.port) as proxy:
        yield proxy


def avro(url: str) -> tuple[str, ...]:
    return "--format", "avro", "--schema-registry-url", url


def through(proxy: Proxy, registry: Server) -> str:
    return registry.address.replace(str(registry.port), str(proxy.port))


def test_kills_leave_every_avro_event_stored_once(rows_job: Job, schema_registry: Server) -> None:
    count = 40_000
    rows_job.create(3)
    ids = register(schema_registry.address, rows_job.topic)
    draw = random.Random(7)
    with rows_job.start(*avro(schema_registry.address), "--processes", "2") as worker:
        for start in range(0, count, 4000):
            rows_job.send([avro_event(i, ids[i // 100 % 3], i // 100 % 3) for i in range(start, start + 4000)])
            kill(draw.choice(consumers(worker)))
        rows_job.all_done()
    assert rows_job.judge(range(count)) == EXACT
    assert not rows_job.dead_letters()


def test_a_registry_that_is_down_at_the_start_and_in_the_middle_is_waited_out(
    rows_job: Job, schema_registry: Server, registry_proxy: Proxy
) -> None:
    rows_job.create()
    ids = register(schema_registry.address, rows_job.topic)
    registry_proxy.refuse()
    rows_job.send([avro_event(i, ids[0], 0) for i in range(3000)])
    with rows_job.start(*avro(through(registry_proxy, schema_registry))) as worker:
        worker.wait_for("the schema registry at .* does not answer: .*refused")
        wait_until(lambda: "does not answer" in str(status(worker)["errors"]), PATIENCE_S, "the page has the error")
        time.sleep(7)  # longer than the session: it remains a member because it polls
        assert rows_job.rows() == 0
        registry_proxy.heal()
        rows_job.all_done()
        registry_proxy.blackhole()
        rows_job.send([avro_event(i, ids[0], 0) for i in range(3000, 3500)])  # of a schema that it has
        wait_until(lambda: rows_job.rows() == 3500, PATIENCE_S, "events of a known schema are written")
        rows_job.send([avro_event(i, ids[i % 2], i % 2) for i in range(3500, 5000)])
        worker.wait_for("does not answer: nothing within 5 s")
        registry_proxy.heal()
        rows_job.all_done()
        assert sum("does not answer" in line for line in worker.stderr) <= 6  # once a minute each, not at each try
        assert status(worker)["processes"][0]["restarts"] == 0
    assert rows_job.judge(range(5000)) == EXACT
    assert not rows_job.dead_letters()


def test_unknown_ids_and_garbage_are_dead_letters_and_their_neighbours_rows(
    rows_job: Job, schema_registry: Server
) -> None:
    rows_job.create()
    ids = register(schema_registry.address, rows_job.topic)
    json_id = registry_at(schema_registry.address).register(f"{rows_job.topic}-json", "JSON", JSON_SCHEMA)
    bad = {
        "unknown_schema": [b"\0\x7f\xff\xff\xff" + b"x" * 9, json_event(0, json_id)],
        "not_framed": [b"", b"\0\xff\xff\xff\xff" + b"x" * 9, b"{}", b"\0\0\0", b"\1" + avro_event(0, ids[0], 0)[1:]],
        "undecodable": [avro_event(0, ids[0], 0)[:-1], avro_event(0, ids[0], 0) + b"\0", b"\0" + ids[0].to_bytes(4)],
    }
    payloads = [payload for payloads in bad.values() for payload in payloads]
    events = [avro_event(i, ids[i % 3], i % 3) for i in range(1000)]
    for n, payload in enumerate(payloads):
        events.insert(n * 90, payload)
    rows_job.send(events)
    rows_job.finish(*avro(schema_registry.address))
    assert rows_job.judge(range(1000)) == EXACT
    dead_letters = rows_job.dead_letters()
    assert Counter(dead_letter.reason for dead_letter in dead_letters) == {
        reason: len(each) for reason, each in bad.items()
    }
    assert {dead_letter.payload for dead_letter in dead_letters} == set(payloads)
    with run_worker("check", *rows_job.arguments(*avro(schema_registry.address))) as check:
        check.wait()
    for cause in ("the registry does not have it", "it is of the kind JSON, and --format wants AVRO"):
        assert any(re.search(rf"1 unknown_schema of .*: schema \d+: {cause}; fix", line) for line in check.stdout)


@pytest.mark.parametrize("backend", ["rows", "devices"])
def test_json_schema_and_what_check_and_verify_say(
    backend: str, rows_job: Job, devices_job: Job, schema_registry: Server
) -> None:
    job = rows_job if backend == "rows" else devices_job
    job.create()
    registry = registry_at(schema_registry.address)
    schema_id = registry.register(f"{job.topic}-value", "JSON", JSON_SCHEMA)
    job.send([json_event(i, schema_id) for i in range(2000)])
    options = ("--format", "json-schema", "--schema-registry-url", schema_registry.address)
    job.finish(*options)
    assert job.judge(range(2000)) == EXACT
    with run_worker("verify", *job.arguments(*options)) as verify:
        assert verify.wait() == 0, verify.tail()
    with run_worker("check", *job.arguments(*options)) as check:
        check.wait()
    assert any(line.startswith("OK    schema registry: ") for line in check.stdout), check.stdout
    assert any(
        re.search(r"OK    sample: (\d+) of the \1 sampled events would be stored", line) for line in check.stdout
    )
    with run_worker("check", *job.arguments()) as plain:
        plain.wait()
    (sample,) = [line for line in plain.stdout if re.search(r"(\d+) schema_framing of the \1 sampled", line)]
    assert "--format avro, protobuf or json-schema" in sample


def test_a_protobuf_topic_whose_schema_imports_another(
    rows_job: Job, schema_registry: Server, clickhouse_sql: Client
) -> None:
    rows_job.create(2)
    create_table = files("worker.sinks.clickhouse").joinpath("events.sql").read_text()
    clickhouse_sql.execute(create_table.format(table=rows_job.target))
    schema_id = register_protobuf(schema_registry.address, rows_job.topic)
    events = [protobuf_event(i, schema_id) for i in range(6000)]
    bad = frame(schema_id, b"\x02\x02\xff")
    rows_job.send([*events[:3000], bad, *events[3000:]])
    options = ("--format", "protobuf", "--schema-registry-url", schema_registry.address)
    rows_job.finish(*options, "--map", "origin.device_ip=device_ip")
    assert rows_job.judge(range(6000)) == EXACT
    assert [(each.reason, each.payload) for each in rows_job.dead_letters()] == [("undecodable", bad)]


def test_produce_writes_avro_that_is_counted_and_verified(devices_job: Job, schema_registry: Server) -> None:
    registry = avro(schema_registry.address)
    to_topic = ("--topic", devices_job.topic, "--bootstrap-servers", devices_job.kafka)
    fleet = [
        "--num-devices",
        "500",
        "--num-messages",
        "3000",
        "--seed",
        "1",
        "--bad-ratio",
        "0.01",
        "--partitions",
        "2",
    ]
    with run_worker("produce", *to_topic, *fleet, *registry) as produce:
        assert produce.wait() == 0, produce.tail()
    latest = registry_at(schema_registry.address).latest(f"{devices_job.topic}-value")
    assert latest is not None
    devices_job.finish(*registry)
    with run_worker("verify", *devices_job.arguments(*registry)) as verify:
        assert verify.wait() == 0, verify.tail()
    assert "missing 0, extra 0" in verify.stdout[-1]
    assert {each.reason for each in devices_job.dead_letters()} == {"not_framed"}
    with run_worker("check", *devices_job.arguments(*registry)) as check:
        check.wait()
    assert any(f"version 1, id {latest.id}" in line for line in check.stdout), check.stdout
    with run_worker("check", *devices_job.arguments("--format", "protobuf", *registry[2:])) as other:
        assert other.wait() == 1, other.tail()
    assert any("of the kind AVRO; fix: --format avro" in line for line in other.stdout), other.stdout
    assert any(re.match(r"FAIL  sample: none of the \d+ sampled events", line) for line in other.stdout), other.stdout


@pytest.mark.parametrize("format", ["avro", "protobuf", "json-schema"])
def test_what_produce_writes_is_what_the_table_has(
    format: str, rows_job: Job, schema_registry: Server, clickhouse_sql: Client
) -> None:
    registry = ("--format", format, "--schema-registry-url", schema_registry.address)
    fleet = (
        "--num-devices",
        "300",
        "--num-messages",
        "2000",
        "--seed",
        "1",
        "--bad-ratio",
        "0.02",
        "--partitions",
        "2",
    )
    with run_worker(
        "produce", "--topic", rows_job.topic, "--bootstrap-servers", rows_job.kafka, *fleet, *registry
    ) as produce:
        assert produce.wait() == 0, produce.tail()
    rows_job.finish(*registry)
    stored = clickhouse_sql.execute(
        f"SELECT toUnixTimestamp64Milli(timestamp), device_ip, error_code FROM {rows_job.target}"
    )
    written = Fleet(300, seed=1, bad_ratio=0.02).take(2000)
    assert Counter(stored) == Counter(filter(None, map(row, written)))
    assert len(rows_job.dead_letters()) == 2000 - len(stored) > 0
    with run_worker("verify", *rows_job.arguments(*registry)) as verify:
        assert verify.wait() == 0, verify.tail()


def row(event: bytes) -> tuple[int, str, int] | None:
    """Return the row of an event of a fleet; None if it is invalid."""
    try:
        value = json.loads(event)
        millis, device, code = to_millis(value["timestamp"]), value["device_ip"], value["error_code"]
    except (ValueError, TypeError, KeyError):
        return None
    is_valid = type(device) is str and type(code) is int and -128 <= code <= 127
    return (millis, device, code) if is_valid else None


@pytest.mark.parametrize(
    ("format", "library", "package"), [("avro", "fastavro", "fastavro"), ("protobuf", "google", "google")]
)
def test_a_format_whose_package_is_missing_is_refused_with_the_command_that_installs_it(
    format: str, library: str, package: str, rows_job: Job, tmp_path: Path
) -> None:
    rows_job.create()
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    options = ("--format", format, "--schema-registry-url", "http://127.0.0.1:1")
    with rows_job.start(*options, env={"PYTHONPATH": path}) as worker:
        assert worker.wait() == 78
    (line,) = [line for line in worker.stderr if "pip install" in line]
    assert (
        f"--format {format} needs the package {package}; install it: pip install 'kafka-ingest-worker[{format}]'"
        in line
    )


def test_a_registry_that_refuses_the_client_stops_the_worker(rows_job: Job, schema_registry: Server) -> None:
    rows_job.create()
    (schema_id, *_) = register(schema_registry.address, rows_job.topic)
    rows_job.send([avro_event(0, schema_id, 0)])
    wrong_path = schema_registry.address.replace("ccompat/v7", "nothing")
    with rows_job.start(*avro(wrong_path)) as worker:
        assert worker.wait() == 78
    assert any("answers 404" in line and "check --schema-registry-url" in line for line in worker.stderr)
    assert rows_job.accounted() == 0
