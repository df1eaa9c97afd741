from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.kafka.log_ends import LogEnds


def log_of(*samples: tuple[float, int]) -> LogEnds:
    ends = LogEnds()
    for time, end in samples:
        ends.sample(time, end)
    return ends


def test_an_event_is_as_old_as_the_time_when_the_end_passed_it() -> None:
    ends = log_of((100, 0), (110, 1000), (120, 1000), (130, 2000))
    assert ends.age(500, now=130) == 25
    assert ends.age(1000, now=130) == 10  # written after the pause, not before it
    assert ends.age(2000, now=130) == 0  # not written yet


def test_an_event_before_the_first_sample_is_at_least_as_old_as_it() -> None:
    ends = log_of((100, 5000), (110, 6000))
    assert ends.age(10, now=110) == 10
    assert ends.next_lookup(10, now=110) is not None


def test_a_log_that_shrinks_is_a_recreated_topic() -> None:
    ends = log_of((100, 5000), (110, 6000), (120, 10))
    assert ends.age(5, now=125) == 5
    assert ends.growth(now=125) == 0


def test_growth_is_that_of_the_last_minute() -> None:
    ends = log_of(*((float(second), 0 if second < 100 else (second - 100) * 50) for second in range(200)))
    assert ends.growth(now=199) == 50
    assert LogEnds().growth(now=0) == 0


def test_memory_is_bounded_while_no_event_is_read() -> None:
    ends = log_of(*((float(second), second * 10) for second in range(100_000)))
    assert len(ends._points) <= 128
    ends.prune(999_000)
    assert len(ends._points) <= 128
    assert ends.age(999_980, now=99_999) <= 2


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 50)), min_size=1, max_size=200),
    st.data(),
)
def test_lookups_find_the_age_of_any_event_to_a_tenth(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """A log written in bursts of `count` events `pause` seconds apart, sampled only at its end."""
    written: list[float] = []
    now = 1_000_000.0
    for pause, count in steps:
        now += pause
        written += [now] * count
    now += 1
    ends = log_of((now, len(written)))
    if not written:
        return
    offset = data.draw(st.integers(0, len(written) - 1))
    lookups = 0
    while (time := ends.next_lookup(offset, now)) is not None:
        ends.add_past(time, sum(stamp < time for stamp in written))
        lookups += 1
        assert lookups < 100
    real = now - written[offset]
    assert abs(ends.age(offset, now) - real) <= max(2.0, 0.12 * real)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 10**9)), max_size=30), st.integers(0, 10**9))
def test_contradictory_answers_keep_the_points_in_order(answers: list[tuple[float, int]], offset: int) -> None:
    ends = log_of((1e9, 10**9 + 1))
    for time, end in answers:
        ends.add_past(time, end)
    assert ends.age(offset, now=1e9) >= 0
    ends.next_lookup(offset, now=1e9)
    assert sorted(point.end for point in ends._points) == [point.end for point in ends._points]
