"""A bounded cache for the converters of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_SIZE = 16_384  # entries; about 3 MB at most

_K = TypeVar("_K")
_V = TypeVar("_V")


class BoundedCache(dict[_K, _V]):
    """A key → what `compute` returns for it. What raises is not stored, and a full cache begins anew."""

    def __init__(self, compute: Callable[[_K], _V]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, key: _K) -> _V:
        return self.store(key, self._compute(key))

    def store(self, key: _K, value: _V) -> _V:
        """Store and return the value."""
        if len(self) >= _SIZE:
            self.clear()
        self[key] = value
        return value
