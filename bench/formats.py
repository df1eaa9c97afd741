"""Steps for `bench.stages`: payloads of each format → a column, beside the format's library by hand.

Each payload has one field of one type, so the figures are per field; `event` has the three fields of a device event.
By hand means one call of the library for each payload and a list of its values: no check, no column of the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from io import BytesIO
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
import orjson
from google.protobuf.message_factory import GetMessageClass

from worker.core.records import Decode, Field
from worker.core.schemas import RegisteredSchema
from worker.decoding import protobuf
from worker.decoding.formats import open_format, with_schemas
from worker.decoding.framing import HEAD_BYTES, frame
from worker.sinks.clickhouse import types

_START = datetime(2026, 11, 25, tzinfo=UTC)


class _Kind(NamedTuple):
    """A type of a field: in ClickHouse, in Avro and in Protobuf (empty: it has no such type), and a random value."""

    name: str
    column: str
    avro: Any
    protobuf: str
    value: Callable[[Random], Any]


def _logical(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": name, **more}


def _moment(random: Random) -> datetime:
    return _START + timedelta(milliseconds=random.randrange(60_000))


def _word(random: Random) -> str:
    return f"word-{random.randrange(1000)}"


_KINDS = (
    _Kind("text", "String", "string", "string", _word),
    _Kind("integer", "Int32", "int", "int32", lambda random: random.randrange(1000)),
    _Kind("double", "Float64", "double", "double", Random.random),
    _Kind("nullable text", "Nullable(String)", ["null", "string"], "optional string", _word),
    _Kind(
        "timestamp in ms", "DateTime64(3)", _logical("long", "timestamp-millis"), "google.protobuf.Timestamp", _moment
    ),
    _Kind(
        "timestamp in us", "DateTime64(6)", _logical("long", "timestamp-micros"), "google.protobuf.Timestamp", _moment
    ),
    _Kind("date", "Date32", _logical("int", "date"), "", lambda random: _moment(random).date()),
    _Kind(
        "decimal",
        "Decimal(18, 4)",
        _logical("bytes", "decimal", precision=18, scale=4),
        "",
        lambda random: Decimal(random.randrange(10**9)).scaleb(-4),
    ),
    _Kind("uuid", "UUID", _logical("string", "uuid"), "", lambda random: UUID(int=random.getrandbits(128))),
    _Kind(
        "array of text",
        "Array(String)",
        {"type": "array", "items": "string"},
        "repeated string",
        lambda random: [_word(random) for _ in range(3)],
    ),
    _Kind(
        "map",
        "Map(String, Int32)",
        {"type": "map", "values": "int"},
        "map<string, int32>",
        lambda random: {"a": random.randrange(100), "b": 2},
    ),
)


def steps(records: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Yield (name, call, payloads that one call handles)."""
    event = [_KINDS[4]._replace(name="timestamp"), _KINDS[0]._replace(name="device_ip")]
    event.append(_KINDS[1]._replace(name="error_code", column="Int8", value=lambda random: random.randrange(11)))
    for name, kinds in (("event", event), *((kind.name, [kind._replace(name="value")]) for kind in _KINDS)):
        values = [{kind.name: kind.value(random) for kind in kinds} for random in map(Random, range(records))]
        fields = [Field(kind.name, (kind.name,), types.codec(kind.column).convert) for kind in kinds]
        yield from _pair(f"json: {name}", _json(values), _with_fields(open_format("json", _no_schema).decode, fields))
        yield from _pair(f"avro: {name}", *_avro(kinds, values, fields))
        if all(kind.protobuf for kind in kinds):
            yield from _pair(f"protobuf: {name}", *_protobuf(kinds, values, fields))


def _pair(
    name: str, by_hand: tuple[list[bytes], Callable[[list[bytes]], Any]], ours: Callable[..., Any]
) -> Iterator[tuple[str, Callable[[], Any], int]]:
    payloads, read = by_hand
    assert ours(payloads).rows == len(payloads), name
    yield name, partial(ours, payloads), len(payloads)
    yield f"{name}, by hand", partial(read, payloads), len(payloads)


def _no_schema(_: int) -> RegisteredSchema | None:
    return None


def _decode(name: str, schema: RegisteredSchema, fields: Sequence[Field]) -> Callable[..., Any]:
    """Return the decoder with its schema in memory."""
    decode: Decode = open_format(name, lambda _: schema).decode
    loaded = with_schemas(decode)
    loaded([frame(1, b"")], fields)
    return _with_fields(decode, fields)


def _with_fields(decode: Decode, fields: Sequence[Field]) -> Callable[[list[bytes]], Any]:
    return lambda payloads: decode(payloads, fields)


def _json(values: list[dict[str, Any]]) -> tuple[list[bytes], Callable[[list[bytes]], Any]]:
    (names,) = {tuple(value) for value in values}

    def read(payloads: list[bytes]) -> Any:
        events = [orjson.loads(payload) for payload in payloads]
        return [[event[name] for event in events] for name in names]

    return [orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z) for value in values], read


def _avro(kinds: Sequence[_Kind], values: list[dict[str, Any]], fields: Sequence[Field]) -> Any:
    schema = {"type": "record", "name": "E", "fields": [{"name": kind.name, "type": kind.avro} for kind in kinds]}
    parsed = fastavro.parse_schema(schema)
    names = [kind.name for kind in kinds]

    def encode(value: dict[str, Any]) -> bytes:
        stream = BytesIO()
        fastavro.schemaless_writer(stream, parsed, value)
        return frame(1, stream.getvalue())

    def read(payloads: list[bytes]) -> Any:
        events: list[Any] = []
        for payload in payloads:
            stream = BytesIO(payload)
            stream.seek(HEAD_BYTES)
            events.append(fastavro.schemaless_reader(stream, parsed, None))
        return [[event[name] for event in events] for name in names]

    ours = _decode("avro", RegisteredSchema("AVRO", json.dumps(schema)), fields)
    return (list(map(encode, values)), read), ours


def _protobuf(kinds: Sequence[_Kind], values: list[dict[str, Any]], fields: Sequence[Field]) -> Any:
    members = "".join(f"{kind.protobuf} {kind.name} = {number};" for number, kind in enumerate(kinds, 1))
    text = f'syntax = "proto3"; import "google/protobuf/timestamp.proto"; message E {{ {members} }}'
    schema = RegisteredSchema("PROTOBUF", text)
    reader = protobuf.compile_schema(schema)
    assert isinstance(reader, protobuf._Reader)
    message: Any = GetMessageClass(reader._types[0])
    moments = {kind.name for kind in kinds if "Timestamp" in kind.protobuf}

    def read(payloads: list[bytes]) -> Any:
        events = [message.FromString(payload[HEAD_BYTES + 1 :]) for payload in payloads]
        return [
            [getattr(event, name).ToDatetime() if name in moments else getattr(event, name) for event in events]
            for name in (kind.name for kind in kinds)
        ]

    payloads = [frame(1, b"\0" + message(**value).SerializeToString()) for value in values]
    return (payloads, read), _decode("protobuf", schema, fields)
