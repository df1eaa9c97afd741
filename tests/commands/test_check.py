"""`check` against real servers: each finding names a fault and its fix, and the fix works."""

from __future__ import annotations

import io
import json
import re
import socket
import time
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import redis
from clickhouse_driver import errors
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.support.kit import PATIENCE_S, Service, create_topic, run_sql, run_worker, send, wait_until
from tests.support.served import Served
from worker.commands.check import check
from worker.commands.verify import verify
from worker.config import field_paths
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.local import Server, start_clickhouse, start_kafka, start_redis
from worker.sinks.clickhouse.table import Column, default_columns

DEFAULT_TABLE = files("worker.sinks.clickhouse").joinpath("events.sql").read_text()
CANARY = "s3cret-canary"
GOOD = {"timestamp": "2024-01-01T00:00:00Z", "device_ip": "10.0.0.1", "error_code": 3}


def run(settings: Settings, create: bool = False, partitions: int = 3, sample: int = 1000) -> tuple[int, str]:
    """Return the exit code and the lines."""
    out = io.StringIO()
    code = check(settings, create=create, partitions=partitions, sample=sample, out=out)
    assert all(line[:6] in ("OK    ", "WARN  ", "FAIL  ") for line in out.getvalue().splitlines())
    assert all("; fix: " in line for line in out.getvalue().splitlines() if not line.startswith("OK"))
    return code, out.getvalue()


def line_of(text: str, start: str) -> str:
    """Return the only line with this start."""
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


@pytest.fixture
def counted(kafka: Service, redis_server: Service, topic_name: str, group_id: str) -> Settings:
    """A topic of two partitions, into Redis."""
    create_topic(kafka.address, topic_name, 2)
    return Settings(
        topic=topic_name,
        group_id=group_id,
        bootstrap_servers=kafka.address,
        redis_url=redis_server.address,
        metrics_port=0,
    )


@pytest.fixture
def stored(counted: Settings, clickhouse: Service, table_name: str) -> Settings:
    """The same topic into a ClickHouse table that does not exist."""
    return replace(counted, backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)


def sql(settings: Settings, statement: str) -> Any:
    return run_sql(settings.clickhouse_url, statement)


def test_a_working_setup_has_no_faults_and_nothing_is_written(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [json.dumps(GOOD).encode()] * 10)
    code, text = run(stored)
    assert (code, text.count("FAIL"), text.count("WARN")) == (ExitCode.OK, 0, 0), text
    assert "does not exist; it is created for the first dead letter" in line_of(text, "OK    dead letters")
    assert f"default.{stored.table} does not exist; the worker creates it" in line_of(text, "OK    table")
    assert sql(stored, f"EXISTS TABLE {stored.table}") == [(0,)]
    admin = AdminClient({"bootstrap.servers": stored.bootstrap_servers})
    assert stored.dead_letter_topic_name not in admin.list_topics(timeout=PATIENCE_S).topics
    groups = admin.list_consumer_groups().result(PATIENCE_S).valid
    assert stored.group_id not in [group.group_id for group in groups]


def test_create_creates_topic_dead_letter_topic_and_table(stored: Settings) -> None:
    missing = replace(stored, topic=f"{stored.topic}-new")
    code, text = run(missing)
    assert code == ExitCode.FAILED
    assert line_of(text, "FAIL").endswith("does not exist; fix: --create --partitions 3, or name another --topic")
    code, text = run(missing, create=True)
    assert code == ExitCode.OK, text
    assert "has 3, a process for each" in line_of(text, "OK    partitions")
    assert "was created (MergeTree); columns filled: timestamp DateTime64(3, 'UTC')" in line_of(text, "OK    table")
    assert "exactly-once is possible" in line_of(text, "OK    delivery")
    assert "exists" in line_of(run(missing)[1], "OK    dead letters")


