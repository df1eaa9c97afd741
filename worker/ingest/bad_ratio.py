"""How many of the last events were invalid, for --max-bad-ratio."""

from __future__ import annotations

from collections import deque

from worker.core.batch import Batch
from worker.core.errors import ExitCode, Fatal

_RATIO_WINDOW = 10_000


class BadRatio:
    """Stops the worker when too many of the last events were invalid, so that no wrong topic becomes dead letters."""

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._window: deque[tuple[int, int]] = deque()

    def watch(self, batch: Batch) -> None:
        """Take a batch that is about to be written into account. Raises Fatal where there are too many bad ones."""
        window = self._window
        window.append((batch.consumed, len(batch.dead_letters)))
        while len(window) > 1 and sum(consumed for consumed, _ in window) - window[0][0] >= _RATIO_WINDOW:
            window.popleft()
        consumed, bad = (sum(column) for column in zip(*window, strict=True))
        if consumed >= _RATIO_WINDOW and bad > self._allowed * consumed:
            raise Fatal(
                f"{bad} of the last {consumed} events of {batch.topic} cannot be written, more than --max-bad-ratio "
                f"{self._allowed:g} allows; nothing from offset {batch.start} of partition {batch.partition} on was "
                "committed. Is it the right topic?",
                code=ExitCode.HALT,
            )
