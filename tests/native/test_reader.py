"""The native reader on real Kafka, under a confluent_kafka.Consumer."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import confluent_kafka
import pytest
import worker_native
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from tests.support.kit import PATIENCE_S, Service, create_topic, send, wait_until

Event = tuple[str, int, int, int, str]
Keys = list[tuple[str, int]]


def library() -> str:
    (path,) = Path(f"{Path(confluent_kafka.__file__).parent}.libs").glob("librdkafka*")
    return str(path)


def new_consumer(kafka: Service, group: str, **properties: Any) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            "log_level": 2,
            **{name.replace("_", "."): value for name, value in properties.items()},
        }
    )


@contextmanager
def reading(kafka: Service, group: str, starts: dict[tuple[str, int], int], **properties: Any) -> Iterator[Session]:
    """A consumer that is assigned these partitions, read from these offsets."""
    session = Session(new_consumer(kafka, group, **properties))
    try:
        session.assign(starts)
        yield session
    finally:
        session.close()


class Session:
    """A consumer and its reader. It asserts that no message comes from the consumer, and offsets that ascend."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.reader = worker_native.Reader(consumer, library())
        self.events: list[Event] = []

    def assign(self, starts: dict[tuple[str, int], int]) -> None:
        for key in starts:
            self.reader.attach(*key)
        self.consumer.assign([TopicPartition(*key, offset) for key, offset in starts.items()])

    def read(self, count: int = 1000, timeout_ms: int = 50) -> list[worker_native.Messages]:
        message = self.consumer.poll(0)
        assert message is None or message.error()
        runs, events = self.reader.read(count, timeout_ms)
        self.events += events
        for run in runs:
            offsets = run.offsets()
            assert all(a < b for a, b in pairwise(offsets))
            assert (len(run), run.end) == (len(offsets), offsets[-1] + 1)
        return runs

    def read_until(self, is_done: Callable[[list[worker_native.Messages]], bool]) -> list[worker_native.Messages]:
        """Read until the predicate is true for all runs together."""
        runs: list[worker_native.Messages] = []

        def proceed() -> bool:
            runs.extend(self.read())
            return is_done(runs)

        wait_until(proceed, PATIENCE_S)
        return runs

    def close(self) -> None:
        self.reader.close()
        close_in_time(self.consumer)


