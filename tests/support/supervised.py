"""Run as a script by test_supervisor: a Supervisor whose children fail in the way that the first argument names."""

from __future__ import annotations

import os
import signal
import sys
import time

from worker import supervisor
from worker.config.settings import Settings
from worker.core import log
from worker.core.counters import Stats
from worker.core.errors import ExitCode, Fatal

KIND = sys.argv[1]
if KIND == "hung":
    supervisor._HUNG_S = 1.0
settings = Settings(topic="t", processes=2, drain_timeout=5.0)
stats = Stats()


def consume(index: int) -> int:
    slot = stats.slot(index)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    print(f"consumer {index} {os.getpid()}", flush=True)
    if KIND == "config":
        raise Fatal("the table is a view")
    if KIND == "halt":
        for cell in ("consumed", "in_flight"):
            slot.ledger("t", "id", index).add(cell, 3)
        if not index:
            signal.pause()
        while not list(stats.slot(0).ledgers()):  # the other consumer has started
            time.sleep(0.01)
        raise Fatal("too many bad events", code=ExitCode.HALT)
    if KIND == "crash":
        raise RuntimeError("defect")
    if KIND == "unclean":
        signal.pause()
        return ExitCode.FAILED
    while not stopped:
        if KIND != "hung" or index:  # the loop of the first consumer stands still
            slot.beat()
        ledger = slot.ledger("t", "id", index)
        ledger.add("consumed", 1)
        ledger.add("written", 1)  # progress
        time.sleep(0.01)
        if KIND == "ignores-sigterm":
            stopped.clear()
    return ExitCode.OK


def monitor(report: int) -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: stopped.append(number))
    os.write(report, b"partitions 4\n")
    if KIND == "finished":
        time.sleep(0.3)
        os.write(report, b"finished\n")
    while not stopped:
        time.sleep(0.01)
    print("monitor stops last", flush=True)
    return ExitCode.OK


log.configure("text", "info", "supervisor")
sys.exit(supervisor.Supervisor(settings, stats, consume, monitor).run())
