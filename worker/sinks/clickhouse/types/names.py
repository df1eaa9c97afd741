"""ClickHouse's spelling of types: `Map(String, Decimal(10, 2))` → `Map`, [`String`, `Decimal(10, 2)`]."""

from __future__ import annotations

import re

_token = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[^'`]", re.DOTALL)
_identifier = re.compile(r"(?:(`(?:[^`\\]|\\.)*`|[A-Za-z_]\w*) )?(.+)", re.DOTALL)
_enum_member = re.compile(r"('(?:[^'\\]|\\.)*') = (-?\d+)", re.DOTALL)
_escape = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def plain(type_name: str) -> str:
    """Return a type on one line, as blocks have it; DESCRIBE breaks the lines of a Tuple with names."""
    return re.sub(r",\n *", ", ", re.sub(r"\(\n *", "(", type_name))


def split(type_name: str) -> tuple[str, list[str]]:
    """Return a type's name and its arguments as they are written."""
    name, bracket, rest = type_name.partition("(")
    if not bracket:
        return type_name, []
    if not rest.endswith(")"):
        raise ValueError(f"{type_name} is no type: a bracket is missing")
    arguments, depth = [""], 0
    for token in _token.findall(rest[:-1]):
        depth += (token == "(") - (token == ")")
        if token == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += token
    return name, [argument.strip() for argument in arguments]


def member(argument: str) -> tuple[str, str]:
    """Return a tuple element's name, empty where it has none, and its type."""
    found = _identifier.fullmatch(argument)
    if not found:
        raise ValueError(f"{argument!r} is no element of a Tuple")
    return _unquoted(found[1] or ""), found[2]


def enum_members(arguments: list[str]) -> dict[str, int]:
    """Return an Enum's names and their numbers."""
    found = [_enum_member.fullmatch(argument) for argument in arguments]
    return {_unquoted(one[1]): int(one[2]) for one in found if one}


def _unquoted(text: str) -> str:
    return _escape.sub(lambda one: _ESCAPES.get(one[1], one[1]), text[1:-1]) if text[:1] in ("'", "`") else text
