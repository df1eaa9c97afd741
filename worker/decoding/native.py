"""Payloads → columns by the optional native package, where it is certain; the Python reference decides all else.

For each payload native code gives what `decoding.json` gives, or nothing: so it is fast or absent, never different.
`tests/native` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from worker_native import Decoder, pfadd_commands, supports

from worker.core.records import Decoded, Field, LazyPayloads, Parts, Reject
from worker.decoding import json

__all__ = ["NativeDecoder", "pfadd_commands"]

_MOST_UNDECIDED = 8  # one payload in so many: more, and the reference decodes all of them together


class NativeDecoder:
    """A `Decode` for one consumer. Plans are kept for the fields of each table."""

    def __init__(self) -> None:
        self._plans: dict[int, tuple[Sequence[Field], Decoder | None]] = {}  # by id of the fields, which it keeps alive

    def __call__(self, payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
        plan = self._plan(fields)
        if plan is None:
            return json.decode(list(payloads), fields)
        runs, undecided = plan.decode(payloads.source if isinstance(payloads, LazyPayloads) else payloads)
        if not undecided:
            return Decoded(runs[0][2], None, len(payloads), ()) if runs else json.decode((), fields)
        if _MOST_UNDECIDED * len(undecided) > len(payloads):
            return json.decode(list(payloads), fields)
        return _merge(payloads, fields, runs, undecided)

    def _plan(self, fields: Sequence[Field]) -> Decoder | None:
        if id(fields) not in self._plans:
            usable = all(supports(field.target) for field in fields)
            plan = Decoder([(field.path, field.target, field.required) for field in fields]) if usable else None
            self._plans[id(fields)] = fields, plan
        return self._plans[id(fields)][1]


def _merge(
    payloads: Sequence[bytes],
    fields: Sequence[Field],
    runs: Sequence[tuple[int, int, tuple[Any, ...]]],
    undecided: Sequence[int],
) -> Decoded:
    """Put the rows and rejects that the reference makes of the undecided payloads between the native runs."""
    pieces = [(start, range(start, stop), parts) for start, stop, parts in runs]
    rejects: list[Reject] = []
    for _, group in groupby(enumerate(undecided), key=lambda pair: pair[1] - pair[0]):
        indices = [index for _, index in group]
        decoded = json.decode([payloads[index] for index in indices], fields)
        rejects += [reject._replace(index=indices[reject.index]) for reject in decoded.rejects]
        if decoded.rows:
            kept = indices if decoded.kept is None else [indices[i] for i in decoded.kept]
            pieces.append((indices[0], kept, decoded.columns))  # type: ignore[arg-type]
    pieces.sort(key=lambda piece: piece[0])
    columns = tuple(Parts(parts[i] for *_, parts in pieces) for i in range(len(fields)))
    kept = [index for _, indices, _ in pieces for index in indices]
    return Decoded(columns, kept if rejects else None, len(kept), rejects)
