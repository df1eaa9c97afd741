"""Avro: framed payloads → events in the form of JSON, by fastavro's compiled reader.

Logical types become forms that the converters accept exactly; docs/formats.md has the table. An unknown or invalid
logical type is read as its underlying type, as the specification says. Reader schemas and their defaults play no role:
a field that a writer's schema lacks is missing in the event.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from io import BytesIO
from typing import Any
from uuid import UUID

import fastavro
import orjson
from fastavro import _read_py
from fastavro.read import LOGICAL_READERS
from fastavro.schema import SchemaParseException, UnknownType

from worker.core.schemas import RegisteredSchema
from worker.decoding import instants
from worker.decoding.framing import HEAD_BYTES
from worker.decoding.json import Unreadable
from worker.decoding.schema_cache import InvalidSchema, ReadEvents

_PRIMITIVES = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_NAMED = {"record", "error", "enum", "fixed"}


def compile_schema(schema: RegisteredSchema) -> ReadEvents:
    """Return the reader of a schema's payloads. Raises InvalidSchema."""
    named: dict[str, Any] = {}
    try:
        for _, text in schema.references:
            fastavro.parse_schema(_annotated(orjson.loads(text)), named)
        parsed: Any = fastavro.parse_schema(_annotated(orjson.loads(schema.text)), named)
        # The compiled reader recurses on the C stack: a nested event could end the process. Python's raises an error.
        read_one = _read_py.schemaless_reader if _is_recursive(parsed, named) else fastavro.schemaless_reader
    except _SCHEMA_ERRORS as error:
        raise InvalidSchema(f"it is no Avro schema: {error!r}") from None

    def read(payloads: Sequence[bytes], _keys: Collection[str] | None) -> list[Any]:
        events: list[Any] = []
        for payload in payloads:
            stream = BytesIO(payload)
            stream.seek(HEAD_BYTES)
            event: Any
            try:
                event = read_one(stream, parsed, None)
            except _READ_ERRORS:
                event = _UNDECODABLE
            events.append(_UNDECODABLE if stream.read(1) else event)
        return events

    return read


_UNDECODABLE = Unreadable("undecodable")
_SCHEMA_ERRORS = (SchemaParseException, UnknownType, ValueError, TypeError, KeyError, AttributeError, RecursionError)
# What the reader raises for bytes that do not fit the schema. It raises no common class.
_READ_ERRORS = (EOFError, ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, RecursionError)


def _annotated(schema: Any) -> Any:
    """Return a schema in which each type without a form in JSON has a logical type of the worker's own: see _READERS.

    Raises ValueError, TypeError or KeyError if it is no schema.
    """
    if isinstance(schema, list):
        return [_annotated(branch) for branch in schema]
    if isinstance(schema, str):
        return {"type": schema, "logicalType": "worker-base64"} if schema == "bytes" else schema
    if not isinstance(schema, dict):
        raise ValueError("a type is neither a name, nor a list, nor an object")
    kind = schema.get("type")
    if isinstance(kind, (dict, list)):  # {"type": {"type": …}}
        return _annotated(kind)
    copy = {key: value for key, value in schema.items() if key not in ("logicalType", "default", "doc", "aliases")}
    if kind in ("record", "error"):
        copy["type"] = "record"
        copy["fields"] = [{"name": field["name"], "type": _annotated(field["type"])} for field in schema["fields"]]
    elif kind in ("array", "map"):
        member = "items" if kind == "array" else "values"
        copy[member] = _annotated(schema[member])
        if kind == "array" and _takes_no_bytes(schema[member]):  # a count of 2^60 would fill the memory
            raise ValueError("an array's items take no bytes")
    elif isinstance(kind, str) and kind not in _PRIMITIVES | _NAMED:  # the name of a type
        return kind
    elif isinstance(kind, str) and (name := _logical(kind, schema)):
        copy["logicalType"] = name
    return copy


def _takes_no_bytes(schema: Any) -> bool:
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind in ("record", "error"):
            return all(_takes_no_bytes(field["type"]) for field in schema["fields"])
        return _takes_no_bytes(kind) if kind != "fixed" else not schema.get("size")
    return bool(schema == "null")


def _logical(kind: str, schema: dict[str, Any]) -> str:
    """Return the worker's logical type for a primitive or fixed type; empty if its values have a form in JSON."""
    logical = schema.get("logicalType")
    if logical == "decimal" and kind in ("bytes", "fixed"):
        scale, precision = schema.get("scale", 0), schema.get("precision")
        if type(scale) is int and type(precision) is int and 0 <= scale <= precision:
            LOGICAL_READERS[f"{kind}-worker-decimal-{scale}"] = _decimal(scale)
            return f"worker-decimal-{scale}"
    if logical == "uuid" and kind == "fixed" and schema.get("size") == 16:
        return "worker-uuid"
    if kind in ("bytes", "fixed"):
        return "worker-base64"
    return f"worker-{logical}" if isinstance(logical, str) and f"{kind}-worker-{logical}" in _READERS else ""


def _is_recursive(schema: Any, named: dict[str, Any]) -> bool:
    """Whether a type contains itself."""
    visited: set[str] = set()

    def visit(part: Any, above: frozenset[str]) -> bool:
        if isinstance(part, list):
            return any(visit(branch, above) for branch in part)
        if isinstance(part, str):
            return part in above or (part in named and part not in visited and visit(named[part], above))
        if name := part.get("name"):
            visited.add(name)
            above |= {name}
        members = [field["type"] for field in part.get("fields", ())]
        members += [part[member] for member in ("items", "values") if member in part]
        return any(visit(member, above) for member in members)

    return visit(schema, frozenset())


def _decimal(scale: int) -> Callable[..., str]:
    def read(value: bytes, *_: Any) -> str:
        number = int.from_bytes(value, signed=True)
        if not scale:
            return str(number)
        digits = str(abs(number)).rjust(scale + 1, "0")
        return f"{'-' if number < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"

    return read


_READERS: dict[str, Callable[..., Any]] = {
    "bytes-worker-base64": lambda value, *_: b64encode(value).decode(),
    "fixed-worker-base64": lambda value, *_: b64encode(value).decode(),
    "fixed-worker-uuid": lambda value, *_: str(UUID(bytes=value)),
    "int-worker-date": instants.date,
    "int-worker-time-millis": instants.time_of_day(3),
    "long-worker-time-micros": instants.time_of_day(6),
    **{
        f"long-worker-{local}timestamp-{unit}": instants.timestamp(digits, "" if local else "Z")
        for local in ("", "local-")
        for unit, digits in (("millis", 3), ("micros", 6), ("nanos", 9))
    },
}
LOGICAL_READERS.update(_READERS)  # fastavro's only registry; no schema but an annotated one names these
