"""Log lines on stderr: one event per line, text or JSON, times in UTC."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from worker.core.output import Output
from worker.core.repeats import Repeats

LIBRDKAFKA = "worker.librdkafka"  # the logger that Kafka's clients write to
_STDERR = 2
_ECS_VERSION = "8.17.0"
_PRIORITIES = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call with the event's fields: topic, partition, offset, rows …"""
    return {"fields": values}


def each_time(**values: Any) -> dict[str, Any]:
    """Like `fields`, for a warning or error that is not suppressed when it is repeated within a minute."""
    return {"fields": values, "each_time": True}


def configure(log_format: str, level: str, process: str, on_drop: Callable[[], None] = lambda: None) -> None:
    """Send all log lines of this process to stderr. `process` names it: supervisor, consumer-0, monitor.

    `on_drop` is called for each line that could not be written.
    """
    handler = _Stderr(on_drop)
    handler.setFormatter(_Json(process) if log_format == "json" else _Text(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It logs a traceback at each failed connect; the worker logs one line.
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)


def finish() -> None:
    """Write how many lines were suppressed or dropped, before the process ends."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr):
            handler.finish()


def fileno() -> int:
    """Return the descriptor of the log; writing to it does not block, where the system can do that."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Stderr)]
    return handlers[0].output.fileno() if handlers else _STDERR


class _Stderr(logging.Handler):
    """Writes lines to stderr, and drops them while nobody reads: a log must not stop the process."""

    def __init__(self, on_drop: Callable[[], None]) -> None:
        super().__init__()
        self.output = Output(sys.stderr.fileno())
        self._repeats = Repeats(LIBRDKAFKA)
        self._on_drop = on_drop
        self._dropped = 0  # since the last line that was written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            record.getMessage()
        except (TypeError, ValueError, KeyError):  # a defect of the caller must not stop it
            record.msg, record.args = f"{record.msg} (with wrong arguments)", ()
        is_allowed = self._repeats.allow(record)  # first: it counts what was suppressed before this record
        for ended in self._repeats.ended():
            self._write(ended)
        if is_allowed:
            self._write(record)

    def finish(self) -> None:
        """Write the counts that a later line would have had."""
        self.acquire()
        try:
            for ended in self._repeats.ended(all_causes=True):
                self._write(ended)
            self._report_dropped()
        finally:
            self.release()

    def _write(self, record: logging.LogRecord) -> None:
        if not (self._report_dropped() and self._try(record)):
            self._dropped += 1
            self._on_drop()

    def _report_dropped(self) -> bool:
        """Return whether no dropped lines are left to report."""
        if self._dropped:
            text = "%d log lines were dropped because nobody read stderr"
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (self._dropped,), None)
            if not self._try(record):
                return False
            self._dropped = 0
        return True

    def _try(self, record: logging.LogRecord) -> bool:
        try:
            return self.output.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError:  # the reader has ended, or the disk is full
            return False


def priority(level: int) -> str:
    """Return the prefix of a line on stderr that gives journald its level (sd-daemon(3)); empty outside the journal."""
    stream = os.environ.get("JOURNAL_STREAM")  # device and inode of the journal's end: systemd.exec(5)
    if not stream:
        return ""
    stderr = os.fstat(2)
    return _PRIORITIES.get(level, "<6>") if stream == f"{stderr.st_dev}:{stderr.st_ino}" else ""


def _values(record: logging.LogRecord) -> dict[str, Any]:
    values = dict(getattr(record, "fields", {}))
    if repeats := getattr(record, "repeats", 0):
        values["repeats"] = repeats
    return values


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        parts = [_timestamp(record), f"{record.levelname:7}", f"{self._process:12}", text.replace("\n", " | ")]
        parts += [f"{key}={value}" for key, value in _values(record).items()]
        return priority(record.levelno) + " ".join(parts)


class _Json(_Formatter):
    """Elastic Common Schema. The worker's own fields are under `worker`, the name that ECS leaves to applications."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "@timestamp": _timestamp(record),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "ecs.version": _ECS_VERSION,
            "log.logger": record.name,
            "service.name": "worker",
            "process.name": self._process,
            "process.pid": record.process,
            **self._error(record),
        }
        if values := _values(record):
            line["worker"] = values
        return priority(record.levelno) + json.dumps(line, default=str)

    def _error(self, record: logging.LogRecord) -> dict[str, str]:
        if not record.exc_info or (error := record.exc_info[1]) is None:
            return {}
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        stack_trace = self.formatException(record.exc_info)
        return {"error.type": name, "error.message": str(error), "error.stack_trace": stack_trace}
