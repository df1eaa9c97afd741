"""Daily distinct users by country of a clickstream, as in docs/windows.md: late events, replays and lost keys."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

import orjson
import pytest

from tests.support.job import Job
from tests.support.kit import PATIENCE_S, run_worker, wait_until
from worker.local import Server

DAY = 86_400
COUNTRIES = ("NL", "DE", "Côte d'Ivoire")
BY_COUNTRY = ("--windows", "minute,hour,day", "--by", "country")


class Click(NamedTuple):
    time: int  # Unix seconds
    user: str
    country: str

    def payload(self) -> bytes:
        text = datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")
        return orjson.dumps({"timestamp": text, "device_ip": self.user, "country": self.country})


def clicks(count: int, since: int, until: int) -> list[Click]:
    random = Random(1)
    return [
        Click(random.randrange(since, until), f"user-{random.randrange(300)}", random.choice(COUNTRIES))
        for _ in range(count)
    ]


@pytest.fixture
def midnight() -> int:
    """The last midnight (UTC); the tests' events are days before it."""
    return int(time.time()) // DAY * DAY


def counted(job: Job, since: int, until: int, *more: str) -> list[str]:
    start, end = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M") for time in (since, until))
    with run_worker("count", *job.arguments("--from", start, "--to", end, *more)) as worker:
        assert worker.wait() == 0, worker.tail()
    return worker.stdout


def count_clean(client: Any, users: Sequence[str]) -> int:
    """Return the count of a new HyperLogLog with these users."""
    client.delete("clean")
    client.pfadd("clean", *users)
    return int(client.pfcount("clean"))


def expected(client: Any, clicks: Sequence[Click]) -> list[str]:
    """Return what `count --by country` should print, sorted, from new HyperLogLogs."""
    lines = [f"Total devices: {count_clean(client, [click.user for click in clicks])}"]
    for country in COUNTRIES:
        users = [click.user for click in clicks if click.country == country]
        lines.append(f"{country}: {count_clean(client, users)}")
    return sorted(lines)


def within(clicks: Sequence[Click], since: int, until: int) -> list[Click]:
    return [click for click in clicks if since <= click.time < until]


def test_daily_users_by_country(job: Job, client: Any, midnight: int) -> None:
    events = clicks(5000, midnight - 5 * DAY, midnight)
    job.send([*(click.payload() for click in events), b'{"device_ip":"u","country":"NL"}'])
    with run_worker("check", *job.arguments(*BY_COUNTRY)) as worker:
        assert worker.wait() == 0, worker.tail()
    stored, sample = map(int, re.findall(r"(\d+) of the (\d+) sampled events would be stored", worker.tail())[0])
    assert stored == sample - 1  # the sample's size depends on how the producer spread the events over partitions
    assert any("timestamp: 1 missing_field" in line for line in worker.stdout), worker.tail()
    job.finish(*BY_COUNTRY)

    for since, until in [
        (midnight - 3 * DAY, midnight - 2 * DAY),
        (midnight - 5 * DAY, midnight),
        (midnight - 4 * DAY + 5 * 3600, midnight - 2 * DAY + 3600),
    ]:
        lines = counted(job, since, until, "--by", "country")
        assert sorted(lines) == expected(client, within(events, since, until))
    (dead_letter,) = job.dead_letters()
    assert dead_letter.reason == "missing_field"
    with run_worker("verify", *job.arguments(*BY_COUNTRY)) as worker:
        assert worker.wait() == 0, worker.tail()


def test_events_without_the_field_are_in_the_total_and_under_none(job: Job, client: Any, midnight: int) -> None:
    seconds = midnight - DAY
    events: list[dict[str, Any]] = [{"timestamp": seconds, "device_ip": f"d{n}"} for n in range(30)]
    for event in events[:10]:
        event["country"] = "NL"
    for event in events[10:15]:
        event["country"] = None
    job.send([orjson.dumps(event) for event in events])
    job.finish(*BY_COUNTRY)
    lines = ["Total devices: 30", "NL: 10", "(none): 20"]
    assert counted(job, seconds, midnight, "--by", "country") == lines
    with run_worker("count", *job.arguments("--by", "country")) as worker:
        assert worker.wait() == 0, worker.tail()
    assert worker.stdout == lines
    assert job.dead_letters() == []
    with run_worker("verify", *job.arguments(*BY_COUNTRY)) as worker:
        assert worker.wait() == 0, worker.tail()


