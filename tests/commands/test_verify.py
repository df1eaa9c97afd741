"""`verify` against real servers: it reports exactly the missing, doubled and extra events, and no others."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kit import (
    PATIENCE_S,
    Service,
    clickhouse_client,
    create_topic,
    run_sql,
    run_worker,
    send,
    wait_until,
)
from tests.support.terminal import Terminal
from worker.commands import progress
from worker.commands.verify import clickhouse as verify_clickhouse
from worker.commands.verify import verify
from worker.commands.verify.comparison import Account, Ranges
from worker.commands.verify.rows import reason_for_absence
from worker.config.settings import Settings
from worker.core.batch import DeadLetter
from worker.core.delivery import Intent, plain
from worker.core.errors import ExitCode, Fatal
from worker.kafka.dead_letters import DeadLetterProducer
from worker.sinks.clickhouse.deduplication import merging
from worker.sinks.clickhouse.sink import ClickHouseSink

ORIGIN = ("_topic", "_partition", "_offset")


class Result(NamedTuple):
    code: int
    lines: list[str]

    @property
    def first(self) -> str:
        return self.lines[0].partition(": ")[2]


def event(device: int) -> bytes:
    return json.dumps({"timestamp": 1700000000, "device_ip": f"10.0.0.{device}", "error_code": 1}).encode()


def run(settings: Settings, limit: int = 20, *, allow_merged: bool = False) -> Result:
    out = io.StringIO()
    code = verify(settings, limit=limit, allow_merged=allow_merged, out=out)
    return Result(code, out.getvalue().splitlines())


def commit(settings: Settings, offset: int, metadata: str = "") -> None:
    """Commit for the group, as a stopped worker did."""
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": settings.group_id})
    offsets = [TopicPartition(settings.topic, 0, offset, metadata)]
    wait_until(lambda: consumer.commit(offsets=offsets, asynchronous=False), PATIENCE_S)
    consumer.close()


def insert(settings: Settings, offsets: Iterable[int]) -> None:
    """Write rows of these offsets; the table is the worker's own."""
    with closing(ClickHouseSink(settings)) as sink:
        sink.open()
    client = clickhouse_client(settings.clickhouse_url)
    rows = [(0, "10.0.0.1", 1, settings.topic, 0, offset) for offset in offsets]
    client.execute(
        f"INSERT INTO {settings.table} (timestamp, device_ip, error_code, _topic, _partition, _offset) VALUES", rows
    )
    client.disconnect()


@pytest.fixture
def stored(kafka: Service, clickhouse: Service, topic_name: str, group_id: str, table_name: str) -> Settings:
    """A topic of one partition without messages, and no table yet."""
    create_topic(kafka.address, topic_name)
    return Settings(
        topic=topic_name,
        group_id=group_id,
        backend="clickhouse",
        bootstrap_servers=kafka.address,
        clickhouse_url=clickhouse.address,
        table=table_name,
    )


@pytest.fixture
def counted(kafka: Service, redis_server: Service, topic_name: str, group_id: str) -> Settings:
    """A topic of one partition without messages, and no key yet."""
    create_topic(kafka.address, topic_name)
    return Settings(
        topic=topic_name, group_id=group_id, bootstrap_servers=kafka.address, redis_url=redis_server.address
    )


def test_the_table_of_a_worker_is_complete_until_rows_are_deleted_and_written_twice(stored: Settings) -> None:
    payloads: list[bytes | None] = [event(n % 200) for n in range(500)]
    payloads[7], payloads[9], payloads[400] = None, b"bad", b'{"error_code": 3}'
    send(stored.bootstrap_servers, stored.topic, payloads)
    options = ["--topic", stored.topic, "--bootstrap-servers", stored.bootstrap_servers, "--group-id", stored.group_id]
    options += ["--backend", "clickhouse", "--clickhouse-url", stored.clickhouse_url, "--table", stored.table]
    with run_worker(*options, "--until-end", "--metrics-port", "0") as worker:
        assert worker.wait() == ExitCode.OK, worker.tail()
    with run_worker("verify", *options) as command:
        assert command.wait() == ExitCode.OK, command.tail()
    numbers = "500 events, 497 rows, 2 dead letters, 1 skipped, missing 0, doubled 0, extra 0"
    assert command.stdout == [f"{stored.topic}[0]: {numbers}", f"total: {numbers}"]

    client = clickhouse_client(stored.clickhouse_url)
    lost = "_offset BETWEEN 100 AND 109 OR _offset = 300"
    client.execute(f"ALTER TABLE {stored.table} DELETE WHERE {lost} SETTINGS mutations_sync = 1")
    client.execute(f"INSERT INTO {stored.table} SELECT * FROM {stored.table} WHERE _offset IN (20, 21, 22, 450)")
    client.disconnect()
    with run_worker("verify", *options) as command:
        assert command.wait() == ExitCode.FAILED
    assert command.stdout[0].endswith("missing 11, doubled 4, extra 0")
    assert command.stdout[1:3] == [
        f"{stored.topic}[0]: missing 100-109, 300",
        f"{stored.topic}[0]: doubled 20-22, 450",
    ]


