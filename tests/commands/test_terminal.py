"""Text and progress bars on a terminal: nothing from outside controls it, and nothing is written without one."""

from __future__ import annotations

import io
import os
import pty
import re
import time
from contextlib import suppress
from select import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.terminal import Terminal
from worker.__main__ import main
from worker.commands.check.finding import fail
from worker.commands.progress import ProgressBar
from worker.commands.terminal import printable


@given(st.text())
def test_printable_text_is_kept_and_the_rest_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


def test_a_lone_surrogate_can_be_printed() -> None:
    assert printable("a\udc80").encode() == rb"a\udc80"


def test_findings_and_errors_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(fail("Kafka", "\x1b[2J", "fix\r")) == r"FAIL  Kafka: \x1b[2J; fix: fix\r"
    assert main(["\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def shown_by(bar_of: ProgressBar, terminal: io.StringIO, steps: int) -> str:
    with bar_of as bar:
        for _ in range(steps):
            time.sleep(0.03)
            bar.advance(5)
    return terminal.getvalue()


def test_a_terminal_shows_share_rate_and_time_left_and_is_left_clean() -> None:
    terminal = Terminal()
    text = shown_by(ProgressBar(terminal, 50), terminal, 10)
    lines = text.split("\r")[1:]
    assert lines[-1] == "\x1b[K"
    assert re.fullmatch(r"█+░+ +\d+% \d+/50  \d+/s  \d+ s left\x1b\[K", lines[0])
    assert len(lines) <= 5  # ten a second at most
    assert not re.search(r"\x1b\[[\d;]*m", text)  # no colors


@pytest.mark.parametrize("total", [0, 7])
def test_more_than_the_total_is_never_above_100_percent(total: int) -> None:
    terminal = Terminal()
    assert "100% 20/20" in shown_by(ProgressBar(terminal, total), terminal, 4)


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_terminal_nothing_is_written(stream: io.StringIO | None) -> None:
    text = shown_by(ProgressBar(stream, 50), stream or io.StringIO(), 5)
    assert text == ""


def test_a_dumb_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    assert shown_by(ProgressBar(terminal, 50), terminal, 5) == ""


def test_tracked_items_are_counted() -> None:
    with ProgressBar(Terminal(), 3) as bar:
        assert list(bar.track("abc")) == ["a", "b", "c"]
        bar.advance(0)
        assert bar._done == 3


def test_a_terminal_that_is_closed_ends_no_command() -> None:
    shown: list[bool] = []
    master, slave = pty.openpty()
    terminal = os.fdopen(slave, "w")
    with suppress(OSError), terminal, ProgressBar(terminal, 100) as bar:  # OSError: of terminal.close()
        time.sleep(0.12)
        bar.advance(1)
        shown.append(bar.is_shown)
        assert select([master], [], [], 10)[0]
        os.close(master)
        time.sleep(0.12)
        bar.advance(1)
        shown.append(bar.is_shown)
    assert shown == [True, False]
