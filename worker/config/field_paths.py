"""Paths of event fields, and the column that each field fills: `--map request.user.id=user_id`.

A path of `--map` may go over the elements of an array: `labels[].name` are the names of all labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_over_elements = re.compile(r"(?<!\\)\[\](?:\.|\Z)")
_key = re.compile(r"(?:[^.\\]|\\.)+")


def parse_path(text: str) -> tuple[str, ...]:
    r"""Return the keys of a path such as `request.user.id`. A dot inside a key is written `\.`.

    Raises ValueError, which says what to write instead.
    """
    keys = _key.findall(text)
    if not keys or ".".join(keys) != text:
        raise ValueError(r"write a field as keys separated by dots, such as request.user.id (a dot inside a key: \.)")
    if any(map(_over_elements.search, keys)):
        raise ValueError(r"only a path of --map may go over the elements of an array (a key that ends with []: \[])")
    return tuple(re.sub(r"\\(.)", r"\1", key) for key in keys)


def parse_element_path(text: str) -> list[tuple[str, ...]]:
    """Return the path to the array, then for each `[]` the path inside its elements: `labels[].name`, `tags[]`.

    A path without `[]` is alone in the list. Raises ValueError, which says what to write instead.
    """
    first, *rest = _over_elements.split(text)
    return [parse_path(first), *(parse_path(path) if path else () for path in rest)]


def check_path(text: str) -> str:
    """Return the text if it is a field's path; else raise ValueError."""
    parse_path(text)
    return text


def format_path(keys: Sequence[str]) -> str:
    """Return the text that `parse_path` parses to these keys."""
    return ".".join(re.sub(r"([.\\]|\[(?=\]\Z))", r"\\\1", key) for key in keys)


def columns(source: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the field that fills each column, from `field=column` texts or a TOML table of fields.

    In a table, write `request.user.id = "user_id"`; a list names several columns. Raises ValueError if a column would
    have two fields or a text is not a pair.
    """
    field_of: dict[str, str] = {}
    for name, column in _flatten(source, "") if isinstance(source, Mapping) else map(_pair, source):
        parse_element_path(name)
        if field_of.setdefault(column, name) != name:
            raise ValueError(f"column {column} cannot have two fields, {field_of[column]} and {name}; name one")
    return field_of


def table(mapped: Mapping[str, str]) -> dict[str, str | list[str]]:
    """Return the TOML table that `columns` parses to this mapping of columns to fields."""
    columns_of: dict[str, list[str]] = {}
    for column, name in mapped.items():
        columns_of.setdefault(name, []).append(column)
    return {name: names[0] if len(names) == 1 else names for name, names in columns_of.items()}


def _pair(text: str) -> tuple[str, str]:
    name, _, column = text.strip().rpartition("=")
    if not name.strip() or not column.strip():
        raise ValueError(f"{text!r}: write FIELD=COLUMN, such as request.user.id=user_id")
    return name.strip(), column.strip()


def _flatten(table: Mapping[str, Any], parent: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        path = f"{parent}.{format_path([key])}" if parent else key
        if isinstance(value, Mapping):
            yield from _flatten(value, path)
            continue
        for column in value if isinstance(value, list) else [value]:
            if not isinstance(column, str) or not column:
                raise ValueError(f'{path}: write a column name, such as {path} = "user_id"')
            yield path, column
