"""The delivery protocol's decisions: intents, tokens, take-over, and which offset may be committed. No I/O.

The state lives in the consumer group's own commits. Before the range [a, b) of a partition is inserted, offset `a` is
committed together with an *intent* that names the range; the insert carries a deduplication token made of the same
numbers; the next intent, or a clean stop, commits `b`. Whoever owns the partition next finds either a plain offset and
goes on there, or an intent and forms exactly that block again, with the same token, so that ClickHouse drops it if it
had landed. A member that was expelled from the group cannot commit an intent, and so does not insert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from worker.core.batch import Batch

_VERSION = "v1"


class Intent(NamedTuple):
    """What the owner of a partition was about to insert: one block of `rows` rows from the offsets [start, end)."""

    topic_id: str
    start: int
    end: int
    rows: int
    time_ms: int  # Unix time of the commit

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join((_VERSION, self.topic_id, *map(str, self[1:])))


def plain(topic_id: str) -> str:
    """Return the metadata of a commit without an intent: whose offset it is.

    A broker would take it for a topic of the same name that was made meanwhile.
    """
    return f"{_VERSION};{topic_id}"


def of_another_topic(metadata: str | None, topic_id: str) -> bool:
    """Whether a commit was made for a topic of this name that has been deleted since; other tools' commits are not."""
    version, *parts = (metadata or "").split(";")
    return version == _VERSION and bool(parts) and parts[0] != topic_id


def parse_intent(metadata: str | None) -> Intent | None:
    """Read an intent out of a commit's metadata; None where there is none, as other tools' commits have."""
    version, _, rest = (metadata or "").partition(";")
    parts = rest.split(";")
    if version != _VERSION or len(parts) != 5:
        return None
    try:
        start, end, rows, time_ms = map(int, parts[1:])
    except ValueError:
        return None
    return Intent(parts[0], start, end, rows, time_ms) if 0 <= start < end else None


def intent_of(batch: Batch) -> Intent:
    """Return the intent that announces a batch."""
    return Intent(batch.topic_id, batch.start, batch.end, batch.rows, batch.intent_time_ms)


def token(batch: Batch) -> str:
    """Return the deduplication token of a batch's insert: the same for whoever forms the range again."""
    return f"worker/{batch.topic_id}/{batch.partition}/{batch.start}-{batch.end}"


class Resume(NamedTuple):
    """Where a newly assigned partition goes on."""

    position: int  # the first offset to read
    until: int | None = None  # an offset that a batch must end at exactly
    intent_time_ms: int = 0  # when the intent for [position, until) was committed; 0: it is no intent's range


class DataLost(Exception):
    """The log begins after the committed offset: retention has removed events that nobody has read."""

    def __init__(self, committed: int, log_start: int, intent: Intent | None) -> None:
        super().__init__(f"offset {committed} is committed but the log begins at {log_start}")
        self.committed = committed
        self.log_start = log_start
        self.intent = intent


def resume(
    committed: int | None,
    metadata: str | None,
    topic_id: str,
    log_start: int,
    accounted_offset: int,
    exactly_once: bool,
) -> Resume:
    """Decide where to go on from the group's commit (None: never committed) and its metadata.

    Raises DataLost where the log no longer has what the commit points at.
    """
    if committed is None or of_another_topic(metadata, topic_id):
        return Resume(log_start)
    intent = parse_intent(metadata)
    if committed < log_start:
        raise DataLost(committed, log_start, intent)
    if exactly_once and intent is not None and intent.start == committed:
        return Resume(committed, intent.end, intent.time_ms)
    # A batch lies either wholly before or wholly after what this supervisor has already counted.
    return Resume(committed, accounted_offset if accounted_offset > committed else None)


@dataclass(slots=True)
class Progress:
    """How far one assigned partition has come.

    `position` is the next offset to read, `acked` the one up to which every event is accounted for, `committed` the one
    that the group knows. A batch that starts before `until` ends there at the latest, and holds `limit` events at most.
    """

    position: int
    acked: int
    committed: int
    until: int | None = None
    intent_time_ms: int = 0
    limit: int | None = None

    @classmethod
    def at(cls, start: Resume) -> Progress:
        """Begin where `resume` said."""
        return cls(start.position, start.position, start.position, start.until, start.intent_time_ms)

    def boundary(self) -> int | None:
        """Return the offset that the batch at `position` must not cross, if there is one."""
        return self.until if self.until is not None and self.position < self.until else None

    @property
    def resuming(self) -> bool:
        """Whether the batch at `position` is that of an intent found at the take-over."""
        return self.intent_time_ms > 0 and self.boundary() is not None

    def settled(self, batch: Batch, batch_rows: int) -> None:
        """Take a batch as accounted for: its rows acknowledged by the store, its letters by the dead-letter topic."""
        self.acked = batch.end
        self.intent_time_ms = 0
        if self.limit is not None:
            self.limit = self.limit * 2 if self.limit * 2 < batch_rows else None

    def refused(self, batch: Batch) -> bool:
        """Go back to look for the row that the store refuses; True when this batch is that one row.

        Smaller ranges replace the intent of the refused one, of which nothing has landed. The row is only known once it
        was read alone, into a batch that kept its payload.
        """
        if batch.consumed == 1 and batch.payloads is not None:
            return True
        self.limit = max(1, batch.consumed // 2)
        self.intent_time_ms = 0
        return False

    def replay(self, batch: Batch) -> None:
        """Have the same block formed again: a try to write it may have landed."""
        self.until, self.intent_time_ms = batch.end, batch.intent_time_ms

    def rewind(self) -> None:
        """Read everything that is not accounted for again."""
        self.position = self.acked
