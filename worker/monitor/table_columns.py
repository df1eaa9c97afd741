"""Follows the columns of the topics' tables in ClickHouse: has the consumers read them again after an ALTER TABLE.

With `--evolve` it first samples each topic's last events, and adds columns for new fields.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TypeVar

from worker.config.settings import Settings
from worker.core.counters import Stats
from worker.core.errors import Retryable, WorkerError
from worker.decoding.formats import ReadEvents, open_events
from worker.kafka.sample import read_newest
from worker.kafka.schemas import schema_source
from worker.sinks.clickhouse.evolve import EvolvingTable, candidates
from worker.sinks.clickhouse.table import Column

log = logging.getLogger(__name__)

_EVERY_S = 30.0
_SHARE = 20  # a round takes at most 1/20 of the time
_SHOWN = 10  # fields that get no column
_UNKNOWN = "topic %s: whether the columns of its table have changed is unknown"

_T = TypeVar("_T")


class TableColumns:
    """Rounds over all topics, in a thread of their own. Errors of a round never stop the worker."""

    def __init__(self, settings: Settings, stats: Stats) -> None:
        self._settings = settings
        self._slot = stats.monitor
        self._thread = ThreadPoolExecutor(1, "columns")
        self._read_events: ReadEvents | None = None  # of `--evolve`
        if settings.evolve:
            self._read_events = open_events(settings.format, schema_source(settings), settings.transform)
        self._columns: dict[str, list[Column]] = {}  # of each topic's table, in the last round
        self._has_changed = False  # whether one of the tables has, in the last round

    async def start(self, topics: Iterable[str]) -> None:
        """Do the first round of `--evolve`, before any consumer runs. Raises Fatal if a table cannot get columns."""
        if not self._read_events:
            return
        for topic in topics:
            await self._blocking(self._check, topic)
        await self._blocking(self._round, list(topics))

    async def run(self, topics: Callable[[], Iterable[str]]) -> None:
        """Repeat the rounds. Never returns."""
        if not self._read_events:
            await asyncio.sleep(_EVERY_S)
        while True:
            began = time.monotonic()
            await self._blocking(self._round, list(topics()))
            await asyncio.sleep(max(_EVERY_S, _SHARE * (time.monotonic() - began)))

    def _check(self, topic: str) -> None:
        with closing(EvolvingTable(self._settings.for_topic(topic))) as table, suppress(Retryable):
            table.check()

    def _round(self, topics: list[str]) -> None:
        """Look at each topic and its table; have the consumers reopen their sinks if a table has other columns.

        They do so once more after the next round: a replica may get the columns later.
        """
        had_changed, self._has_changed = self._has_changed, False
        for topic in topics:
            try:
                with closing(EvolvingTable(self._settings.for_topic(topic))) as table:
                    columns = self._compare(topic, table)
                    if self._read_events:
                        self._evolve(topic, table, columns, self._read_events)
            except Exception as error:
                if not self._read_events and isinstance(error, WorkerError):
                    continue  # the consumers report what the server refuses
                # The text of an unexpected error may have values of events.
                text = str(error) if isinstance(error, WorkerError) else type(error).__name__
                self._slot.add("evolve_errors", 1 if self._read_events else 0)
                failed = "--evolve: new fields of topic %s get no columns" if self._read_events else _UNKNOWN
                log.warning(f"{failed}: %s; still trying", topic, text)
        if had_changed or self._has_changed:
            self._slot.add("columns_version")

    def _evolve(self, topic: str, table: EvolvingTable, columns: Sequence[Column], read_events: ReadEvents) -> None:
        settings = self._settings.for_topic(topic)
        events = read_events(read_newest(settings))
        found = candidates(columns, events, settings)
        if added := [item for item in found if not item.reason]:
            table.add(added)
            self._slot.add("evolved_columns", len(added))
            self._compare(topic, table)
        for item in added:
            share = f"{100 * item.share:.0f} % of the last {len(events)} events of topic {topic} have the field"
            log.info("added the column %s %s to %s: %s", item.name, item.definition, settings.table, share)
        refused = [f"{item.name} ({item.reason})" for item in found if item.reason]
        if refused and self._has_changed:
            log.info("--evolve: fields of topic %s that get no column: %s", topic, ", ".join(refused[:_SHOWN]))

    def _compare(self, topic: str, table: EvolvingTable) -> list[Column]:
        """Return the table's columns, and note whether they are others than before."""
        columns = table.columns()
        self._has_changed |= columns != self._columns.get(topic)
        self._columns[topic] = columns
        return columns

    async def _blocking(self, call: Callable[[_T], None], argument: _T) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call, argument)
