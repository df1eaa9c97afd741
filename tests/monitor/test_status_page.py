"""The status page in a real browser, under load. `WORKER_PICTURES=docs` writes the pictures of README.md."""

from __future__ import annotations

import os
import re
import signal
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kit import PATIENCE_S, Service, create_topic, run_worker, wait_until
from tests.support.load import Load
from tests.support.pages import Pages, browse

PICTURES = os.environ.get("WORKER_PICTURES")
LOAD_S = 300 if PICTURES else 5
TOPIC = f"events_{uuid.uuid4().hex[:6]}"
pytestmark = pytest.mark.timeout(LOAD_S + 300)


@pytest.fixture(scope="module")
def pages(kafka: Service, redis_server: Service) -> Iterator[Pages]:
    create_topic(kafka.address, TOPIC, 4)
    words = ["--topic", TOPIC, "--group-id", f"{TOPIC}_fleet", "--redis-key", TOPIC, "--metrics-port", "0"]
    words += ["--linger-ms", "200", "--bootstrap-servers", kafka.address, "--redis-url", redis_server.address]
    with run_worker(*words) as worker:
        load = Load(kafka.address, TOPIC)
        try:
            pages = Pages(worker)
            wait_until(lambda: (pages.metric("messages_total", "written") or 0) > 1000, PATIENCE_S)
            wait_until(lambda: pages.status()["uptime_s"] > LOAD_S / 2, PATIENCE_S + LOAD_S)
            os.kill(pages.status()["processes"][0]["pid"], signal.SIGKILL)
            wait_until(lambda: pages.metric("restarts_total") == 1, PATIENCE_S)
            wait_until(lambda: pages.status()["uptime_s"] > LOAD_S, PATIENCE_S + LOAD_S)
            wait_until(lambda: all(item["partitions"] for item in pages.status()["processes"]), PATIENCE_S)
            yield pages
        finally:
            load.stop()


def written(elements: str) -> int:
    """Return the number of written events that the page shows."""
    found = re.search(r">written</span><b>([\d\u202f]+)</b>", elements)
    assert found, elements[-3000:]
    return int(found.group(1).replace("\u202f", ""))


def test_a_browser_shows_figures_that_change_and_logs_no_errors(pages: Pages) -> None:
    def page_while_all_read() -> str | None:
        """Return the page; None if a process waits for the store at that moment, as on a busy host."""
        page, console = browse(pages.url + "/")
        assert console == []
        return page if len(re.findall(r"<td>reading</td>", page)) == 4 else None

    first = wait_until(page_while_all_read, PATIENCE_S, "all four processes read")
    assert first
    assert f'<h1 id="topic">{TOPIC}</h1>' in first
    assert written(first) > 0
    assert "nothing unaccounted" in first
    assert len(re.findall(r'<path d="M', first)) >= 6, "three charts with their areas and lines"
    assert not re.search(r"NaN|undefined|Infinity", first)
    wait_until(lambda: pages.status()["accounts"]["written"] > written(first), PATIENCE_S)
    second, console = browse(pages.url + "/")
    assert console == []
    assert written(second) > written(first)


@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [("light", (1280, 880), False), ("dark", (1280, 880), True), ("phone", (500, 1660), False)],
)
def test_it_can_be_rendered(pages: Pages, tmp_path: Path, name: str, size: tuple[int, int], dark: bool) -> None:
    directory = Path(PICTURES or tmp_path).resolve()
    picture = directory / f"status-{name}.png"
    _, console = browse(pages.url + "/", size=size, dark=dark, picture=picture)
    assert console == []
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == size


def test_the_page_sends_requests_only_to_the_worker(pages: Pages) -> None:
    """The page is one file. Its content security policy allows requests only to its own origin."""
    code, page = pages.get("/")
    assert code == 200
    assert not re.search(rb'(src|href)="(?!data:)', page)
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", page)
