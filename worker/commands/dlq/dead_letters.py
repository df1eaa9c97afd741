"""The messages of the dead-letter topic, with the origin and the reason from their headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple, cast

from confluent_kafka import Message

from worker.config.settings import Settings
from worker.kafka.dead_letters import OWN_HEADERS
from worker.kafka.log_reader import LogReader


class StoredDeadLetter(NamedTuple):
    """One message of the dead-letter topic."""

    dlq_partition: int  # its own partition, in the dead-letter topic
    dlq_offset: int
    group: str  # the consumer group that could not write the event; empty if there is no such header
    topic: str  # the event's, like partition and offset; empty and -1 if no worker wrote this message
    partition: int
    offset: int
    reason: str
    field: str
    time_ms: int  # Unix time of the dead letter, not of the event
    payload: bytes
    key: bytes | None  # the event's, like the rest
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int

    def concerns(self, settings: Settings) -> bool:
        """Whether this group read the event from this topic; other topics and groups may use the dead-letter topic."""
        return self.topic == settings.topic and self.group in ("", settings.group_id)

    def event_key(self) -> tuple[str, int, int, int]:
        """Return what identifies the event.

        The payload's hash distinguishes it from events of a deleted topic of the same name.
        """
        return self.topic, self.partition, self.offset, hash(self.payload)


def read_dead_letters(settings: Settings) -> Iterator[StoredDeadLetter]:
    """Yield every dead letter that the topic has now, partition by partition; none if the topic does not exist."""
    with closing(LogReader(settings, settings.dead_letter_topic_name)) as log_reader:
        bounds = [log_reader.bounds(partition) for partition in range(log_reader.partitions())]
        for partition, (start, end) in enumerate(bounds):
            for messages in log_reader.read(partition, start, end):
                for message in messages:
                    yield _parse(partition, message)


def _parse(dlq_partition: int, message: Message) -> StoredDeadLetter:
    headers = {name: value or b"" for name, value in cast("list[tuple[str, bytes | None]]", message.headers() or [])}

    def text(name: str) -> str:
        return "".join(filter(str.isprintable, headers.get(name, b"").decode(errors="backslashreplace")))

    def number(name: str) -> int:
        return int(text(name)) if text(name).isdecimal() else -1

    return StoredDeadLetter(
        dlq_partition,
        cast(int, message.offset()),
        text("group"),
        text("topic"),
        number("partition"),
        number("offset"),
        text("reason"),
        text("field"),
        number("time"),
        message.value() or b"",
        message.key(),
        _event_headers(message),
        message.timestamp()[1],
    )


def _event_headers(message: Message) -> tuple[tuple[str, bytes | None], ...]:
    """Return the headers that the event had; those of the worker stand after them."""
    headers = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    names = [name for name, _ in headers]
    for own in (OWN_HEADERS, OWN_HEADERS[:-1]):  # older dead letters have no `error`
        if tuple(names[-len(own) :]) == own:
            return tuple(headers[: -len(own)])
    return tuple(headers)
