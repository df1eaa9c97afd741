"""Lost answers and connections that break at any byte: no insert is applied twice."""

from __future__ import annotations

import pytest
from clickhouse_driver import Client

from tests.support.job import Job
from tests.support.kit import PATIENCE_S, wait_until
from tests.support.oracle import EXACT, events
from tests.support.proxy import END_OF_STREAM, Proxy

pytestmark = pytest.mark.faults

_BLOCK = 33_000  # bytes of an insert of 1000 rows; the answer has some 3500


def _strike(proxy: Proxy, kind: str, size: int) -> None:
    if kind == "to_server":
        proxy.cut_to_server(size)
    elif kind == "to_client":
        proxy.cut_to_client(size)
    else:
        proxy.drop_reply(size, until=END_OF_STREAM)


def test_lost_answers_and_cuts_do_not_double_a_row(rows_job: Job, clickhouse_proxy: Proxy) -> None:
    """Break the connection at many points of the protocol, one after another, also after the insert was applied."""
    strikes = [("drop", _BLOCK // 2)] * 4
    strikes += [("to_server", size) for size in (1, 100, 290, 400, 1000, _BLOCK // 2, _BLOCK)]
    strikes += [("to_client", size) for size in (1, 150, 320, 1000, 1400, 2500, 3400)]
    rows_job.create()
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        for i, (kind, size) in enumerate(strikes):
            _strike(clickhouse_proxy, kind, size)
            rows_job.send(events(1000, first=1000 * i))
            wait_until(lambda i=i: clickhouse_proxy.faults > i, PATIENCE_S, f"{kind} {size} strikes")  # type: ignore[misc]
            if i > 2:  # the first few strike the same insert again and again
                rows_job.advance_to(1000 * (i + 1))
    assert rows_job.judge(range(1000 * len(strikes))) == EXACT


def test_lost_answer_of_a_table_without_deduplication_doubles_at_most_that_batch(
    rows_job: Job, clickhouse_sql: Client, clickhouse_proxy: Proxy
) -> None:
    clickhouse_sql.execute(
        f"CREATE TABLE {rows_job.target} (timestamp DateTime64(3), device_ip String, error_code Int8) "
        "ENGINE = MergeTree ORDER BY device_ip"
    )
    rows_job.create()
    with rows_job.start("--linger-ms", "2000", *rows_job.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("delivery is at-least-once: the table lacks _topic and _partition and _offset")
        worker.wait_for("took a partition")
        clickhouse_proxy.drop_reply(10_000, until=END_OF_STREAM)
        rows_job.send(events(5000))
        wait_until(lambda: clickhouse_proxy.faults, PATIENCE_S, "an answer is lost")
        rows_job.all_done()
    verdict = rows_job.judge(range(5000), origin=False)
    assert (verdict.missing, verdict.wrong) == (0, 0)
    assert 0 < verdict.doubled <= 1000


def test_lost_answers_of_redis_count_nothing_twice(devices_job: Job, redis_proxy: Proxy) -> None:
    strikes = [("drop", 100)] * 3 + [("to_server", size) for size in (1, 1000, 12_000)] + [("to_client", 1)]
    devices_job.create()
    with devices_job.start("--linger-ms", "500", *devices_job.via(redis_proxy.port)) as worker:
        worker.wait_for("took a partition")
        for i, (kind, size) in enumerate(strikes):
            if kind == "drop":
                redis_proxy.drop_reply(size)
            else:
                _strike(redis_proxy, kind, size)
            devices_job.send(events(1000, first=1000 * i))
            wait_until(lambda i=i: redis_proxy.faults > i, PATIENCE_S, f"{kind} {size} strikes")  # type: ignore[misc]
            devices_job.advance_to(1000 * (i + 1))
    assert devices_job.judge(range(1000 * len(strikes))) == EXACT


@pytest.mark.parametrize("backend", ["rows_job", "devices_job"])
def test_worker_waits_for_a_slow_store(
    backend: str, request: pytest.FixtureRequest, clickhouse_proxy: Proxy, redis_proxy: Proxy
) -> None:
    job: Job = request.getfixturevalue(backend)
    proxy = clickhouse_proxy if backend == "rows_job" else redis_proxy
    job.create(2)
    proxy.delay(0.1)  # each way, each piece
    with job.start("--processes", "2", *job.via(proxy.port)) as worker:
        job.send(events(2000))
        job.all_done()
        worker.signal()
        assert worker.wait() == 0, worker.tail()
    assert job.judge(range(2000)) == EXACT
