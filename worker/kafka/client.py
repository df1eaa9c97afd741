"""What every Kafka client of the worker shares: its properties, and what an error means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib.resources import files
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, libversion
from confluent_kafka.admin import AdminClient

from worker.config.parsers import nearest
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
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


ANSWER_S = 10.0  # that an AdminClient waits for the broker

_FEW_PARTITIONS = 8
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")
_CONSUMERS_ONLY = ("group.", "session.", "heartbeat.", "max.poll.", "fetch.", "queued.", "partition.assignment.")


def client_properties(settings: Settings) -> dict[str, Any]:
    """Return the properties of every Kafka client of the worker: where, who, and the user's -X."""
    properties: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "worker",
        "reconnect.backoff.max.ms": 2000,
        "log_level": 4,
        **_given(settings),
    }
    return _fit_protocol(properties)


def other_properties(settings: Settings) -> dict[str, Any]:
    """Return `client_properties` without what only consumers know, of which other clients would complain."""
    return _without_consumers_own(client_properties(settings))


def produce_properties(settings: Settings) -> dict[str, Any]:
    """Return the user's own properties that a producer of events takes."""
    return _without_consumers_own(_given(settings))


def _given(settings: Settings) -> dict[str, Any]:
    password = {"sasl.password": settings.kafka_password} if settings.kafka_password else {}
    return {**settings.kafka, **password}


def _without_consumers_own(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if not name.startswith(_CONSUMERS_ONLY)}


def _fit_protocol(properties: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a consumer of the new group protocol (KIP-848) refuses: it has these from the broker."""
    if properties.get("group.protocol") == "consumer":
        return {name: value for name, value in properties.items() if name not in _CLASSIC_ONLY}
    return properties


def assignors(settings: Settings) -> tuple[str, ...]:
    """Return the assignors of the classic protocol that a worker can join with, the preferred one first.

    By range, the first members would get the first partitions of every topic, and the last ones none.
    """
    return ("range",) if settings.one_topic else ("roundrobin", "range")


def consumer_properties(settings: Settings, index: int, share: int) -> dict[str, Any]:
    """Return the properties of the consumer in slot `index`, which may come to own `share` partitions.

    Each tuned one has its measurement in bench/README.md.
    """
    properties: dict[str, Any] = {
        "group.id": settings.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,  # its offset is past transaction markers, which no message is
        "auto.offset.reset": "error",  # on_assign always says where to begin
        "partition.assignment.strategy": ",".join(assignors(settings)),
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2500,
        "topic.metadata.refresh.interval.ms": 10_000,
        "socket.timeout.ms": 10_000,  # also how long a commit may take
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 32_768,
        "fetch.queue.backoff.ms": 1,
        # Per partition and fetch; a larger event still comes, alone. Much of many partitions fills memory and caches.
        "fetch.message.max.bytes": 262_144 if share <= _FEW_PARTITIONS else 65_536,
        "fetch.min.bytes": 65_536,
        "fetch.wait.max.ms": max(5, min(50, settings.linger_ms // 4)),
        **client_properties(settings),
    }
    if name := properties.get("group.instance.id"):  # static membership: every member needs its own
        properties["group.instance.id"] = f"{name}-{index}"
    return _fit_protocol(properties)


def answer(future: Future[Any]) -> Any:
    """Wait for what an AdminClient was asked, with ANSWER_S as its request_timeout. Raises KafkaException.

    librdkafka says itself when the broker does not answer in time; should it not, nobody waits for ever.
    """
    try:
        return future.result(2 * ANSWER_S)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to an administrative request")) from None


def librdkafka_version() -> str:
    """Return the version of the C library; a prerelease's has a hyphen."""
    return str(libversion()[0])


TOPIC_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class Gone(Retryable):
    """The topic is not there (any more)."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"Kafka: topic {topic} is gone", reason="other")
        self.topic = topic


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
        admin = AdminClient({**other_properties(settings), "log_level": 0})
        try:
            topics += [topic for topic in selection.among(admin.list_topics(timeout=10).topics) if topic not in topics]
        except KafkaException as error:
            said = error.args[0].str()
            raise Retryable(f"Kafka at {settings.bootstrap_servers}: {said}", reason="connection") from None
    if not topics:
        raise Fatal(f"no topic on Kafka at {settings.bootstrap_servers} matches {settings.topic}")
    return [settings.of(topic) for topic in topics]


def unusable(error: KafkaException) -> Fatal:
    """Return what it means that librdkafka does not make a client with these properties."""
    text = error.args[0].str()
    unknown = re.search(r'No such configuration property: "(.+)"', text)
    hint = nearest(unknown[1], property_names()) if unknown else ""
    return Fatal(f"Kafka client: {text}{hint}; check -X")


def property_names() -> list[str]:
    """Return the properties that librdkafka has, for hints; it judges itself what it takes."""
    return files("worker.kafka").joinpath("librdkafka.txt").read_text().split()


def no_rights(error: KafkaError) -> bool:
    """Whether an error says that this user may not, or is not let in."""
    return error.code() in _NO_RIGHTS


def check_rights(error: KafkaError) -> None:
    """Raise Fatal where an error says that this user may not."""
    if no_rights(error):
        raise Fatal(f"Kafka refuses this client: {error.str()}; check {_NO_RIGHTS[error.code()]}")


def commit_trouble(error: KafkaError) -> Retryable:
    """Return what a failed commit means; raises Fatal where rights are missing."""
    check_rights(error)
    reason = "fenced" if error.code() in _EXPELLED else "connection"
    return Retryable(f"Kafka did not take a commit: {error.str()}", reason=reason, of_store=False)
