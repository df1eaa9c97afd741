"""What `check` finds out about Kafka: reachable, the topic, the dead-letter topic, the group, rights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from confluent_kafka import ConsumerGroupType, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from worker.commands.check.finding import Finding, fail, fail_with, ok, warn
from worker.config.settings import Settings
from worker.config.topic_selection import Selection
from worker.core.errors import Retryable, WorkerError
from worker.kafka.dead_letters import topic_config
from worker.kafka.group_lag import GroupLag, PartitionLag, Retention
from worker.kafka.properties import assignors, client_properties

_TIMEOUT_S = 8.0
_HOUR = 3600.0


def look_at_kafka(settings: Settings, create: bool, partitions: int, readable: list[str]) -> Iterator[Finding]:
    """Yield the findings; fill in the topics that can be read. They are made only if `create`.

    Ends early where nothing more can be asked.
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
            yield _unreachable(settings, error)
            return
        yield ok("Kafka", f"{settings.bootstrap_servers} answers")
        admin = AdminClient({**client_properties(settings), "log_level": 0})
        try:
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
                yield fail("topic", f"none matches {settings.topic}", "another --topic")
            if clash := selection.find_table_clash(list(counts)):
                yield fail("topic", f"{clash[0]} and {clash[1]} would both go into {clash[2]}", "another --table")
            if not counts:
                return
            yield _partitions(settings, counts)
            for topic in counts:
                yield from _topic(admin, topic)
                yield from _dead_letters(admin, settings.for_topic(topic), create)
            yield from _group(admin, settings)
            yield from _retention(lag, settings, counts)
            readable += counts
        except KafkaException as error:
            yield fail("Kafka", error.args[0].str(), "the rights of this client (kafka-acls.sh), or the broker's log")
        except WorkerError as error:
            yield fail_with("Kafka", error)


def _unreachable(settings: Settings, error: WorkerError) -> Finding:
    if isinstance(error, Retryable):
        hint = "--bootstrap-servers HOST:PORT (is it running?)"
        if "security.protocol" in str(error) or "Disconnected" in str(error):
            hint += ", or -X security.protocol=… as the listener wants it"
        return fail("Kafka", f"{settings.bootstrap_servers} does not answer: {error}", hint)
    return fail_with("Kafka", error)


def _create(admin: AdminClient, topic: str, partitions: int, config: dict[str, str]) -> None:
    new = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=config)
    admin.create_topics([new], request_timeout=_TIMEOUT_S)[topic].result()


def _wait_for(lag: GroupLag, topics: list[str]) -> dict[str, int]:
    """Return the number of partitions of each topic once the brokers show those that were just made."""
    deadline = time.monotonic() + _TIMEOUT_S
    while set(topics) - (counts := lag.partitions()).keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    return counts


def _described(admin: AdminClient, topic: str) -> Any:
    """Return the topic's description; None where there is none."""
    asked = admin.describe_topics(
        TopicCollection([topic]), include_authorized_operations=True, request_timeout=_TIMEOUT_S
    )
    try:
        return asked[topic].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def _lacking(description: Any, *needed: AclOperation) -> str:
    """Return the names of the rights that this client lacks; nothing where the broker does not tell."""
    granted = description.authorized_operations
    return "" if granted is None else ", ".join(right.name for right in needed if right not in granted)


