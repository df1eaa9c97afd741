"""Avro: every logical type exactly, many schemas in one record batch, and bytes that fit no schema."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from io import BytesIO
from typing import Any, cast
from uuid import UUID

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.records import Field
from worker.core.schemas import RegisteredSchema, SchemaNeeded
from worker.decoding import instants, timestamps
from worker.decoding.avro import compile_schema
from worker.decoding.converters import integers, texts
from worker.decoding.formats import open_format, with_schemas
from worker.decoding.framing import frame
from worker.decoding.json import Unreadable
from worker.decoding.schema_cache import InvalidSchema
from worker.sinks.clickhouse.types import codec

EXACTLY = Context(prec=60)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Schema = dict[str, Any]


def record(name: str = "Event", **types: Any) -> Schema:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in types.items()]}


def logical(kind: str, name: str, **more: Any) -> Schema:
    return {"type": kind, "logicalType": name, **more}


def encode(schema: Any, value: Any) -> bytes:
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def read(schema: Any, *bodies: bytes, references: Sequence[tuple[str, str]] = ()) -> list[Any]:
    reader = compile_schema(RegisteredSchema("AVRO", json.dumps(schema), tuple(references)))
    return reader([frame(1, body) for body in bodies], None)


def event_of(kind: Any, value: Any) -> Any:
    """Return a value as it comes out of an event, after fastavro's own writer."""
    schema = record(value=kind)
    (event,) = read(schema, encode(schema, {"value": value}))
    return event["value"]


def reason(event: Any) -> str:
    assert isinstance(event, Unreadable), event
    return event.reason


# fastavro's own values of each logical type: what they were before they were written


@given(st.datetimes(datetime(1900, 1, 1), datetime(2262, 1, 1)))
def test_timestamps_are_exact_to_their_unit(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    micros = (moment - EPOCH) // timedelta(microseconds=1)
    text = event_of(logical("long", "timestamp-micros"), moment)
    assert timestamps.to_nanos(text) == micros * 1000
    assert list(codec("DateTime64(6)").convert([text])) == [micros]
    assert datetime.fromisoformat(text) == moment
    local = event_of(logical("long", "local-timestamp-micros"), moment.replace(tzinfo=None))
    assert local == text.removesuffix("Z")
    millis = event_of(logical("long", "timestamp-millis"), moment)
    assert timestamps.to_millis(millis) == micros // 1000
    nanos = event_of(logical("long", "timestamp-nanos"), micros * 1000 + 7)
    assert timestamps.to_nanos(nanos) == micros * 1000 + 7


@pytest.mark.parametrize("count", [0, 1, -1, 999, -999, 99_999_999_999, -99_999_999_999])
def test_counts_near_1970_keep_their_unit(count: int) -> None:
    for name, factor in (("millis", 10**6), ("micros", 1000), ("nanos", 1)):
        text = event_of(logical("long", f"timestamp-{name}"), count)
        assert timestamps.to_nanos(text) == count * factor


@given(st.sampled_from(["millis", "micros", "nanos"]), st.integers(-(2**63), 2**63 - 1))
def test_a_timestamp_is_exact_or_no_timestamp(name: str, count: int) -> None:
    text = event_of(logical("long", f"timestamp-{name}"), count)
    nanos = count * {"millis": 10**6, "micros": 1000, "nanos": 1}[name]
    if timestamps.FIRST <= nanos // 10**6 <= timestamps.LAST:
        assert timestamps.to_nanos(text) == nanos
    else:
        with pytest.raises(ValueError, match=r"out of range|neither ISO 8601"):
            timestamps.to_nanos(text)


@given(st.dates())
def test_dates(day: date) -> None:
    text = event_of(logical("int", "date"), day)
    assert date.fromisoformat(text) == day
    if date(1900, 1, 1) <= day <= date(2299, 12, 31):
        assert list(codec("Date32").convert([text])) == [day.toordinal() - date(1970, 1, 1).toordinal()]


@given(st.times())
def test_times_of_day(moment: time) -> None:
    assert time.fromisoformat(event_of(logical("long", "time-micros"), moment)) == moment
    millis = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert time.fromisoformat(event_of(logical("int", "time-millis"), moment)) == millis


@pytest.mark.parametrize("kind", ["date", "time-millis"])
def test_days_and_times_out_of_range_are_no_days_and_times(kind: str) -> None:
    assert event_of(logical("int", kind), 2**31 - 1).split()[0] == str(2**31 - 1)


@given(st.integers(-(10**40) + 1, 10**40 - 1))
def test_decimals_are_exact(unscaled: int) -> None:
    number = EXACTLY.scaleb(Decimal(unscaled), -9)
    for kind in (
        logical("bytes", "decimal", precision=40, scale=9),
        {**logical("fixed", "decimal", precision=40, scale=9), "name": "F", "size": 20},
    ):
        text = event_of(kind, number)
        assert Decimal(text) == number
        assert codec("Decimal(40, 9)").convert([text]) == unscaled.to_bytes(32, "little", signed=True)


@given(st.integers(-(10**20), 10**20), st.integers(0, 5))
def test_decimals_of_any_scale(unscaled: int, scale: int) -> None:
    number = EXACTLY.scaleb(Decimal(unscaled), -scale)
    assert Decimal(event_of(logical("bytes", "decimal", precision=30, scale=scale), number)) == number


@given(st.uuids())
def test_uuids(value: UUID) -> None:
    assert event_of(logical("string", "uuid"), value) == str(value)
    schema = record(value={**logical("fixed", "uuid"), "name": "U", "size": 16})
    (event,) = read(schema, value.bytes)
    assert event["value"] == str(value)


@given(st.binary())
def test_bytes_become_base64(value: bytes) -> None:
    assert b64decode(event_of("bytes", value), validate=True) == value
    assert b64decode(event_of({"type": "fixed", "name": "F", "size": len(value)}, value)) == value


@given(st.lists(st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans())))
def test_unions_give_the_value_of_their_branch(values: list[Any]) -> None:
    assert event_of({"type": "array", "items": ["null", "string", "long", "boolean"]}, values) == values


