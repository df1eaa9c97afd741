"""The standard streams of a command: closed ones, full devices, and pipes whose reader has ended."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

_STDOUT, _STDERR = 1, 2


class _Output(FileIO):
    """Standard output that keeps its first error, whoever handles it: argparse ignores it, for example."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def prepare(*, discard_output: bool) -> None:
    """Open descriptors 0, 1 and 2 if the caller closed them (`>&-`), so that no socket or file gets these numbers.

    They are opened on /dev/null. With `discard_output` a closed stdout accepts all output; else writing to it fails,
    so that a command does not lose its results silently.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            can_write = discard_output or number != _STDOUT
            os.open(os.devnull, os.O_RDWR if can_write else os.O_RDONLY)  # takes the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        by_line = sys.stdout is not None and (sys.stdout.line_buffering or sys.stdout.write_through)
        encoding, errors = (sys.stdout.encoding, sys.stdout.errors) if sys.stdout else (None, None)
        buffer = BufferedWriter(_Output(_STDOUT, "w", closefd=False))
        sys.stdout = TextIOWrapper(buffer, encoding, errors, line_buffering=by_line)


def flush() -> OSError | None:
    """Flush stdout and stderr; return the first error of stdout.

    Output that cannot be written is discarded, so that the interpreter does not fail on it when it exits.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "error", None)


def exit_code(error: OSError) -> int:
    """Return 141 if the reader of stdout has ended, as a shell reports SIGPIPE; else report the error and return 1."""
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    report(f"cannot write to stdout: {error.strerror}")
    return 1


def report(text: str, prefix: str = "") -> None:
    """Print a message of the command on stderr, if that can be written. `prefix` is the journal's level."""
    with suppress(OSError):
        print(f"{prefix}worker: {text}", file=sys.stderr, flush=True)
