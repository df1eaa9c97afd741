"""Exit codes, and the kinds of error that the worker distinguishes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, the same for the supervisor and its children (numbers of sysexits(3))."""

    OK = 0
    FAILED = 1
    USAGE = 2
    HALT = 70  # EX_SOFTWARE: a child tells the supervisor that a restart would not help; the user sees FAILED
    CONFIG = 78  # EX_CONFIG: configuration or rights


class WorkerError(Exception):
    """Base of the worker's own errors; the text says what happened, where, and what to do."""


class Retryable(WorkerError):
    """A server's error: the same write is retried until it succeeds.

    `reason` is a short word from a bounded set, a metric's label. `backend` is the store whose error it is; for
    Kafka's errors it is empty.
    """

    def __init__(self, message: str, *, reason: str, backend: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.backend = backend


class Fatal(WorkerError):
    """An error that retrying cannot fix: wrong configuration, missing rights, or lost data."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(message)
        self.code = code


class RowsRefused(WorkerError):
    """The store refuses rows of this block for their own content. Bisection finds them."""


class BlockTooLarge(WorkerError):
    """The store refuses the block for its size or shape. It may be written in smaller ones."""


class SchemaChanged(WorkerError):
    """The store's columns are no longer those that the batch was formed for. The batch must be formed again."""
