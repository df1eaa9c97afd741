"""Peers from PyPI, each in a virtual environment of its own under bench/.cache: their dependencies exclude ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.contenders import CACHE, Contender, peer

_PEERS = {
    "quix-streams": ("quix", 5.0, ("quixstreams==3.28.1", "clickhouse-driver==0.2.11")),
    "faststream": ("faststream_app", 5.0, ("faststream[confluent]==0.7.8", "clickhouse-driver==0.2.11")),
    "bytewax": ("bytewax_flow", 0.0, ("bytewax[kafka]==0.21.1", "clickhouse-driver==0.2.11")),
}


def peers() -> list[Contender]:
    """Return those that install."""
    found = []
    for name, (script, waits, packages) in _PEERS.items():
        python = _python(name, packages)
        if python:
            found.append(peer(name, "clickhouse", script, str(python), short=True, waits=waits))
    return found


def _python(name: str, packages: tuple[str, ...]) -> Path | None:
    home = CACHE / "venvs" / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *packages]
        if subprocess.run(install, check=False).returncode:
            print(f"{name} does not install here: left out", file=sys.stderr)
            return None
        (home / "complete").touch()
    return python
