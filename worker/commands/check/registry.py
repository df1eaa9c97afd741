"""The checks of a format with a schema registry: its packages, the registry, the topic's newest schema, a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import orjson

from worker.commands.check.finding import Finding, fail, fail_with, ok, warn
from worker.config.redaction import redact_url
from worker.config.settings import Settings
from worker.core.errors import WorkerError
from worker.decoding.formats import KINDS, open_format, with_schemas
from worker.decoding.json import Unreadable
from worker.kafka.schemas import schema_source

if TYPE_CHECKING:
    from worker.kafka.schema_registry import LatestSchema


def check_registry(settings: Settings, topics: Iterable[str]) -> Iterator[Finding]:
    """Yield the findings; none for JSON without a registry."""
    if settings.format == "json":
        return
    from worker.kafka.schema_registry import SchemaRegistry

    try:
        registry = SchemaRegistry(settings)
        open_format(settings.format, registry.fetch)
        for topic in topics:
            yield _check_subject(settings, registry.latest(f"{topic}-value"), f"{topic}-value")
    except WorkerError as error:
        yield fail_with(
            "schema registry", error, "" if "; " in str(error) else "--schema-registry-url (is it running?)"
        )


def _check_subject(settings: Settings, latest: LatestSchema | None, subject: str) -> Finding:
    expected = KINDS[settings.format]
    where = redact_url(settings.schema_registry_url)
    if latest is None:
        result = f"{where} answers, and has no subject {subject}: producers may name theirs otherwise"
        return ok("schema registry", result)
    newest = f"{where} answers; the newest schema of {subject} is version {latest.version}, id {latest.id}"
    if latest.schema.kind != expected:
        fix = next((f"--format {name}" for name, kind in KINDS.items() if kind == latest.schema.kind), "the producer")
        return warn("schema registry", f"{newest}, of the kind {latest.schema.kind}", fix)
    return ok("schema registry", newest)


def sample_as_json(settings: Settings, payloads: Sequence[bytes]) -> tuple[list[bytes], list[Finding]]:
    """Return a sample's events as JSON, and a finding if there are payloads that are no events.

    Raises Retryable or Fatal if a schema cannot be fetched.
    """
    if settings.format == "json":
        return list(payloads), []
    read = with_schemas(open_format(settings.format, schema_source(settings)).read_events)
    events = read(payloads)
    unreadable = Counter((event.reason, event.detail) for event in events if isinstance(event, Unreadable))
    findings = []
    for (reason, detail), count in unreadable.most_common():
        result = f"{count} {reason} of the {len(payloads)} sampled events{': ' if detail else ''}{detail}"
        findings.append(warn("sample", result, _FIXES.get(reason, _FIX)))
    readable = [orjson.dumps(event) for event in events if not isinstance(event, Unreadable)]
    if findings and not readable:
        findings.append(fail("sample", f"none of the {len(payloads)} sampled events would be stored", "see above"))
    return readable, findings


_FIX = "the producer, or accept them as dead letters"
_FIXES = {
    "not_framed": "--format json if the topic has JSON without schema ids, or fix the producer",
    "unknown_schema": "another --schema-registry-url or --format, or accept them as dead letters",
}
