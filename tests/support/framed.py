"""The oracle's events in other formats: Avro of three schemas, JSON Schema; and a registry that has the schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import fastavro

from tests.support.oracle import BEGINNING_MS, device, event
from worker.config.settings import Settings
from worker.decoding.framing import frame
from worker.kafka.schema_registry import SchemaRegistry

_MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
_MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def _record(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Event", "fields": [{"name": name, "type": kind} for name, kind in fields]}


VERSIONS = (
    _record(("timestamp", _MILLIS), ("device_ip", "string"), ("error_code", "int")),
    _record(("note", ["null", "string"]), ("device_ip", "string"), ("timestamp", _MILLIS), ("error_code", "int")),
    _record(("error_code", ["null", "long"]), ("timestamp", _MICROS), ("device_ip", ["null", "string"])),
)
"""Three schemas of the same event: a field more, other types, another order."""


def registry_at(url: str) -> SchemaRegistry:
    return SchemaRegistry(Settings(format="avro", schema_registry_url=url))


def register(url: str, topic: str, versions: Sequence[Any] = VERSIONS) -> list[int]:
    """Register Avro schemas as versions of the topic's subject; return their ids."""
    return [registry_at(url).register(f"{topic}-value", "AVRO", json.dumps(version)) for version in versions]


def avro_event(i: int, schema_id: int, version: int) -> bytes:
    """Return event `i` of the oracle, by VERSIONS[version]."""
    factor = 1000 if version == 2 else 1
    value = {"timestamp": (BEGINNING_MS + i) * factor, "device_ip": device(i), "error_code": i % 11, "note": None}
    stream = BytesIO()
    schema = json.loads(json.dumps(VERSIONS[version]).replace("logicalType", "x"))
    fastavro.schemaless_writer(stream, _PARSED.setdefault(version, fastavro.parse_schema(schema)), value)
    return frame(schema_id, stream.getvalue())


_PARSED: dict[int, Any] = {}


def json_event(i: int, schema_id: int) -> bytes:
    return frame(schema_id, event(i))


GEO = 'syntax = "proto3"; package common; message Origin { string device_ip = 1; }'
EVENT = """
syntax = "proto3";
import "common/origin.proto";
import "google/protobuf/timestamp.proto";
message Unused { int32 x = 1; }
message Event {
  google.protobuf.Timestamp timestamp = 1;
  common.Origin origin = 2;
  sint32 error_code = 3;
}
"""


def register_protobuf(url: str, topic: str) -> int:
    """Register EVENT, which imports the schema of another subject; return its id."""
    registry = registry_at(url)
    registry.register(f"{topic}-origin", "PROTOBUF", GEO)
    reference = {"name": "common/origin.proto", "subject": f"{topic}-origin", "version": 1}
    answer = registry._request(
        f"/subjects/{topic}-value/versions", {"schemaType": "PROTOBUF", "schema": EVENT, "references": [reference]}
    )
    assert answer
    return int(answer["id"])


def protobuf_event(i: int, schema_id: int) -> bytes:
    """Return event `i` of the oracle, encoded by hand: each field is its tag, its size, its bytes."""

    def varint(number: int) -> bytes:
        return bytes((number,)) if number < 128 else bytes((number & 127 | 128,)) + varint(number >> 7)

    def sized(tag: int, data: bytes) -> bytes:
        return bytes((tag, len(data))) + data

    seconds, millis = divmod(BEGINNING_MS + i, 1000)
    timestamp = b"\x08" + varint(seconds) + (b"\x10" + varint(millis * 10**6) if millis else b"")
    body = sized(0x0A, timestamp) + sized(0x12, sized(0x0A, device(i).encode()))
    return frame(schema_id, b"\x02\x02" + body + b"\x18" + varint(i % 11 << 1))
