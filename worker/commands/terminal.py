"""Text for a terminal: control characters made visible, colors only where they are wanted."""

from __future__ import annotations

import os


def printable(text: str) -> str:
    """Return the text with each unprintable character as its escape (`\\x1b`), so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def wants_color() -> bool:
    """Whether colors are allowed: not if NO_COLOR is set and not empty (no-color.org)."""
    return not os.environ.get("NO_COLOR")
