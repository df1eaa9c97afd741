"""How far dead letters were replayed: the commits of `<group>.dlq-replay.<topic>`, a group that no consumer joins."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple, Self

from worker.commands.dlq.dead_letters import StoredDeadLetter, read_dead_letters
from worker.config.settings import Settings
from worker.kafka.log_reader import LogReader

_VERSION = "r1"


def replay_group(settings: Settings) -> str:
    """Return the consumer group whose commits are the replay positions."""
    return f"{settings.group_id}.dlq-replay.{settings.topic}"


class ReplayPosition(NamedTuple):
    """How far one partition of the dead-letter topic is replayed: all below `offset`, and some reasons further."""

    offset: int = 0
    reasons: Mapping[str, int] = {}

    @classmethod
    def parse(cls, offset: int | None, metadata: str) -> Self:
        """Read the position from a commit."""
        version, _, rest = metadata.partition(";")
        words = [word.rpartition("=") for word in rest.split(";") if word] if version == _VERSION else []
        return cls(offset or 0, {reason: int(end) for reason, _, end in words})

    def encode(self) -> str:
        """Return the commit's metadata."""
        return ";".join([_VERSION, *(f"{reason}={end}" for reason, end in sorted(self.reasons.items()))])

    def is_past(self, dead_letter: StoredDeadLetter) -> bool:
        """Whether the dead letter was replayed, or left out as a duplicate."""
        return dead_letter.dlq_offset < max(self.offset, self.reasons.get(dead_letter.reason, 0))

    def after(self, dead_letter: StoredDeadLetter, reason: str | None) -> ReplayPosition:
        """Return the position when everything up to this dead letter is replayed: of that reason, or of all."""
        end = dead_letter.dlq_offset + 1
        if reason is None:
            return ReplayPosition(end, {name: other for name, other in self.reasons.items() if other > end})
        return self._replace(reasons={**self.reasons, reason: end})


class Replayed:
    """The dead letters and events that were replayed when it was created. It reads the dead-letter topic."""

    def __init__(self, settings: Settings, positions: Mapping[int, ReplayPosition]) -> None:
        self._positions = dict(positions)  # a copy: a replay advances its own
        self._events: set[tuple[str, int, int, int]] = set()
        if any(position != ReplayPosition() for position in self._positions.values()):
            dead_letters = (item for item in read_dead_letters(settings) if item.concerns(settings))
            self._events = {item.event_key() for item in dead_letters if self.is_past(item)}

    def is_past(self, dead_letter: StoredDeadLetter) -> bool:
        """Whether the replay positions are past the dead letter."""
        return self._positions.get(dead_letter.dlq_partition, ReplayPosition()).is_past(dead_letter)

    def has_event(self, dead_letter: StoredDeadLetter) -> bool:
        """Whether the event was replayed, from this dead letter or from a duplicate of it."""
        return dead_letter.event_key() in self._events


def read_positions(log_reader: LogReader) -> dict[int, ReplayPosition]:
    """Return the replay position of each partition; `log_reader` reads the dead-letter topic as the replay group."""
    commits = log_reader.committed(log_reader.partitions())
    return {partition: ReplayPosition.parse(*commit) for partition, commit in commits.items()}


def read_replayed(settings: Settings) -> Replayed:
    """Return what was replayed until now."""
    topic = settings.dead_letter_topic_name
    with closing(LogReader(settings, topic, group=replay_group(settings))) as log_reader:
        return Replayed(settings, read_positions(log_reader))
