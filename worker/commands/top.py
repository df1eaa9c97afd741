"""The status page in a terminal: a live table. Without a terminal it is one line every few seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TextIO
from urllib.error import URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

import orjson

from worker.commands.terminal import printable, wants_color
from worker.core.errors import ExitCode, Fatal

_EVERY_S = 1.0
_LINE_EVERY_S = 5.0
_TIMEOUT_S = 5.0
_ROWS = 12  # of a table; the partitions furthest behind are shown
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the terminal's other screen, without a cursor
_BARS = "▁▂▃▄▅▆▇█"
_Line = list[tuple[str, str]]  # texts and their styles
_STYLES = {"bold": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31"}


def top(url: str, *, stream: TextIO, stop: Callable[[], bool]) -> int:
    """Show the worker that serves `url` (its /metrics or any other page) until `stop`; return the exit code.

    Raises Fatal if the first request to that address is not answered by a worker.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Fatal(f"{url} is not a worker's address: write for example http://127.0.0.1:9108", code=ExitCode.USAGE)
    status_url = urlunsplit((parts.scheme, parts.netloc, "/status.json", "", ""))
    live = stream.isatty()
    status: dict[str, Any] | None = None
    if live:
        stream.write(_ENTER)
    try:
        while not stop():
            error_text = ""
            try:
                status = fetch(status_url)
            except (OSError, ValueError) as error:
                error_text = f"no answer from {parts.netloc}: {getattr(error, 'reason', error)}"
                if status is None:
                    raise Fatal(f"{error_text}; is the worker running, and is this its --metrics-port?") from None
            if live:
                size = shutil.get_terminal_size()
                lines = table(status, error_text, size.columns)[: size.lines - 1] if status else [error_text]
                stream.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_REST)
            else:
                stream.write((printable(error_text) or summary(status)) + "\n")
            stream.flush()
            _wait(_EVERY_S if live else _LINE_EVERY_S, stop)
    finally:
        if live:
            stream.write(_LEAVE)
            stream.flush()
    return ExitCode.OK


def fetch(url: str) -> dict[str, Any]:
    """Return the worker's status. Raises OSError or ValueError if the server does not send one."""
    opener = build_opener(ProxyHandler({}))  # ignores proxies of the environment
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        status = orjson.loads(response.read())
    if not isinstance(status, dict) or "accounts" not in status:
        raise URLError("the server there is not a worker")
    return status


def summary(status: dict[str, Any] | None) -> str:
    """Return the line for logs and pipes."""
    assert status is not None
    accounts = status["accounts"]
    state = "; ".join(filter(None, (_state(status), status["invalid"]["text"])))
    return printable(
        f"{time.strftime('%H:%M:%S')} {status['topic']}: {state}, {_short(status['rates']['written'])}/s, "
        f"lag {_whole(status['lag'])} ({_span(status['lag_s'])}), devices {_whole(status['devices'])}, "
        f"written {_whole(accounts['written'])}, dead-lettered {_whole(accounts['dead_lettered'])}, "
        f"unaccounted {_whole(accounts['unaccounted'])}, {len(status['processes'])} consumers, "
        f"{status['restarts']} restarts"
    )


def table(status: dict[str, Any], error_text: str, width: int) -> list[str]:
    """Return the lines of the live table, each at most `width` characters long."""
    accounts, rates = status["accounts"], status["rates"]
    invalid = status["invalid"]["text"]
    is_warned = status["unready"] or invalid
    state, color = (error_text, "bad") if error_text else (_state(status), "warn" if is_warned else "good")
    column = status["fields"].index
    history = status["history"]
    bars = max(10, min(40, width - 50))
    rate_bars = _sparkline([point[column("written_per_s")] for point in history], bars)
    lag_bars = _sparkline([point[column("lag")] for point in history], bars)
    group = f"group {status['group']} → {status['backend']}, up {_span(status['uptime_s'])}"
    unaccounted = f"{_whole(accounts['unaccounted'])} unaccounted"
    lines: list[_Line] = [
        [(status["topic"], "bold"), (f"  {state}", color), (f"  {group}", "dim")],
        [(invalid, "warn")],
        [("written ", "dim"), (f"{_short(rates['written']) + '/s':>12}", "bold"), (f"  {rate_bars}", "good")],
        [
            ("lag     ", "dim"),
            (f"{_short(status['lag']):>12}", "bold"),
            (f"  {lag_bars}", "warn"),
            (f"  oldest {_span(status['lag_s'])}", "dim"),
        ],
        [("devices ", "dim"), (f"{_whole(status['devices']):>12}", "bold")],
        [],
        [
            ("ledger  ", "dim"),
            (f"read {_whole(accounts['consumed'])} = written {_whole(accounts['written'])}", ""),
            (f" + dead-lettered {_whole(accounts['dead_lettered'])} + skipped {_whole(accounts['skipped'])}", ""),
        ],
        [
            (f"        + replayed {_whole(accounts['replayed'])} + in flight {_whole(accounts['in_flight'])}: ", ""),
            (unaccounted, "bad" if accounts["unaccounted"] else "good"),
        ],
    ]
    lines += [*_partitions(status), *_consumers(status), *_invalid_events(status)]
    for error in status["errors"][:3]:
        stamp = time.strftime("%H:%M:%S", time.localtime(error["time"]))
        lines += [[], [(f"{stamp} {', '.join(error['who'][:3])}: ", "dim"), (error["text"], "warn")]]
    return [_paint(line, width) for line in lines]


