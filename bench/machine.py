"""The kernel's figures of processes and of the machine: CPU time, memory, steal time. Linux."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("confluent-kafka", "orjson", "clickhouse-driver", "redis", "hiredis", "uvloop")


class Processor(NamedTuple):
    """CPU time of all cores since boot, in ticks."""

    steal: int
    total: int

    def steal_since(self, before: Processor) -> float:
        """Return the share of the time since `before` that the host took away (steal), 0 to 1."""
        return (self.steal - before.steal) / max(1, self.total - before.total)


def processor() -> Processor:
    with open("/proc/stat") as stat:
        times = list(map(int, stat.readline().split()[1:9]))  # guest time, after these, is in user time already
    return Processor(times[7], sum(times))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used itself, its threads included; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_rss(pid: int) -> int:
    """Return the peak resident memory of a process, in bytes; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def children(pid: int) -> list[int]:
    """Return the pids of a process's direct children, those of one thread oldest first; none if it has ended."""
    pids: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pids  # not sorted: pids wrap


def tree(root: int) -> list[int]:
    """Return the pids of a process and of all its descendants."""
    return [root] + [pid for child in children(root) for pid in tree(child)]


def listener(port: int) -> int:
    """Return the pid of the process of this machine that listens on a TCP port; 0 if none is visible."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:  # it has ended, or is another user's
                continue
    return 0


def describe() -> dict[str, Any]:
    """Return the description of this machine for a result."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
