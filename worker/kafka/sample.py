"""Reads a sample of the topic: events from the begin, the middle and the end of the partitions, or the newest only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from confluent_kafka import Message

from worker.config.settings import Settings
from worker.kafka.log_reader import LogReader

_RANGES = 60  # reading one takes 50 to 100 ms
_BYTES = 64 << 20
_METADATA = {"_key": Message.key, "_headers": Message.headers}
_POSITIONS = ("end", "begin", "middle")
_NEWEST, _NEWEST_BYTES = 5000, 8 << 20

Range = tuple[int, int, int]
"""Partition, first offset, end offset."""


def read_newest(settings: Settings) -> list[bytes]:
    """Return up to 5000 of the topic's last events, some from each partition; fewer if they exceed 8 MiB."""
    return read_sample(settings, _NEWEST, positions=_POSITIONS[:1], most_bytes=_NEWEST_BYTES)


def read_sample(
    settings: Settings,
    size: int,
    metadata: set[str] | None = None,
    *,
    positions: Sequence[str] = _POSITIONS,
    most_bytes: int = _BYTES,
) -> list[bytes]:
    """Return up to `size` events of the topic, in log order, without tombstones; fewer if they exceed `most_bytes`.

    Adds `_key` and `_headers` to `metadata` if messages have these. Raises Retryable if the brokers do not answer, and
    Fatal if they refuse this client.
    """
    payloads: list[bytes] = []
    with closing(LogReader(settings, settings.topic)) as log_reader:
        ranges = sample_ranges({p: log_reader.bounds(p) for p in range(log_reader.partitions())}, size, positions)
        for partition, start, end in ranges:
            payloads += _read(log_reader, partition, start, end, most_bytes // len(ranges), metadata)
    return payloads


def _read(
    log_reader: LogReader, partition: int, start: int, end: int, most_bytes: int, metadata: set[str] | None
) -> Iterator[bytes]:
    """Yield the payloads of a range until they exceed `most_bytes`; at least one."""
    size = 0
    for messages in log_reader.read(partition, start, end):
        if metadata is not None:
            metadata |= {name for name, has in _METADATA.items() if any(map(has, messages))}
        for message in messages:
            if (payload := message.value()) is not None:
                yield payload
                size += len(payload)
            if size > most_bytes:
                return


def sample_ranges(
    bounds: Mapping[int, tuple[int, int]], size: int, positions: Sequence[str] = _POSITIONS
) -> list[Range]:
    """Return disjoint ranges of up to `size` offsets in all, spread over the partitions and positions in each log.

    `bounds` has the log's start and end of each partition. With many partitions, or a small `size`, not every
    partition has a range at each position, or has one at all.
    """
    partitions = [partition for partition, (low, high) in bounds.items() if low < high]
    most = min(size, _RANGES)
    if not partitions or not most:
        return []
    if len(partitions) <= _RANGES and sum(bounds[p][1] - bounds[p][0] for p in partitions) <= size:
        return [(partition, *bounds[partition]) for partition in sorted(partitions)]
    partitions = partitions[:: -(-len(partitions) // most)]
    rounds = range(len(positions))
    cells = [(p, positions[(i + r) % len(positions)]) for r in rounds for i, p in enumerate(partitions)][:most]
    ranges: list[Range] = []
    for partition in partitions:
        chosen = [position for cell, position in cells if cell == partition]
        ranges += [(partition, *span) for span in _spans(*bounds[partition], size // len(cells), chosen)]
    return sorted(ranges)


def _spans(low: int, high: int, length: int, positions: Sequence[str]) -> list[tuple[int, int]]:
    """Return disjoint spans of this length in [low, high), one for each position; all of it if it is shorter."""
    if high - low <= length * len(positions):
        return [(low, high)]
    starts = {"begin": low, "middle": low + (high - low - length) // 2, "end": high - length}
    chosen = ("begin", "end") if len(positions) == 2 else positions  # which are disjoint
    return [(starts[position], starts[position] + length) for position in chosen]
