"""The status page and its data: what is now, and how it was over the last 15 minutes."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from importlib.resources import files
from typing import Any

import orjson

from worker.core.accounts import Accounts, Sums, running_slots
from worker.core.counters import Slot, Stats
from worker.core.version import version_text
from worker.monitor.http import Request, Response
from worker.monitor.state import MonitorState

_HISTORY_S = 900
_EVERY_S = 2.0
_RATE_S = 5.0
_CPU_S = 15.0  # consumers tell their CPU time every 5 s
_ERRORS = 20
HISTORY = ("time", "consumed_per_s", "written_per_s", "dead_lettered_per_s", "lag", "lag_s", "devices", "processes")


class Status:
    """A bounded history, sampled by the monitor's loop, and the two pages made of it."""

    def __init__(self, stats: Stats, state: MonitorState, accounts: Accounts) -> None:
        self._stats = stats
        self._state = state
        self._accounts = accounts
        self._started = time.time()
        self._history: deque[tuple[float | None, ...]] = deque(maxlen=int(_HISTORY_S / _EVERY_S))
        self._recent: deque[tuple[float, dict[str, int]]] = deque()  # (monotonic, accounts) of the last seconds
        self._cpu: deque[tuple[float, dict[int, tuple[int, int]]]] = deque()  # (monotonic, slot → pid, CPU ns)
        self._errors: deque[dict[str, Any]] = deque(maxlen=_ERRORS)  # newest first
        self._known: dict[str, Any] = {}  # whose newest error is which
        self._sampled = 0.0

    def sample(self, sums: Sums) -> None:
        """Note the present: every call the rates and errors, every two seconds a point of the history."""
        now, running = time.monotonic(), running_slots(self._stats)
        _push(self._recent, now, sums.total, _RATE_S)
        _push(self._cpu, now, {slot.index: (slot.get("pid"), slot.get("cpu_ns")) for slot in running}, _CPU_S)
        for slot in self._stats.used():
            if slot.get("error_ns"):
                self._note(f"consumer {slot.index}", slot.get("error_ns"), slot.error())
        self._note("monitor", self._state.error, self._state.error)
        if now - self._sampled < _EVERY_S:
            return
        self._sampled = now
        rates, lags = self._rates(), self._state.lags
        self._history.append(
            (
                round(time.time(), 1),
                *(rates[account] for account in ("consumed", "written", "dead_lettered")),
                sum(lag.messages for lag in lags) if lags else None,
                round(max(lag.seconds for lag in lags), 1) if lags else None,
                self._state.devices if self._state.store_up else None,
                len(running),
            )
        )

    def page(self, _request: Request) -> Response:
        """The status page; it fetches `json` by itself."""
        return Response(files("worker.monitor").joinpath("status.html").read_bytes(), "text/html; charset=utf-8")

    def json(self, request: Request) -> Response:
        """Return all that the page and `top` show; of the history what is newer than `since` (s since the epoch)."""
        try:
            since = float(request.query.get("since", 0))
        except ValueError:
            return Response(b"since is a number of seconds\n", status=400)
        return Response(orjson.dumps(self.now(since)), "application/json")

    def now(self, since: float = 0.0) -> dict[str, Any]:
        """Return the present as plain data."""
        seen, settings = self._state, self._state.settings
        lags, running, sums = seen.lags, running_slots(self._stats), self._accounts.read()
        ups = [slot.get("sink_up") for slot in running]
        return {
            "version": version_text(),
            "topic": ", ".join(settings.topics),
            "topics": [
                {"topic": topic, "partitions": count, "devices": seen.devices_by_topic.get(topic)}
                for topic, count in seen.topics.items()
            ],
            "group": settings.group_id,
            "backend": settings.backend,
            "time": time.time(),
            "uptime_s": time.time() - self._started,
            "unready": seen.unready(self._stats),
            "starting": seen.starting,
            "kafka_up": seen.kafka_up,
            "sink_up": bool(min(ups)) if ups else seen.store_up,
            "rates": self._rates(),
            "accounts": {**sums.total, "unaccounted": sum(sums.unaccounted.values())},
            "lag": sum(lag.messages for lag in lags) if lags else None,
            "lag_s": max(lag.seconds for lag in lags) if lags else None,
            "headroom_s": min((lag.headroom for lag in lags if lag.headroom is not None), default=None),
            "devices": seen.devices,
            "devices_age_s": time.monotonic() - seen.devices_at if seen.devices is not None else None,
            "partitions": [
                {
                    "topic": lag.topic,
                    "partition": lag.partition,
                    "lag": lag.messages,
                    "lag_s": lag.seconds,
                    "position": lag.position,
                    "end": lag.end,
                    "owner": sums.owner.get(lag.key),
                }
                for lag in lags
            ],
            "processes": [self._process(slot) for slot in running],
            "restarts": sum(slot.get("restarts") for slot in self._stats.used()),
            "rebalances": sum(slot.get("rebalances") for slot in self._stats.used()),
            "errors": list(self._errors),
            "fields": HISTORY,
            "history": [point for point in self._history if point[0] is not None and point[0] > since],
        }

    def _process(self, slot: Slot) -> dict[str, Any]:
        now = time.monotonic_ns()
        return {
            "slot": slot.index,
            "pid": slot.get("pid"),
            "restarts": slot.get("restarts"),
            "uptime_s": (now - slot.get("started_ns")) / 1e9,
            "beat_s": max(0, now - slot.get("heartbeat_ns")) / 1e9,
            "partitions": slot.get("assigned"),
            "cpu": self._cpu_share(slot),
            "rss_bytes": slot.get("rss_bytes"),
            "paused": bool(slot.get("paused")),
            "sink_up": bool(slot.get("sink_up")),
        }

    def _cpu_share(self, slot: Slot) -> float | None:
        """Return the share of one core over the last seconds; None for a process that has not told twice."""
        told: list[tuple[float, int]] = []
        for taken, cpu in self._cpu:
            pid, spent = cpu.get(slot.index, (0, 0))
            if pid == slot.get("pid") and spent and (not told or told[-1][1] != spent):
                told.append((taken, spent))
        if len(told) < 2:
            return None
        return max(0.0, (told[-1][1] - told[0][1]) / 1e9 / (told[-1][0] - told[0][0]))

    def _rates(self) -> dict[str, float]:
        """Return the events a second over the last seconds, by account."""
        names = ("consumed", "written", "dead_lettered")
        if len(self._recent) < 2:
            return dict.fromkeys(names, 0.0)
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        return {name: round((last[name] - first[name]) / (now - then), 1) for name in names}

    def _note(self, who: str, mark: Any, text: str) -> None:
        """Put an error that is new to the front, together with its earlier likes."""
        if text and self._known.get(who) != mark:
            error: dict[str, Any] = {"who": [], "text": text, "times": 0}
            error = next((known for known in self._errors if known["text"] == text), error)
            with suppress(ValueError):
                self._errors.remove(error)
            names = sorted({who, *error["who"]})
            self._errors.appendleft({"who": names, "time": time.time(), "text": text, "times": error["times"] + 1})
        self._known[who] = mark


def _push(recent: deque[tuple[float, Any]], now: float, value: Any, seconds: float) -> None:
    """Append to a deque that reaches back at least `seconds`, and not much further."""
    recent.append((now, value))
    while len(recent) > 2 and now - recent[1][0] >= seconds:
        recent.popleft()
