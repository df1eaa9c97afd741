"""A server process: its directory, port, log, start, stop, and the faults that tests inject."""

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
from typing import Self

from worker.core.errors import ExitCode, Fatal
from worker.local.directory import Directory

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02
_LAUNCH = str(Path(__file__).with_name("launch.py"))
_used_ports: set[int] = set()


class Server:
    """A server on this machine: `with start_redis() as server` stops it and removes its directory at the end.

    `address` is the value for the worker's option. The address and the data survive `stop`/`kill` and `start`. The
    process has its own session (a terminal's ^C does not reach it) and ends with its parent, even if that is killed
    (Linux). Start it from the main thread: see `launch`.
    """

    def __init__(
        self,
        directory: Directory,
        command: Sequence[str],
        is_ready: Callable[[], bool],
        *,
        address: str,
        port: int,
        http_port: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Does not start it. `is_ready` returns whether the server responds; an OSError means not yet."""
        self.address = address
        self.port = port
        self.http_port = http_port
        self.directory = directory.path
        self.log = directory.path / "log"
        self._owned = directory
        self._command = list(command)
        self._is_ready = is_ready
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 if it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    def start(self) -> None:
        """Start and return when the server is ready; Fatal with the end of the log if it exits or does not respond."""
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
        while not self._responds():
            if self._process.poll() is not None:
                raise self._failed(f"ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                self.kill()
                raise self._failed(f"did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop it with SIGTERM; kill it if it has not ended after 30 s."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a paused process handles SIGTERM only now
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Kill it at once (SIGKILL to the whole process group)."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop the process (SIGSTOP): connections stay open without a response, as with a hung host."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its directory with the data."""
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, text: str) -> Fatal:
        return Fatal(f"{self._command[0]} {text}:\n{self.log_tail()}", code=ExitCode.FAILED)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _responds(self) -> bool:
        try:
            return self._is_ready()
        except OSError:
            return False


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the ephemeral range.

    In that range a client that retries while the server is down can connect to itself and keep the port.
    """
    while True:
        port = 20000 + secrets.randbelow(12000)
        if port in _used_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _used_ports.add(port)
            return port


def exchange(port: int, request: bytes, size: int = 4096) -> bytes:
    """Send to a local port and return the first bytes of the response; OSError if there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        return connection.recv(size)
