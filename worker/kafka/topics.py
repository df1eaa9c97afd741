"""Topic ids, and the topics that the settings select."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import Fatal, Retryable
from worker.kafka.errors import UNKNOWN_TOPIC
from worker.kafka.properties import non_consumer_properties

ANSWER_S = 10.0  # an AdminClient's request timeout


def wait_for(future: Future[Any]) -> Any:
    """Return the answer to an AdminClient's request with the request_timeout ANSWER_S. Raises KafkaException.

    librdkafka reports a timeout itself. The second limit holds if it does not.
    """
    try:
        return future.result(2 * ANSWER_S)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to an administrative request")) from None


def topic_ids(admin: AdminClient, topics: Sequence[str]) -> dict[str, str]:
    """Return the id of each existing topic; `-` from brokers that return none (before Kafka 2.8).

    Raises KafkaException.
    """
    ids: dict[str, str] = {}
    for name, future in admin.describe_topics(TopicCollection(list(topics)), request_timeout=ANSWER_S).items():
        try:
            ids[name] = str(wait_for(future).topic_id)
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE):
                ids[name] = "-"
            elif code not in UNKNOWN_TOPIC:
                raise
    return ids


def topic_configuration(admin: AdminClient, topic: str, timeout_s: float = ANSWER_S) -> dict[str, str]:
    """Return the topic's configuration; empty if this client may not read it."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        entries = wait_for(admin.describe_configs([resource], request_timeout=timeout_s)[resource])
    except KafkaException:
        return {}
    return {name: str(entry.value) for name, entry in entries.items()}


def each_topic(settings: Settings) -> list[Settings]:
    """Return the settings for each of the topics. A regular expression needs a request to Kafka.

    Raises Retryable if Kafka does not answer, Fatal if no topic matches.
    """
    selection = Selection(settings)
    topics = list(selection.names)
    if selection.patterns:
        admin = AdminClient({**non_consumer_properties(settings), "log_level": 0})
        try:
            topics += [topic for topic in selection.select(admin.list_topics(timeout=10).topics) if topic not in topics]
        except KafkaException as error:
            text = error.args[0].str()
            raise Retryable(f"Kafka at {settings.bootstrap_servers}: {text}", reason="connection") from None
    if not topics:
        raise Fatal(f"no topic on Kafka at {settings.bootstrap_servers} matches {settings.topic}")
    return [settings.for_topic(topic) for topic in topics]
