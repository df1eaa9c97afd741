"""Write docs/options.md, its JSON Schema and docs/metrics.md from the code that they describe (`make docs`)."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from worker.config.export import json_schema
from worker.config.settings import Settings, default_of, flag_of, toml_value
from worker.config.sources import OWNED_PROPERTIES, PREFIX
from worker.monitor.metrics import METRICS

HERE = Path(__file__).parent


def options() -> str:
    """Return the table of all options of `run`."""
    lines = [
        "# Options",
        "",
        "`make docs` writes this page from `worker/config/settings.py`. A flag wins over the environment variable, the",
        "variable over the key in the `--config` file (TOML, the same names with `_`), the file over the default.",
        "`…_FILE` in place of a variable names a file that holds the value. `WORKER_CONFIG` is `--config`.",
        "`--print-config` shows the value and the origin of each option.",
        "[options.schema.json](options.schema.json) is the file's JSON Schema, as `worker schema` prints it.",
        "",
        "An option that only the other store uses is an error (exit code 2): it would have no effect. The file and the",
        "environment may serve workers of both stores, so they may name both addresses and passwords.",
        "If they name both stores in `backend`, the flag `--backend` with one ignores the options of the other.",
    ]
    group = ""
    for item in fields(Settings):
        meta, default = item.metadata, default_of(item)
        if meta["group"] != group:
            group = meta["group"]
            lines += ["", f"## {group}", "", "| flag | variable | default | meaning |", "| --- | --- | --- | --- |"]
        shown = "" if default in ("", {}) else f"{toml_value(default)}".lower()
        text = meta["help"] + (f" ({', '.join(meta['choices'])})" if meta["choices"] else "")
        flag = "–" if meta["secret"] else f"`{flag_of(item.name)}`"
        variable = f"`{PREFIX}{item.name.upper()}`"
        shown = f"`{shown}`{' ' + meta['unit'] if meta['unit'] else ''}" if shown else ""
        lines.append(f"| {flag} | {variable} | {shown} | {text.replace('|', chr(92) + '|')} |")
    lines += [
        "",
        "## Properties that `-X` refuses",
        "",
        "| property | why |",
        "| --- | --- |",
        *(f"| `{name}` | {why} |" for name, why in OWNED_PROPERTIES.items()),
    ]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Return the table of all metrics."""
    lines = [
        "# Metrics",
        "",
        "`make docs` writes this page from `worker/monitor/metrics.py`. "
        "They are served at `/metrics` of `--metrics-host`:`--metrics-port`.",
        "",
        "| metric | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in METRICS.items():
        lines.append(f"| `{name}` | {kind.type} | {', '.join(kind.labels)} | {kind.help} |")
    return "\n".join(lines) + "\n"


def schema() -> str:
    """Return the JSON Schema of the file of options."""
    return json.dumps(json_schema(), indent=2) + "\n"


PAGES = {"options.md": options, "metrics.md": metrics, "options.schema.json": schema}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
