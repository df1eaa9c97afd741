"""Where schemas come from. The client of the registry is imported only if the format needs it."""

from __future__ import annotations

from worker.config.settings import Settings
from worker.core.schemas import FetchSchema


def schema_source(settings: Settings) -> FetchSchema:
    """Return a function that fetches schemas from the registry of the settings. Raises UsageError or Fatal."""
    if settings.format == "json":
        return lambda _: None
    from worker.kafka.schema_registry import SchemaRegistry

    return SchemaRegistry(settings).fetch
