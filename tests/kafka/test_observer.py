"""Which of Kafka's errors an observer reports."""

from __future__ import annotations

from contextlib import closing

import pytest
from confluent_kafka import KafkaError, KafkaException

from worker.config.settings import Settings
from worker.core.errors import Fatal
from worker.kafka.observer import Observer


def test_a_refused_request_is_fatal_also_while_another_broker_is_down() -> None:
    class Refused(Observer):
        def ask(self) -> None:
            self._on_error(KafkaError(KafkaError._TRANSPORT, "Connection refused"))
            self._ask(self._raise)

        def _raise(self) -> None:
            raise KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))

    observer = Refused(Settings(topic="t", backend="redis", bootstrap_servers="127.0.0.1:1"))
    with closing(observer), pytest.raises(Fatal, match="the right to read the consumer group"):
        observer.ask()
