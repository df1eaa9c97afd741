"""The arguments that every contender of this directory takes."""

from __future__ import annotations

import argparse


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
