"""The function of --transform on real servers: its guide, both stores, kills, and functions that are wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.guide import Guide
from tests.support.job import Job, MakeJob, consumers, kill
from tests.support.kit import PATIENCE_S, Service, host_and_port, run_sql, run_worker, wait_until
from tests.support.oracle import EXACT, event, events
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.core.errors import ExitCode

GUIDE = Guide("transform.md")

DROP = """
def transform(events):
    return [event if event["error_code"] != 3 else None for event in events]
"""
MIX = """
def transform(events):
    results = []
    while events:
        event = events.pop()
        code = event.pop("error_code")
        if code == 7:
            raise ValueError(event["device_ip"])
        results.insert(0, None if code == 3 else {**event, "error_code": code})
    return results
"""


def module(directory: Path, source: str, name: str = "fleet") -> Mapping[str, str]:
    """Write a module; return the environment in which the worker finds it."""
    (directory / f"{name}.py").write_text(source)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{Path(__file__).parents[2]}"}


def run(job: Job, command: str, env: Mapping[str, str], *words: str, code: int = ExitCode.OK) -> list[str]:
    with run_worker(command, *job.arguments(*words), env=env) as worker:
        assert worker.wait() == code, worker.tail()
    return worker.stdout


def sql(job: Job, statement: str) -> Any:
    return run_sql(job.url, statement)


def test_the_guides_readings_are_stored_as_the_guide_says(rows_job: Job, tmp_path: Path) -> None:
    sql(rows_job, GUIDE.blocks("sql")[0].replace("readings", rows_job.target))
    config = tmp_path / "readings.toml"
    config.write_text(GUIDE.blocks("toml")[0])
    reading = json.loads(GUIDE.blocks("json")[0])
    begin_ns = reading["timestamp"]
    readings = [
        {**reading, "device": f"{'test' if n % 5 == 0 else 's'}-{n}", "fahrenheit": n, "timestamp": begin_ns + n}
        for n in range(500)
    ]
    del readings[7]["fahrenheit"]
    readings[8]["fahrenheit"] = "warm"
    rows_job.create()
    rows_job.send([json.dumps(reading).encode() for reading in readings])
    env = {
        **module(tmp_path, GUIDE.blocks("python")[1]),
        "WORKER_BOOTSTRAP_SERVERS": rows_job.kafka,
        "WORKER_CLICKHOUSE_URL": rows_job.url,
        "WORKER_GROUP_ID": rows_job.group,
        "WORKER_METRICS_PORT": "0",
    }
    printed = []
    for words in GUIDE.commands(config):
        words += ["--topic", rows_job.topic, "--table", rows_job.target]
        with run_worker(*words, env=env) as command:
            assert command.wait() == 0, command.tail()
        printed.append(command.stdout)
    assert "OK    transform: 398 of the 500 sampled events are stored, 100 skipped" in printed[0]
    assert printed[1][-1] == "Total devices: 398"
    total = "total: 500 events, 398 rows, 2 dead letters, 100 skipped, missing 0, doubled 0, extra 0"
    assert printed[2][-1] == total
    rows = sql(rows_job, f"SELECT device, celsius, toUnixTimestamp64Nano(timestamp) FROM {rows_job.target}")
    assert sorted(rows) == sorted(
        (f"s-{n}", round((n - 32) / 1.8, 2), begin_ns + n) for n in range(500) if n % 5 and n not in (7, 8)
    )
    letters = rows_job.dead_letters()
    number = next(i for i, text in enumerate(GUIDE.blocks("python")[1].splitlines(), 1) if 'pop("fahrenheit")' in text)
    assert {(letter.offset, letter.reason, dict(letter.headers)["error"].decode()) for letter in letters} == {
        (7, "transform_failed", f"KeyError in fleet.py:{number}"),
        (8, "transform_failed", f"TypeError in fleet.py:{number}"),
    }
    assert [letter.payload for letter in letters] == [json.dumps(readings[i]).encode() for i in (7, 8)]


@pytest.mark.parametrize("backend", ["clickhouse", "redis"])
def test_kills_neither_lose_nor_double_what_the_function_keeps(
    backend: str, request: pytest.FixtureRequest, kafka: Service, make_job: MakeJob, tmp_path: Path
) -> None:
    count = 60_000
    store = request.getfixturevalue("clickhouse" if backend == "clickhouse" else "redis_server")
    job = make_job(kafka, store.address)
    job.create(2)
    job.send(events(count))
    env = module(tmp_path, MIX)
    with job.start("--transform", "fleet:transform", env=env) as worker:
        for share in (4, 2):
            job.advance_to(count // share)
            kill(*consumers(worker, busy=True)[:1])
        job.all_done()
    assert job.judge(i for i in range(count) if i % 11 not in (3, 7)) == EXACT
    letters = {(letter.partition, letter.offset): letter for letter in job.dead_letters()}
    assert sorted(letter.payload for letter in letters.values() if letter.payload) == sorted(
        event(i) for i in range(count) if i % 11 == 7
    )
    assert all(dict(letter.headers)["error"] == b"ValueError in fleet.py:8" for letter in letters.values())
    lines = run(job, "verify", env, "--transform", "fleet:transform")
    skipped = sum(i % 11 == 3 for i in range(count))
    assert any(f"{skipped} skipped" in line or line.startswith("total: ") for line in lines)
    assert re.search(r"missing 0,.* extra 0$", lines[-1]), lines
    run(job, "verify", env, code=ExitCode.FAILED)  # it cannot know what was skipped


def test_a_replayed_block_of_other_content_changes_nothing(rows_job: Job, tmp_path: Path) -> None:
    """The function keeps the first events only once: the second time, after a kill, it keeps others."""
    count = 1000
    rows_job.create()
    env = module(tmp_path, DROP)
    with (
        Proxy(*host_and_port(rows_job.url)) as proxy,
        rows_job.start(
            "--linger-ms", "2000", "--transform", "fleet:transform", *rows_job.via(proxy.port), env=env
        ) as w,
    ):
        w.wait_for("took a partition")
        proxy.drop_reply(after_bytes=10_000, until=END_OF_STREAM)
        proxy.refuse()
        rows_job.send(events(count))
        wait_until(lambda: proxy.faults, PATIENCE_S, "the answer is lost")
        assert rows_job.judge(i for i in range(count) if i % 11 != 3) == EXACT
        assert rows_job.intent()
        module(tmp_path, DROP.replace("!= 3", "== 3"))
        kill(*consumers(w))
        proxy.heal()
        rows_job.all_done()  # the restarted consumer imports the other function
    assert rows_job.judge(i for i in range(count) if i % 11 != 3) == EXACT
    skipped = sum(i % 11 != 3 for i in range(count))
    (line,) = run(rows_job, "verify", env, "--transform", "fleet:transform", code=ExitCode.FAILED)[-1:]
    assert line == (
        f"total: {count} events, {skipped} rows, 0 dead letters, {skipped} skipped, missing {count - skipped}, "
        f"doubled 0, extra {skipped}"
    )
    module(tmp_path, DROP)
    assert run(rows_job, "verify", env, "--transform", "fleet:transform")[-1].endswith("missing 0, doubled 0, extra 0")


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        ("fleet:missing", "", "--transform fleet:missing cannot be imported: AttributeError"),
        ("nowhere_to_be_found:f", "", "--transform nowhere_to_be_found:f cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused(
    rows_job: Job, tmp_path: Path, name: str, source: str, text: str
) -> None:
    rows_job.create()
    rows_job.send(events(10))
    env = module(tmp_path, source)
    with rows_job.start("--until-end", "--transform", name, env=env) as worker:
        assert worker.wait() == ExitCode.CONFIG, worker.tail()
    assert len([line for line in worker.stderr if text in line]) == 1, worker.tail()
    (line,) = [
        line
        for line in run(rows_job, "check", env, "--transform", name, code=ExitCode.FAILED)
        if line.startswith("FAIL  transform: ")
    ]
    assert text in line
    assert "fix: the module must be" in line


def test_a_result_of_another_length_stops_the_worker_and_commits_nothing(rows_job: Job, tmp_path: Path) -> None:
    rows_job.create()
    rows_job.send(events(1000))
    env = module(tmp_path, "def transform(events):\n    return [e for e in events if e['error_code'] != 3]\n")
    with rows_job.start("--until-end", "--transform", "fleet:transform", env=env) as worker:
        assert worker.wait() == ExitCode.CONFIG, worker.tail()
    assert "None to skip it" in worker.tail()
    assert not rows_job.committed()
    findings = run(rows_job, "check", env, "--transform", "fleet:transform", code=ExitCode.FAILED)
    assert any(line.startswith("FAIL  sample: ") and "items for 1000 events" in line for line in findings), findings
    with replace(rows_job).start("--until-end", "--transform", "fleet:transform", env=module(tmp_path, DROP)) as fixed:
        assert fixed.wait() == 0, fixed.tail()
    assert rows_job.judge(i for i in range(1000) if i % 11 != 3) == EXACT
