"""Several long waits at once: scenarios are generators that yield their conditions, and one thread runs them all.

Several threads are not possible: servers end with the thread that started them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing

from tests.support.kit import PATIENCE_S

Scenario = Generator[Callable[[], object], None, None]
"""Yields predicates; it continues when the last one is true, and fails after a timeout."""


def pause(seconds: float) -> Callable[[], object]:
    """Return a predicate that becomes true after this time."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def run(scenario: Scenario, patience: float = PATIENCE_S) -> None:
    """Run a single scenario."""
    together(scenario, patience=patience)


def together(*scenarios: Scenario, patience: float = PATIENCE_S) -> None:
    """Run scenarios concurrently until all have ended; a failure ends them all."""
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
                    scenario.throw(AssertionError(f"not within {patience:.0f} s"))  # the traceback shows its line
            time.sleep(0.02)
