"""Distinct devices → Redis HyperLogLogs. PFADD is idempotent: a range that is added twice counts once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from worker.config.field_paths import parse_path
from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.errors import Fatal, Retryable
from worker.core.records import Field
from worker.decoding.converters import identities, texts
from worker.sinks.redis.nodes import Node, packed
from worker.sinks.redis.windows import Keys, Labels, group, slices

# Elements of one PFADD. The command blocks the server for about 180 ns per element.
_PFADD_ELEMENTS = 5000


class RedisSink:
    """One connection, and one HyperLogLog per topic; more with windows or `--by`, see `windows`."""

    exactly_once = False  # not needed: see the module's first line

    def __init__(self, settings: Settings) -> None:
        self._key = settings.redis_key_name
        self._keys = Keys(settings)
        self._labels = Labels(len(self._keys.by))
        self.fields = (_device_field(settings.device_field, with_target=not self._keys.fields()), *self._keys.fields())
        self._values = self._keys.values(self._keys.names)
        self._node = Node(settings, self._key)

    def open(self) -> None:
        """Connect and check that the key is a HyperLogLog."""
        try:
            self.devices()
            if self._keys.by:
                self._labels.learn(reply.decode() for reply in self._node.ask("SMEMBERS", self._values))
        except Retryable as error:
            if error.reason in ("credentials", "wrong_type", "configuration"):
                raise Fatal(str(error)) from None
            raise

    def write(self, batch: Batch) -> None:
        """Add the batch's distinct devices: PFADDs of up to 5000 elements, one round trip, every reply checked."""
        if len(batch.columns) == 1:
            self._node.exchange(_distinct_pfadds(self._key, batch.columns[0]))
        else:
            self._node.exchange(list(self._window_commands(batch)))

    def _window_commands(self, batch: Batch) -> Iterator[bytes]:
        """Yield the commands for the total and for each slice and value.

        Every batch writes the names of windows and values and the expiry times again. So a key that Redis has lost is
        complete when it returns, and the next read of the batch fixes a crash between two commands.
        """
        keys, now = self._keys, time.time()
        grouped = group(batch.columns, keys, self._labels)
        if keys.windows:
            yield packed("SADD", keys.registry, *(window.id for window in keys.windows))
        if labels := sorted({label for _, label in grouped if label}):
            yield packed("SADD", keys.fields_registry, keys.names)
            yield packed("SADD", self._values, *labels)
        for key, expires, devices in slices(grouped, keys):
            if expires is None or expires > now:  # else Redis would delete it at once
                yield from _pfadds(key, devices)
                if expires is not None:
                    yield packed("EXPIREAT", key, str(expires))

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Return None: a HyperLogLog cannot tell, and PFADD does not need it."""

    def last_stored_offset(self, topic: str, partition: int, start: int, end: int | None = None) -> int | None:
        """Return None: devices have no offsets."""

    def is_empty(self) -> bool:
        """Whether no device has been counted under the key."""
        return not self._node.ask("PFCOUNT", self._key)

    def devices(self, *others: Settings, topic: str = "") -> int:  # noqa: ARG002 (the protocol's)
        """Return PFCOUNT of the keys of this sink and of `others`; a HyperLogLog cannot tell its topics apart."""
        keys = {self._key, *(other.redis_key_name for other in others)}
        return int(self._node.ask("PFCOUNT", *sorted(keys)))

    def window_devices(self) -> dict[str, int]:
        """Return PFCOUNT of the last closed slice of each window, in one round trip."""
        windows, now = self._keys.windows, int(time.time())
        closed = [(window, window.number(window.start(window.number(now)) - 1)) for window in windows]
        commands = [packed("PFCOUNT", self._keys.of(window, number, "")) for window, number in closed]
        replies = self._node.exchange(commands) if commands else []
        return {window.name: int(reply) for window, reply in zip(windows, replies, strict=True)}

    def close(self) -> None:
        self._node.close()


def _device_field(name: str, *, with_target: bool) -> Field:
    """Return the field that is counted. A device_ip is a string; any other identity may also be an integer.

    Windows need the devices as strings, so their field has no target of the native decoder.
    """
    convert, target = (texts, "devices") if name == "device_ip" else (identities, "identities")
    return Field(name, parse_path(name), convert, target=target if with_target else "")


def _distinct_pfadds(key: str, parts: Sequence[Any]) -> list[bytes]:
    """Return PFADDs of the distinct devices; a part is a list of strings, or bytes of the native decoder."""
    if any(type(part) is bytes for part in parts):
        from worker.decoding.native import pfadd_commands

        return pfadd_commands(key.encode(), parts, _PFADD_ELEMENTS)
    return list(_pfadds(key, set().union(*parts)))


def _pfadds(key: str, devices: Iterable[str]) -> Iterator[bytes]:
    remaining = iter(devices)
    while elements := tuple(islice(remaining, _PFADD_ELEMENTS)):
        yield packed("PFADD", key, *elements)
