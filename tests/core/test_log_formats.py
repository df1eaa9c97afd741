"""The formats of a log line: text, the Elastic Common Schema, and the level prefixes of journald."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import log

PROGRAM = """
import logging, sys
from worker.core import log
log.configure(sys.argv[1], "debug", "consumer-0")
logger = logging.getLogger("worker.test")
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logger, level)("a %s\\nin two lines", level, extra=log.fields(topic="t", partition=3, topic_id=None))
try:
    {}["missing"]
except KeyError:
    logger.exception("failed")
"""


def run(log_format: str, stderr: int, env: Mapping[str, str] | None = None) -> None:
    environ = {**os.environ, **(env or {})}
    subprocess.run([sys.executable, "-c", PROGRAM, log_format], stderr=stderr, env=environ, check=True, timeout=60)


def lines_of(log_format: str, *, journal: bool = False) -> list[str]:
    """Return what the program logs to a pipe, which is the journal's if so asked."""
    reader, writer = os.pipe()
    status = os.fstat(writer)
    stream = f"{status.st_dev}:{status.st_ino if journal else status.st_ino + 1}"
    run(log_format, writer, {"JOURNAL_STREAM": stream})
    os.close(writer)
    with os.fdopen(reader) as output:
        return output.read().splitlines()


def test_json_lines_have_the_keys_of_the_elastic_common_schema() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in lines_of("json")]
    assert [line["log.level"] for line in lines] == ["debug", "info", "warning", "error", "critical", "error"]
    for line in lines:
        # The first three in this order: the ECS logging specification asks for it.
        assert list(line)[:3] == ["@timestamp", "log.level", "message"]
        assert line["@timestamp"].endswith("Z")
        assert line["ecs.version"].count(".") == 2
        assert (line["service.name"], line["process.name"]) == ("worker", "consumer-0")
        assert line["log.logger"] == "worker.test"
        assert line["process.pid"] > 0
    assert lines[0]["message"] == "a debug\nin two lines"
    assert lines[0]["worker"] == {"topic": "t", "partition": 3, "topic_id": None}
    assert "error.type" not in lines[0]
    failed = lines[-1]
    assert (failed["message"], failed["error.type"], failed["error.message"]) == ("failed", "KeyError", "'missing'")
    assert failed["error.stack_trace"].startswith("Traceback (most recent call last):\n")
    assert failed["error.stack_trace"].endswith("KeyError: 'missing'")
    assert "worker" not in failed


def test_a_text_line_has_its_traceback_in_the_same_line() -> None:
    lines = lines_of("text")
    assert len(lines) == 6
    assert lines[0].endswith("DEBUG   consumer-0   a debug | in two lines topic=t partition=3 topic_id=None")
    assert " failed | Traceback (most recent call last): | " in lines[-1]
    assert lines[-1].endswith("| KeyError: 'missing'")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_to_the_journal_begin_with_their_level(log_format: str) -> None:
    lines = lines_of(log_format, journal=True)
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert [line[3:].startswith("<") for line in lines] == [False] * 6


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_to_another_stream_have_no_prefix(log_format: str) -> None:
    """Where a unit redirects stderr, JOURNAL_STREAM still names the journal's socket."""
    assert not any(line.startswith("<") for line in lines_of(log_format))


def test_an_error_of_a_command_has_its_level_in_the_journal() -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    command = subprocess.run([sys.executable, "-m", "worker", "rnu"], stderr=writer, env=env, check=False, timeout=60)
    os.close(writer)
    with os.fdopen(reader) as output:
        assert output.read().startswith("<3>worker: unknown command 'rnu'")
    assert command.returncode == 2


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.binary()), st.text())
def test_any_event_is_one_line_of_json(values: dict[str, Any], message: str) -> None:
    record = logging.LogRecord("worker", logging.INFO, "", 0, "%s", (message,), None)
    record.fields = values
    line = log._Json("monitor").format(record)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message
