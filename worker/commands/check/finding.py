"""What `check` says: one finding, one line."""

from __future__ import annotations

from typing import NamedTuple

from worker.core.errors import WorkerError
from worker.core.records import Field


class Finding(NamedTuple):
    """A thing that was looked at, what was found, and the option or command that mends it."""

    level: str  # OK, WARN or FAIL
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.what}: {self.found}" + (f"; fix: {self.fix}" if self.fix else "")


class Stored(NamedTuple):
    """A field of an event that the store keeps, with its column; both texts are empty where there are no columns."""

    field: Field
    column: str = ""
    type: str = ""

    def __str__(self) -> str:
        if not self.column:
            return self.field.name
        source = "" if self.column == self.field.name else f" from {self.field.name}"
        return f"{self.column} {self.type}{source}"


def ok(what: str, found: str) -> Finding:
    return Finding("OK", what, found)


def warn(what: str, found: str, fix: str) -> Finding:
    return Finding("WARN", what, found, fix)


def fail(what: str, found: str, fix: str) -> Finding:
    return Finding("FAIL", what, found, fix)


def fail_with(what: str, error: WorkerError, fix: str = "") -> Finding:
    """Return what the worker's own error means; without a fix of ours it is the advice that its text ends with."""
    text, _, advice = str(error).partition("; ")
    return fail(what, str(error) if fix else text, fix or advice or "see the server's log")
