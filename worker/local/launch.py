"""Run as a file: `launch.py PARENT_PID COMMAND…` becomes COMMAND, which the kernel kills when PARENT_PID ends.

It runs between the fork and the server, so that the caller needs no `preexec_fn` (unsafe with threads). Linux only; on
other systems the command just runs. PR_SET_PDEATHSIG fires when the *thread* that started this process ends, so start
servers from a thread that outlives them: the main thread.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            sys.exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the mask is inherited, and SIGTERM must reach the server
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
