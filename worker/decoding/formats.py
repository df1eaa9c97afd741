"""The format of a topic's events (`--format`) → what reads them. Libraries of a format are imported only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

from worker.core.errors import Fatal
from worker.core.records import Decode
from worker.core.schemas import FetchSchema, SchemaNeeded
from worker.decoding import json
from worker.decoding.framed import FramedDecoder
from worker.decoding.schema_cache import SchemaCache

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
        decoder = FramedDecoder(_schemas(name, fetch))
    except ImportError as error:
        raise Fatal(
            f"--format {name} needs the package {error.name}; install it: pip install 'kafka-ingest-worker[{name}]'"
        ) from None
    return Format(decoder.decode, decoder.read_events)


def _schemas(name: str, fetch: FetchSchema) -> SchemaCache:
    if name == "avro":
        from worker.decoding import avro

        return SchemaCache(fetch, "AVRO", avro.compile_schema)
    if name == "protobuf":
        from worker.decoding import protobuf

        return SchemaCache(fetch, "PROTOBUF", protobuf.compile_schema)
    return SchemaCache(fetch, "JSON", lambda _: json.read_framed_events)


def with_schemas(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `call` so that it fetches the schemas that it needs, and blocks meanwhile."""

    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        while True:
            try:
                return call(*args, **kwargs)
            except SchemaNeeded as needed:
                needed.load()

    return wrapped
