"""Children that cannot start: no fork storm, one clear error."""

from __future__ import annotations

import socket

import pytest

from tests.support.job import Job
from tests.support.oracle import EXACT, events

pytestmark = pytest.mark.faults


def test_metrics_port_in_use(rows_job: Job) -> None:
    rows_job.create()
    rows_job.send(events(1000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with rows_job.start("--until-end", "--metrics-port", str(port)) as worker:
            assert worker.wait() == 78
    lines = [line for line in worker.stderr if "ERROR" in line]
    assert len(lines) == 1, worker.tail()
    assert f"127.0.0.1:{port}" in lines[0]
    assert "--metrics-port" in lines[0]
    rows_job.finish()
    assert rows_job.judge(range(1000)) == EXACT
