"""Questions about topics: their ids, and which ones the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import Fatal, Retryable
from worker.kafka.errors import TOPIC_GONE
from worker.kafka.properties import non_consumer_properties

ANSWER_S = 10.0  # that an AdminClient waits for the broker


def answer(future: Future[Any]) -> Any:
    """Wait for what an AdminClient was asked, with ANSWER_S as its request_timeout. Raises KafkaException.

    librdkafka says itself when the broker does not answer in time; should it not, nobody waits for ever.
    """
    try:
        return future.result(2 * ANSWER_S)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to an administrative request")) from None


def topic_ids(admin: AdminClient, topics: Sequence[str]) -> dict[str, str]:
    """Return the id of each topic that is there; `-` from brokers that have none (before Kafka 2.8) or do not tell.

    Raises KafkaException.
    """
    ids: dict[str, str] = {}
    for name, future in admin.describe_topics(TopicCollection(list(topics)), request_timeout=ANSWER_S).items():
        try:
            ids[name] = str(answer(future).topic_id)
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE):
                ids[name] = "-"
            elif code not in TOPIC_GONE:
                raise
    return ids


def each_topic(settings: Settings) -> list[Settings]:
    """Return the settings for each of the topics; Kafka is asked only where there is a regular expression.

    Raises Retryable where it does not answer, Fatal where no topic matches.
    """
    selection = Selection(settings)
    topics = list(selection.names)
    if selection.patterns:
        admin = AdminClient({**non_consumer_properties(settings), "log_level": 0})
        try:
            topics += [topic for topic in selection.select(admin.list_topics(timeout=10).topics) if topic not in topics]
        except KafkaException as error:
            said = error.args[0].str()
            raise Retryable(f"Kafka at {settings.bootstrap_servers}: {said}", reason="connection") from None
    if not topics:
        raise Fatal(f"no topic on Kafka at {settings.bootstrap_servers} matches {settings.topic}")
    return [settings.for_topic(topic) for topic in topics]