def test_a_deduplication_window_that_is_off_is_fixed_by_the_statement_that_is_shown(stored: Settings) -> None:
    origin = "_topic String, _partition Int32, _offset Int64"
    columns = f"timestamp DateTime64(3), device_ip String, error_code Int8, {origin}"
    sql(stored, f"CREATE TABLE {stored.table} ({columns}) ENGINE = MergeTree ORDER BY device_ip")
    code, text = run(stored)
    assert code == ExitCode.OK
    result, _, fix = line_of(text, "WARN  delivery").partition("; fix: ")
    assert "only at-least-once: the deduplication window is 0" in result
    assert line_of(run(replace(stored, delivery="at-least-once"))[1], "OK    delivery")
    code, text = run(replace(stored, delivery="exactly-once"))
    assert code == ExitCode.FAILED
    assert "only at-least-once" in line_of(text, "FAIL  delivery")
    sql(stored, fix)
    assert line_of(run(stored)[1], "OK    delivery").endswith("exactly-once is possible")


def test_the_sample_reports_each_column_that_events_do_not_fit_into(stored: Settings) -> None:
    columns = "timestamp DateTime64(3), device_ip String, error_code Int8, country String"
    sql(stored, f"CREATE TABLE {stored.table} ({columns}) ENGINE = MergeTree ORDER BY device_ip")
    valid = {**GOOD, "country": "NL", "weight": 3}
    events: list[Any] = (
        [valid] * 40 + [{**valid, "error_code": 300}] * 2 + [{**valid, "device_ip": 7}] + [GOOD] * 3 + [7]
    )
    send(stored.bootstrap_servers, stored.topic, [json.dumps(event).encode() for event in events], partition=0)
    code, text = run(stored)
    assert code == ExitCode.OK
    for expected in (
        "WARN  sample: 1 not_object of the 47 sampled events",
        "WARN  sample: column error_code Int8: 2 out_of_range of the 47 sampled events",
        "WARN  sample: column device_ip String: 1 wrong_type of the 47 sampled events",
        "WARN  sample: column country String: 3 missing_field of the 47 sampled events",
        "OK    sample: 40 of the 47 sampled events would be stored",
        "OK    sample: fields that are not stored: weight",
    ):
        assert line_of(text, expected)
    for name in ("column country", "column error_code"):
        sql(stored, line_of(text, f"WARN  sample: {name}").partition("fix: ")[2].partition(", or")[0])
    assert line_of(run(stored)[1], "OK    sample: 45 of")


def test_a_field_with_a_similar_name_is_suggested_for_a_column_with_its_map_option(stored: Settings) -> None:
    columns = "time DateTime64(3), method String, upstream_time Nullable(Float32), headers Map(String, String)"
    sql(stored, f"CREATE TABLE {stored.table} ({columns}) ENGINE = MergeTree ORDER BY time")
    request = {"method": "GET", "headers": {"a": "b"}}
    event = {"time_iso8601": "2024-01-01T00:00:00Z", "request": request, "upstream": {"time": 0.1, "addr": "x"}}
    send(stored.bootstrap_servers, stored.topic, [json.dumps(event).encode()] * 9)
    code, text = run(stored)
    assert code == ExitCode.FAILED
    assert line_of(text, "OK    devices").endswith("--device-field names another field")
    fixes = [line.partition("fix: --map ")[2] for line in text.splitlines() if line.startswith("WARN  sample")]
    assert fixes == [
        "time_iso8601=time",
        "request.method=method",
        "upstream.time=upstream_time",
        "request.headers=headers",
    ]
    code, text = run(replace(stored, map=field_paths.columns(fixes), device_field="request.method"))
    assert code == ExitCode.OK, text
    assert line_of(text, "OK    devices").endswith("counted in column method")
    assert line_of(text, "OK    sample: 9 of the 9 sampled events would be stored")
    assert line_of(text, "OK    sample: fields that are not stored: upstream.addr")


def test_a_topic_of_other_events_is_refused(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [b'{"other": 1}'] * 3, partition=0)
    code, text = run(stored, create=True)
    assert code == ExitCode.FAILED
    assert "none of the 3 sampled events would be stored" in line_of(text, "FAIL  sample")


