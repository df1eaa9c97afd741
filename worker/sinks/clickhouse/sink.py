"""Events into a ClickHouse table: one block of encoded columns per batch, with a deduplication token."""

from __future__ import annotations

import logging
import time
from threading import local
from typing import Any, NoReturn

from clickhouse_driver import Client, errors

from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.delivery import token, token_decides
from worker.core.errors import BlockTooLarge, Fatal, Retryable, RowsRefused, SchemaChanged
from worker.core.records import Field
from worker.sinks.clickhouse import devices, types
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.deduplication import ExactlyOnceBlocker
from worker.sinks.clickhouse.errors import (
    CONFIGURATION,
    DRIVER_ERRORS,
    REFUSED_SETTINGS,
    explained,
    first_line,
    refuses_block,
    refuses_rows,
    to_retryable,
)
from worker.sinks.clickhouse.insert import BlockMismatch, insert_block
from worker.sinks.clickhouse.names import IS_TABLE, literal, quoted, table_name, table_values
from worker.sinks.clickhouse.schema import Schema, SchemaReader
from worker.sinks.clickhouse.table import Column, ColumnBinding, events_template

log = logging.getLogger(__name__)

_MAX_OFFSET = 2**63 - 1


class _Connection(local):
    """The client of the current thread: the consumer looks rows up while its writer inserts."""

    def __init__(self, settings: Settings, clients: list[Client]) -> None:
        self.client: Client = connect(settings.clickhouse_url, settings.clickhouse_password)
        clients.append(self.client)


