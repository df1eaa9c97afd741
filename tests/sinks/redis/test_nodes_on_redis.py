"""The worker against real Redis Cluster, Sentinel, TLS and an ACL user, with failovers while it writes."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from tests.support.certificates import make_certificates
from tests.support.job import Job, MakeJob
from tests.support.kit import PATIENCE_S, Service, run_worker, wait_until
from tests.support.oracle import device, events
from tests.support.redis_topologies import SERVICE, behind_tls, cluster, with_sentinel
from worker.local import Server

CANARY = f"canary{uuid.uuid4().hex}"
COUNT = 20_000
WINDOWS = (
    *("--windows", "hour,day"),
    *("--window-time-zone", "Asia/Kolkata"),
    *("--by", "error_code,firmware"),
    *("--window-ttl", "hour=90000d,day=90000d"),  # events are old
)


@pytest.fixture
def job(kafka: Service, topic_name: str, make_job: MakeJob) -> Job:
    job = replace(make_job(kafka, ""), target=f"devices:{{{topic_name}}}")
    job.create()
    return job


def missing(port: int, job: Job, count: int = COUNT) -> int:
    """Return by how much the key's count would grow with the devices that it should have."""
    with redis.Redis(port=port, socket_timeout=PATIENCE_S) as client:
        clean = f"{{{job.topic}}}:clean"
        for start in range(0, count, 5000):
            client.pfadd(clean, *map(device, range(start, min(count, start + 5000))))
        return int(client.pfcount(job.target, clean)) - int(client.pfcount(job.target))


def run_commands(job: Job, **env: str) -> str:
    """Run check, count and verify, which must succeed; return their output."""
    printed = []
    for command in ("check", "count", "verify"):
        with run_worker(command, *job.arguments(), env=env) as worker:
            assert worker.wait() == 0, worker.tail()
        printed += [*worker.stdout, *worker.stderr]
    return "\n".join(printed)


def test_a_cluster_whose_slot_moves_while_the_worker_writes(job: Job) -> None:
    with cluster() as nodes:
        job = replace(job, url="redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2]))
        slot = key_slot(job.target.encode())
        owner = next(n for n, _ in enumerate(nodes) if slot < 16_384 * (n + 1) // 3)
        target = (owner + 1) % 3
        with job.start(*WINDOWS) as worker:
            job.send(events(COUNT // 2))
            job.all_done()
            _move(nodes, owner, target, slot)
            job.send(events(COUNT)[COUNT // 2 :])
            job.all_done()
            assert worker.running(), worker.tail()
        assert "missing 0, extra 0" in run_commands(job)
        assert missing(nodes[target].port, job) == 0
        with run_worker("count", *job.arguments("--from", "2000-01-01", "--to", "2100-01-01", *WINDOWS)) as worker:
            assert worker.wait() == 0, worker.tail()
        with redis.Redis(port=nodes[target].port) as client:
            assert worker.stdout[0] == f"Total devices: {client.pfcount(job.target)}"
        wrong = replace(job, url=f"redis://127.0.0.1:{nodes[owner].port}/0")
        with run_worker("check", *wrong.arguments()) as worker:
            assert worker.wait() == 1
        assert any("redis+cluster://" in line for line in worker.stdout), worker.tail()


def _move(nodes: list[Server], owner: int, target: int, slot: int) -> None:
    """Move a slot with its keys, as redis-cli --cluster reshard does; meanwhile either node may have a key (ASK)."""
    source, sink = (redis.Redis(port=nodes[n].port, socket_timeout=PATIENCE_S) for n in (owner, target))
    source_id, sink_id = (client.execute_command("CLUSTER MYID").decode() for client in (source, sink))
    sink.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
    source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", sink_id)
    while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        source.execute_command("MIGRATE", "127.0.0.1", nodes[target].port, "", 0, 5000, "KEYS", *keys)
    for client in (sink, source):
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", sink_id)
    source.close()
    sink.close()


def test_sentinel_promotes_the_replica_while_the_worker_writes(job: Job) -> None:
    with with_sentinel() as (primary, replica, sentinel):
        job = replace(job, url=sentinel.address)
        with job.start() as worker:
            job.send(events(COUNT // 2))
            job.all_done()
            with redis.Redis(port=primary.port) as client:  # a failover loses acknowledged but unreplicated writes
                wait_until(lambda: client.wait(1, 1000) == 1, PATIENCE_S, "the replica has all writes")
            primary.kill()
            job.send(events(COUNT)[COUNT // 2 :])
            job.all_done()
            assert any(f"Redis {SERVICE} of the Sentinels" in line for line in worker.stderr), worker.tail()
        assert missing(replica.port, job) == 0
        assert "missing 0, extra 0" in run_commands(job)


def test_tls_with_a_private_certificate_authority(job: Job, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with behind_tls(certificates) as server:
        job = replace(job, url=server.address)
        job.send(events(1000))
        with run_worker("check", *job.arguments()) as worker:
            assert worker.wait() == 1
        assert any("?ssl_ca_certs=FILE" in line for line in worker.stdout), worker.tail()
        with job.start() as worker:
            assert worker.wait() == 78, worker.tail()
        assert any("?ssl_ca_certs=FILE" in line for line in worker.stderr), worker.tail()
        job = replace(job, url=f"{server.address}?ssl_ca_certs={certificates.authority}")
        job.finish()
        assert "missing 0, extra 0" in run_commands(job)
        assert missing(server.port, job, 1000) == 0


def test_a_user_with_the_rights_that_check_prints(job: Job, own_redis: Server) -> None:
    env = {"WORKER_REDIS_PASSWORD": CANARY}
    job = replace(job, url=own_redis.address.replace("//", "//ingest@"))
    job.send(events(1000))
    with redis.Redis(port=own_redis.port) as client:
        client.execute_command("ACL", "SETUSER", "ingest", "on", f">{CANARY}")
        with run_worker("check", *job.arguments(*WINDOWS), env=env) as worker:
            assert worker.wait() == 1
        (line,) = [line for line in worker.stdout if line.startswith("FAIL  rights")]
        fix = re.search(r"ACL SETUSER … (.*) \(check: \+info \+multi, verify: (.*) on (\S+)\)", line)
        assert fix, line
        client.execute_command("ACL", "SETUSER", "ingest", *fix[1].split())
        with job.start(*WINDOWS, "--until-end", "--log-level", "debug", env=env) as worker:
            assert worker.wait() == 0, worker.tail()
        printed = [*worker.stdout, *worker.stderr]
        assert client.keys(f"{job.target}:day@Asia/Kolkata:*")
        client.execute_command("ACL", "SETUSER", "ingest", *fix[2].split(), fix[3])
        printed.append(run_commands(job, **env))
        assert missing(own_redis.port, job, 1000) == 0
    assert CANARY not in "\n".join(printed)
