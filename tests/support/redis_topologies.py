"""Redis topologies of production, as processes of this machine: a cluster, a primary with Sentinel, and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import redis

from tests.support.certificates import Certificates
from tests.support.kit import PATIENCE_S, wait_until
from worker.local import Server, start_redis
from worker.local.directory import Directory
from worker.local.process import exchange, free_port

SLOTS = 16_384
SERVICE = "mymaster"


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[Server]]:
    """Start primaries with equal shares of the slots."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(nodes)]  # the default is the port + 10 000, which may be in use
        servers = [
            stack.enter_context(start_redis(cluster_enabled="yes", cluster_node_timeout=2000, cluster_port=bus))
            for bus in buses
        ]
        clients = [redis.Redis(port=server.port, socket_timeout=PATIENCE_S) for server in servers]
        for client in clients:
            stack.callback(client.close)
        for index, client in enumerate(clients):
            first, last = SLOTS * index // nodes, SLOTS * (index + 1) // nodes - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", servers[index].port, buses[index])
        for client in clients:
            wait_until(
                lambda client=client: (  # type: ignore[misc]
                    client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
                    and client.execute_command("CLUSTER INFO")["cluster_known_nodes"] == str(nodes)
                ),
                PATIENCE_S,
                "the cluster serves all slots",
            )
        yield servers


@contextmanager
def with_sentinel() -> Iterator[tuple[Server, Server, Server]]:
    """Start a primary, its replica, and a Sentinel that promotes the replica if the primary fails."""
    with start_redis() as primary, start_redis(replicaof=f"127.0.0.1 {primary.port}") as replica:
        with redis.Redis(port=replica.port) as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", PATIENCE_S, "connected")
        with _sentinel(primary.port) as sentinel, redis.Redis(port=sentinel.port) as client:
            wait_until(lambda: len(client.sentinel_slaves(SERVICE)) == 1, PATIENCE_S, "Sentinel knows the replica")
            yield primary, replica, sentinel


def _sentinel(primary: int) -> Server:
    directory, port = Directory("sentinel"), free_port()
    (directory.path / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory.path}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 2000\n"
        f"sentinel failover-timeout {SERVICE} 10000\n"
    )
    return Server(
        directory,
        ["redis-server", str(directory.path / "sentinel.conf"), "--sentinel"],
        lambda: exchange(port, b"PING\r\n").startswith(b"+PONG"),
        address=f"redis+sentinel://127.0.0.1:{port}/{SERVICE}/0",
        port=port,
    )


@contextmanager
def behind_tls(certificates: Certificates) -> Iterator[Server]:
    """Start a Redis whose `address` uses TLS; its `port` does not use TLS and is for the test."""
    port = free_port()
    with start_redis(
        tls_port=port,
        tls_cert_file=str(certificates.server),
        tls_key_file=str(certificates.server_key),
        tls_ca_cert_file=str(certificates.authority),
        tls_auth_clients="no",
    ) as server:
        server.address = f"rediss://localhost:{port}/0"
        yield server