class ClickHouseSink:
    """One table, and a connection for each thread. `template` creates a missing table, in the form of events.sql."""

    def __init__(self, settings: Settings, template: str = "") -> None:
        self._settings = settings
        self._template = template
        self.has_created_table = False
        self._table = table_name(settings.table)
        self._clients: list[Client] = []  # of all threads
        self._connection = _Connection(settings, self._clients)
        self._where = f"ClickHouse at {address(settings.clickhouse_url)}"
        self._opened_schema: Schema | None = None
        self._described: list[Column] = []  # of the opened schema
        self._reader = SchemaReader(settings, self._execute, self._where, self._client.settings)

    @property
    def _client(self) -> Client:
        return self._connection.client

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._schema.fields

    @property
    def bindings(self) -> tuple[ColumnBinding, ...]:
        """The columns that events fill, in the order of `fields`; known once open."""
        return self._schema.bindings

    @property
    def counted(self) -> str:
        """The column whose distinct values are the devices; empty where there is none. Known once open."""
        return self._schema.counted

    @property
    def computed(self) -> tuple[str, ...]:
        """The columns that the server fills by a DEFAULT expression, whatever an event has; known once open."""
        return self._schema.computed

    @property
    def exactly_once(self) -> bool:
        return self._schema.exactly_once

    @property
    def blockers(self) -> tuple[ExactlyOnceBlocker, ...]:
        """What keeps the table from exactly-once, where --delivery wants it; known once open."""
        return self._schema.deduplication.blockers

    @property
    def _schema(self) -> Schema:
        if self._opened_schema is None:
            raise RuntimeError("the sink is not open")
        return self._opened_schema

    def open(self) -> None:
        """Connect, create the table if it is missing, and read its columns."""
        try:
            described = self._reader.describe(self._settings.table)
            if not described:
                if self._settings.map and not self._template:
                    raise Fatal(
                        f"{self._where}: there is no table {self._settings.table}, and --map is given; fix: use "
                        "CREATE TABLE, as worker check --propose prints it (the worker creates one for device events)"
                    )
                self._create_table()
                self.has_created_table = True
                log.info("created the table %s", self._settings.table)
                described = self._reader.describe(self._settings.table)
            if described != self._described:  # else what was formed for the schema stays valid
                self._opened_schema = self._reader.read(described)
                self._described = described
        except errors.ServerException as error:
            if error.code in CONFIGURATION:
                raise Fatal(explained(self._where, error)) from None
            self._raise_if_permanent(to_retryable(self._where, error))
        except Retryable as error:
            self._raise_if_permanent(error)

    def _create_table(self) -> None:
        best, *others = devices.create_statements(self._template or events_template(), self._settings.report)
        try:
            self._execute(best.format(table=self._table))
        except errors.ServerException as error:
            if not others or error.code != errors.ErrorCodes.UNKNOWN_SETTING:
                raise
            self._execute(others[-1].format(table=self._table))

    @staticmethod
    def _raise_if_permanent(error: Retryable) -> NoReturn:
        if error.reason in ("credentials", "configuration"):
            raise Fatal(str(error)) from None
        raise error

    def write(self, batch: Batch) -> None:
        """Insert the batch as one block; what of it is stored already stays as it is.

        The token makes the server drop a block that it has. Once it may have evicted the token, only rows whose origin
        is not in the table yet are inserted. Where an engine merges rows, or a TTL removes them, the token alone
        decides.
        """
        schema = self._schema
        if batch.fields is not schema.fields:  # the schema was read again after the batch was begun
            raise SchemaChanged(f"{self._where}: the table {self._settings.table} was altered")
        data = [binding.codec.encode(parts) for binding, parts in zip(schema.bindings, batch.columns, strict=True)]
        data += [self._encode_origin(name, kind, batch) for name, kind in schema.origin]
        settings: dict[str, Any] = dict(schema.settings)
        query = self._insert_query()
        if schema.exactly_once:
            settings["insert_deduplication_token"] = token(batch)
            if schema.deduplication.finds_rows and not self._token_decides(batch):
                query = self._insert_missing_query(batch)
                settings["insert_deduplicate"] = 0  # the rows that are missing are not the block of the token
        try:
            insert_block(self._client, query, settings, schema.header, batch.rows, data)
        except BlockMismatch as error:
            self._described = []  # have `open` read the schema again
            raise SchemaChanged(f"{self._where}: the table {self._settings.table} was altered: {error}") from None
        except errors.ServerException as error:
            if error.code in REFUSED_SETTINGS:
                raise Fatal(explained(self._where, error)) from None
            if refuses_block(error) and self._may_be_split(batch):
                raise BlockTooLarge(
                    f"{self._where} refuses a block of {batch.rows} rows: {first_line(error)}"
                ) from None
            if not refuses_rows(error):
                raise to_retryable(self._where, error) from None
            if not (batch.in_doubt and self._has_all_rows(batch)):
                raise RowsRefused(f"{self._where} refuses rows: {first_line(error)}") from None
        except DRIVER_ERRORS as error:
            raise self._lost(error) from None

    def _may_be_split(self, batch: Batch) -> bool:
        """Whether its parts may be inserted with tokens of their own, although some of its rows may be stored."""
        schema = self._schema
        if batch.consumed < 2 or not schema.exactly_once:
            return batch.consumed > 1
        return schema.deduplication.finds_rows or (schema.deduplication.is_atomic and not batch.in_doubt)

    def _token_decides(self, batch: Batch) -> bool:
        return token_decides(batch, self._schema.deduplication.retention_ms, time.time() * 1000)

    def _insert_query(self) -> str:
        names = ", ".join(quoted(name) for name, _ in self._schema.header)
        return f"INSERT INTO {self._table} ({names}) VALUES"

    def _insert_missing_query(self, batch: Batch) -> str:
        """Return the statement that inserts those rows of a block whose origin the table does not have."""
        names = ", ".join(quoted(name) for name, _ in self._schema.header)
        structure = ", ".join(f"{quoted(name)} {kind}" for name, kind in self._schema.header)
        return (
            f"INSERT INTO {self._table} ({names}) SELECT {names} FROM input({literal(structure)}) "
            f"WHERE _offset NOT IN (SELECT _offset FROM {self._table} WHERE _topic = {literal(batch.topic)} AND "
            f"_partition = {batch.partition} AND _offset >= {batch.start} AND _offset < {batch.end}) FORMAT Native"
        )

    def _has_all_rows(self, batch: Batch) -> bool:
        """Whether a batch that the server refuses is stored: it checks a new constraint before it looks at tokens."""
        stored = self.count_stored_rows(batch.topic, batch.partition, batch.start, batch.end)
        return stored is not None and stored >= batch.rows

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Count the rows of the range by their origin columns; None where that does not tell."""
        if not (self._schema.exactly_once and self._schema.deduplication.finds_rows):
            return None
        count, _ = self._stored(topic, partition, start, end)
        return count

    def last_stored_offset(self, topic: str, partition: int, start: int, end: int | None = None) -> int | None:
        """Return the highest offset in [start, end) that a row has; None if there is none, or none is to be found."""
        if not self._schema.exactly_once:
            return None
        count, last = self._stored(topic, partition, start, _MAX_OFFSET if end is None else end)
        return last if count else None

    def _stored(self, topic: str, partition: int, start: int, end: int) -> tuple[int, int]:
        """Return how many rows the range has, and the highest offset among them."""
        where = "_topic = %(topic)s AND _partition = %(partition)s AND _offset >= %(start)s AND _offset < %(end)s"
        values = {"topic": topic, "partition": partition, "start": start, "end": end}
        query = f"SELECT count(), max(toInt64(_offset)) FROM {self._table} WHERE {where}"
        ((count, last),) = self._ask(query, values)
        return int(count), int(last)

    def is_empty(self) -> bool:
        """Whether the table has no row; False for engines that keep none."""
        rows = self._ask(
            f"SELECT total_rows = 0 FROM system.tables WHERE engine LIKE '%%MergeTree' AND {IS_TABLE}",
            table_values(self._settings.table),
        )
        return bool(rows and rows[0][0])

    def devices(self, *others: Settings, topic: str = "") -> int | None:
        """Return the number of devices in the table, and in those of the others together with it.

        `--report` says how it is counted. None where no column has them.
        """
        try:
            described = {
                table: self._reader.describe(table)
                for table in dict.fromkeys(item.table for item in (self._settings, *others))
            }
            found = {table: self._reader.device_column(table, listed) for table, listed in described.items()}
            columns_of = {table: quoted(column) for table, column in found.items() if column}
            if not columns_of:
                return None
            device = "toString({})" if len(columns_of) > 1 else "{}"  # their types may differ
            tells = topic and any(column.name == "_topic" for column in described[self._settings.table])
            where = " WHERE _topic = %(topic)s" if tells else ""
            function = devices.function(self._settings.report)
            every = " UNION ALL ".join(
                f"SELECT {device.format(column)} AS device FROM {table_name(table)}{where}"
                for table, column in columns_of.items()
            )
            ((count,),) = self._execute(f"SELECT {function}(device) FROM ({every})", {"topic": topic})
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None
        return int(count)

    def window_devices(self) -> dict[str, int]:
        """Return nothing: the table has no windows."""
        return {}

    def close(self) -> None:
        for client in self._clients:
            client.disconnect()

    def _encode_origin(self, name: str, kind: str, batch: Batch) -> bytes:
        if name == "_offset":
            return types.offsets(kind, batch.offsets)
        value = batch.topic if name == "_topic" else batch.partition
        return types.constant(kind, value, batch.rows)

    # errors

    def _execute(self, query: str, values: dict[str, Any] | None = None, settings: dict[str, Any] | None = None) -> Any:
        """Run a query; ServerException goes to the caller, a lost connection is Retryable."""
        try:
            return self._client.execute(query, values, settings=settings)
        except errors.ServerException:
            raise
        except DRIVER_ERRORS as error:
            raise self._lost(error) from None

    def _ask(self, query: str, values: dict[str, Any]) -> Any:
        """Run a query; every error is Retryable."""
        try:
            return self._execute(query, values)
        except errors.ServerException as error:
            raise to_retryable(self._where, error) from None

    def _lost(self, error: Exception) -> Retryable:
        self._client.disconnect()
        return to_retryable(self._where, error)
