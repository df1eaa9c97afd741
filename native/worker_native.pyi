"""The optional native part of kafka-ingest-worker.

The reference of its decoder is `worker.decoding`: for each payload native code decides the same, or nothing.
"""

from collections.abc import Sequence
from typing import Any

__version__: str

class Decoder:
    """A plan: which value of an event goes into which column.

    The column buffers keep their size between calls. A Decoder must not be used by two threads at once.
    """

    def __new__(cls, fields: Sequence[tuple[Sequence[str], str, bool]]) -> Decoder:
        """Take each field's path, target and whether it is required; ValueError if a target is not supported.

        A target is a ClickHouse type (not all are supported), `devices` (strings), or `identities` (strings, integers).
        """

    def decode(self, payloads: Sequence[bytes]) -> tuple[list[tuple[int, int, tuple[Any, ...]]], list[int]]:
        """Return runs of decided payloads, and the indices of the undecided ones between them, all ascending.

        A run is (start, stop, parts): consecutive payloads of which each is a row, and for each field what the
        reference's `Field.convert` returns for their values, with bytes in place of its arrays: bytes; for Nullable(T)
        the tuple (mask, values); for Array(T) and Map(K, V) the tuples (sizes, values) and (sizes, keys, values), where
        sizes is an array("Q"), as Codec.join needs it; for Tuple a tuple. For `devices` and `identities` it is the
        distinct ones as RESP bulk strings, in the order of first appearance.
        An undecided payload may be valid or not: the reference decodes it. The GIL is released meanwhile.
        """

def supports(target: str) -> bool:
    """Return whether a Decoder can have a field with this target."""

def pfadd_commands(key: bytes, parts: Sequence[bytes | list[str]], elements: int) -> list[bytes]:
    """Return PFADD commands in RESP that add the distinct devices of all parts, at most `elements` in each.

    A part is bulk strings, as a Decoder makes them, or a list of strings. Without devices there is no command.
    """
