"""`count` against real servers: a missing topic is an error, and never 0 devices."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.support.kit import Service, create_topic, run_worker, send
from worker.core.errors import ExitCode


@pytest.fixture
def options(kafka: Service, redis_server: Service, topic_name: str) -> list[str]:
    return ["--topic", topic_name, "--bootstrap-servers", kafka.address, "--redis-url", redis_server.address]


def counted(options: Sequence[str], code: int = ExitCode.OK) -> str:
    """Return what `count` prints: its result, or its error."""
    with run_worker("count", *options) as command:
        assert command.wait() == code, command.tail()
    return "\n".join(command.stderr if code else command.stdout)


@pytest.mark.parametrize("more", [(), ("--by", "country")])
def test_a_missing_topic_has_no_count(options: list[str], kafka: Service, topic_name: str, more: Sequence[str]) -> None:
    assert f"topic {topic_name} does not exist; check --topic" in counted([*options, *more], ExitCode.FAILED)
    create_topic(kafka.address, topic_name)
    assert counted([*options, *more]) == "Total devices: 0"  # nothing was written yet
    assert f"topic {topic_name}-2 does not exist" in counted([*options, "--topic", f"{topic_name}-2"], ExitCode.FAILED)


def test_without_kafka_an_empty_key_is_not_reported_as_zero(redis_server: Service, topic_name: str) -> None:
    servers = ["--bootstrap-servers", "127.0.0.1:1", "--redis-url", redis_server.address]
    assert "whether the topic exists is unknown" in counted(["--topic", topic_name, *servers], ExitCode.FAILED)


def test_a_missing_table_or_topic_has_no_count_in_clickhouse(
    kafka: Service, clickhouse: Service, topic_name: str, table_name: str, group_id: str
) -> None:
    options = ["--bootstrap-servers", kafka.address, "--backend", "clickhouse", "--clickhouse-url", clickhouse.address]
    options += ["--table", table_name]
    assert f"there is no table {table_name}" in counted([*options, "--topic", topic_name], ExitCode.CONFIG)
    create_topic(kafka.address, topic_name)
    run = [*options, "--topic", topic_name, "--group-id", group_id, "--metrics-port", "0", "--until-end"]
    with run_worker("check", *run[:-1], "--create") as command:
        assert command.wait() == ExitCode.OK, command.tail()
    missing = f"{topic_name}-2"
    assert counted([*options, "--topic", topic_name]) == "Total devices: 0"
    assert f"topic {missing} does not exist" in counted([*options, "--topic", missing], ExitCode.FAILED)
    send(kafka.address, topic_name, [json.dumps({"timestamp": 1, "device_ip": "a", "error_code": 1}).encode()])
    with run_worker(*run) as command:
        assert command.wait() == ExitCode.OK, command.tail()
    both = ["--topic", topic_name, "--topic", missing]
    assert f"topic {missing} does not exist" in counted([*options, *both], ExitCode.FAILED)
