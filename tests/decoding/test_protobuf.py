"""Protobuf: every type exactly, message types by index, imports, and bytes that are no message."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.records import Field
from worker.core.schemas import RegisteredSchema
from worker.decoding import timestamps
from worker.decoding.converters import texts
from worker.decoding.formats import open_format, with_schemas
from worker.decoding.framing import frame
from worker.decoding.json import Unreadable
from worker.decoding.protobuf import _Reader, compile_schema
from worker.decoding.schema_cache import InvalidSchema

TEXT = """
syntax = "proto3";
package app;
import "common/geo.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message Other { int32 x = 1; message Inner { string y = 1; } }
message Event {
  enum Status { UP = 0; DOWN = 1; }
  google.protobuf.Timestamp timestamp = 1;
  string device_ip = 2;
  int32 error_code = 3;
  int64 big = 4;
  uint64 huge = 5;
  bytes raw = 6;
  Status status = 7;
  repeated Status history = 8;
  optional int32 maybe = 9;
  oneof either { int32 left = 10; string right = 11; }
  common.Geo geo = 12;
  repeated Event children = 13;
  map<string, int64> counts = 14;
  map<bool, common.Geo> by_flag = 15;
  google.protobuf.StringValue wrapped = 16;
  google.protobuf.Struct anything = 17;
  google.protobuf.Duration took = 18;
  double ratio = 19;
  repeated google.protobuf.Timestamp times = 20;
}
"""
GEO = 'syntax = "proto3"; package common; message Geo { string country = 1; }'
SCHEMA = RegisteredSchema("PROTOBUF", TEXT, (("common/geo.proto", GEO),))
READER = compile_schema(SCHEMA)
assert isinstance(READER, _Reader)
Event: Any = GetMessageClass(READER._types[1])
INDEX = b"\x02\x02"  # a list of one index: the second message type of the file
DEFAULTS = {"device_ip": "", "error_code": 0, "big": 0, "huge": 0, "raw": "", "status": "UP", "history": []}
DEFAULTS |= {"children": [], "counts": {}, "by_flag": {}, "ratio": 0.0, "times": []}


def read(*bodies: bytes, keys: set[str] | None = None) -> list[Any]:
    return READER([frame(1, body) for body in bodies], keys)


def event_of(message: Any) -> dict[str, Any]:
    (event,) = read(INDEX + message.SerializeToString())
    assert isinstance(event, dict)
    return event


def test_absent_fields_have_their_defaults_where_the_format_cannot_tell_them_from_absent_ones() -> None:
    assert event_of(Event()) == DEFAULTS


@given(
    st.text(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(),
    st.floats(allow_nan=False),
)
def test_scalars_are_exact(text: str, small: int, big: int, huge: int, raw: bytes, ratio: float) -> None:
    event = event_of(Event(device_ip=text, error_code=small, big=big, huge=huge, raw=raw, ratio=ratio))
    expected = {"device_ip": text, "error_code": small, "big": big, "huge": huge, "raw": b64encode(raw).decode()}
    assert event == {**DEFAULTS, **expected, "ratio": ratio}


@given(st.datetimes(datetime(1900, 1, 1), datetime(2262, 1, 1)), st.integers(0, 999))
def test_timestamps_are_exact_to_the_nanosecond(moment: datetime, nanos: int) -> None:
    micros = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    message = Event()
    message.timestamp.seconds, micro = divmod(micros, 10**6)
    message.timestamp.nanos = micro * 1000 + nanos
    message.times.add().CopyFrom(message.timestamp)
    event = event_of(message)
    assert timestamps.to_nanos(event["timestamp"]) == micros * 1000 + nanos
    assert event["times"] == [event["timestamp"]]


def test_optional_fields_oneofs_enums_maps_messages_and_well_known_types() -> None:
    message = Event(maybe=0, right="", status=1, history=[0, 1, 7], counts={"a": -1}, geo={"country": "NL"})
    message.by_flag[True].country = "BE"
    message.wrapped.value = ""
    message.anything.update({"a": [1, None, "x"], "b": {"c": True}})
    message.took.FromMilliseconds(-1500)
    message.children.add(device_ip="x").children.add(error_code=5)
    assert event_of(message) == {
        **DEFAULTS,
        "maybe": 0,
        "right": "",
        "status": "DOWN",
        "history": ["UP", "DOWN", 7],  # a number that the enum does not name
        "counts": {"a": -1},
        "geo": {"country": "NL"},
        "by_flag": {"true": {"country": "BE"}},
        "wrapped": "",
        "anything": {"a": [1, None, "x"], "b": {"c": True}},
        "took": "-1.500s",
        "children": [{**DEFAULTS, "device_ip": "x", "children": [{**DEFAULTS, "error_code": 5}]}],
    }


@pytest.mark.parametrize("serialized", [(True, True), (True, False), (False, True)])
def test_a_schema_that_is_registered_as_a_descriptor(serialized: tuple[bool, bool]) -> None:
    """Confluent's serializer for Python registers descriptors in base64, and Apicurio returns them as they are."""
    file = Event.DESCRIPTOR.file
    texts = [TEXT, GEO]
    for i, descriptor in enumerate((file, Event.DESCRIPTOR.fields_by_name["geo"].message_type.file)):
        if serialized[i]:
            texts[i] = b64encode(descriptor.serialized_pb).decode()
    reader = compile_schema(RegisteredSchema("PROTOBUF", texts[0], (("common/geo.proto", texts[1]),)))
    body = Event(device_ip="10.0.0.1", geo={"country": "NL"}).SerializeToString()
    assert reader([frame(1, INDEX + body)], {"device_ip", "geo"}) == [
        {"device_ip": "10.0.0.1", "geo": {"country": "NL"}}
    ]


