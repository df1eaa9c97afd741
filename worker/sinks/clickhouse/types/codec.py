"""What a column's type is to the worker: how JSON values become bytes of the Native format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from worker.core.records import Convert

if sys.byteorder != "little":
    raise ImportError("ClickHouse's Native format is little-endian, and columns are written as they lie in memory")


class Codec(NamedTuple):
    """One ClickHouse type.

    A batch is converted chunk by chunk, while its values are hot in the cache, and keeps only the parts. A part is
    mostly the chunk's bytes already; what it is concerns nobody but `join`.
    """

    convert: Convert  # a chunk's values → its part; see events.Convert for what it raises
    join: Callable[[list[Any]], bytes] = b"".join  # all parts → the column's bytes, less the prefix
    null: Any = None  # a value that convert takes, to stand where a Nullable has NULL; None: the type has NULL itself
    prefix: bytes = b""  # what comes once, before everything else, even before the offsets of an array around it
    type: str = ""

    def encode(self, parts: list[Any]) -> bytes:
        """Return the column of a block of one row or more. (In a block without rows a column has no bytes at all.)"""
        return self.prefix + self.join(parts)
