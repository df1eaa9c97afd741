"""Compiled peers whose program the user provides: `--peer-binary vector=/usr/bin/vector`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from bench.contenders import Contender, Job, peer

KNOWN = {"clickhouse_sinker": ("clickhouse",), "redpanda-connect": ("redis", "clickhouse"), "vector": ("clickhouse",)}
"""The stores that each can write to. All of them store the timestamp as text, which costs them less."""


def peers(text: str) -> list[Contender]:
    """Return the contenders of `NAME=PATH`, one for each store that the program can write to."""
    name, _, path = text.partition("=")
    if name not in KNOWN or not Path(path).is_file():
        raise SystemExit(f"--peer-binary {text}: write NAME=PATH, NAME one of {', '.join(KNOWN)}, PATH a program")
    return [_contender(name, str(Path(path).resolve()), store) for store in KNOWN[name]]


def _contender(name: str, program: str, store: str) -> Contender:
    wrapped = peer(name, store, "compiled")

    def command(job: Job) -> list[str]:
        words = wrapped.command(job)
        head = [sys.executable, "-m", "bench.peers.compiled"]
        return [*head, "--kind", name, "--program", program, *words[len(head) :]]

    return replace(wrapped, command=command, as_text=True)
