"""The checks of `--evolve`: whether the table can get columns, and which ones it would get now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from worker.commands.check.finding import Finding, ok
from worker.config.settings import Settings
from worker.decoding.formats import open_events
from worker.kafka.sample import read_newest
from worker.kafka.schemas import schema_source
from worker.sinks.clickhouse.evolve import EvolvingTable, candidates


def check_evolution(settings: Settings) -> Iterator[Finding]:
    """Yield the findings, for the topic's last events; add nothing. Raises Retryable and Fatal."""
    with closing(EvolvingTable(settings)) as table:
        table.check()
        columns = table.columns()
    events = open_events(settings.format, schema_source(settings), settings.transform)(read_newest(settings))
    of_events = f"of the last {len(events)} events of {settings.topic}"
    found = candidates(columns, events, settings)
    for item in found:
        share = f"in {100 * item.share:.0f} % {of_events}"
        refused = f"{item.name}, {share}, gets no column: {item.reason}"
        yield ok("evolve", refused if item.reason else f"would add {item.name} {item.definition}, {share}")
    if not found:
        yield ok("evolve", f"no column to add for the fields {of_events}")
