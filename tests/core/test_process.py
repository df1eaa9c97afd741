from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest

from worker.core import process


def test_the_resident_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = process.resident_bytes()
    monkeypatch.setattr("builtins.open", _no_proc)
    peak = process.resident_bytes()
    assert 1 << 20 < measured <= peak * 1.1


def _no_proc(*_: object) -> object:
    raise FileNotFoundError


def test_a_name_is_cut_at_15_characters() -> None:
    pid = os.fork()
    if pid == 0:
        process.set_name("worker/cons-1234567")
        os._exit(0 if Path("/proc/self/comm").read_text() == "worker/cons-123\n" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_a_state_reaches_the_service_manager(tmp_path: Path, abstract: bool) -> None:
    address = f"@{uuid.uuid4().hex}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(60)
        process.ServiceManager(address).notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    process.ServiceManager(str(tmp_path / "gone")).notify("READY=1")
    process.ServiceManager(None).notify("READY=1")
