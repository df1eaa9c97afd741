"""Counts the devices in the store and prints `Total devices: N` every report interval and at the end.

With several topics, a line `Total devices in TOPIC: N` for each topic precedes the total of all topics together.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.core.errors import Fatal, Retryable
from worker.core.output import Output
from worker.monitor.state import MonitorState
from worker.sinks import Sink, open_sink, uncounted
from worker.sinks.counting import count_devices, count_windows, report

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_COUNT_EVERY_S = 2.0  # the shortest interval; counting takes at most 1/50 of the time
_COUNT_SHARE = 50
_LAST_COUNT_S = 12.0  # the supervisor waits 15 s

_T = TypeVar("_T")


class Report:
    """One connection to the store per topic, used in a thread of their own so that they never block the event loop."""

    def __init__(self, state: MonitorState) -> None:
        self._state = state
        self._is_off = state.settings.report == "off"
        self._interval = state.settings.report_interval
        self._thread = ThreadPoolExecutor(1, "store")
        self._sinks: dict[str, Sink] = {}  # the open sinks by topic
        self._logged_uncounted = False
        self._output = Output(sys.stdout.fileno())

    async def wait_and_add(self, topic: str, report_error: Callable[[str], None]) -> None:
        """Like `add`, and wait while the store is unavailable. Raises Fatal."""
        while True:
            try:
                return await self.add(topic)
            except Retryable as error:
                report_error(str(error))
                await asyncio.sleep(_RETRY_S)

    async def add(self, topic: str) -> None:
        """Connect, create the topic's table if it is missing, and report the topic from now on.

        Raises Retryable and Fatal.
        """
        sink = open_sink(self._state.settings.for_topic(topic))
        try:
            await self._blocking(sink.open)
        except (Retryable, Fatal):
            await self._blocking(sink.close)
            raise
        self._sinks[topic] = sink

    async def remove(self, topic: str) -> None:
        """Stop reporting the topic."""
        if sink := self._sinks.pop(topic, None):
            await self._blocking(sink.close)

    async def run(self) -> None:
        """Count periodically for the pages, and print every report interval. Never returns."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while True:
            started = loop.time()
            is_counted = await self._count()
            now = loop.time()
            if now >= due:
                due = now + self._interval
                if is_counted:
                    await self._print()
            pause = max(_COUNT_EVERY_S, _COUNT_SHARE * (now - started))
            await asyncio.sleep(max(0.01, min(pause, due - now)))

    async def print_final(self) -> None:
        """Count and print a last time, if the store answers in time."""
        if not self._sinks and not self._is_off:
            log.warning("no final report: Kafka or the store has not answered yet")
            return
        try:
            async with asyncio.timeout(_LAST_COUNT_S):
                if await self._count():
                    await self._print()
        except TimeoutError:
            log.warning("no final report: the store does not answer")

    async def _count(self) -> bool:
        sinks = dict(self._sinks)
        if not sinks:
            return False
        if self._is_off:
            self._state.store_up = True
            return False
        try:
            by_topic, total = await self._blocking(lambda: count_devices(self._state.settings, sinks))
            by_window = await self._blocking(lambda: count_windows(sinks))
        except (Retryable, Fatal) as error:
            self._state.store_up = False
            log.warning("cannot count the devices: %s", error)
            return False
        if total is None:
            self._state.store_up = True
            if not self._logged_uncounted:
                log.info("%s", uncounted(self._state.settings))
            self._logged_uncounted = True
            return False
        self._state.record_devices(by_topic, total, by_window)
        return True

    async def _print(self) -> None:
        lines = report(self._state.settings, self._state.devices_by_topic, self._state.devices or 0)
        text = "".join(f"{line}\n" for line in lines).encode()
        try:
            is_written = await self._blocking(lambda: self._output.write(text))
        except OSError as error:
            log.warning("cannot print the report: %s", error)
        else:
            if not is_written:
                log.warning("a report was dropped because nobody read stdout")

    async def _blocking(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
