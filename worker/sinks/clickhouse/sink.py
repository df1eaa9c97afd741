"""Events → a ClickHouse table: one block of encoded columns per batch, with a deduplication token."""

from __future__ import annotations

import logging
import re
from importlib.resources import files
from typing import Any, NamedTuple

from clickhouse_driver import Client, errors

from worker.config.settings import Settings
from worker.core.batch import Batch, Field
from worker.core.delivery import token
from worker.core.errors import Fatal, Retryable, RowsRefused, SchemaChanged
from worker.sinks.clickhouse import types
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.errors import (
    CONFIGURATION,
    DRIVER_ERRORS,
    explained,
    first_line,
    refuses_rows,
    to_retryable,
)
from worker.sinks.clickhouse.insert import BlockMismatch, insert_block
from worker.sinks.clickhouse.table import ORIGIN, Column, ColumnBinding, bind_columns, counted

log = logging.getLogger(__name__)

_CREATE_TABLE = files("worker.sinks.clickhouse").joinpath("events.sql")

_SETTINGS = {"async_insert": 0, "insert_deduplicate": 1}

_LEAST_WINDOW = 1000  # blocks
_INSERTS_PER_S = 100  # into one table by all its writers; with more, ClickHouse merges parts too slowly


class ExactlyOnceBlocker(NamedTuple):
    """Why a table is not written exactly once, and the statement that fixes it."""

    fault: str
    fix: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.fix}"


class _Schema(NamedTuple):
    """The table's columns, and how a batch becomes its block."""

    bindings: tuple[ColumnBinding, ...]
    fields: tuple[Field, ...]  # of `bindings`
    origin: tuple[tuple[str, str], ...]  # the origin columns that the table has: name, type
    counted: str  # the column whose distinct values are the devices; empty: the table has none
    window: int  # blocks whose tokens the server keeps; 0: exactly-once is not possible, or not wanted
    blockers: tuple[ExactlyOnceBlocker, ...]  # why exactly-once is not possible, if it is wanted

    @property
    def header(self) -> list[tuple[str, str]]:
        """The block's columns: name, type."""
        return [*((binding.column, binding.codec.type) for binding in self.bindings), *self.origin]


