"""Column types that an Avro schema knows and events in the form of JSON do not show. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from worker.core.schemas import RegisteredSchema
from worker.sinks.clickhouse.inference import DEPTH, KnownTypes, Path

_MOST_DIGITS = 76
_TYPES = {
    "date": "Date32",
    "uuid": "UUID",
    **{
        f"{local}timestamp-{unit}": f"DateTime64({precision}, 'UTC')"
        for local in ("", "local-")
        for unit, precision in (("millis", 3), ("micros", 6), ("nanos", 9))
    },
}


def avro_types(schema: RegisteredSchema) -> KnownTypes:
    """Return the types of fields with a logical type, and which fields may be null. References are not followed."""
    named: dict[str, Any] = {}
    types: dict[Path, str] = {}
    nullable: set[Path] = set()

    def visit(part: Any, path: Path) -> None:
        if isinstance(part, list):
            branches = [branch for branch in part if branch != "null"]
            nullable.update({path} if len(branches) < len(part) else ())
            part = branches[0] if len(branches) == 1 else None
        while isinstance(part, dict) and isinstance(part.get("type"), dict):
            part = part["type"]
        if isinstance(part, str):
            part = named.get(part.rpartition(".")[2])
        if not isinstance(part, dict):
            return
        named[part.get("name", "")] = part
        logical = part.get("logicalType")
        if part["type"] == "record" and len(path) < DEPTH:
            for field in part["fields"]:
                visit(field["type"], (*path, field["name"]))
        elif logical == "decimal" and part["precision"] <= _MOST_DIGITS:
            types[path] = f"Decimal({part['precision']}, {part.get('scale', 0)})"
        elif logical in _TYPES:
            types[path] = _TYPES[logical]

    visit(orjson.loads(schema.text), ())
    return KnownTypes(types, nullable)
