"""One run of one program: its CPU time, memory and wall time, and the CPU time of the servers meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import worker.local.launch
from bench import machine
from bench.services import ROOT

_SAMPLE_EVERY_S = 0.1
_LAUNCH = [sys.executable, "-I", "-S", worker.local.launch.__file__]


@dataclass
class Run:
    """The measurements of a run; CPU time in seconds."""

    code: int  # exit code; negative is a signal
    output: str  # stdout
    errors: str  # the end of stderr
    wall: float
    cpu: float  # of the program and its descendants, to the microsecond: the kernel's sum at its end
    split: list[float]  # … of the program itself and of each direct child, oldest first, as last sampled
    servers: dict[str, float]  # … of each server of this machine, to 10 ms
    rss: int  # bytes: the largest process of the tree
    rss_sum: int  # bytes: the largest sum of the peaks of the tree's processes
    steal: float  # share of the machine's time that its host took away
    stages: dict[str, float] = field(default_factory=dict)  # ours: seconds in each, as last scraped
    consumed: float = 0.0  # ours: events read, as last scraped


def run(
    command: Sequence[str],
    *,
    servers: Mapping[str, int],
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 600.0,
    watch: Callable[[Run], None] | None = None,
    settle: Callable[[], None] | None = None,
) -> Run:
    """Run a program to its end and measure it. After `timeout` it is killed, and its code is -9.

    `watch` is called twice a second meanwhile, `settle` after the end and before the servers' time is read.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        result = Run(0, "", "", 0.0, 0.0, [], {}, 0, 0, 0.0)
        before, spent = machine.processor(), {name: machine.cpu_seconds(pid) for name, pid in servers.items()}
        began = time.monotonic()
        process = subprocess.Popen(
            [*_LAUNCH, str(os.getpid()), *command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        status, usage = _wait(process.pid, began + timeout, result, watch)
        result.wall = time.monotonic() - began
        process.returncode = result.code = os.waitstatus_to_exitcode(status)
        result.cpu = max(usage.ru_utime + usage.ru_stime, sum(result.split))
        if settle:
            settle()
        result.servers = {name: machine.cpu_seconds(pid) - spent[name] for name, pid in servers.items() if pid}
        result.steal = machine.processor().steal_since(before)
        result.output, result.errors = (_text(file)[-4000:] for file in (out, err))
    return result


def _wait(
    pid: int, deadline: float, result: Run, watch: Callable[[Run], None] | None
) -> tuple[int, resource.struct_rusage]:
    """Sample the tree until its root ends; wait4 then has the time of the root and of every child it waited for."""
    peaks: dict[int, int] = {}
    watch_at = 0.0
    pause = 0.005
    try:
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                return status, usage
            for member in machine.tree(pid):
                peaks[member] = max(peaks.get(member, 0), machine.peak_rss(member))
            split = [machine.cpu_seconds(member) for member in (pid, *machine.children(pid))]
            if len(split) >= len(result.split):
                result.split = split
            result.rss, result.rss_sum = max(peaks.values()), sum(peaks.values())
            if watch and time.monotonic() > watch_at:
                watch(result)
                watch_at = time.monotonic() + 0.5
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(_SAMPLE_EVERY_S, pause * 1.5)
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