@pytest.mark.parametrize("size", [3, 1_000_000])
def test_offsets_without_an_event_are_not_missing_and_rows_with_them_are_extra(
    stored: Settings, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_clickhouse, "SLICE", size)
    producer = Producer({"bootstrap.servers": stored.bootstrap_servers, "transactional.id": stored.topic})
    producer.init_transactions(PATIENCE_S)
    for text, good in (("one", True), ("two", False), ("three", True)):  # offsets 0-2, 4-6, 8-10, markers after each
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(stored.topic, text.encode())
        producer.flush(PATIENCE_S)
        if good:
            producer.commit_transaction(PATIENCE_S)
        else:
            producer.abort_transaction(PATIENCE_S)
    send(stored.bootstrap_servers, stored.topic, [None])
    commit(stored, 13)
    insert(stored, [0, 1, 2, 8, 9, 10])
    assert run(stored)[0] == ExitCode.OK
    assert run(stored).first == "7 events, 6 rows, 0 dead letters, 1 skipped, missing 0, doubled 0, extra 0"
    insert(stored, [3, 5, 12, 13, 77, 78])  # a marker, an aborted event, a tombstone, offsets that never existed
    result = run(stored)
    assert result.code == ExitCode.FAILED
    assert result.lines[0].endswith("missing 0, doubled 0, extra 6; 3 rows ahead of the commit")
    assert result.lines[1] == f"{stored.topic}[0]: extra 3, 5, 12-13, 77-78"


def test_only_committed_events_must_be_stored_and_rows_ahead_of_the_commit_are_not_extra(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 20)
    commit(stored, 10)
    insert(stored, [*range(10), 12, 13])
    result = run(stored)
    assert result.code == ExitCode.OK
    assert result.first.startswith("10 events, 10 rows,")
    assert result.first.endswith("missing 0, doubled 0, extra 0; 2 rows ahead of the commit")
    assert f"{stored.topic}[0]: 10-19 are not committed yet, and may be missing" in result.lines
    insert(stored, [13])
    assert f"{stored.topic}[0]: doubled 13" in run(stored).lines


def test_a_commit_of_a_deleted_topic_is_ignored(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 5)
    insert(stored, [])
    for metadata in (Intent("another-topic-id", 3, 5, 2, 0).encode(), plain("another-topic-id")):
        commit(stored, 3, metadata)
        result = run(stored)
        assert result.code == ExitCode.OK
        assert f"{stored.topic}[0]: the group has not committed anything here" in result.lines
    commit(stored, 3)
    assert f"{stored.topic}[0]: missing 0-2" in run(stored).lines


def test_rows_of_events_that_retention_removed_are_not_extra_but_unread_events_are_lost(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 20)
    commit(stored, 15)
    insert(stored, [*range(15), 3])
    cut(stored, 10)
    result = run(stored)
    assert result.code == ExitCode.FAILED
    assert result.first == "5 events, 5 rows, 0 dead letters, 0 skipped, missing 0, doubled 1, extra 0"
    assert f"{stored.topic}[0]: doubled 3" in result.lines
    assert f"{stored.topic}[0]: retention removed the events before 10" in result.lines
    assert f"{stored.topic}[0]: 11 rows are older than the log: only duplicates are detected among them" in result.lines
    cut(stored, 18)
    assert f"{stored.topic}[0]: lost: retention removed 15-17 before the group read them" in run(stored).lines