def test_a_missing_table_is_judged_by_the_sample(stored: Settings) -> None:
    events = [{**GOOD, "country": "NL"}] * 8 + [{**GOOD, "error_code": 300}] * 2
    send(stored.bootstrap_servers, stored.topic, [json.dumps(event).encode() for event in events])
    code, text = run(stored)
    assert code == ExitCode.OK
    assert "the worker creates it when it starts, or --create now, with timestamp" in line_of(text, "OK    table")
    assert line_of(text, "OK    devices").endswith("counted in column device_ip")
    fault = line_of(text, "WARN  sample: column error_code Int8: 2 out_of_range of the 10 sampled events")
    assert f"CREATE TABLE {stored.table} yourself, with Int64 for error_code" in fault
    assert line_of(text, "OK    sample: 8 of the 10 sampled events would be stored")
    assert line_of(text, "OK    sample: fields that are not stored: country")
    other = replace(stored, topic=f"{stored.topic}-other")
    create_topic(other.bootstrap_servers, other.topic)
    send(other.bootstrap_servers, other.topic, [b'{"at": "2024-01-01T00:00:00Z", "device": "a"}'] * 5)
    code, text = run(other)
    assert code == ExitCode.FAILED
    assert f"fix: CREATE TABLE {stored.table} for these events, as worker check --propose" in line_of(
        text, "FAIL  sample: none"
    )
    assert sql(stored, f"EXISTS TABLE {stored.table}") == [(0,)]
    created = sql(stored, DEFAULT_TABLE.format(table=stored.table))  # the columns are those that the worker creates
    assert created == []
    described = sql(stored, f"DESCRIBE TABLE {stored.table}")
    assert default_columns() == [Column(*column[:2]) for column in described]


def test_a_table_without_a_device_column_is_no_fault(stored: Settings) -> None:
    columns = "n Int64, _topic LowCardinality(String), _partition Int32, _offset Int64"
    window = "SETTINGS non_replicated_deduplication_window = 10000"
    sql(stored, f"CREATE TABLE {stored.table} ({columns}) ENGINE = MergeTree ORDER BY n {window}")
    code, text = run(stored)
    assert code == ExitCode.OK, text
    assert "devices are not counted: no column of" in line_of(text, "OK    devices")


def test_names_that_need_quotes_are_quoted_in_statements_and_fixes(stored: Settings) -> None:
    database = f"shop-{stored.table}"
    sql(stored, f"CREATE DATABASE `{database}`")
    column = "country-code"
    settings = replace(stored, table=f"{database}.orders-2026")
    events = [{**GOOD, column: "NL"}, GOOD]
    send(settings.bootstrap_servers, settings.topic, [json.dumps(event).encode() for event in events])
    assert line_of(run(settings)[1], f"OK    table: `{database}`.`orders-2026` does not exist")
    columns = f"timestamp DateTime64(3), device_ip String, error_code Int8, `{column}` String"
    sql(stored, f"CREATE TABLE `{database}`.`orders-2026` ({columns}) ENGINE = MergeTree ORDER BY device_ip")
    code, text = run(settings)
    assert code == ExitCode.OK, text
    sql(stored, line_of(text, f"WARN  sample: column {column}").partition("fix: ")[2].partition(", or")[0])
    assert line_of(run(settings)[1], "OK    sample: 2 of")
    with pytest.raises(Fatal, match="no column _partition and _offset"):
        verify(settings, limit=1, allow_merged=False, out=io.StringIO())
    line = line_of(run(replace(stored, table="no-where.events"))[1], "FAIL  table")
    assert line.endswith("no database no-where; fix: CREATE DATABASE `no-where`")


def test_the_sample_is_spread_over_partitions_and_time(stored: Settings) -> None:
    early, late = (json.dumps({**GOOD, "error_code": code}).encode() for code in (300, 3))
    for partition in (0, 1):
        send(stored.bootstrap_servers, stored.topic, [early] * 50 + [late] * 450, partition)
    text = run(stored, sample=60)[1]
    assert "column error_code Int8: 20 out_of_range of the 60 sampled events" in text
    assert line_of(text, "OK    sample: 40 of the 60 sampled events would be stored")
    assert line_of(run(stored)[1], "OK    sample: 900 of the 1000 sampled events would be stored")
    assert "sample" not in run(stored, sample=0)[1]
    options = ["--topic", stored.topic, "--bootstrap-servers", stored.bootstrap_servers, "--sample", "60"]
    options += ["--backend", "clickhouse", "--clickhouse-url", stored.clickhouse_url, "--metrics-port", "0"]
    with run_worker("check", *options, "--table", stored.table) as command:
        assert command.wait() == ExitCode.OK, command.tail()
    assert any("of the 60 sampled events" in line for line in command.stdout)