def test_indexes_name_the_message_type() -> None:
    assert read(b"\x00\x08\x05", b"\x02\x00\x08\x05", b"\x04\x00\x00\x0a\x01z") == [{"x": 5}, {"x": 5}, {"y": "z"}]
    bad = (
        b"",
        b"\x02",
        b"\x02\x04",
        b"\x04\x00\x02",
        b"\x01\x00",
        b"\x02\x01",
        b"\xff" * 1_000_000,
        b"\x00\x08",
        b"\x00\xff",
    )
    assert [event.reason for event in read(*bad)] == ["undecodable"] * len(bad)


@settings(max_examples=500)
@given(st.lists(st.one_of(st.binary(max_size=30), st.binary(max_size=30).map(INDEX.__add__)), min_size=1))
def test_any_bytes_are_an_event_or_undecodable_and_the_same_alone(bodies: list[bytes]) -> None:
    together = read(*bodies)
    for body, event in zip(bodies, together, strict=True):
        (alone,) = read(body)
        if isinstance(event, Unreadable):
            assert alone.reason == event.reason == "undecodable"
        else:
            assert repr(alone) == repr(event)  # NaN equals nothing


def test_a_message_nested_deeper_than_the_library_accepts_is_a_reject() -> None:
    body = b""
    for _ in range(500):
        size = len(body)
        body = bytes((0x6A, size & 127 | 128, size >> 7)) + body  # a child in a child …
    deep, shallow = read(INDEX + body, INDEX + b"\x6a\x00")
    assert deep.reason == "undecodable"
    assert shallow["children"] == [DEFAULTS]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_value_that_json_does_not_have_refuses_an_event_only_where_it_is_wanted(number: float) -> None:
    message = Event(device_ip="x")
    message.anything.fields["a"].number_value = number
    message.took.seconds = 2**62
    body = INDEX + message.SerializeToString()
    assert [event.reason for event in read(body)] == ["undecodable"]
    assert read(body, keys={"device_ip"}) == [{"device_ip": "x"}]
    (event,) = read(INDEX + Event(ratio=number).SerializeToString())
    assert repr(event["ratio"]) == repr(number)  # no column of numbers takes it


def test_only_the_wanted_fields_are_converted() -> None:
    schemas = {7: SCHEMA}
    decode = with_schemas(open_format("protobuf", schemas.get).decode)
    fields = (Field("country", ("geo", "country"), texts), Field("device_ip", ("device_ip",), texts))
    message = Event(device_ip="d", geo={"country": "NL"}, big=5)
    decoded = decode([frame(7, INDEX + each.SerializeToString()) for each in (message, Event())], fields)
    assert decoded.columns == (["NL"], ["d"])
    assert [(reject.index, reject.reason, reject.field) for reject in decoded.rejects] == [
        (1, "missing_field", "country")
    ]
    assert read(INDEX + message.SerializeToString(), keys={"big", "nope"}) == [{"big": 5}]


@pytest.mark.parametrize(
    ("text", "references", "error"),
    [
        ("syntax", (), "does not compile"),
        (TEXT, (), "common/geo.proto"),
        (TEXT, (("../geo.proto", GEO),), "leads out"),
        (TEXT, (("/tmp/geo.proto", GEO),), "leads out"),
    ],
)
def test_what_is_no_schema_is_refused(text: str, references: tuple[tuple[str, str], ...], error: str) -> None:
    with pytest.raises(InvalidSchema, match=error):
        compile_schema(RegisteredSchema("PROTOBUF", text, references))
