"""`python -m bench.mapping`: CPU time a message of docs/mapping.md's access log, beside scripts for that one shape.

Decoding and encoding only, no services. The contenders take turns, 1000 messages at a time; the median of the rounds
and its ratio to the faster script's are shown. `--check` fails when the worker needs more than 1.5 times as much.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from clickhouse_driver.bufferedwriter import CompressedBufferedWriter
from clickhouse_driver.columns.service import write_column
from clickhouse_driver.context import Context

from worker.events import decode
from worker.settings import load
from worker.sinks import columns
from worker.sinks.filling import Column, fill

GUIDE = Path(__file__).parents[1] / "docs/mapping.md"
MESSAGES = 1000
MOST = 1.5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mapping", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="[%(default)s]")
    parser.add_argument("--check", action="store_true", help=f"fail above {MOST} times the script's time")
    options = parser.parse_args(argv)
    payloads = _events()
    contenders: dict[str, Callable[[], Any]] = {
        "by hand, clickhouse-driver's columns": lambda: _with_driver(payloads),
        "by hand, this worker's columns": lambda: _with_codecs(payloads),
        "worker": _worker(payloads),
    }
    assert contenders["worker"]() == contenders["by hand, this worker's columns"]()
    times = {name: list[float]() for name in contenders}
    gc.collect()
    gc.disable()
    for _ in range(options.rounds):
        for name in random.sample(list(contenders), len(contenders)):
            began = time.process_time_ns()
            contenders[name]()
            times[name].append((time.process_time_ns() - began) / MESSAGES)
    base = median(times["by hand, this worker's columns"])
    for name, found in times.items():
        print(f"{name:38} {median(found):7.0f} ns of CPU a message, {median(found) / base:.2f}")
    return int(options.check and median(times["worker"]) > MOST * base)


def _table() -> list[Column]:
    """Return the guide's columns that an event fills."""
    text = re.search(r"CREATE TABLE access_log\n\(\n(.*?)\n\)", GUIDE.read_text(), re.DOTALL)
    assert text
    lines = [line.strip().rstrip(",").split(maxsplit=1) for line in text[1].splitlines()]
    return [Column(name, kind) for name, kind in lines if not name.startswith("_") and "DEFAULT" not in kind]


def _events() -> list[bytes]:
    """Return messages like the guide's."""
    chosen = random.Random(1)
    return [
        orjson.dumps(
            {
                "time_iso8601": f"2026-11-24T08:{n // 60 % 60:02}:{n % 60:02}+00:00",
                "remote_addr": f"10.{n % 7}.{chosen.randrange(256)}.{chosen.randrange(256)}",
                "status": chosen.choice([200, 200, 304, 404, 500]),
                "bytes": chosen.randrange(100_000),
                "request": {
                    "id": str(uuid.UUID(int=chosen.getrandbits(128))),
                    "method": chosen.choice(["GET", "POST"]),
                    "path": f"/item/{chosen.randrange(5000)}",
                    "secure": n % 5 > 0,
                    "headers": {"host": "example.org", "accept": "*/*"},
                },
                "upstream": {"addr": "10.0.0.9:8080", "time": chosen.randrange(1000) / 1000} if n % 4 else None,
                "user_agent": f"agent/{chosen.randrange(40)}" if n % 9 else None,
                "tags": ["edge", "cached"][: n % 3],
            }
        )
        for n in range(MESSAGES)
    ]


def _worker(payloads: Sequence[bytes]) -> Callable[[], list[bytes]]:
    found = re.search(r"\[map\]\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found
    pairs = [line.replace(" ", "").replace('"', "") for line in found[1].splitlines()]
    settings, _ = load({"map": pairs}, {})
    filled = fill(_table(), settings.map)
    fields = [one.field for one in filled]

    def call() -> list[bytes]:
        parts = decode(payloads, fields).columns
        return [one.codec.encode([part]) for one, part in zip(filled, parts, strict=True)]

    return call


def _columns(events: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each column, as a script for this shape would take them."""
    requests = [event["request"] for event in events]
    return {
        "time": [event["time_iso8601"] for event in events],
        "remote_addr": [event["remote_addr"] for event in events],
        "status": [event["status"] for event in events],
        "bytes": [event["bytes"] for event in events],
        "request_id": [request["id"] for request in requests],
        "method": [request["method"] for request in requests],
        "path": [request["path"] for request in requests],
        "secure": [request["secure"] for request in requests],
        "headers": [request["headers"] for request in requests],
        "upstream_time": [event["upstream"] and event["upstream"]["time"] for event in events],
        "user_agent": [event.get("user_agent") for event in events],
        "tags": [event["tags"] for event in events],
    }


def _with_codecs(payloads: Sequence[bytes]) -> list[bytes]:
    """The least there can be: no fence, no look at what is missing."""
    values = _columns(list(map(orjson.loads, payloads)))
    codecs = {column.name: columns.codec(column.type) for column in _TABLE}
    return [codec.encode([codec.convert(values[name])]) for name, codec in codecs.items()]


def _with_driver(payloads: Sequence[bytes]) -> bytes:
    """What a script with clickhouse-driver does: `client.execute("INSERT …", columns, columnar=True)`."""
    values = _columns(list(map(orjson.loads, payloads)))
    values["time"] = list(map(datetime.fromisoformat, values["time"]))
    context = Context()
    context.client_settings = {"strings_as_bytes": False, "strings_encoding": "utf-8", "use_numpy": False}
    out = BytesIO()
    writer = CompressedBufferedWriter(out, 1 << 20)
    for name, kind, *_ in _TABLE:
        write_column(context, name, kind, values[name], writer)
    writer.flush()
    return out.getvalue()


_TABLE = _table()

if __name__ == "__main__":
    sys.exit(main())
