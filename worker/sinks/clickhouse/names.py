"""Quoting of ClickHouse's identifiers and texts."""

from __future__ import annotations


def quoted(name: str) -> str:
    """Return an identifier in backticks."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def table_name(table: str) -> str:
    """Return the quoted name of a table, with or without its database."""
    return ".".join(map(quoted, table.split(".")))


def literal(text: str) -> str:
    """Return a text as a string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
