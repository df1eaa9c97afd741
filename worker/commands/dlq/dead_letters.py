"""What stands in the dead-letter topic: each letter with the origin and the reason that `deadletter` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple, cast

from confluent_kafka import Message

from worker.config.settings import Settings
from worker.kafka.log_reader import LogReader


class StoredDeadLetter(NamedTuple):
    """One message of the dead-letter topic."""

    home: int  # its partition in the dead-letter topic
    position: int  # its offset there
    group: str  # the consumer group that could not write it; empty where the letter does not tell
    topic: str  # the event's, as are partition and offset; empty and -1 where no worker wrote this message
    partition: int
    offset: int
    reason: str
    field: str
    time_ms: int  # Unix time at which it became a letter
    payload: bytes

    def concerns(self, settings: Settings) -> bool:
        """Whether its event was read from the topic by the group: others may share the topic for dead letters."""
        return self.topic == settings.topic and self.group in ("", settings.group_id)


def read_dead_letters(settings: Settings) -> Iterator[StoredDeadLetter]:
    """Yield all that the dead-letter topic has now, partition by partition; nothing where there is no such topic."""
    with closing(LogReader(settings, settings.dead_letter_topic_name)) as log_reader:
        bounds = [log_reader.bounds(home) for home in range(log_reader.partitions())]
        for home, (start, end) in enumerate(bounds):
            for messages in log_reader.read(home, start, end):
                for message in messages:
                    yield _dead_letter(home, message)


def _dead_letter(home: int, message: Message) -> StoredDeadLetter:
    headers = {name: value or b"" for name, value in cast("list[tuple[str, bytes | None]]", message.headers() or [])}

    def text(name: str) -> str:
        return "".join(filter(str.isprintable, headers.get(name, b"").decode(errors="backslashreplace")))

    def number(name: str) -> int:
        return int(text(name)) if text(name).isdecimal() else -1

    return StoredDeadLetter(
        home,
        cast(int, message.offset()),
        text("group"),
        text("topic"),
        number("partition"),
        number("offset"),
        text("reason"),
        text("field"),
        number("time"),
        message.value() or b"",
    )
