"""`produce` against real brokers: every event that it reports as written is in the topic, and failures are reported."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import pty
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from select import select
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support.kit import create_topic, host_and_port, wait_until
from tests.support.proxy import Proxy
from worker.commands.produce import ProduceOptions, produce
from worker.commands.produce.fleet import Fleet
from worker.core.errors import ExitCode, Fatal

PATIENCE_S = 120


def never() -> bool:
    return False


def new_topic(kafka: Any, partitions: int = 0, **config: str) -> str:
    """Return a new topic's name; create the topic if it is to have partitions."""
    name = f"produce-{uuid.uuid4().hex[:12]}"
    if partitions:
        create_topic(kafka.address, name, partitions, config)
    return name


def _end(consumer: Consumer, topic: str, partition: int) -> int:
    """Return the end of a partition; a new one has no leader at first."""
    ends: list[int] = []

    def ask() -> list[int]:
        with contextlib.suppress(KafkaException):
            ends.append(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=PATIENCE_S)[1])
        return ends

    return wait_until(ask, PATIENCE_S)[0]


def read(kafka: Any, topic: str) -> list[list[bytes]]:
    """Return the payloads of each partition, from its start to its current end; later ones are left out."""
    consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": topic, "enable.partition.eof": False})
    with contextlib.closing(consumer):
        partitions = sorted(consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions)
        ends = [_end(consumer, topic, partition) for partition in partitions]
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        payloads: list[list[bytes]] = [[] for _ in partitions]
        deadline = time.monotonic() + PATIENCE_S
        while any(map(operator.lt, map(len, payloads), ends)) and time.monotonic() < deadline:
            for message in consumer.consume(1000, 0.1):
                assert message.error() is None
                payloads[message.partition() or 0].append(message.value() or b"")
        payloads = [part[:end] for part, end in zip(payloads, ends, strict=True)]
        assert [len(part) for part in payloads] == ends
        return payloads


