"""One server process: its directory, port, log, start, stop and the faults that tests inject."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.core.errors import ExitCode, Fatal
from worker.local.directory import Directory

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02
_LAUNCH = str(Path(__file__).with_name("launch.py"))
_given_ports: set[int] = set()


class Server:
    """A server of this machine: `with start_redis() as server` stops it and removes its directory at the end.

    `address` is what the worker's options take; it and the data stay the same over `stop`/`kill` and `start`. The
    process has its own session (a terminal's ^C does not reach it) and ends with its parent, even with a killed one
    (Linux). Start it from the main thread: see `launch`.
    """

    def __init__(
        self,
        directory: Directory,
        command: Sequence[str],
        answers: Callable[[], bool],
        *,
        address: str,
        port: int,
        http_port: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs yet. `answers` says whether the server serves; an OSError from it means not yet."""
        self.address = address
        self.port = port
        self.http_port = http_port
        self.directory = directory.path
        self.log = directory.path / "log"
        self._owned = directory
        self._command = list(command)
        self._answers = answers
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    def start(self) -> None:
        """Start and return when the server answers; Fatal with the log's tail when it ends early or stays silent."""
        if self.pid:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCH, str(os.getpid()), *self._command],
                cwd=self.directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._serves():
            if self._process.poll() is not None:
                raise Fatal(
                    f"{self._command[0]} ended with {self._process.returncode}:\n{self.log_tail()}",
                    code=ExitCode.FAILED,
                )
            if time.monotonic() > deadline:
                self.kill()
                raise Fatal(
                    f"{self._command[0]} did not answer within {START_TIMEOUT_S:.0f} s:\n{self.log_tail()}",
                    code=ExitCode.FAILED,
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it in good order (SIGTERM); killed when it has not ended after 30 s."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a paused process takes the first signal only now
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL, whole process group)."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers, as with a hung host."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its directory: the data is not wanted any more."""
        self.kill()
        self._owned.remove()

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _serves(self) -> bool:
        try:
            return self._answers()
        except OSError:
            return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, below the ephemeral range.

    Within that range a client that retries while the server is down can connect to itself and keep the port.
    """
    while True:
        port = 20000 + secrets.randbelow(12000)
        if port in _given_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


def exchange(port: int, request: bytes, size: int = 4096) -> bytes:
    """Send to a local port and return the first bytes of the answer; OSError when there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        return connection.recv(size)
