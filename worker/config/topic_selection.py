"""Which topics are read: those that are named, and those that a regular expression finds. No I/O but the roster's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from worker.config.settings import Settings, UsageError


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
        dead_letters = "|".join(
            ".+".join(map(re.escape, t.split("{topic}"))) for t in (settings.dead_letter_topic, "{topic}.dlq")
        )
        self._hidden = re.compile(rf"__.*|{dead_letters}", re.DOTALL)
        if looped := [name for name in self.names if name in self._dead_letters(self.names)]:
            raise UsageError(
                f"--topic {looped[0]} is where --dead-letter-topic {settings.dead_letter_topic} puts bad events: they "
                "would come back for ever"
            )
        if settings.backend == "redis" and "+cluster:" in settings.redis_url and not settings.one_topic:
            tags = {_hash_tag(settings.for_topic(topic).redis_key_name) for topic in ("a", "b")}
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
        return named + sorted(found - hidden - set(named) - self._dead_letters(named))

    def clash(self, topics: Sequence[str]) -> tuple[str, str, str] | None:
        """Return two topics that would have the same table only because `_` stands for what a name cannot have."""
        if self._settings.backend != "clickhouse" or not self._settings.table_by_topic:
            return None
        owners: dict[str, str] = {}
        for topic in topics:
            table = self._settings.for_topic(topic).table
            if owners.setdefault(table, topic) != topic:
                return owners[table], topic, table
        return None

    def _dead_letters(self, topics: Iterable[str]) -> set[str]:
        return {self._settings.for_topic(topic).dead_letter_topic_name for topic in topics}


def _hash_tag(key: str) -> str:
    """Return the part of a key that says where a cluster keeps it."""
    found = re.search(r"\{([^}]+)\}", key)
    return found[1] if found else key
