"""A server's directory: new, locked while in use, removed at the end. Those of killed owners are removed later."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_SWEEP_AFTER_S = 60.0  # a newer directory may not be locked yet


class Directory:
    """A new directory below the system's temporary directory, private to this process until `remove`."""

    def __init__(self, name: str) -> None:
        parent = Path(tempfile.gettempdir()) / f"worker-local-{os.getuid()}"
        parent.mkdir(mode=0o700, exist_ok=True)
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(parent: Path) -> None:
    """Remove the directories of owners that were killed: a process's lock ends with it."""
    for path in parent.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_ctime < _SWEEP_AFTER_S:
                continue
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
