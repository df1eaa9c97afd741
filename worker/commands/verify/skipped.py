"""Which events the worker skips by rule: tombstones, and those that the function of `--transform` drops."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from confluent_kafka import Message

from worker.core.records import Decode

FindSkipped = Callable[[list[Message]], list[int]]
"""Messages of a partition in log order → the offsets of those that are skipped, ascending."""


def tombstones(messages: list[Message]) -> list[int]:
    """Return the offsets of messages without a payload."""
    if all(map(len, messages)):  # len() is the payload's, and copies nothing
        return []
    return [cast(int, message.offset()) for message in messages if message.value() is None]


def skipped_by(decode: Decode) -> FindSkipped:
    """Return a function that also finds the events of which `decode` makes neither a row nor a reject."""

    def find(messages: list[Message]) -> list[int]:
        skipped = set(tombstones(messages))
        events = [message for message in messages if message.value() is not None]
        decoded = decode([cast(bytes, message.value()) for message in events], ())
        if decoded.kept is not None:
            accounted = {*decoded.kept, *(reject.index for reject in decoded.rejects)}
            skipped.update(cast(int, event.offset()) for i, event in enumerate(events) if i not in accounted)
        return sorted(skipped)

    return find
