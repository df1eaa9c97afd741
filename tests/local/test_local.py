"""The servers of `worker.local` keep port and data over restarts, allow injected faults, and end with their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from clickhouse_driver.errors import ServerException
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from tests.support.kit import (
    PATIENCE_S,
    alive,
    clickhouse_client,
    create_topic,
    descendants,
    host_and_port,
    send,
    wait_until,
)
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.core.errors import Fatal
from worker.local import (
    Server,
    fetch,
    start_clickhouse,
    start_embedded_kafka,
    start_embedded_redis,
    start_kafka,
    start_prometheus,
    start_redis,
)
from worker.local.__main__ import main
from worker.local.clickhouse import Tree
from worker.local.directory import Directory

ROOT = Path(__file__).parents[2]


def start_default_prometheus() -> Server:
    return start_prometheus("global: {scrape_interval: 1s}\n")


STARTS: list[Callable[[], Server]] = [
    start_kafka,
    start_redis,
    start_clickhouse,
    start_default_prometheus,
    start_embedded_kafka,
    start_embedded_redis,
]


def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    """Read messages of a topic from its beginning, in a group (so that the group coordinator is tested too)."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    values: list[bytes | None] = []

    def is_complete() -> bool:
        for message in consumer.consume(count, 0.1):
            assert message.error() is None, message.error()
            values.append(message.value())
        return len(values) >= count

    wait_until(is_complete, PATIENCE_S, f"{count} messages")
    consumer.close()
    return values


@pytest.mark.parametrize("start", STARTS)
def test_a_server_runs_in_the_block_and_leaves_nothing_after_it(start: Callable[[], Server]) -> None:
    with start() as server:
        pid = server.pid
        assert alive(pid)
        assert str(server.port) in server.address
        assert server.directory.is_dir()
    assert not alive(pid)
    assert not server.directory.exists()


@pytest.mark.parametrize("start", STARTS)
def test_a_server_is_a_new_process_on_the_same_port_after_stop_and_after_kill(start: Callable[[], Server]) -> None:
    with start() as server:
        address, before = server.address, server.pid
        server.stop()
        assert server.pid == 0
        assert not alive(before)
        server.start()
        second = server.pid
        assert second not in (0, before)
        server.kill()
        assert not alive(second)
        server.start()
        assert server.pid not in (0, second)
        assert server.address == address


def test_kafka_keeps_topics_and_messages_over_restart_and_kill(own_kafka: Server, topic_name: str) -> None:
    create_topic(own_kafka.address, topic_name, 2)
    send(own_kafka.address, topic_name, [b"1", None], partition=1)
    own_kafka.restart()
    send(own_kafka.address, topic_name, [b"3"], partition=1)
    own_kafka.kill()
    own_kafka.start()
    assert read(own_kafka.address, topic_name, 3) == [b"1", None, b"3"]


def test_kafka_applies_properties_and_does_not_auto_create_topics(topic_name: str) -> None:
    with start_kafka({"message.max.bytes": 1000}) as server:
        create_topic(server.address, topic_name)
        with pytest.raises(AssertionError, match=r"MSG_SIZE_TOO_LARGE"):
            send(server.address, topic_name, [os.urandom(2000)])
        admin = AdminClient({"bootstrap.servers": server.address})
        metadata = admin.list_topics("no-such-topic", timeout=PATIENCE_S).topics["no-such-topic"]
        assert metadata.error is not None
        assert set(admin.list_topics(timeout=PATIENCE_S).topics) == {topic_name}


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_kafka_serves_both_group_protocols(own_kafka: Server, topic_name: str, group_id: str, protocol: str) -> None:
    create_topic(own_kafka.address, topic_name)
    send(own_kafka.address, topic_name, [b"1"])
    properties = {"group.protocol": protocol, "group.id": group_id, "auto.offset.reset": "earliest"}
    if protocol == "classic":
        properties["session.timeout.ms"] = "6000"
    consumer = Consumer({"bootstrap.servers": own_kafka.address, **properties})
    consumer.subscribe([topic_name])
    assert wait_until(lambda: consumer.consume(1, 0.2), PATIENCE_S)[0].value() == b"1"
    consumer.commit(asynchronous=False)
    consumer.close()


