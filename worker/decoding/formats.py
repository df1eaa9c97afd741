"""The format of a topic's events (`--format`) → what reads them. Libraries of a format are imported only here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

from worker.core.errors import Fatal
from worker.core.records import Decode, Field
from worker.core.schemas import FetchSchema, SchemaNeeded
from worker.decoding import json
from worker.decoding.framed import FramedDecoder
from worker.decoding.schema_cache import SchemaCache
from worker.decoding.transform import load_transform

KINDS = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
"""The formats with a registry, and what it calls the kinds of their schemas."""

ReadEvents = Callable[[Sequence[bytes]], list[dict[str, Any]]]
"""Payloads → those events that are objects."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Format(NamedTuple):
    """How events are read. Both callables raise SchemaNeeded if a registry must be asked first."""

    decode: Decode
    read_events: Callable[[Sequence[bytes]], list[Any]]  # payloads → JSON values, or Unreadable


def open_format(name: str, fetch: FetchSchema) -> Format:
    """Return the format of this name. Raises Fatal if a package is missing."""
    if name == "json":
        return Format(json.decode, json.read_events)
    try:
        decoder = _framed(name, fetch)
    except ImportError as error:
        raise Fatal(
            f"--format {name} needs the package {error.name}; install it: pip install 'kafka-ingest-worker[{name}]'"
        ) from None
    return Format(decoder.decode, decoder.read_events)


def open_decoder(name: str, fetch: FetchSchema, transform: str) -> Decode:
    """Return the decoder of the format of this name, with the user's function if there is one. Raises Fatal."""
    opened = open_format(name, fetch)
    return load_transform(transform, opened.read_events).decode if transform else opened.decode


def open_events(name: str, fetch: FetchSchema, transform: str) -> ReadEvents:
    """Return what reads events and applies the user's function. Raises Fatal.

    It fetches the schemas that it needs, and blocks meanwhile; it raises Retryable and Fatal.
    """
    read_events = open_format(name, fetch).read_events
    if transform:
        decode = load_transform(transform, read_events).decode
        read_events = lambda payloads: decode(payloads, (_WHOLE,)).columns[0]  # noqa: E731
    read = with_schemas(read_events)
    return lambda payloads: [event for event in read(payloads) if type(event) is dict]


_WHOLE = Field("", (), list)  # the event itself


def _framed(name: str, fetch: FetchSchema) -> FramedDecoder:
    if name == "json-schema":
        return FramedDecoder(SchemaCache(fetch, KINDS[name], lambda _: json.read_framed_events), is_json=True)
    library = importlib.import_module(f"worker.decoding.{name}")
    schemas = SchemaCache(fetch, KINDS[name], library.compile_schema)
    if name == "avro":
        return FramedDecoder(schemas, is_json=False)
    return FramedDecoder(schemas, is_json=False, parse=library.parse, read_field=library.field_values)


def with_schemas(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `call` so that it fetches the schemas that it needs, and blocks meanwhile."""

    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        while True:
            try:
                return call(*args, **kwargs)
            except SchemaNeeded as needed:
                needed.load()

    return wrapped
