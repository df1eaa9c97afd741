"""The rows of a ClickHouse table by the origin columns that the worker writes: which offsets are there, how often."""

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
    """The offsets that the table has rows of, by its origin columns.

    `merging` says how the server itself merges rows of several events, so that an event without a row need not be
    lost; empty where it does not.
    """

    def __init__(self, settings: Settings) -> None:
        self._table = table_name(settings.table)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._client = connect(settings.clickhouse_url, settings.clickhouse_password)
        self._topic = settings.topic
        try:
            names = self._origin_columns(settings.table)
            self._origin = "_partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
            self._origin += " AND _topic = %(topic)s" if "_topic" in names else ""
            self.merging = merging(*self._engine(settings.table), names)
        except WorkerError:
            self.close()
            raise

    def _origin_columns(self, table: str) -> list[str]:
        """Return the origin columns that the table has; Fatal where they do not tell which event a row is of."""
        names = {name for name, *_ in self._ask(f"DESCRIBE TABLE {self._table}")}
        if absent := [name for name in ("_partition", "_offset") if name not in names]:
            raise Fatal(
                f"{self._where}: {table} has no column {' and '.join(absent)}, so its rows do not tell which events "
                "they are of; python -m worker check says how to add them"
            )
        return [name for name in ("_topic", "_partition", "_offset") if name in names]

    def _engine(self, table: str) -> tuple[str, str]:
        """Return the table's engine and its sorting key."""
        database, _, name = table.rpartition(".")
        of = "database = if(%(database)s = '', currentDatabase(), %(database)s) AND name = %(name)s"
        query = f"SELECT engine, sorting_key FROM system.tables WHERE {of}"
        ((engine, key),) = self._ask(query, {"database": database, "name": name})
        return str(engine), str(key)

    def close(self) -> None:
        self._client.disconnect()

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first offset that has a row, and the one after the last; (0, 0) without rows."""
        found = self._select("min(_offset), max(_offset) + 1, count()", partition, 0, 2**63 - 1)
        ((first, end, count),) = found
        return (int(first), int(end)) if count else (0, 0)

    def offsets(self, partition: int, start: int, end: int, limit: int | None = None) -> array[int]:
        """Return the offsets of the rows in [start, end), ascending; one that has two rows twice.

        With a limit it is the first so many rows, and all others of the last one's offset.
        """
        tail = " ORDER BY o" + (f" LIMIT {limit} WITH TIES" if limit else "")
        columns = self._select("toInt64(_offset) AS o", partition, start, end, tail, columnar=True)
        return array("q", columns[0] if columns else ())

    def _select(
        self, what: str, partition: int, start: int, end: int, tail: str = "", *, columnar: bool = False
    ) -> Any:
        values = {"topic": self._topic, "partition": partition, "start": start, "end": end}
        query = f"SELECT {what} FROM {self._table} WHERE {self._origin}{tail}"
        return self._ask(query, values, columnar=columnar)

    def _ask(self, query: str, values: dict[str, Any] | None = None, *, columnar: bool = False) -> Any:
        try:
            return self._client.execute(query, values, columnar=columnar)
        except DRIVER_ERRORS as error:
            raise to_retryable(self._where, error) from None