class ClickHouseSink:
    """One connection and one table."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table = _quoted_table(settings.table)
        self._client: Client = connect(settings.clickhouse_url, settings.clickhouse_password)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._opened_schema: _Schema | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._schema.fields

    @property
    def bindings(self) -> tuple[ColumnBinding, ...]:
        """The columns that events fill, in the order of `fields`. Available after open."""
        return self._schema.bindings

    @property
    def counted(self) -> str:
        """The column whose distinct values are the devices; empty if there is none. Available after open."""
        return self._schema.counted

    @property
    def exactly_once(self) -> bool:
        return self._schema.window > 0

    @property
    def blockers(self) -> tuple[ExactlyOnceBlocker, ...]:
        """Why the table cannot have exactly-once, if --delivery asks for it. Available after open."""
        return self._schema.blockers

    @property
    def dedup_retention_ms(self) -> float:
        return self._schema.window / 2 / _INSERTS_PER_S * 1000

    @property
    def _schema(self) -> _Schema:
        if self._opened_schema is None:
            raise RuntimeError("the sink is not open")
        return self._opened_schema

    def open(self) -> None:
        """Create the table if it is missing, and read its columns."""
        try:
            described = self._describe(self._settings.table)
            if not described:
                if self._settings.map:
                    raise Fatal(
                        f"{self._where}: there is no table {self._settings.table}, and --map is given; use "
                        "CREATE TABLE (the table that the worker creates is for device events)"
                    )
                statement = (
                    files("worker.sinks.clickhouse").joinpath("events.sql").read_text().format(table=self._table)
                )
                self._execute(statement)
                log.info("created the table %s", self._settings.table)
                described = self._describe(self._settings.table)
            self._opened_schema = self._read_schema(described)
        except errors.ServerException as error:
            if error.code in CONFIGURATION:
                raise Fatal(explained(self._where, error)) from None
            raise to_retryable(self._where, error) from None
        except Retryable as error:
            if error.reason == "credentials":
                raise Fatal(str(error)) from None
            raise

    def write(self, batch: Batch) -> None:
        """Insert the batch as one block; by its token the server drops a block that it already has."""
        schema = self._schema
        if batch.fields is not schema.fields:  # the schema was read again after the batch was started
            raise SchemaChanged(f"{self._where}: the table {self._settings.table} was altered")
        data = [binding.codec.encode(parts) for binding, parts in zip(schema.bindings, batch.columns, strict=True)]
        data += [self._encode_origin(name, kind, batch) for name, kind in schema.origin]
        settings: dict[str, Any] = dict(_SETTINGS)
        if schema.window:
            settings["insert_deduplication_token"] = token(batch)
        names = ", ".join(_quoted(name) for name, _ in schema.header)
        try:
            insert_block(
                self._client, f"INSERT INTO {self._table} ({names}) VALUES", settings, schema.header, batch.rows, data
            )
        except BlockMismatch as error:
            raise SchemaChanged(f"{self._where}: the table {self._settings.table} was altered: {error}") from None
        except errors.ServerException as error:
            if refuses_rows(error):
                raise RowsRefused(f"{self._where} refuses rows: {first_line(error)}") from None
            raise to_retryable(self._where, error) from None
        except DRIVER_ERRORS as error:
            raise self._lost(error) from None

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Count the rows of the range by their origin columns; None if the table has none."""
        if not self._schema.window:
            return None
        where = "_partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
        if any(name == "_topic" for name, _ in self._schema.origin):
            where += " AND _topic = %(topic)s"
        values = {"topic": topic, "partition": partition, "start": start, "end": end}
        try:
            ((count,),) = self._execute(f"SELECT count() FROM {self._table} WHERE {where}", values)
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None
        return int(count)

    def devices(self, *others: Settings, topic: str = "") -> int | None:
        """Return uniqExact of the devices in the table, in union with the tables of `others`.

        None if no table has a column for them.
        """
        try:
            tables = dict.fromkeys(settings.table for settings in (self._settings, *others))
            described = {table: self._describe(table) for table in tables}
            counted_of = {table: self._counted(table, columns) for table, columns in described.items()}
            columns_of = {table: _quoted(column) for table, column in counted_of.items() if column}
            if not columns_of:
                return None
            device = "toString({})" if len(columns_of) > 1 else "{}"  # their types may differ
            has_topic = any(column.name == "_topic" for column in described[self._settings.table])
            where = " WHERE _topic = %(topic)s" if topic and has_topic else ""
            union = " UNION ALL ".join(
                f"SELECT {device.format(column)} AS device FROM {_quoted_table(table)}{where}"
                for table, column in columns_of.items()
            )
            ((count,),) = self._execute(f"SELECT uniqExact(device) FROM ({union})", {"topic": topic})
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None
        return int(count)

    def close(self) -> None:
        self._client.disconnect()

    # the table's schema

    def _describe(self, table: str) -> list[Column]:
        """Return the columns; none if the table does not exist."""
        try:
            return [Column(*row[:3]) for row in self._execute(f"DESCRIBE TABLE {_quoted_table(table)}")]
        except errors.ServerException as error:
            if error.code == errors.ErrorCodes.UNKNOWN_TABLE:
                return []
            raise

    def _read_schema(self, described: list[Column]) -> _Schema:
        """Decide which field fills which column, and whether delivery is exactly-once."""
        bindings = self._bindings(self._settings.table, described)
        names = {column.name for column in described}
        origin = [(column.name, column.type) for column in described if column.name in ORIGIN]
        delivery = self._settings.delivery
        window, blockers = self._deduplication(names) if delivery != "at-least-once" else (0, [])
        reasons = "; ".join(map(str, blockers))
        if blockers and delivery == "exactly-once":
            raise Fatal(f"{self._where}: --delivery exactly-once cannot be kept: {reasons}")
        if not window or blockers:
            log.info("delivery is at-least-once: %s", reasons or "--delivery says so")
        return _Schema(
            tuple(bindings),
            tuple(binding.field for binding in bindings),
            tuple(origin),
            self._counted(self._settings.table, described),
            0 if blockers else window,
            tuple(blockers),
        )

    def _bindings(self, table: str, described: list[Column]) -> list[ColumnBinding]:
        try:
            return bind_columns(described, self._settings.map)
        except ValueError as error:
            raise Fatal(f"{self._where}: table {table}: {error}") from None

    def _counted(self, table: str, described: list[Column]) -> str:
        if not described:
            raise Fatal(f"{self._where}: there is no table {table}; name another with --table")
        return counted(described, self._bindings(table, described), self._settings.device_field)

    def _deduplication(self, names: set[str]) -> tuple[int, list[ExactlyOnceBlocker]]:
        """Return how many blocks' tokens the server keeps, and why that does not give exactly-once."""
        table, blockers = self._settings.table, []
        if absent := [name for name in ("_partition", "_offset") if name not in names]:
            add = ", ".join(f"ADD COLUMN {name} {'Int32' if name == '_partition' else 'Int64'}" for name in absent)
            blockers.append(ExactlyOnceBlocker(f"the table lacks {' and '.join(absent)}", f"ALTER TABLE {table} {add}"))
        database, _, name = table.rpartition(".")
        rows = self._execute(
            "SELECT engine, engine_full FROM system.tables WHERE name = %(name)s AND "
            "database = if(%(database)s = '', currentDatabase(), %(database)s)",
            {"name": name, "database": database},
        )
        engine, full = rows[0] if rows else ("", "")
        if "MergeTree" not in engine:
            return 0, [
                ExactlyOnceBlocker(
                    f"the engine {engine or 'of the table'} does not deduplicate", "use a MergeTree table"
                )
            ]
        replicated = engine.startswith(("Replicated", "Shared"))
        setting = "replicated_deduplication_window" if replicated else "non_replicated_deduplication_window"
        match = re.search(rf"\b{setting} = (\d+)", full)
        window = int(match[1]) if match else self._default_of(setting)
        if window < _LEAST_WINDOW:
            statement = f"ALTER TABLE {table} MODIFY SETTING {setting} = 10000"
            blockers.append(ExactlyOnceBlocker(f"the deduplication window is {window}", statement))
        return window, blockers

    def _default_of(self, setting: str) -> int:
        rows = self._execute("SELECT value FROM system.merge_tree_settings WHERE name = %(name)s", {"name": setting})
        return int(rows[0][0]) if rows else 0

    def _encode_origin(self, name: str, kind: str, batch: Batch) -> bytes:
        if name == "_offset":
            return types.offsets(kind, batch.offsets)
        value = batch.topic if name == "_topic" else batch.partition
        return types.constant(kind, value, batch.rows)

    # errors

    def _execute(self, query: str, values: dict[str, Any] | None = None) -> Any:
        """Run a query; raises ServerException, and Retryable for a lost connection."""
        try:
            return self._client.execute(query, values)
        except errors.ServerException:
            raise
        except DRIVER_ERRORS as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> Retryable:
        self._client.disconnect()
        return to_retryable(self._where, error)


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def _quoted_table(table: str) -> str:
    """Return the quoted name of a table, with or without its database."""
    return ".".join(map(_quoted, table.split(".")))
