"""Output that does not wait for its reader: what a full pipe, terminal or socket does not take is dropped.

A descriptor that was inherited is never made non-blocking itself: the flag belongs to the open file description, which
other programs share. Pipes and terminals are opened a second time through /proc, and sockets have a flag for each call.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Callable

_PATIENCE_S = 0.2  # for a reader that is only slow; none after a drop, until the reader reads again


class Output:
    """A descriptor for lines: each is written whole, or not at all. Not safe for threads."""

    def __init__(self, number: int) -> None:
        self._number, self._write, self.close = _open(number)
        self._rest = b""  # of a line that was begun
        self._is_stuck = False

    def fileno(self) -> int:
        """Return a descriptor; writing to it does not block, where the system can do that."""
        return self._number

    def write(self, line: bytes) -> bool:
        """Write a line, and return False if it was dropped because nobody reads. Raises OSError.

        A line that was begun counts as written; its rest precedes the next line.
        """
        deadline = time.monotonic() + (0 if self._is_stuck else _PATIENCE_S)
        if not self._write_rest(deadline):
            return False
        self._rest = line
        if self._write_rest(deadline) or len(self._rest) < len(line):
            return True
        self._rest = b""
        return False

    def _write_rest(self, deadline: float) -> bool:
        while self._rest:
            try:
                self._rest = self._rest[self._write(self._rest) :]
            except BlockingIOError:
                if not self._wait(deadline - time.monotonic()):
                    self._is_stuck = True
                    return False
            except OSError:
                self._rest = b""
                raise
        self._is_stuck = False
        return True

    def _wait(self, seconds: float) -> bool:
        return seconds > 0 and _is_writable(self._number, seconds)


def _open(number: int) -> tuple[int, Callable[[bytes], int], Callable[[], None]]:
    """Return a descriptor for the same file, how to write to it without blocking, and how to close what was opened."""
    mode = os.fstat(number).st_mode
    if stat.S_ISSOCK(mode):
        sender = socket.socket(fileno=os.dup(number))
        return number, lambda data: sender.send(data, socket.MSG_DONTWAIT), sender.close
    if not (stat.S_ISFIFO(mode) or os.isatty(number)):  # a file's second description would begin at its start
        return number, lambda data: os.write(number, data), lambda: None
    try:
        own = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # not Linux, or the file is another user's
        return number, lambda data: _write_if_writable(number, data), lambda: None
    return own, lambda data: os.write(own, data), lambda: os.close(own)


def _write_if_writable(number: int, data: bytes) -> int:
    """Write to a pipe or terminal; it may still block if another process fills it between the two calls."""
    if not _is_writable(number, 0):
        raise BlockingIOError
    return os.write(number, data[: select.PIPE_BUF])


def _is_writable(number: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
