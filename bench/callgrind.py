"""Instructions as valgrind's callgrind counts them: neither the load of the machine nor its clock changes them."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the order of a set is the same in each run
_FUNCTION = re.compile(r"^ *([\d,]+) +[^:\n]*:(.+?)(?: \[(?:.*/)?(.+?)\])?$", re.MULTILINE)


def command(directory: Path) -> list[str]:
    """Return what comes before a program's own command; each of its processes writes a profile to `directory`."""
    return [
        "valgrind",
        "--tool=callgrind",
        "--fair-sched=try",  # else one busy thread keeps the others from running
        f"--callgrind-out-file={directory}/%p",
        f"--log-file={directory}/%p.log",
    ]


def profiles(directory: Path) -> list[Path]:
    """Return the profiles of a program's processes. Their names are the pids, whose order says nothing: pids wrap."""
    return [file for file in directory.iterdir() if file.name.isdigit()]


def calls(profile: Path, function: str) -> bool:
    """Whether the process called the function."""
    return f" {function}\n" in profile.read_text()


def instructions(profile: Path) -> int:
    """Return what a process executed; that of a forked one begins with what its parent executed before the fork."""
    totals = re.search(r"^totals: (\d+)$", profile.read_text(), re.MULTILINE)
    if not totals:
        raise SystemExit(f"{profile} is no profile of callgrind")
    return int(totals[1])


def functions(profile: Path) -> Counter[str]:
    """Return the instructions of each function itself, without those that it calls."""
    words = ["callgrind_annotate", "--threshold=100", "--show-percs=no", "--auto=no", str(profile)]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    counts: Counter[str] = Counter()
    for number, name, library in _FUNCTION.findall(text.partition("file:function")[2]):
        counts[f"{name}  {library}"] += int(number.replace(",", ""))
    return counts
