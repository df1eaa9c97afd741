"""`check --propose`: the statement runs as it is, and the worker then stores every event of the topic."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from io import BytesIO
from typing import Any

import fastavro
import hypothesis
import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.support.framed import register
from tests.support.kit import PATIENCE_S, Service, create_topic, run_sql, run_worker, send
from tests.support.rows import write
from tests.support.sampled_events import alike, keys, values
from worker.commands.check import check
from worker.commands.check.propose import Proposal, print_proposals, propose_table
from worker.commands.verify import verify
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.decoding.framing import frame
from worker.local import Server
from worker.sinks.clickhouse.inference import KnownTypes

CANARY = "s3cret-canary"


@pytest.fixture
def settings(kafka: Service, clickhouse: Service, topic_name: str, group_id: str, table_name: str) -> Settings:
    """A topic of two partitions, into a table that does not exist."""
    create_topic(kafka.address, topic_name, 2)
    return Settings(
        topic=topic_name,
        group_id=group_id,
        bootstrap_servers=kafka.address,
        backend="clickhouse",
        clickhouse_url=clickhouse.address,
        table=table_name,
        metrics_port=0,
        report_interval=3600,
    )


def wide(i: int) -> dict[str, Any]:
    """Return an event with every kind of field, also such that have no column."""
    event = {
        "id": f"c386bbc4-cd61-4e30-98f1-{i:012x}",
        "type": ["push", "issue", "star"][i % 3],
        "created_at": f"2026-11-24T08:{i % 60:02}:00.{i % 1000:03}Z",
        "ts_us": 1_700_000_000_000_000 + i,
        "device_ip": f"10.0.{i % 256}.{i // 256}",
        "request": {
            "status": 200 + i % 5,
            "path": f"/p/{CANARY}/{i}",
            "headers": {"host": "example.org", "accept": None if i % 3 else "*/*"},
            "tags": ["a"],
        },
        "size": i / 7,
        "big": 2**63 + i,
        "topics": ["x", "y"][: i % 3],
        "scores": {f"u{i}-{j}": j for j in range(5)},
        "deep": {"a": {"b": {"c": {"d": 1}}}},
        "labels": [{"name": "bug"}],
        "mixed": i if i % 2 else str(i),
        "note": None,
        "_offset": 5,
        "a.b": 1,
        "new\nline": 1,
        **dict.fromkeys(("select", "index", "{x}", "{table}", "it's", "`b`", "\\", "%s", "--", "Type", "é ü"), 1),
    }
    return event if i % 10 else {name: value for name, value in event.items() if name != "size"}


def propose(settings: Settings, sample: int = 1000) -> tuple[int, str, str]:
    """Return the exit code, the statements and the notes."""
    out, notes = io.StringIO(), io.StringIO()
    code = print_proposals(settings, sample=sample, out=out, notes=notes)
    assert CANARY not in out.getvalue() + notes.getvalue()
    return code, out.getvalue(), notes.getvalue()


def run_statements(settings: Settings, text: str) -> None:
    for statement in filter(str.strip, text.split(";\n")):
        run_sql(settings.clickhouse_url, statement)


def ingest(settings: Settings, *options: str) -> None:
    """Run the worker to the end of the topic; all events must be stored once, without a dead letter."""
    base = [
        *("--topic", settings.topic, "--bootstrap-servers", settings.bootstrap_servers, "--backend", "clickhouse"),
        *("--clickhouse-url", settings.clickhouse_url, "--group-id", settings.group_id, "--table", settings.table),
        *("--metrics-port", "0", *options),
    ]
    with run_worker(*base, "--until-end") as worker:
        assert worker.wait() == ExitCode.OK, worker.tail()
        assert "0 dead letters" in worker.wait_for("all events that were in the topic").string
    with run_worker("verify", *base) as command:
        assert command.wait() == ExitCode.OK, command.tail()


def types_of(settings: Settings) -> dict[str, str]:
    return {name: kind for name, kind, *_ in run_sql(settings.clickhouse_url, f"DESCRIBE TABLE {settings.table}")}


def send_events(settings: Settings, events: Sequence[dict[str, Any]]) -> None:
    send(settings.bootstrap_servers, settings.topic, [json.dumps(event).encode() for event in events])


def test_wide_nested_events_are_all_stored_in_the_proposed_table(settings: Settings) -> None:
    send_events(settings, list(map(wide, range(2000))))
    code, statement, notes = propose(settings)
    assert code == ExitCode.OK
    run_statements(settings, statement)
    ingest(settings)
    types = types_of(settings)
    expected = {
        "id": "UUID",
        "type": "LowCardinality(String)",
        "created_at": "DateTime64(3, 'UTC')",
        "ts_us": "DateTime64(6, 'UTC')",
        "device_ip": "IPv4",
        "request.status": "Int64",
        "request.path": "String",
        "request.headers.accept": "LowCardinality(Nullable(String))",
        "size": "Nullable(Float64)",
        "big": "UInt64",
        "topics": "Array(String)",
        "scores": "Map(String, Int64)",
        "it's": "Int64",
        "_topic": "LowCardinality(String)",
        "_partition": "Int32",
        "_offset": "Int64",
    }
    assert expected.items() <= types.items()
    for path in ("request.tags", r"a\.b", "labels", "_offset", "mixed", "note", r"new\nline", "deep.a.b.c"):
        assert f"    -- {path}: " in statement
        assert path in notes
    assert "ORDER BY (`type`, `device_ip`, `created_at`)" in statement
    ((order,),) = run_sql(
        settings.clickhouse_url, f"SELECT sorting_key FROM system.tables WHERE name = '{settings.table}'"
    )
    assert order == "type, device_ip, created_at"
    count = f"SELECT count(), uniqExact(`request.path`), sum(`{{x}}`) FROM {settings.table}"
    assert run_sql(settings.clickhouse_url, count) == [(2000, 2000, 2000)]


def test_create_makes_the_table_and_all_sampled_events_would_be_stored(settings: Settings) -> None:
    """The options that the comments name are respected."""
    send_events(settings, list(map(wide, range(300))))
    mapped = {
        "a_b": r"a\.b",
        "tags": "request.tags",
        "names": "labels[].name",
        "deep": "deep",
        "event_offset": "_offset",
    }
    chosen = replace(settings, map=mapped, types={"mixed": "lenient"}, device_field="id", report="approximate")
    out, statements = io.StringIO(), io.StringIO()
    assert check(chosen, create=True, partitions=1, sample=1000, out=out, proposed=statements) == ExitCode.OK
    assert "OK    proposal: " + settings.table + " was created as proposed" in out.getvalue()
    assert "OK    sample: 300 of the 300 sampled events would be stored" in out.getvalue()
    types = types_of(settings)
    expected = {
        **{"a_b": "Int64", "tags": "Array(String)", "names": "Array(String)", "deep": "JSON", "event_offset": "Int64"},
        "mixed": "String",
    }
    assert expected.items() <= types.items()
    assert "uniqCombined64(`id`)" in statements.getvalue()
    again, nothing = io.StringIO(), io.StringIO()
    assert check(chosen, create=True, partitions=1, sample=1000, out=again, proposed=nothing) == ExitCode.OK
    assert f"OK    proposal: {settings.table} exists, and stays as it is" in again.getvalue()
    assert nothing.getvalue() == ""
    ingest(
        settings,
        *(argument for column, field in mapped.items() for argument in ("--map", f"{field}={column}")),
        *("--types", "mixed=lenient"),
    )


AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "discount", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 4}]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "comment", "type": ["null", "string"]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["NEW", "OLD"]}},
        {
            "name": "customer",
            "type": ["null", {"type": "record", "name": "Customer", "fields": [{"name": "number", "type": "long"}]}],
        },
        {"name": "payload", "type": "bytes"},
    ],
}


def order(i: int, schema_id: int) -> bytes:
    stream = BytesIO()
    value = {
        "id": f"c386bbc4-cd61-4e30-98f1-{i:012x}",
        "price": Decimal(i).scaleb(-2),
        "discount": Decimal("0.0125"),
        "at": 1_700_000_000_000_000 + i * 1000 + (i >= 1000),  # the first thousand are whole milliseconds
        "day": 19_000 + i % 7,
        "comment": "none" if i < 1000 else None,
        "kind": "NEW",
        "customer": {"number": i} if i < 1000 else None,
        "payload": b"\xff" + CANARY.encode(),
    }
    fastavro.schemaless_writer(stream, fastavro.parse_schema(AVRO), value)
    return frame(schema_id, stream.getvalue())


def test_avro_types_come_from_the_schema_where_the_events_do_not_show_them(
    settings: Settings, schema_registry: Server
) -> None:
    """What comes after the sample is null where it never was, and has more digits than any of it."""
    avro = replace(settings, format="avro", schema_registry_url=schema_registry.address)
    (schema_id,) = register(schema_registry.address, settings.topic, [AVRO])
    send(settings.bootstrap_servers, settings.topic, [order(i, schema_id) for i in range(1000)])
    code, statement, notes = propose(avro)
    assert code == ExitCode.OK, notes
    run_statements(settings, statement)
    send(settings.bootstrap_servers, settings.topic, [order(i, schema_id) for i in range(1000, 1100)])
    ingest(settings, "--format", "avro", "--schema-registry-url", schema_registry.address)
    types = types_of(settings)
    assert types == {
        "id": "UUID",
        "price": "Decimal(12, 2)",
        "discount": "Nullable(Decimal(5, 4))",
        "at": "DateTime64(6, 'UTC')",
        "day": "Date32",
        "comment": "LowCardinality(Nullable(String))",
        "kind": "LowCardinality(String)",
        "customer.number": "Nullable(Int64)",
        "payload": "LowCardinality(String)",
        **{"_topic": "LowCardinality(String)", "_partition": "Int32", "_offset": "Int64"},
    }
    totals = (
        f"SELECT sum(price), sum(toUnixTimestamp64Micro(at) % 1000), countIf(comment IS NULL) FROM {settings.table}"
    )
    assert run_sql(settings.clickhouse_url, totals) == [(Decimal(sum(range(1100))).scaleb(-2), 100, 100)]


def test_the_server_takes_the_table_of_any_events_and_all_of_them(clickhouse: Service, table_name: str) -> None:
    settings = Settings(topic="t", backend="clickhouse", clickhouse_url=clickhouse.address, table=table_name)

    @hypothesis.settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.dictionaries(st.text(max_size=4) | keys, values, max_size=5), min_size=1, max_size=6) | alike)
    def run(events: list[dict[str, Any]]) -> None:
        payloads = [json.dumps(event).encode() for event in events]
        template, findings = propose_table(settings, "t", payloads, KnownTypes(), ["_key", "_timestamp", "_headers"])
        if template:
            run_sql(settings.clickhouse_url, f"DROP TABLE IF EXISTS {table_name}")
            run_statements(settings, Proposal(settings, template, findings).statement)
            assert write(settings, payloads) == []
            assert run_sql(settings.clickhouse_url, f"SELECT count() FROM {table_name}") == [(len(events),)]

    run()


@pytest.mark.parametrize(
    ("payloads", "reason"),
    [
        ([], "there are no events; fix: send some"),
        ([b"nope", b"[1]", b"\xff"], "none of the 3 sampled events"),
        ([b'{"a": null}', b'{"a": [], "b": []}'], "a: an array in 1 of 1 values"),
    ],
)
def test_what_has_no_columns_has_no_table(settings: Settings, payloads: list[bytes], reason: str) -> None:
    send(settings.bootstrap_servers, settings.topic, payloads)
    code, statement, notes = propose(settings)
    assert (code, statement) == (ExitCode.FAILED, "")
    assert reason in notes
    out, nothing = io.StringIO(), io.StringIO()
    assert check(settings, create=True, partitions=1, sample=1000, out=out, proposed=nothing) == ExitCode.FAILED
    assert reason in out.getvalue()
    assert run_sql(settings.clickhouse_url, f"EXISTS TABLE {settings.table}") == [(0,)]


def test_a_missing_topic_is_an_error(settings: Settings) -> None:
    with pytest.raises(Fatal, match="does not exist"):
        propose(replace(settings, topic="not_there"))


def test_several_topics_share_a_table_or_have_one_each(settings: Settings) -> None:
    other = f"{settings.topic}_b"
    create_topic(settings.bootstrap_servers, other, 1)
    send_events(settings, [{"a": 1, "b": "x"}])
    send_events(replace(settings, topic=other), [{"a": 2.5, "c": True}])
    both = replace(settings, topic=f"{settings.topic},{other}")
    code, statement, _ = propose(both)
    assert code == ExitCode.OK
    for line in ("`a` Float64,", "`b` Nullable(String),", "`c` Nullable(Bool),"):
        assert f"    {line}\n" in statement
    code, statements, _ = propose(replace(both, table="{topic}"))
    assert code == ExitCode.OK
    assert statements.count("CREATE TABLE ") == 2
    run_statements(settings, statements)
    assert types_of(replace(settings, table=other))["c"] == "Bool"


def test_key_and_headers_are_offered_where_messages_have_them(settings: Settings) -> None:
    send_events(settings, [{"a": 1}])
    assert "-- _key" not in propose(settings)[1]
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    producer.produce(settings.topic, b'{"a": 1}', key=b"k", headers={"h": b"v"})
    assert producer.flush(PATIENCE_S) == 0
    statement = propose(settings)[1]
    for name in ("_key", "_timestamp", "_headers"):
        assert f"    -- {name} " in statement
    run_statements(settings, statement.replace("-- _", "_"))
    ingest(settings)
    query = f"SELECT _headers['h'] FROM {settings.table} WHERE _key = 'k' AND _timestamp > '2020-01-01'"
    assert run_sql(settings.clickhouse_url, query) == [("v",)]


def test_thousands_of_field_names_are_bounded(settings: Settings) -> None:
    send_events(settings, [{"always": 1, **{f"field_{i}_{j}": j for j in range(100)}} for i in range(50)])
    code, statement, notes = propose(settings)
    assert code == ExitCode.OK
    assert statement.count("Int64") == 501  # with _offset
    assert "`always` " in statement
    assert statement.count("\n") < 700
    assert len(notes) < 2000
    run_statements(settings, statement)
    ingest(settings)


def test_a_column_that_an_option_names_and_the_sample_lacks_is_an_error(settings: Settings) -> None:
    send_events(settings, [{"a": 1}])
    code, statement, notes = propose(replace(settings, map={"b": "c.d"}))
    assert (code, statement) == (ExitCode.FAILED, "")
    assert "--map c.d=b: there is no column b" in notes
    assert "b: only null" in notes
    code, statement, notes = propose(replace(settings, device_field="sensor"))
    assert code == ExitCode.OK
    assert "no column of " in notes
    assert "PROJECTION" not in statement
    run_statements(settings, statement)
    out = io.StringIO()
    assert check(settings, create=False, partitions=1, sample=1000, out=out) == ExitCode.OK
    assert "OK    devices: devices are not counted" in out.getvalue()


@pytest.mark.parametrize("options", [["--backend", "redis"], ["--backend", "clickhouse", "--sample", "0"]])
def test_without_tables_or_a_sample_nothing_can_be_proposed(options: list[str]) -> None:
    with run_worker("check", "--propose", "--topic", "t", *options) as command:
        assert command.wait() == ExitCode.USAGE
        assert "--propose: it needs --backend clickhouse" in command.tail()


def test_stdout_has_the_statement_only(settings: Settings) -> None:
    send_events(settings, [{"a": 1}, {"a": None, "b": []}])
    options = ("--topic", settings.topic, "--bootstrap-servers", settings.bootstrap_servers, "--backend", "clickhouse")
    with run_worker("check", "--propose", *options, "--table", settings.table) as command:  # no ClickHouse is asked
        assert command.wait() == ExitCode.OK
        assert command.stdout[0] == f"CREATE TABLE {settings.table}"
        assert command.stdout[-1].endswith(";")
        assert all(line.startswith(("OK    ", "WARN  ")) for line in command.stderr)
        run_statements(settings, "\n".join(command.stdout))


def test_the_table_can_be_verified_by_the_default_events_too(settings: Settings) -> None:
    """All forms of a timestamp in one field: a table that the worker takes for one of device events."""
    with run_worker(
        *("produce", "--topic", settings.topic, "--bootstrap-servers", settings.bootstrap_servers),
        *("--num-messages", "2000", "--num-devices", "50"),
    ) as command:
        assert command.wait() == ExitCode.OK, command.tail()
    code, statement, _ = propose(settings)
    assert code == ExitCode.OK
    assert "`timestamp`  DateTime64(" in statement
    run_statements(settings, statement)
    ingest(settings)
    assert verify(settings, limit=5, allow_merged=False, out=io.StringIO()) == ExitCode.OK
