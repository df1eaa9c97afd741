"""The native decoder against the Python reference, on the same payloads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import worker_native

from worker.core.records import Decoded, Field
from worker.decoding import json as reference
from worker.decoding.converters import identities, texts
from worker.sinks.clickhouse.types import codec

CONVERTERS = {"devices": texts, "identities": identities}


class Wanted(NamedTuple):
    """A field as the native decoder takes it."""

    path: tuple[str, ...]
    target: str
    required: bool

    def field(self) -> Field:
        convert = CONVERTERS.get(self.target) or codec(self.target).convert
        return Field(".".join(self.path), self.path, convert, self.required)


def wanted(path: Sequence[str], target: str) -> Wanted:
    """Return a field as a sink asks for it."""
    return Wanted(tuple(path), target, target in CONVERTERS or codec(target).null is not None)


class Difference(AssertionError):
    """Native code decided otherwise than the reference."""


def compare(decoder: worker_native.Decoder, fields: Sequence[Wanted], payloads: Sequence[bytes]) -> list[int]:
    """Check each run against the reference; return the undecided indices. Difference names the payloads at fault."""
    try:
        runs, undecided = decoder.decode(payloads)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class has no public name
            raise
        raise Difference(f"{error}: {list(payloads)!r} as {list(fields)}") from None
    _check_order(runs, undecided, len(payloads))
    reference_fields = [field.field() for field in fields]
    for start, stop, parts in runs:
        expected = reference.decode(payloads[start:stop], reference_fields)
        if expected.rejects or not _parts_are_equal(fields, parts, expected):
            raise Difference(_describe(fields, payloads[start:stop]))
    return undecided


def merge(
    decoder: worker_native.Decoder, fields: Sequence[Wanted], payloads: Sequence[bytes]
) -> tuple[list[bytes], list[tuple[int, str, str]], int]:
    """Return all columns as bytes, rejects and rows, where the reference decodes only the undecided payloads."""
    runs, undecided = decoder.decode(payloads)
    reference_fields = [field.field() for field in fields]
    pieces: list[tuple[int, tuple[Any, ...]]] = [(start, parts) for start, _, parts in runs]
    rows = sum(stop - start for start, stop, _ in runs)
    rejects = []
    for index in undecided:
        decoded = reference.decode([payloads[index]], reference_fields)
        rejects += [(index, reject.reason, reject.field) for reject in decoded.rejects]
        rows += decoded.rows
        pieces += [(index, decoded.columns)] if decoded.rows else []
    columns = [parts for _, parts in sorted(pieces, key=lambda piece: piece[0])]
    return [encode(field, [parts[i] for parts in columns]) for i, field in enumerate(fields)], rejects, rows


def decode_by_reference(
    fields: Sequence[Wanted], payloads: Sequence[bytes]
) -> tuple[list[bytes], list[tuple[int, str, str]], int]:
    """Return what merge returns, all by the reference."""
    decoded = reference.decode(payloads, [field.field() for field in fields])
    columns = [encode(field, [decoded.columns[i]] if decoded.rows else []) for i, field in enumerate(fields)]
    return columns, [(reject.index, reject.reason, reject.field) for reject in decoded.rejects], decoded.rows


def encode(field: Wanted, parts: list[Any]) -> bytes:
    """Return a column of a block; for Redis the commands."""
    if field.target in CONVERTERS:
        return b"".join(worker_native.pfadd_commands(b"key", parts, 5))
    return codec(field.target).encode(parts)


def strings(values: Sequence[str]) -> bytes:
    """Return a part of devices as a Decoder makes it."""
    return cast(bytes, codec("String").convert(list(values)))


def _check_order(runs: list[tuple[int, int, tuple[Any, ...]]], undecided: list[int], count: int) -> None:
    decided = [index for start, stop, _ in runs for index in range(start, stop)]
    if sorted([*decided, *undecided]) != list(range(count)) or undecided != sorted(undecided):
        raise Difference(f"runs and undecided indices do not add up to {count} payloads: {undecided}")
    starts, stops = [start for start, _, _ in runs], [stop for _, stop, _ in runs]
    if any(start >= stop for start, stop, _ in runs) or any(map(int.__ge__, stops[:-1], starts[1:])):
        raise Difference("runs are empty, not maximal or not ascending")


def _parts_are_equal(fields: Sequence[Wanted], parts: tuple[Any, ...], expected: Decoded) -> bool:
    return len(parts) == len(fields) and all(
        _plain(part) == (strings(column) if field.target in CONVERTERS else _plain(column))
        for field, part, column in zip(fields, parts, expected.columns, strict=True)
    )


def _plain(part: Any) -> Any:
    """Return the part with its arrays as bytes; `merge` joins parts, for which sizes must be arrays."""
    if isinstance(part, tuple):
        return tuple(map(_plain, part))
    return part.tobytes() if isinstance(part, array) else part


def _describe(fields: Sequence[Wanted], payloads: Sequence[bytes]) -> str:
    """Name the first payload that differs alone, or else all of them."""
    for payload in payloads:
        for field in fields:
            decoder = worker_native.Decoder([field])
            runs, _ = decoder.decode([payload])
            expected = reference.decode([payload], [field.field()])
            if runs and (expected.rejects or not _parts_are_equal([field], runs[0][2], expected)):
                return f"{payload!r} as {field}: native {runs[0][2]}, reference {expected}"
    return f"together: {list(payloads)!r} as {list(fields)}"
