"""What an error of ClickHouse or its driver means, and what to do: for the sink, `check` and `verify`."""

from __future__ import annotations

import re

from clickhouse_driver import errors

from worker.core.errors import Retryable
from worker.sinks.clickhouse.connection import certificate_advice

DRIVER_ERRORS = (errors.Error, OSError, EOFError)
"""Everything that a query may raise. A lost connection raises a built-in exception."""

# Codes of src/Common/ErrorCodes.cpp. Any code that is in none of these sets is retried, so that no event is lost.
_REASONS = {
    3: "connection", 107: "other", 159: "timeout", 202: "overloaded", 203: "overloaded",
    209: "timeout", 210: "connection", 241: "memory", 242: "read_only", 243: "no_space", 252: "too_many_parts",
    285: "overloaded", 319: "overloaded", 425: "other", 774: "read_only", 999: "connection",
    16: "table", 36: "table", 60: "table", 81: "table", 115: "table", 218: "table", 219: "table",
    192: "credentials", 193: "credentials", 194: "credentials", 497: "credentials", 516: "credentials",
}  # fmt: skip
REFUSED_SETTINGS = {164, 452}  # a read-only user, or a profile that forbids what the worker sends
CONFIGURATION = {16, 36, 81, 115, 192, 193, 194, 497, 516, *REFUSED_SETTINGS}
# What the rows themselves are at fault for, also in a DEFAULT's expression, a CONSTRAINT or the arrays of a Nested.
_DATA = {6, 26, 27, 32, 38, 41, 53, 69, 70, 72, 117, 131, 153, 190, 321, 376, 395, 407, 441, 467, 469, 675, 676, 691}
_TOO_MANY_PARTS, _MEMORY_LIMIT = 252, 241
_of_query = re.compile(r"Query memory limit|Memory limit \(for query\)", re.IGNORECASE)  # not the server's own limit
_OTHER_PROTOCOL = (errors.UnexpectedPacketFromServerError, errors.UnknownPacketFromServerError)
_view = re.compile(r"while pushing to view (\S+?)[.:]?(?:\s|$)")


def to_retryable(where: str, error: Exception) -> Retryable:
    """Return what one of DRIVER_ERRORS means."""
    if isinstance(error, errors.ServerException):
        if view := failing_view(error):
            return Retryable(
                f"{where}: the materialized view {view} fails: {first_line(error)} (the rows are in its source table; "
                "correct or drop the view, and the insert is tried again)",
                reason="view",
                backend="clickhouse",
            )
        reason = "configuration" if _name_too_long(error) else _REASONS.get(error.code, "other")
    elif isinstance(error, (TimeoutError, errors.SocketTimeoutError)):
        return Retryable(f"{where}: no answer in time", reason="timeout", backend="clickhouse")
    elif isinstance(error, _OTHER_PROTOCOL):
        reason = "configuration"
    else:
        reason = "credentials" if advice(error) else "connection"
    return Retryable(explained(where, error), reason=reason, backend="clickhouse")


def explained(where: str, error: Exception) -> str:
    """Return what happened, where, and what to do."""
    return f"{where}: {first_line(error)}" + (f" ({todo})" if (todo := advice(error)) else "")


def refuses_rows(error: errors.ServerException) -> bool:
    """Whether it is the rows' own fault, not the server's or a view's."""
    return error.code in _DATA and not failing_view(error)


def refuses_block(error: errors.ServerException) -> bool:
    """Whether the server would accept the same rows in smaller blocks."""
    if failing_view(error):
        return False
    if error.code == _TOO_MANY_PARTS:
        return "max_partitions_per_insert_block" in error.message
    return error.code == _MEMORY_LIMIT and _of_query.search(error.message) is not None


def failing_view(error: errors.ServerException) -> str:
    """Return the materialized view that raised the error; empty where none did.

    The server writes the source table's part before it pushes the block to views, so the rows are stored.
    """
    found = _view.search(error.message)
    return found[1] if found else ""


def first_line(error: Exception) -> str:
    """Return an error's message without its stack trace and without the row values that the server quotes."""
    if not isinstance(error, errors.ServerException):
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    text = error.message.split("Stack trace")[0].splitlines()[0].strip()
    text = re.sub(r"'[^']*'", "'…'", text) if error.code in _DATA else text
    return f"code {error.code}: {text[:300]}"


def _name_too_long(error: errors.ServerException) -> bool:
    return "name too long" in error.message.lower()


def advice(error: Exception) -> str:
    """Return what to do; empty if only the server's log explains the error."""
    if isinstance(error, _OTHER_PROTOCOL):
        return "this is no native port of ClickHouse: HTTP's is 8123, the native one 9000, or 9440 with TLS"
    if not isinstance(error, errors.ServerException):
        return certificate_advice(error)
    if _name_too_long(error):
        return "name another --table, or one without {topic}"
    if error.code in (192, 193, 194, 516):
        return "check the user in --clickhouse-url and WORKER_CLICKHOUSE_PASSWORD or WORKER_CLICKHOUSE_PASSWORD_FILE"
    if error.code in REFUSED_SETTINGS:
        return "let the user change the settings that the worker sends: a profile without readonly and constraints"
    if error.code == 497:
        return "GRANT it, or create the table manually"
    return ""