def test_the_type_of_a_key_column_is_not_altered(stored: Settings) -> None:
    key = "error_code Int8, device_ip String"
    sql(stored, f"CREATE TABLE {stored.table} ({key}) ENGINE = MergeTree ORDER BY error_code")
    events = [{**GOOD, "error_code": code} for code in (300, 3)]
    send(stored.bootstrap_servers, stored.topic, [json.dumps(event).encode() for event in events])
    fault = line_of(run(stored)[1], "WARN  sample: column error_code")
    assert "fix: another table, with Int64 for error_code, which is part of the key" in fault
    with pytest.raises(errors.ServerException):  # what was proposed before
        sql(stored, f"ALTER TABLE {stored.table} MODIFY COLUMN error_code Nullable(Int64)")


def test_columns_and_tables_that_cannot_be_used_fail_with_what_to_do(stored: Settings) -> None:
    sql(stored, f"CREATE TABLE {stored.table} (device_ip AggregateFunction(sum, Int8)) ENGINE = MergeTree ORDER BY ()")
    code, text = run(stored)
    assert code == ExitCode.FAILED
    found = line_of(text, "FAIL  table")
    assert "column device_ip: type AggregateFunction(sum, Int8) is not supported" in found
    assert "give it a DEFAULT, or another type" in found
    code, text = run(replace(stored, map={"devic_ip": "device.ip"}))
    assert code == ExitCode.FAILED
    assert "--map device.ip=devic_ip: there is no column devic_ip (did you mean" in line_of(text, "FAIL  table")
    code, text = run(replace(stored, table=f"{stored.table}_none", map={"ip": "device.ip"}))
    assert code == ExitCode.FAILED
    assert line_of(text, "FAIL  table").endswith(
        "use CREATE TABLE, as worker check --propose prints it (the worker creates one for device events)"
    )
    code, text = run(replace(stored, table="nowhere.events"))
    assert code == ExitCode.FAILED
    assert line_of(text, "FAIL  table").endswith("no database nowhere; fix: CREATE DATABASE nowhere")


def test_rights_that_are_missing_are_named(stored: Settings) -> None:
    grants = {"query": f"GRANT SELECT ON default.{stored.table}"}
    with start_clickhouse(users={"reader": {"password": CANARY, "grants": grants}}) as server:
        url = server.address.replace("default@", "reader@")
        sql(
            replace(stored, clickhouse_url=server.address),
            f"CREATE TABLE {stored.table} (device_ip String) ENGINE = MergeTree ORDER BY tuple()",
        )
        code, text = run(replace(stored, clickhouse_url=url, clickhouse_password=CANARY))
        assert code == ExitCode.FAILED
        fix = f"GRANT INSERT ON default.{stored.table} TO reader"
        assert (
            line_of(text, "FAIL  rights") == f"FAIL  rights: reader lacks INSERT on default.{stored.table}; fix: {fix}"
        )
        evolving = replace(stored, clickhouse_url=url, clickhouse_password=CANARY, evolve=1)
        fix = f"GRANT INSERT, ALTER ADD COLUMN ON default.{stored.table} TO reader"
        assert line_of(run(evolving)[1], "FAIL  rights").endswith(f"; fix: {fix}")
        code, text = run(replace(stored, clickhouse_url=url, clickhouse_password=f"not-{CANARY}"))
        assert code == ExitCode.FAILED
        assert "WORKER_CLICKHOUSE_PASSWORD" in line_of(text, "FAIL  ClickHouse")
        assert CANARY not in text


