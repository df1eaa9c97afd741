"""Quoting of ClickHouse's identifiers and texts."""

from __future__ import annotations

import re

_part = re.compile(r"`(?:[^`\\]|\\.)+`|\"[^\"]+\"|[^.`\"]+")

_plain = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def table_parts(table: str) -> tuple[str, str]:
    """Return database (empty: the connection's) and name of a table; each may be in backticks or double quotes."""
    parts = [_unquoted(part) for part in _part.findall(table)]
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])


def table_name(table: str) -> str:
    """Return the quoted name of a table, with or without its database."""
    return ".".join(quoted(part) for part in table_parts(table) if part)


def shown(table: str) -> str:
    """Return the name of a table or column for statements that are shown: quoted only where it has to be."""
    return ".".join(part if _plain.fullmatch(part) else quoted(part) for part in table_parts(table) if part)


IS_TABLE = "name = %(name)s AND database = if(%(database)s = '', currentDatabase(), %(database)s)"
"""The condition for a row of system.tables, with `table_values`."""


def table_values(table: str) -> dict[str, str]:
    """Return the parameters of IS_TABLE."""
    database, name = table_parts(table)
    return {"database": database, "name": name}


def split_at_commas(text: str) -> list[str]:
    """Split at the commas outside of parentheses."""
    depth, parts = 0, [""]
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _unquoted(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part[1:-1]) if part[0] in '`"' else part


def literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
