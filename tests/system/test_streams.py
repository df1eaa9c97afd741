"""Standard streams that cannot be written: each command ends without a traceback, with a documented exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.kit import PATIENCE_S, Service, create_topic, send
from tests.support.served import Served
from worker.config.settings import Settings
from worker.core.batch import DeadLetter
from worker.core.errors import ExitCode
from worker.kafka.dead_letters import DeadLetterProducer

ROOT = Path(__file__).parents[2]
SIGPIPE = 128 + signal.SIGPIPE
EVENT = b'{"timestamp": "2024-01-01T00:00:00Z", "device_ip": "10.0.0.%d", "error_code": 3}'


class Ended:
    """A shell command with `worker` in it: the exit codes of its pipeline, and what reached stdout and stderr."""

    def __init__(self, command: str, env: dict[str, str]) -> None:
        script = f'worker() {{ "{sys.executable}" -m worker "$@"; }}\n{command}\necho "codes ${{PIPESTATUS[*]}}" >&9'
        reading, writing = os.pipe()
        with os.fdopen(reading) as codes:
            process = subprocess.Popen(
                ["bash", "-c", script.replace(">&9", f">&{writing}")],
                env={**os.environ, "PYTHONPATH": str(ROOT), "WORKER_METRICS_PORT": "0", **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[writing],
                start_new_session=True,
            )
            os.close(writing)
            try:
                self.stdout, self.stderr = process.communicate(timeout=PATIENCE_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
            self.codes = [int(word) for word in codes.read().split()[1:]]
        assert "Traceback" not in self.stderr + self.stdout, self.stderr
        assert "Exception ignored" not in self.stderr, self.stderr


@pytest.fixture
def env(kafka: Service, topic_name: str, group_id: str, redis_env: dict[str, str]) -> dict[str, str]:
    """A topic with 50 events and 3000 dead letters."""
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, [EVENT % n for n in range(50)])
    settings = Settings(topic=topic_name, group_id=group_id, bootstrap_servers=kafka.address)
    dead_letters = [DeadLetter(offset, b"bad", "not_json", "") for offset in range(3000)]
    DeadLetterProducer(settings).write(topic_name, 0, dead_letters)
    return redis_env


@pytest.mark.parametrize("command", ["check", "dlq list --limit 3000", "schema", "--help", "--print-config"])
def test_a_reader_that_ends_early_ends_the_command_with_141(env: dict[str, str], command: str) -> None:
    ended = Ended(f"worker {command} | (exec <&-; sleep 0)", env)
    assert ended.codes == [SIGPIPE, 0], ended.stderr
    assert ended.stderr == ""
    assert Ended(f"worker {command} | cat > /dev/null", env).codes == [ExitCode.OK, 0]


def test_head_gets_its_line(env: dict[str, str]) -> None:
    ended = Ended("worker dlq list --limit 3000 | head -1", env)
    assert ended.codes == [SIGPIPE, 0]
    assert "not_json" in ended.stdout
    assert ended.stderr == ""


@pytest.fixture
def served() -> Iterator[Served]:
    accounts = dict.fromkeys(
        ("consumed", "written", "dead_lettered", "skipped", "replayed", "in_flight", "unaccounted"), 0
    )
    status = {
        "accounts": accounts, "topic": "t", "unready": "", "lag": 0, "lag_s": 0.0, "devices": 1,
        "rates": {"written": 0.0}, "processes": [], "restarts": 0,
        "invalid": {"text": "", "causes": []},
    }  # fmt: skip
    server = Served(orjson.dumps(status))
    yield server
    server.stop()


def test_top_ends_with_its_reader(served: Served) -> None:
    ended = Ended(f"worker top --metrics http://{served.address} | head -1", {})
    assert ended.codes == [SIGPIPE, 0]
    assert "caught up" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize("command", ["count", "check", "dlq list", "schema", "--help", "--print-config"])
def test_a_full_device_is_an_error(env: dict[str, str], command: str) -> None:
    ended = Ended(f"worker {command} > /dev/full", env)
    assert ended.codes == [ExitCode.FAILED]
    assert ended.stderr == "worker: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("command", ["count", "check", "dlq list", "schema"])
def test_a_closed_stdout_is_an_error_where_it_has_results(env: dict[str, str], command: str) -> None:
    ended = Ended(f"worker {command} >&-", env)
    assert ended.codes == [ExitCode.FAILED]
    assert ended.stderr == "worker: cannot write to stdout: Bad file descriptor\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_run_needs_no_standard_streams(env: dict[str, str], closed: str) -> None:
    ended = Ended(f"worker run --until-end {closed}", env)
    assert ended.codes == [ExitCode.OK], ended.stderr
    assert ("Total devices: " in ended.stdout) == (closed == "2>&-")
    assert Ended("worker count", env).stdout == "Total devices: 50\n"


@pytest.mark.parametrize("command", ["count", "check", "dlq stats"])
def test_a_closed_stderr_changes_nothing(env: dict[str, str], command: str) -> None:
    ended = Ended(f"worker {command} 2>&-", env)
    assert ended.codes == [ExitCode.OK]
    assert ended.stdout


def test_an_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    for closed in ("2>&-", "2> /dev/full"):
        assert Ended(f"worker rnu {closed}", {}).codes == [ExitCode.USAGE]
