"""`verify` for Redis: count the topic's devices again into scratch keys, and compare these with the worker's key.

HyperLogLogs of the same devices are equal, in whatever order and however often the devices were added. So nothing is
missing if adding the recounted devices to the key does not change its count. Extra devices are certain only if the log
still has every event since its beginning.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TextIO, cast

from confluent_kafka import Message

from worker.commands.progress import ProgressBar
from worker.commands.verify.comparison import Ranges, Scope
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


@dataclass(frozen=True)
class RedisComparison:
    """Compares the key with the events below the committed offsets.

    If ClickHouse is written, too, it may refuse an event that is valid for Redis. So the key need not have the devices
    of events with dead letters.
    """

    settings: Settings
    log_reader: LogReader
    decode: Decode
    keys: Keys
    limit: int  # how many ranges without a dead letter are shown
    out: TextIO
    bar: ProgressBar

    def run(self, scopes: Sequence[Scope]) -> int:
        """Print an account of each partition and a total; return OK if every device is counted, else FAILED."""
        key, keys = self.settings.redis_key_name, self.keys
        scratch = f"{same_slot(key)}:verify:{secrets.token_hex(6)}"
        copy, due, ahead = (f"{scratch}:{name}" for name in ("copy", "due", "ahead"))
        try:
            keys.copy(key, copy)  # before the log's ends are read: no device in the copy is newer
            results = [self._verify(scope, due, ahead) for scope in scopes]
            stored, missing = keys.count(copy), keys.count(copy, due) - keys.count(copy)
            recounted, extra = keys.count(due), keys.count(copy, due, ahead) - keys.count(due, ahead)
        finally:
            keys.delete(copy, due, ahead)
        is_good = all(is_good for is_good, _ in results)
        is_complete = all(is_complete for _, is_complete in results)
        print(
            f"total: {stored} devices in {key}, {recounted} in the topic, missing {missing}, extra {extra}",
            file=self.out,
        )
        if extra and not is_complete:
            print(
                "total: the log no longer has all events, or --start skips some: the extra devices may be from these",
                file=self.out,
            )
        return ExitCode.OK if is_good and not missing and not (extra and is_complete) else ExitCode.FAILED

    def _verify(self, scope: Scope, due: str, ahead: str) -> tuple[bool, bool]:
        """Count a partition's devices into the scratch keys, those beyond the commit into `ahead`.

        Returns whether nothing is lost or without a dead letter, and whether the log still has all of its events.
        """
        partition, committed = scope.partition, scope.committed
        low, high = self.log_reader.bounds(partition)
        begin = min(max(low, scope.begin or 0), high)
        stop = min(max(committed or 0, begin), high)
        refused = set(scope.dead_letters) if len(self.settings.backends) > 1 else set()
        done = self._add(partition, begin, stop, (due, ahead), refused)
        later = self._add(partition, stop, high, (ahead, ahead), ())
        without = Ranges(self.limit)
        without.add(sorted(set(done.invalid).difference(scope.dead_letters)))
        self.bar.clear()
        lines = [
            f"{done.events} events, {len(done.invalid)} invalid, {done.skipped} skipped, "
            f"without a dead letter {without.count}",
            *([f"without a dead letter {without}"] if without.count else []),
            *scope.notes(low, high),
        ]
        for line in lines:
            print(f"{self.log_reader.topic}[{partition}]: {line}", file=self.out, flush=True)
        is_lost = committed is not None and committed < low
        return not (is_lost or without.count), begin == 0 and done.events + later.events == high

    def _add(
        self, partition: int, start: int, end: int, targets: tuple[str, str], refused: Collection[int]
    ) -> _Counted:
        """Add the devices of [start, end) to a scratch key; those of the offsets `refused` to another."""
        counted = _Counted()
        # All of them: an event is also invalid for a field that only windows need.
        fields = RedisSink(self.settings).fields
        accepted, apart = (_Recount(self.settings, self.keys, key, self.log_reader.topic, partition) for key in targets)
        with closing(accepted), closing(apart):
            for messages in self.log_reader.read(partition, start, end):
                counted.events += len(messages)
                self.bar.advance(len(messages))
                events = [message for message in messages if message.value() is not None]
                counted.skipped += len(messages) - len(events)
                parts = [(accepted, events)]
                if refused:
                    parts = [(accepted, [event for event in events if event.offset() not in refused])]
                    parts += [(apart, [event for event in events if event.offset() in refused])]
                for recount, chosen in parts:
                    decoded = self.decode(cast("list[bytes]", list(map(Message.value, chosen))), fields)
                    counted.skipped += len(chosen) - decoded.rows - len(decoded.rejects)
                    counted.invalid.extend(cast(int, chosen[reject.index].offset()) for reject in decoded.rejects)
                    recount.add(decoded.columns[0], decoded.rows)
            accepted.write()
            apart.write()
        return counted


class _Recount:
    """Adds devices to a scratch key, through the sink that the worker uses."""

    def __init__(self, settings: Settings, keys: Keys, key: str, topic: str, partition: int) -> None:
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


class Keys:
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
