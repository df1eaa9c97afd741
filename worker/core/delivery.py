"""The delivery protocol's decisions: intents, tokens, takeover, and which offset may be committed. No I/O.

The state lives in the consumer group's own commits. Before the range [a, b) of a partition is inserted, offset `a` is
committed together with an *intent* that names the range. The insert carries a deduplication token made of the same
numbers. The next intent, or a clean stop, commits `b`. The next owner of the partition finds either a plain offset and
continues there, or an intent, forms exactly that block again and inserts it with the same token, so that ClickHouse
drops it if it was stored. A member that was expelled from the group cannot commit an intent, and so does not insert.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
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
    recut_end: int = 0  # rows up to this offset may be stored under another token

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join((_VERSION, self.topic_id, *map(str, self[1:] if self.recut_end else self[1:-1])))


def plain(topic_id: str) -> str:
    """Return the metadata of a commit without an intent: which topic its offset is of.

    Without it, a broker would apply the commit to a topic of the same name that was created later.
    """
    return f"{_VERSION};{topic_id}"


def start_marker(topic_id: str, start: str) -> str:
    """Return the metadata of the commit that says where the group begins: nothing of the partition was read before.

    `start` is the option's value.
    """
    return f"{plain(topic_id)};{'latest' if start == 'latest' else 'time'}"


def _parse(metadata: str | None) -> list[str]:
    """Return the topic id and what follows it in a commit's metadata; nothing where another tool committed."""
    version, *parts = (metadata or "").split(";")
    return parts if version == _VERSION else []


def parse_start_marker(metadata: str | None) -> str:
    """Return `latest` or `time` for a commit with a start marker, else an empty text."""
    parts = _parse(metadata)
    return parts[1] if len(parts) == 2 else ""


def of_another_topic(metadata: str | None, topic_id: str) -> bool:
    """Whether a commit was made for a deleted topic of this name. Commits of other tools never are."""
    parts = _parse(metadata)
    return bool(parts) and parts[0] != topic_id


def parse_intent(metadata: str | None) -> Intent | None:
    """Return the intent in a commit's metadata; None where there is none, as in commits of other tools."""
    parts = _parse(metadata)
    try:
        start, end, *numbers = map(int, parts[1:])
    except ValueError:
        return None
    if len(numbers) not in (2, 3):
        return None
    return Intent(parts[0], start, end, *numbers) if 0 <= start < end else None


def intent_of(batch: Batch) -> Intent:
    recut_end = batch.recut_end if batch.recut else 0
    return Intent(batch.topic_id, batch.start, batch.end, batch.rows, batch.intent_time_ms, recut_end)


def token(batch: Batch) -> str:
    """Return the deduplication token of a batch's insert: the same for whoever forms the range again."""
    return f"worker/{batch.topic_id}/{batch.partition}/{batch.start}-{batch.end}"


def token_decides(batch: Batch, dedup_retention_ms: float, now_ms: float) -> bool:
    """Whether the store certainly drops the rows of this batch that it has, by the token alone.

    If not, its rows have to be looked up by their origin. The token comes first, because only the token tells a topic
    from an earlier one of the same name, whose rows may have the same offsets.
    """
    if not batch.in_doubt:
        return True
    return not batch.recut and now_ms - batch.intent_time_ms < dedup_retention_ms


class Resume(NamedTuple):
    """Where a newly assigned partition continues."""

    position: int  # the first offset to read
    boundary: int | None = None  # an offset that a batch must end at exactly
    intent_time_ms: int = 0  # when the intent for [position, boundary) was committed; 0: it is no intent's range
    intent_rows: int = 0  # how many rows the block of that intent had
    end: int | None = None  # an offset from which on nothing is read
    recut_end: int = 0  # rows up to this offset may be stored under another token

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is to be read."""
        return self.end is not None and self.position >= self.end


class Committed(NamedTuple):
    """A partition's commit, and the bounds of its log, at its assignment."""

    offset: int | None  # None: never committed
    metadata: str | None
    topic_id: str
    log_start: int
    log_end: int
    end: int | None = None  # of `--until`


class DataLost(Exception):
    """The log begins after the committed offset: retention has removed events that nobody has read."""

    def __init__(self, committed: Committed, intent: Intent | None) -> None:
        super().__init__(f"offset {committed.offset} is committed but the log begins at {committed.log_start}")
        self.intent = intent


