"""A batch: one range of offsets of one partition, in the sink's form, from its first record to its acknowledgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from worker.core.errors import WorkerError
from worker.core.records import Decoded, Field, RecordBatch


class DeadLetter(NamedTuple):
    """An event that can never be written, on its way to the dead-letter topic."""

    offset: int
    payload: bytes
    reason: str  # one of counters.REJECT_REASONS
    field: str  # empty where the whole event is invalid


class BatchState(Enum):
    """How far a batch has come. Only the methods of Batch change it.

    FILLING → SEALED → ANNOUNCED → IN_DOUBT → STORED → ACKNOWLEDGED. A batch without rows needs no intent, and a sink
    without exactly-once has none. The range of an intent that an earlier owner left is sealed straight to IN_DOUBT.
    """

    FILLING = auto()  # records are still added
    SEALED = auto()  # its range is fixed
    ANNOUNCED = auto()  # its intent is committed, and nothing was sent yet
    IN_DOUBT = auto()  # rows may be in the store: an answer was lost, or an earlier owner announced the range
    STORED = auto()  # the store has acknowledged all rows
    ACKNOWLEDGED = auto()  # so has the dead-letter topic; only the commit is left


class WriteResult(NamedTuple):
    """What one try to write a batch has reached."""

    rows_stored: bool  # the store has acknowledged all rows
    dead_letters_stored: bool  # so has the dead-letter topic all of them
    in_doubt: bool = False  # rows were sent, and whether they were stored is unknown
    error: WorkerError | None = None  # why something is left to do


@dataclass(slots=True, eq=False)
class Batch:
    """The range [start, end) of one partition.

    `columns[i]` are the parts of `fields[i]`, one per record batch, in whatever form its converter gave; `offsets` are
    the offsets of the rows, one sequence per record batch.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int
    opened: float  # time.monotonic() when the first records arrived
    fields: Sequence[Field]
    columns: list[list[Any]]
    offsets: list[Sequence[int]] = field(default_factory=list)
    rows: int = 0
    consumed: int = 0
    size: int = 0  # bytes of the payloads
    skipped: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)  # (timestamp_ms, rows) of each record batch
    keeps_payloads: bool = False  # while a refused row is searched for
    payloads: list[bytes] = field(default_factory=list)  # of the rows, if it keeps them
    intent_time_ms: int = 0  # Unix time of the first intent for this range, maybe an earlier owner's; 0: none yet
    replayed: bool = False  # the range is that of an intent whose outcome is unknown
    recut: bool = False  # a part of a range that was sent whole: its rows may be stored under another token
    attempts: int = 0  # tries to write it
    state: BatchState = BatchState.FILLING

    @property
    def in_doubt(self) -> bool:
        """Whether its rows may be in the store already."""
        return self.state is BatchState.IN_DOUBT

    @property
    def needs_intent(self) -> bool:
        """Whether rows are still to be written."""
        return self.rows > 0 and self.state in (BatchState.SEALED, BatchState.ANNOUNCED, BatchState.IN_DOUBT)

    def add(self, records: RecordBatch, payloads: Sequence[bytes], offsets: Sequence[int], decoded: Decoded) -> None:
        """Append records. `payloads` and `offsets` are those of `records` without tombstones."""
        assert self.state is BatchState.FILLING
        self.dead_letters += [
            DeadLetter(offsets[reject.index], payloads[reject.index], reject.reason, reject.field)
            for reject in decoded.rejects
        ]
        self.size += len(b"".join(payloads))  # a fifth of the time of adding lengths up
        self.skipped += len(records.payloads) - len(payloads)
        if decoded.kept is not None:
            payloads, offsets = [payloads[i] for i in decoded.kept], [offsets[i] for i in decoded.kept]
        if decoded.rows:
            for parts, part in zip(self.columns, decoded.columns, strict=True):
                parts.append(part)
            self.offsets.append(offsets)
            self.arrivals.append((records.timestamp_ms, decoded.rows))
        if self.keeps_payloads:
            self.payloads += payloads
        self.rows += decoded.rows
        self.consumed += len(records.payloads)
        self.end = records.end

    def extend(self, offset: int) -> None:
        """Include the offsets up to `offset`, which no record has."""
        assert self.state is BatchState.FILLING
        self.end = offset

    def seal(self) -> None:
        """Fix the range."""
        assert self.state is BatchState.FILLING
        self.state = BatchState.IN_DOUBT if self.replayed or self.recut else BatchState.SEALED

    def announce(self, now_ms: int) -> None:
        """Give it the time of its first intent, which is about to be committed."""
        self.intent_time_ms = self.intent_time_ms or now_ms
        if self.state is BatchState.SEALED:
            self.state = BatchState.ANNOUNCED

    def begin_attempt(self) -> None:
        """Count a try to write it."""
        self.attempts += 1

    def apply(self, result: WriteResult) -> None:
        """Take over what a try to write it has reached."""
        if result.rows_stored:
            self.state = BatchState.ACKNOWLEDGED if result.dead_letters_stored else BatchState.STORED
        elif result.in_doubt:
            self.state = BatchState.IN_DOUBT

    def reject_only_row(self, reason: str) -> None:
        """Make its only row a dead letter: the store refuses it for its content, so it is not stored."""
        assert self.rows == 1 == len(self.payloads)
        self.dead_letters.append(DeadLetter(self.offsets[0][0], self.payloads[0], reason, ""))
        self.rows = 0
        self.state = BatchState.STORED
