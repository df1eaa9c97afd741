"""The parent process: forks, reaps and restarts consumers and the monitor, forwards signals, sets the exit code.

It has no threads, no event loop and no clients: librdkafka does not survive a fork (librdkafka #393), and the parent
must be able to fork at any time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from worker.config.settings import Settings
from worker.core import log as logs
from worker.core import process
from worker.core.accounts import ACCOUNTS, by_partition
from worker.core.child import FORWARDED, Child, describe_end
from worker.core.counters import MAX_SLOTS, REJECT_REASONS, Stats
from worker.core.errors import ExitCode
from worker.core.log import each_time, fields
from worker.core.process import ServiceManager

log = logging.getLogger(__name__)

_REASONS_SHOWN = 3
_TICK_S = 1.0
_BACKOFF_S = 0.5
_BACKOFF_CAP_S = 30.0
_CRASHES_ALLOWED = 6  # in a row, without an acknowledged batch in between
_STABLE_S = 300.0  # a child that ran this long was not in a crash loop
_HUNG_S = 120.0
_MONITOR_STOP_S = 15.0


class Supervisor:
    """Runs until a signal, the end of a bounded run, or a failure that a restart cannot fix."""

    def __init__(
        self,
        settings: Settings,
        stats: Stats,
        consume: Callable[[int], int],
        monitor: Callable[[int], int],
        service_manager: ServiceManager | None = None,
    ) -> None:
        self._service_manager = service_manager or ServiceManager(None)
        self._settings = settings
        self._stats = stats
        self._consume = consume
        self._report, report_out = os.pipe()
        os.set_blocking(self._report, False)
        # The monitor ignores SIGTERM: a service manager sends it to the whole group, and the monitor ends last.
        self._monitor = Child("monitor", lambda: monitor(report_out), stats.monitor, stop_signal=signal.SIGUSR2)
        self._consumers: list[Child] = []
        self._wakeup, self._wakeup_out = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_out, False)
        self._partial_line = b""
        self._stop_signals = 0
        self._deadline: float | None = None  # of the drain, once it has begun
        self._exit_code: int = ExitCode.OK

    def run(self) -> int:
        """Supervise; return the exit code."""
        process.set_name("worker")
        signal.set_wakeup_fd(self._wakeup_out, warn_on_full_buffer=False)
        for number in FORWARDED:
            signal.signal(number, lambda *_: None)  # only wakes the loop, which reads the number from the pipe
        self._start(self._monitor)
        while self._deadline is None or any(child.pid for child in self._children()):
            select.select([self._wakeup, self._report], [], [], _TICK_S)
            self._service_manager.notify("WATCHDOG=1")
            self._handle_signals()
            self._read_monitor()
            self._reap()
            if self._deadline is None:
                self._start_and_replace()
            else:
                self._continue_drain()
        self._log_ledger()
        logs.finish()
        return int(self._exit_code)

    # start, drain, end

    def _start_and_replace(self) -> None:
        """Start children that are due, and kill consumers that hang."""
        now = time.monotonic()
        for child in self._children():
            if child.pid == 0 and now >= child.start_due:
                self._start(child)
        for child in self._consumers:
            if child.pid and now - child.slot.get("heartbeat_ns") / 1e9 > _HUNG_S:
                log.error("%s made no progress for %g s: killing it", child.name, _HUNG_S, extra=fields(pid=child.pid))
                child.kill(signal.SIGKILL)

    def _start(self, child: Child) -> None:
        child.start(self._settings.log_format, self._settings.log_level)

    def _drain(self, code: int) -> None:
        """Ask the consumers to drain. The first reason to stop sets the exit code."""
        if self._deadline is not None:
            return
        self._exit_code = code
        self._deadline = time.monotonic() + self._settings.drain_timeout + 5
        self._service_manager.notify("STOPPING=1")
        for child in self._consumers:
            child.kill(child.stop_signal)

    def _continue_drain(self) -> None:
        """Stop the monitor after the consumers have ended, and kill processes that exceed their deadline."""
        assert self._deadline is not None
        late = time.monotonic() > self._deadline
        if any(child.pid for child in self._consumers):
            if late:
                log.error("consumers still running after the drain timeout: killed; no events are lost")
                self._exit_code = self._exit_code or ExitCode.FAILED
                for child in self._consumers:
                    child.kill(signal.SIGKILL)
        elif self._monitor.pid:
            if self._monitor.start_due != -1:
                self._monitor.start_due = -1  # the signal is sent once
                self._deadline = time.monotonic() + _MONITOR_STOP_S
                self._monitor.kill(self._monitor.stop_signal)
            elif late:
                self._monitor.kill(signal.SIGKILL)

    def _report_end(self) -> ExitCode:
        """Log what `--until-end` or `--until` has done with the events; FAILED where there were some, but no row."""
        until = self._settings.until
        scope = f"events before {until}" if until else "events that were in the topic at start"
        total = sum(by_partition(self._stats).values(), Counter[str]())
        if not total["consumed"]:
            group = self._settings.group_id
            log.info("there was nothing to read: group %s had committed all %s", group, scope)
            return ExitCode.OK
        reasons = Counter(
            {reason: sum(slot.get(f"rejected_{reason}") for slot in self._stats.used()) for reason in REJECT_REASONS}
        )
        shown = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(_REASONS_SHOWN) if count)
        is_good = total["written"] > 0 or not total["dead_lettered"]
        log.log(
            logging.INFO if is_good else logging.ERROR,
            "all %s are accounted for: %d written, %d dead letters%s%s",
            scope,
            total["written"],
            total["dead_lettered"],
            f" ({shown})" if shown else "",
            "" if is_good else "; not one event could be written: worker dlq list shows them",
        )
        return ExitCode.OK if is_good else ExitCode.FAILED

    def _log_ledger(self) -> None:
        """Log the ledger of each partition and the total. Events in flight are read again after the next start."""
        total: Counter[str] = Counter()
        for (topic, partition), accounts in sorted(by_partition(self._stats).items()):
            total += accounts
            _log_accounts("ledger", accounts, topic=topic, partition=partition)
        if total:
            _log_accounts("ledger of all partitions", total)

    # signals, lines of the monitor, ended children

    def _handle_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 1024):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop_signals += 1
                    if self._stop_signals == 1:
                        log.info("stopping: %s", signal.Signals(number).name)
                        self._drain(ExitCode.OK)
                    else:
                        log.warning(
                            "second signal: stopping at once; events in flight are read again after the next start"
                        )
                        self._exit_code = ExitCode.FAILED
                        for child in self._children():
                            child.kill(signal.SIGKILL)
                elif number == signal.SIGUSR1:
                    faulthandler.dump_traceback(file=logs.fileno(), all_threads=True)
                    for child in self._children():
                        child.kill(signal.SIGUSR1)

    def _read_monitor(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._partial_line += os.read(self._report, 65536)
        *lines, self._partial_line = self._partial_line.split(b"\n")
        for line in lines:
            word, _, number = line.decode().partition(" ")
            if word == "partitions":
                self._add_consumers(int(number))
                self._service_manager.notify("READY=1")
            elif word == "finished":
                self._drain(self._report_end())

    def _add_consumers(self, partitions: int) -> None:
        """Run `--processes` consumers, or one for each partition. Their number never decreases."""
        wanted = self._settings.processes or min(partitions, MAX_SLOTS)
        if self._settings.processes and self._settings.processes > partitions and not self._consumers:
            log.info("%d processes for %d partitions: the others are standby", self._settings.processes, partitions)
        for index in range(len(self._consumers), wanted):
            slot = self._stats.slot(index)
            self._consumers.append(Child(f"consumer-{index}", partial(self._consume, index), slot))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children():
                if child.pid == pid:
                    self._handle_end(child, status)

    def _handle_end(self, child: Child, status: int) -> None:
        """Restart an ended child with exponential backoff, or stop all processes."""
        code = os.waitstatus_to_exitcode(status)
        child.end()
        if self._deadline is not None:
            is_clean = code in (ExitCode.OK, -signal.SIGTERM)  # SIGTERM: before its own handler
            if child in self._consumers and not is_clean:
                self._exit_code = self._exit_code or ExitCode.FAILED
            return
        if code == ExitCode.OK and child is self._monitor:
            log.warning("the monitor ended without being asked to")
        if code in (ExitCode.CONFIG, ExitCode.HALT):
            self._drain(ExitCode.CONFIG if code == ExitCode.CONFIG else ExitCode.FAILED)
            return
        stable = child.count_accounted() > child.accounted or time.monotonic() - child.started > _STABLE_S
        child.crashes = 1 if stable else child.crashes + 1
        if child.crashes > _CRASHES_ALLOWED:
            log.error("%s ended %d times in a row without progress: stopping", child.name, child.crashes)
            self._drain(ExitCode.FAILED)
            return
        pause = min(_BACKOFF_CAP_S, _BACKOFF_S * 2 ** (child.crashes - 1))
        child.start_due = time.monotonic() + pause
        log.warning("%s ended: %s; restarting in %g s", child.name, describe_end(code), pause, extra=each_time())

    def _children(self) -> list[Child]:
        return [self._monitor, *self._consumers]


def _log_accounts(event: str, accounts: Mapping[str, int], **partition: object) -> None:
    values = {account: accounts[account] for account in ACCOUNTS}
    unaccounted = values["consumed"] - sum(values[account] for account in ACCOUNTS[1:])
    if unaccounted:
        log.error("%s", event, extra=fields(**partition, **values, unaccounted=unaccounted))
    else:
        log.info("%s", event, extra=fields(**partition, **values))
