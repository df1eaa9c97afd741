"""What a table can promise about rows that are inserted twice: how long tokens last, and whether rows can be found."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from worker.sinks.clickhouse.names import IS_TABLE, split_at_commas, table_name, table_values
from worker.sinks.clickhouse.table import ORIGIN

Ask = Callable[[str, dict[str, Any]], Any]
"""Runs a query with parameters, and returns its rows."""

_LEAST_WINDOW = 1000  # parts
_INSERTS_PER_S = 100  # into one table by all its writers: more, and ClickHouse cannot keep up with merging the parts
_MOST_PARTS_PER_INSERT = 100  # the server's default max_partitions_per_insert_block
_TYPES = {"_topic": "LowCardinality(String)", "_partition": "Int32", "_offset": "Int64"}


class ExactlyOnceBlocker(NamedTuple):
    """Why a table is not written exactly once, and the statement that fixes it."""

    fault: str
    fix: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.fix}"


class Deduplication(NamedTuple):
    """The promise of one table. Without blockers it can be written exactly once."""

    blockers: tuple[ExactlyOnceBlocker, ...] = ()
    retention_ms: float = 0.0  # for how long the server certainly knows a token
    is_atomic: bool = False  # whether a block is stored whole or not at all
    finds_rows: bool = False  # whether a stored event is one row, found by its origin columns


def inspect(ask: Ask, table: str, columns: Collection[str]) -> Deduplication:
    """Return what `table`, which has these columns, can promise."""
    found = ask(
        f"SELECT engine, engine_full, sorting_key, partition_key FROM system.tables WHERE {IS_TABLE}",
        table_values(table),
    )
    engine, full, sorting_key, partition_key = found[0] if found else ("", "", "", "")
    if "MergeTree" not in engine:
        fault = f"the engine {engine or 'of the table'} drops no duplicates"
        return Deduplication((ExactlyOnceBlocker(fault, "use a MergeTree table"),))
    replicated = engine.startswith(("Replicated", "Shared"))
    setting = "replicated_deduplication_window" if replicated else "non_replicated_deduplication_window"
    window = _setting_of(ask, full, setting)
    parts = _parts_per_insert(ask, table) if partition_key else 1
    retention_s = window / parts / _INSERTS_PER_S
    if replicated:
        retention_s = min(retention_s, _setting_of(ask, full, f"{setting}_seconds"))
    return Deduplication(
        tuple(_blockers(table, columns, setting, window)),
        retention_s / 2 * 1000,
        is_atomic=not partition_key,
        finds_rows=not (removing_ttl(full) or merging(engine, sorting_key, ORIGIN)),
    )


def _blockers(table: str, columns: Collection[str], setting: str, window: int) -> list[ExactlyOnceBlocker]:
    blockers = []
    quoted = table_name(table)
    if absent := [name for name in ORIGIN if name not in columns]:
        add = ", ".join(f"ADD COLUMN {name} {_TYPES[name]}" for name in absent)
        blockers.append(ExactlyOnceBlocker(f"the table lacks {' and '.join(absent)}", f"ALTER TABLE {quoted} {add}"))
    if window < _LEAST_WINDOW:
        statement = f"ALTER TABLE {quoted} MODIFY SETTING {setting} = 10000"
        blockers.append(ExactlyOnceBlocker(f"the deduplication window is {window}", statement))
    return blockers


def _setting_of(ask: Ask, engine_full: str, setting: str) -> int:
    """Return a MergeTree setting of the table, or the server's default."""
    if named := re.search(rf"\b{setting} = (\d+)", engine_full):
        return int(named[1])
    found = ask("SELECT value FROM system.merge_tree_settings WHERE name = %(name)s", {"name": setting})
    return int(found[0][0]) if found else 0


def _parts_per_insert(ask: Ask, table: str) -> int:
    """Return how many parts one insert may write: the window counts parts, one for each table partition of a block."""
    ((count,),) = ask(
        "SELECT uniqExact(partition_id) FROM system.parts WHERE active AND table = %(name)s AND "
        "database = if(%(database)s = '', currentDatabase(), %(database)s)",
        table_values(table),
    )
    return min(max(int(count), 2), _MOST_PARTS_PER_INSERT)


def merging(engine: str, sorting_key: str, origin: Collection[str]) -> str:
    """Return how an engine merges rows of several events, and what would prevent it; empty if it does not merge them.

    Rows with the same sorting key are merged. If all `origin` columns are part of the key, only one event has it.
    """
    if "Summing" in engine:
        return f"{engine} sums rows up and removes those whose sums are zero; use a MergeTree table to verify"
    absent = set(origin).difference(_plain_columns(sorting_key))
    if not absent or not re.search("Replacing|Collapsing|Aggregating|Coalescing", engine):
        return ""
    return (
        f"{engine} merges rows with the same ({sorting_key}); to verify, make {', '.join(origin)} part of its ORDER BY"
    )


def removing_ttl(engine_full: str) -> str:
    """Return the TTL expression if it may remove or merge rows; those that only move or recompress parts do not."""
    found = re.search(r"\bTTL (.+?)(?= SETTINGS |$)", engine_full, re.DOTALL)
    if not found:
        return ""
    rules = [rule.strip() for rule in split_at_commas(found[1])]
    removing = [rule for rule in rules if not re.search(r"\b(TO (DISK|VOLUME)|RECOMPRESS)\b", rule)]
    return ", ".join(removing)


def _plain_columns(sorting_key: str) -> set[str]:
    """Return the columns of a sorting key that are not function arguments: a function may map several values to one."""
    return {word.strip(" `") for word in split_at_commas(sorting_key)}
