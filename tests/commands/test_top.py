from __future__ import annotations

import io
import re
import socket
from typing import Any

import orjson
import pytest

from tests.support.served import Served
from tests.support.slots import own_partition, start_slot
from tests.support.terminal import Terminal
from worker.commands import top
from worker.config.settings import Settings
from worker.core.accounts import Accounts
from worker.core.counters import Stats
from worker.core.errors import Fatal
from worker.kafka.group_lag import PartitionLag
from worker.monitor.invalid_events import InvalidEvents
from worker.monitor.state import MonitorState
from worker.monitor.status import Status

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def status() -> dict[str, Any]:
    stats = Stats()
    state = MonitorState(Settings(topic="events", group_id="fleet"), error="")
    slot = start_slot(stats, pid=4711, assigned=20)
    for partition in range(20):
        own_partition(slot, partition, consumed=1000, written=990, in_flight=10)
    slot.set_error("Redis is down")
    state.record_lags([PartitionLag("events", p, 0, 2000, 1000, 90.0, None) for p in range(20)], {"events": 20})
    state.record_devices({"events": 12345})
    accounts = Accounts(stats)
    invalid = InvalidEvents(state.settings, stats)
    ledger = slot.ledger("events", "id", 7)
    slot.add_rejects(ledger, "wrong_type", "error_code", 1500, 12345)
    slot.add_rejects(ledger, "not_json", "", 2, 99)
    invalid.sample()
    page = Status(stats, state, accounts, invalid)
    page.sample(accounts.read())
    shown: dict[str, Any] = orjson.loads(orjson.dumps(page.collect()))
    return shown


def test_the_table_shows_state_rates_lag_ledger_and_errors_within_its_width(status: dict[str, Any]) -> None:
    lines = [ESCAPES.sub("", line) for line in top.table(status, "", width=100)]
    text = "\n".join(lines)
    for wanted in (
        "group fleet → redis",
        "20000 events unread, and nothing written yet",
        "read 20,000 = written 19,800",
        "in flight 200: 0 unaccounted",
        "12,345",
        "1m30s",
        "and 8 less far behind",
        "4711",
        "Redis is down",
        "invalid events (last minute: wrong_type in error_code 1500, not_json 2)",
        "wrong_type in error_code                1,500         1,500   events[7]@12345, 0.",
        "not_json                                    2             2   events[7]@99, 0.",
    ):
        assert wanted in text
    assert max(map(len, lines)) <= 100
    assert max(len(ESCAPES.sub("", line)) for line in top.table(status, "gone", width=30)) <= 30


def test_partitions_of_several_topics_are_shown_with_their_topic(status: dict[str, Any]) -> None:
    assert "topic" not in "\n".join(top.table(status, "", width=100))
    other = dict(status["partitions"][0], topic="alarms", lag=999_999)
    status["partitions"].append(other)
    status["topics"].append({"topic": "alarms", "partitions": 1, "devices": 5})
    lines = [ESCAPES.sub("", line) for line in top.table(status, "", width=100)]
    (alarms,) = [line for line in lines if line.endswith("alarms")]
    assert alarms.split()[:2] == ["0", "999,999"]
    assert sum(line.endswith("   events") for line in lines) == 11


def test_the_summary_line_has_the_same_figures(status: dict[str, Any]) -> None:
    line = top.summary(status)
    assert "\x1b" not in line
    for wanted in (
        "events: 20000 events unread, and nothing written yet; invalid events (last minute: wrong_type",
        "lag 20,000 (1m30s)",
        "devices 12,345",
        "written 19,800",
        "unaccounted 0",
        "1 consumers",
    ):
        assert wanted in line


def test_it_runs_until_stopped_with_and_without_a_terminal(status: dict[str, Any]) -> None:
    served = Served(orjson.dumps(status))
    try:
        for stream in (Terminal(), io.StringIO()):
            outputs: list[str] = []

            def stop(stream: io.StringIO = stream, outputs: list[str] = outputs) -> bool:
                outputs.append(stream.getvalue())
                return len(outputs) > 2

            assert top.top(f"http://{served.address}/metrics", stream=stream, stop=stop) == 0
            assert "events" in stream.getvalue()
            assert ("\x1b[?1049h" in stream.getvalue()) == stream.isatty()
            assert stream.getvalue().endswith("\x1b[?1049l" if stream.isatty() else "restarts\n")
        assert set(served.paths) == {"/status.json"}
    finally:
        served.stop()


def test_an_address_without_a_worker_is_an_error_that_names_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Fatal, match=f"no answer from {address}: .*refused.*is the worker running"):
            top.top(address, stream=io.StringIO(), stop=lambda: False)
    served = Served(b'{"hello": 1}')
    try:
        with pytest.raises(Fatal, match="the server there is not a worker"):
            top.top(served.address, stream=Terminal(), stop=lambda: False)
    finally:
        served.stop()


@pytest.mark.parametrize("url", ["", "ftp://x", "http://"])
def test_an_invalid_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(Fatal, match="write for example"):
        top.top(url, stream=io.StringIO(), stop=lambda: False)


HOSTILE = "\x1b[2J\x1b]0;title\x07\r\nsecond\u202eline"


def test_texts_of_others_cannot_control_the_terminal(status: dict[str, Any]) -> None:
    status["errors"] = [{"time": 0, "who": [HOSTILE], "text": HOSTILE}]
    status["topic"] = status["unready"] = HOSTILE
    for text in (
        "\n".join(top.table(status, "", 200)),
        "\n".join(top.table(status, HOSTILE, 200)),
        top.summary(status),
    ):
        assert r"\x1b[2J\x1b]0;title\x07\r\nsecond\u202eline" in text
        assert ESCAPES.sub("", text).replace("\n", "").isprintable()


def test_no_color_leaves_out_colors(status: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for value, has_color in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        assert ("\x1b[" in "".join(top.table(status, "", 100))) == has_color
