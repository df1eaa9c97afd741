"""The steps of the data path with their input: records of a seeded fleet, and values for each ClickHouse type."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from random import Random
from typing import Any

import hiredis
import orjson
from redis.connection import Connection

from bench import formats
from worker.commands.produce.fleet import Fleet
from worker.core.records import Field
from worker.decoding import json as reference
from worker.decoding.converters import texts
from worker.decoding.timestamps import column_to_millis
from worker.sinks.clickhouse import types

_CALL = tuple[str, Callable[[], Any], int]


def steps(devices: int, records: int, chunks_in_batch: int) -> Iterator[_CALL]:
    """Yield (name, call, messages that one call handles)."""
    fleet = Fleet(devices, seed=1)
    record_batches = [fleet.take(records) for _ in range(chunks_in_batch)]
    payloads = record_batches[-1]
    parsed = list(map(orjson.loads, payloads))
    stamps = [event["timestamp"] for event in parsed]
    batch = chunks_in_batch * records

    yield "parse: fenced", partial(_fenced, payloads), records
    yield "parse: one by one", lambda: list(map(orjson.loads, payloads)), records
    yield "parse: joined without a fence (unsafe)", lambda: orjson.loads(b"[" + b",".join(payloads) + b"]"), records
    yield "field → column", lambda: [event["device_ip"] for event in parsed], records
    nested = [{"a": {"b": event}} for event in parsed]
    for required in (True, False):
        field = Field("a.b.device_ip", ("a", "b", "device_ip"), texts, required)
        name = f"field of three keys → column{'' if required else ', may be missing'}"
        yield name, partial(reference.field_values, nested, field), records
    yield "timestamps → ms", partial(column_to_millis, stamps), records
    for backend, names in (("redis", ("device_ip",)), ("clickhouse", ("timestamp", "device_ip", "error_code"))):
        yield f"decode: {backend}", partial(reference.decode, payloads, _fields(names, backend)), records

    decoded = [
        reference.decode(payload_batch, _fields(("device_ip",), "redis")).columns[0] for payload_batch in record_batches
    ]
    distinct = set().union(*decoded)
    yield "redis: distinct devices", lambda: set().union(*decoded), batch
    yield "redis: PFADD by hiredis", partial(_pack, distinct, hiredis.pack_command), batch
    connection: Any = Connection()
    yield "redis: PFADD by redis-py", partial(_pack, distinct, lambda words: connection.pack_command(*words)), batch

    ranges = [range(i * records, (i + 1) * records) for i in range(chunks_in_batch)]
    fields = _fields(("timestamp", "device_ip", "error_code"), "clickhouse")
    parts = [
        list(part)
        for part in zip(
            *(reference.decode(payload_batch, fields).columns for payload_batch in record_batches), strict=True
        )
    ]
    codecs = list(map(types.codec, _TABLE.values()))
    yield "clickhouse: join the parts", lambda: [c.encode(part) for c, part in zip(codecs, parts, strict=True)], batch
    yield "clickhouse: _offset", partial(types.offsets, "Int64", ranges), batch
    yield "clickhouse: _partition", partial(types.constant, "Int32", 3, batch), batch
    yield "clickhouse: _topic", partial(types.constant, "LowCardinality(String)", "example", batch), batch
    for name, values in _values(records, [event["device_ip"] for event in parsed], stamps):
        codec = types.codec(name.removesuffix(" (not ASCII)").removesuffix(" (text)"))
        yield f"type {name}", partial(_encode, codec, values), records
    yield from formats.steps(records)


_TABLE = {"timestamp": "DateTime64(3, 'UTC')", "device_ip": "String", "error_code": "Int8"}


def _fields(names: tuple[str, ...], backend: str) -> list[Field]:
    return [Field(name, (name,), texts if backend == "redis" else types.codec(_TABLE[name]).convert) for name in names]


def _fenced(payloads: list[bytes]) -> Any:
    return reference._parse_together(payloads)  # the first step of `decode`


def _pack(distinct: set[Any], pack: Callable[[tuple[Any, ...]], Any]) -> list[Any]:
    devices = iter(distinct)
    packed = []
    while part := tuple(islice(devices, 5000)):
        packed.append(pack(("PFADD", "devices:{example}", *part)))
    return packed


def _encode(codec: types.Codec, values: list[Any]) -> bytes:
    return codec.encode([codec.convert(values)])


def _values(rows: int, addresses: list[str], stamps: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield values as JSON has them for each type."""
    random = Random(1)
    words = [f"word-{random.randrange(50)}" for _ in range(rows)]
    numbers = [random.randrange(100) for _ in range(rows)]
    yield "String", addresses
    yield "String (not ASCII)", [f"ü{word}" for word in words]
    yield "FixedString(16)", words
    yield "LowCardinality(String)", words
    yield "Nullable(String)", [None if number < 10 else word for number, word in zip(numbers, words, strict=True)]
    yield "IPv4", addresses
    yield "IPv6", [f"2001:db8::{number:x}" for number in numbers]
    yield "UUID", [str(uuid.UUID(int=random.getrandbits(128))) for _ in range(rows)]
    for name in [f"{sign}{bits}" for sign in ("Int", "UInt") for bits in (8, 16, 32, 64, 128, 256)]:
        yield name, numbers
    for name in ("Float32", "Float64"):
        yield name, list(map(float, numbers))
    for name in ("Decimal(9, 2)", "Decimal(18, 4)", "Decimal(38, 10)"):
        yield name, [number / 4 for number in numbers]
    yield "Decimal(18, 4) (text)", [f"{number}.25" for number in numbers]
    yield "Nullable(Int32)", [None if number < 10 else number for number in numbers]
    yield "LowCardinality(Nullable(String))", [None if n < 10 else w for n, w in zip(numbers, words, strict=True)]
    yield "Enum16('a' = 1, 'b' = 2)", ["ab"[number % 2] for number in numbers]
    yield "Array(String)", [[word] * 3 for word in words]
    yield "Bool", [number > 50 for number in numbers]
    yield "Enum8('a' = 1, 'b' = 2)", ["ab"[number % 2] for number in numbers]
    for name in ("DateTime64(3, 'UTC')", "DateTime64(6, 'UTC')", "DateTime('UTC')", "Date", "Date32"):
        yield name, stamps
    yield "Array(Int32)", [[number] * 3 for number in numbers]
    yield "Map(String, Int32)", [{"a": number, "b": number} for number in numbers]
    yield "Tuple(a Int32, b String)", [{"a": n, "b": w} for n, w in zip(numbers, words, strict=True)]
    yield "JSON", [{"a": number, "b": word} for number, word in zip(numbers, words, strict=True)]
