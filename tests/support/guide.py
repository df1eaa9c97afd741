"""The commands and code of a documentation page, which the tests follow as a reader would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


class Guide:
    """A page of docs/, or one of its sections."""

    def __init__(self, page: str, section: str = "") -> None:
        self._text = (DOCS / page).read_text()
        if section:
            (self._text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", self._text, re.M | re.S)

    def blocks(self, language: str) -> list[str]:
        """Return the blocks of code in a language."""
        return re.findall(rf"```{language}\n(.*?)```", self._text, re.DOTALL)

    def commands(self, config: Path) -> list[list[str]]:
        """Return the words after `worker` of each command, with the path of its --config file."""
        lines = [line for block in self.blocks("console") for line in block.splitlines()]
        assert all(line.startswith("worker ") for line in lines), lines
        return [shlex.split(line.replace(config.name, str(config)))[1:] for line in lines]
