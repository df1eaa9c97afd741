from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

import pytest

from worker.core import log


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Configure the log of a process, and return what it has written."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("text", "info", "test")
    yield lambda: stream.getvalue().splitlines()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_repeated_warning_is_logged_once_a_minute_with_a_count(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.core.log.time.monotonic", lambda: now)
    logger = logging.getLogger("worker.test")
    for _ in range(5):
        logger.warning("the store is down")
    logger.warning("another")
    now += 61
    logger.warning("the store is down")
    texts = [line.split(None, 3)[3] for line in lines()]
    assert texts == ["the store is down", "another", "the store is down repeats=4"]


def test_information_is_logged_each_time(lines: Callable[[], list[str]]) -> None:
    for _ in range(3):
        logging.getLogger("worker.test").info("took a partition")
    assert len(lines()) == 3
