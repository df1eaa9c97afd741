"""`--evolve`: columns for fields that many of a topic's last events have, and the ALTER TABLE that adds them.

The columns are Nullable, or have an empty DEFAULT where the type cannot be. Their COMMENT marks them, so the table
itself says how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import eq
from typing import Any, NamedTuple

from worker.config.field_paths import parse_element_path
from worker.config.settings import Settings
from worker.core.errors import Fatal, Retryable
from worker.sinks.clickhouse.connection import address, connect, has_right
from worker.sinks.clickhouse.errors import DRIVER_ERRORS, to_retryable
from worker.sinks.clickhouse.inference import InferredField, infer, optional, printed
from worker.sinks.clickhouse.names import IS_TABLE, literal, quoted, shown, table_name, table_values
from worker.sinks.clickhouse.schema import SchemaReader
from worker.sinks.clickhouse.table import Column, bind_columns

COMMENT = "added by worker --evolve"
EVOLVE_RIGHT = "ALTER ADD COLUMN"
_SHARE = 0.5  # of the sampled events that have a value for the field
_LEAST_EVENTS = 100
_is_plain_name = re.compile(r"(?!_)[\w-]+").fullmatch
_text_type = re.compile(r"\b(?:UUID|IPv[46]|Date32)\b")  # of texts; another text would be a dead letter


class Candidate(NamedTuple):
    """A field of many events that no column has, and its column."""

    name: str  # of both, printable
    definition: str  # type, and DEFAULT if there is one
    share: float  # of the sampled events that have a value for it
    reason: str = ""  # why the column is not added


def candidates(columns: Sequence[Column], events: Sequence[dict[str, Any]], settings: Settings) -> list[Candidate]:
    """Return the fields that at least half of the events have and no column is filled from, the most frequent first.

    `columns` are those of the table. There are no candidates with fewer than 100 events.
    """
    if len(events) < _LEAST_EVENTS:
        return []
    filled = [tuple(column.name.split(".")) for column in columns]
    filled += [parse_element_path(field)[0] for field in settings.map.values()]
    left = settings.evolve - sum(column.comment == COMMENT for column in columns)
    found: list[Candidate] = []
    for field in sorted(infer(events), key=lambda field: field.nulls - field.present):
        share = (field.present - field.nulls) / len(events)
        # Neither the field, nor an object above it, nor a field in it has a column.
        if share < _SHARE or any(all(map(eq, field.path, path)) for path in filled):
            continue
        definition = optional(_text_type.sub("String", field.type)) if field.type else ""
        reason = re.split("[:;] ", field.undecided)[0] or _fault(field, definition, columns, settings)
        if not reason and left <= 0:
            reason = f"--evolve {settings.evolve} allows no more columns"
        left -= not reason
        found.append(Candidate(printed(field.path), definition, share, reason))
    return found


def _fault(field: InferredField, definition: str, columns: Sequence[Column], settings: Settings) -> str:
    """Return why the worker should not or could not fill such a column; empty if it can."""
    if not all(map(_is_plain_name, field.path)):
        return "its name begins with _, or has other characters than letters, digits, _ and -"
    try:
        bind_columns(
            [*columns, Column(field.column, definition.partition(" DEFAULT ")[0])], settings.map, settings.types
        )
    except ValueError as error:
        return str(error)
    return ""


class EvolvingTable:
    """A topic's table: one connection, for one thread. Every method raises Retryable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table = table_name(settings.table)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._client = connect(settings.clickhouse_url, settings.clickhouse_password)

    def check(self) -> None:
        """Raise Fatal if columns cannot be added to the table."""
        table = self._settings.table
        engine_query = f"SELECT any(engine) FROM system.tables WHERE {IS_TABLE}"
        engine = self._ask(lambda: self._client.execute(engine_query, table_values(table)))[0][0]
        if "MergeTree" not in engine:
            raise Fatal(
                f"{self._where}: --evolve needs a table of the MergeTree family, and the engine of {table} is "
                f"{engine or 'unknown'}, which keeps no rows or cannot be altered; leave --evolve out"
            )
        if not self._ask(lambda: has_right(self._client, f"{EVOLVE_RIGHT} ON {self._table}")):
            user = self._ask(lambda: self._client.execute("SELECT currentUser()"))[0][0]
            grant = f"GRANT {EVOLVE_RIGHT} ON {shown(table)} TO {shown(quoted(user))}"
            raise Fatal(f"{self._where}: --evolve needs a right that {user} lacks; {grant}")

    def columns(self) -> list[Column]:
        """Return the table's columns. A table that the worker cannot fill is an error, too."""
        settings = self._settings
        reader = SchemaReader(settings, self._client.execute, self._where, ())
        columns: list[Column] = self._ask(lambda: reader.describe(settings.table))
        try:
            bind_columns(columns, settings.map, settings.types)
        except ValueError as error:
            fault = error if columns else "it does not exist"
            raise Retryable(f"{self._where}: table {settings.table}: {fault}", reason="table") from None
        return columns

    def add(self, added: Sequence[Candidate]) -> None:
        """Add columns. One that another host has added meanwhile stays as it is."""
        clauses = ", ".join(
            f"ADD COLUMN IF NOT EXISTS {quoted(item.name)} {item.definition} COMMENT {literal(COMMENT)}"
            for item in added
        )
        self._ask(lambda: self._client.execute(f"ALTER TABLE {self._table} {clauses}"))

    def close(self) -> None:
        self._client.disconnect()

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except DRIVER_ERRORS as error:
            raise to_retryable(self._where, error) from None
