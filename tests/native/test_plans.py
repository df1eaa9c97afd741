"""The worker's own columns are decoded natively: else the native package would be a package that does nothing."""

from __future__ import annotations

import json

import pytest

from worker.config.settings import Settings
from worker.core.records import Field, Parts
from worker.decoding import json as reference
from worker.decoding.native import NativeDecoder
from worker.sinks.clickhouse.table import Column, bind_columns, default_columns
from worker.sinks.redis.sink import RedisSink

EVENT = json.dumps({"timestamp": "2026-11-25T12:00:00.123Z", "device_ip": "10.0.0.1", "error_code": 3, "n": "5"})


def table_fields() -> tuple[Field, ...]:
    return tuple(binding.field for binding in bind_columns(default_columns(), {}))


@pytest.mark.parametrize(
    "fields", [table_fields(), RedisSink(Settings(topic="t")).fields], ids=["the worker's table", "redis"]
)
def test_the_worker_s_own_fields_are_decoded_natively(
    fields: tuple[Field, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(reference, "decode", fail)
    decoded = NativeDecoder()([EVENT.encode()] * 10, fields)
    assert (decoded.rows, decoded.kept, decoded.rejects) == (10, None, ())
    assert all(type(column) is bytes for column in decoded.columns)


@pytest.mark.parametrize(
    ("kind", "constant", "value"),
    [
        ("Array(String)", "[]", ["a"]),
        ("Map(String, Int64)", "{}", {"b": 2}),
        ("Int64", "5", 7),
        ("String", '"x"', "y"),
        ("Tuple(a Int64, b String)", '[1, "x"]', {"a": 2, "b": "z"}),
        ("Enum8('a' = 1, 'b' = 2)", '"a"', "b"),
        ("DateTime64(3)", '"2026-01-01T00:00:00Z"', "2026-11-25T12:00:00Z"),
        ("Nullable(Int64)", "5", 7),
        ("LowCardinality(Nullable(String))", '"x"', "y"),
    ],
)
def test_a_column_with_a_default_is_as_the_reference_has_it(kind: str, constant: str, value: object) -> None:
    """Native code decides it where the event has a value; where it writes NULL itself, it is not asked."""
    (binding,) = bind_columns([Column("o.v", kind, "DEFAULT", constant, constant)], {})
    assert bool(binding.field.target) == ("Nullable" not in kind)
    events: list[object] = [{"o": {"v": value}}] * 20
    odd = [{"o": {}}, {"o": {"v": None}}, {"o": None}, {}]
    payloads = [json.dumps(event).encode() for event in [*events, *odd, *events]]
    decoded, expected = NativeDecoder()(payloads, (binding.field,)), reference.decode(payloads, (binding.field,))
    assert (decoded.rows, len(decoded.rejects)) == (expected.rows, len(expected.rejects)) == (44, 0)
    parts = [part if type(part) is Parts else [part] for part in (decoded.columns[0], expected.columns[0])]
    if not kind.startswith("LowCardinality"):  # its bytes depend on the parts
        assert binding.codec.encode(parts[0]) == binding.codec.encode(parts[1])


def test_a_lenient_column_is_decoded_by_the_reference() -> None:
    (binding,) = bind_columns([Column("n", "Int8")], {}, {"n": "lenient"})
    decoded = NativeDecoder()([EVENT.encode()], (binding.field,))
    assert decoded.rows == 1
    assert not binding.field.target