def close_in_time(consumer: Consumer) -> None:
    """Close it; AssertionError if that takes too long, as it does where messages or queues are still referenced."""
    thread = threading.Thread(target=consumer.close, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "Consumer.close() hangs"


def repeat(step: Callable[[], object], until: Callable[[], bool]) -> None:
    """Do the step until the condition holds after it."""
    wait_until(lambda: (step(), until())[1], PATIENCE_S)


def next_message(consumer: Consumer) -> Message:
    message = wait_until(lambda: consumer.poll(0.1), PATIENCE_S)
    assert message
    return message


def has(count: int) -> Callable[[list[worker_native.Messages]], bool]:
    return lambda runs: sum(map(len, runs)) >= count


def payloads(runs: Sequence[worker_native.Messages]) -> dict[int, list[bytes | None]]:
    """Return the payloads of each partition, in the order read."""
    result: dict[int, list[bytes | None]] = {}
    for run in runs:
        result.setdefault(run.partition, []).extend(run.payload(i) for i in range(len(run)))
    return result


def numbers(count: int) -> list[bytes | None]:
    return [b"%d" % i for i in range(count)]


# content


def test_messages_are_those_of_the_consumer(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 4)
    producer = Producer({"bootstrap.servers": kafka.address, "linger.ms": 5, "log_level": 2})
    random = Random(1)
    for i in range(8000):
        key = random.choice([None, b"", b"key \xff\x00 %d" % i])
        value = random.choice([None, b"", b"value \xff\x00", b"x" * random.randrange(2000)])
        headers: list[tuple[str, Any]] = [("größe", b"%d" % i), ("empty", b""), ("null", None), ("größe", b"\xff")]
        headers = headers[: random.randrange(5)]
        producer.produce(topic_name, value, key, partition=i % 4, headers=headers, timestamp=1_700_000_000_000 + i * 7)
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0
    starts = {(topic_name, partition): 0 for partition in range(4)}

    expected: dict[tuple[int, int], tuple[Any, ...]] = {}
    consumer = new_consumer(kafka, group_id)
    consumer.assign([TopicPartition(*key, 0) for key in starts])

    def consume() -> bool:
        for message in consumer.consume(1000, 0.1):
            assert not message.error()
            expected[message.partition() or 0, message.offset() or 0] = contents(message)
        return len(expected) == 8000

    wait_until(consume, PATIENCE_S)
    consumer.close()
    with reading(kafka, group_id, starts) as session:
        runs = session.read_until(has(8000))
        read = {
            (run.partition, offset): (run.payload(i), run.key(i), run.headers(i), run.timestamp(i))
            for run in runs
            for i, offset in enumerate(run.offsets())
        }
        assert read == expected
        assert {run.topic for run in runs} == {topic_name}
        for run in runs:
            values = [run.payload(i) for i in range(len(run))]
            assert run.size == sum(len(value or b"") for value in values)
            assert run.tombstones == values.count(None)
            assert run.timestamp_ms == run.timestamp(0)[1]
            assert run.offsets() == range(run.end - len(run), run.end)


def contents(message: Message) -> tuple[Any, ...]:
    return message.value(), message.key(), message.headers() or [], message.timestamp()


def test_a_slice_shares_the_messages_until_all_are_released(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, [b"0", b"11", None, b"333", b"4"])
    with reading(kafka, group_id, {(topic_name, 0): 0}) as session:
        (run,) = session.read_until(has(5))
        head, tail, empty, inner = run.slice(0, 2), run.slice(2, 9), run.slice(5, 5), run.slice(1, 5).slice(1, 3)
        assert [len(head), head.offsets(), head.end, head.size, head.tombstones] == [2, range(2), 2, 3, 0]
        assert [len(tail), tail.offsets(), tail.end, tail.size, tail.tombstones] == [3, range(2, 5), 5, 4, 1]
        assert [len(empty), empty.offsets(), empty.end, empty.size, empty.timestamp_ms] == [0, range(5, 5), 5, 0, -1]
        assert [inner.payload(0), inner.payload(1), inner.offsets()] == [None, b"333", range(2, 4)]
        assert tail.timestamp_ms == run.timestamp(2)[1]
        run.release()
        head.release()
        assert tail.payload(1) == b"333"
        for use in (head.payload, head.key, head.headers, head.timestamp, lambda i: head.slice(0, i)):
            with pytest.raises(RuntimeError, match="released"):
                use(1)
        assert [len(head), head.offsets(), head.size] == [2, range(2), 3]
        for index in (3, 1000):
            with pytest.raises(IndexError):
                tail.payload(index)
        with pytest.raises(OverflowError):
            tail.payload(-1)


def test_tombstones_are_counted(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, [b"a", None, b"", None])
    with reading(kafka, group_id, {(topic_name, 0): 0}) as session:
        (run,) = session.read_until(has(4))
        assert [run.payload(i) for i in range(4)] == [b"a", None, b"", None]
        assert [run.tombstones, run.size] == [2, 1]


def test_aborted_transactions_leave_gaps(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": topic_name, "log_level": 2})
    producer.init_transactions(PATIENCE_S)
    for finish in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        for _ in range(10):
            producer.produce(topic_name, b"x")
        assert producer.flush(PATIENCE_S) == 0  # else an abort would drop them here
        finish(PATIENCE_S)
    with reading(kafka, group_id, {(topic_name, 0): 0}, enable_partition_eof=True) as session:
        ((run,), _) = session.reader.read(20, 60_000)
        assert run.offsets() == [*range(10), *range(22, 32)]  # 10, 21 and 32 are the transactions' markers
        assert [run.slice(0, 10).offsets(), run.slice(0, 10).end] == [range(10), 10]
        assert [run.slice(9, 11).offsets(), run.slice(9, 11).end] == [[9, 22], 23]
        assert [run.slice(10, 20).offsets(), run.slice(20, 20).offsets()] == [range(22, 32), range(32, 32)]
        assert session.read_until(lambda _: bool(session.events)) == []
        assert [event[:4] for event in session.events] == [(topic_name, 0, KafkaError._PARTITION_EOF, 33)]


# events


def test_the_end_of_a_partition_is_an_event(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 2)
    send(kafka.address, topic_name, numbers(5), 0)
    starts = {(topic_name, 0): 2, (topic_name, 1): 0}
    with reading(kafka, group_id, starts, enable_partition_eof=True) as session:
        runs = session.read_until(lambda _: len(session.events) == 2)
        assert payloads(runs) == {0: [b"2", b"3", b"4"]}
        eof = KafkaError._PARTITION_EOF
        assert sorted(event[:4] for event in session.events) == [(topic_name, 0, eof, 5), (topic_name, 1, eof, 0)]


def test_an_offset_out_of_range_is_an_event(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 2)
    send(kafka.address, topic_name, numbers(5), 0)
    send(kafka.address, topic_name, numbers(5), 1)
    with reading(kafka, group_id, {(topic_name, 0): 1000, (topic_name, 1): 0}) as session:
        runs = session.read_until(lambda runs: bool(session.events) and has(5)(runs))
        assert payloads(runs) == {1: numbers(5)}
        ((topic, partition, code, _, text),) = session.events
        assert (topic, partition, code) == (topic_name, 0, KafkaError._AUTO_OFFSET_RESET)
        assert "out of range" in text


# seek, pause, assign


def test_a_seek_starts_exactly_there(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 4)
    count = 20_000
    for partition in range(4):
        send(kafka.address, topic_name, numbers(count), partition)
    random = Random(2)
    with reading(kafka, group_id, {(topic_name, partition): 0 for partition in range(4)}) as session:
        position = dict.fromkeys(range(4), 0)
        seeks = 0

        def proceed() -> bool:
            nonlocal seeks
            for run in session.read(random.choice([1, 100, 1000]), 20):
                assert run.offsets() == range(position[run.partition], run.end)
                assert run.payload(0) == b"%d" % position[run.partition]
                position[run.partition] = run.end
                run.release()
            partition = random.randrange(4)
            if seeks < 100 and position[partition]:
                position[partition] = random.randrange(position[partition])
                session.consumer.seek(TopicPartition(topic_name, partition, position[partition]))
                seeks += 1
            return all(end == count for end in position.values())

        wait_until(proceed, PATIENCE_S)
        assert seeks == 100


def test_a_paused_partition_is_silent_and_resumes_without_a_gap(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 2)
    count = 50_000
    for partition in range(2):
        send(kafka.address, topic_name, numbers(count), partition)
    with reading(kafka, group_id, {(topic_name, 0): 0, (topic_name, 1): 0}) as session:
        position = [0, 0]

        def advance(allowed: set[int], count: int = 500) -> None:
            for run in session.read(count):
                assert run.partition in allowed
                assert run.offsets() == range(position[run.partition], run.end)
                position[run.partition] = run.end

        paused = [TopicPartition(topic_name, 0)]

        def interrupt() -> None:
            target = position[0] + 1000
            repeat(lambda: advance({0, 1}), until=lambda: position[0] >= target)
            session.consumer.pause(paused)
            silent_until = time.monotonic() + 0.2
            repeat(lambda: advance({1}), until=lambda: time.monotonic() > silent_until)
            session.consumer.resume(paused)

        for _ in range(10):
            interrupt()
        repeat(lambda: advance({0, 1}, 1000), until=lambda: position == [count, count])


def test_an_assignment_that_replaces_one_is_read(kafka: Service, topic_name: str, group_id: str) -> None:
    """librdkafka ends the old assignment's forwarding after `assign` has returned."""
    create_topic(kafka.address, topic_name, 4)
    for partition in range(4):
        send(kafka.address, topic_name, numbers(100), partition)
    keys = [(topic_name, partition) for partition in range(4)]
    with reading(kafka, group_id, dict.fromkeys(keys, 0)) as session:
        session.read_until(has(400))
        for start in range(20):
            session.assign(dict.fromkeys(keys, start))
            runs = session.read_until(has(4 * (100 - start)))
            assert payloads(runs) == dict.fromkeys(range(4), numbers(100)[start:])


def test_a_detached_partition_continues_in_the_consumer(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    with reading(kafka, group_id, {(topic_name, 0): 0}) as session:
        send(kafka.address, topic_name, [b"native"])
        assert payloads(session.read_until(has(1))) == {0: [b"native"]}
        session.reader.detach(topic_name, 0)
        send(kafka.address, topic_name, [b"python"])
        message = next_message(session.consumer)
        assert (message.value(), message.offset()) == (b"python", 1)
        assert session.read() == []
        session.reader.attach(topic_name, 0)
        send(kafka.address, topic_name, [b"native again"])
        assert payloads(session.read_until(has(1))) == {0: [b"native again"]}


def test_a_partition_of_no_topic_does_no_harm(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(5))
    with reading(kafka, group_id, {(topic_name, 0): 0}) as session:
        session.reader.attach(f"no_{topic_name}", 3)
        assert payloads(session.read_until(has(5))) == {0: numbers(5)}
        for topic, partition in (("", 0), (topic_name, -1), ("a\0b", 0)):
            with pytest.raises(ValueError, match=r"partition|nul byte"):
                session.reader.attach(topic, partition)
        for count, timeout_ms in ((0, 0), (10**9, 0), (1, -1)):
            with pytest.raises(ValueError, match="cannot read"):
                session.reader.read(count, timeout_ms)
        session.reader.detach(topic_name, 7)  # was not attached


# rebalances


class Member(Session):
    """A member of a group that commits what it has read, at every revocation, and continues at the commits."""

    def __init__(self, kafka: Service, group: str, topic: str, is_incremental: bool, **properties: Any) -> None:
        super().__init__(new_consumer(kafka, group, **properties))
        self.position: dict[tuple[str, int], int] = {}
        self.offsets: dict[tuple[str, int], list[int]] = {}
        self._is_incremental = is_incremental
        self.consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke)

    def proceed(self) -> None:
        for run in self.read(1000, 20):
            key = (run.topic, run.partition)
            assert run.offsets() == range(self.position[key], run.end), key  # no gap, no step back
            assert run.payload(0) == b"%d" % self.position[key]
            self.position[key] = run.end
            self.offsets.setdefault(key, []).extend(run.offsets())
            run.release()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for item in consumer.committed(partitions, 30):
            self.position[item.topic, item.partition] = max(item.offset, 0)
        for item in partitions:
            item.offset = self.position[item.topic, item.partition]
            self.reader.attach(item.topic, item.partition)
        (consumer.incremental_assign if self._is_incremental else consumer.assign)(partitions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for item in partitions:
            item.offset = self.position.pop((item.topic, item.partition))
            self.reader.detach(item.topic, item.partition)
        if partitions:
            consumer.commit(offsets=partitions, asynchronous=False)
        (consumer.incremental_unassign if self._is_incremental else lambda _: consumer.unassign())(partitions)

    def leave(self) -> None:
        self.consumer.unsubscribe()
        wait_until(lambda: self.consumer.poll(0.1) or not self.consumer.assignment(), PATIENCE_S)
        self.close()


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param({"partition_assignment_strategy": "range"}, id="range"),
        pytest.param({"partition_assignment_strategy": "cooperative-sticky"}, id="cooperative-sticky"),
        pytest.param({"group_protocol": "consumer"}, id="consumer"),
    ],
)
def test_rebalances_lose_and_repeat_nothing(
    kafka: Service, topic_name: str, group_id: str, properties: dict[str, str]
) -> None:
    create_topic(kafka.address, topic_name, 4)
    keys = [(topic_name, partition) for partition in range(4)]
    is_incremental = properties != {"partition_assignment_strategy": "range"}
    producer = Producer({"bootstrap.servers": kafka.address, "enable.idempotence": True, "log_level": 2})
    members: list[Member] = []
    sent = 0

    def join() -> Member:
        members.append(Member(kafka, group_id, topic_name, is_incremental, **properties))
        return members[-1]

    def produce() -> None:
        nonlocal sent
        for i in range(sent, sent + 100):
            for _, partition in keys:
                producer.produce(topic_name, b"%d" % i, partition=partition)
        sent += 100
        producer.poll(0)

    def run(*running: Member, until: Callable[[], bool]) -> None:
        def step() -> None:
            produce()
            for member in running:
                member.proceed()

        repeat(step, until)

    def positions() -> list[int]:
        return [offset for member in members for offset in member.position.values()]

    first = join()

    def share_for_a_while() -> None:
        second = join()
        run(first, second, until=lambda: len(first.position) == len(second.position) == 2)
        target = sent + 500
        run(first, second, until=lambda: min(positions()) > target)
        second.leave()
        run(first, until=lambda: len(first.position) == 4)

    run(first, until=lambda: len(first.position) == 4 and min(positions()) > 500)
    for _ in range(2):
        share_for_a_while()
    assert producer.flush(PATIENCE_S) == 0
    repeat(first.proceed, until=lambda: positions() == [sent] * 4)
    first.leave()
    for key in keys:
        assert sorted(offset for member in members for offset in member.offsets.get(key, [])) == list(range(sent))


# life and death


def test_closing_frees_the_messages_that_are_still_held(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name, 4)
    for partition in range(4):
        send(kafka.address, topic_name, numbers(5000), partition)
    session = Session(new_consumer(kafka, group_id))
    session.assign({(topic_name, partition): 0 for partition in range(4)})
    runs = session.read_until(has(10_000))
    parts = [run.slice(0, 1) for run in runs]
    session.close()
    for messages in (*runs, *parts):
        with pytest.raises(RuntimeError, match="released"):
            messages.payload(0)
    assert sum(map(len, runs)) >= 10_000
    with pytest.raises(RuntimeError, match="closed"):
        session.reader.read(1, 1)
    with pytest.raises(RuntimeError, match="closed"):
        session.reader.attach(topic_name, 0)
    session.reader.close()  # again


def test_a_reader_that_is_dropped_is_closed(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(1000))
    session = Session(new_consumer(kafka, group_id))
    session.assign({(topic_name, 0): 0})
    (run, *_) = session.read_until(has(1000))
    consumer = session.consumer
    del session
    gc.collect()
    with pytest.raises(RuntimeError, match="released"):
        run.payload(0)
    close_in_time(consumer)


def test_a_reader_in_a_reference_cycle_is_closed(kafka: Service, topic_name: str, group_id: str) -> None:
    """The consumer's callbacks refer to the member, which refers to the reader, which refers to the consumer."""
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(1000))
    member = Member(kafka, group_id, topic_name, False)
    (run, *_) = member.read_until(has(1))
    del member
    gc.collect()
    with pytest.raises(RuntimeError, match="released"):
        run.payload(0)


