"""deploy/ and docker-compose.yml as files: what they name exists in the code, and they agree with each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker import cli
from worker.config.settings import Settings
from worker.config.sources import load
from worker.local import fetch
from worker.monitor.metrics import METRICS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "worker.service"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECONDS_OF_MONITOR = 15


def manifests(name: str) -> dict[str, Any]:
    """Return a file's objects by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())}


KUBERNETES = manifests("worker.yaml")
POD: dict[str, Any] = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
KEDA: dict[str, Any] = manifests("keda.yaml")["ScaledObject"]["spec"]


def loaded(env: dict[str, str], secrets: Path) -> Settings:
    """Load the variables as the worker does, with files in the place of the secrets; none may be unknown."""
    secrets.write_text("secret")
    usable = {name: str(secrets) if name.endswith("_FILE") else value for name, value in env.items()}
    settings, origins = load({}, usable)
    assert set(origins.values()) == {name for name in env if name.startswith("WORKER_")}
    return settings


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def compose_workers() -> Iterator[dict[str, Any]]:
    yield from (one for one in COMPOSE["services"].values() if "build" in one)


def test_the_deployments_variables_are_options(tmp_path: Path) -> None:
    env = {one["name"]: one["value"] for one in CONTAINER["env"]}
    settings = loaded(env, tmp_path / "secret")
    assert settings.metrics_host == "0.0.0.0"
    assert POD["terminationGracePeriodSeconds"] > settings.drain_timeout + SECONDS_OF_MONITOR
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [settings.metrics_port]
    assert KUBERNETES["Service"]["spec"]["ports"][0]["port"] == settings.metrics_port
    cli.parse(CONTAINER["args"])
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in POD["volumes"]}
    for name, value in env.items():
        if name.endswith("_FILE"):
            assert str(Path(value).parent) in mounts


def test_the_pod_may_do_nothing_that_it_does_not_need() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert str(POD["securityContext"]["runAsUser"]) in DOCKERFILE
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert POD["enableServiceLinks"] is False


def test_probes_ask_pages_that_exist() -> None:
    pages = (ROOT / "worker" / "monitor" / "process.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        page = CONTAINER[probe]["httpGet"]
        assert f'"{page["path"]}": self.' in pages
        assert page["port"] == CONTAINER["ports"][0]["name"]
    (endpoint,) = manifests("podmonitor.yaml")["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (CONTAINER["ports"][0]["name"], "/metrics")


def test_every_selector_finds_the_pods() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    monitor = manifests("podmonitor.yaml")["PodMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert labels[monitor["jobLabel"]] == "worker"  # the alerts' job


def test_keda_counts_processes_and_not_pods() -> None:
    env = {one["name"]: one["value"] for one in CONTAINER["env"]}
    text = (DEPLOY / "kubernetes" / "keda.yaml").read_text()
    sums = re.search(r"processes of a pod = (\d+) / (\d+) = (\d+)", text)
    assert sums
    partitions, processes, pods = map(int, sums.groups())
    assert (processes, pods) == (int(env["WORKER_PROCESSES"]), KEDA["maxReplicaCount"])
    assert pods * processes == partitions
    kafka, prometheus = (trigger["metadata"] for trigger in KEDA["triggers"])
    assert int(kafka["lagThreshold"]) == 50_000 * processes * 10
    assert kafka["topic"] == env["WORKER_TOPIC"]
    assert kafka["consumerGroup"] == env["WORKER_GROUP_ID"]
    assert kafka["bootstrapServers"] == env["WORKER_BOOTSTRAP_SERVERS"]
    assert set(re.findall(r"worker_\w+", prometheus["query"])) <= METRICS.keys()
    assert KEDA["scaleTargetRef"]["name"] == KUBERNETES["Deployment"]["metadata"]["name"]


def test_the_units_variables_are_options_and_it_waits_for_the_drain(tmp_path: Path) -> None:
    lines = (DEPLOY / "systemd" / "worker.env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    env |= {name: value for name, _, value in (line.partition("=") for line in unit_values("Environment"))}
    settings = loaded(env, tmp_path / "secret")
    assert int(unit_values("TimeoutStopSec")[0]) > settings.drain_timeout + SECONDS_OF_MONITOR
    assert unit_values("KillMode") == ["mixed"]
    assert unit_values("RestartPreventExitStatus") == ["2 78"]
    (command,) = unit_values("ExecStart")
    cli.parse(command.partition("-m worker ")[2].split())
    for credential in unit_values("LoadCredential"):
        assert f"%d/{credential.partition(':')[0]}" in env.values()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/worker/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "worker.service" not in done.stderr, done.stderr


def test_compose_commands_and_variables_are_the_workers(tmp_path: Path) -> None:
    for one in compose_workers():
        words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in one.get("command", [])]
        cli.parse(words)
        env = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in one["environment"].items()}
        loaded(env, tmp_path / "secret")
        assert one["image"] == CONTAINER["image"]


def test_images_are_pinned_and_are_those_of_the_tests() -> None:
    images = dict(one["image"].split(":") for one in COMPOSE["services"].values())
    bases = set(re.findall(r"^FROM (?:--\S+ )?(\S+)", DOCKERFILE, re.MULTILINE))
    assert len(bases) == 1  # what was compiled for one Python runs on the same
    images |= dict(base.split(":") for base in bases)
    for image, tag in images.items():
        assert re.fullmatch(r"v?\d+\.\d+\.\d+(\.\d+)?(-slim-bookworm)?", tag), image
    assert images["apache/kafka"] == fetch.KAFKA_VERSION
    assert images["clickhouse/clickhouse-server"].rpartition(".")[0] == fetch.CHDB_VERSION.partition("-")[0]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images["kafka-ingest-worker"] == version


@pytest.mark.parametrize("status", [200, 503])
def test_the_images_health_check_asks_for_livez(status: int) -> None:
    """Run it as the container would, against a page at another port."""
    (words,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    command = json.loads(words)
    asked = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"WORKER_METRICS_PORT": str(server.server_port)}
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, check=False, timeout=60)
        server.shutdown()
    assert (done.returncode == 0) == (status == 200), done.stderr
    assert asked == ["/livez"]
    default = str(Settings().metrics_port)
    assert f", {default})" in command[-1]
    assert f"EXPOSE {default}\n" in DOCKERFILE
    for service in compose_workers():
        runs = service.get("command", ["run"])[0] == "run"
        assert service.get("healthcheck", {}) == ({} if runs else {"disable": True})


def test_what_is_mounted_or_copied_exists() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists()
            assert f"!{source}\n" in (ROOT / ".dockerignore").read_text()
