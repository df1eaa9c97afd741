"""What `check` finds out about ClickHouse: reachable, rights, the table and its columns, exactly-once."""

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
from worker.sinks.clickhouse.connection import address, connect
from worker.sinks.clickhouse.deduplication import ExactlyOnceBlocker
from worker.sinks.clickhouse.errors import DRIVER_ERRORS, advice, first_line
from worker.sinks.clickhouse.sink import ClickHouseSink

_TIMEOUTS = "connect_timeout=4&send_receive_timeout=8"
_SYNTAX = (62, 46)  # codes of servers that do not know CHECK GRANT
_NO_DATABASE = 81
_CLOCKS_S = 2.0  # the delivery protocol relies on a token for 5 s with the smallest window, 50 s with the usual one


def look_at_clickhouse(settings: Settings, create: bool, fields: list[Stored]) -> Iterator[Finding]:
    """Yield the findings; fill in the fields of an event that are stored. Makes the table if `create`, else nothing."""
    url = settings.clickhouse_url
    patient = settings if "connect_timeout" in url else replace(settings, clickhouse_url=_with_timeouts(url))
    where = f"ClickHouse at {address(url)}"
    with closing(_Client(connect(patient.clickhouse_url, settings.clickhouse_password))) as client:
        try:
            version = client.value("SELECT version()")
            yield ok("ClickHouse", f"{where} answers, version {version}")
            yield _clock(client)
            yield from _table(patient, client, create, fields)
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

    def granted(self, right: str) -> bool:
        """Whether this user has it; True where the server cannot tell."""
        try:
            return bool(self.value(f"CHECK GRANT {right}"))
        except errors.ServerException as error:
            if error.code in _SYNTAX:
                return True
            raise


def _clock(client: _Client) -> Finding:
    """Compare clocks: the age of an insert in doubt is taken by the clock of whoever takes it over."""
    before = time.time()
    theirs = client.value("SELECT toUnixTimestamp64Milli(now64(3))") / 1000
    after = time.time()
    ahead = (before + after) / 2 - theirs
    if abs(ahead) < _CLOCKS_S + (after - before) / 2:
        return ok("clock", f"within {_CLOCKS_S:g} s of the server's")
    found = f"this host's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    return warn("clock", f"{found}; exactly-once needs hosts that agree", "run NTP (timedatectl set-ntp true)")


def _table(settings: Settings, client: _Client, create: bool, fields: list[Stored]) -> Iterator[Finding]:
    name = settings.table if "." in settings.table else f"{client.value('SELECT currentDatabase()')}.{settings.table}"
    database = name.partition(".")[0]
    if not client.value(f"EXISTS DATABASE {database}"):
        yield fail("table", f"there is no database {database}", f"CREATE DATABASE {database}")
        return
    exists = bool(client.value(f"EXISTS TABLE {name}"))
    rights = ("INSERT", "SELECT") if exists else ("CREATE TABLE", "INSERT", "SELECT")
    if lacking := [right for right in rights if not client.granted(f"{right} ON {name}")]:
        user = client.value("SELECT currentUser()")
        rights_lacking = ", ".join(lacking)
        yield fail("rights", f"{user} lacks {rights_lacking} on {name}", f"GRANT {rights_lacking} ON {name} TO {user}")
    else:
        yield ok("rights", f"{', '.join(rights)} on {name}")
    if int(client.value("SELECT getSetting('readonly')")) == 1:
        yield fail("rights", "this user is read-only (readonly = 1)", "a user or profile with readonly = 0")
        return
    if lacking:
        return
    if not exists and not create and not settings.map:  # with --map the sink says that the table has to be there
        yield ok("table", f"{name} does not exist; the worker makes it when it starts, or --create now")
        return
    yield from _shape(settings, client, name, exists, fields)


def _shape(settings: Settings, client: _Client, name: str, exists: bool, fields: list[Stored]) -> Iterator[Finding]:
    """Open the sink as the worker does (it makes the table); it says itself what it cannot use."""
    asked = settings.delivery
    # Asked for, it would be an error that it is not possible; here it is a finding, with what else there is to say.
    sink = ClickHouseSink(replace(settings, delivery="auto") if asked == "exactly-once" else settings)
    try:
        with closing(sink):
            sink.open()
    except WorkerError as error:
        yield fail_with("table", error)
        return
    database, _, table = name.partition(".")
    engine = client.value(f"SELECT engine FROM system.tables WHERE database = '{database}' AND name = '{table}'")
    stored = [Stored(one.field, one.column, one.codec.type) for one in sink.bindings]
    bindings = ", ".join(map(str, stored))
    yield ok("table", f"{name} {'exists' if exists else 'was made'} ({engine}); filled: {bindings}")
    yield ok("devices", f"counted in column {sink.counted}" if sink.counted else uncounted(settings))
    yield _promise(asked, sink.blockers)
    fields += stored


def _promise(asked: str, blockers: Sequence[ExactlyOnceBlocker]) -> Finding:
    """Say whether the table is written exactly once, and if not why."""
    if asked == "at-least-once":
        return ok("delivery", "at-least-once, as --delivery says")
    if not blockers:
        return ok("delivery", "exactly-once is possible")
    faults = " and ".join(obstacle.fault for obstacle in blockers)
    level = fail if asked == "exactly-once" else warn
    return level("delivery", f"only at-least-once: {faults}", "; ".join(obstacle.fix for obstacle in blockers))


def _with_timeouts(url: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{_TIMEOUTS}"


def _fix(code: int) -> str:
    if code == _NO_DATABASE:
        return "CREATE DATABASE it, or name another in --clickhouse-url"
    return "see the server's log"
