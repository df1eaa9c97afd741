"""A child process of the supervisor: how it is forked, which signals it gets, and how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from worker.core import log as logs
from worker.core import process
from worker.core.counters import Slot
from worker.core.errors import ExitCode, Fatal

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)
"""The signals that the supervisor handles."""


@dataclass(slots=True)
class Child:
    """An entry of the process table. `pid` is 0 while no process runs in it."""

    name: str
    target: Callable[[], int]
    slot: Slot
    stop_signal: signal.Signals = signal.SIGTERM
    pid: int = 0
    start_due: float = 0.0  # time.monotonic() of the next start
    started: float = 0.0  # time.monotonic() of the last start
    crashes: int = 0
    accounted: int = 0  # events accounted for at the last start

    def count_accounted(self) -> int:
        """Return the number of events that all processes of this entry have accounted for."""
        cells = ("written", "dead_lettered", "skipped")
        return sum(ledger.get(cell) for ledger in self.slot.ledgers() for cell in cells)

    def start(self, log_format: str, log_level: str) -> None:
        """Fork. Signals stay blocked until the child has installed its own handlers."""
        for stream in (sys.stdout, sys.stderr):  # else the child would write what is buffered once more
            with contextlib.suppress(OSError):  # nobody reads it any more
                stream.flush()
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        pid = os.fork()
        if pid == 0:
            self._run(parent, log_format, log_level)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        self.pid = pid
        self.started = time.monotonic()
        self.accounted = self.count_accounted()
        self.slot.beat()
        self.slot.set("started_ns", time.monotonic_ns())
        self.slot.set("pid", pid)
        if self.start_due > 0:
            self.slot.add("restarts")

    def end(self) -> None:
        """Note that the process has ended."""
        self.pid = 0
        self.slot.set("pid", 0)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, if the process runs."""
        if self.pid:
            os.kill(self.pid, number)

    def _run(self, parent: int, log_format: str, log_level: str) -> NoReturn:
        """Run the target in the child process, which ends with the parent and ignores SIGINT. Never returns."""
        code: int = ExitCode.FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self.stop_signal == signal.SIGTERM else signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            faulthandler.register(signal.SIGUSR1, file=logs.fileno(), all_threads=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            process.end_with_parent()
            process.set_name(f"worker/{self.name.replace('consumer', 'cons')}")  # of at most 15 characters
            if os.getppid() != parent:  # the parent ended before prctl
                os._exit(ExitCode.FAILED)
            logs.configure(log_format, log_level, self.name, partial(self.slot.add, "dropped_log_lines"))
            code = self.target()
        except Fatal as error:
            logging.getLogger("worker").error("%s", error)
            code = error.code
        except BaseException:
            logging.getLogger("worker").exception("%s failed", self.name)
        finally:
            with contextlib.suppress(Exception):
                logs.finish()
                sys.stdout.flush()
            os._exit(code)


def describe_end(code: int) -> str:
    """Return how a child ended, as text; `code` is negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    hint = " (out of memory? see the kernel log)" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
