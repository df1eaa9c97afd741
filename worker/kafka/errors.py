"""What an error of Kafka or librdkafka means."""

from __future__ import annotations

from confluent_kafka import KafkaError

from worker.core.errors import Fatal, Retryable

# A commit from a member that the group no longer has, or from before its newest generation.
_EXPELLED = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}

_NO_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the rights to read and describe the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the right to read the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the rights that this operation needs",
    KafkaError.SASL_AUTHENTICATION_FAILED: "its user name and password (-X sasl.username, WORKER_KAFKA_PASSWORD)",
    KafkaError._AUTHENTICATION: "its user name and password (-X sasl.username, WORKER_KAFKA_PASSWORD)",
    KafkaError._SSL: "the TLS properties (-X ssl.ca.location and so on)",
}

TOPIC_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class TopicNotFound(Retryable):
    """The topic is not there (any more)."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"Kafka: topic {topic} is gone", reason="other")
        self.topic = topic


def is_auth_error(error: KafkaError) -> bool:
    """Whether an error says that this user may not, or is not let in."""
    return error.code() in _NO_RIGHTS


def check_rights(error: KafkaError) -> None:
    """Raise Fatal where an error says that this user may not."""
    if is_auth_error(error):
        raise Fatal(f"Kafka refuses this client: {error.str()}; check {_NO_RIGHTS[error.code()]}")


def commit_error(error: KafkaError) -> Retryable:
    """Return what a failed commit means; raises Fatal where rights are missing."""
    check_rights(error)
    reason = "fenced" if error.code() in _EXPELLED else "connection"
    return Retryable(f"Kafka did not take a commit: {error.str()}", reason=reason, of_store=False)
