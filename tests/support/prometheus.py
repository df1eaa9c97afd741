"""Queries to a real Prometheus that scrapes a worker and evaluates grafana/alerts.yml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.support.kit import PATIENCE_S
from worker.monitor.metrics import METRICS

GRAFANA = Path(__file__).parents[2] / "grafana"
_SERIES = {"counter": ("",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ()}


def scraping(port: int, rules: Path = GRAFANA / "alerts.yml") -> str:
    """Return grafana/prometheus.yml for a worker on this machine, with intervals of one second."""
    config = (GRAFANA / "prometheus.yml").read_text()
    config = re.sub(r"(scrape|evaluation)_interval: \d+s", r"\1_interval: 1s", config)
    return config.replace("worker:9108", f"127.0.0.1:{port}").replace("alerts.yml]", f"{rules}]")


def hastened(rules: str, scale: float) -> str:
    """Return alert rules with each `for:` multiplied by `scale`; the windows of the queries stay."""
    seconds = {"s": 1, "m": 60, "h": 3600}

    def shorter(match: re.Match[str]) -> str:
        return f"for: {int(float(match[1]) * seconds[match[2]] * scale * 1000)}ms"

    return re.sub(r"for: (\d+)([smh])$", shorter, rules, flags=re.MULTILINE)


def ask(address: str, path: str, **words: str) -> Any:
    """Return the data of a response of Prometheus' API."""
    with urlopen(f"{address}/api/v1/{path}?{urlencode(words)}", timeout=PATIENCE_S) as answer:
        return json.load(answer)["data"]


def value(address: str, expression: str, at: float) -> float | None:
    """Return the single value of an expression at a time; None if there is none."""
    result = ask(address, "query", query=expression, time=str(at))["result"]
    return float(result[0]["value"][1]) if result else None


def resets(address: str, began: float, ended: float) -> dict[str, float]:
    """Return how often the series of each counter and histogram decreased, by metric name."""
    span = f"{int(ended - began) + 1}s"
    names = [name + suffix for name, kind in METRICS.items() for suffix in _SERIES[kind.type]]
    counts = {name: value(address, f"sum(resets({name}[{span}]))", ended) for name in names}
    missing = [name for name, count in counts.items() if count is None]
    assert not missing, f"Prometheus has no {missing}"
    return {name: count for name, count in counts.items() if count is not None}


def fired(address: str, began: float, ended: float) -> set[str]:
    """Return the names of the alerts that fired at any time."""
    span = f"{int(ended - began) + 1}s"
    expression = f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{span}]))'
    result = ask(address, "query", query=expression, time=str(ended))["result"]
    return {item["metric"]["alertname"] for item in result}
