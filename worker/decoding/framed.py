"""Payloads that name their schema: grouped by schema id, read by the schema's reader, in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
        if len(by_head) == 1:
            return parse(next(iter(by_head.values())), payloads)
        return _read_groups(payloads, by_head, parse)


def _read_groups(payloads: Sequence[bytes], by_head: dict[bytes, ReadEvents], parse: Parse) -> list[Any]:
    groups: dict[bytes, list[int]] = {}
    for index, payload in enumerate(payloads):
        groups.setdefault(payload[:HEAD_BYTES], []).append(index)
    events: list[Any] = [None] * len(payloads)
    for head, indices in groups.items():
        group = parse(by_head[head], [payloads[index] for index in indices])
        for index, event in zip(indices, group, strict=True):
            events[index] = event
    return events


def _read_unframed(payloads: Sequence[bytes], _keys: Collection[str] | None) -> list[Any]:
    return [Unreadable("not_framed")] * len(payloads)