def _partitions(status: dict[str, Any]) -> list[_Line]:
    several = len(status["topics"]) > 1
    heading = "partition           lag    oldest    next offset   consumer" + ("   topic" if several else "")
    lines: list[_Line] = [[], [(heading, "dim")]]
    furthest = sorted(status["partitions"], key=lambda item: (-item["lag"], *_topic_partition(item)))[:_ROWS]
    for item in sorted(furthest, key=_topic_partition):
        owner = "elsewhere" if item["owner"] is None else item["owner"]
        age = _span(item["lag_s"]) if item["lag"] else "–"
        text = f"{item['partition']:>9} {_whole(item['lag']):>13} {age:>9} {_whole(item['position']):>14} {owner:>10}"
        text += f"   {item['topic']}" if several else ""
        lines.append([(text, "")])
    if hidden := len(status["partitions"]) - len(furthest):
        lines.append([(f"          and {hidden} less far behind", "dim")])
    return lines


def _consumers(status: dict[str, Any]) -> list[_Line]:
    lines: list[_Line] = [
        [],
        [("consumer       pid       state  partitions    CPU     memory        up  restarts", "dim")],
    ]
    for item in status["processes"][:_ROWS]:
        activity = "no store" if not item["sink_up"] else "paused" if item["paused"] else "reading"
        activity = activity if item["partitions"] else "standby"
        cpu = "–" if item["cpu"] is None else f"{100 * item['cpu']:.0f} %"
        text = f"{item['slot']:>8} {item['pid']:>9} {activity:>11} {item['partitions']:>11} {cpu:>6} "
        text += f"{item['rss_bytes'] >> 20:>6} MiB {_span(item['uptime_s']):>9} {item['restarts']:>9}"
        lines.append([(text, "")])
    return lines


def _invalid_events(status: dict[str, Any]) -> list[_Line]:
    causes = status["invalid"]["causes"]
    if not causes:
        return []
    lines = [[], [("invalid events                    last minute      in total   last one", "dim")]]
    for item in causes[:_ROWS]:
        cause = f"{item['reason']} in {item['field']}" if item["field"] else item["reason"]
        text = f"{cause:<30} {_whole(item['last_minute']):>14} {_whole(item['count']):>13}   "
        text += f"{item['topic']}[{item['partition']}]@{item['offset']}, {_span(item['age_s'])} ago"
        lines.append([(text, "warn" if item["last_minute"] else "")])
    return lines


def _topic_partition(partition: dict[str, Any]) -> tuple[str, int]:
    return partition["topic"], partition["partition"]


def _paint(line: _Line, width: int) -> str:
    painted, color = "", wants_color()
    for text, style in line:
        shown = printable(text)[: max(0, width)]
        width -= len(shown)
        painted += f"\x1b[{_STYLES[style]}m{shown}\x1b[0m" if color and style and shown else shown
    return painted


def _state(status: dict[str, Any]) -> str:
    if status["unready"]:
        return str(status["unready"])
    return "caught up" if not status["lag"] else "keeping up" if status["lag_s"] < 10 else "catching up"


def _sparkline(values: list[float | None], width: int) -> str:
    shown = values[-width:]
    largest = max((value for value in shown if value is not None), default=0) or 1
    return "".join(" " if value is None else _BARS[min(7, int(value / largest * 7.99))] for value in shown)


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _short(number: float | None) -> str:
    if number is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:,.0f}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for size, unit, rest, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}{seconds % size // rest:02.0f}{small}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def _wait(seconds: float, stop: Callable[[], bool]) -> None:
    """Wait; call `stop` ten times a second, and return early once it is true."""
    deadline = time.monotonic() + seconds
    while not stop() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(0.1, left))
