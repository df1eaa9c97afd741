"""The properties of the worker's Kafka clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from confluent_kafka import KafkaException, libversion

from worker.config.parsers import nearest
from worker.config.settings import Settings
from worker.core.errors import Fatal

# librdkafka's limit also of a batch after decompression, which no limit of the producer or the broker bounds.
MAX_BATCH_BYTES = 1_000_000_000
_FEW_PARTITIONS = 8
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")
_CONSUMER_ONLY = ("group.", "session.", "heartbeat.", "max.poll.", "fetch.", "queued.", "partition.assignment.")


def client_properties(settings: Settings) -> dict[str, Any]:
    """Return the properties of every Kafka client: servers, client id, and the user's -X."""
    properties: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "worker",
        "reconnect.backoff.max.ms": 2000,
        "log_level": 4,
        **_user_properties(settings),
    }
    return _adapt_to_protocol(properties)


def non_consumer_properties(settings: Settings) -> dict[str, Any]:
    """Return `client_properties` without those that only consumers accept."""
    return _without_consumer_properties(client_properties(settings))


def produce_properties(settings: Settings) -> dict[str, Any]:
    """Return the user's own properties that a producer accepts."""
    return _without_consumer_properties(_user_properties(settings))


def _user_properties(settings: Settings) -> dict[str, Any]:
    password = {"sasl.password": settings.kafka_password} if settings.kafka_password else {}
    return {**settings.kafka, **password}


def _without_consumer_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if not name.startswith(_CONSUMER_ONLY)}


def _adapt_to_protocol(properties: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a consumer of the new group protocol (KIP-848) refuses: the broker sets these."""
    if properties.get("group.protocol") == "consumer":
        return {name: value for name, value in properties.items() if name not in _CLASSIC_ONLY}
    return properties


def assignors(settings: Settings) -> tuple[str, ...]:
    """Return the assignors of the classic protocol that a worker supports, the preferred one first.

    With range, the first members would get the first partitions of every topic, and the last ones none.
    """
    return ("range",) if settings.one_topic else ("roundrobin", "range")


def consumer_properties(settings: Settings, index: int, share: int) -> dict[str, Any]:
    """Return the properties of the consumer in slot `index`, which may be assigned `share` partitions.

    bench/README.md has the measurement of each tuned one.
    """
    properties: dict[str, Any] = {
        "group.id": settings.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,  # its offset is past transaction markers, which no message's is
        "auto.offset.reset": "error",  # on_assign always sets the start
        "partition.assignment.strategy": ",".join(assignors(settings)),
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2500,
        "topic.metadata.refresh.interval.ms": 10_000,
        "socket.timeout.ms": 10_000,  # also the time limit of a commit
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 32_768,
        "fetch.queue.backoff.ms": 1,
        # Per partition and fetch; a larger event still comes, alone. Many partitions would fill memory and caches.
        "fetch.message.max.bytes": 262_144 if share <= _FEW_PARTITIONS else 65_536,
        "fetch.min.bytes": 65_536,
        "receive.message.max.bytes": MAX_BATCH_BYTES,
        "fetch.wait.max.ms": max(5, min(50, settings.linger_ms // 4)),
        **client_properties(settings),
    }
    if name := properties.get("group.instance.id"):  # static membership: one id per member
        properties["group.instance.id"] = f"{name}-{index}"
    return _adapt_to_protocol(properties)


def librdkafka_version() -> str:
    """Return the version of the C library. A prerelease has a hyphen."""
    return str(libversion()[0])


def client_error(error: KafkaException) -> Fatal:
    """Return the error for properties that librdkafka refuses."""
    text = error.args[0].str()
    unknown = re.search(r'No such configuration property: "(.+)"', text)
    hint = nearest(unknown[1], property_names()) if unknown else ""
    return Fatal(f"Kafka client: {text}{hint}; check -X")


def property_names() -> list[str]:
    """Return the names of librdkafka's properties, for hints only: librdkafka validates them."""
    return files("worker.kafka").joinpath("librdkafka.txt").read_text().split()
