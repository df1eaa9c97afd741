"""Where events go: what every sink offers, and how one is opened."""

from __future__ import annotations

from typing import Protocol

from worker.config.settings import Settings
from worker.core.batch import Batch
from worker.core.records import Field


class Sink(Protocol):
    """A store. Every method may raise Retryable (its trouble) or Fatal (configuration, rights)."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of an event that the store keeps, each with its converter; known once open."""

    @property
    def exactly_once(self) -> bool:
        """Whether the same range may be written twice and is counted once; known once open."""

    def open(self) -> None:
        """Connect, make the table if it is missing, learn its shape. May be called again after any trouble."""

    def write(self, batch: Batch) -> None:
        """Return once the store has acknowledged all rows of the batch, of which some may be stored already.

        Also raises RowsRefused where rows are refused for their own content (nothing of this call is stored then), and
        SchemaChanged where the store no longer has the shape that the batch was formed for.
        """

    def count_stored_rows(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Return how many rows of the offsets [start, end) the store already has; None where it cannot tell."""

    def devices(self, *others: Settings, topic: str = "") -> int | None:
        """Return the number of distinct devices in the store; with `others`, in what they name together with it.

        `topic` leaves those of other topics out, where the store can tell: for topics that share a place. None where
        the store does not keep them: see `uncounted`.
        """

    def close(self) -> None:
        """Drop the connection."""


def uncounted(settings: Settings) -> str:
    """Say why `devices` is None, and what to do."""
    return (
        f"devices are not counted: no column of {settings.table} is filled from {settings.device_field}; "
        "--device-field names another field"
    )


def open_sink(settings: Settings) -> Sink:
    """Return the sink that the settings name, not yet connected; its library is imported only now."""
    if settings.backend == "redis":
        from worker.sinks.redis.sink import RedisSink

        return RedisSink(settings)
    from worker.sinks.clickhouse.sink import ClickHouseSink

    return ClickHouseSink(settings)
