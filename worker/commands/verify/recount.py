"""`verify` for Redis: the topic's devices counted again into scratch keys, and compared with the key that counts.

HyperLogLogs of the same devices are equal in whatever order and however often they were added. So nothing is missing
when adding the recounted devices to the key would not change its count. Too much is known only where the log still has
every event since its beginning.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TextIO, cast

from confluent_kafka import Message

from worker.commands.verify.comparison import Ranges
from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.errors import ExitCode
from worker.core.records import Field
from worker.decoding.json import decode
from worker.kafka.log_reader import LogReader
from worker.sinks.redis.nodes import Node, same_slot
from worker.sinks.redis.sink import RedisSink

_TTL_S = 86_400  # should this process die before it deletes its keys
_BATCH_EVENTS = 100_000
_TIMEOUT_S = 60.0


@dataclass
class _Counted:
    """What a part of a partition's log had."""

    events: int = 0
    skipped: int = 0
    bad: array[int] = field(default_factory=lambda: array("q"))  # offsets of what can be no device


def recount(
    settings: Settings,
    log_reader: LogReader,
    accounted: Mapping[int, int | None],
    dead_letters: Mapping[int, array[int]],
    limit: int,
    out: TextIO,
) -> int:
    """Compare the key with the events below the committed offsets; print it, and return OK or FAILED.

    `letters` are the offsets that have dead letters; `limit` is how many ranges without one are shown.
    """
    key = settings.redis_key_name
    scratch = f"{same_slot(key)}:verify:{secrets.token_hex(6)}"
    kept, due, ahead = (f"{scratch}:{name}" for name in ("kept", "due", "ahead"))
    whole, lost = True, 0
    without_dead_letters = 0
    with closing(_Keys(settings)) as keys:
        try:
            keys.copy(key, kept)  # before the log's ends are asked for: no device in it is newer
            for partition, committed in sorted(accounted.items()):
                place = f"{log_reader.topic}[{partition}]"
                low, high = log_reader.bounds(partition)
                stop = min(max(committed or 0, low), high)
                done = _add(settings, log_reader, keys, due, partition, low, stop)
                later = _add(settings, log_reader, keys, ahead, partition, stop, high)
                whole = whole and low == 0 and done.events + later.events == high
                lost += committed is not None and committed < low
                without = Ranges(limit)
                without.add(sorted(set(done.bad).difference(dead_letters.get(partition, ()))))
                without_dead_letters += without.count
                print(
                    f"{place}: {done.events} events, {len(done.bad)} bad, {done.skipped} skipped, "
                    f"without a dead letter {without.count}",
                    file=out,
                    flush=True,
                )
                for note in [
                    *([f"without a dead letter {without}"] if without.count else []),
                    *notes(committed, low, high),
                ]:
                    print(f"{place}: {note}", file=out)
            real, missing = keys.count(kept), keys.count(kept, due) - keys.count(kept)
            recounted, extra = keys.count(due), keys.count(kept, due, ahead) - keys.count(due, ahead)
        finally:
            keys.delete(kept, due, ahead)
    print(f"total: {real} devices in {key}, {recounted} in the topic, missing {missing}, extra {extra}", file=out)
    if extra and not whole:
        print("total: the log no longer has all events, so the extra devices may be of those", file=out)
    return ExitCode.FAILED if missing or without_dead_letters or lost or (extra and whole) else ExitCode.OK


def notes(committed: int | None, low: int, high: int) -> list[str]:
    """Return what a comparison up to the committed offset does not cover, where the log is [low, high)."""
    found = []
    if committed is None:
        found.append("the group has not committed anything here")
    elif committed < low:
        found.append(f"lost: retention removed {committed}-{low - 1} before the group read them")
    elif committed < high:
        found.append(f"{committed}-{high - 1} are not committed yet, and may be missing")
    elif committed > high:
        found.append(f"the group has committed {committed}, but the log ends at {high}: was the topic made anew?")
    if low:
        found.append(f"retention removed what was before {low}")
    return found


def _add(
    settings: Settings, log_reader: LogReader, keys: _Keys, key: str, partition: int, start: int, end: int
) -> _Counted:
    """Add the devices of [start, end) to a scratch key, through the sink that the worker uses."""
    counted = _Counted()
    fields = RedisSink(settings).fields  # an event is bad where any is, also of those that only windows need
    with closing(RedisSink(replace(settings, redis_key=key, windows="", by=""))) as sink:
        batch = _batch(log_reader.topic, partition, start, sink.fields)
        for messages in log_reader.read(partition, start, end):
            counted.events += len(messages)
            events = [message for message in messages if message.value() is not None]
            counted.skipped += len(messages) - len(events)
            decoded = decode(cast("list[bytes]", list(map(Message.value, events))), fields)
            counted.bad.extend(cast(int, events[reject.index].offset()) for reject in decoded.rejects)
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
    """The scratch keys. Every method raises Retryable where Redis does not do it."""

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
