"""Protobuf's columns beside its events: the wanted fields of messages are what the messages' JSON has of them."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.records import Decoded, Field
from worker.core.schemas import RegisteredSchema
from worker.decoding import json
from worker.decoding.converters import reject_reason, texts
from worker.decoding.formats import open_format, with_schemas
from worker.decoding.framing import frame
from worker.decoding.json import Unreadable
from worker.decoding.protobuf import _indexes, _Reader, compile_schema

PROTO3 = """
syntax = "proto3";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message Other { string text = 2; message Inner { string text = 2; } }
message Event {
  enum Status { UP = 0; DOWN = 1; }
  google.protobuf.Timestamp time = 1;
  string text = 2;
  int64 big = 3;
  bytes raw = 4;
  Status status = 5;
  repeated Status history = 6;
  optional int32 maybe = 7;
  oneof either { int32 left = 8; string right = 9; }
  Event inner = 10;
  repeated Event children = 11;
  map<string, int64> counts = 12;
  map<bool, Other> by_flag = 13;
  google.protobuf.StringValue wrapped = 14;
  google.protobuf.Struct anything = 15;
  google.protobuf.Duration took = 16;
  double ratio = 17;
  repeated string words = 18;
  uint64 from = 19;
  google.protobuf.Value value = 20;
  map<string, bytes> blobs = 21;
}
"""
PROTO2 = """
syntax = "proto2";
message Other { optional string text = 2; }
message Event {
  enum Status { DOWN = 1; UP = 2; }
  optional string text = 2 [default = "none"];
  required int64 big = 3;
  optional Status status = 5;
  optional int32 maybe = 7 [default = 7];
  optional Event inner = 10;
  repeated group Children = 11 { optional string text = 2; }
  repeated int32 words = 18 [packed = true];
}
"""
SCHEMAS = {1: RegisteredSchema("PROTOBUF", PROTO3), 2: RegisteredSchema("PROTOBUF", PROTO2)}
READERS = {schema_id: compile_schema(schema) for schema_id, schema in SCHEMAS.items()}
EVENT, OTHER, INNER = b"\x02\x02", b"\x00", b"\x04\x00\x00"
DECODE = with_schemas(open_format("protobuf", SCHEMAS.get).decode)
PATHS = [
    tuple(path.split("."))
    for path in """
    time text big raw status history maybe left right inner value children counts by_flag wrapped anything took ratio
    words from blobs nope inner.text inner.time inner.maybe inner.words inner.counts inner.wrapped inner.nope
    inner.inner.text inner.inner.status inner.inner.right counts.a by_flag.true.text anything.a anything.a.b
    inner.anything.a nope.text text.a time.seconds words.a wrapped.value inner.counts.a
    """.split()  # noqa: SIM905  # one a line would be 43 lines
]


def message_class(schema_id: int) -> Any:
    reader = READERS[schema_id]
    assert isinstance(reader, _Reader)
    return GetMessageClass(reader._types[1])


numbers = st.integers(-(2**31), 2**31 - 1)
instants = st.fixed_dictionaries({}, optional={"seconds": st.integers(-(2**40), 2**40), "nanos": numbers})
values_of_fields: dict[str, Any] = {
    "text": st.text(max_size=3),
    "big": st.integers(-(2**63), 2**63 - 1),
    "status": st.sampled_from([1, 2]),
    "maybe": numbers,
}
proto2 = st.fixed_dictionaries({}, optional={**values_of_fields, "words": st.lists(numbers, max_size=2)})
plain = values_of_fields | {
    "time": instants,
    "took": instants,
    "raw": st.binary(max_size=3),
    "status": st.integers(0, 3),
    "history": st.lists(st.integers(-1, 2), max_size=2),
    "left": numbers,
    "right": st.text(max_size=1),
    "counts": st.dictionaries(st.sampled_from("ab"), numbers, max_size=2),
    "wrapped": st.fixed_dictionaries({}, optional={"value": st.text(max_size=1)}),
    "ratio": st.floats(),
    "words": st.lists(st.text(max_size=2), max_size=2),
    "from": st.integers(0, 2**64 - 1),
    "value": st.fixed_dictionaries({}, optional={"number_value": st.floats()}),
    "blobs": st.dictionaries(st.sampled_from("ab"), st.binary(max_size=2), max_size=2),
}


@st.composite
def proto3(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(plain)), unique=True, max_size=4))
    fields = {name: draw(plain[name]) for name in names}
    if depth and draw(st.booleans()):
        fields["inner"] = draw(proto3(depth - 1))
    if depth and draw(st.integers(0, 3)) == 0:
        fields["children"] = draw(st.lists(proto3(0), min_size=1, max_size=2))
    return fields


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return a framed message of any type of both schemas; some have further bytes, or lack some."""
    schema_id = draw(st.sampled_from([1, 1, 1, 2]))
    message = message_class(schema_id)(**draw(proto3() if schema_id == 1 else proto2))
    if schema_id == 1 and draw(st.booleans()):
        holder = message.inner if draw(st.booleans()) else message
        holder.anything.fields["a"].number_value = draw(st.floats())
        message.by_flag[draw(st.booleans())].text = draw(st.text(max_size=1))
    body = bytes(message.SerializePartialToString())
    body = draw(st.sampled_from([body, body, body, body + b"\xf8\x3f\x05", body + body, body[:-1], body + b"\x80"]))
    index = draw(st.sampled_from([EVENT] * 6 + [OTHER, INNER if schema_id == 1 else OTHER]))
    return frame(schema_id, index + body)


