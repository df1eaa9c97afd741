"""The delivery protocol's decisions: intents, tokens, takeover, and which offset may be committed. No I/O.

The consumer group's own commits hold the state. Before the range [a, b) of a partition is inserted, offset `a` is
committed together with an *intent* that names the range. The insert carries a deduplication token made of the same
numbers. The next intent, or a clean stop, commits `b`. The partition's next owner finds a plain offset and continues
there, or it finds an intent, forms exactly that block again and inserts it with the same token, so that ClickHouse
drops it if it is stored already. A member that was expelled from the group cannot commit an intent, and so does not
insert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from worker.core.batch import Batch

_VERSION = "v1"


class Intent(NamedTuple):
    """The block that a partition's owner was about to insert: `rows` rows from the offsets [start, end)."""

    topic_id: str
    start: int
    end: int
    rows: int
    time_ms: int  # Unix time of the commit

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join((_VERSION, self.topic_id, *map(str, self[1:])))


def plain(topic_id: str) -> str:
    """Return the metadata of a commit without an intent: the id of the topic that the offset belongs to.

    A broker would accept the offset for a recreated topic of the same name, too.
    """
    return f"{_VERSION};{topic_id}"


def of_another_topic(metadata: str | None, topic_id: str) -> bool:
    """Whether a commit was made for a deleted topic of the same name. False for other tools' commits."""
    version, *parts = (metadata or "").split(";")
    return version == _VERSION and bool(parts) and parts[0] != topic_id


def parse_intent(metadata: str | None) -> Intent | None:
    """Parse the intent in a commit's metadata; None if it has none, as in other tools' commits."""
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
    """Return the deduplication token of a batch's insert: every owner that forms the range again gets the same."""
    return f"worker/{batch.topic_id}/{batch.partition}/{batch.start}-{batch.end}"


class Resume(NamedTuple):
    """Where a newly assigned partition continues."""

    position: int  # the first offset to read
    until: int | None = None  # an offset at which a batch must end exactly
    intent_time_ms: int = 0  # when the intent for [position, until) was committed; 0: there is no intent


class DataLost(Exception):
    """The log begins after the committed offset: retention has removed unread events."""

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
    """Decide where to continue, from the group's commit (None: never committed) and its metadata.

    Raises DataLost if the log begins after the committed offset.
    """
    if committed is None or of_another_topic(metadata, topic_id):
        return Resume(log_start)
    intent = parse_intent(metadata)
    if committed < log_start:
        raise DataLost(committed, log_start, intent)
    if exactly_once and intent is not None and intent.start == committed:
        return Resume(committed, intent.end, intent.time_ms)
    # A batch lies either wholly before or wholly after the offset up to which this supervisor has counted.
    return Resume(committed, accounted_offset if accounted_offset > committed else None)


@dataclass(slots=True)
class Progress:
    """The offsets of one assigned partition.

    `position` is the next offset to read. Every event before `acked` is accounted for. `committed` is the group's
    commit. A batch that starts before `until` ends there at the latest, and holds at most `limit` events.
    """

    position: int
    acked: int
    committed: int
    until: int | None = None
    intent_time_ms: int = 0
    limit: int | None = None

    @classmethod
    def at(cls, start: Resume) -> Progress:
        """Begin where `resume` decided."""
        return cls(start.position, start.position, start.position, start.until, start.intent_time_ms)

    def boundary(self) -> int | None:
        """Return the offset that the batch at `position` must not cross; None if there is none."""
        return self.until if self.until is not None and self.position < self.until else None

    @property
    def resuming(self) -> bool:
        """Whether the batch at `position` is that of an intent found at takeover."""
        return self.intent_time_ms > 0 and self.boundary() is not None

    def settled(self, batch: Batch, batch_rows: int) -> None:
        """Record that the store has acknowledged the batch's rows, and the dead-letter topic its dead letters."""
        self.acked = batch.end
        self.intent_time_ms = 0
        if self.limit is not None:
            self.limit = self.limit * 2 if self.limit * 2 < batch_rows else None

    def refused(self, batch: Batch) -> bool:
        """Bisect the range of a refused batch; True if the batch is only the refused row, and no bisection is needed.

        Smaller ranges replace the intent of the refused range, of which nothing is stored. The row is identified only
        once it was read alone, into a batch that kept its payload.
        """
        if batch.consumed == 1 and batch.payloads is not None:
            return True
        self.limit = max(1, batch.consumed // 2)
        self.intent_time_ms = 0
        return False

    def replay(self, batch: Batch) -> None:
        """Form the same block again: an earlier attempt may have stored it."""
        self.until, self.intent_time_ms = batch.end, batch.intent_time_ms

    def rewind(self) -> None:
        """Read again everything that is not accounted for."""
        self.position = self.acked
