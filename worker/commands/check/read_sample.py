"""A sample of the topic as `check` tries it on the store: events as JSON, after the user's function."""

from __future__ import annotations

from worker.commands.check.finding import Finding
from worker.commands.check.registry import sample_as_json
from worker.commands.check.transform import check_transform
from worker.config.settings import Settings
from worker.decoding.transform import Transform
from worker.kafka.sample import read_sample


def sample_events(
    settings: Settings, size: int, transform: Transform | None, metadata: set[str] | None = None
) -> tuple[list[bytes], list[Finding]]:
    """Return the events of a sample as JSON, as `transform` returns them, and the findings; see `read_sample`."""
    payloads, findings = sample_as_json(settings, read_sample(settings, size, metadata))
    if not transform:
        return payloads, findings
    payloads, transformed = check_transform(transform.decode, payloads)
    return payloads, findings + transformed
