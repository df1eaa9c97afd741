"""Payloads that name their schema: grouped by schema id, read by the schema's reader, in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any

from worker.core.records import Decoded, Field
from worker.decoding.framing import HEAD_BYTES, schema_id
from worker.decoding.json import ReadField, Unreadable, decode_events, field_values
from worker.decoding.schema_cache import ReadEvents, SchemaCache

Parse = Callable[[ReadEvents, Sequence[bytes]], list[Any]]


def _parse_events(read: ReadEvents, payloads: Sequence[bytes]) -> list[Any]:
    return read(payloads, None)


class FramedDecoder:
    """Decodes record batches. Both methods raise SchemaNeeded before anything is decoded."""

    def __init__(
        self, schemas: SchemaCache, *, is_json: bool, parse: Parse = _parse_events, read_field: ReadField = field_values
    ) -> None:
        """`parse` returns what `read_field` takes for events."""
        self._schemas = schemas
        self._is_json = is_json
        self._parse = parse
        self._read_field = read_field

    def decode(self, payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
        """Return the columns of a record batch, and its rejects."""
        payloads = list(payloads)  # of a batch that the native reader has
        texts = [payload[HEAD_BYTES:] for payload in payloads] if self._is_json else payloads
        return decode_events(self._read(payloads, self._parse), texts, fields, self._read_field)

    def read_events(self, payloads: Sequence[bytes]) -> list[Any]:
        """Return each payload's event with all of its fields, or Unreadable."""
        return self._read(payloads, _parse_events)

    def _read(self, payloads: Sequence[bytes], parse: Parse) -> list[Any]:
        heads = {payload[:HEAD_BYTES] for payload in payloads}
        ids = {head: number for head in heads if (number := schema_id(head)) is not None}
        readers = self._schemas.readers(ids.values())
        by_head = {head: readers[ids[head]] if head in ids else _read_unframed for head in heads}
        return read_groups(
            payloads, heads, itemgetter(slice(HEAD_BYTES)), lambda head, group: parse(by_head[head], group)
        )


def read_groups(
    items: Sequence[Any], keys: Collection[Any], key_of: Callable[[Any], Any], read: Callable[[Any, Any], list[Any]]
) -> list[Any]:
    """Return a value for each item: `read` gets all items of a key. `keys` are the different keys of the items."""
    if len(keys) == 1:
        return read(next(iter(keys)), items)
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key_of(item), []).append(index)
    values: list[Any] = [None] * len(items)
    for key, indices in groups.items():
        for index, value in zip(indices, read(key, [items[index] for index in indices]), strict=True):
            values[index] = value
    return values


def _read_unframed(payloads: Sequence[bytes], _keys: Collection[str] | None) -> list[Any]:
    return [Unreadable("not_framed")] * len(payloads)
