"""What the operating system is told of a process: its name, whom it ends with, and systemd's notifications."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def set_name(name: str) -> None:
    """Set the name that `ps -o comm`, `top` and `pgrep` show; Linux keeps 15 characters of it."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; elsewhere than on Linux nothing does that."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _prctl(option: int, argument: int | bytes) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument)


def resident_bytes() -> int:
    """Return the resident memory; without /proc the largest that it was."""
    with suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ServiceManager:
    """The protocol of sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names, or nothing without one."""

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    def notify(self, state: str) -> None:
        """Send a state such as READY=1; a service manager that is gone is no reason to stop."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(state.encode(), self._address)
