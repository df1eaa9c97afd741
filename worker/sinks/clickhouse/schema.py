"""What a table looks like: its columns, the fields that fill them, and what it promises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from clickhouse_driver import errors

from worker.config.settings import Settings
from worker.core.errors import Fatal
from worker.core.records import Field
from worker.sinks.clickhouse.deduplication import Deduplication, inspect
from worker.sinks.clickhouse.names import literal, table_name
from worker.sinks.clickhouse.table import (
    ORIGIN,
    Column,
    ColumnBinding,
    bind_columns,
    counted,
    has_constant_default,
    is_filled_by_server,
)

log = logging.getLogger(__name__)

_SETTINGS = {"async_insert": 0, "insert_deduplicate": 1}
_AS_EVENTS_HAVE_IT = {
    "date_time_output_format": "iso",
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_decimals": 1,
    "output_format_json_quote_denormals": 1,
}
_FLATTENED = "output_format_native_use_flattened_dynamic_and_json_serialization"  # came with reading that form
# Sent where the server has the setting, and the URL does not say otherwise: a profile must not turn tokens off, a
# retried block goes once into views, too, and a backlog of many days is no error.
_IF_KNOWN = {
    "deduplicate_insert": "enable",
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "max_partitions_per_insert_block": 0,
}


class Schema(NamedTuple):
    """What the table looks like, and how a batch is turned into its block."""

    bindings: tuple[ColumnBinding, ...]
    fields: tuple[Field, ...]  # of `bindings`
    origin: tuple[tuple[str, str], ...]  # the origin columns that the table has: name, type
    computed: tuple[str, ...]  # columns that the server fills by a DEFAULT expression
    counted: str  # the column whose distinct values are the devices; empty: there is none
    exactly_once: bool
    deduplication: Deduplication  # what the table promises, where --delivery asks for it
    settings: Mapping[str, Any]  # of an insert

    @property
    def header(self) -> list[tuple[str, str]]:
        """Return the block's columns: name, type."""
        return [*((binding.column, binding.codec.type) for binding in self.bindings), *self.origin]


class SchemaReader:
    """Reads the schema of tables from one server."""

    def __init__(self, settings: Settings, execute: Callable[..., Any], where: str, given: Collection[str]) -> None:
        """`execute` runs a query. `where` names the server. The URL has the query settings `given`."""
        self._settings = settings
        self._execute = execute
        self._where = where
        self._given = given
        self._constants: dict[str, str] = {}  # of DEFAULTs, by the query for them

    def describe(self, table: str) -> list[Column]:
        """Return the columns; nothing where there is no such table."""
        try:
            rows = self._execute(f"DESCRIBE TABLE {table_name(table)}")
            columns = [Column(*row[:4])._replace(comment=row[4]) for row in rows]
        except errors.ServerException as error:
            if error.code == errors.ErrorCodes.UNKNOWN_TABLE:
                return []
            raise
        return [
            column._replace(constant=self._constant_default(column)) if has_constant_default(column) else column
            for column in columns
        ]

    def _constant_default(self, column: Column) -> str:
        """Return the value of a column's DEFAULT, as the JSON of an event has it."""
        query = f"SELECT ifNull(toJSONString(CAST({column.expression}, {literal(column.type)})), 'null')"
        if query not in self._constants:
            ((self._constants[query],),) = self._execute(query, settings=_AS_EVENTS_HAVE_IT)
        return self._constants[query]

    def read(self, described: list[Column]) -> Schema:
        """Decide what of an event goes into which column, and what can be promised."""
        bindings = self._bindings(self._settings.table, described)
        self._check_server(bindings)
        names = {column.name for column in described}
        origin = [(column.name, column.type) for column in described if column.name in ORIGIN]
        delivery = self._settings.delivery
        is_asked_for = delivery != "at-least-once"
        promise = inspect(self._execute, self._settings.table, names) if is_asked_for else Deduplication()
        reasons = "; ".join(map(str, promise.blockers))
        if promise.blockers and delivery == "exactly-once":
            raise Fatal(f"{self._where}: --delivery exactly-once cannot be kept: {reasons}")
        exactly_once = is_asked_for and not promise.blockers
        if not exactly_once:
            log.info("delivery is at-least-once: %s", reasons or "--delivery says so")
        computed = [
            column.name
            for column in described
            if column.default == "DEFAULT" and is_filled_by_server(column) and column.name not in self._settings.map
        ]
        if computed:
            log.warning(
                "columns %s of %s have DEFAULT expressions: the server fills them, whatever an event has; "
                "--map FIELD=COLUMN fills one from the events, if all of them have the field",
                ", ".join(computed),
                self._settings.table,
            )
        return Schema(
            tuple(bindings),
            tuple(binding.field for binding in bindings),
            tuple(origin),
            tuple(computed),
            self.device_column(self._settings.table, described),
            exactly_once,
            promise,
            self._insert_settings(),
        )

    def _check_server(self, bindings: list[ColumnBinding]) -> None:
        """Refuse a column type that this server is too old to read as the worker writes it."""
        if dynamic := [binding.column for binding in bindings if "Dynamic" in binding.codec.type]:
            query = "SELECT count() FROM system.settings WHERE name = %(name)s"
            if not self._execute(query, {"name": _FLATTENED})[0][0]:
                raise Fatal(
                    f"{self._where}: column {dynamic[0]}: type Dynamic needs a server with the setting {_FLATTENED}; "
                    "upgrade it, or make the column String or JSON"
                )

    def _insert_settings(self) -> dict[str, Any]:
        """Return the settings of an insert that this server has: a profile must not turn tokens off unseen."""
        known = self._execute("SELECT name FROM system.settings WHERE name IN %(names)s", {"names": tuple(_IF_KNOWN)})
        settings = {**_SETTINGS, **{name: _IF_KNOWN[name] for (name,) in known if name not in self._given}}
        self._execute("SELECT 1", settings=settings)  # an error at once, not at the first event, if one is forbidden
        return settings

    def _bindings(self, table: str, described: list[Column]) -> list[ColumnBinding]:
        try:
            return bind_columns(described, self._settings.map, self._settings.types)
        except ValueError as error:
            raise Fatal(f"{self._where}: table {table}: {error}") from None

    def device_column(self, table: str, described: list[Column]) -> str:
        """Return the column whose distinct values are the devices; empty where there is none."""
        if not described:
            raise Fatal(f"{self._where}: there is no table {table}; name another with --table")
        return counted(described, self._bindings(table, described), self._settings.device_field)
