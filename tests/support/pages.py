"""The HTTP pages of a running worker, and a browser that loads them."""

from __future__ import annotations

import http.client
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from tests.support.kit import PATIENCE_S, Worker
from worker.local import fetch

# As root a browser needs --no-sandbox; the other options keep it from using the network.
_CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
_ADDRESS = r"readyz are at (http://127\.0\.0\.1:\d+)/"


class Pages:
    """The pages of a worker that was started with `--metrics-port 0`; a restarted monitor uses another port."""

    def __init__(self, worker: Worker) -> None:
        worker.wait_for(_ADDRESS)
        self._worker = worker

    @property
    def url(self) -> str:
        return [match[1] for line in list(self._worker.stderr) if (match := re.search(_ADDRESS, line))][-1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = orjson.loads(self.get("/status.json")[1])
        return status

    def metrics(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a metric by the values of their labels (in the order of the labels' names)."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1].decode())
            for sample in family.samples
            if sample.name == f"worker_{name}"
        }

    def counters(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return all samples that must never decrease, by name and labels."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1].decode())
            for sample in family.samples
            if family.type in ("counter", "histogram")
        }

    def metric(self, name: str, *labels: str) -> float | None:
        return self.metrics(name).get(labels)


def browse(
    url: str, *, size: tuple[int, int] = (1280, 1000), dark: bool = False, picture: Path | None = None
) -> tuple[str, list[str]]:
    """Load a page and run its script for some seconds; return its DOM as text and its console output.

    With `picture` a screenshot is written to that file instead, and the text is empty.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        done = subprocess.run(
            [
                fetch.tool("chromium"),
                *_CHROMIUM,
                f"--user-data-dir={profile}",
                f"--window-size={size[0]},{size[1]}",
                *(["--blink-settings=preferredColorScheme=0"] if dark else []),
                *([f"--screenshot={picture}"] if picture else ["--dump-dom"]),
                "--virtual-time-budget=4000",
                url,
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
