"""The schemas of a topic's events, compiled, by their ids in the registry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import inf
from typing import Any

from worker.core.schemas import FetchSchema, RegisteredSchema, SchemaNeeded
from worker.decoding.json import Unreadable

log = logging.getLogger(__name__)

ReadEvents = Callable[[Sequence[bytes], Collection[str] | None], list[Any]]
"""Framed payloads of one schema → an event each, or Unreadable. Only the top-level fields of the second argument must
be in the events; None stands for all."""

_MAX_SCHEMAS = 4096  # more than a record batch can name
_UNKNOWN_S = 30.0  # until the registry is asked again for an id that it did not have


class InvalidSchema(Exception):
    """A schema that the registry has, and events cannot be read with; the text says why."""


class SchemaCache:
    """Readers by schema id. `readers` and `load` may run in two threads."""

    def __init__(self, fetch: FetchSchema, kind: str, compile: Callable[[RegisteredSchema], ReadEvents]) -> None:
        """`kind` is that of the schemas; `compile` raises InvalidSchema."""
        self._fetch = fetch
        self._kind = kind
        self._compile = compile
        self._readers: dict[int, tuple[ReadEvents, float]] = {}  # with the time.monotonic() at which it is forgotten

    def readers(self, ids: Collection[int]) -> dict[int, ReadEvents]:
        """Return the reader of each schema; SchemaNeeded if one has to be fetched first."""
        now = time.monotonic()
        entries = {schema_id: self._readers.get(schema_id) for schema_id in ids}
        missing = [schema_id for schema_id, entry in entries.items() if entry is None or entry[1] < now]
        if missing:
            raise SchemaNeeded(partial(self._load, missing))
        return {schema_id: entry[0] for schema_id, entry in entries.items() if entry is not None}

    def _load(self, ids: Sequence[int]) -> None:
        for schema_id in ids:
            schema = self._fetch(schema_id)
            if len(self._readers) >= _MAX_SCHEMAS:
                self._readers.clear()
            self._readers[schema_id] = self._reader(schema_id, schema)

    def _reader(self, schema_id: int, schema: RegisteredSchema | None) -> tuple[ReadEvents, float]:
        try:
            if schema is None:
                raise InvalidSchema("the registry does not have it")
            if schema.kind != self._kind:
                raise InvalidSchema(f"it is of the kind {schema.kind}, and --format wants {self._kind}")
            return self._compile(schema), inf
        except InvalidSchema as error:
            log.warning("schema %d: %s; its events are dead letters (unknown_schema)", schema_id, error)
            return partial(_read_unknown, f"schema {schema_id}: {error}"), time.monotonic() + _UNKNOWN_S


def _read_unknown(error: str, payloads: Sequence[bytes], _keys: Collection[str] | None) -> list[Any]:
    return [Unreadable("unknown_schema", error)] * len(payloads)
