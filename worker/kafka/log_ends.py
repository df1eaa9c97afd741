"""The history of a partition's log end, which gives the age of the event at an offset."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import NamedTuple

_KEEP = 128  # points per partition; more are thinned out
_GROWTH_S = 60.0  # growth is that of the last minute
_PRECISION_S = 2.0  # an age is precise enough within this, or within a tenth of itself


class Point(NamedTuple):
    """At `time` (Unix time in s) the log ended at `end`: lower offsets were written before, the others after."""

    time: float
    end: int


_time, _end = attrgetter("time"), attrgetter("end")


class LogEnds:
    """The end of one partition's log over time, ascending in time and offset.

    `sample` adds the current end. `add_past` adds a past one, from the broker: the first offset whose timestamp is not
    before a time is the log's end at that time, as far as the producers' clocks agree.
    """

    def __init__(self) -> None:
        self._points: list[Point] = []

    def sample(self, time: float, end: int) -> None:
        """Add the current end. If it went back, the topic was recreated, and the history is dropped."""
        points = self._points
        if points and (end < points[-1].end or time < points[-1].time):
            points.clear()
        if len(points) > 1 and points[-1].end == points[-2].end == end:
            points[-1] = Point(time, end)  # of a time without events, only the first and the last point matter
        else:
            points.append(Point(time, end))
        if len(points) > _KEEP:
            del points[1 : _KEEP // 2 : 2]

    def add_past(self, time: float, end: int) -> None:
        """Add a past end, clipped to its neighbours if clocks disagree."""
        points = self._points
        at = bisect_right(points, time, key=_time)
        if at:
            end = max(end, points[at - 1].end)
        if at < len(points):
            end = min(end, points[at].end)
        points.insert(at, Point(time, end))

    def age(self, offset: int, now: float) -> float:
        """Return the seconds since `offset` was written, at least 0: linear between two points.

        Before the first point it is the age of that point, a lower bound.
        """
        low, high = self._around(offset)
        if high is None:
            return 0.0
        if low is None:
            return max(0.0, now - high.time)
        fraction = (offset - low.end) / (high.end - low.end)
        return max(0.0, now - low.time - fraction * (high.time - low.time))

    def next_lookup(self, offset: int, now: float) -> float | None:
        """Return the time to ask the broker about next; None if the age is known to a tenth (or 2 s)."""
        low, high = self._around(offset)
        if high is None:
            return None
        if low is None:
            time = now - max(_PRECISION_S, 4 * (now - high.time))
            return time if time > 0 else None
        width = high.time - low.time
        return None if width <= max(_PRECISION_S, 0.1 * (now - high.time)) else low.time + width / 2

    def growth(self, now: float) -> float:
        """Return the events per second of the last minute, or since the first point."""
        points = self._points
        first = points[min(bisect_left(points, now - _GROWTH_S, key=_time), len(points) - 1)] if points else None
        if first is None or points[-1].time <= first.time:
            return 0.0
        return (points[-1].end - first.end) / (points[-1].time - first.time)

    def prune(self, offset: int) -> None:
        """Drop points that only lower offsets need."""
        del self._points[: max(0, bisect_right(self._points, offset, key=_end) - 1 - _KEEP // 2)]

    def _around(self, offset: int) -> tuple[Point | None, Point | None]:
        """Return the last point before the offset was written, and the first after that."""
        at = bisect_right(self._points, offset, key=_end)
        return (
            self._points[at - 1] if at else None,
            self._points[at] if at < len(self._points) else None,
        )
