"""The main job end to end: real Kafka into real stores, its output and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import fields, replace

import pytest
import redis

from tests.support.job import Job, consumers
from tests.support.kit import PATIENCE_S, Service, Worker, clickhouse_client, run_worker, wait_until
from tests.support.oracle import EXACT, events, offsets_of_rows
from worker.config.settings import Settings
from worker.local import start_clickhouse, start_redis

EVENTS, DEVICES = 200_000, 10_000


def test_events_of_a_fleet_are_all_stored_and_its_devices_counted(
    rows_job: Job, redis_server: Service, redis_key: str
) -> None:
    produce = ("--num-messages", str(EVENTS), "--num-devices", str(DEVICES), "--seed", "1", "--pause-ms", "0")
    where = ("--topic", rows_job.topic, "--bootstrap-servers", rows_job.kafka)
    with run_worker("produce", *where, *produce, "--partitions", "4") as producer:
        assert producer.wait() == 0, producer.tail()

    plain = ("--metrics-port", "0", "--processes", "4", "--until-end")  # also the default batch options
    store = ("--backend", "clickhouse", "--clickhouse-url", rows_job.url, "--table", rows_job.target)
    with run_worker(*where, *store, *plain, "--group-id", rows_job.group) as worker:
        assert worker.wait() == 0, worker.tail()
    assert worker.stdout[-1] == f"Total devices: {DEVICES}"
    client = clickhouse_client(rows_job.url)
    assert client.execute(f"SELECT count(), uniqExact(_partition, _offset) FROM {rows_job.target}") == [
        (EVENTS, EVENTS)
    ]
    devices = [ip for (ip,) in client.execute(f"SELECT DISTINCT device_ip FROM {rows_job.target}")]
    client.disconnect()

    count = ("--backend", "redis", "--redis-url", redis_server.address, "--redis-key", redis_key)
    with run_worker(*where, *count, *plain, "--group-id", f"{rows_job.group}-redis") as worker:
        assert worker.wait() == 0, worker.tail()
    hyperloglog = redis.Redis.from_url(redis_server.address)
    hyperloglog.pfadd(f"{redis_key}:plain", *devices)
    exact = hyperloglog.pfcount(f"{redis_key}:plain")
    hyperloglog.close()
    assert worker.stdout[-1] == f"Total devices: {exact}"
    assert abs(exact - DEVICES) <= 0.02 * DEVICES
    with run_worker("count", "--topic", rows_job.topic, *count) as counter:
        assert counter.wait() == 0, counter.tail()
    assert counter.stdout == [f"Total devices: {exact}"]


def test_two_supervisors_of_one_group_share_the_partitions(rows_job: Job) -> None:
    rows_job.create(4)
    with rows_job.start("--processes", "2") as first, rows_job.start("--processes", "2") as second:
        wait_until(
            lambda: len(consumers(first, busy=True)) == len(consumers(second, busy=True)) == 2,
            PATIENCE_S,
            "all have work",
        )
        rows_job.send(events(20_000))
        rows_job.all_done()
        for worker in (first, second):
            worker.signal(signal.SIGTERM)
        for worker in (first, second):
            assert worker.wait() == 0, worker.tail()
    assert rows_job.judge(range(20_000)) == EXACT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load_commits_exactly_what_the_store_holds(rows_job: Job, number: signal.Signals) -> None:
    count = 100_000
    rows_job.create(4)
    rows_job.send(events(count))
    with rows_job.start("--processes", "2", "--drain-timeout", "30") as worker:
        wait_until(lambda: rows_job.rows() > 2000, PATIENCE_S, "rows arrive")
        worker.signal(number)
        assert worker.wait(5 * 30) == 0, worker.tail()
    rows = rows_job.rows()
    assert 2000 < rows < count
    assert worker.stdout[-1] == f"Total devices: {rows}"  # each event has a device of its own
    stored = offsets_of_rows(rows_job.url, rows_job.target)
    committed = {partition: offset for partition, (offset, _) in rows_job.committed().items()}
    assert committed == stored
    assert sum(committed.values()) == rows
    assert not rows_job.intent()


def test_sigterm_to_the_whole_process_group_is_a_clean_stop_with_report_and_ledger(rows_job: Job) -> None:
    """A service manager sends the signal to the supervisor and to each of its children."""
    rows_job.create(2)
    rows_job.send(events(20_000))
    with rows_job.start("--processes", "2") as worker:
        wait_until(lambda: rows_job.rows() > 1000, PATIENCE_S, "rows arrive")
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    rows = rows_job.rows()
    assert worker.stdout[-1] == f"Total devices: {rows}"
    ledgers = [line for line in worker.stderr if " ledger " in line]
    assert len(ledgers) == 3, worker.tail()
    assert f"written={rows} " in ledgers[-1]
    assert not any("unaccounted" in line for line in ledgers)


def test_existing_table_of_three_columns_is_served_at_least_once(rows_job: Job) -> None:
    _make_table(rows_job, "timestamp DateTime64(3), device_ip String, error_code Int8")
    rows_job.create(2)
    rows_job.send(events(5000))
    worker = rows_job.finish()
    (line,) = {line.partition("delivery is ")[2] for line in worker.stderr if "delivery is" in line}
    assert re.fullmatch(
        r"at-least-once: the table lacks _topic and _partition and _offset: ALTER TABLE `\w+` ADD COLUMN .*", line
    ), line
    assert rows_job.judge(range(5000), origin=False) == EXACT
    with rows_job.start("--delivery", "exactly-once") as refused:
        _ends_with(refused, 78, "--delivery exactly-once cannot be kept: .*ALTER TABLE")


def test_topic_that_does_not_exist(rows_job: Job) -> None:
    with rows_job.start() as worker:
        _ends_with(worker, 78, f"topic {rows_job.topic} does not exist on Kafka at {rows_job.kafka}; to create it: .*")


def test_first_line_has_the_versions_and_all_settings_and_no_secret(topic_name: str) -> None:
    env = {
        "WORKER_REDIS_PASSWORD": "canary",
        "WORKER_CLICKHOUSE_URL": "clickhouse://me:canary@localhost/default",
        "WORKER_KAFKA": "sasl.oauthbearer.client.secret=canary",
    }
    where = ("--topic", topic_name, "--bootstrap-servers", "127.0.0.1:1", "--metrics-port", "0")
    with run_worker(*where, "--log-format", "json", "--linger-ms", "77", env=env) as worker:
        worker.wait_for(r"readyz are at")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    line = json.loads(worker.stderr[0])
    first = line["worker"]
    assert (line["log.level"], line["process.name"]) == ("info", "supervisor")
    assert re.fullmatch(r"worker \S+, librdkafka \d+\.\d+\.\S+, Python 3\.\d+\.\S+, reader native", line["message"])
    assert {item.name for item in fields(Settings)} <= first.keys()
    assert (first["topic"], first["linger_ms"], first["batch_rows"]) == (topic_name, 77, Settings().batch_rows)
    assert (first["processes"], first["redis_key"]) == ("auto", f"devices:{{{topic_name}}}")
    assert first["redis_password"] == first["kafka"]["sasl.oauthbearer.client.secret"] != ""
    assert "canary" not in worker.tail()


def test_unreachable_broker_is_retried(rows_job: Job) -> None:
    with rows_job.start("--bootstrap-servers", "127.0.0.1:1") as worker:
        worker.wait_for("Kafka at 127.0.0.1:1 does not answer: .*; still trying")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    _has_no_traceback(worker)


@pytest.mark.parametrize("backend", ["redis", "clickhouse"])
def test_unreachable_store_is_retried(rows_job: Job, backend: str) -> None:
    rows_job.create()
    scheme = {"redis": "redis://127.0.0.1:1/0", "clickhouse": "clickhouse://default@127.0.0.1:1/default"}
    job = replace(rows_job, backend=backend, url=scheme[backend])
    with job.start() as worker:
        worker.wait_for("(Redis|ClickHouse) at 127.0.0.1:1.*still trying")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    _has_no_traceback(worker)


@pytest.mark.parametrize("backend", ["redis", "clickhouse"])
def test_wrong_password(rows_job: Job, backend: str) -> None:
    rows_job.create()
    start = {
        "redis": lambda: start_redis(requirepass="right"),
        "clickhouse": lambda: start_clickhouse(users={"ingest": {"password": "right"}}),
    }
    user = {"redis": "default", "clickhouse": "ingest"}[backend]
    with start[backend]() as server:
        job = replace(rows_job, backend=backend, url=re.sub("//.*@", f"//{user}@", server.address))
        variable = f"WORKER_{backend.upper()}_PASSWORD"
        for password in ("wrong", ""):
            with job.start(env={variable: password}) as worker:
                _ends_with(worker, 78, f"check the user in --{backend}-url")
        with job.start("--until-end", env={variable: "right"}) as worker:
            assert worker.wait() == 0, worker.tail()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("timestamp DateTime64(3), device_ip String, error_code UUID", "column error_code .* UUID"),
        ("timestamp String, device_ip String, error_code Int8", "column timestamp .* String"),
        ("timestamp DateTime64(3), device_ip Array(String), error_code Int8", "column device_ip .* Array"),
    ],
)
def test_table_that_cannot_hold_the_events(rows_job: Job, columns: str, says: str) -> None:
    _make_table(rows_job, columns)
    rows_job.create()
    with rows_job.start() as worker:
        _ends_with(worker, 78, says)


def test_invalid_number_of_processes(rows_job: Job) -> None:
    with rows_job.start("--processes", "0") as worker:
        _ends_with(worker, 2, "--processes.* 1 to 256, or auto")


def test_reports_come_in_their_interval_and_once_at_the_end(rows_job: Job) -> None:
    rows_job.create()
    with rows_job.start("--report-interval", "0.3") as worker:
        rows_job.send(events(500))
        worker.wait_for("^Total devices: 500$")
        reports = len(worker.stdout)
        wait_until(lambda: len(worker.stdout) > reports + 2, PATIENCE_S, "more reports")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    assert worker.stdout[-1] == "Total devices: 500"
    assert all(re.fullmatch(r"Total devices: \d+", line) for line in worker.stdout)


def test_without_reports_everything_else_goes_on(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send(events(500))
    worker = rows_job.finish("--report", "off", "--report-interval", "0.3")
    assert worker.stdout == []
    assert rows_job.judge(range(500)) == EXACT
    assert not any("report" in line for line in worker.stderr if "WARNING" in line)


def _make_table(job: Job, columns: str) -> None:
    client = clickhouse_client(job.url)
    client.execute(f"CREATE TABLE {job.target} ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    client.disconnect()


def _ends_with(worker: Worker, code: int, says: str) -> None:
    """The worker stops with this code, a message that matches, and no traceback."""
    assert worker.wait() == code, worker.tail()
    assert any(re.search(says, line) for line in worker.stderr), worker.tail()
    _has_no_traceback(worker)


def _has_no_traceback(worker: Worker) -> None:
    assert not any("Traceback" in line or "Stack trace" in line for line in worker.stderr), worker.tail()