@given(st.floats(allow_nan=False), st.dictionaries(st.text(), st.integers(-(2**31), 2**31 - 1)))
def test_doubles_and_maps(number: float, mapping: dict[str, int]) -> None:
    assert event_of("double", number) == number
    assert event_of({"type": "map", "values": "int"}, mapping) == mapping


def test_nested_records_enums_arrays_and_logical_types_in_them() -> None:
    moment = datetime(2026, 11, 25, 9, 30, 0, 123456, tzinfo=UTC)
    status = {"type": "enum", "name": "Status", "symbols": ["UP", "DOWN"]}
    inner = record("Inner", at=logical("long", "timestamp-micros"), status=["null", status], again="Status")
    schema = record(
        inner=["null", inner], many={"type": "array", "items": "Inner"}, by={"type": "map", "values": "Inner"}
    )
    one = {"at": moment, "status": "DOWN", "again": "UP"}
    value = {"inner": None, "many": [one, {**one, "status": None}], "by": {"k": one}}
    (event,) = read(schema, encode(schema, value))
    expected = {"at": "2026-11-25T09:30:00.123456Z", "status": "DOWN", "again": "UP"}
    assert event == {"inner": None, "many": [expected, {**expected, "status": None}], "by": {"k": expected}}


def test_a_union_with_a_logical_type() -> None:
    moment = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
    kind = ["null", logical("long", "timestamp-millis"), logical("bytes", "decimal", precision=5, scale=2)]
    assert event_of(kind, moment) == "2026-11-25T09:30:00.000Z"
    assert event_of(kind, Decimal("-0.05")) == "-0.05"
    assert event_of(kind, None) is None


