"""Log lines on stderr: one event per line, text or JSON, times in UTC."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LIBRDKAFKA = "worker.librdkafka"  # the logger that Kafka's clients write to
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


def _values(record: logging.LogRecord) -> dict[str, Any]:
    values = dict(getattr(record, "fields", {}))
    if hasattr(record, "repeats"):
        values["repeats"] = record.repeats
    return values


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
        parts = [stamp, f"{record.levelname:7}", f"{self._process:12}", _line(record)]
        parts += [f"{key}={value}" for key, value in _values(record).items()]
        return " ".join(parts)


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "event": _line(record),
            **_values(record),
        }
        return json.dumps(line, default=str)


def _line(record: logging.LogRecord) -> str:
    """Return the message with its traceback in one line."""
    text = record.getMessage()
    if record.exc_info:
        text += " | " + logging.Formatter().formatException(record.exc_info)
    return text.replace("\n", " | ")
