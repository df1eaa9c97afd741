"""The checks of Kafka: connection, topics, dead-letter topics, consumer group, rights, retention."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import ConsumerGroupType, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    NewTopic,
)

from worker.commands.check.finding import Finding, fail, fail_with, ok, warn
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import Retryable, WorkerError
from worker.kafka.dead_letters import topic_config
from worker.kafka.group_lag import GroupLag, PartitionLag, Retention
from worker.kafka.properties import assignors, client_properties
from worker.kafka.topics import topic_configuration

_TIMEOUT_S = 8.0
_CONNECT_S = 3.0
_CONNECTIONS = 16  # at the same time
_TRIES = 2
_PORT = 9092  # librdkafka's default
_HOUR = 3600.0


def check_kafka(
    settings: Settings, create: bool, partitions: int, existing: dict[str, int], readable: list[str]
) -> Iterator[Finding]:
    """Yield the findings. Creates missing topics if `create`.

    Adds the number of partitions of each topic to `existing`, and appends the topics that can be read to `readable`.

    Stops early if the brokers do not answer or there is no topic.
    """
    try:
        lag = GroupLag(settings)
    except WorkerError as error:
        yield fail_with("Kafka", error)
        return
    with closing(lag):
        try:
            counts = lag.partitions()
        except WorkerError as error:
            yield from _unreachable(settings, error)
            return
        yield ok("Kafka", f"{settings.bootstrap_servers} answers")
        admin = AdminClient({**client_properties(settings), "log_level": 0})
        try:
            if unreachable := _unreachable_brokers(settings):  # every further request would time out
                yield from unreachable
                return
            selection = Selection(settings)
            missing = [topic for topic in selection.names if topic not in counts]
            if missing and create:
                for topic in missing:
                    _create(admin, topic, partitions, {})
                counts, missing = _wait_for(lag, missing), []
            for topic in missing:
                yield fail(
                    "topic", f"{topic} does not exist", f"--create --partitions {partitions}, or name another --topic"
                )
            if selection.patterns and not counts:
                yield fail("topic", f"no topic matches {settings.topic}", "another --topic")
            if clash := selection.find_table_clash(list(counts)):
                yield fail("topic", f"{clash[0]} and {clash[1]} would both go into {clash[2]}", "another --table")
            if not counts:
                return
            existing |= counts
            yield _check_partitions(settings, counts)
            for topic in counts:
                yield from _check_topic(admin, topic)
                yield from _check_dead_letters(admin, settings.for_topic(topic), create)
            yield from _check_group(admin, settings)
            yield from _check_retention(lag, settings, counts)
            readable += counts
        except KafkaException as error:
            yield fail("Kafka", error.args[0].str(), "the rights of this client (kafka-acls.sh), or the broker's log")
        except WorkerError as error:
            yield fail_with("Kafka", error)


def _unreachable(settings: Settings, error: WorkerError) -> list[Finding]:
    if not isinstance(error, Retryable):
        return [fail_with("Kafka", error)]
    for server in settings.bootstrap_servers.split(","):
        if _answers_http(server):
            result = f"{server} is an HTTP server, not a Kafka broker"
            fix = "--bootstrap-servers HOST:PORT of a broker (not of a REST proxy or web page)"
            return [fail("Kafka", result, fix)]
    if brokers := _unreachable_brokers(settings):
        return brokers
    hint = "--bootstrap-servers HOST:PORT (is it running?)"
    if "security.protocol" in str(error) or "Disconnected" in str(error):
        hint += ", or -X security.protocol=… as the listener requires"
    return [fail("Kafka", f"{settings.bootstrap_servers} does not answer: {error}", hint)]


def _answers_http(server: str) -> bool:
    """Whether a bootstrap server answers an HTTP request. A Kafka broker would close the connection."""
    try:
        parts = urlsplit(f"//{server.strip().rpartition('://')[2]}")
        with socket.create_connection((parts.hostname or "", parts.port or _PORT), _CONNECT_S) as connection:
            connection.settimeout(_CONNECT_S)
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return connection.recv(16).startswith(b"HTTP/")
    except (OSError, ValueError):
        return False


def _unreachable_brokers(settings: Settings) -> list[Finding]:
    """Return the brokers whose advertised address cannot be reached from here, although a bootstrap server answers."""
    brokers = _brokers(settings)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        errors = list(pool.map(lambda broker: _connection_error(broker.host, broker.port), brokers))
    return [
        fail(
            "Kafka",
            f"broker {broker.id} advertises {broker.host}:{broker.port}, which this host cannot reach: {error}",
            f"set advertised.listeners of broker {broker.id} to an address that this host can reach, or name the "
            "listener for this network with --bootstrap-servers",
        )
        for broker, error in zip(brokers, errors, strict=True)
        if error
    ]


def _brokers(settings: Settings) -> list[Any]:
    """Return the brokers that a bootstrap server names; none if none answers.

    A client that has learned an unreachable address may ask there, so each try is a new client's.
    """
    for _ in range(_TRIES):
        admin = AdminClient({**client_properties(settings), "log_level": 0})
        with suppress(KafkaException):
            return sorted(admin.list_topics(timeout=_CONNECT_S).brokers.values(), key=lambda broker: int(broker.id))
    return []


def _connection_error(host: str, port: int) -> str:
    """Return why no TCP connection can be made; empty if it can."""
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _create(admin: AdminClient, topic: str, partitions: int, config: dict[str, str]) -> None:
    new = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=config)
    admin.create_topics([new], request_timeout=_TIMEOUT_S)[topic].result()


def _wait_for(lag: GroupLag, topics: list[str]) -> dict[str, int]:
    """Return the number of partitions of each topic once the brokers list the topics just created."""
    deadline = time.monotonic() + _TIMEOUT_S
    while set(topics) - (counts := lag.partitions()).keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    return counts


def _describe(admin: AdminClient, topic: str) -> Any:
    """Return the topic's description; None if it does not exist."""
    answers = admin.describe_topics(
        TopicCollection([topic]), include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )
    try:
        return answers[topic].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def _missing_rights(description: Any, *needed: AclOperation) -> str:
    """Return the names of the rights that this client lacks; empty if the broker does not report rights."""
    granted = description.authorized_operations
    return "" if granted is None else ", ".join(right.name for right in needed if right not in granted)