def test_servers_that_do_not_answer_are_reported_within_seconds_and_no_secret_is_shown(counted: Settings) -> None:
    with socket.socket() as silent:  # accepts connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        options = ["--topic", counted.topic, "--bootstrap-servers", f"127.0.0.1:{port}", "--metrics-port", "0"]
        secrets = {
            "WORKER_REDIS_URL": f"redis://me:{CANARY}@127.0.0.1:{port}/0",
            "WORKER_CLICKHOUSE_URL": f"clickhouse://me:{CANARY}@127.0.0.1:{port}/default",
            "WORKER_KAFKA_PASSWORD": CANARY,
        }
        for backend, name in (("redis", "Redis"), ("clickhouse", "ClickHouse")):
            started = time.monotonic()
            with run_worker("check", *options, "--backend", backend, env=secrets) as command:
                assert command.wait() == ExitCode.FAILED
            text = "\n".join(command.stdout)
            assert time.monotonic() - started < 60
            assert line_of(text, "FAIL  Kafka: ").startswith(f"FAIL  Kafka: 127.0.0.1:{port} does not answer")
            assert line_of(text, f"FAIL  {name}: ").startswith(
                f"FAIL  {name}: {name} at 127.0.0.1:{port} does not answer"
            )
            assert CANARY not in command.tail()


def test_redis_that_may_lose_or_refuse_the_key_is_reported(counted: Settings) -> None:
    with start_redis(requirepass=CANARY, maxmemory="64mb", maxmemory_policy="allkeys-lru", appendonly="no") as server:
        settings = replace(counted, redis_url=f"redis://127.0.0.1:{server.port}/0")
        code, text = run(settings)
        assert code == ExitCode.FAILED
        assert "WORKER_REDIS_PASSWORD" in line_of(text, "FAIL  Redis")
        settings = replace(settings, redis_password=CANARY)
        code, text = run(settings)
        assert code == ExitCode.OK
        assert "allkeys-lru may evict the key" in line_of(text, "WARN  eviction")
        assert "loses devices" in line_of(text, "WARN  persistence")
        assert CANARY not in text
        with closing(redis.Redis(port=server.port, password=CANARY)) as client:
            for fix in ("eviction", "persistence"):
                words = line_of(text, f"WARN  {fix}").partition("fix: ")[2].split(" (")[0].split()
                client.execute_command(*words)
            assert run(settings)[1].count("WARN") == 0
            assert client.keys() == []
            client.config_set("maxmemory", "100kb")
            code, text = run(settings)
            assert code == ExitCode.FAILED
            assert line_of(text, "FAIL  memory")
            client.config_set("maxmemory", "0")
            client.replicaof("127.0.0.1", "1")
            code, text = run(settings)
            assert code == ExitCode.FAILED
            assert "refuses writes" in line_of(text, "FAIL  role")
            client.replicaof("NO", "ONE")
            client.acl_setuser(
                "reader", enabled=True, passwords=[f"+{CANARY}"], keys="*", commands=["+pfcount", "+info", "+multi"]
            )
        code, text = run(replace(settings, redis_url=f"redis://reader@127.0.0.1:{server.port}/0"))
        assert code == ExitCode.FAILED
        assert "may not PFADD" in line_of(text, "FAIL  rights")


