"""The checks of options: the metrics port, and batches that would make too many parts in ClickHouse."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from worker.commands.check.finding import Finding, fail, ok, warn
from worker.config.settings import Settings
from worker.core.native import describe_reader

_FEW_ROWS = 1000
_INSERTS_S = 20  # ClickHouse merges about so many new parts without falling behind


def check_options(settings: Settings, partitions: int) -> Iterator[Finding]:
    """Yield the findings. `partitions` is the number in all topics; 0: unknown."""
    yield _check_port(settings)
    yield ok("reader", describe_reader(settings.reader))
    if "clickhouse" not in settings.backends:
        return
    if settings.batch_rows < _FEW_ROWS:
        yield warn(
            "options",
            f"--batch-rows {settings.batch_rows} makes many small parts in ClickHouse",
            "--batch-rows 100000",
        )
    inserts = partitions * 1000 / max(settings.linger_ms, 1)  # each batch is of one partition
    if inserts > _INSERTS_S:
        yield warn(
            "options",
            f"--linger-ms {settings.linger_ms} lets {partitions} partitions insert {inserts:.0f} times a second into "
            "ClickHouse",
            f"--linger-ms {max(1000, -(-1000 * partitions // _INSERTS_S))}",
        )


def _check_port(settings: Settings) -> Finding:
    subject = "metrics"
    address = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        addresses = socket.getaddrinfo(settings.metrics_host, settings.metrics_port, type=socket.SOCK_STREAM)
        with socket.socket(*addresses[0][:3]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(addresses[0][4])
    except OSError as error:
        return fail(
            subject,
            f"{address} cannot be served: {error.strerror} (a running worker may use it)",
            "--metrics-port 0 (any free port) or another --metrics-host",
        )
    return ok(subject, f"{address} is free" if settings.metrics_port else "any free port")
