"""The dashboard and alert files: schema, the rules of grafana/dashboard-linter, and the tools of Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from worker.local import fetch
from worker.monitor.metrics import METRICS

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "worker.json").read_text())
NOT_SHOWN = {
    "worker_restarts_total",  # an annotation; the panel shows it by slot
    *("worker_evolved_columns_total", "worker_evolve_errors_total"),  # 0 without --evolve
    "worker_dropped_log_lines_total",  # 0 where logs are read at all
}
UNITS = {"short", "s", "bytes", "Bps", "eps", "ops", "percentunit"}
# Grafana reads these; its schema does not contain them.
BEYOND_SCHEMA = {"definition", "titleFormat", "textFormat", "step", "spanNulls", "insertNulls"}

PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
by_title = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression reads, histograms by the name of their family."""
    names = set(re.findall(r"\bworker_\w+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def find_differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield the values that a round trip through the SDK's types loses or changes."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key in after:
                yield from find_differences(value, after[key], f"{path}.{key}")
            elif key not in BEYOND_SCHEMA:
                yield f"{path}.{key}"
    elif isinstance(before, list):
        assert len(before) == len(after), path
        for i, value in enumerate(before):
            yield from find_differences(value, after[i], f"{path}[{i}]")
    elif before != after:
        yield f"{path}: {before!r} became {after!r}"


def test_the_dashboard_is_valid_for_the_types_of_grafana() -> None:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert list(find_differences(DASHBOARD, read)) == []


def test_the_dashboard_is_read_only_and_has_its_variables() -> None:
    assert DASHBOARD["uid"] == "kafka-ingest-worker"
    assert DASHBOARD["editable"] is False
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "topic", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["job"]["allValue"] == ".+"
    for name in ("job", "topic", "instance"):
        assert (variables[name]["refresh"], variables[name]["multi"], variables[name]["includeAll"]) == (2, True, True)
        assert variables[name]["definition"].startswith("label_values(worker_build_info")


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    occupied: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert (x, y) not in occupied, f"{panel['title']} overlaps {occupied[x, y]}"
                assert x < 24
                occupied[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all((x, y) in occupied for y in range(max(y for _, y in occupied) + 1) for x in range(24)), "an empty cell"


def test_the_first_row_has_the_most_important_panels() -> None:
    first = [panel["title"] for panel in PANELS if panel["gridPos"]["y"] == 0]
    assert first == ["Written", "Lag", "Oldest unread event", "Rejected", "Consumers missing", "Unaccounted"]


@by_title
def test_a_panel_has_a_title_a_description_and_a_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@by_title
def test_a_query_is_filtered_and_counters_are_rates(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        selectors = re.findall(r"(\w+)\{([^}]*)\}", target["expr"])
        assert selectors
        for name, matchers in selectors:
            assert 'job=~"$job"' in matchers
            assert 'instance=~"$instance"' in matchers
            if name in METRICS and "topic" in METRICS[name].labels:
                assert 'topic=~"$topic"' in matchers
            if re.search(r"_(total|bucket|sum|count)$", name):
                over = re.search(rf"(\w+)\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", target["expr"])
                assert over, f"{name} without a rate over $__rate_interval"
                assert over.group(1) in {"rate", "increase"}


def test_every_metric_is_shown_or_listed_as_not_shown() -> None:
    shown = set().union(*map(names_in, expressions()))
    assert shown - METRICS.keys() == set(), "not a metric"
    assert METRICS.keys() - shown == NOT_SHOWN
    alerts = names_in((GRAFANA / "alerts.yml").read_text())
    assert alerts <= METRICS.keys()


def test_prometheus_accepts_the_configuration() -> None:
    for words in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        assert promtool(*words).returncode == 0


def test_each_alert_fires_when_it_should_and_not_when_not() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = (GRAFANA / "alerts_test.yml").read_text()
    for alert in alert_names():
        assert re.search(rf"alertname: {alert}\n +exp_alerts:\n", tests), f"no test has {alert} firing"
        assert f"alertname: {alert}}}" in tests, f"no test has {alert} silent"


def test_each_alert_has_a_runbook() -> None:
    rules = (GRAFANA / "alerts.yml").read_text()
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert headings == alert_names()
    for alert in alert_names():
        assert f"runbook_url: docs/runbooks.md#{alert.lower()}\n" in rules


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", (GRAFANA / "alerts.yml").read_text())


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [fetch.tool("promtool"), *words], cwd=GRAFANA, capture_output=True, text=True, check=False, timeout=120
    )