def cut(settings: Settings, offset: int) -> None:
    """Remove the events before the offset, as retention does."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    offsets = [TopicPartition(settings.topic, 0, offset)]
    for future in admin.delete_records(offsets).values():
        future.result(PATIENCE_S)


def test_dead_letters_count_once_however_often_they_were_written(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 6)
    commit(stored, 6)
    insert(stored, [0, 1, 4, 5])
    dead_letters = [DeadLetter(offset, b"x", "not_json", "") for offset in (2, 3)]
    for _ in range(2):
        DeadLetterProducer(stored).write(stored.topic, 0, dead_letters)
    DeadLetterProducer(stored).write("another", 0, [DeadLetter(5, b"x", "not_json", "")])
    result = run(stored)
    assert result.code == ExitCode.OK
    assert result.first == "6 events, 4 rows, 2 dead letters, 0 skipped, missing 0, doubled 0, extra 0"
    insert(stored, [3])
    result = run(stored)
    assert result.code == ExitCode.OK
    assert any("1 events have a row and a dead letter" in line for line in result.lines)


def test_limit_bounds_the_ranges_that_are_shown(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 20)
    commit(stored, 20)
    insert(stored, range(0, 20, 2))
    assert f"{stored.topic}[0]: missing 1, 3, 5, and 7 more ranges" in run(stored, limit=3).lines


def test_rows_that_the_table_itself_merges_are_reported_neither_as_missing_nor_as_good(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 4)
    commit(stored, 4)
    create(stored, "ReplacingMergeTree(_offset) ORDER BY device_ip")
    insert(stored, range(4))  # one key, so one row is left
    result = run(stored)
    assert result.code == ExitCode.FAILED
    assert result.lines[0].endswith("without a row of their own 3, doubled 0, extra 0")
    assert result.lines[1] == f"{stored.topic}[0]: without a row of their own 0-2"
    assert "3 of 4 offsets have no row of their own" in result.lines[-2]
    assert "ReplacingMergeTree merges rows with the same (device_ip)" in result.lines[-2]
    assert "missing" not in "".join(result.lines)
    assert run(stored, allow_merged=True).code == ExitCode.OK
    insert(stored, [4])  # beyond what the topic has
    assert run(stored, allow_merged=True).code == ExitCode.FAILED


def test_rows_that_a_ttl_removes_are_not_reported_as_missing(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 4)
    commit(stored, 4)
    create(stored, "MergeTree ORDER BY device_ip TTL toDateTime(timestamp) + INTERVAL 1 DAY")
    insert(stored, range(4))  # rows of 1970
    sql(stored, f"OPTIMIZE TABLE {stored.table} FINAL")
    assert sql(stored, f"SELECT count() FROM {stored.table}") == [(0,)]
    result = run(stored)
    assert result.code == ExitCode.FAILED
    assert result.lines[0].endswith("without a row of their own 4, doubled 0, extra 0")
    assert "cannot be decided: the table removes rows by its TTL (toDateTime(timestamp) + " in result.lines[-2]
    assert "missing" not in "".join(result.lines)
    assert run(stored, allow_merged=True).code == ExitCode.OK


def test_a_null_table_cannot_be_verified_but_the_target_of_its_view_can(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 4)
    commit(stored, 4)
    create(stored, "Null")
    target = replace(stored, table=f"{stored.table}_target")
    create(target, "MergeTree ORDER BY device_ip")
    view = f"{stored.table}_view"
    sql(stored, f"CREATE MATERIALIZED VIEW {view} TO {target.table} AS SELECT * FROM {stored.table}")
    insert(stored, range(4))
    with pytest.raises(Fatal, match=rf"keeps no rows.* the target table of its views \(default.{view}\)") as caught:
        run(stored)
    assert caught.value.code == ExitCode.FAILED
    assert run(target).code == ExitCode.OK
    assert run(replace(stored, table=view)).code == ExitCode.OK
    sql(stored, f"ALTER TABLE {target.table} DELETE WHERE _offset = 2 SETTINGS mutations_sync = 1")
    assert f"{stored.topic}[0]: missing 2" in run(target).lines
    lines = run(replace(stored, table=view)).lines
    assert "cannot be decided: the table is a MaterializedView: another table keeps its rows" in lines[-2]


@pytest.mark.parametrize(
    ("engine", "full", "text"),
    [
        ("MergeTree", "MergeTree ORDER BY d SETTINGS index_granularity = 8192", ""),
        ("MergeTree", "MergeTree ORDER BY d TTL t + toIntervalDay(1) SETTINGS a = 1", "TTL (t + toIntervalDay(1))"),
        ("MergeTree", "MergeTree ORDER BY d TTL t + toIntervalDay(1) TO VOLUME 'cold' SETTINGS a = 1", ""),
        (
            "MergeTree",
            "MergeTree ORDER BY d TTL f(t, 1) RECOMPRESS CODEC(ZSTD(1)), u DELETE WHERE x = 1",
            "(u DELETE WH",
        ),
        ("Distributed", "Distributed('c', 'd', 't')", "another table keeps its rows"),
        ("Buffer", "Buffer('d', 't', 1)", "another table keeps its rows"),
        ("Log", "Log", ""),
    ],
)
def test_which_tables_may_lack_a_row_of_an_event_that_they_got(engine: str, full: str, text: str) -> None:
    reason = reason_for_absence(engine, full, "d", ORIGIN)
    assert text in reason
    assert bool(reason) == bool(text)


def test_a_merging_table_that_sorts_by_origin_is_verified_like_others(stored: Settings) -> None:
    send(stored.bootstrap_servers, stored.topic, [event(1)] * 4)
    commit(stored, 4)
    create(stored, "ReplacingMergeTree(_offset) ORDER BY (device_ip, _topic, _partition, _offset)")
    insert(stored, range(4))
    result = run(stored)
    assert (result.code, len(result.lines)) == (ExitCode.OK, 2)
    assert result.lines[0].endswith("missing 0, doubled 0, extra 0")
    client = clickhouse_client(stored.clickhouse_url)
    client.execute(f"ALTER TABLE {stored.table} DELETE WHERE _offset = 2 SETTINGS mutations_sync = 1")
    client.disconnect()
    result = run(stored)
    assert result.code == ExitCode.FAILED
    assert f"{stored.topic}[0]: missing 2" in result.lines


def sql(settings: Settings, statement: str) -> Any:
    return run_sql(settings.clickhouse_url, statement)


def create(settings: Settings, engine: str) -> None:
    """Create a table with the worker's columns and another engine."""
    columns = (
        "timestamp DateTime64(3), device_ip String, error_code Int8, _topic String, _partition Int32, _offset Int64"
    )
    sql(settings, f"CREATE TABLE {settings.table} ({columns}) ENGINE = {engine}")


