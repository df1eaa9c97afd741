"""Counts the devices in the store, and prints `Total devices: N`: every report interval, and at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.errors import Fatal, Retryable
from worker.monitor.observed import Observed
from worker.sinks import open_sink, uncounted

log = logging.getLogger("worker.monitor")

_RETRY_S = 1.0
_COUNT_EVERY_S = 2.0  # at most; and counting takes at most a fiftieth of the store's time
_COUNT_SHARE = 50
_LAST_COUNT_S = 12.0  # the parent waits 15 s

_T = TypeVar("_T")


class Report:
    """A connection to the store with a thread of its own: the event loop never waits for it."""

    def __init__(self, seen: Observed) -> None:
        self._seen = seen
        self._interval = seen.settings.report_interval
        self._thread = ThreadPoolExecutor(1, "store")
        self._sink = open_sink(seen.settings)
        self._open = False
        self._told = False  # that there is nothing to report

    async def open(self, complain: Callable[[str], None]) -> None:
        """Connect and make the table, however long the store is away. Raises Fatal."""
        while not self._open:
            try:
                await self._blocking(self._sink.open)
                self._open = True
            except Retryable as error:
                complain(str(error))
                await asyncio.sleep(_RETRY_S)

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
        if not self._open:
            log.warning("no report: Kafka or the store has not answered yet")
            return
        try:
            async with asyncio.timeout(_LAST_COUNT_S):
                if await self._count():
                    await self._print()
        except TimeoutError:
            log.warning("no report: the store does not answer")

    async def _count(self) -> bool:
        try:
            devices = await self._blocking(self._sink.devices)
        except (Retryable, Fatal) as error:
            self._seen.store_up = False
            log.warning("cannot count the devices: %s", error)
            return False
        if devices is None:
            if not self._told:
                log.info("%s", uncounted(self._seen.settings))
            self._told = True
            return False
        self._seen.see_devices(devices)
        return True

    async def _print(self) -> None:
        line = f"Total devices: {self._seen.devices}"
        try:
            await self._blocking(lambda: print(line, flush=True))  # whoever reads stdout may be slow
        except OSError as error:
            log.warning("cannot print the report: %s", error)

    async def _blocking(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
