"""The fleet's events in a format of the schema registry. Invalid events stay as they are, without a frame."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import orjson

from worker.commands.produce.fleet import Fleet
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal
from worker.decoding.formats import KINDS, open_format
from worker.decoding.framing import frame
from worker.decoding.timestamps import to_millis
from worker.kafka.schema_registry import SchemaRegistry

_AVRO: dict[str, Any] = {
    "type": "record",
    "name": "DeviceEvent",
    "fields": [
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "device_ip", "type": "string"},
        {"name": "error_code", "type": "int"},
    ],
}
_JSON: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "DeviceEvent",
    "type": "object",
    "required": ["timestamp", "device_ip", "error_code"],
}


class FramedFleet:
    """Takes a fleet's events, and frames the valid ones with the id of a schema that it registers."""

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        """Raises Fatal or Retryable if the schema cannot be registered."""
        if settings.format == "protobuf":
            raise Fatal("--format protobuf: produce writes json, avro and json-schema", code=ExitCode.USAGE)
        registry = SchemaRegistry(settings)
        open_format(settings.format, registry.fetch)  # Fatal if a package is missing
        self._fleet = fleet
        self._is_avro = settings.format == "avro"
        schema = json.dumps(_AVRO if self._is_avro else _JSON)
        self._schema_id = registry.register(f"{settings.topic}-value", KINDS[settings.format], schema)

    @property
    def bad(self) -> int:
        return self._fleet.bad

    def take(self, count: int) -> list[bytes]:
        """Return the next `count` events."""
        return list(map(self._encode, self._fleet.take(count)))

    def _encode(self, payload: bytes) -> bytes:
        try:
            event = orjson.loads(payload)
            event["timestamp"] = to_millis(event["timestamp"])
            return frame(self._schema_id, _avro_body(event) if self._is_avro else payload)
        except (ValueError, TypeError, KeyError, AttributeError):
            return payload


def _avro_body(event: dict[str, Any]) -> bytes:
    import fastavro

    stream = BytesIO()
    fastavro.schemaless_writer(stream, _AVRO, event, strict=True)
    return stream.getvalue()
