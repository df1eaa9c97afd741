"""The worker's own columns are decoded natively: else the native package would be a package that does nothing."""

from __future__ import annotations

import json

import pytest

from worker.config.settings import Settings
from worker.core.records import Field
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


def test_a_lenient_column_is_decoded_by_the_reference() -> None:
    (binding,) = bind_columns([Column("n", "Int8")], {}, {"n": "lenient"})
    decoded = NativeDecoder()([EVENT.encode()], (binding.field,))
    assert decoded.rows == 1
    assert not binding.field.target
