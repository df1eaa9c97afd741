"""The worker's own version."""

from __future__ import annotations


def version_text() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kafka-ingest-worker")
    except PackageNotFoundError:
        return "0 (not installed)"
