"""ClickHouse's type names: `Map(String, Decimal(10, 2))` → `Map`, [`String`, `Decimal(10, 2)`]."""

from __future__ import annotations

import re

_token = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[^'`]", re.DOTALL)
_identifier = re.compile(r"(?:(`(?:[^`\\]|\\.)*`|[A-Za-z_]\w*) )?(.+)", re.DOTALL)
_enum_member = re.compile(r"('(?:[^'\\]|\\.)*') = (-?\d+)", re.DOTALL)
_escape = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def plain(type_name: str) -> str:
    """Return a type on one line, as in blocks; DESCRIBE writes a named Tuple on several lines."""
    return re.sub(r",\n *", ", ", re.sub(r"\(\n *", "(", type_name))


def split(type_name: str) -> tuple[str, list[str]]:
    """Return a type's name, and its arguments unparsed."""
    name, parenthesis, rest = type_name.partition("(")
    if not parenthesis:
        return type_name, []
    if not rest.endswith(")"):
        raise ValueError(f"{type_name} is not a type: a parenthesis is missing")
    arguments, depth = [""], 0
    for token in _token.findall(rest[:-1]):
        depth += (token == "(") - (token == ")")
        if token == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += token
    return name, [argument.strip() for argument in arguments]


def member(argument: str) -> tuple[str, str]:
    """Return a Tuple element's name (empty: unnamed) and its type."""
    match = _identifier.fullmatch(argument)
    if not match:
        raise ValueError(f"{argument!r} is not an element of a Tuple")
    return _unquoted(match[1] or ""), match[2]


def enum_members(arguments: list[str]) -> dict[str, int]:
    """Return an Enum's names and their numbers."""
    matches = [_enum_member.fullmatch(argument) for argument in arguments]
    return {_unquoted(match[1]): int(match[2]) for match in matches if match}


def _unquoted(text: str) -> str:
    return _escape.sub(lambda match: _ESCAPES.get(match[1], match[1]), text[1:-1]) if text[:1] in ("'", "`") else text
