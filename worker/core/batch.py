"""A batch: one range of offsets of one partition, already in the sink's form, until the store has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Convert = Callable[[list[Any]], Any]
"""A column of JSON values → the sink's part for these rows.

Raises BadValue, TypeError, ValueError, OverflowError or KeyError if and only if it would
raise for one of the values alone.
"""


class Field(NamedTuple):
    """A value that the sink stores of each event, and its path in the event.

    A required field must be present; it may be null. If an optional field is missing, or a parent of it is missing or
    null, `convert` gets None, as for null.
    """

    name: str  # as in the headers of a dead letter
    path: tuple[str, ...]  # keys from the event down: ("device_ip",) or ("geo", "country")
    convert: Convert
    required: bool = True


Key = tuple[str, int]  # topic, partition


class RecordBatch(NamedTuple):
    """Up to 1000 consecutive messages of one partition, as read."""

    topic: str
    partition: int
    payloads: list[bytes | None]  # None is a tombstone
    offsets: Sequence[int]  # ascending; compaction and aborted transactions leave gaps
    end: int  # the last offset plus 1
    timestamp_ms: int  # Kafka's timestamp of the first message


class DeadLetter(NamedTuple):
    """An event that can never be written and goes to the dead-letter topic."""

    offset: int
    payload: bytes
    reason: str  # one of counters.REJECT_REASONS
    field: str  # empty if the whole event is invalid


@dataclass(slots=True, eq=False)
class Batch:
    """The range [start, end) of one partition.

    `columns[i]` are the parts of `fields[i]`, one per record batch, in the form that its converter returned. `offsets`
    are the offsets of the rows, one sequence per record batch.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int
    opened: float  # time.monotonic() when the first record batch arrived
    fields: Sequence[Field]
    columns: list[list[Any]]
    offsets: list[Sequence[int]] = field(default_factory=list)
    rows: int = 0
    consumed: int = 0
    size: int = 0  # bytes of the payloads
    skipped: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)  # (timestamp_ms, rows) of each record batch
    payloads: list[bytes] | None = None  # of the rows; kept only while the batch is bisected
    intent_time_ms: int = 0  # Unix time of the range's first intent, perhaps an earlier owner's; 0: none yet
    in_doubt: bool = False  # the rows may be stored already: an earlier owner's intent, or a lost answer
    written: bool = False  # the store has acknowledged the rows
    dead_letters_written: bool = False  # the dead-letter topic has acknowledged them
