"""What the tables themselves do: views that raise, blocks that land in part, one topic's table that fails."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.resources import files

import pytest
from clickhouse_driver import Client

from tests.support.job import Job, MakeJob, consumers, kill, status
from tests.support.kit import PATIENCE_S, clickhouse_client, run_worker, wait_until
from tests.support.oracle import EXACT, events
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.local import Server, start_clickhouse
from worker.sinks.clickhouse.devices import create_statements

pytestmark = pytest.mark.faults

CREATE = files("worker.sinks.clickhouse").joinpath("events.sql").read_text()


def test_a_view_that_raises_is_named_and_multiplies_no_rows(rows_job: Job, clickhouse_sql: Client) -> None:
    count = 20_000
    rows_job.create()
    clickhouse_sql.execute(CREATE.format(table=rows_job.target))
    view = f"{rows_job.target}_view"
    clickhouse_sql.execute(
        f"CREATE MATERIALIZED VIEW {view} ENGINE = MergeTree ORDER BY device_ip "
        f"AS SELECT device_ip, throwIf(1, 'broken') AS n FROM {rows_job.target}"
    )
    rows_job.send(events(count))
    with run_worker("check", *rows_job.arguments()) as check:
        assert check.wait() == 0
        assert any("views" in line and view in line for line in check.stdout), check.stdout
    with rows_job.start() as worker:
        worker.wait_for(f"the materialized view .*{view} fails")
        wait_until(
            lambda: any(view in error["text"] for error in status(worker)["errors"]),
            PATIENCE_S,
            "the status page names the view",
        )
        clickhouse_sql.execute(f"DROP VIEW {view}")
        rows_job.all_done()
    assert rows_job.judge(range(count)) == EXACT
    assert not rows_job.dead_letters()


def test_a_table_that_fails_delays_no_other_topic(rows_job: Job, clickhouse_sql: Client) -> None:
    count = 3000
    jobs = [replace(rows_job, topic=f"{rows_job.topic}_{n}", target=f"{rows_job.target}_{{topic}}") for n in (1, 2)]
    tables = [job.target.format(topic=job.topic) for job in jobs]
    for job in jobs:
        job.create()
    with jobs[0].start("--topic", jobs[1].topic, "--processes", "1") as worker:
        worker.wait_for(f"took a partition.*{jobs[1].topic}")
        clickhouse_sql.execute(f"ALTER TABLE {tables[0]} MODIFY SETTING table_readonly = 1")
        for job in jobs:
            job.send(events(count))
        worker.wait_for("will try again: ClickHouse.*readonly")
        jobs[1].all_done()
        assert jobs[0].accounted() == 0
        clickhouse_sql.execute(f"ALTER TABLE {tables[0]} RESET SETTING table_readonly")
        jobs[0].all_done()
    for job, table in zip(jobs, tables, strict=True):
        assert replace(job, target=table).judge(range(count)) == EXACT


def test_a_block_of_which_some_parts_landed_becomes_whole(
    rows_job: Job, clickhouse_sql: Client, clickhouse_proxy: Proxy
) -> None:
    """A crash of the server may leave some parts of a block; the test removes one, and lets the tokens grow too old."""
    count, window, parts = 900, 1000, 4
    rows_job.create()
    statement = CREATE.format(table=rows_job.target)
    statement = statement.replace("ORDER BY", f"PARTITION BY _offset % {parts} ORDER BY", 1)
    clickhouse_sql.execute(statement)
    clickhouse_sql.execute(
        f"ALTER TABLE {rows_job.target} MODIFY SETTING non_replicated_deduplication_window = {window}"
    )
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.drop_reply(after_bytes=10_000, until=END_OF_STREAM)
        clickhouse_proxy.refuse()
        rows_job.send(events(count))
        wait_until(lambda: rows_job.rows() == count, PATIENCE_S, "the block is stored")
        stored = time.monotonic()
        kill(worker.pid, *consumers(worker))
    clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} DROP PARTITION 1")
    assert rows_job.rows() == count - count // parts
    retention_s = window / parts / 100 / 2
    wait_until(lambda: time.monotonic() - stored > 2 * retention_s, PATIENCE_S, "the tokens may be evicted")
    clickhouse_proxy.heal()
    rows_job.finish()
    assert rows_job.judge(range(count)) == EXACT


@pytest.mark.parametrize(
    ("count", "partition_by", "limit"),
    [
        (200_000, "_offset % 4", "max_memory_usage=12000000"),  # the server hangs up while the client still sends
        (800, "_offset % 300", "max_partitions_per_insert_block=100"),
    ],
)
def test_a_block_that_the_server_refuses_for_its_size_is_written_in_smaller_ones(
    rows_job: Job, clickhouse_sql: Client, count: int, partition_by: str, limit: str
) -> None:
    rows_job.create()
    (plain,) = create_statements(CREATE, "off")  # a projection alone needs 12 MB, however few rows a block has
    statement = plain.format(table=rows_job.target).replace("ORDER BY", f"PARTITION BY {partition_by} ORDER BY", 1)
    clickhouse_sql.execute(statement)
    rows_job.send(events(count))
    options = ("--batch-rows", str(count), "--clickhouse-url", f"{rows_job.url}?{limit}")
    worker = rows_job.finish("--linger-ms", "10000", *options)
    assert [line for line in worker.stderr if "refuses a block of" in line], worker.tail()
    assert not [line for line in worker.stderr if "Connection reset" in line or "Broken pipe" in line]
    assert rows_job.judge(range(count)) == EXACT
    assert not rows_job.dead_letters()


def test_a_summing_view_counts_each_event_once(hurt_kafka: Server, make_job: MakeJob) -> None:
    """Answers are lost and consumers killed; the profile turns the deduplication of views off, the worker on."""
    profile = {"deduplicate_blocks_in_dependent_materialized_views": 0}
    with start_clickhouse(settings=profile) as server, Proxy("127.0.0.1", server.port) as proxy:
        client = clickhouse_client(server.address)
        _write_through_a_summing_view(make_job(hurt_kafka, server.address), client, proxy)
        client.disconnect()


def _write_through_a_summing_view(rows_job: Job, clickhouse_sql: Client, clickhouse_proxy: Proxy) -> None:
    count, rounds = 1000, 12
    rows_job.create()
    clickhouse_sql.execute(CREATE.format(table=rows_job.target))
    view, target = f"{rows_job.target}_view", f"{rows_job.target}_sums"
    clickhouse_sql.execute(
        f"CREATE TABLE {target} (code Int8, n UInt64) ENGINE = SummingMergeTree ORDER BY code "
        "SETTINGS non_replicated_deduplication_window = 10000"
    )
    clickhouse_sql.execute(
        f"CREATE MATERIALIZED VIEW {view} TO {target} AS "
        f"SELECT error_code AS code, count() AS n FROM {rows_job.target} GROUP BY code"
    )
    with rows_job.start(*rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        for i in range(rounds):
            faults = clickhouse_proxy.faults
            clickhouse_proxy.drop_reply(16_000, until=END_OF_STREAM)
            rows_job.send(events(count, first=count * i))
            wait_until(lambda faults=faults: clickhouse_proxy.faults > faults, PATIENCE_S, "an answer is lost")  # type: ignore[misc]
            if i % 3 == 0:
                kill(*consumers(worker))
            rows_job.advance_to(count * (i + 1))
    assert rows_job.judge(range(count * rounds)) == EXACT
    assert clickhouse_sql.execute(f"SELECT sum(n) FROM {target}") == [(count * rounds,)]


@pytest.mark.parametrize(
    ("engine", "promise"),
    [
        ("ReplacingMergeTree", "exactly-once"),
        ("SummingMergeTree", "exactly-once"),
        ("CoalescingMergeTree", "exactly-once"),
        ("AggregatingMergeTree", "exactly-once"),
        ("MergeTree TTL toDateTime(timestamp) + INTERVAL 50 YEAR", "exactly-once"),
        ("Memory", "at-least-once"),
        ("Log", "at-least-once"),
        ("Null", "at-least-once"),
    ],
)
def test_each_family_of_engines_keeps_what_guarantees_md_promises(
    rows_job: Job, clickhouse_sql: Client, clickhouse_proxy: Proxy, engine: str, promise: str
) -> None:
    """Answers are lost and a consumer is killed. Each event has a device of its own: a doubled row would be summed."""
    count, rounds = 1000, 4
    rows_job.create()
    target = rows_job.target
    columns = "timestamp DateTime64(3, 'UTC'), device_ip String, error_code Int8, "
    columns += "_topic LowCardinality(String), _partition Int32, _offset Int64"
    merge_tree = "ORDER BY device_ip SETTINGS non_replicated_deduplication_window = 10000"
    if engine == "Null":
        target = f"{rows_job.target}_rows"
        clickhouse_sql.execute(f"CREATE TABLE {target} ({columns}) ENGINE = MergeTree {merge_tree}")
    name, _, ttl = engine.partition(" ")
    clause = engine
    if "MergeTree" in engine:
        clause = f"{name} ORDER BY device_ip {ttl} SETTINGS non_replicated_deduplication_window = 10000"
    clickhouse_sql.execute(f"CREATE TABLE {rows_job.target} ({columns}) ENGINE = {clause}")
    if engine == "Null":
        clickhouse_sql.execute(f"CREATE MATERIALIZED VIEW {target}_view TO {target} AS SELECT * FROM {rows_job.target}")
    with rows_job.start(*rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        for i in range(rounds):
            faults = clickhouse_proxy.faults
            clickhouse_proxy.drop_reply(16_000, until=END_OF_STREAM)
            rows_job.send(events(count, first=count * i + 1))
            wait_until(lambda faults=faults: clickhouse_proxy.faults > faults, PATIENCE_S, "an answer is lost")  # type: ignore[misc]
            if i == 1:
                kill(*consumers(worker))
            rows_job.advance_to(count * (i + 1))
        assert ("delivery is at-least-once" in worker.tail(1000)) == (promise == "at-least-once")
    verdict = replace(rows_job, target=target).judge(range(1, count * rounds + 1), origin=promise == "exactly-once")
    assert (verdict.missing, verdict.wrong) == (0, 0), verdict
    assert promise == "at-least-once" or verdict.doubled == 0, verdict
