"""The rows of a ClickHouse table by the origin columns that the worker writes: which offsets it has, and how often."""

from __future__ import annotations

from array import array
from typing import Any

from worker.config.settings import Settings
from worker.core.errors import Fatal, WorkerError
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.deduplication import merging
from worker.sinks.clickhouse.errors import DRIVER_ERRORS, to_retryable
from worker.sinks.clickhouse.names import table_name


class Rows:
    """The offsets that the table has rows for, by its origin columns.

    `merging` describes how the table's engine merges rows of several events, so that an event without a row is not
    necessarily lost; empty if it does not merge them.
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
            self.merging = merging(*self._engine(settings.table), names)
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

    def _engine(self, table: str) -> tuple[str, str]:
        """Return the table's engine and its sorting key."""
        database, _, name = table.rpartition(".")
        of = "database = if(%(database)s = '', currentDatabase(), %(database)s) AND name = %(name)s"
        query = f"SELECT engine, sorting_key FROM system.tables WHERE {of}"
        ((engine, key),) = self._execute(query, {"database": database, "name": name})
        return str(engine), str(key)

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
