"""The rows of a ClickHouse table by the origin columns that the worker writes: which offsets are there, how often."""

from __future__ import annotations

import re
from array import array
from typing import Any

from worker.errors import Fatal, WorkerError
from worker.settings import Settings
from worker.sinks import native
from worker.sinks.clickhouse_errors import DRIVER_ERRORS, trouble


class Rows:
    """The offsets that the table has rows of, by its origin columns."""

    def __init__(self, settings: Settings) -> None:
        self._table = ".".join(f"`{part}`" for part in settings.table.split("."))
        self._where = f"ClickHouse at {native.address(settings.clickhouse_url)}"
        self._client = native.connect(settings.clickhouse_url, settings.clickhouse_password)
        self._topic = settings.topic
        self.replaced_by = ""  # the engine, where it removes rows by itself
        try:
            self._origin = self._where_origin(settings.table)
            engine = self._engine(settings.table)
            if re.search("Replacing|Collapsing|Summing|Aggregating|Coalescing", engine):
                self.replaced_by = engine
        except WorkerError:
            self.close()
            raise

    def _where_origin(self, table: str) -> str:
        """Return the condition for a range of the topic's offsets; Fatal where the table has no columns for it."""
        names = {name for name, *_ in self._ask(f"DESCRIBE TABLE {self._table}")}
        if absent := [name for name in ("_partition", "_offset") if name not in names]:
            raise Fatal(
                f"{self._where}: {table} has no column {' and '.join(absent)}, so its rows do not tell which events "
                "they are of; python -m worker check says how to add them"
            )
        condition = "_partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
        return condition + (" AND _topic = %(topic)s" if "_topic" in names else "")

    def _engine(self, table: str) -> str:
        database, _, name = table.rpartition(".")
        of = "database = if(%(database)s = '', currentDatabase(), %(database)s) AND name = %(name)s"
        query = f"SELECT engine FROM system.tables WHERE {of}"
        ((engine,),) = self._ask(query, {"database": database, "name": name})
        return str(engine)

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
            raise trouble(self._where, error) from None
