"""A bound for the caches of this room: dictionaries whose `__missing__` computes a value and stores it."""

from __future__ import annotations

from typing import TypeVar

_SIZE = 16_384  # entries; about 3 MB at most

_K = TypeVar("_K")
_V = TypeVar("_V")


def store(cache: dict[_K, _V], key: _K, value: _V) -> _V:
    """Store and return the value; a cache that is full begins anew."""
    if len(cache) >= _SIZE:
        cache.clear()
    cache[key] = value
    return value
