"""What every Kafka client of the worker shares: its properties, and what an error means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from confluent_kafka import KafkaException, libversion

from worker.config.parsers import nearest
from worker.config.settings import Settings
from worker.core.errors import Fatal

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


def non_consumer_properties(settings: Settings) -> dict[str, Any]:
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


def librdkafka_version() -> str:
    """Return the version of the C library; a prerelease's has a hyphen."""
    return str(libversion()[0])


def unusable(error: KafkaException) -> Fatal:
    """Return what it means that librdkafka does not make a client with these properties."""
    text = error.args[0].str()
    unknown = re.search(r'No such configuration property: "(.+)"', text)
    hint = nearest(unknown[1], property_names()) if unknown else ""
    return Fatal(f"Kafka client: {text}{hint}; check -X")


def property_names() -> list[str]:
    """Return the properties that librdkafka has, for hints; it judges itself what it takes."""
    return files("worker.kafka").joinpath("librdkafka.txt").read_text().split()