def test_a_closed_reader_leaves_the_partitions_to_the_consumer(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(1000))
    session = Session(new_consumer(kafka, group_id))
    session.assign({(topic_name, 0): 0})
    session.read_until(has(1000))
    session.reader.close()
    with pytest.raises(RuntimeError, match="the reader is closed"):
        session.reader.read(1, 1)
    with pytest.raises(RuntimeError, match="the reader is closed"):
        session.reader.attach(topic_name, 0)
    session.reader.detach(topic_name, 0)  # as a revocation does that comes while the consumer is closed
    session.consumer.seek(TopicPartition(topic_name, 0, 990))
    message = next_message(session.consumer)
    assert (message.offset(), message.value()) == (990, b"990")
    close_in_time(session.consumer)


def test_threads_that_look_at_messages_survive_a_close(kafka: Service, topic_name: str, group_id: str) -> None:
    """Whatever is called while messages are freed returns what it should, or raises RuntimeError."""
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(3000))
    failures: list[Exception] = []

    def look(session: Session, runs: list[worker_native.Messages]) -> None:
        try:
            while True:
                for run in runs:
                    part = run.slice(1, len(run))
                    assert part.payload(0) == b"%d" % part.offsets()[0]
                    assert part.headers(0) == []
                    part.release()
                session.reader.read(10, 1)
        except RuntimeError:
            return
        except Exception as error:
            failures.append(error)

    for _ in range(10):
        session = Session(new_consumer(kafka, group_id))
        session.assign({(topic_name, 0): 0})
        runs = [run.slice(0, len(run)) for run in session.read_until(has(3000)) if len(run) > 1]
        threads = [threading.Thread(target=look, args=(session, runs)) for _ in range(3)]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join()
    assert not failures