def test_redis_keeps_data_over_restart_and_kill(own_redis: Server, redis_key: str) -> None:
    client = Redis.from_url(own_redis.address)
    client.pfadd(redis_key, *range(100))
    count = client.pfcount(redis_key)
    own_redis.restart()
    assert client.pfcount(redis_key) == count
    client.set("after", 1)
    own_redis.kill()
    own_redis.start()
    assert client.pfcount(redis_key) == count
    assert client.get("after") == b"1"
    client.close()


def test_redis_applies_directives() -> None:
    with start_redis(maxmemory="2mb", requirepass="p4ss") as server:
        client = Redis.from_url(server.address)
        assert client.config_get("maxmemory") == {"maxmemory": str(2 << 20)}
        client.close()
        unauthenticated = Redis.from_url(server.address.replace(":p4ss@", ""))
        with pytest.raises(AuthenticationError):
            unauthenticated.ping()
        unauthenticated.close()


def test_a_paused_server_answers_only_after_resume(own_redis: Server) -> None:
    client = Redis.from_url(own_redis.address, socket_timeout=0.3, retry=None)
    client.ping()
    own_redis.pause()
    with pytest.raises(RedisError):
        client.ping()
    own_redis.resume()
    patient = Redis.from_url(own_redis.address, socket_timeout=PATIENCE_S)
    assert patient.ping()
    own_redis.pause()
    own_redis.stop()  # also stops a paused process
    assert own_redis.pid == 0
    client.close()
    patient.close()


