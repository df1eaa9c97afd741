"""An assigned partition: record batches go in, batches that end where the protocol wants them come out. No I/O."""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import cast

from worker.core.batch import Batch
from worker.core.counters import Ledger
from worker.core.delivery import PartitionState, Progress, Resume
from worker.core.records import Decode, Field, Key, RecordBatch
from worker.core.schemas import SchemaNeeded
from worker.decoding.metadata import decode_with_metadata


class Partition:
    """What one consumer has read of a partition and not accounted for yet.

    `sealed` are whole batches in the order of the log; only the first is ever written. `open` still grows. Before
    `start` the partition waits for its sink, and has no ledger.
    """

    def __init__(self, key: Key, batch_rows: int, decode: Decode) -> None:
        self.key = key
        self.topic, self.partition = key
        self.open: Batch | None = None
        self.sealed: deque[Batch] = deque()
        self._progress = Progress()
        self._batch_rows = batch_rows
        self._decode = decode
        self._ledger: Ledger | None = None
        self._fields: Sequence[Field] = ()
        self._event_fields: Sequence[Field] = ()  # of `_fields`
        self._metadata: Sequence[Field] = ()  # likewise
        self._accounted_offset = 0
        self._read_error_at: int | None = None
        self._needed: SchemaNeeded | None = None

    def start(self, ledger: Ledger, at: Resume, fields: Sequence[Field], accounted_offset: int) -> None:
        """Begin to consume. Events below `accounted_offset` were counted by an earlier owner under this supervisor."""
        self._ledger, self._accounted_offset = ledger, accounted_offset
        self._use(fields)
        self._progress.start(at)
        ledger.set("end", at.end or 0)
        ledger.set("assigned", 1)

    # what it is doing

    def is_formed_for(self, fields: Sequence[Field]) -> bool:
        """Whether it decodes these fields, and has no others in batches that are not stored."""
        batches = [*self.sealed, *([self.open] if self.open else [])]
        return self._fields is fields and all(batch.fields is fields for batch in batches if not batch.is_stored)

    @property
    def state(self) -> PartitionState:
        return self._progress.state

    @property
    def ledger(self) -> Ledger:
        """Its accounts; only once it has started."""
        assert self._ledger is not None, "the partition waits for its sink"
        return self._ledger

    @property
    def has_started(self) -> bool:
        """Whether it has, or had, something to account for."""
        return self._ledger is not None

    @property
    def can_be_read(self) -> bool:
        return self._progress.started and not self._progress.is_at_end

    @property
    def is_at_end(self) -> bool:
        """Whether nothing more is to be read of it: see `--until`."""
        return self._progress.started and self._progress.is_at_end

    @property
    def position(self) -> int:
        return self._progress.position

    @property
    def acknowledged(self) -> int:
        return self._progress.acknowledged

    @property
    def pending_bytes(self) -> int:
        """Bytes of the payloads that were read and are not accounted for."""
        return sum(batch.size for batch in self.sealed) + (self.open.size if self.open else 0)

    @property
    def filling_since(self) -> float | None:
        """The time (time.monotonic) at which the open batch began; None where none may be sealed early.

        The block of an intent ends where the intent says: a shorter block has another token, and would double its rows.
        """
        return self.open.opened if self.open is not None and not self._progress.replaying else None

    @property
    def has_uncommitted(self) -> bool:
        """Whether more is accounted for than the group knows."""
        return self._progress.acknowledged > self._progress.committed

    @property
    def is_settled(self) -> bool:
        """Whether everything that was read is accounted for, and the group knows."""
        return not (self.open or self.sealed or self.has_uncommitted)

    # records in

    @property
    def needed(self) -> SchemaNeeded | None:
        """What the event at `position` needs to be decoded. Until `decode_again` nothing after it is taken."""
        return self._needed

    def decode_again(self) -> None:
        """Take records again, which have to be read from `position` on."""
        self._needed = None

    def take(self, records: RecordBatch) -> None:
        """Decode records into batches, cut where a batch has to end."""
        if not self.can_be_read or self._needed:
            return
        try:
            self._take(records)
        except SchemaNeeded as needed:
            self._needed = needed
            if self.open and self.open.start == self.open.end:  # it was begun for the records that are left
                self.open = None

    def _take(self, records: RecordBatch) -> None:
        progress = self._progress
        records = records.since(bisect_left(records.offsets, progress.position))  # a seek may have gone back too far
        for cut_at in (progress.next_boundary(), progress.end):
            if cut_at is not None and records.end >= cut_at:
                cut = bisect_left(records.offsets, cut_at)
                self._add(records.until(cut)._replace(end=cut_at))  # not the offset of the next record
                self._extend(cut_at)
                self.seal()
                records = records.since(cut)
        if not progress.is_at_end:
            self._add(records)

    def advance_to(self, offset: int) -> None:
        """Account for the offsets up to `offset` that no record has: the end of a range, or of the log.

        Transaction markers and compaction leave such offsets; without this, lag would never be 0.
        """
        if not self.can_be_read or self._needed:
            return
        progress = self._progress
        for cut_at in (progress.next_boundary(), progress.end):
            if cut_at is not None and offset >= cut_at:
                self._extend(cut_at)
                self.seal()
        if not progress.is_at_end:
            self._extend(offset)

    def seal(self) -> None:
        """Fix the range of the open batch."""
        if self.open is not None:
            # Another number of rows: a schema is known by now that was not, or the table has other types. The token is
            # of another block then, and only the origin of the rows tells which are stored.
            if self.open.replayed and self.open.rows != self._progress.intent_rows:
                self.open.recut_end = self.open.end
            self.open.seal()
            self.sealed.append(self.open)
            self.open = None

    # the first sealed batch, on its way

    def commit(self, offset: int) -> None:
        self._progress.commit(offset)

    def acknowledge(self) -> bool:
        """Account for the first sealed batch.

        Returns True where the batches behind it were discarded, to be read again in larger ones.
        """
        batch = self.sealed.popleft()
        ledger = self.ledger
        if batch.end <= self._accounted_offset:
            ledger.add("replayed", batch.consumed)
        else:
            ledger.add("written", batch.rows)
            ledger.add("dead_lettered", len(batch.dead_letters))
            ledger.add("skipped", batch.skipped)
        ledger.add("in_flight", -batch.consumed)
        ledger.set("accounted_offset", batch.end)
        was_limited = self._progress.limit is not None
        self._progress.acknowledge(batch, self._batch_rows)
        if not (was_limited and self.sealed):
            return False
        self.discard()
        return True

    def bisect(self, error: str) -> bool:
        """Search for the row that the store refuses in the first sealed batch.

        Returns True where that batch is the one row, which is a dead letter now. Otherwise the range has to be read
        again, from `position`, in smaller batches.
        """
        batch = self.sealed[0]
        if batch.consumed == 1 and batch.payloads:
            batch.reject_only_row("store_refused", error)
            return True
        self._split()
        return False

    def shrink_batches(self) -> None:
        """Discard what is not accounted for, to be read again: from now on in batches of half the first one's size."""
        self._batch_rows = max(1, self.sealed[0].consumed // 2)
        self._split()

    def rebuild(self, fields: Sequence[Field]) -> None:
        """Discard what is not stored, to be read again in another form; a block in doubt keeps its range."""
        self._use(fields)
        if self.sealed and self.sealed[0].is_stored:
            self.discard_backlog()
            return
        if self.sealed and self.sealed[0].in_doubt:
            self._progress.replay(self.sealed[0])
        self.discard()

    def discard(self) -> None:
        """Drop what is not accounted for: whoever reads on from `acknowledged` accounts for it."""
        self.open = None
        self.sealed.clear()
        if self._ledger is not None:
            self._ledger.replay(self._ledger.get("in_flight"))
        self._progress.rewind()

    def discard_backlog(self) -> bool:
        """Drop all but the first sealed batch, and return whether there was something to drop."""
        backlog = [*list(self.sealed)[1:], *([self.open] if self.open else [])]
        if not self.can_be_read or not backlog:
            return False
        self.ledger.replay(sum(batch.consumed for batch in backlog))
        self.sealed = deque(list(self.sealed)[:1])
        self.open = None
        self._progress.advance(self.sealed[0].end if self.sealed else self._progress.acknowledged)
        return True

    def discard_unfinished_replay(self) -> None:
        """Drop a block of an intent that is not complete: the next owner finds the intent."""
        if self.open and self._progress.replaying:
            self.discard()

    def stop(self) -> None:
        """Read no more until it is assigned anew. What was read goes its way."""
        self._progress.stop()

    def release(self) -> None:
        self.discard()
        if self._ledger is not None:
            self._ledger.set("assigned", 0)

    def confirm_read_error(self) -> bool:
        """Whether reading at this position has failed before; the first error there may be stale."""
        confirmed = self._read_error_at == self.position
        self._read_error_at = self.position
        return confirmed

    def _split(self) -> None:
        """Discard what is not accounted for, to be read again in batches of half the first one's size."""
        self._progress.bisect(self.sealed[0])
        self.discard()

    def _add(self, records: RecordBatch) -> None:
        limit = self._progress.limit or (sys.maxsize if self._progress.replaying else self._batch_rows)
        while records.payloads:
            batch = self.open or self._begin()
            head = records.until(limit - batch.consumed)
            self._append(batch, head)
            if batch.consumed >= limit:
                self.seal()
            if head is records:
                return
            records = records.since(len(head.payloads))

    def _begin(self) -> Batch:
        progress = self._progress
        replaying = progress.replaying
        self.open = Batch(
            self.topic,
            self.ledger.topic_id,
            self.partition,
            start=progress.position,
            end=progress.position,
            opened=time.monotonic(),
            fields=self._fields,
            columns=[[] for _ in self._fields],
            keeps_payloads=progress.limit == 1,
            intent_time_ms=progress.intent_time_ms if replaying else 0,
            replayed=replaying,
            recut_end=progress.recut_end,
        )
        return self.open

    def _extend(self, offset: int) -> None:
        if offset > self._progress.position:
            (self.open or self._begin()).extend(offset)
            self._progress.advance(offset)

    def _use(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._metadata = tuple(field for field in fields if field.of_message)
        self._event_fields = fields[: len(fields) - len(self._metadata)] if self._metadata else fields

    def _append(self, batch: Batch, records: RecordBatch) -> None:
        payloads, messages, present = records.payloads, records.messages, None
        if None in payloads:
            present = [i for i, payload in enumerate(payloads) if payload is not None]
            payloads = [payloads[i] for i in present]
            messages = [messages[i] for i in present] if messages else messages
        size = batch.size
        decoded = decode_with_metadata(
            self._decode, cast("list[bytes]", payloads), messages, self._event_fields, self._metadata
        )
        batch.add(records, present, decoded)
        self._progress.advance(records.end)
        count = len(records.payloads)
        self.ledger.add("consumed", count)
        self.ledger.add("bytes", batch.size - size)
        self.ledger.add("in_flight", count)