def _check_partitions(settings: Settings, counts: Mapping[str, int]) -> Finding:
    processes, count = settings.processes, sum(counts.values())
    topics_have = f"{next(iter(counts))} has" if len(counts) == 1 else f"{len(counts)} topics have"
    if processes is not None and processes > count:
        result = f"{topics_have} {count} partitions, so {processes - count} of {processes} processes are idle"
        alter = f"kafka-topics.sh --alter --topic {next(iter(counts))} --partitions {processes}"
        return warn("partitions", result, "--processes auto" + (f", or {alter}" if len(counts) == 1 else ""))
    share = "a process for each" if processes in (None, count) else f"shared by {processes} processes"
    return ok("partitions", f"{topics_have} {count}, {share}")


def _check_topic(admin: AdminClient, topic: str) -> Iterator[Finding]:
    description = _describe(admin, topic)
    if missing := description and _missing_rights(description, AclOperation.READ, AclOperation.DESCRIBE):
        yield fail("rights", f"this client lacks {missing} on topic {topic}", _grant("READ DESCRIBE", "topic", topic))
    else:
        yield ok("rights", f"topic {topic} can be read")
    if "compact" in topic_configuration(admin, topic, _TIMEOUT_S).get("cleanup.policy", ""):
        yield warn(
            "compaction",
            f"{topic} is compacted: once a newer event has the same key, an event may be removed before it is read",
            f"{_alter(topic, 'min.compaction.lag.ms=86400000')} (each event then stays for a day at least)",
        )


def _check_dead_letters(admin: AdminClient, settings: Settings, create: bool) -> Iterator[Finding]:
    topic, subject = settings.dead_letter_topic_name, "dead letters"
    largest = int(topic_configuration(admin, settings.topic, _TIMEOUT_S).get("max.message.bytes", 0))
    config = topic_config(admin, settings.topic)
    description = _describe(admin, topic)
    if description is None and create:
        _create(admin, topic, 1, config)
        yield ok(subject, f"created {topic}")
        return
    if description is None:
        new = NewTopic(topic, num_partitions=1, replication_factor=-1, config=config)
        try:
            admin.create_topics([new], request_timeout=_TIMEOUT_S, validate_only=True)[topic].result()
        except KafkaException as error:
            result = f"{topic} does not exist and cannot be created: {error.args[0].str()}"
            yield fail(subject, result, _grant("CREATE WRITE DESCRIBE", "topic", topic))
            return
        yield ok(subject, f"{topic} does not exist; it is created for the first dead letter")
        return
    if missing := _missing_rights(description, AclOperation.WRITE, AclOperation.DESCRIBE):
        yield fail(subject, f"this client lacks {missing} on {topic}", _grant("WRITE DESCRIBE", "topic", topic))
        return
    replicas = min(len(partition.replicas) for partition in description.partitions)
    faults = list(_dead_letter_faults(topic, topic_configuration(admin, topic, _TIMEOUT_S), largest, replicas))
    yield from faults or [ok(subject, f"{topic} exists")]


