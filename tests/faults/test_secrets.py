"""A canary for a password: wherever a password may be given, it is nowhere that anybody looks.

Looked at are the logs, the arguments of every process of the machine, all pages, what commands print, the dead letters
and the group's commits, when the login works and when it does not.
"""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from tests.support.job import Job, MakeJob
from tests.support.kit import PATIENCE_S, Service, Worker, run_worker
from tests.support.oracle import EXACT, events
from tests.support.served import Answers
from worker.config.settings import UsageError
from worker.config.sources import load
from worker.local import Server, start_clickhouse

pytestmark = pytest.mark.faults

CANARY = f"canary{uuid.uuid4().hex}"
LOUD = {
    "text": ("--log-format", "text", "--log-level", "debug", "-X", "log_level=7"),
    "json": ("--log-format", "json", "--log-level", "debug", "-X", "log_level=7", "-X", "debug=security,conf"),
}


@pytest.fixture
def guarded_redis(own_redis: Server) -> Server:
    """A Redis with a password that is not in its arguments."""
    client = redis.Redis(port=own_redis.port)
    client.config_set("requirepass", CANARY)
    client.close()
    return own_redis


@pytest.fixture(scope="module")
def guarded_clickhouse() -> Iterator[Server]:
    with start_clickhouse(users={"guarded": {"password": CANARY}}) as server:
        yield server


@pytest.fixture
def redis_job(kafka: Service, guarded_redis: Server, make_job: MakeJob) -> Job:
    return make_job(kafka, guarded_redis.address)


@pytest.fixture
def clickhouse_job(kafka: Service, guarded_clickhouse: Server, make_job: MakeJob) -> Job:
    return make_job(kafka, guarded_clickhouse.address.replace("default@", "guarded@"))


@pytest.mark.parametrize(("how", "form"), [("variable", "text"), ("file", "json"), ("url", "json")])
def test_password_of_redis(redis_job: Job, tmp_path: Path, how: str, form: str) -> None:
    env = _given(redis_job, "REDIS", how, tmp_path)
    _ingest(redis_job, env, form)
    judged = replace(redis_job, url=_with_password(redis_job.url))
    assert judged.judge(range(2000)) == EXACT


@pytest.mark.parametrize(("how", "form"), [("variable", "text"), ("file", "json"), ("url", "json")])
def test_password_of_clickhouse(clickhouse_job: Job, tmp_path: Path, how: str, form: str) -> None:
    env = _given(clickhouse_job, "CLICKHOUSE", how, tmp_path)
    _ingest(clickhouse_job, env, form)
    judged = replace(clickhouse_job, url=_with_password(clickhouse_job.url))
    assert judged.judge(range(2000)) == EXACT


@pytest.mark.parametrize("backend", ["redis_job", "clickhouse_job"])
@pytest.mark.parametrize(("how", "form"), [("variable", "json"), ("url", "text")])
def test_password_that_the_store_refuses(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, how: str, form: str
) -> None:
    job: Job = request.getfixturevalue(backend)
    wrong = CANARY[:-1] + "-"
    env = _given(job, job.backend.upper(), how, tmp_path, wrong)
    job.create()
    job.send(events(10))
    for command in ("run", "check", "count", "verify"):
        loud = LOUD[form] if command == "run" else ()
        with run_worker(command, *_arguments(job, env, *loud), env=env) as worker:
            code = worker.wait()
            printed = [*worker.stdout, *worker.stderr]
            _nowhere(printed, CANARY[:-1])
            assert code == (78 if command == "run" else 1), worker.tail()
            variable = f"WORKER_{job.backend.upper()}_PASSWORD"
            assert any(variable in line for line in printed), f"it names what to look at:\n{worker.tail()}"


@pytest.mark.parametrize(
    "secret",
    [
        {"WORKER_SCHEMA_REGISTRY_PASSWORD": CANARY},
        {"WORKER_SCHEMA_REGISTRY_TOKEN": CANARY},
        {"WORKER_SCHEMA_REGISTRY_URL": f"http://user:{CANARY}@127.0.0.1:port"},
    ],
    ids=lambda secret: next(iter(secret)),
)
@pytest.mark.parametrize("form", LOUD)
def test_credentials_that_the_schema_registry_refuses(rows_job: Job, secret: dict[str, str], form: str) -> None:
    rows_job.create()
    rows_job.send([b"\0\0\0\0\1x"])
    registry = Answers()
    try:
        registry.by_path = {
            path: (401, {}) for path in ("/schemas/ids/1", f"/subjects/{rows_job.topic}-value/versions/latest")
        }
        env = {"WORKER_SCHEMA_REGISTRY_URL": f"http://user@127.0.0.1:{registry.port}", **secret}
        env = {name: value.replace("port", str(registry.port)) for name, value in env.items()}
        for command in ("run", "check"):
            loud = LOUD[form] if command == "run" else ()
            with run_worker(command, *rows_job.arguments("--format", "json-schema", *loud), env=env) as worker:
                code = worker.wait()
                printed = [*worker.stdout, *worker.stderr]
            _nowhere(printed)
            assert code == (78 if command == "run" else 1), worker.tail()
            assert any("WORKER_SCHEMA_REGISTRY_PASSWORD" in line for line in printed), worker.tail()
    finally:
        registry.stop()
    assert all("Authorization" in headers for headers in registry.headers)


@pytest.mark.parametrize("form", LOUD)
def test_password_of_kafka_that_needs_none(rows_job: Job, form: str) -> None:
    _ingest(rows_job, {"WORKER_KAFKA_PASSWORD": CANARY}, form)
    assert rows_job.judge(range(2000)) == EXACT


