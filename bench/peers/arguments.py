"""The arguments that every contender of this directory takes, and a consumer's properties for those that are tuned."""

from __future__ import annotations

import argparse
from typing import Any


def arguments() -> argparse.Namespace:
    """Return bootstrap, topic, group, partitions, count (of events), store, url, http, target (table or key)."""
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "group", "store", "url", "http", "target"):
        parser.add_argument(f"--{name}", default="")
    for name in ("partitions", "count"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("kind", "program"):  # of by_hand.py, compiled.py
        parser.add_argument(f"--{name}", default="")
    return parser.parse_args()


def tuned(job: argparse.Namespace) -> dict[str, Any]:
    """Return the properties of a consumer with the worker's queue; the end of a partition is a message."""
    return {
        "bootstrap.servers": job.bootstrap,
        "group.id": job.group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 32_768,
        "fetch.queue.backoff.ms": 1,
        "fetch.min.bytes": 65_536,
        "fetch.wait.max.ms": 50,
    }
