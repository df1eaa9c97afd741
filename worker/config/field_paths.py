"""Fields of an event by their path, and which column each fills: `--map request.user.id=user_id`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_key = re.compile(r"(?:[^.\\]|\\.)+")


def path(text: str) -> tuple[str, ...]:
    r"""Return the keys from the event down: `request.user.id`; a dot inside a key is written `\.`.

    ValueError says what to write instead.
    """
    keys = _key.findall(text)
    if not keys or ".".join(keys) != text:
        raise ValueError(r"write a field as keys with dots between, such as request.user.id (a dot inside a key: \.)")
    return tuple(re.sub(r"\\(.)", r"\1", key) for key in keys)


def field(text: str) -> str:
    """Parse a field's path, and keep it as text."""
    path(text)
    return text


def spell(keys: Sequence[str]) -> str:
    """Return the text of which `path` makes these keys."""
    return ".".join(re.sub(r"([.\\])", r"\\\1", key) for key in keys)


def columns(source: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the field that fills each column, of `field=column` texts or of a TOML table of fields.

    In a table, `request.user.id = "user_id"` means what it says, and a list names several columns. ValueError where a
    column would have two fields, and where a text is no pair.
    """
    found: dict[str, str] = {}
    for name, column in _of_table(source, ()) if isinstance(source, Mapping) else map(_pair, source):
        path(name)
        if found.setdefault(column, name) != name:
            raise ValueError(f"column {column} cannot have two fields, {found[column]} and {name}; name one")
    return found


def table(mapped: Mapping[str, str]) -> dict[str, str | list[str]]:
    """Return the TOML table of which `columns` makes these columns' fields."""
    found: dict[str, list[str]] = {}
    for column, name in mapped.items():
        found.setdefault(name, []).append(column)
    return {name: bindings[0] if len(bindings) == 1 else bindings for name, bindings in found.items()}


def _pair(text: str) -> tuple[str, str]:
    name, _, column = text.strip().rpartition("=")
    if not name.strip() or not column.strip():
        raise ValueError(f"{text!r}: write FIELD=COLUMN, such as request.user.id=user_id")
    return name.strip(), column.strip()


def _of_table(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        keys = (*above, key) if above else path(key)
        if isinstance(value, Mapping):
            yield from _of_table(value, keys)
            continue
        for column in value if isinstance(value, list) else [value]:
            if not isinstance(column, str) or not column:
                raise ValueError(f'{spell(keys)}: write the name of a column, such as {spell(keys)} = "user_id"')
            yield spell(keys), column
