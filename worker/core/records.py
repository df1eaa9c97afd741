"""Records as they were read, the fields that a sink wants of them, and what decoding makes of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

Key = tuple[str, int]
"""Topic and partition."""

Convert = Callable[[list[Any]], Any]
"""A whole column of JSON values → the sink's part for these rows, in one piece.

Raises BadValue, TypeError, ValueError, OverflowError or KeyError if any value is invalid, and exactly if it would raise
for one of the values alone.
"""


class Message(Protocol):
    """What a Kafka client's message tells beside its payload."""

    def key(self) -> Any: ...

    def headers(self) -> Any: ...

    def timestamp(self) -> tuple[int, int]: ...


class LazyPayloads(Sequence["bytes | None"]):
    """Payloads that are not bytes objects yet."""

    size: int  # bytes of all of them
    source: Any  # what a native decoder reads


class Field(NamedTuple):
    """A value that the sink stores of each event, and where it stands in the event.

    A required field must be present, be it null. A field that is not required is passed to convert as `missing` where
    it is absent or one of its parents is absent or null, and as None where it is null.

    A field with `of_message` is not part of the event: `of_message` returns its values from the messages and payloads
    of the rows. Such fields come last, and decoders never see them.
    """

    name: str  # as dead-letter headers have it
    path: tuple[str, ...]  # keys from the event down: ("device_ip",) or ("geo", "country")
    convert: Convert
    required: bool = True
    missing: Any = None
    target: str = ""  # of convert, as worker_native names it; empty: only Python converts it
    exact: bool = False  # convert also takes Decimal: a number of more digits than a float keeps is read from the text
    of_message: Callable[[Sequence[Message], Sequence[bytes]], list[Any]] | None = None


class RecordBatch(NamedTuple):
    """Some thousand consecutive records of one partition, as read."""

    topic: str
    partition: int
    payloads: Sequence[bytes | None]  # None is a tombstone
    offsets: Sequence[int]  # ascending; with gaps where the log was compacted or a transaction aborted
    end: int  # the offset after the last record
    timestamp_ms: int  # the first record's, as Kafka has it
    messages: Sequence[Message] = ()  # they pin the client's fetch buffers: drop them after decoding

    def until(self, count: int) -> RecordBatch:
        """Return the first `count` records."""
        if count >= len(self.payloads):
            return self
        return self._replace(
            payloads=self.payloads[:count],
            offsets=self.offsets[:count],
            end=self.offsets[count],
            messages=self.messages[:count],
        )

    def since(self, index: int) -> RecordBatch:
        """Return all but the first `index` records."""
        if index == 0:
            return self
        return self._replace(
            payloads=self.payloads[index:], offsets=self.offsets[index:], messages=self.messages[index:]
        )


class Reject(NamedTuple):
    """An event that is no row, for the first of the fields that is at fault."""

    index: int  # type: ignore[assignment]  # in the payloads; hides tuple.index
    reason: str  # one of counters.REJECT_REASONS
    field: str  # empty where the whole event is invalid
    error: str = ""  # details, without any value of the event


class Parts(list[Any]):
    """A column in several parts, each as a field's convert returns it; all columns of a Decoded have as many."""


class Decoded(NamedTuple):
    """Payloads as columns: `rows` of them. The others are rejected or, if they are neither, skipped."""

    columns: tuple[Any, ...]  # what each field's convert returned, in the order of the fields; or Parts of it
    kept: Sequence[int] | None  # which payloads are the rows, ascending; None: all of them
    rows: int
    rejects: Sequence[Reject]  # ascending by index


Decode = Callable[[Sequence[bytes], Sequence[Field]], Decoded]
"""The payloads of a record batch, none of them a tombstone, and the wanted fields → columns and rejects."""