def _dead_letter_faults(topic: str, config: Mapping[str, str], largest: int, replicas: int) -> Iterator[Finding]:
    """Yield the settings of a topic that would refuse dead letters or lose them. `largest` event: bytes."""
    subject = "dead letters"
    if int(config.get("max.message.bytes", largest)) < largest:
        result = (
            f"{topic} accepts {config['max.message.bytes']} bytes, its origin {largest}: a large invalid event would "
            "block its partition"
        )
        yield fail(subject, result, _alter(topic, f"max.message.bytes={largest}"))
    if int(config.get("min.insync.replicas", 1)) > replicas:
        result = (
            f"{topic} needs {config['min.insync.replicas']} in-sync replicas and has {replicas}: a dead letter would "
            "block its partition"
        )
        yield fail(subject, result, _alter(topic, f"min.insync.replicas={replicas}"))
    if "compact" in config.get("cleanup.policy", ""):
        result = f"{topic} is compacted: it refuses a dead letter without a key, which would block its partition, and "
        yield fail(subject, f"{result}removes those whose key comes again", "another --dead-letter-topic")
    elif (age_ms := int(config.get("retention.ms", -1))) >= 0:
        result = f"{topic} removes dead letters after {age_ms / 1000 / _HOUR:.1f} h"
        yield warn(subject, result, _alter(topic, "retention.ms=-1"))


def _describe_group(admin: AdminClient, group: str) -> Any:
    """Describe a group. A new cluster first creates its coordinator, and returns errors until then."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        answers = admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=_TIMEOUT_S
        )
        try:
            return answers[group].result()
        except KafkaException as error:
            final = (KafkaError.GROUP_ID_NOT_FOUND, KafkaError.GROUP_AUTHORIZATION_FAILED)
            if error.args[0].code() in final or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _check_group(admin: AdminClient, settings: Settings) -> Iterator[Finding]:
    group = settings.group_id
    try:
        description = _describe_group(admin, group)
    except KafkaException as error:
        code = error.args[0]
        if code.code() == KafkaError.GROUP_ID_NOT_FOUND:
            yield ok("group", f"{group} is new")
        elif code.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            yield fail("group", f"{group}: {code.str()}", _grant("READ DESCRIBE", "group", group))
        else:
            yield fail("group", f"{group} cannot be described: {code.name()} {code.str()}", "see the brokers' logs")
        return
    if missing := _missing_rights(description, AclOperation.READ):
        yield fail("group", f"this client lacks {missing} on group {group}", _grant("READ DESCRIBE", "group", group))
        return
    protocol = "consumer" if settings.kafka.get("group.protocol") == "consumer" else "classic"
    names = ", ".join(sorted({member.client_id for member in description.members}))
    if not description.members:
        yield ok("group", f"{group} has no members now")
    elif (description.type == ConsumerGroupType.CONSUMER) != (protocol == "consumer"):
        fix = "-X group.protocol=consumer" if protocol == "classic" else "leave out -X group.protocol"
        yield fail(
            "group", f"the members of {group} ({names}) use the other group protocol", f"{fix}, or another --group-id"
        )
    elif protocol == "classic" and description.partition_assignor not in ("", *assignors(settings)):
        own = " or ".join(assignors(settings))
        result = f"the members of {group} ({names}) use the assignor {description.partition_assignor}, the worker {own}"
        yield fail("group", result, "stop them, or another --group-id")
    else:
        yield ok("group", f"{group} has {len(description.members)} members ({names}), which share the partitions")


def _check_retention(lag: GroupLag, settings: Settings, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Compare the events that the group has not read with the retention of their topics."""
    retention = lag.retention(counts)
    lags = lag.refresh(counts, retention)
    for topic in counts:
        of_topic = "" if settings.one_topic else f" of {topic}"
        topic_lags = [partition for partition in lags if partition.topic == topic]
        yield from _check_headroom(settings.for_topic(topic), topic_lags, retention.get(topic, Retention()), of_topic)


def _check_headroom(
    settings: Settings, lags: list[PartitionLag], retention: Retention, of_topic: str
) -> Iterator[Finding]:
    removed = [lag for lag in lags if lag.committed is not None and lag.committed < lag.start]
    for lag in removed:
        result = f"retention removed {lag.committed}-{lag.start - 1} of partition {lag.partition}{of_topic} unread"
        reset = f"kafka-consumer-groups.sh --group {settings.group_id} --reset-offsets --to-earliest --execute"
        yield fail("retention", result, f"{reset} --topic {settings.topic}:{lag.partition}")
    unread = sum(lag.messages for lag in lags)
    headrooms = [lag.headroom for lag in lags if lag.messages and lag.headroom is not None]
    result = f"{unread} events{of_topic} unread"
    result += f", the first is removed in {min(headrooms) / _HOUR:.1f} h" if headrooms else ""
    if headrooms and retention.seconds and min(headrooms) < max(_HOUR, retention.seconds / 10) and not removed:
        fix = f"{_alter(settings.topic, f'retention.ms={int(2 * retention.seconds) * 1000}')}, or more --processes"
        yield warn("retention", result, fix)
    elif not removed:
        yield ok("retention", result)


def _grant(rights: str, kind: str, name: str) -> str:
    operations = " ".join(f"--operation {right.title()}" for right in rights.split())
    return f"kafka-acls.sh --add --allow-principal User:… {operations} --{kind} {name}"


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"