@pytest.mark.parametrize("backend", ["clickhouse", "redis"])
def test_a_terminal_shows_a_progress_bar(
    stored: Settings, redis_server: Service, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    send(stored.bootstrap_servers, stored.topic, [event(n) for n in range(20)])
    insert(stored, range(20))
    settings = replace(stored, backend=backend, redis_url=redis_server.address)
    terminal, out = Terminal(), io.StringIO()
    verify(settings, limit=1, allow_merged=False, out=out, progress=terminal)
    assert "100% 20/20" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("engine", "key", "text"),
    [
        ("MergeTree", "device_ip", ""),
        ("ReplacingMergeTree", "_topic, _partition, _offset", ""),
        ("ReplicatedReplacingMergeTree", "toDate(timestamp), _topic, _partition, _offset", ""),
        ("ReplacingMergeTree", "_topic, _offset", "to verify, make _topic, _partition, _offset part"),
        ("AggregatingMergeTree", "f(_topic, _partition, _offset)", "AggregatingMergeTree merges rows"),
        ("CollapsingMergeTree", "f(_topic, _partition, g(_offset)), _topic", "CollapsingMergeTree merges rows"),
        ("SummingMergeTree", "_topic, _partition, _offset", "removes those whose sums are zero"),
    ],
)
def test_which_tables_merge_rows_of_several_events(engine: str, key: str, text: str) -> None:
    description = merging(engine, key, ORIGIN)
    assert text in description
    assert bool(description) == bool(text)


def test_a_table_without_origin_columns_cannot_be_verified(stored: Settings) -> None:
    client = clickhouse_client(stored.clickhouse_url)
    client.execute(f"CREATE TABLE {stored.table} (device_ip String) ENGINE = MergeTree ORDER BY device_ip")
    client.disconnect()
    with pytest.raises(Fatal, match="no column _partition and _offset"):
        run(stored)


