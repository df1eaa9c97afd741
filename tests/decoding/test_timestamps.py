"""Every form of an instant gives the same number, columns agree with single values, and invalid input is rejected."""

from __future__ import annotations

import io
import math
import os
import time
from array import array
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from worker.commands.timestamps import check_file
from worker.commands.timestamps import timestamps as run
from worker.decoding import bounded_cache, timestamps
from worker.decoding.timestamps import (
    FIRST,
    LAST,
    column_to_millis,
    column_to_nanos,
    normalize,
    to_iso,
    to_millis,
    to_nanos,
)

settings.register_profile("worker", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy hosts
settings.load_profile("worker")

DATA = Path(__file__).parents[1] / "data"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

instants = st.integers(FIRST, LAST)
texts = st.one_of(
    st.text(max_size=30),
    st.text("0123456789-:.,TtZz +_٠३\u2003\n\0", max_size=34),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.,][0-9]{0,10})?(Z|[+-][0-9:]{0,6})?"),
    st.from_regex(r"\A-?[0-9]{1,20}(\.[0-9]{0,11})?(Z|\n)?\Z"),
    st.builds(
        lambda head, cut, tail: head[:cut] + tail,
        st.sampled_from(["2021-12-03T16:15:30.235+01:00", "1726668850.1242345678", "1726668850124"]),
        st.integers(0, 29),
        st.sampled_from(
            ["", "Z", "z", "٠", "0", ".", ".1", "+01", "-00:00", "+24:00", " ", "\n", "_0", "\x00", "½", "e9"]
        ),
    ),
)
values = st.one_of(
    texts,
    instants.map(to_iso),
    instants,
    st.integers(),
    st.floats(),
    st.floats(-1e13, 1e13),
    st.booleans(),
    st.none(),
    st.just(10**5000),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@pytest.fixture(autouse=True, params=[True, False], ids=["by second", "by minute"])
def _lookup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look every column up by second or by minute, and start with empty caches."""
    monkeypatch.setattr(timestamps._Seconds, "is_useful_for", lambda *_: request.param)
    for cache in (timestamps._seconds, timestamps._minutes, timestamps._rests):
        cache.clear()


def outcome(convert: Any, value: Any) -> Any:
    try:
        return convert(value)
    except ValueError:
        return ValueError


@pytest.mark.parametrize("name", ["timestamps.txt", "timestamps-more.txt"])
def test_all_cases_of_the_files_pass(name: str) -> None:
    out = io.StringIO()
    passed, failed = check_file(DATA / name, out)
    assert failed == 0, out.getvalue()
    assert passed >= 14


@given(instants)
def test_millis_and_iso_strings_are_inverse(millis: int) -> None:
    assert to_millis(to_iso(millis)) == millis
    assert datetime.fromisoformat(to_iso(millis)) == EPOCH + timedelta(milliseconds=millis)


@given(st.integers(FIRST * 10**6, LAST * 10**6), st.integers(0, 9), st.integers(-1439, 1439), st.sampled_from("Tt "))
def test_an_iso_string_means_the_same_as_in_datetime(nanos: int, digits: int, offset: int, separator: str) -> None:
    seconds, fraction = divmod(nanos, 10**9)
    local = (EPOCH + timedelta(seconds=seconds)).astimezone(timezone(timedelta(minutes=offset)))
    text = local.strftime(f"%Y-%m-%d{separator}%H:%M:%S")
    written = f"{fraction:09d}"[:digits]
    zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"
    expected = seconds * 1000 + int(written[:3].ljust(3, "0"))
    for spelling in (
        text + ("." if written else "") + written + zone,
        text + ("," if written else "") + written + zone,
    ):
        assert to_millis(spelling) == expected
        assert column_to_millis([spelling]) == array("q", [expected])


@given(st.integers(-(10**11) + 1, 10**11 - 1))
def test_whole_numbers_below_the_threshold_are_seconds(number: int) -> None:
    expected: Any = number * 1000 if FIRST <= number * 1000 <= LAST else ValueError
    assert (
        outcome(to_millis, number) == outcome(to_millis, str(number)) == outcome(to_millis, float(number)) == expected
    )


@given(st.one_of(st.integers(10**11), st.integers(max_value=-(10**11))))
@example(10**14 - 1)
@example(10**14)
@example(10**17)
def test_whole_numbers_from_the_threshold_on_are_millis_micros_or_nanos(number: int) -> None:
    per_milli = 1 if abs(number) < 10**14 else 1000 if abs(number) < 10**17 else 10**6
    millis = number // per_milli
    expected: Any = millis if FIRST <= millis <= LAST else ValueError
    assert outcome(to_millis, number) == outcome(to_millis, str(number)) == expected


@given(st.integers(-(10**18), 9 * 10**18))
def test_nanoseconds_are_exact_in_all_forms(nanos: int) -> None:
    seconds, fraction = divmod(nanos, 10**9)
    iso = to_iso(seconds * 1000).removesuffix(".000Z")
    for spelling in (f"{iso}.{fraction:09d}Z", f"{iso},{fraction:09d}"):
        assert to_nanos(spelling) == nanos
        assert column_to_nanos([spelling]) == [nanos]
    if abs(nanos) >= 10**17:
        assert to_nanos(nanos) == to_nanos(str(nanos)) == nanos
    if nanos % 1000 == 0 and 10**14 <= abs(nanos // 1000) < 10**17:
        assert to_nanos(nanos // 1000) == nanos


@given(
    st.one_of(
        st.integers(-2_208_988_800 * 10**6, 10_413_791_999 * 10**6),
        st.integers(-2_208_988_800 * 10**3, 10_413_791_999 * 10**3).map(lambda millis: millis * 1000),
    )
)
@example(1_001_000)  # 1.001 * 1000 is 1000.9999999999999
def test_a_fraction_of_a_second_is_rounded_towards_the_past_and_keeps_its_written_digits(micros: int) -> None:
    sign, (seconds, fraction) = "-" * (micros < 0), divmod(abs(micros), 10**6)
    text = f"{sign}{seconds}.{fraction:06d}"
    assert to_millis(text) == micros // 1000
    assert to_millis(float(text)) == micros // 1000


@pytest.mark.parametrize(
    "value",
    [
        *[
            "",
            " ",
            "-",
            "+1726667942",
            ".5",
            "5.",
            "1726667942 ",
            " 1726667942",
            "1726667942\n",
            "1_726_667_942",
            "1.7e9",
        ],
        *[
            "١٧٢٦٦٦٧٩٤٢",
            "१७२६६६७९४२",
            "１７２６６６７９４２",
            "²",
            "½",
            "NaN",
            "inf",
            "-inf",
            "Infinity",
            "0x10",
            "null",
        ],
        *[
            "2021-12-03",
            "2021-12-03T16:15",
            "20211203T161530",
            "2021-W01-1",
            "2021-W01-1T00:00:00",
            "2021-337T00:00:00",
        ],
        *["2021-02-29T00:00:00", "2021-13-01T00:00:00", "2021-00-01T00:00:00", "0000-01-01T00:00:00"],
        *["2021-12-03T24:00:00", "2021-12-03T25:00:00", "2021-12-03T23:60:00", "2016-12-31T23:59:60Z"],
        *["2021-12-03T16:15:30.", "2021-12-03T16:15:30.Z", "2021-12-03T16:15:30.1234567890", "2021-12-03T16:15:30ZZ"],
        *["2021-12-03T16:15:30+1", "2021-12-03T16:15:30+24:00", "2021-12-03T16:15:30+01:60", "2021-12-03T16:15:30+01:"],
        *["2021-12-03T16:15:30 Z", " 2021-12-03T16:15:30", "2021-12-03T16:15:30 ", "2021-12-03T16:15:30\n"],
        *["2021-12-03T16:15:3٠", "2021-12-03T16:15:30.٢٣٥", "2021-12-03T16:15:30.235Z\0", "2021-12-03\u2003T16:15:30"],
        *["1899-12-31T23:59:59.999Z", "2300-01-01T00:00:00Z", "1900-01-01T00:00:00+00:01", "2299-12-31T23:59:59-00:01"],
        *["yesterday", "Fri, 03 Dec 2021 16:15:30 GMT", "9" * 5000],
        *[
            10_413_792_000,
            99_999_999_999,
            LAST + 1,
            FIRST - 1,
            99_999_999_999_999,  # milliseconds of the year 5138
            99_999_999_999_999_999,  # microseconds of the year 5138
            10**400,
        ],
        *[math.nan, math.inf, -math.inf, 1e300, 10_413_792_000.0],
        *[True, False, None, [1726667942], {"at": 1726667942}, b"1726667942"],
    ],
    ids=lambda value: ascii(value)[:40] if not isinstance(value, int) or abs(value) < 10**20 else "huge",
)
def test_an_invalid_timestamp_is_a_value_error_alone_and_among_others(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_millis(value)
    for column in ([value], [1726667942, value], ["2021-12-03T16:15:30Z", value, 1726668850124]):
        with pytest.raises(ValueError, match=r"."):
            column_to_millis(column)


@settings(max_examples=1500)
@given(values)
@example("2021-12-03T16:15:3٠")
@example("1726668850.12345678")
@example("1726668850.12345678Z")
@example("1900-01-01T00:00:00+00:01")
@example("1900-01-01T00:00:00-00:01")
@example("2299-12-31T23:59:59.999Z")
def test_a_column_of_one_agrees_with_the_value(value: Any) -> None:
    single = outcome(lambda value: array("q", [to_millis(value)]), value)
    assert outcome(column_to_millis, [value]) == single
    assert outcome(column_to_millis, [value]) == single  # from the caches


@settings(max_examples=300)
@given(st.lists(values, max_size=8))
def test_a_column_is_its_values_in_order_or_a_value_error_when_any_is_bad(column: list[Any]) -> None:
    singles = [outcome(to_millis, value) for value in column]
    assert outcome(column_to_millis, column) == (ValueError if ValueError in singles else array("q", singles))


@given(
    st.lists(st.one_of(values, st.booleans(), st.sampled_from([0, 1, 0.0, -0.0, 1.0])), max_size=4), st.integers(3, 5)
)
@example([1, True], 3)
@example([False, 0], 3)
def test_a_column_of_repeated_values_gives_the_same_result(column: list[Any], times: int) -> None:
    singles = [outcome(to_millis, value) for value in column]
    expected = ValueError if ValueError in singles else array("q", singles * times)
    assert outcome(column_to_millis, column * times) == expected


@given(st.lists(st.one_of(instants.map(to_iso), instants.map(lambda millis: millis // 1000)), min_size=1))
def test_good_columns_of_mixed_forms_become_one_array(column: list[Any]) -> None:
    assert column_to_millis(column) == array("q", map(to_millis, column))


def test_an_empty_column_is_an_empty_array() -> None:
    assert column_to_millis([]) == array("q")


def test_caches_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_cache, "_SIZE", 100)
    for start in range(0, 2000, 50):
        column = [f"2021-12-03T16:15:30.{i:06d}Z" for i in range(start, start + 50)]
        column += [str(1_700_000_000 + i) for i in range(start, start + 50)]
        assert column_to_millis(column) == array("q", map(to_millis, column))
        assert len(timestamps._seconds) <= 100
        assert len(timestamps._rests) <= 100
    for hour in range(300):
        column_to_millis([f"2021-12-03T{hour % 24:02}:{minute:02}:{hour // 24:02}" for minute in range(60)])
        assert len(timestamps._seconds) <= 100
        assert len(timestamps._minutes) <= 100


def test_the_cache_of_seconds_is_used_unless_most_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(timestamps, "_seconds", timestamps._Seconds())
    live = [f"2021-12-03T16:15:{i % 3:02}.{i:03}Z" for i in range(900)]
    backlog = [f"2021-12-{1 + i % 28:02}T{i % 24:02}:{i % 60:02}:{i % 59:02}Z" for i in range(900)]
    for column, cached in ((live, 3), (backlog, 903), (backlog, 903), (live, 903)):
        assert column_to_millis(column) == array("q", map(to_millis, column))
        assert len(timestamps._seconds) == cached
    for _ in range(timestamps._BYPASSED_COLUMNS):
        column_to_millis(["2020-01-01T00:00:00Z"])
    assert len(timestamps._seconds) == 904


def test_an_invalid_value_is_never_cached_as_valid() -> None:
    for _ in range(2):
        assert outcome(column_to_millis, ["1726668850.12345678Z"]) is ValueError
        assert column_to_millis(["1726668850.12345678"]) == array("q", [1726668850123])


def test_the_local_time_zone_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "America/St_Johns")
    time.tzset()
    try:
        assert normalize("2021-12-03T16:15:30.235") == "2021-12-03T16:15:30.235Z"
        assert normalize(1726667942) == "2024-09-18T13:59:02.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_command_prints_each_failing_line_and_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "cases.txt"
    cases.write_bytes(
        b"\xef\xbb\xbf# a comment\r\n\r\n"
        b"1726667942,2024-09-18T13:59:02.000Z\r\n"
        b'"2021-12-03T16:15:30,235",2021-12-03T16:15:30.235Z\n'
        b"2021-12-03T16:15:30, 2021-12-03T16:15:30.000Z\n"
        b"true,error\n"
        b"' 1726667942',error\n"
        b"yesterday,2024-09-18T13:59:02.000Z\n"
        b"'1726667942',2024-09-18T13:59:03.000Z\n"
        b"1726667942,error\n"
        b"1726667942"
    )
    assert run(cases) == 1
    assert capsys.readouterr().out.splitlines() == [
        "line 8: 'yesterday': expected 2024-09-18T13:59:02.000Z, got an error: neither ISO 8601 nor Unix time",
        "line 9: '1726667942': expected 2024-09-18T13:59:03.000Z, got 2024-09-18T13:59:02.000Z",
        "line 10: 1726667942: expected error, got 2024-09-18T13:59:02.000Z",
        "line 11: '1726667942': no comma; a line is 'input,expected'",
        "5 passed, 4 failed",
    ]


def test_the_command_exits_with_0_if_all_passed_and_2_if_the_file_is_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(DATA / "timestamps.txt") == 0
    assert capsys.readouterr().out == "14 passed, 0 failed\n"
    for path in (tmp_path / "missing.txt", tmp_path):
        assert run(path) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert str(path) in captured.err
