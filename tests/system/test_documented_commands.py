"""Every command of README.md and docs/ is run, in order as a reader would, against real servers.

Commands that cannot run here are listed with the reason. A command that neither runs nor is listed fails the test, and
so does a listed command that no page has.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.kit import PATIENCE_S, clickhouse_client
from worker.local import Server, fetch, start_clickhouse, start_kafka, start_redis

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPIC = "example"
PASSWORD = "of-the-pages-ingest"
EVENTS = 2000

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = ("", "sh", "console", "sql")
_PACKAGES = "installs packages"
_DOCKER = "needs a Docker engine"
_KUBERNETES = "needs a cluster"
_SYSTEMD = "needs root and a running systemd"
NOT_RUN = {
    "make demo": "lasts until ^C",
    "make test": "runs this test",
    "pip install .": _PACKAGES,
    "pip install 'kafka-ingest-worker[native]'": _PACKAGES,
    "python3 -m venv /opt/worker": _PACKAGES,
    "/opt/worker/bin/pip install --require-hashes -r constraints-run.txt": _PACKAGES,
    "/opt/worker/bin/pip install --no-deps .": _PACKAGES,
    "docker build -t kafka-ingest-worker:0.1.0 .": _DOCKER,
    "docker run --rm --read-only --tmpfs /tmp --stop-timeout 60 -p 127.0.0.1:9108:9108 -e WORKER_METRICS_HOST=0.0.0.0 "
    "--env-file worker.env kafka-ingest-worker:0.1.0 run": _DOCKER,
    "docker compose up --build": _DOCKER,
    "kubectl create secret generic worker --from-file=clickhouse-password --from-file=kafka-password": _KUBERNETES,
    "kubectl apply -f deploy/kubernetes/worker.yaml": _KUBERNETES,
    "kubectl apply -f deploy/kubernetes/podmonitor.yaml": _KUBERNETES,
    "kubectl apply -f deploy/kubernetes/keda.yaml": _KUBERNETES,
    "install -D -m 644 deploy/systemd/worker.env /etc/worker/worker.env": _SYSTEMD,
    "install -m 600 clickhouse-password /etc/worker/clickhouse-password": _SYSTEMD,
    "install -m 644 deploy/systemd/worker.service /etc/systemd/system/": _SYSTEMD,
    "systemctl enable --now worker": _SYSTEMD,
    "journalctl -u worker -f": _SYSTEMD,
}
_KAFKA_TOOLS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
}


class Environment(NamedTuple):
    """The environment of a page's commands. `replacements` has the local server for each address of the pages."""

    env: Mapping[str, str]
    replacements: Mapping[str, str]


def commands(page: Path) -> list[str]:
    """Return the page's commands in order, without comments; a block of SQL is one for each statement."""
    texts: list[str] = []
    for kind, block in _BLOCK.findall(page.read_text()):
        if kind == "sql":
            texts += [f"run-sql {shlex.quote(part.strip())}" for part in block.split(";") if part.strip()]
        elif kind in _COMMANDS:
            lines = block.replace("\\\n", " ").splitlines()
            words = (re.sub(r"(^|\s+)#.*$", "", line.removeprefix("$ ")).strip() for line in lines)
            texts += filter(None, words)
    return texts


# The tests of these pages have the events of their jobs.
OF_OTHER_TESTS = {"mapping.md": "test_jobs.py", "recipes.md": "test_recipes.py", "transform.md": "test_transform.py"}
WITH_COMMANDS = [
    page
    for page in PAGES
    if page.name not in OF_OTHER_TESTS and any(command not in NOT_RUN for command in commands(page))
]


@pytest.fixture
def environment(tmp_path: Path, schema_registry: Server) -> Iterator[Environment]:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    users = {"ingest": {"password": PASSWORD}}
    with start_kafka() as kafka, start_redis() as redis, start_clickhouse(users=users) as clickhouse:
        yield Environment(
            {
                "PATH": f"{programs(tmp_path)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "WORKER_BOOTSTRAP_SERVERS": kafka.address,
                "WORKER_PROCESSES": "2",
                "WORKER_UNTIL_END": "true",  # else `run` would not end
                "WORKER_LINGER_MS": "100",
                "WORKER_METRICS_PORT": "0",
            },
            {
                "kafka-1:9092,kafka-2:9092": kafka.address,
                "redis://redis:6379/0": redis.address,
                "@clickhouse:9000/": f"@127.0.0.1:{clickhouse.port}/",
                "/run/secrets/clickhouse": str(secret),
                "http://registry:8081": schema_registry.address,
            },
        )


def programs(directory: Path) -> Path:
    """Create the programs that the pages use and this machine lacks."""
    target = directory / "bin"
    target.mkdir()
    texts = {
        name: f'#!/bin/sh\nexec {fetch.java()} -XX:TieredStopAtLevel=1 -cp "{fetch.kafka_libs()}/*" {main} "$@"\n'
        for name, main in _KAFKA_TOOLS.items()
    }
    texts["run-sql"] = f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n'
    for name, text in texts.items():
        (target / name).write_text(text)
        (target / name).chmod(0o755)
    return target


def bash(script: str, environment: Environment, directory: Path) -> str:
    """Run a script that stops at its first failure; return its output, with each command before its output."""
    output = directory / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-euxo", "pipefail", "-c", script],
            env={**os.environ, **environment.env},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(5 * PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert code == 0, output.read_text()[-5000:]
    return output.read_text()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, environment: Environment, tmp_path: Path) -> None:
    script = "\n".join(command for command in commands(page) if command not in NOT_RUN)
    for address, local in environment.replacements.items():
        script = script.replace(address, local)
    produce = f"python -m worker produce --topic {TOPIC} --partitions 4 --num-messages {EVENTS} --bad-ratio 0.01"
    printed = bash(f"{produce}\n{script}", environment, tmp_path)
    assert "FAIL" not in printed
    assert "Total devices: " in printed


def test_every_listed_command_is_on_a_page() -> None:
    assert set(NOT_RUN) <= {command for page in PAGES for command in commands(page)}


if __name__ == "__main__":  # run-sql
    user, _, rest = os.environ["WORKER_CLICKHOUSE_URL"].partition("@")
    secret = Path(os.environ["WORKER_CLICKHOUSE_PASSWORD_FILE"]).read_text()
    print(clickhouse_client(f"{user}:{secret}@{rest}").execute(sys.argv[1]))
