"""One run of one program: what it took of CPU, memory and time, and what the servers took meanwhile."""

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

_LOOK_EVERY_S = 0.1
_LAUNCH = [sys.executable, "-I", "-S", worker.local.launch.__file__]


@dataclass
class Run:
    """What was measured; CPU in seconds."""

    code: int  # exit code; negative is a signal
    output: str  # stdout
    errors: str  # the end of stderr
    wall: float
    lasted: float  # wall time until the servers were read
    cpu: float  # of the program and of all that it started, to the microsecond: the kernel's sum at its end
    split: list[float]  # … of the program itself and of each direct child, oldest first, as last seen
    servers: dict[str, float]  # … of each server of this machine, to 10 ms
    rss: int  # bytes: the largest process of the tree
    rss_sum: int  # bytes: the largest sum over the tree's processes of what each had at most
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
    """Run a program to its end and return what it took; one that is late is killed, and its code is -9.

    `watch` is called twice a second meanwhile, `settle` after the end and before the servers' time is read.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        seen = Run(0, "", "", 0.0, 0.0, 0.0, [], {}, 0, 0, 0.0)
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
        status, usage = _wait(process.pid, began + timeout, seen, watch)
        seen.wall = time.monotonic() - began
        process.returncode = seen.code = os.waitstatus_to_exitcode(status)
        seen.cpu = max(usage.ru_utime + usage.ru_stime, sum(seen.split))
        if settle:
            settle()
        seen.lasted = time.monotonic() - began
        seen.servers = {name: machine.cpu_seconds(pid) - spent[name] for name, pid in servers.items() if pid}
        seen.steal = machine.processor().steal_since(before)
        seen.output, seen.errors = (_text(file)[-4000:] for file in (out, err))
    return seen


def _wait(
    pid: int, deadline: float, seen: Run, watch: Callable[[Run], None] | None
) -> tuple[int, resource.struct_rusage]:
    """Look at the tree until its root ends; wait4 then has the time of the root and of all that it waited for."""
    peaks: dict[int, int] = {}
    watch_at = 0.0
    pause = 0.005
    try:
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                return status, usage
            for one in machine.tree(pid):
                peaks[one] = max(peaks.get(one, 0), machine.peak_rss(one))
            split = [machine.cpu_seconds(one) for one in (pid, *machine.children(pid))]
            if len(split) >= len(seen.split):
                seen.split = split
            seen.rss, seen.rss_sum = max(peaks.values()), sum(peaks.values())
            if watch and time.monotonic() > watch_at:
                watch(seen)
                watch_at = time.monotonic() + 0.5
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(_LOOK_EVERY_S, pause * 1.5)
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        raise


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
