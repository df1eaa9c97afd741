"""The checks of ClickHouse: connection, clock, rights, the table with its columns, exactly-once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from clickhouse_driver import Client, errors

from worker.commands.check.finding import Finding, Stored, fail, fail_with, ok, warn
from worker.config.settings import Settings
from worker.core.errors import WorkerError
from worker.sinks import uncounted
from worker.sinks.clickhouse import devices
from worker.sinks.clickhouse.connection import address, connect, has_right
from worker.sinks.clickhouse.deduplication import ExactlyOnceBlocker
from worker.sinks.clickhouse.errors import DRIVER_ERRORS, advice, first_line
from worker.sinks.clickhouse.evolve import EVOLVE_RIGHT
from worker.sinks.clickhouse.names import literal, quoted, shown, table_parts
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.clickhouse.table import bind_columns, counted, default_columns

_TIMEOUTS = "connect_timeout=4&send_receive_timeout=8"
_NO_DATABASE = 81
_WITH_PROJECTIONS = ("MergeTree", "ReplicatedMergeTree", "SharedMergeTree")  # the others merge rows
_CLOCKS_S = 2.0  # the delivery protocol relies on a token for 5 s with the smallest window, 50 s with the usual one


def check_clickhouse(settings: Settings, create: bool, fields: list[Stored]) -> Iterator[Finding]:
    """Yield the findings; append the fields of an event that are stored to `fields`. Creates the table if `create`."""
    url = settings.clickhouse_url
    limited = settings if "connect_timeout" in url else replace(settings, clickhouse_url=_with_timeouts(url))
    where = f"ClickHouse at {address(url)}"
    with closing(_Client(connect(limited.clickhouse_url, settings.clickhouse_password))) as client:
        try:
            version = client.value("SELECT version()")
            yield ok("ClickHouse", f"{where} answers, version {version}")
            yield _check_clock(client)
            yield from _check_table(limited, client, create, fields)
        except errors.ServerException as error:
            yield fail("ClickHouse", f"{where}: {first_line(error)}", advice(error) or _fix(error.code))
        except DRIVER_ERRORS as error:
            fix = "--clickhouse-url clickhouse://USER@HOST:9000/DATABASE (the native port; is it running?)"
            yield fail("ClickHouse", f"{where} does not answer: {first_line(error)}", advice(error) or fix)


class _Client:
    """A connection, closed by `close`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.close = client.disconnect

    def rows(self, query: str) -> Any:
        return self._client.execute(query)

    def value(self, query: str) -> Any:
        return self.rows(query)[0][0]

    def has_right(self, right: str) -> bool:
        """Whether this user has the right."""
        return has_right(self._client, right)


def _check_clock(client: _Client) -> Finding:
    """Compare clocks: after a takeover the new owner's clock decides how old an insert in doubt is."""
    before = time.time()
    server_time = client.value("SELECT toUnixTimestamp64Milli(now64(3))") / 1000
    after = time.time()
    ahead = (before + after) / 2 - server_time
    if abs(ahead) < _CLOCKS_S + (after - before) / 2:
        return ok("clock", f"within {_CLOCKS_S:g} s of the server's")
    result = f"this host's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    return warn("clock", f"{result}; exactly-once needs synchronized clocks", "run NTP (timedatectl set-ntp true)")


def _check_table(settings: Settings, client: _Client, create: bool, fields: list[Stored]) -> Iterator[Finding]:
    database, table = table_parts(settings.table)
    database = database or client.value("SELECT currentDatabase()")
    name = shown(f"{quoted(database)}.{quoted(table)}")
    if not client.value(f"EXISTS DATABASE {quoted(database)}"):
        yield fail("table", f"no database {database}", f"CREATE DATABASE {shown(quoted(database))}")
        return
    exists = bool(client.value(f"EXISTS TABLE {name}"))
    rights = [*(() if exists else ("CREATE TABLE",)), "INSERT", "SELECT"]
    rights += [EVOLVE_RIGHT] if settings.evolve else []
    if missing := ", ".join(right for right in rights if not client.has_right(f"{right} ON {name}")):
        user = client.value("SELECT currentUser()")
        grant = f"GRANT {missing} ON {name} TO {shown(quoted(user))}"
        yield fail("rights", f"{user} lacks {missing} on {name}", grant)
    else:
        yield ok("rights", f"{', '.join(rights)} on {name}")
    if int(client.value("SELECT getSetting('readonly')")) == 1:
        yield fail("rights", "this user is read-only (readonly = 1)", "a user or profile with readonly = 0")
        return
    if missing:
        return
    if not exists and not create and not settings.map:  # with --map the sink reports that the table must exist
        yield from _check_default_columns(settings, name, fields)
        return
    yield from _check_columns(settings, client, name, exists, fields)