@pytest.fixture
def table(own_clickhouse: Server, table_name: str) -> str:
    client = clickhouse_client(own_clickhouse.address)
    client.execute(
        f"CREATE TABLE {table_name} (t DateTime64(3, 'UTC'), a Int64) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    client.disconnect()
    return table_name


def test_clickhouse_keeps_tables_rows_and_tokens_over_restart_and_kill(own_clickhouse: Server, table: str) -> None:
    def insert(token: str) -> None:
        client = clickhouse_client(own_clickhouse.address)
        settings = {"insert_deduplication_token": token, "async_insert": 0}
        client.execute(f"INSERT INTO {table} VALUES", [(0, 1), (0, 2)], settings=settings)
        client.disconnect()

    insert("one")
    own_clickhouse.restart()
    insert("one")
    insert("two")
    own_clickhouse.kill()
    own_clickhouse.start()
    insert("two")
    client = clickhouse_client(own_clickhouse.address)
    assert client.execute(f"SELECT count() FROM {table}") == [(4,)]
    client.disconnect()


def test_clickhouse_applies_settings_configuration_and_users() -> None:
    reader: Tree = {"password": "x", "grants": {"query": "GRANT SELECT ON *.*"}}
    config = {"merge_tree": {"parts_to_throw_insert": 7}}
    with start_clickhouse(settings={"max_threads": 3}, config=config, users={"reader": reader}) as server:
        client = clickhouse_client(server.address)
        assert client.execute("SELECT value FROM system.settings WHERE name = 'max_threads'") == [("3",)]
        query = "SELECT value FROM system.merge_tree_settings WHERE name = 'parts_to_throw_insert'"
        assert client.execute(query) == [("7",)]
        client.disconnect()
        client = clickhouse_client(server.address.replace("default@", "reader:x@"))
        with pytest.raises(ServerException, match="Not enough privileges"):
            client.execute("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
        client.disconnect()
        assert urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/ping").read() == b"Ok.\n"


def test_clickhouse_survives_a_wrong_password_and_a_client_that_dies_while_it_inserts(
    own_clickhouse: Server, table: str
) -> None:
    before = own_clickhouse.pid
    client = clickhouse_client(own_clickhouse.address.replace("default@", "default:wrong@"))
    with pytest.raises(ServerException, match="Authentication failed"):
        client.execute("SELECT 1")
    client.disconnect()
    with Proxy(*host_and_port(own_clickhouse.address)) as proxy:
        client = clickhouse_client(own_clickhouse.address.replace(str(own_clickhouse.port), str(proxy.port)))
        client.execute("SELECT 1")
        proxy.cut_to_server(200_000)
        with pytest.raises((ConnectionError, EOFError)):
            client.execute(f"INSERT INTO {table} VALUES", [(0, i * i * i) for i in range(100_000)])
        assert proxy.faults == 1
        client.disconnect()
    client = clickhouse_client(own_clickhouse.address)
    assert client.execute(f"SELECT count() FROM {table}") == [(0,)]
    client.disconnect()
    assert own_clickhouse.pid == before


def test_an_insert_whose_response_the_proxy_drops_is_in_the_table(own_clickhouse: Server, table: str) -> None:
    with Proxy(*host_and_port(own_clickhouse.address)) as proxy:
        client = clickhouse_client(own_clickhouse.address.replace(str(own_clickhouse.port), str(proxy.port)))
        client.execute("SELECT 1")
        proxy.drop_reply(after_bytes=100_000, until=END_OF_STREAM)
        with pytest.raises((ConnectionError, EOFError)):
            client.execute(f"INSERT INTO {table} VALUES", [(0, i) for i in range(50_000)], settings={"async_insert": 0})
        assert proxy.faults == 1
        client.disconnect()
    client = clickhouse_client(own_clickhouse.address)
    assert client.execute(f"SELECT count() FROM {table}") == [(50_000,)]
    client.disconnect()


def test_clickhouse_uses_little_cpu_while_idle(own_clickhouse: Server) -> None:
    def cpu_s() -> float:
        user, system = Path(f"/proc/{own_clickhouse.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    start, before = time.monotonic(), cpu_s()
    wait_until(lambda: time.monotonic() - start > 5)
    assert (cpu_s() - before) / (time.monotonic() - start) < 0.2  # 0.01 on an idle machine


def test_a_server_ends_with_an_owner_that_was_killed() -> None:
    code = "from worker.local import start_redis\nwith start_redis() as s: print(s.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(pid), PATIENCE_S, "the server ends with its owner")


def test_a_directory_is_removed_after_its_owner_ended_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.local.directory._SWEEP_AFTER_S", -1.0)
    code = "from worker.local.directory import Directory\nprint(Directory('abandoned').path)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    abandoned = Path(done.stdout.strip())
    assert abandoned.is_dir()
    mine = Directory("mine")
    other = Directory("other")
    assert not abandoned.exists()
    assert mine.path.is_dir()
    other.remove()
    mine.remove()
    assert not mine.path.exists()


def test_a_server_that_cannot_start_raises_its_error_and_leaves_nothing() -> None:
    server = start_redis(maxmemory="nonsense")
    with pytest.raises(Fatal, match="nonsense"), server:
        pass
    assert not server.directory.exists()


def test_a_missing_program_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for start, words in (
        (start_redis, "redis-server is not on the PATH. Install it: apt-get install redis-server"),
        (start_default_prometheus, "apt-get install prometheus"),
    ):
        with pytest.raises(Fatal, match=words):
            start()


def test_a_download_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def broken(target: Path) -> None:
        (target / "half").write_text("")
        raise Fatal("no network")

    with pytest.raises(Fatal, match="no network"):
        fetch.once("thing", "fetching a thing", broken)

    calls = []

    def whole(target: Path) -> None:
        calls.append(sorted(path.name for path in target.iterdir()))
        (target / "all").write_text("")

    for _ in range(2):
        assert [path.name for path in fetch.once("thing", "fetching a thing", whole).iterdir()] == ["all"]
    assert calls == [[]]


def test_the_command_prints_the_workers_variables_and_stops_all_servers_on_sigterm() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "worker.local", "--only", "redis,clickhouse"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout
        assert command.stderr
        lines = [command.stdout.readline() for _ in range(4)]
        names = [line.split("=")[0] for line in lines]
        assert names == [
            "export WORKER_REDIS_URL",
            "export WORKER_TEST_REDIS",
            "export WORKER_CLICKHOUSE_URL",
            "export WORKER_TEST_CLICKHOUSE",
        ]
        assert "ready" in command.stderr.readline()
        client = Redis.from_url(lines[0].strip().split("=")[1])
        assert client.ping()
        client.close()
        pids = descendants(command.pid)
        assert len(pids) == 2
        command.terminate()
        assert command.wait(PATIENCE_S) == 0
    assert not any(map(alive, pids))


def test_the_command_names_an_unknown_service(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "redis,mysql"])
    assert "mysql" in capsys.readouterr().err


@pytest.mark.usefixtures("kafka", "redis_server", "clickhouse")
def test_the_shared_servers_start() -> None:
    pass
