"""A finding of `check`: one line of its output."""

from __future__ import annotations

from typing import NamedTuple

from worker.commands.terminal import printable
from worker.core.errors import WorkerError
from worker.core.records import Field


class Finding(NamedTuple):
    """What was checked, the result, and the option or command that fixes it."""

    level: str  # OK, WARN or FAIL
    subject: str
    result: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.level:4}  {self.subject}: {self.result}" + (f"; fix: {self.fix}" if self.fix else "")
        return printable(text)  # it may have texts of servers, and field names of events


class Stored(NamedTuple):
    """A field of an event that the store keeps, with its column. Redis has no columns: both texts are empty."""

    field: Field
    column: str = ""
    type: str = ""
    exists: bool = True  # False: the worker will create the table
    is_key: bool = False  # part of the sorting or partition key, so ALTER cannot change its type

    def __str__(self) -> str:
        if not self.column:
            return self.field.name
        if self.field.of_message:
            return f"{self.column} {self.type} from the message"
        source = "" if self.column == self.field.name else f" from {self.field.name}"
        return f"{self.column} {self.type}{source}"


def ok(subject: str, result: str) -> Finding:
    return Finding("OK", subject, result)


def warn(subject: str, result: str, fix: str) -> Finding:
    return Finding("WARN", subject, result, fix)


def fail(subject: str, result: str, fix: str) -> Finding:
    return Finding("FAIL", subject, result, fix)


def fail_with(subject: str, error: WorkerError, fix: str = "") -> Finding:
    """Return the finding for the worker's own error. Without a `fix` it takes the advice at the end of the error."""
    text, _, advice = str(error).partition("; ")
    return fail(subject, str(error) if fix else text, fix or advice or "see the server's log")