def test_every_event_is_written_evenly_to_the_partitions_of_a_created_topic(
    kafka: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = new_topic(kafka)
    options = ProduceOptions(kafka.address, topic, num_devices=500, num_messages=20_001, partitions=3, seed=11)
    assert produce(options, stop=never, progress=None) == ExitCode.OK
    assert capsys.readouterr().err.startswith("produced 20001, failed 0")
    payloads = read(kafka, topic)
    assert [abs(len(part) - 6667) < 700 for part in payloads] == [True, True, True]
    written = [payload for part in payloads for payload in part]
    assert sorted(written) == sorted(Fleet(500, seed=11).take(20_001))
    assert len({json.loads(payload)["device_ip"] for payload in written}) == 500


def test_the_same_seed_writes_the_same_bytes_to_the_same_partitions(kafka: Any) -> None:
    topics = [new_topic(kafka, 2), new_topic(kafka, 2)]
    for topic in topics:
        options = ProduceOptions(kafka.address, topic, num_messages=5000, seed=5, bad_ratio=0.02)
        assert produce(options, stop=never, progress=None) == ExitCode.OK
    first, second = (read(kafka, topic) for topic in topics)
    assert first == second


def test_a_missing_topic_is_an_error_that_says_how_to_create_it_and_is_not_created(kafka: Any) -> None:
    topic = new_topic(kafka)
    with pytest.raises(Fatal, match=rf"topic {topic} does not exist .*--partitions") as caught:
        produce(ProduceOptions(kafka.address, topic), stop=never, progress=None)
    assert caught.value.code == ExitCode.CONFIG
    assert topic not in AdminClient({"bootstrap.servers": kafka.address}).list_topics(timeout=PATIENCE_S).topics


def test_a_topic_with_another_number_of_partitions_is_used_unchanged(
    kafka: Any, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(kafka, 2)
    options = ProduceOptions(kafka.address, topic, num_messages=100, partitions=5)
    assert produce(options, stop=never, progress=None) == ExitCode.OK
    assert f"topic {topic} has 2 partitions, not 5" in caplog.text
    assert sorted(map(len, read(kafka, topic)))[0] > 40


def test_events_that_the_broker_refuses_are_counted_and_fail_the_command(
    kafka: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = new_topic(kafka, 1, **{"max.message.bytes": "50"})
    options = ProduceOptions(kafka.address, topic, num_messages=300)
    assert produce(options, stop=never, progress=None) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert error.startswith("produced 0, failed 300")
    assert "300 x MSG_SIZE_TOO_LARGE" in error


def test_a_full_queue_loses_nothing_and_repeats_nothing(kafka: Any) -> None:
    topic = new_topic(kafka, 2)
    small = {"queue.buffering.max.messages": "150"}
    options = ProduceOptions(kafka.address, topic, num_messages=20_000, seed=1, properties=small)
    assert produce(options, stop=never, progress=None) == ExitCode.OK
    written = [payload for part in read(kafka, topic) for payload in part]
    assert sorted(written) == sorted(Fleet(10_000, seed=1).take(20_000))


def test_when_stopped_it_delivers_and_reports_the_events_already_sent(
    kafka: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = new_topic(kafka, 2)
    calls = iter(range(10**9))
    options = ProduceOptions(kafka.address, topic, num_messages=10**12)
    assert produce(options, stop=lambda: next(calls) > 60, progress=None) == ExitCode.OK
    written = sum(map(len, read(kafka, topic)))
    assert written > 0
    assert capsys.readouterr().err.startswith(f"produced {written}, failed 0")


@pytest.mark.parametrize("pause_ms", [0.05, 3])
def test_a_paced_run_is_no_faster_than_requested(kafka: Any, pause_ms: float) -> None:
    topic = new_topic(kafka, 1)
    count = int(600 / pause_ms)
    started = time.monotonic()
    options = ProduceOptions(kafka.address, topic, num_messages=count, pause_ms=pause_ms)
    assert produce(options, stop=never, progress=None) == ExitCode.OK
    assert time.monotonic() - started > 0.6 - pause_ms / 1000
    assert sum(map(len, read(kafka, topic))) == count


def test_a_long_pause_ends_when_stopped(kafka: Any) -> None:
    topic = new_topic(kafka, 1)
    started = time.monotonic()
    options = ProduceOptions(kafka.address, topic, num_messages=2, pause_ms=3_600_000)
    assert produce(options, stop=lambda: time.monotonic() - started > 3, progress=None) == ExitCode.OK
    assert time.monotonic() - started < PATIENCE_S
    assert [len(part) for part in read(kafka, topic)] == [1]


def test_an_outage_at_start_is_waited_out(kafka: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = new_topic(kafka, 1)
    with Proxy(*host_and_port(kafka.address)) as proxy, ThreadPoolExecutor(1) as thread:
        proxy.refuse()
        options = ProduceOptions(f"127.0.0.1:{proxy.port}", topic, num_messages=1000)
        result = thread.submit(produce, options, stop=never, progress=None)
        wait_until(lambda: "does not answer" in caplog.text or result.done())
        proxy.heal()
        assert result.result(PATIENCE_S) == ExitCode.OK
    assert sum(map(len, read(kafka, topic))) == 1000


def test_an_outage_during_the_run_is_waited_out_and_loses_and_repeats_nothing(
    own_kafka: Any, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(own_kafka, 2)
    options = ProduceOptions(own_kafka.address, topic, num_messages=200_000, pause_ms=0.02, seed=1)
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(produce, options, stop=never, progress=None)
        wait_until(lambda: sum(map(len, read(own_kafka, topic))) > 1000)
        own_kafka.pause()
        wait_until(lambda: "does not answer" in caplog.text or result.done())
        own_kafka.resume()
        assert result.result(PATIENCE_S) == ExitCode.OK
    written = [payload for part in read(own_kafka, topic) for payload in part]
    assert sorted(written) == sorted(Fleet(10_000, seed=1).take(200_000))


def test_a_terminal_shows_a_progress_bar_that_is_erased_at_the_end(kafka: Any) -> None:
    topic = new_topic(kafka, 1)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        options = ProduceOptions(kafka.address, topic, num_messages=400, pause_ms=2)
        assert produce(options, stop=never, progress=terminal) == ExitCode.OK
        read = b""
        while select([master], [], [], 1)[0]:  # a terminal returns 4 kB at once
            read += os.read(master, 100_000)
    os.close(master)
    shown = read.decode()
    assert "/400" in shown
    assert "░" in shown
    assert "%" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")


def test_without_a_terminal_no_progress_bar_is_shown(kafka: Any, tmp_path: Any) -> None:
    topic = new_topic(kafka, 1)
    with (tmp_path / "progress").open("w+") as progress:
        options = ProduceOptions(kafka.address, topic, num_messages=400, pause_ms=1)
        assert produce(options, stop=never, progress=progress) == ExitCode.OK
        assert progress.tell() == 0
