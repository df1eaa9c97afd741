"""Counts of invalid events by reason and field, in the shared memory of one slot, with the origin of the last one."""

from __future__ import annotations

import time
from typing import NamedTuple

MAX_ENTRIES = 32  # the last holds all further reasons and fields
OTHER = ("other", "(other)")  # its reason and field
_NAME_BYTES = 128  # "reason field", cut at this length
_COUNT, _LAST_NS, _ORIGIN, _NAME = range(4)  # words of an entry; the name is the rest
_ENTRY_WORDS = _NAME + _NAME_BYTES // 8
_OFFSET_BITS = 51

WORDS = 1 + MAX_ENTRIES * _ENTRY_WORDS  # of a table; the first holds the number of entries


class RejectCount(NamedTuple):
    """Invalid events of one reason and field."""

    reason: str
    field: str  # empty where the whole event is invalid
    events: int
    last_ns: int  # time.monotonic_ns() of the last ones
    ledger: int  # of the last one: the index in the slot's ledgers
    offset: int


class RejectTable:
    """The invalid events that one slot has accounted for. Only the slot's consumer writes.

    Ledger and offset of the last event share a cell, so readers never see those of two events.
    """

    def __init__(self, words: memoryview, raw: memoryview, at: int) -> None:
        self._words = words
        self._bytes = raw
        self._at = at
        self._indices: dict[tuple[str, str], int] = {}  # of the entries that this process has used

    def add(self, reason: str, field: str, count: int, ledger: int, offset: int) -> None:
        """Count `count` events, of which the last is at `offset` of the partition of the slot's ledger `ledger`."""
        at = self._entry(self._index(reason, field))
        self._words[at + _ORIGIN] = ledger << _OFFSET_BITS | min(offset, (1 << _OFFSET_BITS) - 1)
        self._words[at + _LAST_NS] = time.monotonic_ns()
        self._words[at + _COUNT] += count

    def read(self) -> list[RejectCount]:
        return [self._read(index) for index in range(self._words[self._at])]

    def _read(self, index: int) -> RejectCount:
        at = self._entry(index)
        reason, _, field = self._name(at).partition(" ")
        ledger, offset = divmod(self._words[at + _ORIGIN], 1 << _OFFSET_BITS)
        return RejectCount(reason, field, self._words[at + _COUNT], self._words[at + _LAST_NS], ledger, offset)

    def _index(self, reason: str, field: str) -> int:
        key = (reason, field)
        if key not in self._indices:
            self._indices[key] = self._find_or_create(f"{reason} {field}")
        return self._indices[key]

    def _find_or_create(self, name: str) -> int:
        encoded = name.encode()[:_NAME_BYTES].decode(errors="ignore").encode()
        entries = self._words[self._at]
        for index in range(entries):
            if self._name(self._entry(index)).encode() == encoded:
                return index
        if entries >= MAX_ENTRIES - 1:
            encoded = " ".join(OTHER).encode()
            if entries == MAX_ENTRIES:
                return MAX_ENTRIES - 1
        start = (self._entry(entries) + _NAME) * 8
        self._bytes[start : start + _NAME_BYTES] = encoded.ljust(_NAME_BYTES, b"\0")
        self._words[self._at] = entries + 1  # last: readers see only complete names
        return int(entries)

    def _entry(self, index: int) -> int:
        return self._at + 1 + index * _ENTRY_WORDS

    def _name(self, at: int) -> str:
        start = (at + _NAME) * 8
        return bytes(self._bytes[start : start + _NAME_BYTES]).rstrip(b"\0").decode()
