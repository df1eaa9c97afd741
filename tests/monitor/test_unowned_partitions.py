"""Partitions with unread events that nobody reads: when the group is asked to share them out anew."""

from __future__ import annotations

import pytest

from tests.support.clocks import Clock
from worker.kafka.group_lag import PartitionLag
from worker.monitor.unowned_partitions import UnownedPartitions


def lag(partition: int, committed: int | None, end: int = 100) -> PartitionLag:
    return PartitionLag("events", partition, 0, end, committed, 1.0, None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_nobody_reads_is_told_after_half_a_minute(clock: Clock) -> None:
    unowned = UnownedPartitions(clock)
    for _ in range(29):
        assert unowned.look([lag(0, 10), lag(1, None)], ()) == []
        clock.now += 1
    clock.now += 1
    assert unowned.look([lag(0, 10), lag(1, None)], ()) == [("events", 0), ("events", 1)]


@pytest.mark.parametrize(
    ("seen", "owned"),
    [
        pytest.param(lambda i: lag(0, 10 + i), (), id="somebody elsewhere commits"),
        pytest.param(lambda _: lag(0, 10), {("events", 0)}, id="it is owned here, and waits for the store"),
        pytest.param(lambda _: lag(0, 100), (), id="there is nothing to read"),
        pytest.param(lambda i: lag(0, 10) if i % 20 else lag(0, 100), (), id="it is read to the end now and then"),
    ],
)
def test_what_is_read_or_owned_is_left_alone(clock: Clock, seen: object, owned: object) -> None:
    unowned = UnownedPartitions(clock)
    for i in range(3600):
        assert unowned.look([seen(i)], owned) == []  # type: ignore[operator, arg-type]
        clock.now += 1


def test_the_pauses_double_and_begin_anew(clock: Clock) -> None:
    unowned = UnownedPartitions(clock)
    asked: list[float] = []
    for second in range(4000):
        if unowned.look([lag(0, 10)], ()):
            asked.append(second)
        clock.now += 1
    assert asked == [30, 60, 120, 240, 480, 960, 1560, 2160, 2760, 3360, 3960]
    assert unowned.look([lag(0, 100)], ()) == []
    clock.now += 600
    assert unowned.look([lag(0, 100, 200)], ()) == []
    clock.now += 30
    assert unowned.look([lag(0, 100, 200)], ()) == [("events", 0)]