def test_other_threads_run_while_it_reads(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    times: list[float] = []
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.is_set():
            times.append(time.monotonic())
            is_done.wait(0.001)

    thread = threading.Thread(target=tick, daemon=True)
    with reading(kafka, group_id, {(topic_name, 0): 0}) as session:
        thread.start()
        start = time.monotonic()
        assert session.reader.read(1, 3000) == ([], [])
        end = time.monotonic()
    is_done.set()
    thread.join()
    assert end - start >= 2.9
    assert sum(start + 0.5 < tick < end - 0.5 for tick in times) > 10


def test_reading_counts_as_polling(kafka: Service, topic_name: str, group_id: str) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(10))
    member = Member(kafka, group_id, topic_name, False, max_poll_interval_ms=6000, session_timeout_ms=6000)
    repeat(member.proceed, until=lambda: member.position.get((topic_name, 0)) == 10)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        assert member.reader.read(100, 100) == ([], [])
    assert member.consumer.poll(0) is None  # else the error _MAX_POLL_EXCEEDED
    assert len(member.position) == 1
    member.leave()


# what cannot be read


def test_other_objects_are_refused(kafka: Service, group_id: str) -> None:
    class Disguised:
        __class__ = Consumer  # type: ignore[assignment]

    assert isinstance(Disguised(), Consumer)
    producer = Producer({"bootstrap.servers": kafka.address, "log_level": 2})
    for other in (producer, Disguised(), object(), None, 7, "consumer", Consumer, KafkaError):
        with pytest.raises(ValueError, match=r"is not a confluent_kafka\.Consumer"):
            worker_native.Reader(other, library())
    closed = new_consumer(kafka, group_id)
    closed.close()
    for consumer in (closed, Consumer.__new__(Consumer)):
        with pytest.raises(ValueError, match="closed"):
            worker_native.Reader(consumer, library())


