"""Where a partition's log ended, and when: from that, how old the event at any offset is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

_KEEP = 128  # points a partition; thinned beyond
_FINE = 2.0  # s: an age is known well enough within this, or within a tenth of itself


class Point(NamedTuple):
    """At `time` (s since the epoch) the log ended at `end`: offsets below it were written before, the others after."""

    time: float
    end: int


class Ends:
    """The end of one partition's log over time, ascending in time and in offset.

    `sample` adds what is seen now; `learn` adds what the broker says of the past (the first offset whose timestamp is
    not before a time is where the log ended at that time, as far as producers' clocks agree).
    """

    def __init__(self) -> None:
        self._points: list[Point] = []

    def sample(self, time: float, end: int) -> None:
        """Add the end as seen now. An end that went back is another log (the topic was made anew): all is forgotten."""
        points = self._points
        if points and (end < points[-1].end or time < points[-1].time):
            points.clear()
        if len(points) > 1 and points[-1].end == points[-2].end == end:
            points[-1] = Point(time, end)  # of a time without events only its first and last moment matter
        else:
            points.append(Point(time, end))
        if len(points) > _KEEP:
            del points[1 : _KEEP // 2 : 2]

    def learn(self, time: float, end: int) -> None:
        """Add what was asked of the past; clipped where clocks disagree with what is known."""
        points = self._points
        at = bisect_right(points, time, key=_time)
        if at:
            end = max(end, points[at - 1].end)
        if at < len(points):
            end = min(end, points[at].end)
        points.insert(at, Point(time, end))

    def age(self, offset: int, now: float) -> float:
        """Return the seconds since `offset` was written: between two points by the straight line, at least 0.

        Before the first point it is the age of that point: at least so old.
        """
        low, high = self._around(offset)
        if high is None:
            return 0.0
        if low is None:
            return max(0.0, now - high.time)
        part = (offset - low.end) / (high.end - low.end)
        return max(0.0, now - low.time - part * (high.time - low.time))

    def question(self, offset: int, now: float) -> float | None:
        """Return the time to ask the broker about next, or None when the age is known to a tenth (or 2 s)."""
        low, high = self._around(offset)
        if high is None:
            return None
        if low is None:
            time = now - max(_FINE, 4 * (now - high.time))
            return time if time > 0 else None
        width = high.time - low.time
        return None if width <= max(_FINE, 0.1 * (now - high.time)) else low.time + width / 2

    def growth(self, now: float, window: float = 60.0) -> float:
        """Return the events a second that were written over the last `window` seconds or since the first point."""
        points = self._points
        first = points[min(bisect_left(points, now - window, key=_time), len(points) - 1)] if points else None
        if first is None or points[-1].time <= first.time:
            return 0.0
        return (points[-1].end - first.end) / (points[-1].time - first.time)

    def forget(self, offset: int) -> None:
        """Drop what is only of use for offsets below this one."""
        del self._points[: max(0, bisect_right(self._points, offset, key=_end) - 1 - _KEEP // 2)]

    def _around(self, offset: int) -> tuple[Point | None, Point | None]:
        """Return the last point at which the offset was not yet written, and the first at which it was."""
        at = bisect_right(self._points, offset, key=_end)
        return (
            self._points[at - 1] if at else None,
            self._points[at] if at < len(self._points) else None,
        )


def _time(point: Point) -> float:
    return point.time


def _end(point: Point) -> int:
    return point.end
