"""What counts as one cause of a warning, and that each suppressed line is counted."""

from __future__ import annotations

import logging
import random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.clocks import Clock
from worker.core import repeats
from worker.core.log import LIBRDKAFKA
from worker.core.repeats import Repeats


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("worker.core.repeats.time.monotonic", clock)
    return clock


def record(text: str, name: str = "worker.test", **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": name, "levelno": logging.WARNING, "msg": text, "fields": fields})


def logged(texts: list[str]) -> list[str]:
    """Return those of the texts that are written if all are logged at once."""
    filtered = Repeats(LIBRDKAFKA)
    return [text for text in texts if filtered.allow(record(text))]


# Two texts of each kind, with what changes between them.
SAME = [
    ("waiting, will try again: [('127.0.0.1', 51234)] (209)", "waiting, will try again: [('127.0.0.1', 51311)] (209)"),
    (
        "Kafka at kafka:9092 does not answer: Connect to ipv4#127.0.0.1:9092 failed (after 0ms in state CONNECT)",
        "Kafka at kafka:9092 does not answer: Connect to ipv4#127.0.0.1:9092 failed (after 1203ms in state CONNECT)",
    ),
    (  # seen with ClickHouse 26.7
        "code 241: Query memory limit exceeded: would use 4.19 MiB (attempt to allocate chunk of 4.19 MiB), maximum: "
        "2.86 MiB. Untracked memory across all threads: 1.35 MiB..",
        "code 241: Query memory limit exceeded: would use 1 GiB (attempt to allocate chunk of 8,388 bytes), maximum: "
        "2.86 MiB. Untracked memory across all threads: -676.41 KiB..",
    ),
    (
        "code 159: Timeout exceeded: elapsed 1.386 ms, maximum: 1 ms.; still trying",
        "code 159: Timeout exceeded: elapsed 2 s, maximum: 1 ms.; still trying",
    ),
    ("Too many parts (301). Merges are slower than inserts", "Too many parts (1302). Merges are slower than inserts"),
    ("Part all_17_17_0 is broken", "Part all_1803_1803_12 is broken"),
    ("query 6f9619ff-8b86-d011-b42d-00cf4fc964ff failed", "query a3bb189e-8bf9-3888-9912-ace4e6543002 failed"),
    ("object at 0x7f31c02e3a90", "object at 0x55d0ab1e"),
    ("checksum deadbeef01 differs", "checksum 0123456789abcdef differs"),
    ("lag 17 at offset -1001, 3.5 %", "lag 1 at offset 18, 12 %"),
    ("at 2026-11-25 09:00:01.123 of 10-20", "at 2026-11-24 10:07:33 of 100-200"),
]
OTHER = [
    ("topic orders-1 was deleted", "topic orders-2 was deleted"),
    ("topic t1 was deleted", "topic t2 was deleted"),
    ("events[3]: events were removed before they were read", "events[4]: events were removed before they were read"),
    ("consumer-1 made no progress", "consumer-2 made no progress"),
    ("Connection refused", "Connection reset by peer"),
    ("Kafka at a.example:9092 does not answer", "Kafka at b.example:9092 does not answer"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_numbers_addresses_and_ids_do_not_make_another_cause(first: str, second: str) -> None:
    lines = [first, second, first] * 10
    if "all_" in first:  # these look like names; their number is limited
        lines = [f"Part all_{n}_{n}_{n % 7} is broken" for n in range(1000)]
        assert len(logged(lines)) <= 9
    else:
        assert logged(lines) == [first]


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_names_do_make_another_cause(first: str, second: str) -> None:
    assert logged([first, second] * 10) == [first, second]


def test_fields_that_are_names_or_partitions_make_another_cause() -> None:
    filtered = Repeats(LIBRDKAFKA)
    values: list[dict[str, Any]] = [
        {"topic": "a", "partition": 0},
        {"topic": "b", "partition": 0},
        {"topic": "a", "partition": 1},
    ]
    assert [filtered.allow(record("refused", offset=n, **value)) for n, value in enumerate([*values, *values])] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_lines_of_librdkafka_are_one_cause_for_each_kind() -> None:
    filtered = Repeats(LIBRDKAFKA)
    lines = [f"{kind} [thrd:broker {n}]: {n} requests timed out" for n in range(50) for kind in ("FAIL", "REQTMOUT")]
    assert sum(filtered.allow(record(line, LIBRDKAFKA)) for line in lines) == 2


numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.integers(0, 2**64).map(hex),
    st.uuids(version=4).map(str),
    st.integers(0, 2**64).map(lambda n: f"{n:,}"),
    st.integers(0, 10**6).map(lambda n: f"{n}ms"),
    st.ip_addresses().map(lambda address: f"{address}" if address.version == 4 else "10.0.0.1"),
)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=200), st.sampled_from([" ", "(", "=", ": ", "'"]))
def test_a_flood_with_changing_numbers_is_one_line(values: list[tuple[str, str]], before: str) -> None:
    texts = [f"failed after{before}{a}) of {b} bytes" for a, b in values]
    assert logged(texts) == texts[:1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9999), st.floats(0, 30)), max_size=300), st.sampled_from([3, 256]))
def test_every_line_is_written_or_counted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, float]], max_causes: int
) -> None:
    """Whatever varies: no line is lost, and a text gives at most its variants and their common cause a minute."""
    monkeypatch.setattr(repeats, "_MAX_CAUSES", max_causes)
    filtered, written, counted, times = Repeats(LIBRDKAFKA), 0, 0, []
    for number, pause in calls:
        clock.now += pause
        line = record(f"part p{number % 50} of {number} failed")
        if filtered.allow(line):
            written += 1
            times.append(clock.now)
            counted += getattr(line, "repeats", 0)
        counted += sum(ended.args[0] for ended in filtered.ended() if isinstance(ended.args, tuple))  # type: ignore[misc]
    counted += sum(ended.args[0] for ended in filtered.ended(all_causes=True) if isinstance(ended.args, tuple))  # type: ignore[misc]
    assert written + counted == len(calls)
    if max_causes == 256:
        assert all(sum(start <= time < start + 60 for time in times) <= 18 for start in times)


def test_the_memory_is_bounded() -> None:
    filtered = Repeats(LIBRDKAFKA)
    generator = random.Random(1)
    suppressed = 0
    for _ in range(20_000):
        word = "".join(generator.choices("abcdefgh", k=4))
        suppressed += not filtered.allow(record(f"{word} {UUID(int=generator.getrandbits(128))}"))
        filtered.ended()
    assert len(filtered._causes) <= 256
    assert sum(filtered._variants.values()) == len(filtered._causes)
