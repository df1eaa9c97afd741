"""Which topics are read: those that are named, and those that a regular expression matches. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from worker.config.settings import Settings, UsageError


class Selection:
    """The topics that the settings ask for.

    A regular expression never matches Kafka's internal topics, nor a possible dead-letter topic: the worker would read
    its own dead letters in an endless loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = tuple(topic for topic in settings.topics if not topic.startswith("^"))
        self.patterns = tuple(topic for topic in settings.topics if topic.startswith("^"))
        self._settings = settings
        self._expressions = [re.compile(pattern) for pattern in self.patterns]
        dead_letters = "|".join(
            ".+".join(map(re.escape, t.split("{topic}"))) for t in (settings.dead_letter_topic, "{topic}.dlq")
        )
        self._excluded = re.compile(rf"__.*|{dead_letters}", re.DOTALL)
        if loops := [name for name in self.names if name in self._dead_letters(self.names)]:
            raise UsageError(
                f"--topic {loops[0]} is also what --dead-letter-topic {settings.dead_letter_topic} names: the worker "
                "would read its own dead letters in an endless loop"
            )
        if "redis" in settings.backends and "+cluster:" in settings.redis_url and not settings.one_topic:
            tags = {_hash_tag(settings.for_topic(topic).redis_key_name) for topic in ("a", "b")}
            if len(tags) > 1:
                raise UsageError(
                    f"--redis-key {settings.redis_key}: a cluster counts several topics together only if their keys "
                    "share a hash tag; write for example --redis-key '{devices}:{topic}'"
                )

    def select(self, existing: Iterable[str]) -> list[str]:
        """Return the selected ones of the existing topics, the named ones first."""
        topics = set(existing)
        named = [name for name in self.names if name in topics]
        matched = {topic for topic in topics if any(pattern.match(topic) for pattern in self._expressions)}
        excluded = {topic for topic in matched if self._excluded.fullmatch(topic)}
        return named + sorted(matched - excluded - set(named) - self._dead_letters(named))

    def find_table_clash(self, topics: Sequence[str]) -> tuple[str, str, str] | None:
        """Return two topics and the table that they would share, because `_` replaces invalid characters."""
        if "clickhouse" not in self._settings.backends or not self._settings.table_by_topic:
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
    """Return the part of a key that decides its slot in a cluster."""
    tag = re.search(r"\{([^}]+)\}", key)
    return tag[1] if tag else key
