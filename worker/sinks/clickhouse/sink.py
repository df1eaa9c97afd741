"""Events into a ClickHouse table: one block of encoded columns per batch, with a deduplication token."""

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
_INSERTS_PER_S = 100  # into one table by all its writers: more, and ClickHouse cannot keep up with merging the parts


class ExactlyOnceBlocker(NamedTuple):
    """Why a table is not written exactly once, and the statement that mends it."""

    fault: str
    fix: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.fix}"


class _Shape(NamedTuple):
    """What the table looks like, and how a batch is turned into its block."""

    bindings: tuple[ColumnBinding, ...]
    fields: tuple[Field, ...]  # of `filled`
    origin: tuple[tuple[str, str], ...]  # the origin columns that the table has: name, type
    counted: str  # the column whose distinct values are the devices; empty: there is none
    window: int  # blocks whose tokens the server remembers; 0: exactly-once is not possible, or not wanted
    blockers: tuple[ExactlyOnceBlocker, ...]  # why it is not possible, where it is wanted

    @property
    def header(self) -> list[tuple[str, str]]:
        """Return the block's columns: name, type."""
        return [*((one.column, one.codec.type) for one in self.bindings), *self.origin]


class ClickHouseSink:
    """One connection and one table."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table = _place(settings.table)
        self._client: Client = connect(settings.clickhouse_url, settings.clickhouse_password)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._shape: _Shape | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._known.fields

    @property
    def bindings(self) -> tuple[ColumnBinding, ...]:
        """The columns that events fill, in the order of `fields`; known once open."""
        return self._known.bindings

    @property
    def counted(self) -> str:
        """The column whose distinct values are the devices; empty where there is none. Known once open."""
        return self._known.counted

    @property
    def exactly_once(self) -> bool:
        return self._known.window > 0

    @property
    def blockers(self) -> tuple[ExactlyOnceBlocker, ...]:
        """What keeps the table from exactly-once, where --delivery wants it; known once open."""
        return self._known.blockers

    @property
    def dedup_retention_ms(self) -> float:
        return self._known.window / 2 / _INSERTS_PER_S * 1000

    @property
    def _known(self) -> _Shape:
        if self._shape is None:
            raise RuntimeError("the sink is not open")
        return self._shape

    def open(self) -> None:
        """Make the table if it is missing, and learn its columns."""
        try:
            described = self._describe(self._settings.table)
            if not described:
                if self._settings.map:
                    raise Fatal(
                        f"{self._where}: there is no table {self._settings.table}, and --map is given; make it "
                        "with CREATE TABLE (the one that the worker makes is for device events)"
                    )
                statement = (
                    files("worker.sinks.clickhouse").joinpath("events.sql").read_text().format(table=self._table)
                )
                self._execute(statement)
                log.info("made the table %s", self._settings.table)
                described = self._describe(self._settings.table)
            self._shape = self._learn(described)
        except errors.ServerException as error:
            if error.code in CONFIGURATION:
                raise Fatal(explained(self._where, error)) from None
            raise to_retryable(self._where, error) from None
        except Retryable as error:
            if error.reason == "credentials":
                raise Fatal(str(error)) from None
            raise

    def write(self, batch: Batch) -> None:
        """Insert the batch as one block; the token makes the server drop it when it has landed before."""
        shape = self._known
        if batch.fields is not shape.fields:  # the shape was learned anew after it was begun
            raise SchemaChanged(f"{self._where}: the table {self._settings.table} was altered")
        data = [one.codec.encode(parts) for one, parts in zip(shape.bindings, batch.columns, strict=True)]
        data += [self._origin(name, kind, batch) for name, kind in shape.origin]
        settings: dict[str, Any] = dict(_SETTINGS)
        if shape.window:
            settings["insert_deduplication_token"] = token(batch)
        names = ", ".join(_quoted(name) for name, _ in shape.header)
        try:
            insert_block(
                self._client, f"INSERT INTO {self._table} ({names}) VALUES", settings, shape.header, batch.rows, data
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
        """Count the rows of the range by their origin columns; None where the table has none."""
        if not self._known.window:
            return None
        where = "_partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
        if any(name == "_topic" for name, _ in self._known.origin):
            where += " AND _topic = %(topic)s"
        values = {"topic": topic, "partition": partition, "start": start, "end": end}
        try:
            ((count,),) = self._execute(f"SELECT count() FROM {self._table} WHERE {where}", values)
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None
        return int(count)

    def devices(self, *others: Settings, topic: str = "") -> int | None:
        """Return uniqExact of the devices in the table, and in those of the others together with it.

        None where no column has them.
        """
        try:
            described = {
                table: self._describe(table) for table in dict.fromkeys(one.table for one in (self._settings, *others))
            }
            found = {table: self._counted(table, listed) for table, listed in described.items()}
            columns_of = {table: _quoted(column) for table, column in found.items() if column}
            if not columns_of:
                return None
            device = "toString({})" if len(columns_of) > 1 else "{}"  # their types may differ
            tells = topic and any(column.name == "_topic" for column in described[self._settings.table])
            where = " WHERE _topic = %(topic)s" if tells else ""
            every = " UNION ALL ".join(
                f"SELECT {device.format(column)} AS device FROM {_place(table)}{where}"
                for table, column in columns_of.items()
            )
            ((count,),) = self._execute(f"SELECT uniqExact(device) FROM ({every})", {"topic": topic})
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None
        return int(count)

    def close(self) -> None:
        self._client.disconnect()

    # the table's shape

    def _describe(self, table: str) -> list[Column]:
        """Return the columns; nothing where there is no such table."""
        try:
            return [Column(*described[:3]) for described in self._execute(f"DESCRIBE TABLE {_place(table)}")]
        except errors.ServerException as error:
            if error.code == errors.ErrorCodes.UNKNOWN_TABLE:
                return []
            raise

    def _learn(self, described: list[Column]) -> _Shape:
        """Decide what of an event goes into which column, and what can be promised."""
        bindings = self._bindings(self._settings.table, described)
        names = {column.name for column in described}
        origin = [(column.name, column.type) for column in described if column.name in ORIGIN]
        delivery = self._settings.delivery
        window, blockers = self._memory(names) if delivery != "at-least-once" else (0, [])
        reasons = "; ".join(map(str, blockers))
        if blockers and delivery == "exactly-once":
            raise Fatal(f"{self._where}: --delivery exactly-once cannot be kept: {reasons}")
        if not window or blockers:
            log.info("delivery is at-least-once: %s", reasons or "--delivery says so")
        return _Shape(
            tuple(bindings),
            tuple(one.field for one in bindings),
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

    def _memory(self, names: set[str]) -> tuple[int, list[ExactlyOnceBlocker]]:
        """Return how many blocks' tokens the server remembers, and what keeps that from making exactly-once."""
        table, blockers = self._settings.table, []
        if absent := [name for name in ("_partition", "_offset") if name not in names]:
            add = ", ".join(f"ADD COLUMN {name} {'Int32' if name == '_partition' else 'Int64'}" for name in absent)
            blockers.append(ExactlyOnceBlocker(f"the table lacks {' and '.join(absent)}", f"ALTER TABLE {table} {add}"))
        database, _, name = table.rpartition(".")
        found = self._execute(
            "SELECT engine, engine_full FROM system.tables WHERE name = %(name)s AND "
            "database = if(%(database)s = '', currentDatabase(), %(database)s)",
            {"name": name, "database": database},
        )
        engine, full = found[0] if found else ("", "")
        if "MergeTree" not in engine:
            return 0, [
                ExactlyOnceBlocker(
                    f"the engine {engine or 'of the table'} drops no duplicates", "use a MergeTree table"
                )
            ]
        replicated = engine.startswith(("Replicated", "Shared"))
        setting = "replicated_deduplication_window" if replicated else "non_replicated_deduplication_window"
        named = re.search(rf"\b{setting} = (\d+)", full)
        window = int(named[1]) if named else self._default_of(setting)
        if window < _LEAST_WINDOW:
            statement = f"ALTER TABLE {table} MODIFY SETTING {setting} = 10000"
            blockers.append(ExactlyOnceBlocker(f"the deduplication window is {window}", statement))
        return window, blockers

    def _default_of(self, setting: str) -> int:
        found = self._execute("SELECT value FROM system.merge_tree_settings WHERE name = %(name)s", {"name": setting})
        return int(found[0][0]) if found else 0

    def _origin(self, name: str, kind: str, batch: Batch) -> bytes:
        if name == "_offset":
            return types.offsets(kind, batch.offsets)
        value = batch.topic if name == "_topic" else batch.partition
        return types.constant(kind, value, batch.rows)

    # trouble

    def _execute(self, query: str, values: dict[str, Any] | None = None) -> Any:
        """Run a query; ServerException goes to the caller, a lost connection is Retryable."""
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


def _place(table: str) -> str:
    """Return the quoted name of a table, with or without its database."""
    return ".".join(map(_quoted, table.split(".")))
