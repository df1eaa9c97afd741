"""Schemas that events name by an id: what a registry returns, and the demand for one that is not known yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from worker.core.errors import WorkerError


class RegisteredSchema(NamedTuple):
    """A schema as a registry has it."""

    kind: str  # AVRO, PROTOBUF or JSON
    text: str
    references: tuple[tuple[str, str], ...] = ()  # (name, text); each comes after those that it refers to itself


FetchSchema = Callable[[int], RegisteredSchema | None]
"""A schema id → the schema; None if the registry does not have it. Blocks. Raises Retryable or Fatal."""


class SchemaNeeded(WorkerError):
    """Payloads cannot be decoded yet. `load` fetches what is missing; then they can, for as long as it is remembered.

    `load` blocks, and raises Retryable or Fatal. Call it in any thread, one at a time.
    """

    def __init__(self, load: Callable[[], None]) -> None:
        super().__init__("a schema has to be fetched first")
        self.load = load