def test_a_consumer_of_a_subclass_is_read(kafka: Service, topic_name: str, group_id: str) -> None:
    class Special(Consumer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.more = 1

    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, numbers(3))
    properties = {"bootstrap.servers": kafka.address, "group.id": group_id, "client.id": "größe", "log_level": 2}
    session = Session(Special(properties))
    session.assign({(topic_name, 0): 0})
    assert payloads(session.read_until(has(3))) == {0: numbers(3)}
    session.close()


def test_other_libraries_are_refused(kafka: Service, group_id: str, tmp_path: Path) -> None:
    consumer = new_consumer(kafka, group_id)
    copy = tmp_path / "librdkafka.so.1"  # the right contents, but not loaded
    copy.write_bytes(Path(library()).read_bytes())
    for path in (str(copy), str(tmp_path / "missing.so"), __file__, "a\0b"):
        with pytest.raises(ValueError, match=r"is not a library that is loaded|null byte"):
            worker_native.Reader(consumer, path)
    module = sys.modules.get("worker_native.worker_native", worker_native)  # installed, it is a package
    for path in ("", str(module.__file__)):  # the program itself, and a library
        with pytest.raises(ValueError, match="is not librdkafka 2"):
            worker_native.Reader(consumer, path)
    close_in_time(consumer)


def test_a_closed_consumer_is_not_read(kafka: Service, topic_name: str, group_id: str) -> None:
    session = Session(new_consumer(kafka, group_id))
    session.consumer.close()
    with pytest.raises(RuntimeError, match="the consumer is closed"):
        session.reader.read(1, 1)
    with pytest.raises(RuntimeError, match="the consumer is closed"):
        session.reader.attach(topic_name, 0)
    session.reader.close()
