from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.core import log

Lines = Callable[[], list[str]]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Return the root logger, which gets its handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines(root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Configure the log of a process, and return the texts of its lines."""
    path = tmp_path / "stderr"
    with path.open("w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        log.configure("text", "info", "test")
        yield lambda: [line.split(None, 3)[3] for line in path.read_text().splitlines()]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock that decides on repetitions, and return a function that advances it by some seconds."""
    now = 1000.0
    monkeypatch.setattr("worker.core.repeats.time.monotonic", lambda: now)

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    return advance


logger = logging.getLogger("worker.test")


def test_a_repeated_warning_is_logged_once_a_minute_with_a_count(
    lines: Lines, pass_time: Callable[[float], None]
) -> None:
    for _ in range(5):
        logger.warning("the store is down")
    logger.warning("another")
    pass_time(61)
    logger.warning("the store is down")
    assert lines() == ["the store is down", "another", "the store is down repeats=4"]


def test_the_count_is_logged_also_if_the_cause_has_ended(lines: Lines, pass_time: Callable[[float], None]) -> None:
    for attempt in range(5):
        logger.warning("the store is down (attempt %d)", attempt, extra=log.fields(topic="t"))
    logger.info("within the minute")
    pass_time(61)
    logger.info("the store is up")
    assert lines() == [
        "the store is down (attempt 0) topic=t",
        "within the minute",
        "suppressed 4 lines like this one: the store is down (attempt 4) topic=t",
        "the store is up",
    ]


def test_the_count_is_logged_at_the_end_of_the_process(lines: Lines) -> None:
    for _ in range(3):
        logger.warning("the store is down")
    log.finish()
    assert lines() == ["the store is down", "suppressed 2 lines like this one: the store is down"]


def test_information_and_what_is_logged_each_time_is_not_suppressed(lines: Lines) -> None:
    for _ in range(3):
        logger.info("took a partition")
        logger.warning("a consumer ended", extra=log.each_time(code=1))
    assert lines() == ["took a partition", "a consumer ended code=1"] * 3


def test_wrong_arguments_do_not_stop_the_caller(lines: Lines) -> None:
    texts = ["%d events", "%d of %d events"]
    logger.info(texts[0], "many")
    logger.warning(texts[1], 1)
    assert lines() == ["%d events (with wrong arguments)", "%d of %d events (with wrong arguments)"]


def test_lines_that_nobody_reads_are_dropped_and_counted(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    drops: list[None] = []
    with os.fdopen(reader, "rb", buffering=0) as readable, os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        log.configure("text", "info", "test", lambda: drops.append(None))
        for number in range(5000):
            logger.info("line %d %s", number, "x" * 100)
        assert 0 < len(drops) < 5000
        written = readable.read(1 << 20)
        while select.select([readable], [], [], 0)[0]:
            written += readable.read(1 << 20)
        assert len(written.splitlines()) + len(drops) == 5000
        logger.info("read again")
        texts = [line.split(None, 3)[3] for line in readable.read(1 << 20).decode().splitlines()]
        assert texts == [f"{len(drops)} log lines were dropped because nobody read stderr", "read again"]
        logger.info("next")
        assert len(readable.read(1 << 20).splitlines()) == 1


def test_an_ended_reader_changes_nothing_for_the_caller(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    drops: list[None] = []
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        log.configure("text", "info", "test", lambda: drops.append(None))
        logger.error("nobody sees this")
        log.finish()
    assert drops == [None]
