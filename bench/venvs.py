"""Peers from PyPI, each in its own virtual environment under bench/.cache: their dependencies conflict with ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.contenders import CACHE, Contender, peer

_PEERS = {
    "quix-streams": ("quix", ("quixstreams==3.28.1", "clickhouse-driver==0.2.11")),
    "faststream": ("faststream_app", ("faststream[confluent]==0.7.8", "clickhouse-driver==0.2.11")),
    "bytewax": ("bytewax_flow", ("bytewax[kafka]==0.21.1", "clickhouse-driver==0.2.11")),
}


def peers() -> list[Contender]:
    """Return the peers that can be installed."""
    contenders = []
    for name, (script, packages) in _PEERS.items():
        python = _python(name, packages)
        if python:
            contenders.append(peer(name, "clickhouse", script, str(python), short=True))
    return contenders


def _python(name: str, packages: tuple[str, ...]) -> Path | None:
    directory = CACHE / "venvs" / name
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *packages]
        if subprocess.run(install, check=False).returncode:
            print(f"{name} cannot be installed here: left out", file=sys.stderr)
            return None
        (directory / "complete").touch()
    return python