def test_late_events_are_in_their_own_window_and_replays_change_nothing(job: Job, client: Any, midnight: int) -> None:
    events = clicks(2000, midnight - 2 * DAY, midnight)
    late = [Click(midnight - 2 * DAY + 30, f"late-{n}", "NL") for n in range(50)]
    ancient = Click(midnight - 900 * DAY, "ancient", "NL")
    job.send([click.payload() for click in events])
    job.finish(*BY_COUNTRY)
    job.send([click.payload() for click in [*late, ancient]])
    job.finish(*BY_COUNTRY)
    first_day = midnight - 2 * DAY, midnight - DAY
    lines = counted(job, *first_day)
    assert lines == [f"Total devices: {count_clean(client, [c.user for c in within([*events, *late], *first_day)])}"]
    keys = sorted(client.keys(f"{job.target}*"))
    assert not [key for key in keys if str(datetime.fromtimestamp(ancient.time, UTC).year).encode() in key]
    assert client.pfcount(job.target) == count_clean(client, [click.user for click in [*events, *late, ancient]])

    before = {key: (client.dump(key), client.expiretime(key)) for key in keys}
    replace(job, group=f"{job.group}-again").finish(*BY_COUNTRY)
    after = {key: (client.dump(key), client.expiretime(key)) for key in keys}
    counts = {key: client.pfcount(key) for key in keys if client.type(key) == b"string"}
    assert set(client.keys(f"{job.target}*")) == set(keys)
    assert {key: expires for key, (_, expires) in after.items()} == {k: expires for k, (_, expires) in before.items()}
    for key, total in counts.items():  # a DUMP includes a cached count, so the HyperLogLogs are compared by union
        client.restore("before", 0, before[key][0], replace=True)
        assert client.pfcount("before") == total
        assert client.pfcount(key, "before") == total


def test_every_window_expires_and_a_lost_key_is_recreated_with_its_ttl(job: Job, client: Any, midnight: int) -> None:
    time_of_day = midnight - DAY + 3600
    day = f"{job.target}:day:{datetime.fromtimestamp(time_of_day, UTC):%Y-%m-%d}"
    with job.start("--windows", "day,hour") as worker:
        job.send([Click(time_of_day, f"a-{n}", "NL").payload() for n in range(100)])
        job.all_done()
        assert client.expiretime(day) == midnight + 400 * DAY
        client.delete(day, f"{job.target}:windows")  # as eviction does
        job.send([Click(time_of_day, f"b-{n}", "NL").payload() for n in range(100)])
        job.all_done()
        assert worker.running(), worker.tail()
    assert client.expiretime(day) == midnight + 400 * DAY
    assert client.pfcount(day) == count_clean(client, [f"b-{n}" for n in range(100)])
    without_ttl = [key.decode() for key in client.keys(f"{job.target}*") if client.ttl(key) < 0]
    assert sorted(without_ttl) == [job.target, f"{job.target}:windows"]
    replace(job, group=f"{job.group}-again").finish("--windows", "day,hour")  # the fix: read the topic again
    users = [f"{prefix}-{n}" for prefix in "ab" for n in range(100)]
    assert client.pfcount(day) == count_clean(client, users)
    assert counted(job, midnight - DAY, midnight) == [f"Total devices: {count_clean(client, users)}"]


def test_no_device_is_missing_and_every_window_has_a_ttl_after_a_kill(job: Job, client: Any, midnight: int) -> None:
    events = clicks(20_000, midnight - DAY, midnight)
    with job.start(*BY_COUNTRY) as worker:
        job.send([click.payload() for click in events[:10_000]])
        wait_until(lambda: job.accounted() > 0, PATIENCE_S, "the worker has committed")
        worker.kill_tree()
    job.send([click.payload() for click in events[10_000:]])
    job.finish(*BY_COUNTRY)
    lines = counted(job, midnight - DAY, midnight, "--by", "country")
    assert sorted(lines) == expected(client, events)
    assert not [k for k in client.keys(f"{job.target}:*:20*") if client.ttl(k) < 0]


def test_check_warns_about_a_policy_that_evicts_windows(job: Job, client: Any) -> None:
    client.config_set("maxmemory-policy", "volatile-lru")
    for options, level in ((("--windows", "day"), "WARN"), ((), "OK")):
        with run_worker("check", *job.arguments(*options)) as worker:
            assert worker.wait() == 0, worker.tail()
        (line,) = [line for line in worker.stdout if "eviction: " in line]
        assert line.startswith(level), line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "2026-11-01", "--to", "2026-11-02"), "run the worker with --windows"),
        (("--from", "2026-11-02", "--to", "2026-11-01"), "a later --to TIME"),
        (("--from", "yesterday", "--to", "2026-11-01"), "write a time such as 2026-11-01"),
        (("--by", "country", "--backend", "clickhouse"), "--by: it has no effect with --backend clickhouse"),
        (("--from", "2026-11-01", "--to", "2026-11-02", "--backend", "clickhouse"), "query the ClickHouse table"),
        (("--last", "1h", "--backend", "clickhouse"), "query the ClickHouse table"),
        (("--last", "1h", "--to", "2026-11-02"), "or --last TIME"),
        (("--from", "2026-11-01"), "a later --to TIME, or --last TIME"),
        (("--last", "1w"), "write a time such as 15m, 2h or 7d"),
        (("--from", "1623-11-01", "--to", "2026-11-02"), "write a time in the years 1900 to 2299"),
    ],
)
def test_count_says_what_to_write(own_redis: Server, topic_name: str, options: Sequence[str], message: str) -> None:
    with run_worker("count", "--topic", topic_name, *options, env={"WORKER_REDIS_URL": own_redis.address}) as worker:
        assert worker.wait() == 2, worker.tail()
    assert message in worker.stderr[-1]
