"""Windows: every event is in the slice of its own time, and the slices that cover a time span do not overlap."""

from __future__ import annotations

import zoneinfo
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.config.settings import UsageError
from worker.config.sources import load
from worker.decoding.json import decode
from worker.sinks.redis.sink import RedisSink
from worker.sinks.redis.windows import OTHER, VALUES, Keys, Labels, cover, group, slices, windows

TTLS = {"minute": 86_400, "hour": 30 * 86_400, "day": 400 * 86_400}
DAY = 1_795_478_400  # 2026-11-24T00:00:00Z
ALL = lambda *_: True  # noqa: E731
names = st.sets(st.sampled_from(["minute", "hour", "day"]))


def keys(**options: str) -> Keys:
    return Keys(load({"topic": "t", **options}, {})[0])


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 3000), names.filter(bool))
def test_a_span_is_covered_once_by_slices_that_cannot_be_merged(first: int, length: int, wanted: set[str]) -> None:
    available = windows(wanted)
    unit = available[0].seconds
    start, end = first * unit, (first + length) * unit
    covering = cover(start, end, available, ALL)
    assert covering
    assert covering == sorted(covering, key=lambda item: item[0].seconds * item[1])
    covered_to = start
    for window, number in covering:
        assert number * window.seconds == covered_to
        covered_to += window.seconds
    assert covered_to == end
    for coarse in available:  # no slice is inside a slice of a coarser window that fits in the span
        first_whole, last_whole = -(-start // coarse.seconds), end // coarse.seconds
        numbers = [n * w.seconds // coarse.seconds for w, n in covering if w.seconds < coarse.seconds]
        assert not any(first_whole <= number < last_whole for number in numbers)


def spelled(start: int, end: int, ids: Iterable[str], since: int = 0) -> list[str] | None:
    """Return the slices that cover a span, if those that end before `since` are not stored."""
    covering = cover(start, end, windows(ids), lambda window, number: window.start(number + 1) > since)
    return None if covering is None else [f"{window.id} {window.spell(number)}" for window, number in covering]


def test_hours_and_minutes_cover_the_ends_of_a_span_of_days() -> None:
    assert spelled(DAY + 22 * 3600 + 58 * 60, DAY + 86_400 * 2 + 3600 + 60, TTLS) == [
        "minute 2026-11-24T22:58",
        "minute 2026-11-24T22:59",
        "hour 2026-11-24T23",
        "day 2026-11-25",
        "hour 2026-11-26T00",
        "minute 2026-11-26T01:00",
    ]


def test_a_span_that_does_not_begin_with_a_slice_is_not_covered() -> None:
    assert spelled(60, 7200, ["hour", "day"]) is None


def test_days_of_a_zone_are_covered_by_finer_slices_only_where_these_meet_its_midnights() -> None:
    midnight = DAY - 19_800  # of 24 November in India, 18:30 in UTC
    days = [f"day@Asia/Kolkata 2026-11-2{n}" for n in (4, 5)]
    assert spelled(midnight, midnight + 2 * 86_400, ["hour", "day@Asia/Kolkata"]) == days
    hours = spelled(DAY - 6 * 3600, midnight + 86_400 + 1800, ["hour", "day@Asia/Kolkata"])
    assert hours
    assert hours[::24] == ["hour 2026-11-23T18", "hour 2026-11-24T18"]
    assert spelled(midnight, DAY + 2 * 86_400, ["hour", "day@Asia/Kolkata"]) is None
    mixed = spelled(midnight, DAY + 86_400 - 3600, ["minute", "hour", "day@Asia/Kolkata"])
    assert mixed
    assert (mixed[0], mixed[1], mixed[31:]) == (
        days[0],
        "minute 2026-11-24T18:30",
        [f"hour 2026-11-24T{hour}" for hour in range(19, 23)],
    )
    assert len(mixed) == 35


def test_slices_that_expired_are_replaced_by_coarser_or_finer_ones_that_did_not() -> None:
    start, end = DAY - 3600, DAY + 2 * 86_400
    assert spelled(start, end, TTLS) == ["hour 2026-11-23T23", "day 2026-11-24", "day 2026-11-25"]
    assert spelled(start, end, TTLS, since=start + 3600) is None
    india = ["minute", "hour", "day@Asia/Kolkata"]  # with its days, the first half hour would be of minutes
    assert (spelled(start, end, india) or [])[:2] == [f"hour 2026-11-23T{hour}" for hour in ("23",)] + [
        "hour 2026-11-24T00"
    ]
    hours = [
        window.name for window, _ in cover(start, end, windows(india), lambda window, _: window.name != "minute") or ()
    ]
    assert hours == ["hour"] * 49


INSTANTS = st.integers(-2_208_000_000, 10_413_000_000)
ZONES = st.sampled_from(
    [
        "Europe/Amsterdam",
        "America/New_York",
        "Asia/Kolkata",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",  # half an hour of summer time
        "America/St_Johns",  # until 2011 a clock that went back over midnight
        "America/Sao_Paulo",  # midnights that were skipped
        "America/Havana",  # midnights that occur twice
        "Atlantic/Azores",
        "Africa/Monrovia",  # until 1972 an offset of 44:30
        "Pacific/Apia",  # without 30 December 2011
        "Pacific/Kiritimati",
        "America/Nuuk",
        "Africa/Cairo",
    ]
)
RECENT = st.integers(1_325_400_000, 2_000_000_000)  # since 2012


@settings(deadline=None, max_examples=500)
@given(st.one_of(INSTANTS, RECENT), ZONES)
@example(1_289_097_600, "America/St_Johns")  # 2010-11-07T02:40Z, 23:10 for the second time
@example(-1_601_752_500, "America/Toronto")  # 1919-03-31T00:45, where the clock went from 23:30 to 00:30
def test_each_instant_is_in_one_day_of_a_zone_and_days_follow_each_other(time: int, zone: str) -> None:
    (day,) = windows([f"day@{zone}"])
    number = day.number(time)
    assert day.start(number) <= time < day.start(number + 1)
    assert day.start(number) % 900 == 0
    assert day.number(day.start(number)) == number
    assert day.number(day.start(number + 1) - 1) == number
    if time >= 1_325_400_000:
        local = datetime.fromtimestamp(time, ZoneInfo(zone))
        assert day.spell(number) == f"{local:%Y-%m-%d}"
        assert day.start(number + 1) - day.start(number) in {h * 1800 for h in range(46, 51)}


def test_a_day_of_a_zone_has_23_to_25_hours_or_none() -> None:
    def hours(zone: str, date: str) -> float:
        (day,) = windows([f"day@{zone}"])
        number = int(datetime.fromisoformat(f"{date}T00:00Z").timestamp()) // 86_400
        return (day.start(number + 1) - day.start(number)) / 3600

    assert [hours("Europe/Amsterdam", f"2026-{date}") for date in ("03-28", "03-29", "10-25")] == [24, 23, 25]
    assert [hours("Australia/Lord_Howe", f"2026-{date}") for date in ("04-05", "10-04")] == [24.5, 23.5]
    assert [hours("Pacific/Apia", f"2011-12-{date}") for date in (29, 30, 31)] == [24, 0, 24]


spans = st.tuples(st.integers(0, 3 * 96), st.integers(0, 3 * 96)).filter(lambda span: span[0] < span[1])


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(RECENT, st.sampled_from([1_774_742_400, 1_792_882_800, 1_775_318_400])),  # clock changes
    ZONES,
    names.filter(bool),
    st.lists(st.integers(0, 4 * 86_400), min_size=1, max_size=30),
    spans,
)
def test_a_count_of_a_span_has_exactly_its_devices(
    near: int, zone: str, wanted: set[str], offsets: list[int], span: tuple[int, int]
) -> None:
    """Events into keys, then the keys of the covering slices: a set of devices takes the place of a HyperLogLog."""
    base = near // 86_400 * 86_400
    kept = keys(windows=",".join(wanted), window_time_zone=zone, window_ttl="minute=99999d,hour=99999d,day=99999d")
    times = [base + offset for offset in offsets]
    column = kept.fields()[0].convert(times)
    groups = group([[[f"d{n}" for n, _ in enumerate(times)]], [column]], kept, Labels())
    stored = {key: devices for key, _, devices in slices(groups, kept)}
    start, end = (base + quarter * 900 for quarter in span)
    if "day" in wanted and span[0] % 2:  # from local midnight to local midnight, too
        day = kept.windows[-1]
        start, end = day.start(day.number(start)), day.start(day.number(end) + 1)
        assert cover(start, end, kept.windows, ALL) is not None
    covering = cover(start, end, kept.windows, ALL)
    if covering is None:
        finest = kept.windows[0]
        assert finest.name == "day" or any(time % finest.seconds for time in (start, end))
        return
    counted = set().union(*(stored.get(kept.of(window, number, ""), ()) for window, number in covering))
    assert counted == {f"d{n}" for n, time in enumerate(times) if start <= time < end}


def test_days_of_a_zone_have_keys_of_their_own() -> None:
    utc, local = (keys(windows="hour,day", window_time_zone=zone) for zone in ("UTC", "Europe/Amsterdam"))
    assert [kept.of(kept.windows[-1], 20_780, "") for kept in (utc, local)] == [
        "devices:{t}:day:2026-11-23",
        "devices:{t}:day@Europe/Amsterdam:2026-11-23",
    ]
    hours = {kept.of(kept.windows[0], 498_744, "") for kept in (utc, local)}
    assert hours == {"devices:{t}:hour:2026-11-24T00"}
    day = local.windows[-1]
    assert local.expires(day, 20_780) == DAY - 3600 + TTLS["day"]


ABSENT = object()
times = st.integers(DAY - 200_000, DAY + 200_000)
values = st.sampled_from(["NL", "DE", "a:b", "", 3, "3", "ü", "x" * 80, "%", None, "(none)", ABSENT])
record_batches = st.lists(st.lists(st.tuples(times, st.integers(0, 20), values), min_size=1, max_size=20), max_size=4)


@settings(deadline=None)
@given(record_batches, names, st.sampled_from(["", "country", "plan,country"]))
def test_each_key_has_the_devices_of_its_slice_and_value(record_batches: list[Any], wanted: set[str], by: str) -> None:
    options = {"windows": ",".join(wanted), "by": by}
    sink = RedisSink(load({"topic": "t", **options}, {})[0])
    kept = keys(**options)
    fields = sorted(by.split(","))
    columns: list[list[Any]] = [[] for _ in sink.fields]
    expected: dict[str, set[str]] = defaultdict(set)
    labels = Labels()
    for records in record_batches:
        events = [
            {"timestamp": time, "device_ip": f"d{device}"} | ({} if value is ABSENT else {"country": value, "plan": 7})
            for time, device, value in records
        ]
        for parts, part in zip(columns, decode(list(map(orjson.dumps, events)), sink.fields).columns, strict=True):
            parts.append(part)
        for time, device, value in records:
            label_of = {
                "country": "(none)" if value in (None, ABSENT) else labels[value],
                "plan": "(none)" if value is ABSENT else "7",
            }
            for tail in {"", "".join(f":{name}={label_of[name]}" for name in fields if name)}:
                expected[f"devices:{{t}}{tail}"].add(f"d{device}")
                for window in windows(wanted):
                    start = window.spell(time // window.seconds)
                    expected[f"devices:{{t}}:{window.name}:{start}{tail}"].add(f"d{device}")
    written = list(slices(group(columns, kept, Labels(len(kept.by))), kept))
    assert {key: devices for key, _, devices in written if devices} == expected
    assert len({key for key, _, _ in written}) == len(written)


def test_a_key_expires_at_its_ttl_after_the_end_of_its_slice() -> None:
    kept = keys(windows="minute,day", window_ttl="minute=2h")
    minute, day = kept.windows
    assert kept.expires(minute, DAY // 60) == DAY + 60 + 7200
    assert kept.expires(day, DAY // 86_400) == DAY + 86_400 + TTLS["day"]


def test_values_beyond_the_limit_share_a_key_and_labels_in_redis_count() -> None:
    labels = Labels()
    labels.learn(["stored", "(none)", "(other)"])
    assert [labels[n] for n in range(VALUES)] == [*map(str, range(VALUES - 1)), OTHER]
    assert (labels["stored"], labels[0], labels["x" * 65], labels[None]) == ("stored", "0", OTHER, "(none)")
    assert labels["(none)"] == OTHER  # a text, which is a new value


def test_combinations_beyond_the_limit_share_a_key() -> None:
    labels = Labels(2)
    labels.learn(["NL:free", "(none):(none)", "(other):(other)"])
    assert [labels[n, "a"] for n in range(VALUES)] == [*(f"{n}:a" for n in range(VALUES - 1)), "(other):(other)"]
    assert labels["NL", "free"] == "NL:free"
    assert labels["NL", None] == "(other):(other)"
    assert labels[None, None] == "(none):(none)"
    fresh = Labels(2)
    assert [fresh["a:b", "x" * 65], fresh[None, ""]] == ["a%3Ab:(other)", "(none):%"]
    assert ("a:b", "x" * 65) not in fresh  # the number of such values has no bound


@pytest.mark.parametrize(
    ("event", "reason", "field"),
    [
        ({"device_ip": "a", "country": "NL"}, "missing_field", "timestamp"),
        ({"device_ip": "a", "country": "NL", "timestamp": "soon"}, "bad_timestamp", "timestamp"),
        ({"device_ip": "a", "timestamp": DAY, "country": True}, "wrong_type", "country"),
        ({"device_ip": "a", "timestamp": DAY, "country": ["NL"]}, "wrong_type", "country"),
        ({"device_ip": "a", "timestamp": DAY, "country": 1.5}, "wrong_type", "country"),
    ],
)
def test_only_windows_check_the_time_and_only_by_checks_the_value(
    event: dict[str, Any], reason: str, field: str
) -> None:
    payload = orjson.dumps(event)
    fields = RedisSink(load({"topic": "t", "windows": "day", "by": "country"}, {})[0]).fields
    (reject,) = decode([payload], fields).rejects
    assert (reject.reason, reject.field) == (reason, field)
    assert not decode([payload], RedisSink(load({"topic": "t"}, {})[0]).fields).rejects


def test_the_time_field_is_a_path() -> None:
    settings = load({"topic": "t", "windows": "hour", "time_field": r"meta.created\.at"}, {})[0]
    fields = RedisSink(settings).fields
    payload = orjson.dumps({"device_ip": "a", "timestamp": "soon", "meta": {"created.at": "2026-11-24T05:30:00Z"}})
    decoded = decode([payload], fields)
    assert [list(column) for column in decoded.columns] == [["a"], [(DAY + 5 * 3600) // 3600]]
    (reject,) = decode([orjson.dumps({"device_ip": "a", "timestamp": DAY})], fields).rejects
    assert (reject.reason, reject.field) == ("missing_field", r"meta.created\.at")


def test_all_keys_have_the_hash_tag_of_the_total() -> None:
    for total in ("devices:{topic}", "plain", "a{b}c"):
        kept = keys(redis_key=total, windows="minute", by="x")
        tags = {key.partition("{")[2].partition("}")[0] for key in (kept.of(kept.windows[0], 1, "v"), kept.registry)}
        assert tags == {{"devices:{topic}": "t", "plain": "plain", "a{b}c": "b"}[total]}


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("windows", "week", "minute, hour, day"),
        ("window_ttl", "week=1d", "minute=1d,hour=30d,day=400d"),
        ("by", "a,b,c", "one field, or two different ones"),
        ("by", "a, a", "one field, or two different ones"),
        ("by", "a,", "write a field as keys"),
        ("window_time_zone", "Europe/Amsterdm", "did you mean Europe/Amsterdam"),
        ("window_time_zone", "localtime", "such as Europe/Amsterdam"),
        ("window_time_zone", "../etc/passwd", "such as Europe/Amsterdam"),
        ("window_ttl", "day=forever", "minute=1d,hour=30d,day=400d"),
        ("window_ttl", "day=0d", "minute=1d,hour=30d,day=400d"),
    ],
)
def test_an_invalid_option_is_an_error_that_says_what_to_write(option: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load({"topic": "t", option: text}, {})


def test_the_order_of_the_fields_does_not_change_the_keys() -> None:
    one, other = keys(by="plan,country"), keys(by=r"country, plan")
    assert one.of(None, 0, "NL:free") == other.of(None, 0, "NL:free") == "devices:{t}:country=NL:plan=free"
    assert keys(by=r"a\,b,c").names == "a%5C%2Cb:c"


def test_a_machine_without_time_zone_data_is_told_what_to_install() -> None:
    zoneinfo.reset_tzpath(["/nonexistent"])
    try:
        with pytest.raises(UsageError, match="pip install tzdata, or apt-get install tzdata"):
            load({"topic": "t", "window_time_zone": "Europe/Amsterdam"}, {})
        assert load({"topic": "t", "window_time_zone": "UTC"}, {})[0].window_time_zone == "UTC"
    finally:
        zoneinfo.reset_tzpath()
