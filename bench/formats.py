"""`python -m bench.formats`: what a field costs in each format, in CPU ns per message, beside its library by hand.

Each payload has one field of one type, so the figures are per field; `event` has the three fields of a device event.
Ours is from payloads to the column's bytes, with every check. By hand is a loop of one call of orjson, fastavro or
protobuf for each payload, and a list of the Python values that a store's client takes: datetime, date, Decimal, UUID,
str, list, dict, None. It has no check, no column and no reject.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from io import BytesIO
from operator import methodcaller
from random import Random
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
import orjson

from worker.core.records import Decode, Field
from worker.core.schemas import RegisteredSchema
from worker.decoding import protobuf
from worker.decoding.formats import open_format, with_schemas
from worker.decoding.framing import HEAD_BYTES, frame
from worker.sinks.clickhouse import types

try:
    from worker.decoding.native import NativeDecoder
except ImportError:  # the native package is optional
    NativeDecoder = None  # type: ignore[assignment,misc]

_START = datetime(2026, 11, 25, tzinfo=UTC)


class _Kind(NamedTuple):
    """A type of a field: in ClickHouse, in Avro and in Protobuf (empty: it has no such type), and a random value.

    By hand, `of_json` and `of_message` make the Python value of what the libraries return.
    """

    name: str
    column: str
    avro: Any
    protobuf: str
    value: Callable[[Random], Any]
    of_json: Callable[[Any], Any] | None = None
    of_message: Callable[[Any], Any] | None = None


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
    *(
        _Kind(
            f"timestamp in {unit}",
            f"DateTime64({digits})",
            _logical("long", f"timestamp-{name}"),
            "google.protobuf.Timestamp",
            _moment,
            datetime.fromisoformat,
            methodcaller("ToDatetime"),
        )
        for unit, digits, name in (("ms", 3, "millis"), ("us", 6, "micros"))
    ),
    _Kind("date", "Date32", _logical("int", "date"), "", lambda random: _moment(random).date(), date.fromisoformat),
    _Kind(
        "decimal",
        "Decimal(18, 4)",
        _logical("bytes", "decimal", precision=18, scale=4),
        "",
        lambda random: Decimal(random.randrange(10**9)).scaleb(-4),
        Decimal,
    ),
    _Kind("uuid", "UUID", _logical("string", "uuid"), "", lambda random: UUID(int=random.getrandbits(128)), UUID),
    _Kind(
        "array of text",
        "Array(String)",
        {"type": "array", "items": "string"},
        "repeated string",
        lambda random: [_word(random) for _ in range(3)],
        of_message=list,
    ),
    _Kind(
        "map",
        "Map(String, Int32)",
        {"type": "map", "values": "int"},
        "map<string, int32>",
        lambda random: {"a": random.randrange(100), "b": 2},
        of_message=dict,
    ),
)


def steps(records: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Yield (name, call, payloads that one call handles)."""
    event = [_KINDS[4]._replace(name="timestamp"), _KINDS[0]._replace(name="device_ip")]
    event.append(_KINDS[1]._replace(name="error_code", column="Int8", value=lambda random: random.randrange(11)))
    for name, kinds in (("event", event), *((kind.name, [kind._replace(name="value")]) for kind in _KINDS)):
        values = [{kind.name: kind.value(random) for kind in kinds} for random in map(Random, range(records))]
        codecs = [types.codec(kind.column) for kind in kinds]
        fields = [
            Field(kind.name, (kind.name,), codec.convert, codec.null is not None, target=codec.type)
            for kind, codec in zip(kinds, codecs, strict=True)
        ]
        by_hand = _json(kinds, values)
        yield from _pair(f"json: {name}", by_hand, _with_fields(open_format("json", _no_schema).decode, fields))
        if NativeDecoder is not None:
            yield from _pair(f"json, native: {name}", by_hand, _with_fields(NativeDecoder(), fields))
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


def _json(kinds: Sequence[_Kind], values: list[dict[str, Any]]) -> tuple[list[bytes], Callable[[list[bytes]], Any]]:
    def read(payloads: list[bytes]) -> Any:
        events = [orjson.loads(payload) for payload in payloads]
        return [_converted([event[kind.name] for event in events], kind.of_json) for kind in kinds]

    return [orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z) for value in values], read


def _converted(values: list[Any], convert: Callable[[Any], Any] | None) -> list[Any]:
    return values if convert is None else [convert(value) for value in values]


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
    message = protobuf.compile_schema(schema).message_class((0,))

    def column(events: list[Any], kind: _Kind) -> list[Any]:
        if "optional" in kind.protobuf:
            return [getattr(event, kind.name) if event.HasField(kind.name) else None for event in events]
        return _converted([getattr(event, kind.name) for event in events], kind.of_message)

    def read(payloads: list[bytes]) -> Any:
        events = [message.FromString(payload[HEAD_BYTES + 1 :]) for payload in payloads]
        return [column(events, kind) for kind in kinds]

    payloads = [frame(1, b"\0" + message(**value).SerializeToString()) for value in values]
    return (payloads, read), _decode("protobuf", schema, fields)


def main(argv: list[str] | None = None) -> int:
    from bench import stages

    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="[%(default)s]")
    times = stages.measure([stages.Step(*step) for step in steps(stages.RECORDS)], parser.parse_args(argv).rounds)
    formats = list(dict.fromkeys(name.partition(": ")[0] for name in times))
    print("ns of CPU a message, medians: ours / by hand, and the median of the rounds' ratios\n")
    print(f"| field | {' | '.join(formats)} |\n|{' --- |' * (len(formats) + 1)}")
    for field in ("event", *(kind.name for kind in _KINDS)):
        cells = [_cell(times.get(f"{name}: {field}"), times.get(f"{name}: {field}, by hand")) for name in formats]
        print(f"| {field} | {' | '.join(cells)} |")
    return 0


def _cell(ours: list[float] | None, by_hand: list[float] | None) -> str:
    if not ours or not by_hand:
        return "–"
    ratios = [mine / theirs for mine, theirs in zip(ours, by_hand, strict=True)]
    return f"{median(ours):.0f} / {median(by_hand):.0f} = {median(ratios):.2f}"


if __name__ == "__main__":
    sys.exit(main())
