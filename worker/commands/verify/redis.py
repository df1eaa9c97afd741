"""`verify` for Redis: count the topic's devices again into scratch keys, and compare these with the worker's key.

HyperLogLogs of the same devices are equal, in whatever order and however often the devices were added. So nothing is
missing if adding the recounted devices to the key does not change its count. Extra devices are certain only if the log
still has every event since its beginning.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TextIO, cast

from confluent_kafka import Message

from worker.commands.progress import ProgressBar
from worker.commands.verify.comparison import Ranges, notes
from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.errors import ExitCode
from worker.core.records import Decode, Field
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
    accounted: Mapping[int, int | None],
    dead_letters: Mapping[int, array[int]],
    limit: int,
    out: TextIO,
    bar: ProgressBar,
) -> int:
    """Compare the key with the events below the committed offsets; print the result, return OK or FAILED.

    `accounted` has the committed offset of each partition, `dead_letters` the offsets that have dead letters. `limit`
    is how many ranges without a dead letter are shown.
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
                stop = min(max(committed or 0, low), high)
                done = _add(settings, log_reader, decode, keys, due, partition, low, stop, bar)
                later = _add(settings, log_reader, decode, keys, ahead, partition, stop, high, bar)
                is_complete = is_complete and low == 0 and done.events + later.events == high
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
                    *notes(committed, low, high),
                ]:
                    print(f"{name}: {note}", file=out)
            stored, missing = keys.count(copy), keys.count(copy, due) - keys.count(copy)
            recounted, extra = keys.count(due), keys.count(copy, due, ahead) - keys.count(due, ahead)
        finally:
            keys.delete(copy, due, ahead)
    print(f"total: {stored} devices in {key}, {recounted} in the topic, missing {missing}, extra {extra}", file=out)
    if extra and not is_complete:
        print("total: the log no longer has all events: the extra devices may be from removed ones", file=out)
    return ExitCode.FAILED if missing or without_dead_letters or lost or (extra and is_complete) else ExitCode.OK


def _add(
    settings: Settings,
    log_reader: LogReader,
    decode: Decode,
    keys: _Keys,
    key: str,
    partition: int,
    start: int,
    end: int,
    bar: ProgressBar,
) -> _Counted:
    """Add the devices of [start, end) to a scratch key, through the sink that the worker uses."""
    counted = _Counted()
    fields = RedisSink(settings).fields  # all of them: an event is also invalid for a field that only windows need
    with closing(RedisSink(replace(settings, redis_key=key, windows="", by=""))) as sink:
        batch = _batch(log_reader.topic, partition, start, sink.fields)
        for messages in log_reader.read(partition, start, end):
            counted.events += len(messages)
            bar.advance(len(messages))
            events = [message for message in messages if message.value() is not None]
            counted.skipped += len(messages) - len(events)
            decoded = decode(cast("list[bytes]", list(map(Message.value, events))), fields)
            counted.invalid.extend(cast(int, events[reject.index].offset()) for reject in decoded.rejects)
            batch.columns[0].append(decoded.columns[0])
            batch.rows += decoded.rows
            if batch.rows >= _BATCH_EVENTS:
                _write(sink, keys, key, batch)
                batch = _batch(log_reader.topic, partition, start, sink.fields)
        if batch.rows:
            _write(sink, keys, key, batch)
    return counted


def _batch(topic: str, partition: int, start: int, fields: Sequence[Field]) -> Batch:
    return Batch(topic, "-", partition, start, start, 0.0, fields, [[]])


def _write(sink: RedisSink, keys: _Keys, key: str, batch: Batch) -> None:
    sink.write(batch)
    keys.expire(key)


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
