"""`count` by two fields, by days of a time zone and of the last minutes, and the gauges of closed windows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import orjson

from tests.support.job import Job
from tests.support.kit import PATIENCE_S, Service, run_worker, wait_until
from tests.support.pages import Pages
from worker.local import Server

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
COUNTRIES, PLANS = ("NL", "Côte d'Ivoire", None), ("free", "a,b:c", 7)
FOREVER = ("--window-ttl", "minute=90000d,hour=90000d,day=90000d")


class Event(NamedTuple):
    time: int  # Unix seconds
    user: str
    country: str | None = None
    plan: str | int | None = None

    def payload(self) -> bytes:
        values = {"country": self.country, "plan": self.plan}
        return orjson.dumps({"timestamp": self.time, "device_ip": self.user, "error_code": 1, **values})


def events(count: int, since: int, until: int) -> list[Event]:
    random = Random(1)
    return [
        Event(
            random.randrange(since, until),
            f"user-{random.randrange(12)}",
            random.choice(COUNTRIES),
            random.choice(PLANS),
        )
        for _ in range(count)
    ]


def count(job: Job, *options: str, code: int = 0) -> tuple[list[str], str]:
    """Return the lines that `count` prints, and its errors."""
    with run_worker("count", *job.arguments(*options)) as worker:
        assert worker.wait() == code, worker.tail()
    return worker.stdout, "\n".join(worker.stderr)


def distinct(events: Iterable[Event]) -> int:
    """Return the number of users. A HyperLogLog of so few is exact."""
    return len({event.user for event in events})


def lines(events: Sequence[Event], *fields: str) -> list[str]:
    """Return what `count` should print, sorted."""
    values = {tuple(getattr(event, field) for field in fields) for event in events} if fields else set()
    printed = [f"Total devices: {distinct(events)}"]
    for value in values:
        of_value = [event for event in events if tuple(getattr(event, field) for field in fields) == value]
        text = ",".join("(none)" if part is None else str(part) for part in value)
        printed.append(f"{text}: {distinct(of_value)}")
    return sorted(printed)


def test_counts_by_two_fields_and_by_each_of_them(job: Job, client: Any) -> None:
    now = int(time.time())
    sent = events(2000, now - 20 * 3600, now)
    job.send([event.payload() for event in sent])
    job.send([orjson.dumps({"timestamp": now, "device_ip": "u", "country": "NL", "plan": 1.5})])
    options = ("--windows", "hour", "--by", "country,plan")
    with run_worker("check", *job.arguments(*options)) as worker:
        assert worker.wait() == 0, worker.tail()
    job.finish(*options)
    (dead_letter,) = job.dead_letters()
    assert dead_letter.reason == "wrong_type"

    hour = now // 3600 * 3600
    begin, end = (datetime.fromtimestamp(second, UTC).isoformat() for second in (hour - 7200, hour))
    span = ("--from", begin, "--to", end)
    in_span = [event for event in sent if hour - 7200 <= event.time < hour]
    for fields in (("country",), ("plan",), ("country", "plan"), ("plan", "country")):
        by = ("--by", ",".join(fields))
        assert sorted(count(job, *by)[0]) == lines(sent, *fields)
        assert sorted(count(job, *by, *span)[0]) == lines(in_span, *fields)
    assert client.smembers(f"{job.target}:by") == {b"country:plan"}
    assert client.pfcount(f"{job.target}:country=NL:plan=a%2Cb%3Ac") == distinct(
        event for event in sent if (event.country, event.plan) == ("NL", "a,b:c")
    )
    _, error = count(job, "--by", "error_code", code=2)
    assert "has no devices by error_code, but by country,plan: run the worker with --by error_code" in error
    with run_worker("verify", *job.arguments(*options)) as worker:
        assert worker.wait() == 0, worker.tail()


def test_a_second_field_that_is_added_later_keeps_the_counts_by_the_first(job: Job, client: Any) -> None:
    now = int(time.time())
    sent = events(1000, now - 3600, now)
    job.send([event.payload() for event in sent[:500]])
    job.finish("--by", "country")
    client.delete(f"{job.target}:by")  # which earlier versions did not write
    assert sorted(count(job, "--by", "country")[0]) == lines(sent[:500], "country")
    job.send([event.payload() for event in sent[500:]])
    job.finish("--by", "country,plan")
    assert sorted(count(job, "--by", "country")[0]) == lines(sent, "country")
    of_both = lines(sent[500:], "country", "plan")  # from then on; its total is of all events
    assert sorted(count(job, "--by", "country,plan")[0])[:-1] == of_both[:-1]


def test_days_of_a_time_zone_begin_at_its_midnight(job: Job, client: Any) -> None:
    start = datetime(2026, 10, 24, tzinfo=AMSTERDAM)  # the night to the 25th has 25 hours
    days = [int((start + timedelta(days=n)).timestamp()) for n in range(4)]
    assert [(after - before) // 3600 for before, after in pairwise(days)] == [24, 25, 24]
    sent = [Event(time, f"{time}") for day in days for time in (day - 1, day, day + 86_400)]
    job.send([event.payload() for event in sent])
    in_zone = ("--windows", "hour,day", "--window-time-zone", "Europe/Amsterdam", *FOREVER)
    job.finish(*in_zone)
    assert client.smembers(f"{job.target}:windows") == {b"hour", b"day@Europe/Amsterdam"}
    assert not client.keys(f"{job.target}:day:*")
    assert client.expiretime(f"{job.target}:day@Europe/Amsterdam:2026-10-25") == days[2] + 90_000 * 86_400

    def expected(since: int, until: int) -> list[str]:
        return lines([event for event in sent if since <= event.time < until])

    for first, last in ((0, 1), (1, 2), (0, 3)):
        dates = [f"2026-10-{24 + n}" for n in (first, last)]
        assert count(job, "--from", dates[0], "--to", dates[1], *FOREVER)[0] == expected(days[first], days[last])
    # Both times that the clock shows 02:00, and a time in UTC.
    for text, since in (("T02:00", 0), ("T02:00+02:00", 0), ("T02:00+01:00", 3600), ("T00:00Z", 0)):
        printed, _ = count(job, "--from", f"2026-10-25{text}", "--to", "2026-10-26", *FOREVER)
        assert printed == expected(days[1] + 7200 + since, days[2])
    _, error = count(job, "--from", "2026-10-25", "--to", "2026-10-26T00:30", code=2)
    assert "write times at which a slice begins; the windows of this topic are hour, day@Europe/Amsterdam" in error
    _, error = count(job, "--from", "2026-10-24", "--to", "2026-10-25", "--window-time-zone", "UTC", code=2)
    assert "begin at midnight in Europe/Amsterdam: write --window-time-zone Europe/Amsterdam" in error


def test_days_of_two_time_zones_are_never_mixed(job: Job, client: Any) -> None:
    midnight = int(datetime(2026, 10, 24, tzinfo=AMSTERDAM).timestamp())
    first, second = Event(midnight, "first"), Event(midnight + 3 * 3600, "second")
    days = ("--from", "2026-10-24", "--to", "2026-10-25", *FOREVER)
    job.send([first.payload()])
    job.finish("--windows", "day", *FOREVER)
    assert count(job, "--from", "2026-10-23", "--to", "2026-10-24", *FOREVER)[0] == ["Total devices: 1"]  # 22:00 UTC
    job.send([second.payload()])
    in_zone = ("--windows", "day", "--window-time-zone", "Europe/Amsterdam", *FOREVER)
    for options in (("--windows", "day"), in_zone):
        with run_worker("check", *job.arguments(*options)) as worker:
            assert worker.wait() == 0, worker.tail()
        warned = any(line.endswith(f"SREM {job.target}:windows day") for line in worker.stdout)
        assert warned == (options is in_zone), worker.tail()
    job.finish(*in_zone)
    _, error = count(job, *days, code=2)
    assert "in UTC and Europe/Amsterdam: write --window-time-zone UTC or --window-time-zone Europe/Amsterdam" in error
    for zone in ("UTC", "Europe/Amsterdam"):
        assert client.exists(f"{job.target}:windows")
        assert count(job, *days, "--window-time-zone", zone)[0] == [f"Total devices: {int(zone != 'UTC')}"]
    client.sadd(f"{job.target}:windows", "day@Mars/Olympus")
    client.srem(f"{job.target}:windows", "day", "day@Europe/Amsterdam")
    _, error = count(job, *days, code=78)
    assert "the topic's days are those of the time zone Mars/Olympus, which is not known here" in error


def test_the_last_minutes_include_the_current_one(job: Job) -> None:
    with job.start("--windows", "minute,hour,day") as worker:
        now = int(time.time())
        sent = [Event(now - 60 * n, f"user-{n}") for n in (0, 5, 20, 200, 2000, 20_000, 200_000)]
        job.send([event.payload() for event in sent])
        job.all_done()
        assert worker.running(), worker.tail()
    for text, seconds in (("15m", 900), ("4h", 14_400), ("50h", 180_000), ("300d", 300 * 86_400)):
        unit = 60 if seconds < 86_400 else 3600 if seconds < 30 * 86_400 else 86_400
        printed, error = count(job, "--last", text)
        since = (int(time.time()) - seconds) // unit * unit
        assert printed == lines([event for event in sent if event.time >= since])
        assert error == f"count: from {datetime.fromtimestamp(since, ZoneInfo('UTC')):%Y-%m-%dT%H:%M} (UTC) to now"
    assert "have expired" in count(job, "--last", "401d", code=2)[1]
    assert "the finest window of this topic is the minute" in count(job, "--last", "59s", code=2)[1]


def test_the_gauges_are_those_of_the_last_closed_windows(job: Job, own_redis: Server) -> None:
    zone = ("--window-time-zone", "Asia/Kolkata")
    with job.start("--windows", "minute,hour,day", *zone, "--report-interval", "1") as worker:
        pages = Pages(worker)
        now = int(time.time())
        ends = [now // 60 * 60, now // 3600 * 3600, (now + 19_800) // 86_400 * 86_400 - 19_800]
        # The middle of slices, and of those before and after, in case one ends now.
        sent = [
            Event(end + length // 2 + n * length, f"user-{n}-{m}")
            for end, length in zip(ends, (60, 3600, 86_400), strict=True)
            for n in (-1, 0)
            for m in range(3 + n)
        ]
        job.send([event.payload() for event in sent])

        def expected() -> dict[tuple[str, ...], float]:
            counts: dict[tuple[str, ...], float] = {}
            for name, length, shift in (("minute", 60, 0), ("hour", 3600, 0), ("day", 86_400, 19_800)):
                end = (int(time.time()) + shift) // length * length - shift
                counts[job.topic, name] = float(distinct(e for e in sent if end - length <= e.time < end))
            return counts

        wait_until(lambda: pages.metrics("window_devices") == expected(), PATIENCE_S, f"{expected()} are served")
        own_redis.pause()
        try:
            wait_until(lambda: not pages.metrics("window_devices"), PATIENCE_S, "the gauges are removed")
            assert pages.metric("kafka_up") == 1
        finally:
            own_redis.resume()
        wait_until(lambda: pages.metrics("window_devices") == expected(), PATIENCE_S, f"{expected()} are served")


def test_both_stores_have_the_events_of_windows_and_fields(job: Job, clickhouse: Service, table_name: str) -> None:
    midnight = int(time.time()) // 86_400 * 86_400
    sent = events(300, midnight - 86_400, midnight)
    job.send([event.payload() for event in sent])
    stores = ("--backend", "redis,clickhouse", "--clickhouse-url", clickhouse.address, "--table", table_name)
    options = (*stores, "--windows", "hour,day", "--window-time-zone", "Asia/Kathmandu", "--by", "plan,country")
    with run_worker("check", *job.arguments(*options, "--create")) as worker:
        assert worker.wait() == 0, worker.tail()
    job.finish(*options)
    begin, end = (datetime.fromtimestamp(second, UTC).isoformat() for second in (midnight - 86_400, midnight))
    printed, _ = count(job, *options, "--from", begin, "--to", end)
    assert sorted(printed) == lines(sent, "plan", "country")
    with run_worker("verify", *job.arguments(*options)) as worker:
        assert worker.wait() == 0, worker.tail()
