from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.support.kit import Service, create_topic, send, wait_until
from worker.config.settings import Settings
from worker.core.delivery import plain
from worker.core.errors import Retryable
from worker.kafka.group_lag import GroupLag, PartitionLag, Retention
from worker.kafka.topics import topic_ids
from worker.local import Server, start_kafka


@pytest.fixture
def settings(kafka: Service, topic_name: str, group_id: str) -> Settings:
    return Settings(topic=topic_name, group_id=group_id, bootstrap_servers=kafka.address)


def commit(settings: Settings, offsets: dict[int, int], metadata: str = "") -> None:
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": settings.group_id})
    consumer.commit(
        offsets=[TopicPartition(settings.topic, partition, offset, metadata) for partition, offset in offsets.items()],
        asynchronous=False,
    )
    consumer.close()


def send_aged(settings: Settings, ages: dict[float, int], now: float) -> None:
    """Write `count` events to partition 0 for each age in seconds, oldest first."""
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    for age, count in sorted(ages.items(), reverse=True):
        for _ in range(count):
            producer.produce(settings.topic, b"{}", partition=0, timestamp=int((now - age) * 1000))
    assert producer.flush(60) == 0


def refresh(settings: Settings, count: int, retention: Retention = Retention()) -> list[PartitionLag]:  # noqa: B008
    lag = GroupLag(settings)
    try:
        return lag.refresh({settings.topic: count}, {settings.topic: retention})
    finally:
        lag.close()


def refresh_if_ready(settings: Settings, count: int) -> list[PartitionLag]:
    """Return an empty list while Kafka is not ready."""
    try:
        return refresh(settings, count)
    except Retryable:
        return []


def test_lag_counts_from_the_commit_or_else_from_the_start(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 3)
    for partition in (0, 1):
        send(settings.bootstrap_servers, settings.topic, [b"{}"] * 10, partition)
    commit(settings, {0: 4})
    lags = refresh(settings, 3)
    assert [(lag.committed, lag.start, lag.end, lag.messages) for lag in lags] == [
        (4, 0, 10, 6),
        (None, 0, 10, 10),
        (None, 0, 0, 0),
    ]
    assert lags[2].seconds == 0


def test_commits_for_a_deleted_topic_of_the_same_name_are_ignored(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 2)
    for partition in (0, 1):
        send(settings.bootstrap_servers, settings.topic, [b"{}"] * 10, partition)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    commit(settings, {0: 4}, plain(topic_ids(admin, [settings.topic])[settings.topic]))
    commit(settings, {1: 10}, plain("of-the-topic-before"))
    assert [(lag.committed, lag.messages) for lag in refresh(settings, 2)] == [(4, 6), (None, 10)]


def test_the_first_refresh_finds_the_age_of_a_backlog(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 1)
    now = time.time()
    send_aged(settings, {90_000: 50, 3600: 50, 600: 50, 30: 50}, now)
    for offset, age in ((0, 90_000), (75, 3600), (125, 600), (175, 30)):
        commit(settings, {0: offset})
        assert refresh(settings, 1)[0].seconds == pytest.approx(age + time.time() - now, rel=0.15, abs=4)


def test_reading_the_lag_neither_creates_nor_joins_the_group(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 1)
    refresh(settings, 1)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    assert settings.group_id not in [group.group_id for group in admin.list_consumer_groups().result().valid]


def test_a_missing_topic_has_no_partitions_and_is_not_created(settings: Settings) -> None:
    lag = GroupLag(settings)
    assert lag.partitions() == {}
    assert lag.partitions() == {}
    lag.close()


def test_added_partitions_are_detected(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 1)
    lag = GroupLag(settings)
    assert lag.partitions() == {settings.topic: 1}
    lag.refresh({settings.topic: 1})
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    admin.create_partitions([NewPartitions(settings.topic, 3)])[settings.topic].result(60)
    wait_until(lambda: lag.partitions() == {settings.topic: 3})
    lag.close()
    wait_until(lambda: len(refresh_if_ready(settings, 3)) == 3)


def test_events_of_an_open_transaction_are_not_lag(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 1)
    send(settings.bootstrap_servers, settings.topic, [b"{}"] * 5)
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "transactional.id": settings.group_id})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(settings.topic, b"{}", partition=0)
    assert producer.flush(60) == 0
    assert refresh(settings, 1)[0].end == 5
    producer.commit_transaction()
    wait_until(lambda: refresh(settings, 1)[0].end == 7)  # the event and the transaction's marker


def test_retention_is_read_from_the_topic(settings: Settings) -> None:
    create_topic(
        settings.bootstrap_servers,
        settings.topic,
        1,
        {"retention.ms": "3600000", "retention.bytes": "1000000"},
    )
    lag = GroupLag(settings)
    assert lag.retention([settings.topic]) == {settings.topic: Retention(seconds=3600, bytes=1_000_000)}
    lag.close()
    send_aged(settings, {600: 10}, time.time())
    (lag_of_topic,) = refresh(settings, 1, Retention(seconds=3600))
    assert lag_of_topic.headroom == pytest.approx(3000, rel=0.1)


def test_a_compacted_topic_has_no_retention_by_age(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.topic, 1, {"cleanup.policy": "compact"})
    lag = GroupLag(settings)
    assert lag.retention([settings.topic]) == {settings.topic: Retention()}
    lag.close()


@pytest.mark.faults
def test_a_broker_that_never_had_a_group_can_be_queried(topic_name: str) -> None:
    """An AdminClient's same request crashes the process here: librdkafka #5040."""
    with start_kafka() as broker:
        assert isinstance(broker, Server)
        create_topic(broker.address, topic_name, 1)
        settings = Settings(topic=topic_name, bootstrap_servers=broker.address)
        assert wait_until(lambda: refresh_if_ready(settings, 1))[0].committed is None
