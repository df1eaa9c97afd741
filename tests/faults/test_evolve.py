"""`--evolve`: columns are added while events arrive, processes are killed, and other hosts add them too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from clickhouse_driver import Client

from tests.support.framed import registry_at
from tests.support.job import Job, consumers, kill, status, stopped
from tests.support.kit import PATIENCE_S, Worker, run_worker, wait_until
from tests.support.oracle import EXACT, event, events
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.decoding.framing import frame
from worker.local import Server

pytestmark = pytest.mark.faults


def with_fields(numbers: Iterable[int]) -> list[bytes]:
    """Return events of which each also has its number, a version, and a field of two types."""
    return [
        event(i)[:-1] + b', "number": %d, "version": "v%d", "mixed": %s}' % (i, i % 3, b'"x"' if i % 2 else b"1")
        for i in numbers
    ]


def added(sql: Client, job: Job) -> dict[str, str]:
    """Return the columns that --evolve has added, with their types."""
    described = sql.execute(f"DESCRIBE TABLE {job.target}")
    return {column[0]: column[1] for column in described if column[4] == "added by worker --evolve"}


def filled(sql: Client, job: Job) -> int:
    """Return how many rows have a value in the added column; each has its own event's."""
    query = "SELECT count(number), countIf(number != toUnixTimestamp64Milli(timestamp) - 1700000000000)"
    ((count, wrong),) = sql.execute(f"{query} FROM {job.target}")
    assert not wrong
    return int(count)


def send_until_filled(job: Job, sql: Client, first: int) -> int:
    """Send events with the fields until rows have them; return the number of the next event."""
    before, due = filled(sql, job), 0.0
    deadline = time.monotonic() + PATIENCE_S
    while filled(sql, job) == before:
        assert time.monotonic() < deadline, "no row has the new field"
        if time.monotonic() > due:
            job.send(with_fields(range(first, first + 100)))
            first, due = first + 100, time.monotonic() + 0.5
        time.sleep(0.05)
    return first


def monitor(worker: Worker) -> int:
    """Return the pid of the monitor."""
    (pid,) = set(worker.children()) - {process["pid"] for process in status(worker)["processes"]}
    return pid


def test_a_field_that_appears_during_a_run_gets_a_column_that_later_events_fill(
    rows_job: Job, clickhouse_sql: Client
) -> None:
    count = 1000
    rows_job.create(2)
    rows_job.send(events(count))
    with rows_job.start("--evolve", "1") as worker:
        rows_job.all_done()
        assert not added(clickhouse_sql, rows_job)
        rows_job.send(with_fields(range(count, 3 * count)))
        line = worker.wait_for(r"added the column number Nullable\(Int64\) .*: 67 % of the last 3000 events")
        assert rows_job.topic in line.string
        worker.wait_for("get no column: version .--evolve 1 allows no more columns")
        worker.wait_for("get no column: .*mixed .(text|a number) in 1000 and")
        end = send_until_filled(rows_job, clickhouse_sql, 3 * count)
        rows_job.all_done()
        assert added(clickhouse_sql, rows_job) == {"number": "Nullable(Int64)"}
    assert filled(clickhouse_sql, rows_job) < end - count, "rows from before the column have NULL"
    assert rows_job.judge(range(end)) == EXACT
    assert not rows_job.dead_letters()
    with run_worker("verify", *rows_job.arguments()) as verify:
        assert verify.wait() == 0, verify.tail()


def test_a_table_that_somebody_alters_is_read_again_without_evolve_and_without_a_restart(
    rows_job: Job, clickhouse_sql: Client
) -> None:
    """Columns that are added break no insert, and with invalid events alone there is none that could fail."""
    rows_job.create(2)
    rows_job.send(events(1000))
    with rows_job.start():
        rows_job.all_done()
        clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} ADD COLUMN number Nullable(Int8)")

        def has_dead_letters() -> bool:
            rows_job.send(with_fields(range(1000, 1010)))
            return bool(rows_job.dead_letters())

        wait_until(has_dead_letters, PATIENCE_S, "an event that the new column does not hold")
        clickhouse_sql.execute(f"ALTER TABLE {rows_job.target} MODIFY COLUMN number Nullable(Int64)")
        send_until_filled(rows_job, clickhouse_sql, 2000)
        rows_job.all_done()
    assert {dead_letter.reason for dead_letter in rows_job.dead_letters()} == {"out_of_range"}
    with run_worker("verify", *rows_job.arguments()) as verify:
        assert verify.wait() == 0, verify.tail()