def resume(committed: Committed, accounted_offset: int, exactly_once: bool) -> Resume:
    """Decide where to continue from the group's commit and its metadata.

    Nothing is read from the end on, except what an intent announces. Raises DataLost where the log no longer has what
    the commit points at.
    """
    offset, metadata, topic_id, log_start, _, end = committed
    if offset is None or of_another_topic(metadata, topic_id):
        return Resume(log_start, end=end)
    intent = parse_intent(metadata)
    announced = intent if exactly_once and intent is not None and intent.start == offset else None
    if offset < log_start and (announced or end is None or offset < end):
        raise DataLost(committed, intent)
    if announced:
        end = None if end is None else max(end, announced.end)
        return Resume(offset, announced.end, announced.time_ms, announced.rows, end, announced.recut_end)
    # A batch lies either wholly before or wholly after what this supervisor has already counted.
    return Resume(offset, accounted_offset if accounted_offset > offset else None, end=end)


class PartitionState(Enum):
    """What one assigned partition is doing. Only Progress changes it; worker/README.md has the diagram."""

    WAITING_FOR_SINK = "waiting for its sink"
    REPLAYING = "replaying an intent"
    CONSUMING = "consuming"
    BISECTING = "bisecting"
    STOPPED = "stopped"


@dataclass(slots=True)
class Progress:
    """How far one assigned partition has come.

    `position` is the next offset to read, `acknowledged` the offset up to which every event is accounted for,
    `committed` the offset that the group knows.
    """

    state: PartitionState = PartitionState.WAITING_FOR_SINK
    position: int = 0
    acknowledged: int = 0
    committed: int = 0
    boundary: int | None = None  # a batch that starts before it ends there at the latest
    intent_time_ms: int = 0  # REPLAYING: when the intent for [position, boundary) was committed
    intent_rows: int = 0  # REPLAYING: how many rows the block had then
    limit: int | None = None  # BISECTING: events in a batch at most
    end: int | None = None  # an offset from which on nothing is read
    recut_end: int = 0  # batches that start before it are parts of a range that was sent whole

    def start(self, at: Resume) -> None:
        """Begin where `resume` said."""
        self.position = self.acknowledged = self.committed = at.position
        self.boundary, self.intent_time_ms, self.end = at.boundary, at.intent_time_ms, at.end
        self.intent_rows, self.recut_end = at.intent_rows, at.recut_end
        self.state = PartitionState.REPLAYING if at.intent_time_ms else PartitionState.CONSUMING

    def stop(self) -> None:
        """Read no more of the partition until it is assigned anew."""
        self.state = PartitionState.STOPPED

    @property
    def started(self) -> bool:
        """Whether it is known where the partition begins."""
        return self.state not in (PartitionState.WAITING_FOR_SINK, PartitionState.STOPPED)

    @property
    def is_at_end(self) -> bool:
        """Whether everything before `end` was read."""
        return self.end is not None and self.position >= self.end

    @property
    def replaying(self) -> bool:
        """Whether the batch at `position` is that of an intent."""
        return self.state is PartitionState.REPLAYING and self.next_boundary() is not None

    def next_boundary(self) -> int | None:
        """Return the offset that the batch at `position` must not cross, if there is one."""
        return self.boundary if self.boundary is not None and self.position < self.boundary else None

    def acknowledge(self, batch: Batch, batch_rows: int) -> None:
        """Account for a batch: its rows are in the store, its dead letters in their topic."""
        self.acknowledged = batch.end
        if self.limit is not None:
            self.limit = self.limit * 2 if self.limit * 2 < batch_rows else None
        if self.state is not PartitionState.STOPPED:
            self.state = PartitionState.CONSUMING if self.limit is None else PartitionState.BISECTING

    def advance(self, offset: int) -> None:
        self.position = offset

    def commit(self, offset: int) -> None:
        """Note what the group knows now."""
        self.committed = offset

    def bisect(self, batch: Batch) -> None:
        """Read a refused batch again in ranges of half its size.

        Each has an intent of its own, which replaces the refused batch's. If some rows of the refused batch may be
        stored, so may those of its parts, under its token.
        """
        self.limit = max(1, batch.consumed // 2)
        self.state = PartitionState.BISECTING
        if batch.in_doubt:
            self.recut_end = max(self.recut_end, batch.end)

    def replay(self, batch: Batch) -> None:
        """Form the same block again: a try to write it may have been stored."""
        self.boundary, self.intent_time_ms, self.intent_rows = batch.end, batch.intent_time_ms, batch.rows
        self.recut_end = max(self.recut_end, batch.recut_end)
        self.state = PartitionState.REPLAYING

    def rewind(self) -> None:
        """Read everything again that is not accounted for."""
        self.position = self.acknowledged
