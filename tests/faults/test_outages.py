"""Stores and brokers that are unavailable, full, read-only or changed: the worker waits, then continues."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files

import pytest
import redis
from clickhouse_driver import Client

from tests.faults.long_outages import (
    broker_gone_for_60_s,
    clickhouse_gone_for_90_s,
    consumer_that_dies_whenever_it_starts,
)
from tests.support.job import Job, status, stopped
from tests.support.kit import Worker, wait_until
from tests.support.oracle import EXACT, events
from tests.support.pages import Pages
from tests.support.waiting import together
from worker.local import Server

pytestmark = pytest.mark.faults

_FIRST, _SECOND, _ALL = events(3000), events(3000, first=3000), range(6000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minutes_without_a_server(own_kafka: Server, own_clickhouse: Server, rows_job: Job, devices_job: Job) -> None:
    broker = replace(devices_job, kafka=own_kafka.address)
    store = replace(rows_job, url=own_clickhouse.address)
    dying = replace(
        rows_job, topic=f"{rows_job.topic}_dying", group=f"{rows_job.group}_dying", target=f"{rows_job.target}_dying"
    )
    together(
        broker_gone_for_60_s(broker, own_kafka),
        clickhouse_gone_for_90_s(store, own_clickhouse),
        consumer_that_dies_whenever_it_starts(dying),
        patience=250,
    )


@contextmanager
def _under_way(job: Job, *more: str) -> Iterator[Worker]:
    """Run a worker that has written _FIRST. The test sends _SECOND; at the end everything is written."""
    job.create(2)
    with job.start(*more) as worker:
        job.send(_FIRST)
        job.all_done()
        # A consumer that starts later fails at its start if the store refuses it: that is not an outage.
        wait_until(
            lambda: all(process["partitions"] for process in status(worker)["processes"]),
            60,
            "all consumers have partitions",
        )
        yield worker
        job.all_done()
        shown = status(worker)
        assert shown["restarts"] == 0, worker.tail()
        wait_until(lambda: status(worker)["sink_up"], 60, "the store is up again")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()


def test_broker_is_restarted(rows_job: Job, hurt_kafka: Server) -> None:
    with _under_way(rows_job):
        rows_job.send(_SECOND)
        hurt_kafka.restart()
    assert rows_job.judge(_ALL) == EXACT


def test_broker_is_killed(devices_job: Job, hurt_kafka: Server) -> None:
    with _under_way(devices_job):
        hurt_kafka.kill()
        hurt_kafka.start()
        devices_job.send(_SECOND)
    assert devices_job.judge(_ALL) == EXACT


def test_an_error_with_changing_numbers_is_one_line_a_minute(rows_job: Job) -> None:
    """ClickHouse tells how much memory a refused insert would use, which differs each time."""
    rows_job.create()
    rows_job.send(events(100_000))
    url = f"{rows_job.url}?max_memory_usage=3000000"
    with rows_job.start("--clickhouse-url", url, "--drain-timeout", "2") as worker:
        pages = Pages(worker)
        began = time.monotonic()
        wait_until(
            lambda: (pages.metric("sink_retries_total", "clickhouse", "memory") or 0) >= 8, 120, "eight refused inserts"
        )
        minutes = 1 + int((time.monotonic() - began) // 60)
        for cause in ("will try again", "refuses a block"):
            lines = [line for line in worker.stderr if "code 241" in line and cause in line]
            assert 1 <= len([line for line in lines if "suppressed" not in line]) <= minutes, "\n".join(lines)
        (shown,) = [error for error in status(worker)["errors"] if "code 241" in error["text"]]
        assert shown["times"] > 1  # the page looks once a second
        worker.signal(signal.SIGTERM)
        worker.wait()
    lines = [line for line in worker.stderr if "code 241" in line and "will try again" in line]
    counts = re.findall(r"(?:suppressed |repeats=)(\d+)", "\n".join(lines))
    assert sum(map(int, counts)) + len(lines) - ("suppressed" in lines[-1]) >= 8, "\n".join(lines)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_clickhouse_is_restarted(rows_job: Job, hurt_clickhouse: Server, how: str) -> None:
    with _under_way(rows_job) as worker:
        rows_job.send(_SECOND)
        hurt_clickhouse.kill() if how == "kill" else hurt_clickhouse.stop()
        worker.wait_for("will try again: ClickHouse")
        hurt_clickhouse.start()
    assert rows_job.judge(_ALL) == EXACT


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_redis_is_restarted(devices_job: Job, hurt_redis: Server, how: str) -> None:
    with _under_way(devices_job) as worker:
        devices_job.send(_SECOND)
        hurt_redis.kill() if how == "kill" else hurt_redis.stop()
        worker.wait_for("will try again: Redis|cannot count")
        hurt_redis.start()
    assert devices_job.judge(_ALL) == EXACT


def test_clickhouse_hangs(rows_job: Job, hurt_clickhouse: Server) -> None:
    url = f"{rows_job.url}?send_receive_timeout=2"
    with _under_way(rows_job, "--clickhouse-url", url) as worker:
        try:
            hurt_clickhouse.pause()
            rows_job.send(_SECOND)
            worker.wait_for("will try again: ClickHouse")
        finally:
            hurt_clickhouse.resume()
    assert rows_job.judge(_ALL) == EXACT


def _setting(name: str, value: int) -> Callable[[Client, str], Callable[[], object]]:
    def begin(client: Client, table: str) -> Callable[[], object]:
        client.execute(f"ALTER TABLE {table} MODIFY SETTING {name} = {value}")
        return lambda: client.execute(f"ALTER TABLE {table} RESET SETTING {name}")

    return begin


def _too_many_parts(client: Client, table: str) -> Callable[[], object]:
    client.execute(f"SYSTEM STOP MERGES {table}")
    end = _setting("parts_to_throw_insert", 1)(client, table)
    return lambda: (end(), client.execute(f"SYSTEM START MERGES {table}"))


def _renamed(client: Client, table: str) -> Callable[[], object]:
    client.execute(f"RENAME TABLE {table} TO {table}_aside")
    return lambda: client.execute(f"RENAME TABLE {table}_aside TO {table}")


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        pytest.param(_too_many_parts, "code 252: .*Too many parts", id="too many parts"),
        pytest.param(_setting("table_readonly", 1), "code 774: .*readonly", id="read-only"),
        pytest.param(_setting("min_free_disk_bytes_to_perform_insert", 10**18), "code 243: .*free", id="disk full"),
        pytest.param(_renamed, "code 60: .*(does not exist|Unknown table)", id="table missing"),
    ],
)
def test_clickhouse_refuses_for_a_while(
    rows_job: Job, clickhouse_sql: Client, begin: Callable[[Client, str], Callable[[], object]], says: str
) -> None:
    with _under_way(rows_job) as worker:
        end = begin(clickhouse_sql, rows_job.target)
        rows_job.send(_SECOND)
        worker.wait_for(f"will try again: ClickHouse.*{says}")
        wait_until(lambda: not status(worker)["sink_up"], 60, "the refusal is visible")
        end()
    assert rows_job.judge(_ALL) == EXACT


def test_table_is_dropped_and_created_again(rows_job: Job, clickhouse_sql: Client) -> None:
    """The rows of the dropped table are lost, later events are not."""
    with _under_way(rows_job) as worker:
        clickhouse_sql.execute(f"DROP TABLE {rows_job.target}")
        rows_job.send(_SECOND)
        worker.wait_for("will try again: ClickHouse.*code 60")
        clickhouse_sql.execute(
            files("worker.sinks.clickhouse").joinpath("events.sql").read_text().format(table=rows_job.target)
        )
    assert rows_job.judge(range(3000, 6000)) == EXACT


@pytest.mark.parametrize("column", ["error_code Int32", "device_ip LowCardinality(String)", "timestamp DateTime64(6)"])
def test_column_type_is_altered(rows_job: Job, clickhouse_sql: Client, column: str) -> None:
    with _under_way(rows_job) as worker:
        clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} MODIFY COLUMN {column}")
        rows_job.send(_SECOND)
        worker.wait_for("was altered")
    if column.startswith("timestamp"):
        clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} MODIFY COLUMN timestamp DateTime64(3)")
    assert rows_job.judge(_ALL) == EXACT


def _full(client: redis.Redis, _: str) -> Callable[[], object]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def _replica(client: redis.Redis, _: str) -> Callable[[], object]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: client.execute_command("REPLICAOF", "NO", "ONE")


def _wrong_type(client: redis.Redis, key: str) -> Callable[[], object]:
    client.rename(key, f"{key}:aside")
    client.set(key, "not a HyperLogLog")
    return lambda: client.rename(f"{key}:aside", key)


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        pytest.param(_full, "maxmemory", id="out of memory"),
        pytest.param(_replica, "READONLY|read only", id="read-only replica"),
        pytest.param(_wrong_type, "WRONGTYPE|HyperLogLog", id="wrong-type key"),
    ],
)
def test_redis_refuses_for_a_while(
    devices_job: Job, begin: Callable[[redis.Redis, str], Callable[[], object]], says: str
) -> None:
    client = redis.Redis.from_url(devices_job.url)
    with _under_way(devices_job) as worker:
        end = begin(client, devices_job.target)
        try:
            devices_job.send(_SECOND)
            worker.wait_for(f"will try again: Redis.*({says})")
        finally:
            end()
    client.close()
    assert devices_job.judge(_ALL) == EXACT


def test_a_stop_while_kafka_does_not_answer_is_clean_if_nothing_is_in_flight(own_kafka: Server, rows_job: Job) -> None:
    """The consumers cannot leave the group. They end without it, and what was committed stays committed."""
    job = replace(rows_job, kafka=own_kafka.address)
    job.create(2)
    job.send(_FIRST)
    with job.start("--processes", "2") as worker:
        job.all_done()
        with stopped(own_kafka.pid):
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0, worker.tail()
        assert any("leaving the group took more than" in line for line in worker.stderr), worker.tail()
    job.send(_SECOND)
    job.finish()
    assert job.judge(_ALL) == EXACT
