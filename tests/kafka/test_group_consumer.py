"""What a member of the group does while no broker answers, or a partition has no leader."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.errors import Retryable
from worker.kafka import topics
from worker.kafka.group_consumer import GroupConsumer


class Counting(GroupConsumer):
    """Counts its AdminClients."""

    admins = 0

    def _new_admin(self) -> AdminClient:
        self.admins += 1
        return super()._new_admin()


@pytest.mark.parametrize(
    "ask", [lambda consumer: consumer.committed([("t", 0)]), lambda consumer: consumer.topic_id("t")]
)
def test_what_gets_no_answer_is_asked_again_by_another_client(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[GroupConsumer], object]
) -> None:
    """An AdminClient was seen that never answered; its process no longer ends for that."""
    monkeypatch.setattr(topics, "ANSWER_S", 0.5)
    with closing(Counting(Settings(topic="t", backend="redis", bootstrap_servers="127.0.0.1:1"), 0, 1)) as consumer:
        for tries in (1, 2):
            with pytest.raises(Retryable):
                ask(consumer)
            assert consumer.admins == 1 + tries


class WithoutController(GroupConsumer):
    """Does not ask for topic ids: librdkafka's mock brokers do not answer that."""

    def _topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(topics, "id")


@pytest.fixture
def mock_brokers() -> Iterator[str]:
    """The bootstrap servers of mock brokers with a topic `t` of three partitions; the second has no leader."""
    loaded = re.search(r"/\S*librdkafka\S*", Path("/proc/self/maps").read_text())
    assert loaded
    library = ctypes.CDLL(loaded[0])
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    client = ctypes.c_void_p(library.rd_kafka_new(0, ctypes.c_void_p(library.rd_kafka_conf_new()), None, 0))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(client, 3))
    library.rd_kafka_mock_topic_create(cluster, b"t", 3, 1)
    library.rd_kafka_mock_partition_set_leader(cluster, b"t", 1, -1)
    yield library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
    library.rd_kafka_mock_cluster_destroy(cluster)
    library.rd_kafka_destroy(client)


def test_a_partition_without_a_leader_does_not_hold_up_the_others(mock_brokers: str) -> None:
    settings = Settings(topic="t", backend="redis", bootstrap_servers=mock_brokers)
    with closing(WithoutController(settings, 0, 3)) as consumer:
        assert consumer.committed([("t", partition) for partition in range(3)]).keys() == {("t", 0), ("t", 2)}
