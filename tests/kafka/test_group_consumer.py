"""What a member of the group does while no broker answers."""

from __future__ import annotations

from collections.abc import Callable

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
    consumer = Counting(Settings(topic="t", backend="redis", bootstrap_servers="127.0.0.1:1"), 0, 1)
    try:
        for tries in (1, 2):
            with pytest.raises(Retryable):
                ask(consumer)
            assert consumer.admins == 1 + tries
    finally:
        consumer.close()
