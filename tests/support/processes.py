"""What a worker's processes use while they run, sampled from /proc (Linux)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import cpu_seconds

_MIB = 2**20


@dataclass
class Life:
    """One process, from its first sample to its last: resident memory in bytes, CPU in seconds."""

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

    def grown(self) -> float:
        """Return the most memory of the second half of its life as a share of that of the first, less one."""
        half = len(self.rss) // 2
        return max(self.rss[half:]) / max(self.rss[:half]) - 1 if half else 0.0

    def row(self) -> str:
        first, last, most = (f"{rss / _MIB:6.0f}" for rss in (self.rss[0], self.rss[-1], max(self.rss)))
        return f"{self.name:<12} {self.pid:>7} {self.seconds:6.0f} {first} {last} {most} {self.cores:7.1%}"


HEAD = f"{'process':<12} {'pid':>7} {'s':>6} {'first':>6} {'last':>6} {'most':>6} {'a core':>7}   (MiB resident, CPU)"


class Watch:
    """All lives of a worker's processes."""

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}

    def sample(self, running: dict[int, str]) -> None:
        """Look at the processes that run now, pid → name; those of before are over."""
        for pid, name in running.items():
            self.lives.setdefault(pid, Life(name, pid))
            self.lives[pid].sample()

    def table(self) -> str:
        return "\n".join([HEAD, *(life.row() for life in self.seen())])

    def seen(self) -> list[Life]:
        return [life for life in self.lives.values() if life.rss]
