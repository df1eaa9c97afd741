"""The names of the topics to read, in shared memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

_BYTES = 1 << 20

_HEAD = 3 * 8  # version, length, partitions


class TopicList:
    """The names of the topics to read, in shared memory: the monitor writes them, consumers read them."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _BYTES)
        self._words = memoryview(self._map)[:_HEAD].cast("q")

    @property
    def version(self) -> int:
        """Changes with the names; odd while they are being written."""
        return int(self._words[0])

    @property
    def partitions(self) -> int:
        """The number of partitions of all topics, as last counted."""
        return int(self._words[2])

    @partitions.setter
    def partitions(self, count: int) -> None:
        self._words[2] = count

    def write(self, topics: Sequence[str]) -> None:
        """Replace the names. Raises ValueError if they do not fit."""
        text = "\n".join(topics).encode()
        if len(text) > _BYTES - _HEAD:
            raise ValueError(f"{len(topics)} topics are too many for one worker")
        self._words[0] |= 1
        self._words[1] = len(text)
        self._map[_HEAD : _HEAD + len(text)] = text
        self._words[0] += 1

    def read(self) -> tuple[int, list[str]]:
        """Return the version and the names; (-1, []) while they are being written."""
        version, length = self._words[0], self._words[1]
        text = bytes(self._map[_HEAD : _HEAD + length])
        if version % 2 or version != self._words[0]:
            return -1, []
        return int(version), text.decode().split("\n") if text else []
