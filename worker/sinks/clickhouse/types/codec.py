"""A column type: how JSON values become bytes of the Native format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from worker.core.records import Convert

if sys.byteorder != "little":
    raise ImportError("ClickHouse's Native format is little-endian, and columns are written as they are in memory")


class Codec(NamedTuple):
    """One ClickHouse type.

    Each record batch is converted at once, while its values are in the CPU cache, and only the parts are kept. A part
    usually is the column's bytes already; only `join` depends on its form.
    """

    convert: Convert  # a record batch's values → its part; see batch.Convert for what it raises
    join: Callable[[list[Any]], bytes] = b"".join  # all parts → the column's bytes without the prefix
    null: Any = None  # a value that convert accepts, written where a Nullable is NULL; None: the type itself has NULL
    prefix: bytes = b""  # written once before everything else, even before the offsets of an enclosing array
    type: str = ""

    def encode(self, parts: list[Any]) -> bytes:
        """Return the column of a block with at least one row. (In a block without rows a column has no bytes.)"""
        return self.prefix + self.join(parts)
