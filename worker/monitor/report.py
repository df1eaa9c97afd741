"""Counts the devices in the store, and prints `Total devices: N`: every report interval, and at the end.

For several topics there is a line for each before that, `Total devices in TOPIC: N`, and the total is of all together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.core.errors import Fatal, Retryable
from worker.monitor.state import MonitorState
from worker.sinks import Sink, open_sink, uncounted
from worker.sinks.counting import count_devices, report

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_COUNT_EVERY_S = 2.0  # at most; and counting takes at most a fiftieth of the store's time
_COUNT_SHARE = 50
_LAST_COUNT_S = 12.0  # the parent waits 15 s

_T = TypeVar("_T")


class Report:
    """Connections to the store with a thread of their own: the event loop never waits for them."""

    def __init__(self, seen: MonitorState) -> None:
        self._seen = seen
        self._interval = seen.settings.report_interval
        self._thread = ThreadPoolExecutor(1, "store")
        self._sinks: dict[str, Sink] = {}  # that are open, by topic
        self._told = False  # that there is nothing to report

    async def open(self, topic: str, complain: Callable[[str], None]) -> None:
        """Connect and make the topic's table, however long the store is away. Raises Fatal."""
        while True:
            try:
                return await self.admit(topic)
            except Retryable as error:
                complain(str(error))
                await asyncio.sleep(_RETRY_S)

    async def admit(self, topic: str) -> None:
        """Connect and make the topic's table; from now on it is reported. Raises Retryable and Fatal."""
        sink = open_sink(self._seen.settings.for_topic(topic))
        try:
            await self._blocking(sink.open)
        except (Retryable, Fatal):
            await self._blocking(sink.close)
            raise
        self._sinks[topic] = sink

    async def forget(self, topic: str) -> None:
        """Report the topic no longer."""
        if sink := self._sinks.pop(topic, None):
            await self._blocking(sink.close)

    async def run(self) -> None:
        """Count now and then for the pages, and print when it is time; never returns."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval
        while True:
            started = loop.time()
            counted = await self._count()
            now = loop.time()
            if now >= due:
                due = now + self._interval
                if counted:
                    await self._print()
            pause = max(_COUNT_EVERY_S, _COUNT_SHARE * (now - started))
            await asyncio.sleep(max(0.01, min(pause, due - now)))

    async def last(self) -> None:
        """Count and print once more, if the store answers in time."""
        if not self._sinks:
            log.warning("no report: Kafka or the store has not answered yet")
            return
        try:
            async with asyncio.timeout(_LAST_COUNT_S):
                if await self._count():
                    await self._print()
        except TimeoutError:
            log.warning("no report: the store does not answer")

    async def _count(self) -> bool:
        sinks = dict(self._sinks)
        if not sinks:
            return False
        try:
            by_topic, together = await self._blocking(lambda: count_devices(self._seen.settings, sinks))
        except (Retryable, Fatal) as error:
            self._seen.store_up = False
            log.warning("cannot count the devices: %s", error)
            return False
        if together is None:
            self._seen.store_up = True
            if not self._told:
                log.info("%s", uncounted(self._seen.settings))
            self._told = True
            return False
        self._seen.see_devices(by_topic, together)
        return True

    async def _print(self) -> None:
        lines = report(self._seen.settings, self._seen.devices_by_topic, self._seen.devices or 0)
        try:
            await self._blocking(lambda: print(*lines, sep="\n", flush=True))  # whoever reads stdout may be slow
        except OSError as error:
            log.warning("cannot print the report: %s", error)

    async def _blocking(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