@pytest.mark.parametrize("windows", [{}, {"windows": "hour,day"}, {"by": "error_code,b"}])
def test_a_user_with_exactly_the_documented_rights_passes_and_can_run(
    counted: Settings, windows: dict[str, str], own_redis: Server
) -> None:
    send(counted.bootstrap_servers, counted.topic, [json.dumps({**GOOD, "timestamp": int(time.time())}).encode()])
    rights = ["+pfadd", "+pfcount", *(["+sadd", "+smembers"] if windows else [])]
    rights += ["+expireat"] if "windows" in windows else []
    url = f"redis://ingest@127.0.0.1:{own_redis.port}/0"
    settings = replace(
        counted,
        redis_url=url,
        redis_password=CANARY,
        windows=windows.get("windows", ""),
        by=windows.get("by", ""),
    )
    options = [f"--{name}={value}" for name, value in windows.items()]
    options += ["--topic", counted.topic, "--bootstrap-servers", counted.bootstrap_servers, "--redis-url", url]
    with closing(redis.Redis(port=own_redis.port)) as client:
        pattern = f"devices:{{{counted.topic}}}*"
        client.execute_command("ACL", "SETUSER", "ingest", "on", f">{CANARY}", f"~{pattern}", *rights)
        code, text = run(settings)
        assert code == ExitCode.OK, text
        assert "PFADD" in line_of(text, "OK    rights: this user may").partition("; ")[2]  # not tried: no key yet
        assert client.keys() == []
        run_options = ["--until-end", "--metrics-port", "0", "--group-id", counted.group_id]
        with run_worker(*options, *run_options, env={"WORKER_REDIS_PASSWORD": CANARY}) as worker:
            assert worker.wait() == ExitCode.OK, worker.tail()
        before = {key: client.type(key) for key in client.scan_iter()}
        code, text = run(settings)
        assert code == ExitCode.OK, text
        assert "may PFADD, PFCOUNT" in line_of(text, "OK    rights: this user may")
        assert {key: client.type(key) for key in client.scan_iter()} == before
        for right in rights:
            client.execute_command("ACL", "SETUSER", "ingest", f"-{right[1:]}")
            code, text = run(settings)
            if right != "+sadd":  # it can only be tried in a transaction
                assert code == ExitCode.FAILED, text
                assert f"may not {right[1:].upper()} " in line_of(text, "FAIL  rights")
            client.execute_command("ACL", "SETUSER", "ingest", "+multi")
            code, text = run(settings)
            assert code == ExitCode.FAILED, text
            fix = line_of(text, "FAIL  rights").partition("fix: ACL SETUSER … ")[2].partition(" (")[0].split()
            client.execute_command("ACL", "SETUSER", "ingest", *fix)
            assert line_of(run(settings)[1], "OK    rights: writes to")
            client.execute_command("ACL", "SETUSER", "ingest", "-multi")


def test_a_field_of_by_that_no_event_has_is_a_warning(counted: Settings) -> None:
    send(counted.bootstrap_servers, counted.topic, [json.dumps(GOOD).encode()] * 3)
    code, text = run(replace(counted, by="eror_code"))
    assert code == ExitCode.OK
    assert "eror_code: in none of the 3 sampled events, so all count under (none)" in line_of(text, "WARN  sample")
    assert "sample" not in "".join(re.findall("^WARN.*", run(replace(counted, by="error_code"))[1], re.MULTILINE))


def test_a_user_that_may_not_select_the_database_is_reported(counted: Settings, own_redis: Server) -> None:
    with closing(redis.Redis(port=own_redis.port)) as client:
        client.execute_command("ACL", "SETUSER", "ingest", "on", f">{CANARY}", "~*", "+pfadd", "+pfcount")
        url = f"redis://ingest@127.0.0.1:{own_redis.port}/1"
        settings = replace(counted, redis_url=url, redis_password=CANARY)
        code, text = run(settings)
        assert code == ExitCode.FAILED
        fix = line_of(text, "FAIL  rights").partition("fix: ACL SETUSER … ")[2].split(",")[0]
        client.execute_command("ACL", "SETUSER", "ingest", fix)
        assert run(settings)[0] == ExitCode.OK


def test_a_key_of_another_type_is_refused(counted: Settings) -> None:
    with closing(redis.Redis.from_url(counted.redis_url)) as client:
        client.set(counted.redis_key_name, "text")
        code, text = run(counted)
        assert code == ExitCode.FAILED
        assert "is not a HyperLogLog" in line_of(text, "FAIL  key")


