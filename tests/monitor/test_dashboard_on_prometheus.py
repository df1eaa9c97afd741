"""Every query of the dashboard and the alerts, run by a real Prometheus that scrapes a real worker under load.

`WORKER_PICTURES=docs` makes the run longer and writes the picture of README.md.
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


class Scraped(NamedTuple):
    """A Prometheus that scraped a worker while a consumer was killed and until the worker had caught up."""

    address: str
    began: float
    ended: float
    written: int  # by the worker's counter, which Prometheus has too
    rows: int = 0  # in the table

    def ask(self, path: str, **words: str) -> Any:
        return prometheus.ask(self.address, path, **words)

    def lines(self, target: dict[str, Any]) -> list[Line]:
        """Run a panel's query over the whole time, as Grafana does."""
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        if target["instant"]:
            result = self.ask("query", query=expression, time=str(self.ended))["result"]
            series = [(item["metric"], [item["value"]]) for item in result]
        else:
            words = {"start": str(self.began), "end": str(self.ended), "step": "1" if LOAD_S < 60 else "2"}
            result = self.ask("query_range", query=expression, **words)["result"]
            series = [(item["metric"], item["values"]) for item in result]
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
def scraped(kafka: Service, clickhouse: Service, redis_server: Service) -> Iterator[Scraped]:
    topic = f"events_{uuid.uuid4().hex[:6]}"
    create_topic(kafka.address, topic, 4)
    words = ["--topic", topic, "--group-id", topic, "--table", topic, "--metrics-port", "0", "--linger-ms", "200"]
    words += ["--bootstrap-servers", kafka.address, "--backend", "redis,clickhouse", "--windows", "minute,hour,day"]
    words += ["--clickhouse-url", clickhouse.address, "--redis-url", redis_server.address]
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
            # Not only the lag: its value on the page may be a second old, measured before the last events came.
            wait_until(lambda: sum(pages.metrics("messages_total").values()) == load.sent, PATIENCE_S)
            wait_until(lambda: sum(pages.metrics("lag_messages").values()) == 0, PATIENCE_S)
            written = pages.metric("messages_total", "written")
            assert written
            scraped = Scraped(server.address, began, time.time(), int(written))
            total = 'sum(worker_messages_total{outcome="written"})'
            wait_until(
                lambda: scraped.ask("query", query=total)["result"][0]["value"][1] == str(int(written)),
                message=f"Prometheus has the worker's count, {written:.0f}",
            )
            client = clickhouse_client(clickhouse.address)
            rows = client.execute(f"SELECT count() FROM {topic}")[0][0]
            client.disconnect()
            yield scraped._replace(ended=time.time(), rows=rows)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_returns_data(scraped: Scraped, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        lines = scraped.lines(target)
        assert lines, target["expr"]
        values = [value for line in lines for _, value in line.points]
        assert any(math.isfinite(value) for value in values), target["expr"]
        legends = [line.legend for line in lines]
        assert target["instant"] or len(set(legends)) == len(legends), f"lines with the same name: {legends}"


def test_the_variables_have_values(scraped: Scraped) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"])
        assert found, variable["definition"]
        assert scraped.ask(f"label/{found[2]}/values", **{"match[]": found[1]})


def test_prometheus_has_every_metric(scraped: Scraped) -> None:
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in scraped.ask("label/__name__/values")}
    assert METRICS.keys() <= names


def test_the_counters_match_the_rows_of_the_table(scraped: Scraped) -> None:
    assert scraped.written == scraped.rows > 0


def test_no_counter_ever_decreases(scraped: Scraped) -> None:
    """A consumer was killed meanwhile. resets() counts every decrease."""
    found = prometheus.resets(scraped.address, scraped.began, scraped.ended)
    assert {name: count for name, count in found.items() if count} == {}


def test_the_alert_rules_are_evaluated_and_silent(scraped: Scraped) -> None:
    (group,) = scraped.ask("rules")["groups"]
    assert len(group["rules"]) == (GRAFANA / "alerts.yml").read_text().count("- alert:")
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule["state"] != "firing", rule["name"]


def test_the_dashboard_can_be_rendered(scraped: Scraped, tmp_path: Path) -> None:
    lines = {panel["id"]: [line for target in panel["targets"] for line in scraped.lines(target)] for panel in PANELS}
    text, size = page(DASHBOARD, lines)
    (tmp_path / "dashboard.html").write_text(text)
    picture = Path(PICTURES or tmp_path).resolve() / "dashboard.png"
    _, console = browse(f"file://{tmp_path}/dashboard.html", size=size, picture=picture)
    assert console == []
    assert picture.stat().st_size > 50_000
