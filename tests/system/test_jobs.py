"""Jobs with other events than the default ones, set up as the documentation says, on real servers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.guide import Guide
from tests.support.kit import run_sql, run_worker, send
from worker.core.errors import ExitCode

GUIDE = Guide("mapping.md")


def run(env: Mapping[str, str], *words: str, code: int = ExitCode.OK) -> list[str]:
    """Run a command and return its output."""
    with run_worker(*words, env=env) as command:
        assert command.wait() == code, command.tail()
    return command.stdout


def sql(env: Mapping[str, str], statement: str) -> Any:
    return run_sql(env["WORKER_CLICKHOUSE_URL"], statement)


def write(env: Mapping[str, str], events: list[dict[str, Any]]) -> None:
    send(env["WORKER_BOOTSTRAP_SERVERS"], env["WORKER_TOPIC"], [json.dumps(event).encode() for event in events])


def test_the_guides_access_log_is_stored_as_the_guide_says(
    env: dict[str, str], table_name: str, tmp_path: Path
) -> None:
    sql(env, GUIDE.blocks("sql")[0].replace("access_log", table_name))
    config = tmp_path / "access_log.toml"
    config.write_text(GUIDE.blocks("toml")[0])
    env["WORKER_TABLE"] = table_name  # the file's topic and table, but this test's own
    event = json.loads(GUIDE.blocks("json")[0])
    events = [{**event, "bytes": n, "remote_addr": f"10.1.{n // 256}.{n % 256}"} for n in range(500)]
    events[3] = {**events[3], "upstream": None, "user_agent": None}
    events[4] = {key: value for key, value in events[4].items() if key not in ("upstream", "user_agent")}
    bad = [{**event, "status": "200"}, {**event, "request": {"id": event["request"]["id"]}}]
    write(env, [*events, *bad])

    unguided = tmp_path / "unguided.toml"
    unguided.write_text(GUIDE.blocks("toml")[0].partition("[map]")[0])
    findings = run(env, "check", "--config", str(unguided), code=ExitCode.FAILED)
    fixes = [match[1] for line in findings if (match := re.search(r"fix: --map (\S+)", line))]
    expected = [line.split(" = ") for line in GUIDE.blocks("toml")[0].partition("[map]\n")[2].splitlines()]
    assert sorted(fixes) == sorted(f"{field}={json.loads(column)}" for field, column in expected)

    commands = GUIDE.commands(config)
    assert [words[0] for words in commands] == ["check", "--config", "verify"]
    printed = [run(env, *words) for words in commands]
    assert any(line.startswith("OK    devices: counted in column remote_addr") for line in printed[0]), printed[0]
    assert any(re.search(r"OK    sample: \d\d+ of the \d+ sampled events would be stored", line) for line in printed[0])
    assert printed[1][-1] == "Total devices: 500"
    assert printed[2][-1] == "total: 502 events, 500 rows, 2 dead letters, 0 skipped, missing 0, doubled 0, extra 0"

    columns = (
        "status, request_id, method, path, secure, headers, round(upstream_time, 3), user_agent, tags, toString(day)"
    )
    first = sql(env, f"SELECT {columns} FROM {table_name} WHERE bytes = 0")
    request = [200, UUID(event["request"]["id"]), "GET", "/index.html", True, event["request"]["headers"]]
    rest = [pytest.approx(0.012), "curl/8.5.0", ["edge", "cached"], "2026-11-24"]
    assert list(map(list, first)) == [request + rest]
    assert sql(env, f"SELECT upstream_time, user_agent FROM {table_name} WHERE bytes IN (3, 4)") == [(None, None)] * 2
    dead_letters = run(env, "dlq", "list", "--config", str(config))
    assert sorted(re.findall(r"(\w+)  (\S+)  20", "\n".join(dead_letters))) == [
        ("missing_field", "request.method"),
        ("wrong_type", "status"),
    ]

    # Numbers that come as text, with a lenient column; a dead letter is replayed, and becomes a row.
    assert 'status = "lenient"' in GUIDE.blocks("toml")[1]
    replay = ("dlq", "replay", "--reason", "wrong_type", "--yes", "--config", str(config))
    run(env, *replay)
    write(env, [{**event, "status": "abc"}, {**event, "status": "404"}])
    run(env, "--config", str(config), "--types", "status=lenient", "--until-end")
    assert sql(env, f"SELECT status, count() FROM {table_name} GROUP BY status ORDER BY status") == [
        (200, 501),
        (404, 1),
    ]
    assert sum("wrong_type  status" in line for line in run(env, "dlq", "list", "--config", str(config))) == 2


def _make_readings(env: Mapping[str, str], table: str, key: str) -> None:
    """Create a table with this sorting key, and write 2000 readings of 50 sensors into the topic."""
    sql(
        env,
        f"""CREATE TABLE {table} (sensor UUID, at DateTime64(6, 'UTC'), celsius Decimal(9, 3), battery UInt8,
        state Enum8('ok' = 1, 'failing' = 2), place Tuple(lat Float64, lon Float64), version UInt64,
        _topic LowCardinality(String), _partition Int32, _offset Int64)
        ENGINE = ReplacingMergeTree(version) ORDER BY ({key}) SETTINGS non_replicated_deduplication_window = 10000""",
    )
    readings = [
        {
            "sensor": {"id": str(UUID(int=n % 50))},
            "at": 1764000000 + n,
            "celsius": 20 + n / 8,
            "battery": n % 100,
            "state": "ok" if n % 9 else "failing",
            "place": {"lat": 52.1, "lon": 4.3},
            "version": n,
        }
        for n in range(2000)
    ]
    write(env, readings)


def test_readings_keyed_by_uuid_into_a_table_that_drops_repetitions(env: dict[str, str], table_name: str) -> None:
    _make_readings(env, table_name, "sensor, at, _topic, _partition, _offset")
    options = ["--backend", "clickhouse", "--table", table_name, "--device-field", "sensor.id"]
    findings = run(env, "check", *options, code=ExitCode.FAILED)
    assert any(line.endswith("fix: --map sensor.id=sensor") for line in findings), findings
    options += ["--map", "sensor.id=sensor"]
    findings = run(env, "check", *options)
    assert any(re.search(r"sample: (\d+) of the \1 sampled events would be stored", line) for line in findings), (
        findings
    )
    assert run(env, *options, "--until-end")[-1] == "Total devices: 50"
    run(env, "verify", *options)
    sql(env, f"OPTIMIZE TABLE {table_name} FINAL")
    run(env, "verify", *options)  # merges remove no event that the topic has once
    columns = "celsius, battery, state, place, toUnixTimestamp(at)"
    stored = sql(env, f"SELECT {columns} FROM {table_name} WHERE version = 1999")
    assert [(float(celsius), *rest) for celsius, *rest in stored] == [(269.875, 99, "ok", (52.1, 4.3), 1764001999)]
    sql(env, f"ALTER TABLE {table_name} DELETE WHERE version = 7 SETTINGS mutations_sync = 1")
    run(env, "verify", *options, code=ExitCode.FAILED)  # real loss is not hidden


def test_readings_of_which_only_the_newest_stay_are_right_and_verify_says_what_it_cannot_tell(
    env: dict[str, str], table_name: str
) -> None:
    _make_readings(env, table_name, "sensor")
    options = ["--backend", "clickhouse", "--table", table_name]
    options += ["--device-field", "sensor.id", "--map", "sensor.id=sensor"]
    assert run(env, *options, "--until-end")[-1] == "Total devices: 50"
    sql(env, f"OPTIMIZE TABLE {table_name} FINAL")
    kept = sql(env, f"SELECT version, celsius FROM {table_name} ORDER BY version")
    assert [(version, float(celsius)) for version, celsius in kept] == [(n, 20 + n / 8) for n in range(1950, 2000)]
    output = "\n".join(run(env, "verify", *options, code=ExitCode.FAILED))
    assert "cannot be decided" in output
    assert "missing" not in output
    run(env, "verify", "--allow-merged", *options)
    assert run(env, "count", *options) == ["Total devices: 50"]


def test_a_table_without_a_device_column_is_filled_with_one_message_that_nothing_is_counted(
    env: dict[str, str], table_name: str
) -> None:
    sql(env, f"CREATE TABLE {table_name} (n Int64) ENGINE = MergeTree ORDER BY n")
    write(env, [{"n": n} for n in range(10)])
    options = ["--backend", "clickhouse", "--table", table_name]
    with run_worker(*options, "--until-end", "--report-interval", "0.1", env=env) as worker:
        assert worker.wait() == ExitCode.OK, worker.tail()
    assert worker.stdout == []
    assert sum("devices are not counted: no column of" in line for line in worker.stderr) == 1
    assert sql(env, f"SELECT sum(n), count() FROM {table_name}") == [(45, 10)]
    assert run(env, "count", *options, code=ExitCode.CONFIG) == []


def test_redis_counts_the_field_that_is_named(env: dict[str, str], redis_key: str) -> None:
    users: list[Any] = [1, 2, 2, "2", "anna", "anna", None, True, 1.5]
    write(env, [{"user": {"id": user}} for user in users])
    options = ["--redis-key", redis_key, "--device-field", "user.id"]
    assert run(env, *options, "--until-end")[-1] == "Total devices: 3"
    dead_letters = run(env, "dlq", "list", *options)
    assert [re.findall(r"(\w+)  (\S+)  20", line) for line in dead_letters] == [[("wrong_type", "user.id")]] * 3
    assert run(env, "verify", *options)[-1].endswith("missing 0, extra 0")