def test_fields_of_the_events_that_wait_at_the_start_get_columns_before_the_first_is_stored(
    rows_job: Job, clickhouse_sql: Client
) -> None:
    rows_job.create()
    rows_job.send(with_fields(range(500)))
    with run_worker("check", *rows_job.arguments("--evolve", "5", "--create")) as check:
        assert check.wait() == 0, check.tail()
    listed = [line for line in check.stdout if "evolve" in line]
    assert any("would add number Nullable(Int64), in 100 % of the last 500 events" in line for line in listed), listed
    assert any("mixed, in 100 % of" in line and "gets no column: " in line for line in listed), listed
    assert not added(clickhouse_sql, rows_job)
    rows_job.finish("--evolve", "5")
    columns = {"number": "Nullable(Int64)", "version": "LowCardinality(Nullable(String))"}
    assert added(clickhouse_sql, rows_job) == columns
    assert filled(clickhouse_sql, rows_job) == 500
    assert rows_job.judge(range(500)) == EXACT


def double(events: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Skip every third event, and compute a field of the others: the function of `--transform`."""
    return [None if event["number"] % 3 == 0 else {**event, "twice": 2 * event["number"]} for event in events]


def test_fields_of_other_formats_and_of_the_user_s_function_get_columns(
    rows_job: Job, clickhouse_sql: Client, schema_registry: Server
) -> None:
    rows_job.create()
    schema = '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}'
    schema_id = registry_at(schema_registry.address).register(f"{rows_job.topic}-value", "JSON", schema)
    rows_job.send([b"not framed", *(frame(schema_id, payload) for payload in with_fields(range(600)))])
    options = ("--format", "json-schema", "--schema-registry-url", schema_registry.address)
    rows_job.finish("--evolve", "9", *options, "--transform", f"{__name__}:double")
    assert set(added(clickhouse_sql, rows_job)) == {"number", "version", "twice"}
    assert rows_job.judge(i for i in range(600) if i % 3) == EXACT
    assert clickhouse_sql.execute(f"SELECT countIf(twice = 2 * number) FROM {rows_job.target}") == [(400,)]
    assert [dead_letter.reason for dead_letter in rows_job.dead_letters()] == ["not_framed"]


def test_values_that_a_new_column_does_not_hold_are_dead_letters_until_it_is_lenient(
    rows_job: Job, clickhouse_sql: Client
) -> None:
    """So docs/mapping.md says it, with the way out."""
    rows_job.create()
    rows_job.send(with_fields(range(200)))
    rows_job.finish("--evolve", "1")
    odd = [event(i)[:-1] + b', "number": "%d"}' % i for i in range(200, 300)]
    rows_job.send(odd)
    rows_job.finish("--evolve", "1", code=1)
    assert {(dead_letter.reason, dead_letter.field) for dead_letter in rows_job.dead_letters()} == {
        ("wrong_type", "number")
    }
    with run_worker("dlq", "replay", "--yes", *rows_job.arguments()) as replay:
        assert replay.wait() == 0, replay.tail()
    rows_job.finish("--evolve", "1", "--types", "number=lenient")
    assert rows_job.judge(range(300)) == EXACT
    assert filled(clickhouse_sql, rows_job) == 300


@pytest.mark.parametrize("victims", ["monitor", "consumers", "both", "all"])
def test_kill_between_the_new_column_and_the_reopening_with_a_block_in_doubt(
    rows_job: Job, clickhouse_sql: Client, clickhouse_proxy: Proxy, victims: str
) -> None:
    """The block is stored without the column; its answer is lost. It is formed again with the column."""
    count = 1000
    rows_job.create(2)
    rows_job.send(with_fields(range(count)), partition=0)
    with rows_job.start("--processes", "2", *rows_job.via(clickhouse_proxy.port)) as worker:
        rows_job.all_done()
    options = ("--processes", "2", "--evolve", "1", *rows_job.via(clickhouse_proxy.port))
    rows_job.send(events(10 * count, first=count), partition=0)  # the fields are in too few events
    with rows_job.start(*options) as worker:
        rows_job.all_done()
        assert not added(clickhouse_sql, rows_job)
        clickhouse_proxy.drop_reply(after_bytes=16_000, until=END_OF_STREAM)
        clickhouse_proxy.refuse()
        rows_job.send(with_fields(range(11 * count, 17 * count)), partition=0)
        wait_until(lambda: clickhouse_proxy.faults and rows_job.intent(), PATIENCE_S, "a block is in doubt")
        pids = consumers(worker)
        with stopped(*pids):
            clickhouse_proxy.heal()
            kill(monitor(worker))  # the next one samples at once
            wait_until(lambda: added(clickhouse_sql, rows_job), PATIENCE_S, "the column is added")
            assert rows_job.rows() > 11 * count, "the block in doubt is stored"
            if victims in ("monitor", "both", "all"):
                kill(monitor(worker))
            if victims in ("consumers", "both", "all"):
                kill(*pids)
            if victims == "all":
                worker.kill_tree()
        if victims != "all":
            end = send_until_filled(rows_job, clickhouse_sql, 17 * count)
            rows_job.all_done()
    if victims == "all":
        end = 17 * count
        rows_job.finish("--evolve", "1")
        assert 0 < filled(clickhouse_sql, rows_job) < 6 * count
    assert rows_job.judge(range(end)) == EXACT
    assert not rows_job.dead_letters()


def test_two_workers_of_a_group_evolve_one_table(rows_job: Job, clickhouse_sql: Client) -> None:
    """One is killed. What the other's monitor has added is filled by both."""
    count = 1000
    rows_job.create(2)
    rows_job.send(events(count))
    arguments = ("--processes", "1", "--evolve", "2")
    with rows_job.start(*arguments) as first, rows_job.start(*arguments) as second:
        for worker in (first, second):
            worker.wait_for("took a partition")
        rows_job.send(with_fields(range(count, 4 * count)))
        wait_until(lambda: len(added(clickhouse_sql, rows_job)) == 2, PATIENCE_S, "the columns are added")
        end = send_until_filled(rows_job, clickhouse_sql, 4 * count)
        for partition in (0, 1):
            query = f"SELECT count() FROM {rows_job.target} WHERE _partition = {partition} AND number IS NOT NULL"
            first_number, due = end, 0.0
            deadline = time.monotonic() + PATIENCE_S
            while not clickhouse_sql.execute(query)[0][0]:
                assert time.monotonic() < deadline, "one of the workers does not fill the column"
                if time.monotonic() > due:
                    rows_job.send(with_fields(range(end, end + 50)), partition=partition)
                    end, due = end + 50, time.monotonic() + 0.5
                time.sleep(0.05)
            assert end >= first_number
        first.kill_tree()
        rows_job.send(with_fields(range(end, end + count)))
        rows_job.all_done()
    assert rows_job.judge(range(end + count)) == EXACT
    assert set(added(clickhouse_sql, rows_job)) == {"number", "version"}
    assert not rows_job.dead_letters()


def test_a_table_that_cannot_get_columns_is_refused_at_the_start(rows_job: Job, clickhouse_sql: Client) -> None:
    rows_job.create()
    memory = replace(rows_job, target=f"{rows_job.target}_memory")
    columns = "timestamp DateTime64(3), device_ip String, error_code Int8"
    clickhouse_sql.execute(f"CREATE TABLE {memory.target} ({columns}) ENGINE = Memory")
    with memory.start("--evolve", "1") as worker:
        assert worker.wait() == 78, worker.tail()
    assert any("--evolve needs a table of the MergeTree family" in line for line in worker.stderr)
    with run_worker("check", *memory.arguments("--evolve", "1")) as check:
        assert check.wait() == 1
    assert any(line.startswith("FAIL  evolve: ") for line in check.stdout), check.tail()
    clickhouse_sql.execute(f"DROP TABLE {memory.target}")
