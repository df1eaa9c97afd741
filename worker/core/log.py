"""Log lines on stderr: one event per line, text or JSON, times in UTC."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

LIBRDKAFKA = "worker.librdkafka"  # the logger that Kafka's clients write to
_ECS_VERSION = "8.17.0"
_PRIORITIES = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}
_REPEAT_S = 60.0
_REPEATS_KEPT = 256


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call with the event's fields: topic, partition, offset, rows …"""
    return {"fields": values}


def configure(log_format: str, level: str, process: str) -> None:
    """Send all log lines of this process to stderr. `process` names it: supervisor, consumer-0, monitor."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(process) if log_format == "json" else _Text(process))
    handler.addFilter(_once_a_minute())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It logs a traceback at each failed connect; the worker logs one line.
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)


def _once_a_minute() -> Any:
    """Return a filter that passes the same warning or error once a minute, with the number of suppressed repeats."""
    passed: dict[tuple[str, str], list[float]] = {}  # time of the last line that passed, repeats since

    def allowed(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        if record.name == LIBRDKAFKA:  # its lines have counts and times; their first word is the kind of error
            text = text.partition(" ")[0]
        key = (text, str(getattr(record, "fields", "")))
        last = passed.get(key)
        now = time.monotonic()
        if last is not None and now - last[0] < _REPEAT_S:
            last[1] += 1
            return False
        if last is not None and last[1]:
            record.repeats = int(last[1])
        if len(passed) >= _REPEATS_KEPT:
            passed.clear()
        passed[key] = [now, 0]
        return True

    return allowed


def priority(level: int) -> str:
    """Return the prefix of a line on stderr that gives journald its level (sd-daemon(3)); empty outside the journal."""
    stream = os.environ.get("JOURNAL_STREAM")  # device and inode of the journal's end: systemd.exec(5)
    if not stream:
        return ""
    stderr = os.fstat(2)
    return _PRIORITIES.get(level, "<6>") if stream == f"{stderr.st_dev}:{stderr.st_ino}" else ""


def _values(record: logging.LogRecord) -> dict[str, Any]:
    values = dict(getattr(record, "fields", {}))
    if hasattr(record, "repeats"):
        values["repeats"] = record.repeats
    return values


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        parts = [_timestamp(record), f"{record.levelname:7}", f"{self._process:12}", text.replace("\n", " | ")]
        parts += [f"{key}={value}" for key, value in _values(record).items()]
        return priority(record.levelno) + " ".join(parts)


class _Json(logging.Formatter):
    """Elastic Common Schema. The worker's own fields are under `worker`, the name that ECS leaves to applications."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

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
