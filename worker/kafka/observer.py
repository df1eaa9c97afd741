"""A client that reads offsets, configurations and messages, and never joins the group that it asks about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.core.errors import Retryable
from worker.kafka.errors import auth_error, raise_auth_error
from worker.kafka.properties import client_error, client_properties, non_consumer_properties

_T = TypeVar("_T")


class Observer:
    """A consumer that never subscribes, and an AdminClient. All calls block, and come from the same thread.

    They raise Retryable while Kafka does not answer, and Fatal if it refuses this client. (The consumer asks for the
    group's offsets: an AdminClient has no group, and librdkafka crashes there when the coordinator moves: #5040.)
    """

    def __init__(
        self, settings: Settings, properties: Mapping[str, Any] = MappingProxyType({}), *, where: str = ""
    ) -> None:
        """`properties` are further ones of the consumer; `where` is the beginning of error texts."""
        self._where = where
        self._last_error: KafkaError | None = None  # of error_cb, which knows the reason
        client = {**client_properties(settings), "log_level": 0}  # error_cb gets the same errors
        client.pop("group.protocol", None)  # it never joins
        own = {"group.id": settings.group_id, "enable.auto.commit": False}
        try:
            self._consumer = Consumer({**client, **own, **properties}, error_cb=self._on_error)
            self._admin = AdminClient({**non_consumer_properties(settings), "log_level": 0})
        except KafkaException as error:
            raise client_error(error) from None

    def close(self) -> None:
        self._consumer.close()

    def _ask(self, request: Callable[[], _T]) -> _T:
        """Return what the request returns."""
        try:
            answer = request()
        except KafkaException as error:
            self._consumer.poll(0)  # serves error_cb
            raise self._to_retryable(self._last_error or error.args[0]) from None
        self._last_error = None
        return answer

    def _to_retryable(self, error: KafkaError) -> Retryable:
        raise_auth_error(error)
        return Retryable(f"{self._where}{error.str()}", reason="connection")

    def _on_error(self, error: KafkaError) -> None:
        is_refused = self._last_error is not None and auth_error(self._last_error)
        if error.code() != KafkaError._ALL_BROKERS_DOWN and not is_refused:
            self._last_error = error
