"""The monitor as part of a complete worker, with real servers."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.support.kit import PATIENCE_S, Service, Worker, create_topic, run_worker, send, wait_until
from tests.support.pages import Pages, browse
from worker.local import Server

EVENTS = [b'{"timestamp": 1700000000, "device_ip": "10.0.0.%d", "error_code": 1}' % (i % 100) for i in range(1000)]


@pytest.fixture
def arguments(topic_name: str, group_id: str, redis_key: str) -> list[str]:
    return [
        *("--topic", topic_name),
        *("--group-id", group_id),
        *("--redis-key", redis_key),
        *("--metrics-port", "0"),
        *("--linger-ms", "100"),
        *("--report-interval", "0.5"),
    ]


@pytest.fixture
def worker(kafka: Service, redis_server: Service, topic_name: str, arguments: list[str]) -> Iterator[Worker]:
    """A worker on a topic of two partitions with a thousand events."""
    create_topic(kafka.address, topic_name, 2)
    send(kafka.address, topic_name, EVENTS)
    with run_worker(*arguments, "--bootstrap-servers", kafka.address, "--redis-url", redis_server.address) as running:
        yield running


def test_reports_metrics_and_readiness_follow_the_work(kafka: Service, worker: Worker, topic_name: str) -> None:
    pages = Pages(worker)
    wait_until(lambda: pages.metric("messages_total", "written") == 1000, PATIENCE_S)
    worker.wait_for(r"^Total devices: 100$")
    wait_until(lambda: sum(pages.metrics("lag_messages").values()) == 0, PATIENCE_S)
    wait_until(lambda: pages.get("/readyz") == (200, b"ready\n"), PATIENCE_S)
    assert pages.get("/livez") == (200, b"alive\n")
    assert set(pages.metrics("lag_messages")) == {("0", topic_name), ("1", topic_name)}
    assert pages.metric("consumed_messages_total") == 1000
    assert pages.metric("consumed_bytes_total") == sum(map(len, EVENTS))
    assert pages.metric("processes") == pages.metric("processes_wanted") == 2
    assert pages.metric("sink_up", "redis") == pages.metric("kafka_up") == 1
    wait_until(lambda: pages.metric("devices", "redis", topic_name) == 100, PATIENCE_S)
    status = pages.status()
    assert status["accounts"]["written"] == 1000
    assert status["accounts"]["unaccounted"] == 0
    assert {item["partition"] for item in status["partitions"]} == {0, 1}
    assert {item["pid"] for item in status["processes"]} < set(worker.children())
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.stdout[-1] == "Total devices: 100"
    assert not [line for line in worker.stdout if not re.fullmatch(r"Total devices: \d+", line)]


def test_invalid_events_are_shown_by_reason_and_field(kafka: Service, worker: Worker, topic_name: str) -> None:
    pages = Pages(worker)
    wait_until(lambda: pages.metric("messages_total", "written") == 1000, PATIENCE_S)
    wait_until(lambda: not pages.status()["unready"], PATIENCE_S)
    assert pages.status()["invalid"] == {"text": "", "causes": []}
    bad = [b'{"device_ip": %d}' % n for n in range(24)] + [b"secret payload"]
    sent = 0

    def is_shown() -> bool:
        nonlocal sent
        send(kafka.address, topic_name, [*bad, *EVENTS[:10]], partition=1)
        sent += 1
        text = r"\d+\.\d invalid events/s \(last minute: wrong_type in device_ip \d+, not_json \d+\)"
        return re.fullmatch(text, pages.status()["invalid"]["text"]) is not None

    wait_until(is_shown, PATIENCE_S)
    wait_until(lambda: pages.metric("messages_total", "dead_lettered") == 25 * sent, PATIENCE_S)
    causes = wait_until(
        lambda: (shown := pages.status()["invalid"]["causes"])[0]["count"] == 24 * sent and shown, PATIENCE_S
    )
    assert [(cause["reason"], cause["field"], cause["count"]) for cause in causes] == [
        ("wrong_type", "device_ip", 24 * sent),
        ("not_json", "", sent),
    ]
    assert {(cause["topic"], cause["partition"]) for cause in causes} == {(topic_name, 1)}
    not_json = causes[1]["offset"]
    assert causes[0]["offset"] == not_json - 1
    elements, console = browse(pages.url + "/")
    assert console == []
    assert re.search(r'class="pill ?">(caught|keeping) up; [^<]*invalid events[^<]*wrong_type in device_ip', elements)
    assert f"<td>{topic_name}[1]@{not_json}</td>" in elements
    with run_worker("top", "--metrics", pages.url) as top:
        line = top.wait_for("invalid events").string
    assert re.search(r": (caught|keeping) up; .*last minute: wrong_type in device_ip", line)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    for cause, count in (("wrong_type in device_ip", 24 * sent), ("not_json", sent)):
        lines = [line for line in worker.stderr if f"({cause}) went to {topic_name}.dlq; the last was" in line]
        assert sum(int(found[1]) for line in lines if (found := re.search(r"(\d+) invalid event", line))) == count
        assert len(lines) <= 3, "once a minute and at the end"
        assert lines[-1].split("the last was ")[1].startswith(f"{topic_name}[1]@")
    assert not [line for line in worker.stderr if "secret" in line]


def test_counters_continue_after_a_consumer_is_killed(kafka: Service, worker: Worker, topic_name: str) -> None:
    pages = Pages(worker)
    wait_until(lambda: pages.metric("messages_total", "written") == 1000, PATIENCE_S)
    victim = pages.status()["processes"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: pages.metric("restarts_total") == 1, PATIENCE_S)
    send(kafka.address, topic_name, EVENTS)
    wait_until(lambda: pages.metric("messages_total", "written") == 2000, PATIENCE_S)
    # During a rebalance there are none.
    assert set(wait_until(lambda: pages.metrics("unaccounted_messages"), PATIENCE_S).values()) == {0}
    wait_until(lambda: sum(pages.metrics("lag_messages").values()) == 0, PATIENCE_S)
    assert pages.metric("slot_restarts_total", "0") == 1


def test_no_counter_decreases_whichever_process_is_killed(kafka: Service, worker: Worker, topic_name: str) -> None:
    pages = Pages(worker)
    before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    scrapes = 0

    def scrape() -> bool:
        """Check that no counter decreased; False while the monitor does not answer."""
        nonlocal before, scrapes
        try:
            now = pages.counters()
        except (OSError, http.client.HTTPException):
            return False
        assert {sample: value for sample, value in before.items() if now.get(sample, -1) < value} == {}
        before, scrapes = now, scrapes + 1
        return True

    def counter(name: str, **labels: str) -> float:
        return before.get((f"worker_{name}", frozenset(labels.items())), 0)

    def wait_for_written(events: int) -> None:
        wait_until(lambda: scrape() and counter("messages_total", outcome="written") >= events, PATIENCE_S)

    wait_for_written(len(EVENTS))
    for number, (consumers, monitor) in enumerate(((True, False), (False, True), (True, True), (False, True)), 2):
        wait_until(lambda: len(pages.status()["processes"]) == 2, PATIENCE_S)
        pids = {process["pid"] for process in pages.status()["processes"]}
        send(kafka.address, topic_name, EVENTS)  # some are in flight when the signal comes
        for pid in worker.children():
            if consumers if pid in pids else monitor:
                os.kill(pid, signal.SIGKILL)
        wait_for_written(number * len(EVENTS))
    wait_until(lambda: scrape() and counter("restarts_total") == 4, PATIENCE_S)
    assert min(counter("slot_cpu_seconds_total", slot=slot) for slot in "01") > 0
    assert scrapes > 10


def test_partitions_that_are_added_get_a_consumer_and_a_lag(kafka: Service, worker: Worker, topic_name: str) -> None:
    pages = Pages(worker)
    wait_until(lambda: pages.metric("processes") == 2, PATIENCE_S)
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.create_partitions([NewPartitions(topic_name, 3)])[topic_name].result(PATIENCE_S)
    wait_until(lambda: len(pages.metrics("lag_messages")) == 3, PATIENCE_S)
    wait_until(lambda: pages.metric("processes") == pages.metric("processes_wanted") == 3, PATIENCE_S)


def test_until_end_stops_when_all_events_are_written(
    kafka: Service, redis_server: Service, topic_name: str, arguments: list[str]
) -> None:
    create_topic(kafka.address, topic_name, 3)
    send(kafka.address, topic_name, EVENTS, partition=1)  # the other partitions are empty
    servers = ["--bootstrap-servers", kafka.address, "--redis-url", redis_server.address]
    with run_worker(*arguments, *servers, "--until-end") as worker:
        assert worker.wait() == 0
        assert worker.stdout[-1] == "Total devices: 100"
    with run_worker(*arguments, *servers, "--until-end") as again:
        assert again.wait() == 0
        assert again.stdout[-1] == "Total devices: 100"


def test_a_missing_topic_is_a_configuration_error(
    kafka: Service, redis_server: Service, topic_name: str, arguments: list[str]
) -> None:
    servers = ["--bootstrap-servers", kafka.address, "--redis-url", redis_server.address]
    with run_worker(*arguments, *servers) as worker:
        assert worker.wait() == 78
        (line,) = [line for line in worker.stderr if topic_name in line and "ERROR" in line]
        assert f"worker check --create --topic {topic_name} --partitions 4" in line
        assert worker.stdout == []
        assert "Traceback" not in worker.tail()


def test_a_port_in_use_is_a_configuration_error(
    kafka: Service, redis_server: Service, topic_name: str, arguments: list[str]
) -> None:
    servers = ["--bootstrap-servers", kafka.address, "--redis-url", redis_server.address]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with run_worker(*arguments, *servers, "--metrics-port", port) as worker:
            assert worker.wait() == 78
            assert f"address 127.0.0.1:{port} is in use" in worker.tail()
            assert "Traceback" not in worker.tail()


def test_an_unreachable_broker_is_waited_for_and_logged_once(redis_server: Service, arguments: list[str]) -> None:
    servers = ["--bootstrap-servers", "127.0.0.1:1", "--redis-url", redis_server.address]
    with run_worker(*arguments, *servers) as worker:
        worker.wait_for(r"Kafka at 127\.0\.0\.1:1 does not answer: .*Connection refused; still trying")
        pages = Pages(worker)
        assert pages.metric("kafka_up") == 0
        assert pages.get("/livez")[0] == 200
        code, reason = pages.get("/readyz")
        assert (code, b"does not answer" in reason) == (503, True)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len([line for line in worker.stderr if "does not answer" in line]) == 1
        assert "Traceback" not in worker.tail()


@pytest.mark.faults
def test_lag_is_removed_while_kafka_is_unavailable_and_comes_back(
    own_kafka: Server, redis_server: Service, topic_name: str, arguments: list[str]
) -> None:
    create_topic(own_kafka.address, topic_name, 2)
    send(own_kafka.address, topic_name, EVENTS)
    servers = ["--bootstrap-servers", own_kafka.address, "--redis-url", redis_server.address]
    with run_worker(*arguments, *servers) as worker:
        pages = Pages(worker)
        wait_until(lambda: pages.get("/readyz")[0] == 200, PATIENCE_S)
        own_kafka.kill()
        wait_until(lambda: pages.metric("kafka_up") == 0, PATIENCE_S)
        wait_until(lambda: not pages.metrics("lag_messages"), PATIENCE_S)
        wait_until(lambda: pages.get("/readyz")[0] == 503, PATIENCE_S)
        assert pages.get("/livez")[0] == 200
        own_kafka.start()
        wait_until(lambda: len(pages.metrics("lag_messages")) == 2, PATIENCE_S)
        send(own_kafka.address, topic_name, EVENTS)
        wait_until(lambda: pages.metric("messages_total", "written") == 2000, PATIENCE_S)
        wait_until(lambda: pages.get("/readyz")[0] == 200, PATIENCE_S)


@pytest.mark.faults
def test_a_worker_with_an_unavailable_store_is_not_ready_and_keeps_running(
    kafka: Service, own_redis: Server, topic_name: str, arguments: list[str]
) -> None:
    create_topic(kafka.address, topic_name, 1)
    own_redis.kill()
    servers = ["--bootstrap-servers", kafka.address, "--redis-url", own_redis.address]
    with run_worker(*arguments, *servers) as worker:
        worker.wait_for("still trying")
        pages = Pages(worker)
        assert pages.get("/readyz")[0] == 503
        own_redis.start()
        wait_until(lambda: pages.get("/readyz")[0] == 200, PATIENCE_S)
        own_redis.kill()
        send(kafka.address, topic_name, EVENTS)
        wait_until(lambda: pages.metric("sink_up", "redis") == 0, PATIENCE_S)
        worker.wait_for("cannot count the devices")
        assert pages.metric("devices", "redis", topic_name) is None
        own_redis.start()
        wait_until(lambda: pages.metric("devices", "redis", topic_name) == 100, PATIENCE_S)
        wait_until(lambda: pages.metric("sink_up", "redis") == 1, PATIENCE_S)