@pytest.mark.parametrize("form", LOUD)
def test_password_of_kafka_that_cannot_log_in(rows_job: Job, form: str) -> None:
    """A broker without SASL closes the connection."""
    env = {"WORKER_KAFKA_PASSWORD": CANARY}
    sasl = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=someone")
    options = [word for item in sasl for word in ("-X", item)]
    rows_job.create()
    with rows_job.start(*LOUD[form], *options, env=env) as worker:
        worker.wait_for("handshake failed")
        _nowhere(_arguments_of_all())
        assert worker.wait() == 78
        _nowhere([*worker.stdout, *worker.stderr])
        assert any("WORKER_KAFKA_PASSWORD" in line for line in worker.stderr), worker.tail()
    with run_worker("check", *rows_job.arguments(*options), env=env) as check:
        assert check.wait() == 1
        _nowhere([*check.stdout, *check.stderr])


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@127.0.0.1:port/0",
        "redis://:{}/x@127.0.0.1:6379/0",
        "redis://:#{}@127.0.0.1:6379/0",
        "redis://:?{}@127.0.0.1:6379/0",
        "redis://:[{}@127.0.0.1:6379/0",
        "redis://:12/{}@127.0.0.1:6379/0",
        "redis:/:{}@127.0.0.1:6379/0",
        "redis:{}@127.0.0.1:6379/0",
        ":{}@127.0.0.1:6379/0",
        "http://user:{}@127.0.0.1:6379/0",
        "clickhouse://user:{}@127.0.0.1:9000/default",
        "redis://127.0.0.1:6379/0?password={}",
    ],
)
@pytest.mark.parametrize("how", ["variable", "argument", "file"])
def test_invalid_url(url: str, how: str, tmp_path: Path) -> None:
    """A password with characters that a URL must encode, or a URL with a typing error: the error does not show it."""
    text = url.format(CANARY)
    config = tmp_path / "worker.toml"
    config.write_text(f'redis_url = "{text}"\n')
    flags = {"redis_url": text} if how == "argument" else {}
    environ = {"WORKER_REDIS_URL": text} if how == "variable" else {}
    try:
        settings, _ = load({"topic": "t", **flags}, environ, config if how == "file" else None)
    except UsageError as error:
        told = str(error)
    else:
        told = str(settings.redacted())  # what the first line of the log is made of
    assert "redis" in told
    _nowhere([told])


def _given(job: Job, name: str, how: str, directory: Path, password: str = CANARY) -> dict[str, str]:
    """Return the environment that gives a password in one of the ways."""
    if how == "url":
        return {f"WORKER_{name}_URL": _with_password(job.url, password)}
    if how == "variable":
        return {f"WORKER_{name}_PASSWORD": password}
    file = directory / "secret"
    file.write_text(f"{password}\n")
    return {f"WORKER_{name}_PASSWORD_FILE": str(file)}


def _with_password(url: str, password: str = CANARY) -> str:
    """Put a password into a URL, which has a user or not."""
    scheme, _, rest = url.partition("://")
    user, at, address = rest.rpartition("@")
    return f"{scheme}://{user if at else ''}:{password}@{address}"


def _arguments(job: Job, env: Mapping[str, str], *more: str) -> list[str]:
    """Return the worker's arguments, without the URL where the environment has it."""
    words = job.arguments(*more)
    if f"WORKER_{job.backend.upper()}_URL" in env:
        at = words.index(f"--{job.backend}-url")
        del words[at : at + 2]
    return words


def _ingest(job: Job, env: Mapping[str, str], form: str) -> None:
    """Write 2000 events and an invalid one, and search everywhere for the canary."""
    job.create()
    job.send([*events(1000), b"not json", *events(1000, first=1000)])
    arguments = _arguments(job, env, *LOUD[form])
    with run_worker(*arguments, env=env) as worker:
        worker.wait_for("took a partition")
        _nowhere(_arguments_of_all())
        job.all_done()
        _nowhere(_pages(worker))
        worker.signal()
        assert worker.wait() == 0, worker.tail()
        printed = [*worker.stdout, *worker.stderr]
    assert any("Total devices: " in line for line in printed)
    _nowhere(printed)
    (dead_letter,) = job.dead_letters()
    _nowhere([repr(dead_letter)])
    _nowhere([metadata for _, metadata in job.committed().values()])
    quiet = _arguments(job, env)
    for command in ("check", "count", "verify", "dlq"):
        words = (*(["list", "--payload"] if command == "dlq" else []), *quiet)
        with run_worker(command, *words, env=env) as other:
            assert other.wait() == 0, other.tail()
            _nowhere([*other.stdout, *other.stderr])


def _pages(worker: Worker) -> list[str]:
    """Return the text of every page of the monitor."""
    port = int(worker.wait_for(r"readyz are at http://127\.0\.0\.1:(\d+)/")[1])
    answers = []
    for path in ("/", "/metrics", "/status.json", "/livez", "/readyz", "/nothing"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("GET", path)
        response = connection.getresponse()
        answers.append(f"{response.headers}{response.read().decode()}")
        connection.close()
    return answers


def _arguments_of_all() -> list[str]:
    """Return the arguments of every process of this machine."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return found


def _nowhere(texts: list[str], canary: str = CANARY) -> None:
    found = [text for text in texts if canary in text]
    assert not found, found[0].replace(canary, "<CANARY>")[:500]
