"""The status page and its data: the current state and the history of the last 15 minutes."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from importlib.resources import files
from typing import Any

import orjson

from worker.core.accounts import Accounts, Sums, running_slots
from worker.core.counters import Slot, Stats
from worker.core.repeats import without_numbers
from worker.core.version import version_text
from worker.monitor.http import Request, Response
from worker.monitor.invalid_events import InvalidEvents
from worker.monitor.state import MonitorState

_HISTORY_S = 900
_SAMPLE_S = 2.0
_RATE_S = 5.0
_CPU_S = 15.0  # consumers update their CPU time every 5 s
_ERRORS = 20
HISTORY = ("time", "consumed_per_s", "written_per_s", "dead_lettered_per_s", "lag", "lag_s", "devices", "processes")


class Status:
    """A bounded history, sampled by the monitor's loop, and the two pages that show it."""

    def __init__(self, stats: Stats, state: MonitorState, accounts: Accounts, invalid: InvalidEvents) -> None:
        self._stats = stats
        self._invalid = invalid
        self._state = state
        self._accounts = accounts
        self._started = time.time()
        self._history: deque[tuple[float | None, ...]] = deque(maxlen=int(_HISTORY_S / _SAMPLE_S))
        self._recent: deque[tuple[float, dict[str, int]]] = deque()  # (monotonic, accounts) of the last seconds
        self._cpu: deque[tuple[float, dict[int, tuple[int, int]]]] = deque()  # (monotonic, slot → pid, CPU ns)
        self._errors: deque[dict[str, Any]] = deque(maxlen=_ERRORS)  # newest first
        self._latest_errors: dict[str, Any] = {}  # process → mark of its latest error
        self._sampled = 0.0

    def sample(self, sums: Sums) -> None:
        """Record rates and errors in every call, and a point of the history every two seconds."""
        now, running = time.monotonic(), running_slots(self._stats)
        _push(self._recent, now, sums.total, _RATE_S)
        _push(self._cpu, now, {slot.index: (slot.get("pid"), slot.get("cpu_ns")) for slot in running}, _CPU_S)
        for slot in self._stats.used():
            if slot.get("error_ns"):
                self._record_error(f"consumer {slot.index}", slot.get("error_ns"), slot.error())
        self._record_error("monitor", self._state.error, self._state.error)
        if now - self._sampled < _SAMPLE_S:
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
        """Return the status page, which fetches `json`."""
        return Response(files("worker.monitor").joinpath("status.html").read_bytes(), "text/html; charset=utf-8")

    def json(self, request: Request) -> Response:
        """Return the data of the page and of `top`, with the history after `since` (seconds since the epoch)."""
        try:
            since = float(request.query.get("since", 0))
        except ValueError:
            return Response(b"since must be a number of seconds\n", status=400)
        return Response(orjson.dumps(self.collect(since)), "application/json")

    def collect(self, since: float = 0.0) -> dict[str, Any]:
        """Return the current state as plain data."""
        state, settings = self._state, self._state.settings
        lags, running, sums = state.lags, running_slots(self._stats), self._accounts.read()
        sinks_up = [slot.get("sink_up") for slot in running]
        return {
            "version": version_text(),
            "topic": ", ".join(settings.topics),
            "topics": [
                {"topic": topic, "partitions": count, "devices": state.devices_by_topic.get(topic)}
                for topic, count in state.topics.items()
            ],
            "group": settings.group_id,
            "backend": settings.backend,
            "counting_backend": settings.counting_backend,
            "time": time.time(),
            "uptime_s": time.time() - self._started,
            "unready": state.unready_reason(self._stats),
            "starting": state.is_starting,
            "kafka_up": state.kafka_up,
            "sink_up": bool(min(sinks_up)) if sinks_up else state.store_up,
            "rates": self._rates(),
            "accounts": {**sums.total, "unaccounted": sum(sums.unaccounted.values())},
            "lag": sum(lag.messages for lag in lags) if lags else None,
            "lag_s": max(lag.seconds for lag in lags) if lags else None,
            "headroom_s": min((lag.headroom for lag in lags if lag.headroom is not None), default=None),
            "devices": state.devices,
            "devices_age_s": time.monotonic() - state.devices_at if state.devices is not None else None,
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
            "invalid": {"text": self._invalid.describe(self._rates()["dead_lettered"]), "causes": self._invalid.rows()},
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
        """Return the share of one core over the last seconds; None for a process with fewer than two updates."""
        updates: list[tuple[float, int]] = []
        for sampled_at, cpu in self._cpu:
            pid, cpu_ns = cpu.get(slot.index, (0, 0))
            if pid == slot.get("pid") and cpu_ns and (not updates or updates[-1][1] != cpu_ns):
                updates.append((sampled_at, cpu_ns))
        if len(updates) < 2:
            return None
        return max(0.0, (updates[-1][1] - updates[0][1]) / 1e9 / (updates[-1][0] - updates[0][0]))

    def _rates(self) -> dict[str, float]:
        """Return events per second over the last seconds, by account."""
        names = ("consumed", "written", "dead_lettered")
        if len(self._recent) < 2:
            return dict.fromkeys(names, 0.0)
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        return {name: round((last[name] - first[name]) / (now - then), 1) for name in names}

    def _record_error(self, process: str, mark: Any, text: str) -> None:
        """Put a new error to the front of the list, merged with an earlier error of the same cause."""
        if text and self._latest_errors.get(process) != mark:
            error: dict[str, Any] = {"who": [], "text": text, "times": 0}
            cause = without_numbers(text)
            error = next((earlier for earlier in self._errors if without_numbers(earlier["text"]) == cause), error)
            with suppress(ValueError):
                self._errors.remove(error)
            processes = sorted({process, *error["who"]})
            self._errors.appendleft({"who": processes, "time": time.time(), "text": text, "times": error["times"] + 1})
        self._latest_errors[process] = mark


def _push(recent: deque[tuple[float, Any]], now: float, value: Any, seconds: float) -> None:
    """Append to a deque, and remove samples that are not needed to cover the last `seconds`."""
    recent.append((now, value))
    while len(recent) > 2 and now - recent[1][0] >= seconds:
        recent.popleft()
