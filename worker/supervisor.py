"""The parent: forks consumers and the monitor, reaps and restarts them, forwards signals, decides the exit code.

It has no thread, no event loop and no client: librdkafka does not survive a fork (librdkafka #393), and the parent must
be able to fork at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from worker.config.settings import Settings
from worker.core import log as logs
from worker.core.accounts import ACCOUNTS, by_partition
from worker.core.counters import MAX_SLOTS, Slot, Stats
from worker.core.errors import ExitCode, Fatal
from worker.core.log import fields

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TICK_S = 1.0
_BACKOFF_S = 0.5
_BACKOFF_CAP_S = 30.0
_CRASHES_ALLOWED = 6  # in a row, without a batch acknowledged in between
_WELL_S = 300.0  # who lived that long was not in a crash loop
_HUNG_S = 120.0
_MONITOR_STOP_S = 15.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)

Target = Callable[[], int]


@dataclass(slots=True)
class Child:
    """A place in the process table. `pid` is 0 while nothing runs there."""

    name: str
    target: Target
    slot: Slot | None = None
    stop: signal.Signals = signal.SIGTERM  # what asks it to finish
    pid: int = 0
    due: float = 0.0  # time.monotonic() of the next start
    started: float = 0.0  # time.monotonic() of the last one
    crashes: int = 0
    accounted: int = 0  # events accounted for when it was started

    def progress(self) -> int:
        """Return how many events the place has accounted for in all its lives."""
        if self.slot is None:
            return 0
        return sum(
            ledger.get("written") + ledger.get("dead_lettered") + ledger.get("skipped")
            for ledger in self.slot.ledgers()
        )


class Supervisor:
    """Runs until a signal, an end that was asked for, or a failure that a restart would not mend."""

    def __init__(
        self, settings: Settings, stats: Stats, consume: Callable[[int], int], monitor: Callable[[int], int]
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._consume = consume
        self._report, report_out = os.pipe()
        os.set_blocking(self._report, False)
        # SIGTERM is not for the monitor: a service manager sends it to the whole group, and the monitor ends last.
        self._monitor = Child("monitor", lambda: monitor(report_out), stop=signal.SIGUSR2)
        self._consumers: list[Child] = []
        self._wakeup, self._wakeup_out = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_out, False)
        self._line = b""
        self._stop_signals = 0
        self._deadline: float | None = None  # of the drain, once that has begun
        self._code: int = ExitCode.OK

    def run(self) -> int:
        """Supervise; return the exit code."""
        signal.set_wakeup_fd(self._wakeup_out, warn_on_full_buffer=False)
        for number in _FORWARDED:
            signal.signal(number, lambda *_: None)  # only wakes the loop, which reads the number from the pipe
        self._spawn(self._monitor)
        while self._children_alive() or self._deadline is None:
            select.select([self._wakeup, self._report], [], [], _TICK_S)
            self._handle_signals()
            self._hear_monitor()
            self._reap()
            if self._deadline is None:
                self._keep_alive()
            else:
                self._finish()
        self._say_ledger()
        return int(self._code)

    # the three verbs

    def _keep_alive(self) -> None:
        """Start what is due, replace what hangs."""
        now = time.monotonic()
        for child in (self._monitor, *self._consumers):
            if child.pid == 0 and now >= child.due:
                self._spawn(child)
            elif child.slot is not None and child.pid and self._hung(child.slot):
                log.error("%s makes no progress for %g s: replaced", child.name, _HUNG_S, extra=fields(pid=child.pid))
                self._kill(child, signal.SIGKILL)

    def _drain(self, code: int) -> None:
        """Ask the consumers to finish; the first reason to stop decides the exit code."""
        if self._deadline is not None:
            return
        self._code = code
        self._deadline = time.monotonic() + self._settings.drain_timeout + 5
        for child in self._consumers:
            self._kill(child, child.stop)

    def _finish(self) -> None:
        """End the monitor once the consumers have ended; kill what is late."""
        assert self._deadline is not None
        late = time.monotonic() > self._deadline
        if any(child.pid for child in self._consumers):
            if late:
                log.error("consumers still there after the drain timeout: killed; nothing is lost by that")
                self._code = self._code or ExitCode.FAILED
                for child in self._consumers:
                    self._kill(child, signal.SIGKILL)
        elif self._monitor.pid:
            if self._monitor.due != -1:
                self._monitor.due = -1  # told once
                self._deadline = time.monotonic() + _MONITOR_STOP_S
                self._kill(self._monitor, self._monitor.stop)
            elif late:
                self._kill(self._monitor, signal.SIGKILL)

    def _say_ledger(self) -> None:
        """Log each partition's accounts and their sum; what is in flight now is read again at the next start."""
        total: Counter[str] = Counter()
        for (topic, partition), accounts in sorted(by_partition(self._stats).items()):
            total += accounts
            _say("ledger", accounts, topic=topic, partition=partition)
        if total:
            _say("ledger of all partitions", total)

    # events

    def _handle_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 1024):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop_signals += 1
                    if self._stop_signals == 1:
                        log.info("stopping: %s", signal.Signals(number).name)
                        self._drain(ExitCode.OK)
                    else:
                        log.warning("stopping at once; the next start finishes what is under way")
                        self._code = ExitCode.FAILED
                        for child in (*self._consumers, self._monitor):
                            self._kill(child, signal.SIGKILL)
                elif number == signal.SIGUSR1:
                    faulthandler.dump_traceback(all_threads=True)
                    for child in (*self._consumers, self._monitor):
                        self._kill(child, signal.SIGUSR1)

    def _hear_monitor(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._line += os.read(self._report, 65536)
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            word, _, number = line.decode().partition(" ")
            if word == "partitions":
                self._follow(int(number))
            elif word == "finished":
                log.info("everything that was in the topic at start is written and committed")
                self._drain(ExitCode.OK)

    def _follow(self, partitions: int) -> None:
        """Have as many consumers as were asked for, or as there are partitions; never fewer than before."""
        wanted = self._settings.processes or min(partitions, MAX_SLOTS)
        if self._settings.processes and self._settings.processes > partitions and not self._consumers:
            log.info("%d processes for %d partitions: the rest stand by", self._settings.processes, partitions)
        for index in range(len(self._consumers), wanted):
            self._consumers.append(Child(f"consumer-{index}", self._consumer_target(index), self._stats.slot(index)))

    def _consumer_target(self, index: int) -> Target:
        return lambda: self._consume(index)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in (self._monitor, *self._consumers):
                if child.pid == pid:
                    self._ended(child, status)

    def _ended(self, child: Child, status: int) -> None:
        """Decide what a child's end means: a restart, later each time, or the end of all."""
        code = os.waitstatus_to_exitcode(status)
        child.pid = 0
        if child.slot:
            child.slot.set("pid", 0)
        if self._deadline is not None:
            if child in self._consumers and code not in (ExitCode.OK, -signal.SIGTERM):  # that one had not begun yet
                self._code = self._code or ExitCode.FAILED
            return
        if code == ExitCode.OK and child is self._monitor:
            log.warning("the monitor ended by itself")
        if code in (ExitCode.CONFIG, ExitCode.HALT):
            self._drain(ExitCode.CONFIG if code == ExitCode.CONFIG else ExitCode.FAILED)
            return
        progress = child.progress()
        well = progress > child.accounted or time.monotonic() - child.started > _WELL_S
        child.crashes = 1 if well else child.crashes + 1
        if child.crashes > _CRASHES_ALLOWED:
            log.error("%s ended %d times without getting anywhere: giving up", child.name, child.crashes)
            self._drain(ExitCode.FAILED)
            return
        pause = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** (child.crashes - 1))
        child.due = time.monotonic() + pause
        log.warning("%s ended: %s; starts again in %g s", child.name, _describe(code), pause)

    # processes

    def _spawn(self, child: Child) -> None:
        """Fork; signals wait until the child has its own handlers."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        restarted = child.due > 0
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        pid = os.fork()
        if pid == 0:
            self._become(child, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        child.pid = pid
        child.started = time.monotonic()
        child.accounted = child.progress()
        if slot := child.slot:
            slot.set("heartbeat_ns", time.monotonic_ns())
            slot.set("started_ns", time.monotonic_ns())
            slot.set("pid", pid)
            if restarted:
                slot.add("restarts")

    def _become(self, child: Child, parent: int) -> NoReturn:
        """Be the child: end with the parent, leave ^C to it, run the target, and never return."""
        code: int = ExitCode.FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if child.stop == signal.SIGTERM else signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            faulthandler.register(signal.SIGUSR1, all_threads=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(ExitCode.FAILED)
            logs.configure(self._settings.log_format, self._settings.log_level, child.name)
            code = child.target()
        except Fatal as error:
            logging.getLogger("worker").error("%s", error)
            code = error.code
        except BaseException:
            logging.getLogger("worker").exception("%s fails", child.name)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _kill(self, child: Child, number: signal.Signals) -> None:
        if child.pid:
            os.kill(child.pid, number)

    def _hung(self, slot: Slot) -> bool:
        return time.monotonic_ns() - slot.get("heartbeat_ns") > _HUNG_S * 1e9

    def _children_alive(self) -> bool:
        return any(child.pid for child in (self._monitor, *self._consumers))


def _say(event: str, accounts: Mapping[str, int], **place: object) -> None:
    values = {account: accounts[account] for account in ACCOUNTS}
    unaccounted = values["consumed"] - sum(values[account] for account in ACCOUNTS[1:])
    if unaccounted:
        log.error("%s", event, extra=fields(**place, **values, unaccounted=unaccounted))
    else:
        log.info("%s", event, extra=fields(**place, **values))


def _describe(code: int) -> str:
    """Say how a child ended."""
    if code >= 0:
        return f"exit code {code}"
    hint = " (out of memory? see the kernel's log)" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
