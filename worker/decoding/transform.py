"""The user's own function (`--transform module:function`), between parsing and converting."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from worker.core.errors import Fatal
from worker.core.records import Decoded, Field, Reject
from worker.decoding import json

ReadEvents = Callable[[Sequence[bytes]], list[Any]]
Function = Callable[[list[dict[str, Any]]], Sequence[dict[str, Any] | None]]


class _Failure(NamedTuple):
    """The result for an event that the function raises for, or returns something else for than a dict or None."""

    error: str


class Transform:
    """A decoder that has the function transform the events of a record batch before their fields are converted.

    None in the function's result skips an event. An event for which it raises is a reject, found by halves.
    """

    def __init__(self, name: str, function: Function, read_events: ReadEvents = json.read_events) -> None:
        """`read_events` returns each payload's JSON value, or Unreadable."""
        self._name = name
        self._function = function
        self._read_events = read_events

    def decode(self, payloads: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
        """Return the columns of the transformed events, and rejects. The skipped events are in neither.

        Raises Fatal if the function does not return a list with one item for each event.
        """
        payloads = list(payloads)
        events = self._read_events(payloads)
        objects = [i for i, event in enumerate(events) if type(event) is dict]
        results = self._apply([payloads[i] for i in objects], [events[i] for i in objects])
        rows = [(i, result) for i, result in zip(objects, results, strict=True) if type(result) is dict]
        decoded = json.decode_events([result for _, result in rows], [payloads[i] for i, _ in rows], fields)
        if len(rows) == len(payloads):
            return decoded
        rejects = [reject._replace(index=rows[reject.index][0]) for reject in decoded.rejects]
        rejects += [
            Reject(i, event.reason if type(event) is json.Unreadable else "not_object", "")
            for i, event in enumerate(events)
            if type(event) is not dict
        ]
        rejects += [
            Reject(i, "transform_failed", "", result.error)
            for i, result in zip(objects, results, strict=True)
            if type(result) is _Failure
        ]
        kept = range(len(rows)) if decoded.kept is None else decoded.kept
        return decoded._replace(kept=[rows[i][0] for i in kept], rejects=sorted(rejects))

    def _apply(self, payloads: Sequence[bytes], events: list[Any]) -> list[Any]:
        """Return the function's result for each event, or a _Failure.

        Each call gets its own copy of the events, because the function may change them.
        """
        if not events:
            return []
        try:
            results = self._function(events)
        except MemoryError:  # not the events' fault
            raise
        except Exception as error:
            failure = _Failure(self._describe(error))
        else:
            return self._check(results, len(payloads))
        if len(payloads) == 1:
            return [failure]
        middle = len(payloads) // 2
        halves = payloads[:middle], payloads[middle:]
        return [result for half in halves for result in self._apply(half, self._read_events(half))]

    def _check(self, results: object, count: int) -> list[Any]:
        if not isinstance(results, list) or len(results) != count:
            returned = f"{len(results)} items" if isinstance(results, list) else f"a value of type {_type(results)}"
            raise Fatal(
                f"--transform {self._name} returned {returned} for {count} events; it must return a list with one item "
                "for each event, in their order: the event, or None to skip it. Nothing of these events was committed: "
                "correct the function and start the worker again"
            )
        if set(map(type, results)) <= {dict, NoneType}:
            return results
        allowed = (dict, NoneType)
        return [result if type(result) in allowed else _Failure(f"returned {_type(result)}") for result in results]

    def _describe(self, error: Exception) -> str:
        """Return the exception's type and line in the function's module. Its text may have values of the event."""
        code = getattr(self._function, "__code__", None)
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if code is not None and frame.filename == code.co_filename] or frames
        where = f" in {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return f"{_type(error)}{where}"


def _type(value: object) -> str:
    return type(value).__name__


def load_transform(transform: str, read_events: ReadEvents = json.read_events) -> Transform:
    """Return the decoder that applies the function `module:function`.

    The module is imported from the current directory, or from where Python finds modules. Raises Fatal if it cannot be.
    """
    module_name, _, path = transform.partition(":")
    try:
        if (directory := os.getcwd()) not in sys.path:
            sys.path.insert(0, directory)
        function: Any = importlib.import_module(module_name)
        for name in path.split("."):
            function = getattr(function, name)
    except (Exception, SystemExit) as error:
        raise Fatal(
            f"--transform {transform} cannot be imported: {_type(error)}: {error}; the module must be in the "
            "current directory, installed, or in a directory of PYTHONPATH"
        ) from None
    if not callable(function):
        raise Fatal(f"--transform {transform} is not a function, but a value of type {_type(function)}")
    return Transform(transform, function, read_events)
