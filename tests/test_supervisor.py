"""The supervisor with children that crash, hang, ignore signals or end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.kit import PATIENCE_S, alive, children, wait_until

ROOT = Path(__file__).parent.parent


class Supervised:
    """A supervisor in a process of its own; `out` and `err` grow while it runs."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._out, self._err = directory / "out", directory / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            command = [sys.executable, "-m", "tests.support.supervised", kind]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def consumers(self) -> list[int]:
        """Return the pids of all consumers that were started, oldest first."""
        return [int(pid) for pid in re.findall(r"consumer \d+ (\d+)", self.out)]

    def wait_for_consumers(self, count: int) -> list[int]:
        wait_until(lambda: len(self.consumers()) >= count, PATIENCE_S, f"{count} consumers started")
        return self.consumers()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def supervised(kind: str, directory: Path) -> Iterator[Supervised]:
    run = Supervised(kind, directory)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_monitor_stops_last(number: signal.Signals, tmp_path: Path) -> None:
    with supervised("healthy", tmp_path) as run:
        pids = run.wait_for_consumers(2)
        run.process.send_signal(number)
        assert run.wait() == 0
        assert run.out.endswith("monitor stops last\n")
        assert not any(map(alive, pids))


def test_a_signal_after_the_end_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with supervised("healthy", tmp_path) as run:
        run.wait_for_consumers(2)
        run.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "ledger of all partitions" in run.err, PATIENCE_S, "it has stopped")
        while run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0


def test_a_signal_to_the_whole_group_does_not_end_the_monitor_early(tmp_path: Path) -> None:
    """systemd with KillMode=control-group and a shell's `kill -- -PGID` signal the whole group."""
    with supervised("healthy", tmp_path) as run:
        pids = run.wait_for_consumers(2)
        os.killpg(run.process.pid, signal.SIGTERM)
        assert run.wait() == 0
        assert run.out.endswith("monitor stops last\n")
        assert not any(map(alive, pids))


@pytest.mark.parametrize("kind", ["healthy", "halt"])
def test_the_ledger_is_logged_at_the_end_in_every_case(kind: str, tmp_path: Path) -> None:
    with supervised(kind, tmp_path) as run:
        run.wait_for_consumers(2)
        if kind == "healthy":
            run.process.terminate()
        assert run.wait() == int(kind == "halt")
        lines = [line for line in run.err.splitlines() if " ledger" in line]
    accounts = r"consumed=(\d+) written=(\d+) dead_lettered=0 skipped=0 replayed=0 in_flight=(\d+)$"
    matches = [re.search(rf" ledger topic=t partition={i} {accounts}", line) for i, line in enumerate(lines[:2])]
    total = re.search(rf" ledger of all partitions {accounts}", lines[2])
    assert all(matches)
    assert total
    by_partition = [[int(number) for number in match.groups()] for match in matches if match]
    assert [int(number) for number in total.groups()] == [sum(column) for column in zip(*by_partition, strict=True)]
    assert all(consumed == written + in_flight > 0 for consumed, written, in_flight in by_partition)


def test_a_killed_consumer_is_replaced_in_its_slot(tmp_path: Path) -> None:
    with supervised("healthy", tmp_path) as run:
        victim = run.wait_for_consumers(2)[0]
        os.kill(victim, signal.SIGKILL)
        run.wait_for_consumers(3)
        slots = re.findall(r"consumer (\d+) \d+", run.out)
        assert slots[2] == slots[0]
        assert "SIGKILL (out of memory?" in run.err


def test_a_hung_consumer_is_replaced(tmp_path: Path) -> None:
    with supervised("hung", tmp_path) as run:
        run.wait_for_consumers(3)
        first, second, *_ = re.findall(r"consumer 0 (\d+)", run.out)
        assert "consumer-0 made no progress" in run.err
        assert not alive(int(first))
        assert first != second


def test_a_configuration_error_stops_all_processes_with_78_and_one_message(tmp_path: Path) -> None:
    with supervised("config", tmp_path) as run:
        assert run.wait() == 78
        assert "the table is a view" in run.err
        assert "Traceback" not in run.err


def test_an_error_that_a_restart_cannot_fix_stops_all_processes_with_1(tmp_path: Path) -> None:
    with supervised("halt", tmp_path) as run:
        assert run.wait() == 1
        assert "too many bad events" in run.err


def test_a_crash_loop_backs_off_and_exits_with_1(tmp_path: Path) -> None:
    with supervised("crash", tmp_path) as run:
        assert run.process.wait(3 * PATIENCE_S) == 1
        assert "in a row without progress: stopping" in run.err
        assert "RuntimeError: defect" in run.err
        assert len(run.consumers()) <= 14  # restarts are spaced out


def test_a_consumer_that_does_not_drain_is_killed_after_the_timeout(tmp_path: Path) -> None:
    with supervised("ignores-sigterm", tmp_path) as run:
        run.wait_for_consumers(2)
        run.process.terminate()
        assert run.wait() == 1
        assert "still running after the drain timeout" in run.err


def test_an_unclean_drain_sets_the_exit_code(tmp_path: Path) -> None:
    with supervised("unclean", tmp_path) as run:
        run.wait_for_consumers(2)
        run.process.terminate()
        assert run.wait() == 1


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    with supervised("ignores-sigterm", tmp_path) as run:
        run.wait_for_consumers(2)
        run.process.terminate()
        wait_until(lambda: "stopping: SIGTERM" in run.err, PATIENCE_S, "the first signal is handled")
        run.process.terminate()
        assert run.wait() == 1
        assert "stopping at once" in run.err


def test_finished_stops_all_processes_with_0(tmp_path: Path) -> None:
    with supervised("finished", tmp_path) as run:
        assert run.wait() == 0


def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with supervised("healthy", tmp_path) as run:
        run.wait_for_consumers(2)
        child_pids = children(run.process.pid)
        assert len(child_pids) == 3
        run.process.kill()
        wait_until(lambda: not any(map(alive, child_pids)), 5, "all children have ended")


def test_sigusr1_prints_every_stack(tmp_path: Path) -> None:
    with supervised("healthy", tmp_path) as run:
        run.wait_for_consumers(2)
        run.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: run.err.count("(most recent call first)") >= 4, PATIENCE_S, "four stacks")
