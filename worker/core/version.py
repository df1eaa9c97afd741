"""The worker's own version."""

from __future__ import annotations


def version_text() -> str:
    """Return the worker's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kafka-ingest-worker")
    except PackageNotFoundError:
        return "0 (not installed)"
