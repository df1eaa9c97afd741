"""A real Apache Kafka on this machine: one JVM that is both broker and controller (KRaft)."""

from __future__ import annotations

import base64
import shutil
import struct
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.local import fetch
from worker.local.directory import Directory
from worker.local.process import Server, exchange, free_port

_PROPERTIES: dict[str, str | int] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,
    # One node, so one replica. Few partitions, because the first use of a group creates them all.
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 4,
    "log.cleaner.dedupe.buffer.size": 16 << 20,  # the default, 128 MiB, is too much of a small heap
    # After a kill the controller registers the broker again only when its old session has ended (default 9000).
    "broker.session.timeout.ms": 3000,
    "broker.heartbeat.interval.ms": 500,
}


def start_kafka(
    properties: Mapping[str, str | int] | None = None,
    *,
    heap: str = "768m",
    jvm: Sequence[str] = (),
    listeners: Mapping[str, tuple[str, int]] | None = None,
) -> Server:
    """Return a Kafka for `with`; `address` is the bootstrap server. Classic and KIP-848 groups, no topic auto-creation.

    `properties` override those of the server, `heap` is the JVM's -Xmx, `jvm` are its additional arguments. `listeners`
    are additional listeners on 127.0.0.1: name → (security protocol, port).
    """
    fetch.kafka_libs()
    prepared = fetch.once(f"kafka-{fetch.KAFKA_VERSION}-prepared", "preparing fast starts of Kafka (15 s)", _prepare)
    archive = prepared / "classes.jsa"  # halves the start time; a JVM that cannot use it starts without it
    shared = [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off"] if archive.exists() else []
    return _server(prepared, properties or {}, [f"-Xmx{heap}", *shared, *jvm], listeners or {})


def metadata_brokers(port: int) -> int:
    """Request the cluster's metadata and return how many brokers are active (a fenced broker is not)."""
    request = struct.pack(">hhihi", 3, 1, 1, -1, 0)  # Metadata v1, correlation id 1, no client id, no topics
    response = exchange(port, struct.pack(">i", len(request)) + request)
    return int(struct.unpack_from(">i", response, 8)[0]) if len(response) >= 12 else 0


def _server(
    formatted: Path,
    properties: Mapping[str, str | int],
    jvm: Sequence[str],
    listeners: Mapping[str, tuple[str, int]],
) -> Server:
    java, libs = fetch.java(), fetch.kafka_libs()
    directory = Directory("kafka")
    data = directory.path / "data"
    data.mkdir()
    shutil.copy(formatted / "bootstrap.checkpoint", data)
    (data / "meta.properties").write_text(
        f"version=1\nnode.id=1\ncluster.id={_random_id()}\ndirectory.id={_random_id()}\n"
    )
    port, controller = free_port(), free_port()
    config = directory.path / "server.properties"
    own = {"BROKER": ("PLAINTEXT", port), "CONTROLLER": ("PLAINTEXT", controller)}
    _write_properties(config, data, {**own, **listeners}, properties)
    command = [java, "-XX:+UseSerialGC", *jvm, "-cp", f"{libs}/*", "kafka.Kafka", str(config)]
    return Server(directory, command, lambda: metadata_brokers(port) > 0, address=f"127.0.0.1:{port}", port=port)


def _prepare(target: Path) -> None:
    """Format an empty log directory to copy, and run a broker once so that it writes the archive of its classes."""
    config = target / "server.properties"
    _write_properties(config, target / "data", {"BROKER": ("PLAINTEXT", 9092), "CONTROLLER": ("PLAINTEXT", 9093)}, {})
    format_storage = ["kafka.tools.StorageTool", "format", "-t", _random_id(), "-c", str(config)]
    fetch.run([fetch.java(), "-cp", f"{fetch.kafka_libs()}/*", *format_storage], target)
    (target / "data" / "bootstrap.checkpoint").rename(target / "bootstrap.checkpoint")
    with _server(target, {}, [f"-XX:ArchiveClassesAtExit={target / 'classes.jsa'}"], {}) as broker:
        broker.stop()


def _write_properties(
    file: Path, data: Path, listeners: Mapping[str, tuple[str, int]], properties: Mapping[str, str | int]
) -> None:
    own = {
        "controller.quorum.voters": f"1@127.0.0.1:{listeners['CONTROLLER'][1]}",
        "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, (_, port) in listeners.items()),
        "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, (kind, _) in listeners.items()),
        "log.dirs": str(data),
    }
    file.write_text("".join(f"{key}={value}\n" for key, value in {**_PROPERTIES, **own, **properties}.items()))


def _random_id() -> str:
    """Return an id in Kafka's form that does not begin like a command-line option."""
    return "K" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