def _config(admin: AdminClient, topic: str) -> dict[str, ConfigEntry]:
    """Return the topic's configuration; nothing where this client may not read it."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        return dict(admin.describe_configs([resource], request_timeout=_TIMEOUT_S)[resource].result())
    except KafkaException:
        return {}


def _partitions(settings: Settings, counts: Mapping[str, int]) -> Finding:
    wanted, count = settings.processes, sum(counts.values())
    whose = f"{next(iter(counts))} has" if len(counts) == 1 else f"{len(counts)} topics have"
    if wanted is not None and wanted > count:
        found = f"{whose} {count} partitions, so {wanted - count} of {wanted} processes only stand by"
        more = f"kafka-topics.sh --alter --topic {next(iter(counts))} --partitions {wanted}"
        return warn("partitions", found, "--processes auto" + (f", or {more}" if len(counts) == 1 else ""))
    share = "a process for each" if wanted in (None, count) else f"shared by {wanted} processes"
    return ok("partitions", f"{whose} {count}, {share}")


def _topic(admin: AdminClient, topic: str) -> Iterator[Finding]:
    description = _described(admin, topic)
    if lacking := description and _lacking(description, AclOperation.READ, AclOperation.DESCRIBE):
        yield fail("rights", f"this client lacks {lacking} on topic {topic}", _grant("READ DESCRIBE", "topic", topic))
    else:
        yield ok("rights", f"topic {topic} may be read")
    policy = _config(admin, topic).get("cleanup.policy")
    if policy is not None and "compact" in str(policy.value):
        yield warn(
            "compaction",
            f"{topic} is compacted: events may vanish before they are read",
            _alter(topic, "cleanup.policy=delete"),
        )


def _dead_letters(admin: AdminClient, settings: Settings, create: bool) -> Iterator[Finding]:
    topic, what = settings.dead_letter_topic_name, "dead letters"
    origin = _config(admin, settings.topic).get("max.message.bytes")
    config = topic_config(admin, settings.topic)
    description = _described(admin, topic)
    if description is None and create:
        _create(admin, topic, 1, config)
        yield ok(what, f"made {topic}")
        return
    if description is None:
        new = NewTopic(topic, num_partitions=1, replication_factor=-1, config=config)
        try:
            admin.create_topics([new], request_timeout=_TIMEOUT_S, validate_only=True)[topic].result()
        except KafkaException as error:
            found = f"{topic} does not exist and cannot be made: {error.args[0].str()}"
            yield fail(what, found, _grant("CREATE WRITE DESCRIBE", "topic", topic))
            return
        yield ok(what, f"{topic} does not exist; it is made when the first letter comes")
        return
    if lacking := _lacking(description, AclOperation.WRITE, AclOperation.DESCRIBE):
        yield fail(what, f"this client lacks {lacking} on {topic}", _grant("WRITE DESCRIBE", "topic", topic))
        return
    replicas = min(len(partition.replicas) for partition in description.partitions)
    largest = int(str(origin.value)) if origin is not None else 0
    unfit = list(_unfit_for_letters(topic, _config(admin, topic), largest, replicas))
    yield from unfit or [ok(what, f"{topic} exists")]


def _unfit_for_letters(topic: str, config: Mapping[str, ConfigEntry], largest: int, replicas: int) -> Iterator[Finding]:
    """Say what of a topic's configuration would refuse letters, or lose them. `largest` event: bytes."""
    what = "dead letters"
    values = {name: str(entry.value) for name, entry in config.items()}
    if int(values.get("max.message.bytes", largest)) < largest:
        found = (
            f"{topic} takes {values['max.message.bytes']} bytes, its origin {largest}: a large bad event would block"
        )
        yield fail(what, found, _alter(topic, f"max.message.bytes={largest}"))
    if int(values.get("min.insync.replicas", 1)) > replicas:
        found = (
            f"{topic} wants {values['min.insync.replicas']} in-sync replicas and has {replicas}: a letter would block"
        )
        yield fail(what, found, _alter(topic, f"min.insync.replicas={replicas}"))
    if "compact" in values.get("cleanup.policy", ""):
        found = f"{topic} is compacted, which refuses what has no key: a letter would block"
        yield fail(what, found, _alter(topic, "cleanup.policy=delete"))
    elif (age_ms := int(values.get("retention.ms", -1))) >= 0:
        found = f"{topic} removes letters after {age_ms / 1000 / _HOUR:.1f} h"
        yield warn(what, found, _alter(topic, "retention.ms=-1"))


