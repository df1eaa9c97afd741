"""The fleet's events in a format of the schema registry. Invalid events stay as they are, without a frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import orjson

from worker.commands.produce.fleet import Fleet
from worker.config.settings import Settings
from worker.core.schemas import RegisteredSchema
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
_PROTOBUF = """syntax = "proto3";
import "google/protobuf/timestamp.proto";
message DeviceEvent {
  google.protobuf.Timestamp timestamp = 1;
  string device_ip = 2;
  int32 error_code = 3;
}
"""


class FramedFleet:
    """Takes a fleet's events, and frames the valid ones with the id of a schema that it registers."""

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        """Raises Fatal or Retryable if the schema cannot be registered."""
        registry = SchemaRegistry(settings)
        open_format(settings.format, registry.fetch)  # Fatal if a package is missing
        self._fleet = fleet
        schema, self._body = _FORMATS[settings.format]()
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
            return frame(self._schema_id, self._body(event, payload))
        except (ValueError, TypeError, KeyError, AttributeError):
            return payload


_Body = Callable[[dict[str, Any], bytes], bytes]  # an event and its JSON → what follows the frame's head


def _avro() -> tuple[str, _Body]:
    import fastavro

    def body(event: dict[str, Any], _: bytes) -> bytes:
        stream = BytesIO()
        fastavro.schemaless_writer(stream, _AVRO, event, strict=True)
        return stream.getvalue()

    return json.dumps(_AVRO), body


def _protobuf() -> tuple[str, _Body]:
    from worker.decoding.protobuf import compile_schema

    device_event = compile_schema(RegisteredSchema("PROTOBUF", _PROTOBUF)).message_class((0,))

    def body(event: dict[str, Any], _: bytes) -> bytes:
        seconds, millis = divmod(event["timestamp"], 1000)
        time = {"seconds": seconds, "nanos": millis * 10**6}
        message = device_event(timestamp=time, device_ip=event["device_ip"], error_code=event["error_code"])
        return b"\0" + bytes(message.SerializeToString())  # 0: the first message type of the schema

    return _PROTOBUF, body


_FORMATS: dict[str, Callable[[], tuple[str, _Body]]] = {
    "avro": _avro,
    "protobuf": _protobuf,
    "json-schema": lambda: (json.dumps(_JSON), lambda _, payload: payload),
}
