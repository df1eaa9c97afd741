"""Exit codes, and the four kinds of trouble that the worker tells apart."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, the same for the supervisor and its children (numbers of sysexits(3))."""

    OK = 0
    FAILED = 1
    USAGE = 2
    HALT = 70  # EX_SOFTWARE: a child's word to the supervisor that a restart would not help; the user sees FAILED
    CONFIG = 78  # EX_CONFIG: configuration or rights


class WorkerError(Exception):
    """Base of the worker's own errors; the text says what happened, where, and what to do."""


class Retryable(WorkerError):
    """The server's trouble: the same write, again, until it answers.

    ``reason`` is a short word from a bounded set, fit for a metric label. ``of_store`` is False where it is Kafka's.
    """

    def __init__(self, message: str, *, reason: str, of_store: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.of_store = of_store


class Fatal(WorkerError):
    """Nothing a retry can mend: wrong configuration, missing rights, or data that is gone."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(message)
        self.code = code


class RowsRefused(WorkerError):
    """The store refuses rows of this block for their own content; smaller blocks find which."""


class SchemaChanged(WorkerError):
    """The store's columns are no longer those that a batch was formed for: form it again."""