def _check_default_columns(settings: Settings, name: str, fields: list[Stored]) -> Iterator[Finding]:
    """Append the fields that the table will have which the worker creates."""
    columns = default_columns()
    bindings = bind_columns(columns, {})
    stored = [Stored(binding.field, binding.column, binding.codec.type, exists=False) for binding in bindings]
    filled = ", ".join(map(str, stored))
    yield ok("table", f"{name} does not exist; the worker creates it when it starts, or --create now, with {filled}")
    column = counted(columns, bindings, settings.device_field)
    yield ok("devices", f"counted in column {column}" if column else uncounted(settings))
    fields += stored


def _check_columns(
    settings: Settings, client: _Client, name: str, exists: bool, fields: list[Stored]
) -> Iterator[Finding]:
    """Open the sink as the worker does, which creates a missing table; its error says what it cannot use."""
    delivery = settings.delivery
    # With exactly-once the sink would raise where the table cannot support it. Here that is one finding of several.
    sink = ClickHouseSink(replace(settings, delivery="auto") if delivery == "exactly-once" else settings)
    try:
        with closing(sink):
            sink.open()
    except WorkerError as error:
        yield fail_with("table", error)
        return
    database, table = table_parts(name)
    place = f"database = {literal(database)} AND name = {literal(table)}"
    ((engine, definition),) = client.rows(f"SELECT engine, create_table_query FROM system.tables WHERE {place}")
    views = client.value(
        "SELECT arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table) "
        f"FROM system.tables WHERE {place}"
    )
    keys = client.value(
        "SELECT groupArray(name) FROM system.columns WHERE "
        f"database = {literal(database)} AND table = {literal(table)} AND (is_in_sorting_key OR is_in_partition_key)"
    )
    stored = [Stored(b.field, b.column, b.codec.type, is_key=b.column in keys) for b in sink.bindings]
    columns = ", ".join(map(str, stored))
    yield ok("table", f"{name} {'exists' if exists else 'was created'} ({engine}); columns filled: {columns}")
    yield ok("devices", _devices(settings, name, engine, definition, sink.counted))
    if sink.computed:
        yield warn(
            "defaults",
            f"the server computes {', '.join(sink.computed)} by DEFAULT expressions, whatever an event has",
            "nothing, if events lack such fields; else --map FIELD=COLUMN",
        )
    if views:
        yield ok("views", f"{', '.join(views)}: an error of one of them delays all events of this table")
    yield _check_delivery(delivery, sink.blockers)
    fields += stored


def _devices(settings: Settings, table: str, engine: str, definition: str, column: str) -> str:
    """Return how the devices are counted, and how that is done without reading a large table."""
    if not column:
        return uncounted(settings)
    counted = f"counted in column {column}"
    function = devices.function(settings.report)
    if settings.report == "off" or f"PROJECTION devices (SELECT _topic, {function}" in " ".join(definition.split()):
        return counted
    if engine not in _WITH_PROJECTIONS or "`_topic`" not in definition:
        return counted
    statements = devices.advice(settings.report, table, shown(quoted(column)))
    return f"{counted}; each report reads all of it, unless you {statements}"


def _check_delivery(delivery: str, blockers: Sequence[ExactlyOnceBlocker]) -> Finding:
    """Report whether the table is written exactly once, and if not why."""
    if delivery == "at-least-once":
        return ok("delivery", "at-least-once, as --delivery says")
    if not blockers:
        return ok("delivery", "exactly-once is possible")
    faults = " and ".join(blocker.fault for blocker in blockers)
    level = fail if delivery == "exactly-once" else warn
    return level("delivery", f"only at-least-once: {faults}", "; ".join(blocker.fix for blocker in blockers))


def _with_timeouts(url: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{_TIMEOUTS}"


def _fix(code: int) -> str:
    if code == _NO_DATABASE:
        return "CREATE DATABASE, or another database in --clickhouse-url"
    return "see the server's log"
