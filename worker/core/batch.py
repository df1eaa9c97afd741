"""A batch: one range of offsets of one partition, already in the sink's form, on its way into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Convert = Callable[[list[Any]], Any]
"""A whole column of JSON values → the sink's part for these rows, in one piece.

Raises BadValue, TypeError, ValueError, OverflowError or KeyError if any value is bad, and exactly if it would raise for
one of the values alone.
"""


class Field(NamedTuple):
    """A value that the sink stores of each event, and where it stands.

    A required field must be there, be it null. One that is not required and is missing, or has a parent that is missing
    or null, is handed to convert as None, as null is.
    """

    name: str  # as dead-letter headers have it
    path: tuple[str, ...]  # keys from the event down: ("device_ip",) or ("geo", "country")
    convert: Convert
    required: bool = True


Key = tuple[str, int]  # topic, partition


class RecordBatch(NamedTuple):
    """Up to a thousand consecutive messages of one partition, as read."""

    topic: str
    partition: int
    payloads: list[bytes | None]  # None is a tombstone
    offsets: Sequence[int]  # ascending; with gaps where the log was compacted or a transaction aborted
    end: int  # the offset after the last one
    timestamp_ms: int  # the first message's, as Kafka has it


class DeadLetter(NamedTuple):
    """An event that can never be written, on its way to the dead-letter topic."""

    offset: int
    payload: bytes
    reason: str  # one of stats.REJECT_REASONS
    field: str  # empty where it is the whole event


@dataclass(slots=True, eq=False)
class Batch:
    """The range [start, end) of one partition.

    `columns[i]` are the parts of `fields[i]`, one per chunk, in whatever form its converter gave; `offsets` are the
    offsets of the rows, one sequence per chunk.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int
    opened: float  # time.monotonic() when the first chunk arrived
    fields: Sequence[Field]
    columns: list[list[Any]]
    offsets: list[Sequence[int]] = field(default_factory=list)
    rows: int = 0
    consumed: int = 0
    size: int = 0  # bytes of the payloads
    skipped: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)  # (timestamp_ms, rows) of each chunk
    payloads: list[bytes] | None = None  # of the rows; kept only while a refused row is searched for
    intent_time_ms: int = 0  # Unix time of the first intent for this range, maybe an earlier owner's; 0 for none yet
    in_doubt: bool = False  # the rows may have landed already: an earlier owner's intent, or an answer that was lost
    written: bool = False  # the store has acknowledged the rows
    dead_letters_written: bool = False  # the dead-letter topic has acknowledged the letters