def test_unknown_and_invalid_logical_types_are_read_as_their_underlying_type() -> None:
    assert event_of({"type": "long", "logicalType": "other"}, 5) == 5
    assert event_of({"type": "string", "logicalType": "timestamp-millis"}, "x") == "x"
    assert event_of({"type": "long", "logicalType": "worker-timestamp-millis"}, 5) == 5
    schema = record(value={"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3})
    assert read(schema, b"\x02\x05") == [{"value": "BQ=="}]


def test_names_of_other_schemas() -> None:
    geo = {**record("Geo", country="string", since=logical("int", "date")), "namespace": "common"}
    schema = {**record(where="common.Geo", then=["null", "common.Geo"]), "namespace": "app"}
    whole = {**record(where=geo, then=["null", "common.Geo"]), "namespace": "app"}
    place = {"country": "NL", "since": date(2020, 2, 29)}
    events = read(schema, encode(whole, {"where": place, "then": None}), references=[("common.Geo", json.dumps(geo))])
    assert events == [{"where": {"country": "NL", "since": "2020-02-29"}, "then": None}]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "7", "null", '"nope"', '{"type": "record", "name": "E"}', '{"type": null}', '{"type": 7}'),
        '[[["null"]], {"type": "map"}]',
        '{"type": "enum", "name": 5, "symbols": 7}',
        '{"type":"array","items":' * 900 + '"int"' + "}" * 900,
        '{"type": "record", "name": "E", "fields": [1]}',
        '{"type":"record","name":"E","fields":[{"name":"a","type":{"type":"array","items":"null"}}]}',
    ],
)
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(InvalidSchema):
        compile_schema(RegisteredSchema("AVRO", text))


# bytes that fit no schema

EVENT = record(
    timestamp=logical("long", "timestamp-millis"), device_ip="string", error_code="int", tag=["null", "string"]
)
PLAIN = fastavro.parse_schema(record(timestamp="long", device_ip="string", error_code="int", tag=["null", "string"]))
READER = compile_schema(RegisteredSchema("AVRO", json.dumps(EVENT)))


def body(i: int) -> bytes:
    return encode(EVENT, {"timestamp": 1_700_000_000_000 + i, "device_ip": f"10.0.0.{i}", "error_code": i, "tag": None})


@settings(max_examples=1000)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 99).map(body),
            st.binary(max_size=40),
            st.builds(lambda i, cut: body(i)[:cut], st.integers(0, 99), st.integers(0, 20)),
            st.builds(lambda i, tail: body(i) + tail, st.integers(0, 99), st.binary(max_size=30)),
            st.builds(lambda i, at, byte: body(i)[:at] + bytes([byte]) + body(i)[at + 1 :],
                      st.integers(0, 99), st.integers(0, 19), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=40,
    )
)  # fmt: skip
def test_no_payload_changes_its_neighbours_event(bodies: list[bytes]) -> None:
    """Together they give what each gives alone, and what each gives alone is what fastavro by hand gives."""
    together = READER([frame(1, one) for one in bodies], None)
    for one, event in zip(bodies, together, strict=True):
        stream = BytesIO(one)
        by_hand: dict[str, Any] | None
        try:
            by_hand = cast("dict[str, Any]", fastavro.schemaless_reader(stream, PLAIN, None))
        except (EOFError, ValueError, IndexError, TypeError, OverflowError):
            by_hand = None
        if by_hand is None or stream.read(1):
            assert reason(event) == "undecodable"
        else:
            assert event == {**by_hand, "timestamp": instants.timestamp(3, "Z")(by_hand["timestamp"])}


def test_an_event_nested_deeper_than_the_stack_is_a_reject() -> None:
    schema = record("Cell", value="int", next=["null", "Cell"])
    shallow, deep = b"\x02\x02" * 20 + b"\x04\x00", b"\x02\x02" * 500_000 + b"\x04\x00"
    events = read(schema, shallow, deep, shallow)
    assert events[0] == events[2]
    assert events[0]["next"]["next"]["value"] == 1
    assert reason(events[1]) == "undecodable"


