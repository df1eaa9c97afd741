"""The meaning of Kafka's and librdkafka's errors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.core.errors import Fatal, Retryable

# A commit of a member that the group has expelled, or of an earlier generation.
_EXPELLED = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}

_REQUIRED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the rights to read and describe the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the right to read the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the rights that this operation needs",
    KafkaError.SASL_AUTHENTICATION_FAILED: "its user name and password (-X sasl.username, WORKER_KAFKA_PASSWORD)",
    KafkaError._AUTHENTICATION: "its user name and password (-X sasl.username, WORKER_KAFKA_PASSWORD)",
    KafkaError._SSL: "the TLS properties (-X ssl.ca.location and so on)",
}
# The broker's TLS alerts about the client's certificate or protocol (RFC 8446, section 6.2). librdkafka reports them as
# a lost connection.
_tls_refusal = re.compile(r"SSL alert number (?:40|4[2-9]|70|116)\b")

UNKNOWN_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class TopicNotFound(Retryable):
    """The topic does not exist, or does no longer."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"Kafka: topic {topic} does not exist", reason="other")
        self.topic = topic


def auth_error(error: KafkaError) -> Fatal | None:
    """Return what an authentication or authorization error means, TLS included; None for any other error."""
    required = _REQUIRED.get(error.code())
    if error.code() == KafkaError._TRANSPORT and _tls_refusal.search(error.str()):
        required = "the client's certificate (-X ssl.certificate.location, -X ssl.key.location)"
    return Fatal(f"Kafka refuses this client: {error.str()}; check {required}") if required else None


def raise_auth_error(error: KafkaError) -> None:
    """Raise Fatal for an authentication or authorization error, TLS included."""
    if fatal := auth_error(error):
        raise fatal


def commit_error(error: KafkaError) -> Retryable:
    """Return the error of a failed commit. Raises Fatal if rights are missing."""
    raise_auth_error(error)
    reason = "fenced" if error.code() in _EXPELLED else "connection"
    return Retryable(f"Kafka refused a commit: {error.str()}", reason=reason)


def checked(answers: Iterable[TopicPartition] | None) -> list[TopicPartition]:
    """Return the answers for partitions. Raises KafkaException with the first error among them."""
    answers = list(answers or ())
    for answer in answers:
        if answer.error:
            raise KafkaException(answer.error)
    return answers
