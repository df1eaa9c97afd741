"""`verify` for Redis: count the topic's devices again into scratch keys, and compare these with the worker's key.

HyperLogLogs of the same devices are equal, in whatever order and however often the devices were added. So nothing is
missing if adding the recounted devices to the key does not change its count. Extra devices are certain only if the log
still has every event since its beginning.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TextIO, cast

from confluent_kafka import Message

from worker.commands.progress import ProgressBar
from worker.commands.verify.comparison import Ranges, notes
from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.errors import ExitCode
from worker.core.records import Decode
from worker.kafka.log_reader import LogReader
from worker.sinks.redis.nodes import Node, same_slot
from worker.sinks.redis.sink import RedisSink

_TTL_S = 86_400  # if this process dies before it deletes its keys
_BATCH_EVENTS = 100_000
_TIMEOUT_S = 60.0


@dataclass
class _Counted:
    """The events of a part of a partition's log."""

    events: int = 0
    skipped: int = 0
    invalid: array[int] = field(default_factory=lambda: array("q"))  # offsets of events without a valid device


def verify_redis(
    settings: Settings,
    log_reader: LogReader,
    decode: Decode,
    begins: Mapping[int, int],
    ends: Mapping[int, int],
    accounted: Mapping[int, int | None],
    dead_letters: Mapping[int, array[int]],
    limit: int,
    out: TextIO,
    bar: ProgressBar,
) -> int:
    """Compare the key with the events below the committed offsets; print the result, return OK or FAILED.

    `begins` has the offset where the group began, of each partition where it is not the log's start, and `ends`
    where `--until` ends it. `accounted` has the committed offset of each partition, `dead_letters` the offsets that
    have dead letters. `limit` is how many ranges without a dead letter are shown. If ClickHouse is written, too, it may
    refuse an event that is valid for Redis. So the key need not have the devices of events with dead letters.
    """
    key = settings.redis_key_name
    scratch = f"{same_slot(key)}:verify:{secrets.token_hex(6)}"
    copy, due, ahead = (f"{scratch}:{name}" for name in ("copy", "due", "ahead"))
    is_complete, lost = True, 0  # whether the log still has all of its events
    without_dead_letters = 0
    with closing(_Keys(settings)) as keys:
        try:
            keys.copy(key, copy)  # before the log's ends are read: no device in the copy is newer
            for partition, committed in sorted(accounted.items()):
                name = f"{log_reader.topic}[{partition}]"
                low, high = log_reader.bounds(partition)
                begin = min(max(low, begins.get(partition, 0)), high)
                stop = min(max(committed or 0, begin), high)
                refused = set(dead_letters.get(partition, ())) if len(settings.backends) > 1 else set()
                done = _add(settings, log_reader, decode, keys, (due, ahead), refused, partition, begin, stop, bar)
                later = _add(settings, log_reader, decode, keys, (ahead, ahead), (), partition, stop, high, bar)
                is_complete = is_complete and begin == 0 and done.events + later.events == high
                lost += committed is not None and committed < low
                without = Ranges(limit)
                without.add(sorted(set(done.invalid).difference(dead_letters.get(partition, ()))))
                without_dead_letters += without.count
                bar.clear()
                print(
                    f"{name}: {done.events} events, {len(done.invalid)} invalid, {done.skipped} skipped, "
                    f"without a dead letter {without.count}",
                    file=out,
                    flush=True,
                )
                for note in [
                    *([f"without a dead letter {without}"] if without.count else []),
                    *notes(committed, low, high, ends.get(partition)),
                ]:
                    print(f"{name}: {note}", file=out)
            stored, missing = keys.count(copy), keys.count(copy, due) - keys.count(copy)
            recounted, extra = keys.count(due), keys.count(copy, due, ahead) - keys.count(due, ahead)
        finally:
            keys.delete(copy, due, ahead)
    print(f"total: {stored} devices in {key}, {recounted} in the topic, missing {missing}, extra {extra}", file=out)
    if extra and not is_complete:
        print(
            "total: the log no longer has all events, or --start skips some: the extra devices may be from these",
            file=out,
        )
    return ExitCode.FAILED if missing or without_dead_letters or lost or (extra and is_complete) else ExitCode.OK


def _add(
    settings: Settings,
    log_reader: LogReader,
    decode: Decode,
    keys: _Keys,
    targets: tuple[str, str],
    refused: Collection[int],
    partition: int,
    start: int,
    end: int,
    bar: ProgressBar,
) -> _Counted:
    """Add the devices of [start, end) to a scratch key; those of the offsets `refused` to another."""
    counted = _Counted()
    fields = RedisSink(settings).fields  # all of them: an event is also invalid for a field that only windows need
    accepted, apart = (_Recount(settings, keys, key, log_reader.topic, partition) for key in targets)
    with closing(accepted), closing(apart):
        for messages in log_reader.read(partition, start, end):
            counted.events += len(messages)
            bar.advance(len(messages))
            events = [message for message in messages if message.value() is not None]
            counted.skipped += len(messages) - len(events)
            parts = [(accepted, events)]
            if refused:
                parts = [(accepted, [event for event in events if event.offset() not in refused])]
                parts += [(apart, [event for event in events if event.offset() in refused])]
            for recount, chosen in parts:
                decoded = decode(cast("list[bytes]", list(map(Message.value, chosen))), fields)
                counted.skipped += len(chosen) - decoded.rows - len(decoded.rejects)
                counted.invalid.extend(cast(int, chosen[reject.index].offset()) for reject in decoded.rejects)
                recount.add(decoded.columns[0], decoded.rows)
        accepted.write()
        apart.write()
    return counted


class _Recount:
    """Adds devices to a scratch key, through the sink that the worker uses."""

    def __init__(self, settings: Settings, keys: _Keys, key: str, topic: str, partition: int) -> None:
        self._sink = RedisSink(replace(settings, redis_key=key, windows="", by=""))
        self._keys, self._key = keys, key
        self._new_batch = partial(Batch, topic, "-", partition, 0, 0, 0.0, self._sink.fields)
        self._batch = self._new_batch([[]])

    def add(self, devices: Any, rows: int) -> None:
        self._batch.columns[0].append(devices)
        self._batch.rows += rows
        if self._batch.rows >= _BATCH_EVENTS:
            self.write()

    def write(self) -> None:
        """Send what was added since the last call."""
        if self._batch.rows:
            self._sink.write(self._batch)
            self._keys.expire(self._key)
            self._batch = self._new_batch([[]])

    def close(self) -> None:
        self._sink.close()


class _Keys:
    """The scratch keys. Every method raises Retryable if the Redis command fails."""

    def __init__(self, settings: Settings) -> None:
        self._node = Node(settings, settings.redis_key_name, _TIMEOUT_S)

    def copy(self, source: str, target: str) -> None:
        self._node.ask("PFMERGE", target, source)
        self.expire(target)

    def expire(self, key: str) -> None:
        self._node.ask("EXPIRE", key, _TTL_S)

    def count(self, *keys: str) -> int:
        """Return the number of distinct devices in all of these together."""
        return int(self._node.ask("PFCOUNT", *keys))

    def delete(self, *keys: str) -> None:
        self._node.ask("DEL", *keys)

    def close(self) -> None:
        self._node.close()
