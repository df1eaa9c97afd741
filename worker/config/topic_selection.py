"""Which topics are read: those that are named, and those that a regular expression finds. No I/O but the roster's."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Sequence

from worker.config.settings import Settings, UsageError

_BYTES = 1 << 20
_HEAD = 3 * 8  # version, length, partitions


class Selection:
    """The topics that the settings ask for.

    A regular expression never finds topics of Kafka's own, nor what may be a dead-letter topic: the worker would read
    what it has written itself, for ever.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = tuple(topic for topic in settings.topics if not topic.startswith("^"))
        self.patterns = tuple(topic for topic in settings.topics if topic.startswith("^"))
        self._settings = settings
        self._found = [re.compile(pattern) for pattern in self.patterns]
        letters = "|".join(
            ".+".join(map(re.escape, t.split("{topic}"))) for t in (settings.dead_letter_topic, "{topic}.dlq")
        )
        self._hidden = re.compile(rf"__.*|{letters}", re.DOTALL)
        if looped := [name for name in self.names if name in self._letters(self.names)]:
            raise UsageError(
                f"--topic {looped[0]} is where --dead-letter-topic {settings.dead_letter_topic} puts bad events: they "
                "would come back for ever"
            )
        if settings.backend == "redis" and "+cluster:" in settings.redis_url and not settings.one_topic:
            tags = {_hash_tag(settings.of(topic).redis_key_name) for topic in ("a", "b")}
            if len(tags) > 1:
                raise UsageError(
                    f"--redis-key {settings.redis_key}: a cluster counts several topics together only where their keys "
                    "share a hash tag; write for example --redis-key '{devices}:{topic}'"
                )

    def among(self, there: Iterable[str]) -> list[str]:
        """Return those of the topics that are there, the named ones first."""
        known = set(there)
        named = [name for name in self.names if name in known]
        found = {topic for topic in known if any(pattern.match(topic) for pattern in self._found)}
        hidden = {topic for topic in found if self._hidden.fullmatch(topic)}
        return named + sorted(found - hidden - set(named) - self._letters(named))

    def clash(self, topics: Sequence[str]) -> tuple[str, str, str] | None:
        """Return two topics that would have the same table only because `_` stands for what a name cannot have."""
        if self._settings.backend != "clickhouse" or not self._settings.table_by_topic:
            return None
        owners: dict[str, str] = {}
        for topic in topics:
            table = self._settings.of(topic).table
            if owners.setdefault(table, topic) != topic:
                return owners[table], topic, table
        return None

    def _letters(self, topics: Iterable[str]) -> set[str]:
        return {self._settings.of(topic).dead_letter_topic_name for topic in topics}


def _hash_tag(key: str) -> str:
    """Return the part of a key that says where a cluster keeps it."""
    found = re.search(r"\{([^}]+)\}", key)
    return found[1] if found else key


class Roster:
    """The names of the topics that are read, in memory that all processes share: the monitor writes, consumers read."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _BYTES)
        self._words = memoryview(self._map)[:_HEAD].cast("q")

    @property
    def version(self) -> int:
        """Another number once the names are others; odd while they are being written."""
        return int(self._words[0])

    @property
    def partitions(self) -> int:
        """How many the topics had together when that was last looked at."""
        return int(self._words[2])

    @partitions.setter
    def partitions(self, count: int) -> None:
        self._words[2] = count

    def write(self, topics: Sequence[str]) -> None:
        """Replace the names. Raises ValueError where they are too many."""
        text = "\n".join(topics).encode()
        if len(text) > _BYTES - _HEAD:
            raise ValueError(f"{len(topics)} topics are too many for one worker")
        self._words[0] |= 1
        self._words[1] = len(text)
        self._map[_HEAD : _HEAD + len(text)] = text
        self._words[0] += 1

    def read(self) -> tuple[int, list[str]]:
        """Return the version and the names; none where they are just being written: ask again later."""
        version, length = self._words[0], self._words[1]
        text = bytes(self._map[_HEAD : _HEAD + length])
        if version % 2 or version != self._words[0]:
            return -1, []
        return int(version), text.decode().split("\n") if text else []