def test_idle_processes_a_port_in_use_and_small_batches_are_reported(stored: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = run(replace(stored, processes=5, metrics_port=port, batch_rows=10, linger_ms=10))
    assert code == ExitCode.FAILED
    assert "3 of 5 processes are idle; fix: --processes auto" in line_of(text, "WARN  partitions")
    assert f"127.0.0.1:{port} cannot be served" in line_of(text, "FAIL  metrics")
    assert "--batch-rows 100000" in line_of(text, "WARN  options: --batch-rows 10 ")
    assert "--linger-ms 1000" in line_of(text, "WARN  options: --linger-ms 10 lets 2 partitions insert 200 times")


def test_inserts_are_counted_per_partition_of_all_topics(stored: Settings) -> None:
    for name, partitions in (("-a", 12), ("-b", 18)):
        create_topic(stored.bootstrap_servers, f"{stored.topic}{name}", partitions)
    settings = replace(stored, topic=f"{stored.topic}-a,{stored.topic}-b", processes=1)
    line = line_of(run(settings)[1], "WARN  options")
    assert "--linger-ms 1000 lets 30 partitions insert 30 times a second into ClickHouse; fix: --linger-ms 1500" in line
    assert "options" not in run(replace(settings, linger_ms=1500))[1]


def test_a_dead_letter_topic_with_a_lower_size_limit_than_the_topic_would_block(counted: Settings) -> None:
    large = f"{counted.topic}-large"
    create_topic(counted.bootstrap_servers, large, 1, {"max.message.bytes": "5000000"})
    own = replace(counted, topic=large)
    code, text = run(own)
    assert code == ExitCode.OK, text
    assert "it is created for the first dead letter" in text  # as large as the topic's events
    create_topic(counted.bootstrap_servers, own.dead_letter_topic_name)
    code, text = run(own)
    assert code == ExitCode.FAILED
    assert line_of(text, "FAIL  dead letters").endswith("--add-config max.message.bytes=5000000")


def test_a_dead_letter_topic_that_refuses_or_loses_dead_letters_is_fixed_by_the_commands_that_are_shown(
    counted: Settings,
) -> None:
    dead_letters = counted.dead_letter_topic_name
    unfit = {"min.insync.replicas": "2", "retention.ms": "3600000"}
    create_topic(counted.bootstrap_servers, dead_letters, 1, unfit)
    code, text = run(counted)
    assert code == ExitCode.FAILED
    assert f"{dead_letters} needs 2 in-sync replicas and has 1: a dead letter would block" in text
    assert f"{dead_letters} removes dead letters after 1.0 h" in line_of(text, "WARN  dead letters")
    apply_fixes(counted, text)
    assert line_of(run(counted)[1], "OK    dead letters").endswith(" exists")


def test_no_topic_that_is_compacted_is_to_lose_its_policy(counted: Settings) -> None:
    compacted = replace(counted, topic=f"{counted.topic}-compacted")
    for topic in (compacted.topic, compacted.dead_letter_topic_name):
        create_topic(counted.bootstrap_servers, topic, 1, {"cleanup.policy": "compact"})
    code, text = run(compacted)
    assert code == ExitCode.FAILED
    assert line_of(text, "FAIL  dead letters").endswith("; fix: another --dead-letter-topic")
    assert "min.compaction.lag.ms=86400000" in line_of(text, "WARN  compaction")
    assert "cleanup.policy" not in text
    apply_fixes(compacted, text)  # the command is valid
    code, text = run(replace(compacted, dead_letter_topic=f"{compacted.topic}.invalid"))
    assert code == ExitCode.OK, text


def test_a_broker_that_advertises_an_unreachable_address_is_named(counted: Settings) -> None:
    with start_kafka({"advertised.listeners": "BROKER://127.0.0.1:1"}) as broker:
        code, text = run(replace(counted, bootstrap_servers=broker.address))
    assert code == ExitCode.FAILED
    line = line_of(text, "FAIL  Kafka")
    assert "broker 1 advertises 127.0.0.1:1, which this host cannot reach: Connection refused" in line
    assert "fix: set advertised.listeners of broker 1" in line


def test_an_http_server_at_the_bootstrap_port_is_named(counted: Settings) -> None:
    server = Served(b"")
    try:
        code, text = run(replace(counted, bootstrap_servers=f"127.0.0.1:1,{server.address}"))
    finally:
        server.stop()
    assert code == ExitCode.FAILED
    assert f"{server.address} is an HTTP server, not a Kafka broker" in line_of(text, "FAIL  Kafka")


def apply_fixes(settings: Settings, text: str) -> None:
    """Apply the `kafka-configs.sh --alter --add-config` commands of the findings."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for topic, name, value in re.findall(r"--entity-name (\S+) --add-config ([\w.]+)=(\S+)", text):
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        (done,) = admin.incremental_alter_configs([resource]).values()
        done.result(PATIENCE_S)


@pytest.mark.parametrize(("ahead", "difference"), [(60, "60 s ahead of"), (-60, "60 s behind")])
def test_a_clock_that_differs_is_reported(
    stored: Settings, monkeypatch: pytest.MonkeyPatch, ahead: float, difference: str
) -> None:
    assert line_of(run(stored)[1], "OK    clock")
    true_time = time.time
    monkeypatch.setattr("worker.commands.check.clickhouse.time.time", lambda: true_time() + ahead)
    code, text = run(stored)
    assert code == ExitCode.OK
    assert f"this host's clock is {difference} the server's" in line_of(text, "WARN  clock")


def test_members_that_the_worker_cannot_join_are_named(counted: Settings) -> None:
    member = Consumer(
        {
            "bootstrap.servers": counted.bootstrap_servers,
            "group.id": counted.group_id,
            "client.id": "somebody",
            "partition.assignment.strategy": "roundrobin",
        }
    )
    with closing(member):
        member.subscribe([counted.topic])
        wait_until(lambda: member.poll(0.1) or member.assignment(), PATIENCE_S)
        code, text = run(counted)
        assert code == ExitCode.FAILED
        assert "(somebody) use the assignor roundrobin" in line_of(text, "FAIL  group")
        code, text = run(replace(counted, kafka={"group.protocol": "consumer"}))
        assert "use the other group protocol" in line_of(text, "FAIL  group")


def test_events_that_retention_removed_unread_or_soon_removes_are_reported(counted: Settings) -> None:
    offset = TopicPartition(counted.topic, 0, 2)
    with closing(Consumer({"bootstrap.servers": counted.bootstrap_servers, "group.id": counted.group_id})) as group:
        wait_until(lambda: group.commit(offsets=[offset], asynchronous=False), PATIENCE_S)
    send(counted.bootstrap_servers, counted.topic, [json.dumps(GOOD).encode()] * 9, partition=0)
    assert "7 events unread, the first is removed in 16" in line_of(run(counted)[1], "OK    retention")
    admin = AdminClient({"bootstrap.servers": counted.bootstrap_servers})
    (removed,) = admin.delete_records([TopicPartition(counted.topic, 0, 5)]).values()
    removed.result(PATIENCE_S)
    code, text = run(counted)
    assert code == ExitCode.FAILED
    assert "retention removed 2-4 of partition 0 unread" in line_of(text, "FAIL  retention")


def test_a_backlog_that_retention_is_about_to_cut_is_a_warning(counted: Settings) -> None:
    short = replace(counted, topic=f"{counted.topic}-short")
    create_topic(counted.bootstrap_servers, short.topic, 1, {"retention.ms": "1800000"})
    send(counted.bootstrap_servers, short.topic, [json.dumps(GOOD).encode()])
    assert "1 events unread, the first is removed in 0.5 h" in line_of(run(short)[1], "WARN  retention")


def test_columns_of_the_message_and_a_count_that_reads_the_table_are_shown(stored: Settings) -> None:
    columns = "device_ip String, status UInt16, _key String, _headers Map(String, String)"
    origin = "_topic LowCardinality(String), _partition Int32, _offset Int64"
    sql(stored, f"CREATE TABLE {stored.table} ({columns}, {origin}) ENGINE = MergeTree ORDER BY device_ip")
    send(stored.bootstrap_servers, stored.topic, [b'{"device_ip": "10.0.0.1", "status": "200"}'])
    code, text = run(stored)
    assert code == ExitCode.FAILED
    filled = (
        "columns filled: device_ip String, status UInt16, _key String from the message, _headers Map(String, String) "
    )
    assert f"{filled}from the message" in line_of(text, "OK    table")
    assert line_of(text, "WARN  sample").endswith("fix: --types status=lenient")
    finding = line_of(text, "OK    devices")
    assert "counted in column device_ip; each report reads all of it, unless you ALTER TABLE" in finding
    code, text = run(replace(stored, types={"status": "lenient"}))
    assert code == ExitCode.OK
    assert "1 of the 1 sampled events would be stored" in text
    for statement in finding.partition("unless you ")[2].split("; "):
        sql(stored, statement)
    assert line_of(run(replace(stored, types={"status": "lenient"}))[1], "OK    devices").endswith("column device_ip")
