"""Windows: every event is in the slice of its own time, and the slices that cover a time span do not overlap."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.config.settings import UsageError
from worker.config.sources import load
from worker.decoding.json import decode
from worker.sinks.redis.sink import RedisSink
from worker.sinks.redis.windows import OTHER, VALUES, Keys, Labels, cover, group, slices, windows

TTLS = {"minute": 86_400, "hour": 30 * 86_400, "day": 400 * 86_400}
DAY = 1_795_478_400  # 2026-11-24T00:00:00Z
names = st.sets(st.sampled_from(["minute", "hour", "day"]))


def keys(**options: str) -> Keys:
    return Keys(load({"topic": "t", **options}, {})[0])


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 3000), names.filter(bool))
def test_a_span_is_covered_once_by_slices_that_cannot_be_merged(first: int, length: int, wanted: set[str]) -> None:
    available = windows(wanted)
    unit = available[0].seconds
    start, end = first * unit, (first + length) * unit
    covering = cover(start, end, available)
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


def test_hours_and_minutes_cover_the_ends_of_a_span_of_days() -> None:
    covering = cover(DAY + 22 * 3600 + 58 * 60, DAY + 86_400 * 2 + 3600 + 60, windows(TTLS))
    assert [f"{window.name} {window.spell(number)}" for window, number in covering] == [
        "minute 2026-11-24T22:58",
        "minute 2026-11-24T22:59",
        "hour 2026-11-24T23",
        "day 2026-11-25",
        "hour 2026-11-26T00",
        "minute 2026-11-26T01:00",
    ]


def test_a_span_that_does_not_begin_with_a_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="whole hours"):
        cover(60, 7200, windows(["hour", "day"]))


ABSENT = object()
times = st.integers(DAY - 200_000, DAY + 200_000)
values = st.sampled_from(["NL", "DE", "a:b", "", 3, "3", "ü", "x" * 80, "%", None, "(none)", ABSENT])
record_batches = st.lists(st.lists(st.tuples(times, st.integers(0, 20), values), min_size=1, max_size=20), max_size=4)


@settings(deadline=None)
@given(record_batches, names, st.booleans())
def test_each_key_has_the_devices_of_its_slice_and_value(record_batches: list[Any], wanted: set[str], by: bool) -> None:
    options = {"windows": ",".join(wanted), "by": "country" if by else ""}
    sink = RedisSink(load({"topic": "t", **options}, {})[0])
    kept = keys(**options)
    columns: list[list[Any]] = [[] for _ in sink.fields]
    expected: dict[str, set[str]] = defaultdict(set)
    labels = Labels()
    for records in record_batches:
        events = [
            {"timestamp": time, "device_ip": f"d{device}"} | ({} if value is ABSENT else {"country": value})
            for time, device, value in records
        ]
        for parts, part in zip(columns, decode(list(map(orjson.dumps, events)), sink.fields).columns, strict=True):
            parts.append(part)
        for time, device, value in records:
            for label in {"", "(none)" if value in (None, ABSENT) else labels[value]} if by else {""}:
                tail = f":country={label}" if label else ""
                expected[f"devices:{{t}}{tail}"].add(f"d{device}")
                for window in windows(wanted):
                    start = window.spell(time // window.seconds)
                    expected[f"devices:{{t}}:{window.name}:{start}{tail}"].add(f"d{device}")
    written = list(slices(group(columns, kept, Labels()), kept))
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
        ("window_ttl", "day=forever", "minute=1d,hour=30d,day=400d"),
        ("window_ttl", "day=0d", "minute=1d,hour=30d,day=400d"),
    ],
)
def test_an_invalid_option_is_an_error_that_says_what_to_write(option: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load({"topic": "t", option: text}, {})
