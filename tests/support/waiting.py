"""Several long waits at once: scenarios are generators that yield what they wait for, and one thread runs them all.

Servers end with the thread that started them, so threads are not the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing

from tests.support.kit import PATIENCE_S

Scenario = Generator[Callable[[], object], None, None]
"""Yields predicates; it goes on when the last one was true, and fails where that takes too long."""


def pause(seconds: float) -> Callable[[], object]:
    """Return a predicate that is true after so many seconds."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def run(scenario: Scenario, patience: float = PATIENCE_S) -> None:
    """Run one scenario by itself."""
    together(scenario, patience=patience)


def together(*scenarios: Scenario, patience: float = PATIENCE_S) -> None:
    """Run scenarios side by side until all have ended; one that fails ends them all."""
    with ExitStack() as stack:
        for scenario in scenarios:
            stack.enter_context(closing(scenario))
        waiting = {scenario: (next(scenario, None), time.monotonic() + patience) for scenario in scenarios}
        while waiting:
            for scenario, (predicate, deadline) in list(waiting.items()):
                if predicate is None:
                    del waiting[scenario]
                elif predicate():
                    waiting[scenario] = next(scenario, None), time.monotonic() + patience
                elif time.monotonic() > deadline:
                    scenario.throw(AssertionError(f"not within {patience:.0f} s"))  # so that its line is shown
            time.sleep(0.02)
