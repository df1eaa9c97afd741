from __future__ import annotations

import pytest

from worker.kafka.group_lag import PartitionLag, Retention, headroom

BEHIND = PartitionLag("events", 0, start=100, end=1100, committed=600, seconds=0, headroom=None)


def test_a_group_without_a_commit_begins_at_the_start_of_the_log() -> None:
    lag = BEHIND._replace(committed=None)
    assert (lag.position, lag.messages) == (100, 1000)


def test_events_that_retention_removed_are_not_lag() -> None:
    lag = BEHIND._replace(committed=50)
    assert (lag.position, lag.messages) == (100, 1000)


def test_a_commit_beyond_the_end_is_zero_lag() -> None:
    assert BEHIND._replace(committed=2000).messages == 0


def test_commits_or_retention_reach_an_end() -> None:
    assert not BEHIND.has_reached(601)
    assert BEHIND.has_reached(600)
    assert BEHIND.has_reached(0)
    assert BEHIND._replace(committed=None).has_reached(100)


@pytest.mark.parametrize(
    ("retention", "growth", "expected"),
    [
        (Retention(), 10.0, None),
        (Retention(seconds=3600), 10.0, 3500),
        (Retention(bytes=100_000), 10.0, 50),  # space for 1000 events, 500 are unread, 10 more a second
        (Retention(bytes=100_000), 0.0, None),
        (Retention(seconds=3600, bytes=100_000), 10.0, 50),
        (Retention(seconds=60), 10.0, 0),
    ],
)
def test_headroom_is_the_earlier_of_age_and_size(retention: Retention, growth: float, expected: float | None) -> None:
    assert headroom(BEHIND, 100.0, retention, event_bytes=100.0, growth=growth) == expected


def test_headroom_is_zero_once_unread_events_were_removed() -> None:
    assert headroom(BEHIND._replace(committed=99), 0.0, Retention(seconds=3600), 100.0, 0.0) == 0
