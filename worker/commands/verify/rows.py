"""The rows of a ClickHouse table by the origin columns that the worker writes: which offsets it has, and how often."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from typing import Any

from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, WorkerError
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.deduplication import merging, removing_ttl
from worker.sinks.clickhouse.errors import DRIVER_ERRORS, to_retryable
from worker.sinks.clickhouse.names import IS_TABLE, table_name, table_values

# Engines that pass rows on to other tables, or read them from there: what becomes of them is unknown here.
_FORWARDING = (
    "Distributed",
    "Buffer",
    "Merge",
    "View",
    "MaterializedView",
    "LiveView",
    "WindowView",
    "Alias",
    "Dictionary",
)


class Rows:
    """The offsets that the table has rows for, by its origin columns.

    `absence` says why an event without a row is not necessarily lost: the table merges, removes or forwards rows. It is
    empty if the table keeps each row until somebody deletes it.
    """

    def __init__(self, settings: Settings) -> None:
        self._table = table_name(settings.table)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._client = connect(settings.clickhouse_url, settings.clickhouse_password)
        self._topic = settings.topic
        try:
            names = self._origin_columns(settings.table)
            self._condition = "_partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
            self._condition += " AND _topic = %(topic)s" if "_topic" in names else ""
            self.absence = self._reason_for_absence(settings.table, names)
        except WorkerError:
            self.close()
            raise

    def _origin_columns(self, table: str) -> list[str]:
        """Return the table's origin columns; raise Fatal if they do not identify the event of a row."""
        names = {name for name, *_ in self._execute(f"DESCRIBE TABLE {self._table}")}
        if absent := [name for name in ("_partition", "_offset") if name not in names]:
            raise Fatal(
                f"{self._where}: {table} has no column {' and '.join(absent)}, so its rows do not say which events "
                "they come from; worker check shows how to add them"
            )
        return [name for name in ("_topic", "_partition", "_offset") if name in names]

    def _reason_for_absence(self, table: str, names: list[str]) -> str:
        """Return `absence`; raise Fatal if the table keeps no rows at all."""
        views = "arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table)"
        query = f"SELECT engine, engine_full, sorting_key, {views} FROM system.tables WHERE {IS_TABLE}"
        ((engine, full, sorting_key, dependent),) = self._execute(query, table_values(table))
        if engine == "Null":
            raise Fatal(
                f"{self._where}: {table} is a Null table, which keeps no rows, so verify cannot tell which events were "
                f"stored; name the target table of its views ({', '.join(dependent) or 'it has none'}) with --table",
                code=ExitCode.FAILED,
            )
        return reason_for_absence(engine, full, sorting_key, names)

    def close(self) -> None:
        self._client.disconnect()

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first offset that has a row, and the one after the last; (0, 0) without rows."""
        ((first, end, count),) = self._select("min(_offset), max(_offset) + 1, count()", partition, 0, 2**63 - 1)
        return (int(first), int(end)) if count else (0, 0)

    def offsets(self, partition: int, start: int, end: int, limit: int | None = None) -> array[int]:
        """Return the offsets of the rows in [start, end), ascending; an offset with two rows twice.

        With a `limit` these are the first `limit` rows, and all other rows of the last offset among them.
        """
        tail = " ORDER BY o" + (f" LIMIT {limit} WITH TIES" if limit else "")
        columns = self._select("toInt64(_offset) AS o", partition, start, end, tail, columnar=True)
        return array("q", columns[0] if columns else ())

    def _select(
        self, expressions: str, partition: int, start: int, end: int, tail: str = "", *, columnar: bool = False
    ) -> Any:
        values = {"topic": self._topic, "partition": partition, "start": start, "end": end}
        query = f"SELECT {expressions} FROM {self._table} WHERE {self._condition}{tail}"
        return self._execute(query, values, columnar=columnar)

    def _execute(self, query: str, values: dict[str, Any] | None = None, *, columnar: bool = False) -> Any:
        try:
            return self._client.execute(query, values, columnar=columnar)
        except DRIVER_ERRORS as error:
            raise to_retryable(self._where, error) from None


def reason_for_absence(engine: str, engine_full: str, sorting_key: str, origin: Collection[str]) -> str:
    """Return why a table with these origin columns may have no row of an event that it got; empty if it must have one.

    `engine_full` is the engine's clause of the CREATE statement.
    """
    if text := merging(engine, sorting_key, origin):
        return f"the table may have merged rows of several events, or doubled ones. {text}"
    if "MergeTree" in engine and (ttl := removing_ttl(engine_full)):
        return f"the table removes rows by its TTL ({ttl})"
    if engine in _FORWARDING:
        return f"the table is a {engine}: another table keeps its rows, and may merge or remove them, or get them later"
    return ""
