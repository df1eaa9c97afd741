"""A real schema registry on this machine: Apicurio, which also has Confluent's REST interface."""

from __future__ import annotations

from pathlib import Path

from worker.local import fetch
from worker.local.directory import Directory
from worker.local.process import Server, exchange, free_port

VERSION = "2.6.13.Final"  # the newest that runs on Java 17
_ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_PATH = "/apis/ccompat/v7"


def start_schema_registry() -> Server:
    """Return a schema registry for `with`; `address` is its URL. It keeps its schemas until its process ends."""
    program = _program() / f"apicurio-registry-app-{VERSION}-runner.jar"
    directory = Directory("schema-registry")
    port = free_port()
    options = [f"-Dquarkus.http.port={port}", "-Dquarkus.http.host=127.0.0.1", "-Xmx384m", "-XX:+UseSerialGC"]
    return Server(
        directory,
        [fetch.java(), *options, "-jar", str(program)],
        lambda: b" 200 " in exchange(port, f"GET {_PATH}/subjects HTTP/1.0\r\n\r\n".encode()),
        address=f"http://127.0.0.1:{port}{_PATH}",
        port=port,
        http_port=port,
    )


def _program() -> Path:
    def download(target: Path) -> None:
        fetch.run(
            [fetch.tool("mvn"), "-q", "-B", _COPY, f"-Dartifact={_ARTIFACT}", f"-DoutputDirectory={target}"], target
        )
        (archive,) = target.glob("*.tar.gz")
        fetch.run(["tar", "-xzf", archive.name], target)
        archive.unlink()

    return fetch.once(f"apicurio-{VERSION}", f"fetching Apicurio {VERSION} (142 MB, Maven)", download)