def test_redis_is_complete_until_a_device_is_missing_or_extra(counted: Settings) -> None:
    payloads = [*(event(n % 100) for n in range(300)), None, b"bad"]
    send(counted.bootstrap_servers, counted.topic, payloads)
    DeadLetterProducer(counted).write(counted.topic, 0, [DeadLetter(301, b"bad", "not_json", "")])
    commit(counted, 302)
    client = redis.Redis.from_url(counted.redis_url)
    key = counted.redis_key_name
    client.pfadd(key, *(f"10.0.0.{n}" for n in range(100)))
    result = run(counted)
    assert result.code == ExitCode.OK
    assert result.first == "302 events, 1 invalid, 1 skipped, without a dead letter 0"
    devices = client.pfcount(key)
    assert result.lines[-1] == f"total: {devices} devices in {key}, {devices} in the topic, missing 0, extra 0"
    client.pfadd(key, "10.9.9.9")
    assert run(counted).code == ExitCode.FAILED
    assert run(counted).lines[-1].endswith("missing 0, extra 1")
    client.delete(key)
    client.pfadd(key, *(f"10.0.0.{n}" for n in range(100) if n not in (5, 50)))
    result = run(counted)
    assert result.code == ExitCode.FAILED
    assert result.lines[-1].endswith("missing 2, extra 0")
    assert client.keys(f"*{counted.topic}*") == [key.encode()]
    client.close()


def test_redis_events_ahead_of_the_commit_are_neither_missing_nor_extra(counted: Settings) -> None:
    send(counted.bootstrap_servers, counted.topic, [*(event(n) for n in range(20)), b"bad"])
    client = redis.Redis.from_url(counted.redis_url)
    client.pfadd(counted.redis_key_name, *(f"10.0.0.{n}" for n in range(15)))
    commit(counted, 10)
    assert run(counted).code == ExitCode.OK
    commit(counted, 20)
    assert run(counted).lines[-1].endswith("missing 5, extra 0")
    client.pfadd(counted.redis_key_name, *(f"10.0.0.{n}" for n in range(20)))
    assert run(counted).code == ExitCode.OK
    commit(counted, 21)
    result = run(counted)
    assert result.code == ExitCode.FAILED
    assert f"{counted.topic}[0]: without a dead letter 20" in result.lines
    client.close()


offsets = st.lists(st.integers(0, 30), max_size=30)


places = st.integers(0, 30)


@given(
    log=st.sets(places), rows=offsets, bad=offsets, start=places, end=places, size=st.integers(1, 31), data=st.data()
)
def test_slices_of_any_size_add_up_to_what_counting_says(
    log: set[int], rows: list[int], bad: list[int], start: int, end: int, size: int, data: Any
) -> None:
    log = {offset for offset in log if offset >= start}
    tombstones = {offset for offset in log if data.draw(st.booleans())}
    rows.sort()
    account = Account(1000)
    for at in range(0, 31, size):
        here = range(at, at + size)
        account.compare(
            sorted(log.intersection(here)),
            tombstones.intersection(here),
            sorted(set(bad).intersection(here)),
            [offset for offset in rows if offset in here],
            committed=end,
            log_start=start,
        )
    missing = [o for o in sorted(log - tombstones) if o < end and o not in rows and o not in bad]
    doubled = [o for n, o in enumerate(rows) if o in rows[:n]]
    extra = [o for o in sorted(set(rows)) if o >= start and (o not in log or o in tombstones)]
    for result, expected in ((account.missing, missing), (account.doubled, doubled), (account.extra, extra)):
        assert (result.count, spelled(str(result))) == (len(expected), set(expected))
    assert account.rows == len([o for o in rows if start <= o < end])
    assert account.events == len([o for o in log if o < end])


def spelled(text: str) -> set[int]:
    """Read ranges back."""
    result: set[int] = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        result.update(range(int(first), int(last or first) + 1))
    return result


def test_ranges_join_neighbours_and_keep_counting() -> None:
    ranges = Ranges(2)
    for part in ([1, 2], [3], [5, 5], [9], [20]):
        _add(ranges, part)
    assert (ranges.count, str(ranges)) == (7, "1-3, 5, and 2 more ranges")


def _add(ranges: Ranges, part: Sequence[int]) -> None:
    ranges.add(part)
