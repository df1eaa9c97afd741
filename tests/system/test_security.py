"""TLS and logins against real servers: every command connects, and a refusal names the option to check, exit 78.

Kafka has listeners with SASL_SSL (SCRAM-SHA-512), with OAUTHBEARER, and with TLS that requires a client certificate.
The local ClickHouse and Redis do not listen for TLS: a TLS proxy stands in front of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from tests.support.certificates import Certificates, make_certificates
from tests.support.kit import PATIENCE_S, Service, create_topic, run_worker, send, wait_until
from tests.support.tls_end import TlsEnd
from worker.local import Server, start_clickhouse, start_kafka, start_redis
from worker.local.process import free_port

CANARY = f"canary{uuid.uuid4().hex}"
EVENT = b'{"timestamp": "2024-01-01T00:00:00Z", "device_ip": "10.0.0.%d", "error_code": 3}'
_JAAS = "org.apache.kafka.common.security"


class Secured(NamedTuple):
    """A Kafka with four listeners: `open_address` for the test, and three that authenticate clients."""

    open_address: str
    scram: str
    token: str
    mutual: str


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(certificates: Certificates) -> Iterator[Secured]:
    scram, token, mutual = free_port(), free_port(), free_port()
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.chain),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.authority),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
        "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.token.oauthbearer.sasl.jaas.config": (
            f'{_JAAS}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
    }
    listeners = {"SCRAM": ("SASL_SSL", scram), "TOKEN": ("SASL_PLAINTEXT", token), "MUTUAL": ("SSL", mutual)}
    with start_kafka(properties, listeners=listeners) as server:
        admin = AdminClient({"bootstrap.servers": server.address})
        user = UserScramCredentialUpsertion(
            "ingest", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), CANARY.encode()
        )
        admin.alter_user_scram_credentials([user])["ingest"].result(PATIENCE_S)
        yield Secured(server.address, f"127.0.0.1:{scram}", f"127.0.0.1:{token}", f"127.0.0.1:{mutual}")


@pytest.fixture(scope="module")
def guarded_clickhouse() -> Iterator[Server]:
    with start_clickhouse(users={"guarded": {"password": CANARY}}) as server:
        yield server


def sasl_ssl(certificates: Certificates) -> list[str]:
    """Return the arguments for SASL_SSL as README shows them."""
    return properties(
        "security.protocol=SASL_SSL",
        "sasl.mechanism=SCRAM-SHA-512",
        "sasl.username=ingest",
        f"ssl.ca.location={certificates.authority}",
    )


def properties(*texts: str) -> list[str]:
    return [word for text in texts for word in ("-X", text)]


def finished(*words: str, env: dict[str, str], code: int = 0) -> str:
    """Run a command to its end; return its output, which has no secret in it."""
    with run_worker(*words, env=env) as command:
        assert command.wait() == code, command.tail()
        printed = "\n".join([*command.stdout, *command.stderr])
        assert CANARY not in printed
    return printed


def test_every_command_passes_tls_and_scram(
    secured: Secured, certificates: Certificates, redis_server: Service, topic_name: str, group_id: str
) -> None:
    env = {"WORKER_KAFKA_PASSWORD": CANARY}
    kafka_options = ["--bootstrap-servers", secured.scram, "--topic", topic_name, *sasl_ssl(certificates)]
    fleet = (
        "--partitions",
        "2",
        "--num-messages",
        "500",
        "--bad-ratio",
        "0.1",
        "--seed",
        "1",
    )  # some with an invalid device
    produced = finished("produce", *kafka_options, *fleet, env=env)
    assert "produced 500, failed 0" in produced
    job = [*kafka_options, "--redis-url", redis_server.address, "--group-id", group_id, "--metrics-port", "0"]
    assert "FAIL" not in finished("check", *job, env=env)
    verbose = ["--log-level", "debug", "-X", "log_level=7", "-X", "debug=security,conf"]
    assert "Total devices: " in finished("run", *job, "--until-end", *verbose, env=env)
    assert "Total devices: " in finished("count", *job, env=env)
    finished("verify", *job, env=env)
    assert topic_name in finished("dlq", "list", *job, env=env)
    assert "replayed" in finished("dlq", "replay", "--yes", *job, env=env)


def test_a_client_certificate_is_enough_where_the_broker_requires_one(
    secured: Secured, certificates: Certificates, redis_server: Service, topic_name: str, group_id: str
) -> None:
    create_topic(secured.open_address, topic_name, 2)
    send(secured.open_address, topic_name, [EVENT % i for i in range(50)])
    tls = properties("security.protocol=SSL", f"ssl.ca.location={certificates.authority}")
    key = properties(f"ssl.certificate.location={certificates.server}", f"ssl.key.location={certificates.server_key}")
    job = [
        *("run", "--bootstrap-servers", secured.mutual, "--topic", topic_name, "--group-id", group_id),
        *("--redis-url", redis_server.address, "--metrics-port", "0", "--until-end"),
    ]
    assert "Total devices: 50" in finished(*job, *tls, *key, env={})
    without = finished(*job, *tls, env={}, code=78)
    assert "ssl.certificate.location" in without


@pytest.mark.parametrize("group", ["group.protocol=consumer", "group.instance.id=host-1"])
def test_the_new_group_protocol_and_static_membership_pass_too(
    secured: Secured, certificates: Certificates, redis_server: Service, topic_name: str, group_id: str, group: str
) -> None:
    create_topic(secured.open_address, topic_name, 2)
    send(secured.open_address, topic_name, [EVENT % i for i in range(50)])
    job = [
        *("--bootstrap-servers", secured.scram, "--topic", topic_name, "--group-id", group_id),
        *("--redis-url", redis_server.address, "--metrics-port", "0", "-X", group),
    ]
    env = {"WORKER_KAFKA_PASSWORD": CANARY}
    assert "Total devices: 50" in finished(*job, *sasl_ssl(certificates), "--until-end", env=env)


def test_a_static_member_that_restarts_within_its_session_gets_its_partitions_back_without_a_rebalance(
    secured: Secured, redis_server: Service, topic_name: str, group_id: str
) -> None:
    create_topic(secured.open_address, topic_name, 2)
    job = [
        *("--bootstrap-servers", secured.open_address, "--topic", topic_name, "--group-id", group_id),
        *("--redis-url", redis_server.address, "--metrics-port", "0", "--processes", "2"),
        *properties("group.instance.id=host-1", "session.timeout.ms=60000"),
    ]
    admin = AdminClient({"bootstrap.servers": secured.open_address})

    def members() -> set[str]:
        description = admin.describe_consumer_groups([group_id])[group_id].result(PATIENCE_S)
        return {member.group_instance_id for member in description.members if member.assignment.topic_partitions}

    with run_worker(*job) as worker:
        wait_until(lambda: members() == {"host-1-0", "host-1-1"}, PATIENCE_S)
        send(secured.open_address, topic_name, [EVENT % i for i in range(20)])
        worker.kill_tree()
    with run_worker(*job, "--until-end") as worker:
        assert worker.wait() == 0, worker.tail()
        assert "Total devices: 20" in worker.stdout


@pytest.mark.parametrize("command", ["run", "check", "produce"])
def test_a_wrong_password_of_kafka_names_the_variable(
    secured: Secured, certificates: Certificates, topic_name: str, command: str
) -> None:
    wrong = {"WORKER_KAFKA_PASSWORD": CANARY[::-1]}
    job = ["--bootstrap-servers", secured.scram, "--topic", topic_name, *sasl_ssl(certificates)]
    port = [] if command == "produce" else ["--metrics-port", "0"]
    printed = finished(command, *job, *port, env=wrong, code=1 if command == "check" else 78)
    assert "WORKER_KAFKA_PASSWORD" in printed
    assert CANARY[::-1] not in printed


def test_a_broker_with_a_certificate_of_another_authority_is_refused(
    secured: Secured, certificates: Certificates, topic_name: str
) -> None:
    unrelated = certificates._replace(authority=certificates.unrelated)
    job = ["--bootstrap-servers", secured.scram, "--topic", topic_name, *sasl_ssl(unrelated)]
    printed = finished(*job, "--metrics-port", "0", env={"WORKER_KAFKA_PASSWORD": CANARY}, code=78)
    assert "ssl.ca.location" in printed


def test_an_unsecured_token_of_oauthbearer(
    secured: Secured, redis_server: Service, topic_name: str, group_id: str
) -> None:
    create_topic(secured.open_address, topic_name)
    send(secured.open_address, topic_name, [EVENT % i for i in range(50)] + [b"bad"])
    job = [
        *("--bootstrap-servers", secured.token, "--topic", topic_name, "--group-id", group_id),
        *("--redis-url", redis_server.address, "--metrics-port", "0"),
        *properties("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=OAUTHBEARER"),
        *properties("enable.sasl.oauthbearer.unsecure.jwt=true"),
    ]
    env = {"WORKER_KAFKA": "sasl.oauthbearer.config=principal=ingest"}
    assert "Total devices: 50" in finished(*job, "--until-end", env=env)
    assert "FAIL" not in finished("check", *job, env=env)
    assert "1 dead letters" in finished("dlq", "replay", *job, env=env)


def test_tls_and_password_of_clickhouse(
    kafka: Service,
    guarded_clickhouse: Server,
    certificates: Certificates,
    topic_name: str,
    group_id: str,
    table_name: str,
    tmp_path: Path,
) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, [EVENT % i for i in range(50)])
    job = ["--bootstrap-servers", kafka.address, "--topic", topic_name, "--group-id", group_id, "--table", table_name]
    job += ["--backend", "clickhouse", "--metrics-port", "0", "--clickhouse-url"]
    password = tmp_path / "password"
    password.write_text(f"{CANARY}\n")
    env = {"WORKER_CLICKHOUSE_PASSWORD_FILE": str(password)}
    with TlsEnd(guarded_clickhouse.port, certificates) as end:
        base = f"clickhouses://guarded@127.0.0.1:{end.port}/default?ca_certs="
        trusted = f"{base}{certificates.authority}"
        assert "FAIL" not in finished("check", *job, trusted, env=env)
        assert "Total devices: 50" in finished(*job, trusted, "--until-end", env=env)
        assert "Total devices: 50" in finished("count", *job, trusted, env=env)
        finished("verify", *job, trusted, env=env)
        wrong = {"WORKER_CLICKHOUSE_PASSWORD": CANARY[::-1]}
        printed = finished(*job, trusted, env=wrong, code=78)
        assert "WORKER_CLICKHOUSE_PASSWORD" in printed
        assert CANARY[::-1] not in printed
        printed = finished("check", *job, f"{base}{certificates.unrelated}", env=env, code=1)
        assert "certificate verify failed" in printed
        assert "ca_certs" in printed
        printed = finished(*job, f"{base}{certificates.unrelated}", env=env, code=78)
        assert "ca_certs" in printed


def test_tls_and_password_of_redis(
    kafka: Service, certificates: Certificates, topic_name: str, group_id: str, tmp_path: Path
) -> None:
    create_topic(kafka.address, topic_name)
    send(kafka.address, topic_name, [EVENT % i for i in range(50)])
    job = ["--bootstrap-servers", kafka.address, "--topic", topic_name, "--group-id", group_id, "--metrics-port", "0"]
    password = tmp_path / "password"
    password.write_text(f"{CANARY}\n")
    env = {"WORKER_REDIS_PASSWORD_FILE": str(password)}
    with start_redis(requirepass=CANARY) as server, TlsEnd(server.port, certificates) as end:
        base = f"rediss://127.0.0.1:{end.port}/0?ssl_ca_certs="
        trusted = ["--redis-url", f"{base}{certificates.authority}"]
        assert "FAIL" not in finished("check", *job, *trusted, env=env)
        assert "Total devices: 50" in finished(*job, *trusted, "--until-end", env=env)
        assert "Total devices: 50" in finished("count", *job, *trusted, env=env)
        finished("verify", *job, *trusted, env=env)
        printed = finished("check", *job, "--redis-url", f"{base}{certificates.unrelated}", env=env, code=1)
        assert "certificate verify failed" in printed
