"""README.md and docs/ as texts: their links lead somewhere, and the tests and reasons that they name exist."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import cli
from worker.config.sources import load
from worker.core.counters import REJECT_REASONS
from worker.kafka.properties import property_names

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
USERS_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings make, as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_of_tests() -> Iterator[str]:
    for path in (ROOT / "tests").rglob("*.py"):
        yield path.stem
        yield from re.findall(r"^ *(?:def|class) (\w+)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


def test_the_tests_that_the_guarantees_name_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert named <= set(names_of_tests())


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    (table,) = re.findall(r"^\| reason \| meaning \|\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    rows = [line.split("|")[1] for line in table.splitlines()[1:]]
    assert sorted(word for row in rows for word in re.findall(r"`(\w+)`", row)) == sorted(REJECT_REASONS)


def test_the_log_lines_that_the_docs_quote_exist() -> None:
    strings = re.sub(r'"\s*f?"', "", "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py")))
    runbooks = " ".join((ROOT / "docs" / "runbooks.md").read_text().split())
    quoted = [*re.findall(r"logs `([^`]+)`", runbooks), *re.findall(r'\d\. "([^"]+)"', runbooks)]
    assert len(quoted) > 2
    assert [text for text in quoted if text not in strings] == []


def test_every_command_that_is_shown_in_a_line_is_one() -> None:
    shown = [text for page in USERS_PAGES for text in re.findall(r"`worker ([^`\n]+)`", page.read_text())]
    assert len(shown) > 10
    for text in shown:
        words = text.replace("[run]", "run").replace("\\|", "|").split()
        words = [re.sub(r"\|\S+$", "", word) for word in words]  # the first of those to choose from
        words = ["redis" if word == "B" else word for word in words]
        with contextlib.suppress(SystemExit):  # --help
            cli.parse(words)


def test_every_file_of_options_that_is_shown_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    blocks = [
        text for page in USERS_PAGES for text in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    assert len(blocks) > 3
    for block in blocks:
        file.write_text(block)
        settings, _ = load({}, {}, file)
        assert set(settings.kafka) <= set(property_names())
