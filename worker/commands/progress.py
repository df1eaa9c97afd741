"""A progress bar for commands that take long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

_EVERY_S = 0.1
_WIDTH = 30
_CLEAR = "\r\x1b[K"
_Item = TypeVar("_Item")


class ProgressBar:
    """One line on a terminal, without colors: the share that is done, the rate and the time left.

    It is rewritten at most ten times a second and erased at the end of the `with` block. It writes nothing if `stream`
    is None or not a terminal, or after the terminal was closed. Set `total` as soon as it is known.
    """

    def __init__(self, stream: TextIO | None, total: int = 0) -> None:
        is_terminal = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._terminal = stream if is_terminal else None
        self.total = total
        self._done = 0
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @property
    def is_shown(self) -> bool:
        return self._terminal is not None

    def track(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items, and advance by one for each."""
        for item in items:
            self.advance(1)
            yield item

    def advance(self, count: int) -> None:
        self.show(self._done + count)

    def show(self, done: int) -> None:
        """Show that `done` of `total` are done."""
        self._done = done
        if self._terminal is None:
            return
        now = time.monotonic()
        if now - self._shown < _EVERY_S:
            return
        self._shown = now
        total = max(self.total, done, 1)
        rate = done / (now - self._started)
        left = f"{(total - done) / rate:.0f} s left" if rate else "waiting"
        filled = "█" * (_WIDTH * done // total)
        self._write(f"\r{filled:░<{_WIDTH}} {done / total:4.0%} {done}/{total}  {rate:.0f}/s  {left}\x1b[K")

    def clear(self) -> None:
        """Erase the line, also before other output to the same terminal."""
        self._write(_CLEAR)

    def _write(self, text: str) -> None:
        if self._terminal is None:
            return
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except OSError:  # the terminal was closed
            self._terminal = None
