"""Every query of the dashboard and the alerts, run by a real Prometheus that scrapes a real worker under load.

`WORKER_PICTURES=docs` makes the run longer and keeps the picture for README.md.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import prometheus
from tests.support.kit import PATIENCE_S, Service, clickhouse_client, create_topic, run_worker, wait_until
from tests.support.load import Load
from tests.support.pages import Pages, browse
from tests.support.picture import Line, page
from tests.support.prometheus import GRAFANA
from worker.local import start_prometheus
from worker.monitor.metrics import METRICS

DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "worker.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PICTURES = os.environ.get("WORKER_PICTURES")
LOAD_S = 240 if PICTURES else 25
RATE_INTERVAL = "10s"
pytestmark = pytest.mark.timeout(LOAD_S + 300)
VARIABLES = {"$__rate_interval": RATE_INTERVAL, "$job": ".+", "$instance": ".+", "$topic": ".+"}


class Watched(NamedTuple):
    """A Prometheus that has watched a worker work, lose a consumer and catch up."""

    address: str
    began: float
    ended: float
    written: int  # by the worker's own counter, and Prometheus'
    rows: int = 0  # in the table

    def ask(self, path: str, **words: str) -> Any:
        return prometheus.ask(self.address, path, **words)

    def lines(self, target: dict[str, Any]) -> list[Line]:
        """Run a panel's query over the whole time, as Grafana would."""
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        if target["instant"]:
            found = self.ask("query", query=expression, time=str(self.ended))["result"]
            series = [(item["metric"], [item["value"]]) for item in found]
        else:
            words = {"start": str(self.began), "end": str(self.ended), "step": "1" if LOAD_S < 60 else "2"}
            found = self.ask("query_range", query=expression, **words)["result"]
            series = [(item["metric"], item["values"]) for item in found]
        return [
            Line(
                legend(target["legendFormat"], labels),
                labels,
                [(float(moment), float(value)) for moment, value in values],
            )
            for labels, values in series
        ]


def legend(template: str, labels: dict[str, str]) -> str:
    """Fill a series' labels into {{label}}."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


@pytest.fixture(scope="module")
def watched(kafka: Service, clickhouse: Service) -> Iterator[Watched]:
    topic = f"events_{uuid.uuid4().hex[:6]}"
    create_topic(kafka.address, topic, 4)
    words = ["--topic", topic, "--group-id", topic, "--table", topic, "--metrics-port", "0", "--linger-ms", "200"]
    words += ["--bootstrap-servers", kafka.address, "--backend", "clickhouse", "--clickhouse-url", clickhouse.address]
    began = time.time()
    with run_worker(*words) as worker:
        pages = Pages(worker)
        with start_prometheus(prometheus.scraping(pages.port)) as server:
            load = Load(kafka.address, topic)
            try:
                wait_until(lambda: (pages.metric("messages_total", "written") or 0) > 0, PATIENCE_S)
                wait_until(lambda: time.time() - began > LOAD_S / 2, PATIENCE_S + LOAD_S)
                os.kill(pages.status()["processes"][0]["pid"], signal.SIGKILL)
                wait_until(lambda: pages.metric("restarts_total") == 1, PATIENCE_S)
                wait_until(lambda: time.time() - began > LOAD_S, PATIENCE_S + LOAD_S)
            finally:
                load.stop()
            # Not the lag: what the page shows of it was taken up to a second ago, before the last events came.
            wait_until(lambda: sum(pages.metrics("messages_total").values()) == load.sent, PATIENCE_S)
            wait_until(lambda: sum(pages.metrics("lag_messages").values()) == 0, PATIENCE_S)
            written = pages.metric("messages_total", "written")
            assert written
            watched = Watched(server.address, began, time.time(), int(written))
            total = 'sum(worker_messages_total{outcome="written"})'
            wait_until(
                lambda: watched.ask("query", query=total)["result"][0]["value"][1] == str(int(written)),
                message=f"Prometheus has the worker's own count, {written:.0f}",
            )
            client = clickhouse_client(clickhouse.address)
            rows = client.execute(f"SELECT count() FROM {topic}")[0][0]
            client.disconnect()
            yield watched._replace(ended=time.time(), rows=rows)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_returns_data(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        lines = watched.lines(target)
        assert lines, target["expr"]
        values = [value for line in lines for _, value in line.points]
        assert any(math.isfinite(value) for value in values), target["expr"]
        legends = [line.legend for line in lines]
        assert target["instant"] or len(set(legends)) == len(legends), f"lines with one name: {legends}"


def test_the_variables_have_values(watched: Watched) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"])
        assert found, variable["definition"]
        assert watched.ask(f"label/{found[2]}/values", **{"match[]": found[1]})


def test_prometheus_has_every_metric(watched: Watched) -> None:
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in watched.ask("label/__name__/values")}
    assert METRICS.keys() <= names


def test_the_counters_match_what_was_really_written(watched: Watched) -> None:
    assert watched.written == watched.rows > 0


def test_no_counter_ever_runs_backwards(watched: Watched) -> None:
    """A consumer was killed meanwhile; resets() counts every step back."""
    found = prometheus.resets(watched.address, watched.began, watched.ended)
    assert {name: count for name, count in found.items() if count} == {}


def test_the_alert_rules_are_evaluated_and_silent(watched: Watched) -> None:
    (group,) = watched.ask("rules")["groups"]
    assert len(group["rules"]) == (GRAFANA / "alerts.yml").read_text().count("- alert:")
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule["state"] != "firing", rule["name"]


def test_the_dashboard_can_be_looked_at(watched: Watched, tmp_path: Path) -> None:
    answers = {panel["id"]: [line for target in panel["targets"] for line in watched.lines(target)] for panel in PANELS}
    text, size = page(DASHBOARD, answers)
    (tmp_path / "dashboard.html").write_text(text)
    picture = Path(PICTURES or tmp_path).resolve() / "dashboard.png"
    _, said = browse(f"file://{tmp_path}/dashboard.html", size=size, picture=picture)
    assert said == []
    assert picture.stat().st_size > 50_000
