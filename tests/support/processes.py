"""Memory and CPU of a worker's processes while they run, sampled from /proc (Linux)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import cpu_seconds

_MIB = 2**20


@dataclass
class ProcessUsage:
    """A process, from its first sample to its last: resident memory in bytes, CPU in seconds."""

    name: str
    pid: int
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    cpu: float = 0.0
    rss: list[int] = field(default_factory=list)
    _cpu_before: float = 0.0

    def __post_init__(self) -> None:
        self._cpu_before = cpu_seconds(self.pid)

    def sample(self) -> None:
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        if pages:  # a zombie has none
            self.rss.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.ended, self.cpu = time.monotonic(), cpu_seconds(self.pid) - self._cpu_before

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.began)

    @property
    def cores(self) -> float:
        return self.cpu / self.seconds if self.seconds else 0.0

    def growth(self) -> float:
        """Return the peak memory of the second half of its life divided by that of the first half, minus 1."""
        half = len(self.rss) // 2
        return max(self.rss[half:]) / max(self.rss[:half]) - 1 if half else 0.0

    def row(self) -> str:
        first, last, most = (f"{rss / _MIB:6.0f}" for rss in (self.rss[0], self.rss[-1], max(self.rss)))
        return f"{self.name:<12} {self.pid:>7} {self.seconds:6.0f} {first} {last} {most} {self.cores:7.1%}"


HEAD = f"{'process':<12} {'pid':>7} {'s':>6} {'first':>6} {'last':>6} {'most':>6} {'a core':>7}   (MiB resident, CPU)"


class Watch:
    """The usage of all processes that a worker has had."""

    def __init__(self) -> None:
        self.processes: dict[int, ProcessUsage] = {}

    def sample(self, running: dict[int, str]) -> None:
        """Sample the processes that are running now, pid → name."""
        for pid, name in running.items():
            self.processes.setdefault(pid, ProcessUsage(name, pid))
            self.processes[pid].sample()

    def table(self) -> str:
        return "\n".join([HEAD, *(process.row() for process in self.sampled())])

    def sampled(self) -> list[ProcessUsage]:
        return [process for process in self.processes.values() if process.rss]
