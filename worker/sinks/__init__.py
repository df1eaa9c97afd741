"""The interface of every sink, and `open_sink`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from worker.config.settings import BOTH, Settings
from worker.core.batch import Batch
from worker.core.records import Field


class Sink(Protocol):
    """A store. Every method may raise Retryable (the store's error) or Fatal (configuration, rights)."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of an event that the store keeps, each with its converter. Available after open."""

    @property
    def exactly_once(self) -> bool:
        """Whether a range that is written twice is stored once. Available after open."""

    def open(self) -> None:
        """Connect, create the table if it is missing, read its schema. May be called again after any error."""

    def write(self, batch: Batch) -> None:
        """Return once the store has acknowledged all rows of the batch, of which some may be stored already.

        Also raises RowsRefused where rows are refused for their own content (nothing of this call is stored then),
        BlockTooLarge where the batch may be written in parts, and SchemaChanged where the store no longer has the shape
        that the batch was formed for.
        """

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Return how many rows of the offsets [start, end) the store already has; None if it cannot tell."""

    def last_stored_offset(self, topic: str, partition: int, start: int, end: int | None = None) -> int | None:
        """Return the highest offset in [start, end) that a stored row has; None if there is none, or it cannot tell.

        Without an `end` the range has none.
        """

    def is_empty(self) -> bool:
        """Whether the table or key has nothing at all; False if it cannot tell."""

    def devices(self, *others: Settings, topic: str = "") -> int | None:
        """Return the number of distinct devices in the table or key, in union with those that `others` name.

        `topic` excludes other topics that share the table, if the store can tell them apart. None if the store does not
        keep devices: see `uncounted`.
        """

    def window_devices(self) -> dict[str, int]:
        """Return the number of distinct devices in the last closed slice of each window, by the window's name."""

    def close(self) -> None:
        """Close the connection."""


def uncounted(settings: Settings) -> str:
    """Return why `devices` is None, and what to do."""
    return (
        f"devices are not counted: no column of {settings.table} is filled from {settings.device_field}; "
        "--device-field names another field"
    )


def open_sink(settings: Settings) -> Sink:
    """Return the sink that the settings name, not yet connected."""
    return import_sink(settings.backend)(settings)


def import_sink(backend: str) -> Callable[[Settings], Sink]:
    """Return the sink of a `--backend`; clients are imported only here. Before a fork, all children have them."""
    if backend == "redis":
        from worker.sinks.redis.sink import RedisSink

        return RedisSink
    if backend == BOTH:
        from worker.sinks.both import BothSinks

        return BothSinks
    from worker.sinks.clickhouse.sink import ClickHouseSink

    return ClickHouseSink