def _described_group(admin: AdminClient, group: str) -> Any:
    """Describe a group; a cluster that never had one makes its coordinator first, and refuses meanwhile."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        asked = admin.describe_consumer_groups([group], include_authorized_operations=True, request_timeout=_TIMEOUT_S)
        try:
            return asked[group].result()
        except KafkaException as error:
            final = (KafkaError.GROUP_ID_NOT_FOUND, KafkaError.GROUP_AUTHORIZATION_FAILED)
            if error.args[0].code() in final or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _group(admin: AdminClient, settings: Settings) -> Iterator[Finding]:
    group = settings.group_id
    try:
        found = _described_group(admin, group)
    except KafkaException as error:
        code = error.args[0]
        if code.code() == KafkaError.GROUP_ID_NOT_FOUND:
            yield ok("group", f"{group} is new")
        elif code.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            yield fail("group", f"{group}: {code.str()}", _grant("READ DESCRIBE", "group", group))
        else:
            yield fail("group", f"{group} cannot be described: {code.name()} {code.str()}", "look at the brokers' logs")
        return
    if lacking := _lacking(found, AclOperation.READ):
        yield fail("group", f"this client lacks {lacking} on group {group}", _grant("READ DESCRIBE", "group", group))
        return
    new = "consumer" if settings.kafka.get("group.protocol") == "consumer" else "classic"
    names = ", ".join(sorted({member.client_id for member in found.members}))
    if not found.members:
        yield ok("group", f"{group} has no members now")
    elif (found.type == ConsumerGroupType.CONSUMER) != (new == "consumer"):
        fix = "-X group.protocol=consumer" if new == "classic" else "leave out -X group.protocol"
        yield fail(
            "group", f"the members of {group} ({names}) use the other group protocol", f"{fix}, or another --group-id"
        )
    elif new == "classic" and found.partition_assignor not in ("", *assignors(settings)):
        own = " or ".join(assignors(settings))
        text = f"the members of {group} ({names}) use the assignor {found.partition_assignor}, the worker {own}"
        yield fail("group", text, "stop them, or another --group-id")
    else:
        yield ok("group", f"{group} has {len(found.members)} members ({names}), which share the partitions")


def _retention(lag: GroupLag, settings: Settings, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Compare what the group has not read with what retention removes."""
    retention = lag.retention(counts)
    lags = lag.refresh(counts, retention)
    for topic in counts:
        whose = "" if settings.one_topic else f" of {topic}"
        own = [one for one in lags if one.topic == topic]
        yield from _room(settings.for_topic(topic), own, retention.get(topic, Retention()), whose)


def _room(settings: Settings, lags: list[PartitionLag], retention: Retention, whose: str) -> Iterator[Finding]:
    gone = [one for one in lags if one.committed is not None and one.committed < one.start]
    for one in gone:
        text = f"retention removed {one.committed}-{one.start - 1} of partition {one.partition}{whose} unread"
        reset = f"kafka-consumer-groups.sh --group {settings.group_id} --reset-offsets --to-earliest --execute"
        yield fail("retention", text, f"{reset} --topic {settings.topic}:{one.partition}")
    behind = sum(one.messages for one in lags)
    rooms = [one.headroom for one in lags if one.messages and one.headroom is not None]
    text = f"{behind} events{whose} unread" + (f", the first is removed in {min(rooms) / _HOUR:.1f} h" if rooms else "")
    if rooms and retention.seconds and min(rooms) < max(_HOUR, retention.seconds / 10) and not gone:
        fix = f"{_alter(settings.topic, f'retention.ms={int(2 * retention.seconds) * 1000}')}, or more --processes"
        yield warn("retention", text, fix)
    elif not gone:
        yield ok("retention", text)


def _grant(rights: str, kind: str, name: str) -> str:
    operations = " ".join(f"--operation {right.title()}" for right in rights.split())
    return f"kafka-acls.sh --add --allow-principal User:… {operations} --{kind} {name}"


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"