# the seam: schema ids

V1 = record(device_ip="string", n="int")
V2 = record(device_ip="string", n="long", extra=["null", "string"])
FIELDS = (Field("device_ip", ("device_ip",), texts), Field("n", ("n",), integers(-(2**31), 2**31 - 1)))


class Registry:
    def __init__(self, **schemas: Any) -> None:
        self.schemas = {int(name[1:]): schema for name, schema in schemas.items()}
        self.asked: list[int] = []

    def fetch(self, schema_id: int) -> RegisteredSchema | None:
        self.asked.append(schema_id)
        schema = self.schemas.get(schema_id)
        if schema is None or isinstance(schema, RegisteredSchema):
            return schema
        return RegisteredSchema("AVRO", json.dumps(schema))


def test_a_batch_of_several_schemas_keeps_its_order_and_each_bad_event_has_its_reason() -> None:
    registry = Registry(i1=V1, i2=V2, i3=RegisteredSchema("JSON", "{}"), i4=RegisteredSchema("AVRO", "{"))
    decode = with_schemas(open_format("avro", registry.fetch).decode)
    first = [frame(1, encode(V1, {"device_ip": f"d{i}", "n": i})) for i in range(3)]
    second = [frame(2, encode(V2, {"device_ip": f"e{i}", "n": 2**40 * (i == 2), "extra": None})) for i in range(3)]
    bad = [
        frame(9, b"x"),
        b'{"device_ip": "x"}',
        b"",
        b"\0\0\0",
        frame(1, b"\xff"),
        frame(3, b"{}"),
        frame(4, b""),
        b"\0",
    ]
    payloads = [first[0], second[0], *bad, second[1], first[1], second[2], first[2]]
    decoded = decode(payloads, FIELDS)
    assert decoded.columns[0] == ["d0", "e0", "e1", "d1", "d2"]
    assert list(decoded.columns[1]) == [0, 0, 0, 1, 2]
    assert list(decoded.kept or ()) == [0, 1, 10, 11, 13]
    assert [(reject.index, reject.reason, reject.field) for reject in decoded.rejects] == [
        (2, "unknown_schema", ""),
        (3, "not_framed", ""),
        (4, "not_framed", ""),
        (5, "not_framed", ""),
        (6, "undecodable", ""),
        (7, "unknown_schema", ""),
        (8, "unknown_schema", ""),
        (9, "not_framed", ""),
        (12, "out_of_range", "n"),
    ]
    assert sorted(registry.asked) == [1, 2, 3, 4, 9]


def test_all_missing_schemas_are_fetched_at_once_and_only_once() -> None:
    registry = Registry(i1=V1, i2=V2)
    decode = open_format("avro", registry.fetch).decode
    payloads = [frame(1, encode(V1, {"device_ip": "d", "n": 1})), frame(2, encode(V2, {"device_ip": "e", "n": 2}))]
    with pytest.raises(SchemaNeeded) as needed:
        decode(payloads, FIELDS)
    assert registry.asked == []
    needed.value.load()
    assert sorted(registry.asked) == [1, 2]
    for _ in range(2):
        assert decode(payloads, FIELDS).columns[0] == ["d", "e"]
    assert sorted(registry.asked) == [1, 2]


def test_json_schema_is_framed_json() -> None:
    registry = Registry(i1=RegisteredSchema("JSON", '{"type": "object"}'))
    decode = with_schemas(open_format("json-schema", registry.fetch).decode)
    bodies = [b'{"device_ip": "d", "n": 1}', b"[]", b"{", b'{"device_ip": "d"}']
    decoded = decode([*(frame(1, one) for one in bodies), bodies[0], frame(2, bodies[0])], FIELDS)
    assert decoded.rows == 1
    assert [reject.reason for reject in decoded.rejects] == [
        *("not_object", "not_json", "missing_field"),
        *("not_framed", "unknown_schema"),
    ]
