"""When partitions that nobody reads lead to a new assignment."""

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


def test_unowned_partitions_are_found_after_30_seconds(clock: Clock) -> None:
    unowned = UnownedPartitions(clock)
    for _ in range(29):
        assert unowned.find([lag(0, 10), lag(1, None)], ()) == []
        clock.now += 1
    clock.now += 1
    assert unowned.find([lag(0, 10), lag(1, None)], ()) == [("events", 0), ("events", 1)]


@pytest.mark.parametrize(
    ("lag_at", "owned"),
    [
        pytest.param(lambda i: lag(0, 10 + i), (), id="another host commits"),
        pytest.param(lambda _: lag(0, 10), {("events", 0)}, id="owned here, waiting for the store"),
        pytest.param(lambda _: lag(0, 100), (), id="nothing unread"),
        pytest.param(lambda i: lag(0, 10) if i % 20 else lag(0, 100), (), id="repeatedly read to the end"),
    ],
)
def test_partitions_that_are_read_or_owned_are_not_found(clock: Clock, lag_at: object, owned: object) -> None:
    unowned = UnownedPartitions(clock)
    for i in range(3600):
        assert unowned.find([lag_at(i)], owned) == []  # type: ignore[operator, arg-type]
        clock.now += 1


def test_the_pause_doubles_and_is_reset(clock: Clock) -> None:
    unowned = UnownedPartitions(clock)
    found_at: list[float] = []
    for second in range(4000):
        if unowned.find([lag(0, 10)], ()):
            found_at.append(second)
        clock.now += 1
    assert found_at == [30, 60, 120, 240, 480, 960, 1560, 2160, 2760, 3360, 3960]
    assert unowned.find([lag(0, 100)], ()) == []
    clock.now += 600
    assert unowned.find([lag(0, 100, 200)], ()) == []
    clock.now += 30
    assert unowned.find([lag(0, 100, 200)], ()) == [("events", 0)]