wanted = st.lists(
    st.tuples(st.sampled_from(PATHS), st.booleans(), st.sampled_from([list, list, texts])), min_size=1, max_size=5
)


def text(row: Sequence[Any]) -> str:
    """Return a row as text: NaN equals nothing, and the order of a map's keys is another in each process."""
    return dumps(row, sort_keys=True)


def rows_and_rejects(decoded: Decoded, payloads: list[bytes]) -> dict[int, Any]:
    kept = range(len(payloads)) if decoded.kept is None else decoded.kept
    rows: dict[int, Any] = dict(zip(kept, map(text, zip(*decoded.columns, strict=True)), strict=True))
    return rows | {reject.index: (reject.reason, reject.field) for reject in decoded.rejects}


def by_its_event(payload: bytes, fields: list[Field]) -> Any:
    """Return the row of an event by its JSON, or why it has none."""
    reader = READERS[payload[4]]
    assert isinstance(reader, _Reader)
    row: list[Any] = []
    for field in fields:
        (message,) = reader.parse([payload])
        if isinstance(message, Unreadable):
            return message.reason, ""
        keep_only(field.path, message)
        end = _indexes(payload)[1]
        (event,) = reader([payload[:end] + message.SerializePartialToString()], {field.path[0]})
        if isinstance(event, Unreadable):
            return event.reason, field.name
        try:
            (value,) = json.field_values([event], field)
        except (KeyError, TypeError) as error:
            return "missing_field" if isinstance(error, KeyError) else "wrong_type", field.name
        if reason := reject_reason(field.convert, [value]):
            return reason, field.name
        row.append(value)
    return text(row)


def keep_only(path: tuple[str, ...], message: Any) -> None:
    """Clear the fields beside a path."""
    for field, value in message.ListFields():
        if not path or field.name != path[0]:
            message.ClearField(field.name)
        elif isinstance(value, Message) and "google" not in field.message_type.full_name and path[1:]:
            keep_only(path[1:], value)


@settings(max_examples=500, deadline=None)
@given(st.lists(bodies(), min_size=1, max_size=6), wanted)
def test_columns_are_what_the_events_have(payloads: list[bytes], wanted: list[tuple[Any, bool, Any]]) -> None:
    fields = [
        Field(f"{number}: {'.'.join(path)}", path, convert, required, None if required else "absent")
        for number, (path, required, convert) in enumerate(wanted)
    ]
    expected = {index: by_its_event(payload, fields) for index, payload in enumerate(payloads)}
    assert rows_and_rejects(DECODE(payloads, fields), payloads) == expected


def test_only_what_a_path_names_is_converted() -> None:
    message = message_class(1)(inner={"text": "x"})
    message.inner.anything.fields["a"].number_value = float("nan")
    payload = frame(1, EVENT + message.SerializeToString())
    for path, columns in ((("inner", "text"), (["x"],)), (("inner",), ([],))):
        decoded = DECODE([payload], [Field("value", path, list)])
        assert decoded.columns == columns
    assert [(reject.reason, reject.field) for reject in decoded.rejects] == [("undecodable", "value")]


@pytest.mark.parametrize(("kind", "event"), [("Struct", {"a": 1.0}), ("StringValue", None)])
def test_a_well_known_type_is_an_event_only_if_its_json_is_an_object(kind: str, event: Any) -> None:
    schema = RegisteredSchema(
        "PROTOBUF",
        """syntax = "proto3"; package google.protobuf;
        message StringValue { string value = 1; }
        message Struct { map<string, Value> fields = 1; }
        message Value { oneof kind { double number_value = 2; } }""",
    )
    decode = with_schemas(open_format("protobuf", lambda _: schema).decode)
    index = {"Struct": b"\x02\x02", "StringValue": b"\x00"}[kind]
    body = b"\x0a\x0e\x0a\x01a\x12\x09\x11" + bytes(6) + b"\xf0\x3f" if event else b"\x0a\x01x"
    decoded = decode([frame(7, index + body)], [Field("a", ("a",), list)])
    if event:
        assert decoded.columns == ([1.0],)
    else:
        assert [(reject.reason, reject.field) for reject in decoded.rejects] == [("not_object", "")]
