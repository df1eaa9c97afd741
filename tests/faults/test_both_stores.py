"""`--backend redis,clickhouse`: each store has every event once, whichever of them fails, and verify proves it."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import redis
from clickhouse_driver import Client

from tests.support.job import Job, consumers, kill, status
from tests.support.kit import PATIENCE_S, Worker, run_worker, wait_until
from tests.support.oracle import EXACT, event, events
from tests.support.pages import Pages
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.local import Server

pytestmark = pytest.mark.faults

_NARROW = (
    "CREATE TABLE {} (timestamp DateTime64(3, 'UTC'), device_ip String, error_code Int8{}) "
    "ENGINE = MergeTree ORDER BY device_ip"
)
_ORIGIN = ", _topic String, _partition Int32, _offset Int64"


@dataclass(frozen=True)
class Both:
    """One job into two stores; `rows` and `devices` are its halves."""

    rows: Job
    devices: Job

    def arguments(self, *more: str) -> list[str]:
        of_redis = ("--redis-url", self.devices.url, "--redis-key", self.devices.target)
        return self.rows.arguments("--backend", "redis,clickhouse", *of_redis, *more)

    def start(self, *more: str) -> Worker:
        worker = run_worker(*self.arguments(*more))
        self.rows.started.append(worker)
        return worker

    def run(self, command: str, *more: str) -> tuple[int, str]:
        """Run another command; return its exit code and its output."""
        unused = {"--metrics-port", "--report-interval", "--batch-rows", "--linger-ms", "--drain-timeout"}
        words = self.arguments(*more)
        pairs = zip(words[::2], words[1::2], strict=True)
        with run_worker(command, *(word for pair in pairs if pair[0] not in unused for word in pair)) as worker:
            code = worker.wait()
            return code, "\n".join(worker.stdout)

    def assert_exact(self, expected: Iterable[int], *, origin: bool = True) -> None:
        numbers = list(expected)
        assert self.rows.judge(numbers, origin=origin) == EXACT
        assert self.devices.judge(numbers) == EXACT
        code, output = self.run("verify")
        assert code == 0 or not origin, output


@pytest.fixture
def both(rows_job: Job, devices_job: Job) -> Both:
    return Both(rows_job, devices_job)


@pytest.fixture
def at_least_once(both: Both, clickhouse_sql: Client) -> Both:
    """A table without origin columns, so that a block that is sent twice is stored twice."""
    clickhouse_sql.execute(_NARROW.format(both.rows.target, ""))
    return both


@pytest.mark.parametrize("reader", ["python", "native"])
def test_one_pass_gives_both_answers(both: Both, reader: str) -> None:
    both.rows.create(2)
    both.rows.send(events(5000))
    with both.start("--until-end", "--reader", reader) as worker:
        assert worker.wait() == 0, worker.tail()
    both.assert_exact(range(5000))
    total = redis.Redis.from_url(both.devices.url).pfcount(both.devices.target)
    assert worker.stdout == [f"Total devices: {total}"]
    assert both.run("count") == (0, f"Total devices: {total}")
    assert both.run("count", "--backend", "clickhouse", "--redis-key", "devices:{topic}")[0] == 2  # it has no effect


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("store", ["ClickHouse", "Redis"])
def test_one_store_is_unavailable(
    both: Both, hurt_clickhouse: Server, hurt_redis: Server, store: str, how: str
) -> None:
    server = hurt_clickhouse if store == "ClickHouse" else hurt_redis
    both.rows.create(2)
    with both.start("--clickhouse-url", f"{both.rows.url}?send_receive_timeout=2") as worker:
        both.rows.send(events(3000))
        both.rows.all_done()
        wait_until(
            lambda: all(process["partitions"] for process in status(worker)["processes"]),
            PATIENCE_S,
            "all consumers have partitions: one that starts during an outage fails at its start",
        )
        server.kill() if how == "kill" else server.pause()
        try:
            both.rows.send(events(3000, first=3000))
            worker.wait_for(f"will try again: {store}")
            wait_until(
                lambda: any(store in error["text"] for error in status(worker)["errors"]),
                PATIENCE_S,
                "the page names it",
            )
            metrics = Pages(worker).metrics("sink_up")
            assert metrics == {("redis",): store != "Redis", ("clickhouse",): store != "ClickHouse"}
        finally:
            server.start() if how == "kill" else server.resume()
        both.rows.all_done()
        wait_until(lambda: status(worker)["sink_up"], PATIENCE_S, "the store is up again")
        assert status(worker)["restarts"] == 0, worker.tail()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    both.assert_exact(range(6000))


def test_rows_are_not_sent_again_while_redis_is_unavailable(at_least_once: Both, redis_proxy: Proxy) -> None:
    both = at_least_once
    both.rows.create()
    with both.start(*both.devices.via(redis_proxy.port)) as worker:
        worker.wait_for("took a partition")
        redis_proxy.refuse()
        redis_proxy.reset()
        both.rows.send(events(1000))
        pages = Pages(worker)
        wait_until(
            lambda: (pages.metric("sink_retries_total", "redis", "connection") or 0) >= 5, PATIENCE_S, "five tries"
        )
        assert both.rows.rows() == 1000
        assert both.rows.accounted() == 0
        redis_proxy.heal()
        both.rows.all_done()
    both.assert_exact(range(1000), origin=False)


def test_redis_has_nothing_before_clickhouse_has_it(both: Both, clickhouse_proxy: Proxy) -> None:
    both.rows.create()
    with both.start(*both.rows.via(clickhouse_proxy.port)) as worker:
        worker.wait_for("took a partition")
        clickhouse_proxy.refuse()
        clickhouse_proxy.reset()
        both.rows.send(events(1000))
        worker.wait_for("will try again: ClickHouse")
        assert not redis.Redis.from_url(both.devices.url).exists(both.devices.target)
        clickhouse_proxy.heal()
        both.rows.all_done()
    both.assert_exact(range(1000))


def test_kill_between_the_two_stores(both: Both, redis_proxy: Proxy) -> None:
    """ClickHouse has the block, Redis has not: the next owner sends both again, and the block is dropped."""
    both.rows.create()
    with both.start(*both.devices.via(redis_proxy.port)) as worker:
        worker.wait_for("took a partition")
        redis_proxy.refuse()
        redis_proxy.reset()
        both.rows.send(events(3000))
        worker.wait_for("will try again: Redis")
        assert both.rows.rows() == 1000
        assert both.rows.intent()
        kill(*consumers(worker))
        redis_proxy.heal()
        both.rows.all_done()
    both.assert_exact(range(3000))


def test_kills_and_lost_answers_of_both_stores(both: Both, clickhouse_proxy: Proxy, redis_proxy: Proxy) -> None:
    both.rows.create(2)
    with both.start(*both.rows.via(clickhouse_proxy.port), *both.devices.via(redis_proxy.port)) as worker:
        worker.wait_for("took a partition")
        for i in range(8):
            proxy = (clickhouse_proxy, redis_proxy)[i % 2]
            before = proxy.faults
            if proxy is redis_proxy:
                proxy.drop_reply(100)
            else:
                proxy.drop_reply(10_000, until=END_OF_STREAM)
            both.rows.send(events(2000, first=2000 * i))
            wait_until(lambda p=proxy, n=before: p.faults > n, PATIENCE_S, "an answer is lost")  # type: ignore[misc]
            if i % 4 > 1:
                kill(*consumers(worker))
        both.rows.all_done()
    both.assert_exact(range(16_000))


def test_an_event_that_one_store_refuses_is_one_dead_letter_and_in_neither(both: Both, clickhouse_sql: Client) -> None:
    """Redis alone would accept these events: the number is too large for the column, or a constraint refuses it."""
    clickhouse_sql.execute(_NARROW.format(both.rows.target, f"{_ORIGIN}, CONSTRAINT small CHECK error_code < 100"))
    clickhouse_sql.execute(f"ALTER TABLE {both.rows.target} MODIFY SETTING non_replicated_deduplication_window = 100")
    both.rows.create()
    refused = [
        event(9000).replace(b'"error_code": 2', b'"error_code": 300'),
        event(9001).replace(b'"error_code": 3', b'"error_code": 101'),
        event(9002).replace(b'"device_ip": "10', b'"device_ip": 5, "other": "10'),
    ]
    both.rows.send([*events(700), *refused, *events(700, first=700)])
    with both.start("--until-end") as worker:
        assert worker.wait() == 0, worker.tail()
    reasons = sorted((dead_letter.reason, dead_letter.field) for dead_letter in both.rows.dead_letters())
    assert reasons == [("out_of_range", "error_code"), ("store_refused", ""), ("wrong_type", "device_ip")]
    both.assert_exact(range(1400))


@pytest.mark.parametrize("store", ["ClickHouse", "Redis"])
def test_verify_finds_what_one_store_lacks(both: Both, clickhouse_sql: Client, store: str) -> None:
    both.rows.create()
    both.rows.send(events(500))
    with both.start("--until-end") as worker:
        assert worker.wait() == 0, worker.tail()
    if store == "Redis":
        redis.Redis.from_url(both.devices.url).delete(both.devices.target)
    else:
        clickhouse_sql.execute(
            f"DELETE FROM {both.rows.target} WHERE _offset = 77 SETTINGS lightweight_deletes_sync = 2"
        )
    code, output = both.run("verify")
    assert code == 1
    of_redis, of_clickhouse = output.split("== clickhouse")
    assert ("missing 0" in of_redis) == (store == "ClickHouse")
    assert ("missing 0" in of_clickhouse) == (store == "Redis")


def test_the_table_is_altered_while_redis_is_unavailable(
    both: Both, clickhouse_sql: Client, redis_proxy: Proxy
) -> None:
    both.rows.create(2)
    with both.start(*both.devices.via(redis_proxy.port)) as worker:
        both.rows.send(events(1000))
        both.rows.all_done()
        redis_proxy.refuse()
        redis_proxy.reset()
        both.rows.send(events(1000, first=1000))
        worker.wait_for("will try again: Redis")
        clickhouse_sql.execute(f"ALTER TABLE {both.rows.target} MODIFY COLUMN error_code Int16")
        redis_proxy.heal()
        both.rows.send(events(3000, first=2000))
        both.rows.all_done()
    both.assert_exact(range(5000))


def test_the_table_is_altered_and_redis_is_unavailable_when_it_is_read_again(
    both: Both, clickhouse_sql: Client, redis_proxy: Proxy
) -> None:
    """ClickHouse has the new columns by then, and the batch the old ones: it must not be encoded for the new."""
    both.rows.create()
    with both.start(*both.devices.via(redis_proxy.port)) as worker:
        both.rows.send(events(1000))
        both.rows.all_done()
        clickhouse_sql.execute(f"ALTER TABLE {both.rows.target} MODIFY COLUMN error_code Int16")
        redis_proxy.refuse()
        redis_proxy.reset()
        both.rows.send(events(1000, first=1000))
        worker.wait_for("will try again: Redis")
        redis_proxy.heal()
        both.rows.all_done()
        assert worker.running()
    assert len(worker.stderr) < 1000
    both.assert_exact(range(2000))


def test_a_column_is_added_while_both_stores_are_written(both: Both, clickhouse_sql: Client) -> None:
    both.rows.create(2)
    both.rows.send(events(200))
    with both.start("--evolve", "1") as worker:
        both.rows.all_done()
        both.rows.send([event(i)[:-1] + b', "n": %d}' % i for i in range(200, 1000)])
        worker.wait_for(r"added the column n Nullable\(Int64\)")
        end = 1000
        while clickhouse_sql.execute(f"SELECT count(n) FROM {both.rows.target}") == [(0,)]:
            both.rows.send([event(i)[:-1] + b', "n": %d}' % i for i in range(end, end + 100)])
            both.rows.all_done()
            end += 100
    both.assert_exact(range(end))


def test_check_looks_at_both_stores(both: Both) -> None:
    both.rows.create()
    both.rows.send(events(100))
    code, output = both.run("check")
    assert code == 0, output
    for text in ("Redis: ", "ClickHouse: ", "table: ", "100 of the 100 sampled events would be stored"):
        assert text in output
    broken = replace(both, rows=replace(both.rows, url="clickhouse://default@127.0.0.1:1/default"))
    code, output = broken.run("check")
    assert code == 1
    assert "FAIL  ClickHouse" in output
    assert "OK    Redis" in output
