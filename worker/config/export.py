"""All settings as a TOML file for `--config`, and the JSON Schema of such a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any

from worker.config import field_paths
from worker.config.parsers import properties
from worker.config.redaction import is_secret_property
from worker.config.settings import Settings, default_of, flag_of, toml_value
from worker.config.sources import OWNED_PROPERTIES, PREFIX

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def as_toml(settings: Settings, origins: Mapping[str, str]) -> str:
    """Return every option with its value and origin as TOML. A line with a redacted secret is a comment.

    If the secrets are given again, `--config` reads the same settings from the text.
    """
    redacted = settings.redacted()
    lines: list[tuple[str, str]] = []
    tables: list[tuple[str, str]] = []  # at the end, as TOML requires
    for item in fields(Settings):
        value, real, origin = redacted[item.name], getattr(settings, item.name), origins.get(item.name, "default")
        if item.name == "map":
            tables += _table(item.name, field_paths.table(value), origins)
        elif isinstance(value, Mapping):
            tables += _table(item.name, value, origins)
        else:
            comment = item.metadata["secret"] or value != real
            lines.append(_line(item.name, value, origin, comment=comment))
    width = min(60, max(len(line) for line, _ in [*lines, *tables]))
    return "\n".join(f"{line:{width}}  # {origin}" if origin else line for line, origin in [*lines, *tables]) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file that `--config` names. The file has no secrets."""
    return {
        "$schema": _DRAFT,
        "title": "The worker's options (TOML)",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            item.name: {
                "description": _describe(item),
                **_schema_of(item.metadata, default_of(item)),
            }
            for item in fields(Settings)
            if not item.metadata["secret"]
        },
    }


def _schema_of(metadata: Mapping[str, Any], default: Any) -> dict[str, Any]:
    if metadata["choices"]:
        kind: dict[str, Any] = {"type": "string", "enum": list(metadata["choices"])}
    else:
        kind = dict(getattr(metadata["parse"], "schema", {"type": "string"}))
    if metadata["parse"] is properties:
        kind["propertyNames"] = {"not": {"enum": list(OWNED_PROPERTIES)}}
    return {**kind, **({"default": toml_value(default)} if default != "" else {})}


def _describe(item: Field[Any]) -> str:
    unit = item.metadata["unit"]
    text = item.metadata["help"] + (f" [{unit}]" if unit else "")
    return f"{text} ({flag_of(item.name)}, {PREFIX}{item.name.upper()})"


def _table(name: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "", ""
    yield f"[{name}]", ""
    for key, value in values.items():
        origin = origins.get(f"{name}.{value[0] if isinstance(value, list) else value}") if name == "map" else ""
        secret = name == "kafka" and is_secret_property(key)
        yield _line(_quoted(key), value, origin or origins.get(f"{name}.{key}", ""), comment=secret)


def _line(key: str, value: Any, origin: str, *, comment: bool) -> tuple[str, str]:
    return f"{'# ' if comment else ''}{key} = {_quoted(toml_value(value))}", origin


def _quoted(value: Any) -> str:
    # A JSON string is a TOML string, except for DEL, which JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
